"""Causal truth: what models lose that were trained again without some of the images, beside what credit predicts.

The linear datamodeling score (LDS; Ilyas et al. 2022, Park et al. 2023): models are trained on subsets of the training
images; each generated image has a loss under each model; its credit, summed over a subset, should rank the models as
the losses do. Leaving one owner out at a time is the same question with other subsets.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from scipy import stats

from gmv_qdrant.errors import SettingsError, SourceError
from gmv_qdrant.ledger.database import Readable
from gmv_qdrant.ledger.names import find_images, require_owner
from gmv_qdrant.ledger.queries import ValueFunction

GROUPS = 16
"""Parts of the models that are left out in turn to see how much the score depends on which subsets were drawn."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Rank correlation of predicted and true losses over the models: the mean over the generated images.

    standard_error: with both sides of the sampling, generated images and subsets. per_image: float64 ``(m,)``.
    totals: the same correlation of what is summed over all generated images.
    """

    mean: float
    standard_error: float
    per_image: np.ndarray
    totals: float
    models: int

    def as_dict(self) -> dict[str, Any]:
        found = asdict(self)
        del found["per_image"]
        return {**found, "images": len(self.per_image)}


def agreement(predicted: np.ndarray, losses: np.ndarray) -> Agreement:
    """predicted: float ``(S, m)``, credit of each generated image that each model's training images have. losses:
    float ``(S, m)``; credit predicts minus the loss. An image whose credit is the same for all models scores 0.

    Raises `SettingsError` for fewer than 3 models, or losses that are not finite.
    """
    if len(losses) < 3:
        raise SettingsError(f"{len(losses)} models can't rank anything: at least 3 are needed")
    if not np.isfinite(losses).all():
        raise SettingsError("a loss is not a finite number")
    scores = rank_correlation(predicted, -losses)
    parts = np.array_split(np.random.default_rng(0).permutation(len(losses)), min(GROUPS, len(losses)))
    without = [np.setdiff1d(np.arange(len(losses)), part) for part in parts if len(losses) - len(part) > 2]
    means = np.array([rank_correlation(predicted[rows], -losses[rows]).mean() for rows in without])
    of_models = (len(means) - 1) / len(means) * ((means - means.mean()) ** 2).sum() if len(means) else np.nan
    of_images = scores.var(ddof=1) / len(scores) if len(scores) > 1 else 0.0
    totals = rank_correlation(predicted.sum(axis=1, keepdims=True), -losses.sum(axis=1, keepdims=True))
    return Agreement(
        mean=float(scores.mean()),
        standard_error=float(np.sqrt(of_images + of_models)),
        per_image=scores,
        totals=float(totals[0]),
        models=len(losses),
    )


def rank_correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Spearman's over the rows, for each column: float64 ``(m,)``; 0 where a column doesn't vary."""
    a, b = (stats.rankdata(of, axis=0) for of in (one, other))
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    scale = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    found: np.ndarray = np.where(scale > 0, (a * b).sum(axis=0) / np.where(scale > 0, scale, 1.0), 0.0)
    return found


def ceiling(losses: np.ndarray) -> float | None:
    """The best score that anything could reach against these losses: float ``(S, seeds, m)``, the same subsets
    trained by several seeds. None with one seed.

    Two seeds agree at r; their mean over s seeds has the reliability s r / (1 + (s - 1) r) (Spearman and Brown), whose
    square root is how well a perfect prediction would correlate with it.
    """
    seeds = losses.shape[1]
    if seeds < 2:
        return None
    pairs = [
        float(rank_correlation(losses[:, a], losses[:, b]).mean()) for a in range(seeds) for b in range(a)
    ]
    r = max(0.0, float(np.mean(pairs)))
    return float(np.sqrt(seeds * r / (1 + (seeds - 1) * r)))


def predicted(contributions: np.ndarray, trained_on: np.ndarray) -> np.ndarray:
    """float64 ``(S, m)``: credit of each generated image within each subset.

    contributions: float ``(m, n)``. trained_on: bool ``(S, n)``.
    """
    found: np.ndarray = trained_on.astype(np.float64) @ contributions.T
    return found


# -- models that users have trained ----------------------------------------------------------------------

KINDS = ("training", "left_out", "left_out_owner")


