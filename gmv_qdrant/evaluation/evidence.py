"""What the criteria ask of the ledger: small tables, one SELECT each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from gmv_qdrant.errors import SettingsError
from gmv_qdrant.ledger.database import Readable, literal
from gmv_qdrant.ledger.queries import ValueFunction
from gmv_qdrant.ledger.selection import Selection

PARTS = 20
"""Parts of the generated images, each of which is left out in turn."""


def _field(alias: str, name: str) -> str:
    """A label or an attribute of a training or generated image, as text."""
    if name == "label":
        return f"{alias}.label"
    return f"json_extract_string({alias}.attributes, {literal(_path(name))})"


def _path(name: str) -> str:
    """A JSON pointer: the name may have quotes, dots and slashes."""
    return "/" + name.replace("~", "~0").replace("/", "~1")


def _in_batch(batch: str | None) -> str:
    return "true" if batch is None else f"g.batch = {literal(batch)}"


# -- agreement of contributors (C1, C2) --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Agreement:
    """names: the generated image's own values, joined. hits: int64 ``(m, len(ks))``, how many of the k nearest agree.

    chance: float64 ``(m,)``, the share of all training images that agree. without: generated images left out because
    they lack one of the fields.
    """

    names: list[str]
    hits: np.ndarray
    chance: np.ndarray
    ks: tuple[int, ...]
    without: int


def agreement(ledger: Readable, fields: Sequence[str], ks: Sequence[int], batch: str | None) -> Agreement:
    """How many of the k nearest have the same label or attributes as the generated image, for each image and k.

    A training image agrees when one of its sources does, and not when it lacks a field.
    Raises `SettingsError` when no generated image has the fields, or one has fewer than k candidates.
    """
    mine = ", ".join(_field("g", name) for name in fields)
    theirs = ", ".join(_field("s", name) for name in fields)
    present = " AND ".join(f"{_field('g', name)} IS NOT NULL" for name in fields)
    counted = ", ".join(f"count(*) FILTER (WHERE agrees AND rank <= {int(k)}) AS k{int(k)}" for k in ks)
    table = ledger.query(
        f"""
        WITH wanted AS (SELECT generated_key, [{mine}] AS own FROM generated g WHERE {_in_batch(batch)} AND {present}),
        trained AS (SELECT DISTINCT training_key, [{theirs}] AS own
            FROM training t JOIN sources s USING (training_key) WHERE version_withdrawn IS NULL),
        sizes AS (SELECT own, count(*) / (SELECT count(DISTINCT training_key) FROM trained) AS share
            FROM trained GROUP BY own),
        judged AS (
            SELECT w.generated_key, w.own, m.rank, t.own IS NOT NULL AS agrees
            FROM matches m JOIN wanted w USING (generated_key)
            LEFT JOIN trained t ON t.training_key = m.training_key AND t.own IS NOT DISTINCT FROM w.own)
        SELECT array_to_string(j.own, ' & ') AS name, {counted}, count(*) AS candidates,
               coalesce(any_value(s.share), 0) AS chance
        FROM judged j LEFT JOIN sizes s ON s.own = j.own GROUP BY j.generated_key, j.own ORDER BY j.generated_key"""
    )
    total = ledger.query(f"SELECT count(*) AS n FROM generated g WHERE {_in_batch(batch)}")["n"][0].as_py()
    if not table.num_rows:
        which = " and ".join(repr(name) for name in fields)
        of = f" of the batch {batch!r}" if batch else ""
        raise SettingsError(
            f"none of the {total:,} generated images{of} has {which}: give it in the metadata.csv beside them and "
            "value them again"
        )
    fewest = min(table["candidates"].to_pylist())
    if max(ks) > fewest:
        raise SettingsError(
            f"k = {max(ks)} can't be judged: a generated image has {fewest} candidates only; ask for a smaller k"
        )
    return Agreement(
        names=table["name"].to_pylist(),
        hits=np.column_stack([table[f"k{int(k)}"].to_numpy() for k in ks]),
        chance=table["chance"].to_numpy().astype(np.float64),
        ks=tuple(int(k) for k in ks),
        without=int(total) - table.num_rows,
    )


# -- values of groups of training images (C3, membership) --------------------------------------------


@dataclass(frozen=True, slots=True)
class Values:
    """One row for each training image, in order of its key.

    value: float64, Eq. 5. nearest: float64, the smallest distance to any generated image that has it among its
    candidates, infinite when none has. value_parts, nearest_parts: float64 ``(parts, n)``, the same by each part of the
    generated images alone, so that the other side of the sampling can be judged.
    """

    keys: np.ndarray
    value: np.ndarray
    nearest: np.ndarray
    value_parts: np.ndarray
    nearest_parts: np.ndarray


def values(ledger: Readable, function: ValueFunction) -> Values:
    """Values, and the smallest distances over all candidates. Raises `SettingsError` when nothing was valued."""
    table = ledger.query(
        f"""
        WITH nearest AS (
            SELECT training_key, min(distance) AS nearest FROM matches JOIN generated g USING (generated_key)
            WHERE {_in_batch(function.batch)} GROUP BY training_key)
        SELECT v.training_key, v.value, coalesce(n.nearest, 'infinity'::DOUBLE) AS nearest
        FROM image_values({function.sql()}) v LEFT JOIN nearest n USING (training_key)
        WHERE NOT v.nobody ORDER BY v.training_key"""
    )
    keys, value, nearest = (table[name].to_numpy() for name in ("training_key", "value", "nearest"))
    found = Values(keys, value, nearest, *_by_part(ledger, function, keys))
    if not np.isfinite(found.nearest).any():
        of = f" of the batch {function.batch!r}" if function.batch else ""
        raise SettingsError(f"no generated image{of} was valued yet: gmv-qdrant value FOLDER")
    return found


def _by_part(ledger: Readable, function: ValueFunction, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    parts = f"""parts AS (
        SELECT g.generated_key, row_number() OVER (ORDER BY md5(content_hash || uri)) % {PARTS} AS part
        FROM generated g WHERE NOT g.control AND {_in_batch(function.batch)})"""
    value, nearest = np.zeros((PARTS, len(keys))), np.full((PARTS, len(keys)), np.inf)
    for into, what, source in (
        (value, "sum(contribution)", f"contributions({function.sql()})"),
        (nearest, "min(distance)", "matches"),
    ):
        rows = ledger.query(
            f"""WITH {parts} SELECT part, training_key, {what} AS number FROM {source} JOIN parts USING (generated_key)
            GROUP BY ALL"""
        )
        at = np.searchsorted(keys, rows["training_key"].to_numpy())
        there = at < len(keys)
        there[there] = keys[at[there]] == rows["training_key"].to_numpy()[there]
        into[rows["part"].to_numpy()[there], at[there]] = rows["number"].to_numpy()[there]
    return value, nearest


def strata(ledger: Readable, keys: np.ndarray) -> np.ndarray:
    """int ``(n,)``: images that resemble each other before any generator comes in: by label, and, where there is a
    control set, by the fifth of the training images that their nearness to strangers puts them in."""
    table = ledger.query(
        """SELECT k.key, l.label, c.fifth FROM keys k
        LEFT JOIN (SELECT training_key AS key, min(label) AS label FROM sources GROUP BY ALL) l USING (key)
        LEFT JOIN (SELECT training_key AS key, ntile(5) OVER (ORDER BY min(distance), training_key) AS fifth
            FROM matches JOIN generated USING (generated_key) WHERE control GROUP BY training_key) c USING (key)
        ORDER BY k.key""",
        keys=pa.table({"key": pa.array(keys, pa.int32())}),
    )
    names = [
        f"{label}|{fifth}"
        for label, fifth in zip(*(table[n].to_pylist() for n in ("label", "fifth")), strict=True)
    ]
    return np.unique(np.array(names), return_inverse=True)[1]


def members(ledger: Readable, keys: np.ndarray, group: Selection) -> np.ndarray:
    """bool: which of the training images with these (ascending) keys belong to a group.

    Raises `SettingsError` when none does, or for a name that no training image has.
    """
    return np.isin(keys, np.array(group.keys(ledger), np.int64))


# -- contributions -----------------------------------------------------------------------------------


def credit_of(ledger: Readable, function: ValueFunction, keys: np.ndarray) -> np.ndarray:
    """float64 ``(m,)``: the share of each generated image's credit that goes to the training images with these keys."""
    table = ledger.query(
        f"""SELECT sum(contribution) FILTER (WHERE mine.key IS NOT NULL) / sum(contribution) AS share
        FROM contributions({function.sql()}) c LEFT JOIN mine ON mine.key = c.training_key
        GROUP BY c.generated_key HAVING sum(contribution) > 0 ORDER BY c.generated_key""",
        mine=pa.table({"key": pa.array(keys, pa.int32())}),
    )
    shares: np.ndarray = table["share"].fill_null(0.0).to_numpy()
    return shares


def top_scores(ledger: Readable, function: ValueFunction, ranks: int) -> np.ndarray:
    """float64 ``(m, ranks)``: contributions of the nearest, second, third... training image of each generated image."""
    columns = ", ".join(f"sum(contribution) FILTER (WHERE rank = {r}) AS r{r}" for r in range(1, ranks + 1))
    table = ledger.query(
        f"SELECT {columns} FROM contributions({function.sql()}) GROUP BY generated_key ORDER BY generated_key"
    )
    return np.column_stack([table[f"r{r}"].fill_null(0.0).to_numpy() for r in range(1, ranks + 1)])


def runs(ledger: Readable) -> list[dict[str, Any]]:
    """Finished runs, oldest first; counts and timings are JSON text."""
    table = ledger.query(
        "SELECT verb, started_at, counts, timings FROM runs WHERE status = 'done' ORDER BY started_at"
    )
    return list(table.to_pylist())
