"""Import scores of another attribution method into a ledger of its own, beside ours.

Eq. 6 gives credit in proportion to exp(-d). So a score becomes a distance by one of three mappings:

- ``share``: d = -ln(score). At temperature 1 credit is in proportion to the scores. Scores of 0 are no evidence
  and are left out; negative ones are refused.
- ``similarity``: d = (largest score of the image) - score, for scores of any sign (influence functions): a softmax.
- ``distance``: d = score.

The new workspace has the training and generated images of the old one, with owners, labels and qualities, and
evidence of the other method only; `credits`, `report` and `evaluate` work on it, and nothing can be valued into it.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from gmv_qdrant import folder
from gmv_qdrant.errors import SettingsError, SourceError
from gmv_qdrant.ledger.database import Ledger, Readable, insert
from gmv_qdrant.ledger.names import find_images
from gmv_qdrant.ledger.runs import recorded
from gmv_qdrant.settings import Settings

MAPPINGS = ("share", "similarity", "distance")
MOST = 10_000
"""Training images that can be kept for a generated one."""
LARGEST = 1e100
"""Absolute value of a score; beyond it differences of scores are no numbers any more."""
_COPIED = ("training", "sources", "generated")


def import_scores(
    ledger: Readable,
    settings: Settings,
    file: Path,
    into: Path,
    *,
    method: str,
    batch: str,
    score_type: str,
    top_k: int,
) -> dict[str, Any]:
    """Make the workspace ``into`` from this ledger's images and a Parquet file with the columns generated,
    training, score.

    Names are URIs, ends of URIs, ids or content hashes. top_k: best-scored training images kept for each generated one.
    Raises `SourceError` for a file that can't be read or has other columns, `SettingsError` for unknown names,
    double pairs, scores that don't fit the mapping, and a folder that is a workspace already.
    """
    if score_type not in MAPPINGS:
        raise SettingsError(f"score_type = {score_type!r} can't be used: it is one of {', '.join(MAPPINGS)}")
    if not 1 <= top_k <= MOST:
        raise SettingsError(f"top_k = {top_k} can't be used: it is from 1 to {MOST:,}")
    if folder.is_workspace(into):
        raise SettingsError(f"{into} is a workspace already: imported scores get a new one")
    table = _read(file)
    if not table.num_rows:
        raise SourceError(f"{file} has no rows")
    generated = _keys(ledger, table["generated"], "generated")
    training = _keys(ledger, table["training"], "training")
    scores = table["score"].to_numpy()
    wrong = ~(np.abs(scores) <= LARGEST)
    if wrong.any():
        raise SettingsError(
            f"{file} has {int(wrong.sum()):,} scores that can't be used, the first of them {scores[wrong][0]}: "
            f"they must be numbers from -{LARGEST:g} to {LARGEST:g}"
        )
    _refuse_double_pairs(table, generated, training, file)
    generated, training, distances = _distances(generated, training, scores, score_type, file)
    order = np.lexsort((training, distances, generated))
    generated, training, distances = generated[order], training[order], distances[order]
    starts = np.flatnonzero(np.diff(generated, prepend=-1))
    ranks = np.arange(len(generated)) - np.repeat(starts, np.diff([*starts, len(generated)])) + 1
    keep = ranks <= top_k
    kept = {
        "generated_key": pa.array(generated[keep].astype(np.int32)),
        "training_key": pa.array(training[keep].astype(np.int32)),
        "rank": pa.array(ranks[keep].astype(np.int16)),
        "distance": pa.array(distances[keep]),
    }
    _write(
        ledger,
        settings,
        into,
        kept,
        file=file,
        method=method,
        batch=batch,
        score_type=score_type,
        top_k=top_k,
    )
    return {
        "workspace": str(into),
        "method": method,
        "score_type": score_type,
        "generated_images": len(starts),
        "matches": int(keep.sum()),
        "dropped": int(len(scores) - keep.sum()),
    }


def _refuse_double_pairs(table: pa.Table, generated: np.ndarray, training: np.ndarray, file: Path) -> None:
    """One image may go by two names: both are said."""
    order = np.lexsort((training, generated))
    same = np.flatnonzero((np.diff(generated[order]) == 0) & (np.diff(training[order]) == 0))
    if not len(same):
        return
    rows = [
        {name: table[name][int(order[at])].as_py() for name in ("generated", "training")}
        for at in same[0] + (0, 1)
    ]
    first, second = (f"{row['generated']!r} and {row['training']!r}" for row in rows)
    again = "again" if first == second else f"and, as {second}, again"
    raise SettingsError(
        f"{file} has a score for {first} {again}: one score for each pair of images is needed"
    )


def _read(file: Path) -> pa.Table:
    columns = "generated::VARCHAR AS generated, training::VARCHAR AS training, score::DOUBLE AS score"
    try:
        with duckdb.connect() as con:
            return con.sql(
                f"SELECT {columns} FROM read_parquet($file)", params={"file": str(file)}
            ).to_arrow_table()
    except duckdb.Error as error:
        first = (str(error).splitlines() or [""])[0].rstrip(".")
        raise SourceError(
            f"{file} can't be used ({first}): a Parquet file with the columns generated, training, score is needed"
        ) from None


def _keys(ledger: Readable, names: pa.ChunkedArray, kind: str) -> np.ndarray:
    """int64: the key of each name, each distinct one looked up once."""
    encoded = names.combine_chunks().dictionary_encode()
    if encoded.null_count:
        raise SettingsError(f"a row of the file names no {kind} image")
    distinct = encoded.dictionary.to_pylist()
    found = find_images(ledger, distinct, kind)
    keys: np.ndarray = np.array([found[name] for name in distinct], dtype=np.int64)[
        encoded.indices.to_numpy()
    ]
    return keys


def _distances(
    generated: np.ndarray, training: np.ndarray, scores: np.ndarray, score_type: str, file: Path
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if score_type == "distance":
        return generated, training, scores
    if score_type == "similarity":
        groups, of = np.unique(generated, return_inverse=True)
        best = np.full(len(groups), -np.inf)
        np.maximum.at(best, of, scores)
        return generated, training, best[of] - scores
    if (scores < 0).any():
        raise SettingsError(
            f"{file} has negative scores ({scores.min():g}), which can't be shares of credit: say what they are with "
            "--score-type similarity (a softmax) or distance"
        )
    some = scores > 0
    if not some.any():
        raise SettingsError(f"all scores of {file} are 0: they give nobody credit")
    return generated[some], training[some], -np.log(scores[some])


def _write(
    ledger: Readable,
    settings: Settings,
    into: Path,
    kept: dict[str, pa.Array],
    *,
    file: Path,
    batch: str,
    **about: Any,
) -> None:
    name = f"imported:{about['method']}"
    mine = settings.replaced(
        encoder=name,
        distance=name,
        encoder_weights=None,
        qdrant_url=None,
        quantization="none",
        views="none",
        candidates=int(about["top_k"]),
    )
    copied = {table: ledger.query(f"FROM {table}") for table in _COPIED}
    valued = pa.table({"key": np.unique(kept["generated_key"].to_numpy())})
    imported = {**about, "file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    training_version = ledger.training_version

    def fill(fresh: Ledger) -> None:
        with recorded(fresh, "import-scores", mine.evidence()) as run, fresh.write() as con:
            for table, rows in copied.items():
                con.register("rows_to_copy", rows)
                con.execute(f"INSERT INTO {table} BY NAME FROM rows_to_copy")
                con.unregister("rows_to_copy")
            con.register("valued", valued)
            con.execute("DELETE FROM generated WHERE generated_key NOT IN (SELECT key FROM valued)")
            con.execute(
                "UPDATE generated SET batch = ?, version_valued = ?, recall_radius = NULL",
                [batch, training_version],
            )
            insert(con, "matches", kept)
            run.counts["valued"] = valued.num_rows
            fresh.set_meta(con, imported_at=datetime.now(UTC).isoformat())

    folder.make(
        into,
        mine,
        fill,
        imported=imported,
        fingerprint={"imported": imported},
        training_version=training_version,
    )