@dataclass(frozen=True, slots=True)
class Models:
    """subsets: columns model (int, from 0), training_key, sign (1: trained on it, -1: not). losses: float64
    ``(models, seeds, m)``. generated: int ``(m,)``, keys."""

    subsets: pa.Table
    losses: np.ndarray
    generated: np.ndarray

    def credit(self, ledger: Readable, function: ValueFunction) -> np.ndarray:
        """float64 ``(models, m)``: credit of each generated image within what each model was trained on, or minus
        that of what it wasn't."""
        rows = ledger.query(
            f"""SELECT s.model, c.generated_key, sum(c.contribution * s.sign) AS credit
            FROM contributions({function.sql()}) c JOIN subsets s USING (training_key) GROUP BY ALL""",
            subsets=self.subsets,
        )
        out = np.zeros((len(self.losses), len(self.generated)))
        place = {key: at for at, key in enumerate(self.generated.tolist())}
        for model, key, credit in zip(*(rows[name].to_pylist() for name in rows.column_names), strict=True):
            if key in place:
                out[model, place[key]] = credit
        return out


def read_models(ledger: Readable, subsets: Path, losses: Path, batch: str | None = None) -> Models:
    """Two tables (Parquet, CSV or JSON lines) about models that were trained again.

    subsets: columns ``model`` and one of ``training`` (an image that it was trained on), ``left_out`` (one that it
    wasn't) and ``left_out_owner``. losses: columns ``model``, ``generated``, ``loss`` (less is better), each as often
    as there were seeds. Images go by URI, end of a URI, id or content hash; batch: of the generated ones.
    Raises `SourceError` for other tables, and `SettingsError` for names that the workspace doesn't know, models without
    losses, and pairs of model and image that are missing.
    """
    parts, found = _table(subsets), _table(losses)
    kinds = [name for name in KINDS if name in parts.column_names]
    if "model" not in parts.column_names or len(kinds) != 1:
        raise SourceError(f"{subsets} needs a column model and one of {', '.join(KINDS)}")
    if not {"model", "generated", "loss"} <= set(found.column_names):
        raise SourceError(f"{losses} needs the columns model, generated and loss")
    names = sorted({str(name) for name in parts["model"].to_pylist()})
    lost = [str(name) for name in found["model"].to_pylist()]
    if unknown := sorted(set(lost) ^ set(names)):
        raise SettingsError(f"the model {unknown[0]!r} isn't in both of {subsets} and {losses}")
    keys = find_images(
        ledger, sorted({str(name) for name in found["generated"].to_pylist()}), "generated", batch=batch
    )
    images = np.unique(list(keys.values()))
    seen: dict[tuple[str, int], list[float]] = {}
    for model, name, loss in zip(
        lost, found["generated"].to_pylist(), found["loss"].to_pylist(), strict=True
    ):
        seen.setdefault((model, keys[str(name)]), []).append(float(loss))
    seeds = {len(each) for each in seen.values()}
    if len(seen) < len(names) * len(images) or len(seeds) > 1:
        raise SettingsError(
            f"{losses} must have each model's loss of each image, for all the same number of seeds"
        )
    values = np.array([[seen[model, int(key)] for key in images] for model in names]).transpose(0, 2, 1)
    return Models(_signed(ledger, parts, kinds[0], names), values, images)


def _signed(ledger: Readable, parts: pa.Table, kind: str, names: list[str]) -> pa.Table:
    number = {name: at for at, name in enumerate(names)}
    models = [number[str(name)] for name in parts["model"].to_pylist()]
    of = [str(name) for name in parts[kind].to_pylist()]
    if kind == "left_out_owner":
        owned = ledger.query(
            "SELECT DISTINCT training_key, owner FROM sources WHERE owner IS NOT NULL"
        ).to_pylist()
        keys_of: dict[str, list[int]] = {}
        for row in owned:
            keys_of.setdefault(row["owner"], []).append(row["training_key"])
        for owner in sorted(set(of) - keys_of.keys()):
            require_owner(ledger, owner)
        pairs = [(model, key) for model, owner in zip(models, of, strict=True) for key in keys_of[owner]]
    else:
        keys = find_images(ledger, sorted(set(of)))
        pairs = [(model, keys[name]) for model, name in zip(models, of, strict=True)]
    return pa.table(
        {
            "model": pa.array([model for model, _ in pairs], pa.int32()),
            "training_key": pa.array([key for _, key in pairs], pa.int32()),
            "sign": pa.array([1 if kind == "training" else -1] * len(pairs), pa.int8()),
        }
    )


def _table(file: Path) -> pa.Table:
    reader = {".parquet": "read_parquet", ".csv": "read_csv"}.get(file.suffix.lower(), "read_json")
    try:
        with duckdb.connect() as con:
            return con.sql(f"FROM {reader}($file)", params={"file": str(file)}).to_arrow_table()
    except duckdb.Error as error:
        first = (str(error).splitlines() or [""])[0].rstrip(".")
        raise SourceError(f"{file} can't be read as a table ({first})") from None
