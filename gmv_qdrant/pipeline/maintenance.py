"""What new and withdrawn training images change: exactly the generated images that they can affect.

A new training image can only enter the candidates of a generated image if it is nearer, in the recall space, than
the K-th candidate (the *recall radius*). A withdrawn one only matters where it was a candidate. All other evidence is
what a valuation from scratch would find, and stays; and where candidates change, the distances of those that stay are
known already.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from gmv_qdrant.errors import LedgerError, StoreError
from gmv_qdrant.ledger.ledger import Connection
from gmv_qdrant.ledger.runs import Run
from gmv_qdrant.pipeline.context import Context
from gmv_qdrant.pipeline.matching import Known
from gmv_qdrant.pipeline.streams import batched
from gmv_qdrant.pipeline.valuation import Valuation, check_conservation, replace_matches
from gmv_qdrant.store.base import VectorDistance, parse_point_id

SLACK = 1e-5
"""Of the size of the vectors, added to every radius: distances by the engine and by us differ by float32 rounding;
too many affected images are still exact."""
_BLOCK = 2048
_CHUNK = 512
"""Generated images whose new evidence is committed together."""
NEVER = np.iinfo(np.int32).max

Blocks = Iterator[tuple[np.ndarray, np.ndarray]]
"""int32 ``(n,)`` epochs that images were added in, and their float32 ``(n, dim)`` recall vectors."""


def update(context: Context, run: Run) -> None:
    """Make the evidence what a valuation from scratch would give, touching only what can have changed."""
    stale = context.ledger.query(
        """SELECT generated_key AS key, epoch_valued, recall_radius FROM generated
        WHERE epoch_valued < $epoch ORDER BY key""",
        {"epoch": run.epoch},
    )
    keys, epochs, radii = (column.to_numpy() for column in stale.columns)
    run.counts["stale"] = len(keys)
    if len(keys) == 0:
        return
    with run.timed("find affected"):
        affected = epochs == 0
        asked = np.flatnonzero(~affected)
        newer = _newer(context, int(epochs[asked].min(initial=NEVER)))
        affected[asked] = reached(context, keys[asked], epochs[asked], radii[asked], newer)
    run.counts["affected"] = int(affected.sum())
    context.progress.phase("update", len(keys))
    if not affected.all():
        with context.ledger.write() as con:
            _set_epoch(con, keys[~affected], run.epoch)
    context.progress.advance(int((~affected).sum()))
    valuation = Valuation(context, run)
    for chunk in batched(keys[affected].tolist(), _CHUNK):
        evidence = valuation.match(
            {space: locate(context, space, chunk) for space in context.generated_spaces},
            _evidence(context, chunk),
        )
        with run.timed("write"), context.ledger.write() as con:
            replace_matches(con, chunk, evidence)
            con.register(
                "fresh", pa.table({"key": chunk, "radius": [matches.radius for matches in evidence]})
            )
            con.execute(
                "UPDATE generated SET recall_radius = fresh.radius FROM fresh WHERE generated_key = fresh.key"
            )
            con.unregister("fresh")
            _set_epoch(con, np.array(chunk), run.epoch)
            run.write_quarantine(con, [])
        context.progress.advance(len(chunk))
    check_conservation(context, run)


def _evidence(context: Context, keys: list[int]) -> list[Known]:
    """The distances that the ledger has for each of these generated images."""
    rows = context.ledger.query(
        """SELECT generated_key, training_key, distance, view FROM matches JOIN wanted ON generated_key = key
        ORDER BY generated_key, training_key""",
        wanted=pa.table({"key": pa.array(keys, pa.int32())}),
    )
    of, training, distances, views = (column.to_numpy() for column in rows.columns)
    starts, ends = np.searchsorted(of, keys), np.searchsorted(of, keys, side="right")
    return [
        Known(training[start:end], distances[start:end], views[start:end])
        for start, end in zip(starts, ends, strict=True)
    ]


def _set_epoch(con: Connection, keys: np.ndarray, epoch: int) -> None:
    con.execute(
        "UPDATE generated SET epoch_valued = ? WHERE generated_key IN (SELECT unnest(?::INTEGER[]))",
        [epoch, keys.tolist()],
    )


def locate(context: Context, space: str, keys: list[int]) -> np.ndarray:
    """int64 ``(n, 2)`` locations, in the order of ``keys``, of vectors that the ledger names."""
    rows = context.ledger.query(
        "SELECT key, shard, row FROM features JOIN wanted USING (key) WHERE space = $space",
        {"space": space},
        wanted=pa.table({"key": pa.array(keys, pa.int32())}),
    )
    where = dict(
        zip(
            rows["key"].to_pylist(),
            zip(rows["shard"].to_pylist(), rows["row"].to_pylist(), strict=True),
            strict=True,
        )
    )
    if lost := [key for key in keys if key not in where]:
        raise LedgerError(
            f"{len(lost)} generated images have no vectors in {space}: "
            "'gmv-qdrant check --repair' computes them again"
        )
    return np.array([where[key] for key in keys], dtype=np.int64).reshape(-1, 2)


def reached(
    context: Context, keys: np.ndarray, epochs: np.ndarray, radii: np.ndarray, blocks: Blocks
) -> np.ndarray:
    """Which generated images a training image newer than theirs comes as close to as their candidates.

    keys, epochs, radii: ``(m,)``, the generated images, what they were valued against, their recall radii.
    Returns bool ``(m,)``.
    """
    found = np.zeros(len(keys), dtype=bool)
    kind = context.store.spec.distance
    for added, vectors in blocks:
        for start in range(0, len(keys), _BLOCK):
            part = np.arange(start, min(start + _BLOCK, len(keys)))
            part = part[~found[part]]
            newer = added[None, :] > epochs[part, None]
            for view in context.views:
                space = f"generated/recall{view}"
                queries = context.space(space).gather(locate(context, space, keys[part].tolist()))
                limits = radii[part] + SLACK * _size(kind, queries, vectors)
                near = recall_distances(kind, queries, vectors) <= limits[:, None]
                found[part] |= (near & newer).any(axis=1)
    return found


def _newer(context: Context, epoch: int) -> Blocks:
    """The training images that were added after ``epoch``."""
    rows = context.ledger.query(
        "SELECT point_id, epoch_added FROM training WHERE epoch_added > $epoch AND epoch_withdrawn IS NULL",
        {"epoch": epoch},
    )
    yield from recall_vectors(context, rows["point_id"].to_pylist(), rows["epoch_added"].to_pylist())


def recall_vectors(context: Context, points: list[str], epochs: list[int]) -> Blocks:
    """Blocks of these points' epochs and recall vectors, from the store.

    Raises `StoreError` when the store has lost one.
    """
    for block in batched(zip(points, epochs, strict=True), _BLOCK):
        added = {parse_point_id(point): epoch for point, epoch in block}
        found = context.store.retrieve(list(added), with_vectors=True)
        vectors = [point.vector for point in found if point.vector is not None]
        if len(vectors) < len(added):
            ours = context.owns_collection
            raise StoreError(
                f"the store lacks {len(added) - len(vectors)} training images that the ledger has: "
                + ("'gmv-qdrant check --repair' computes them again from their sources" if ours
                   else "'gmv-qdrant adopt' brings the ledger to what the collection is now")
            )  # fmt: skip
        yield np.array([added[point.id] for point in found]), np.stack(vectors)


def _size(kind: VectorDistance, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """What rounding is relative to, for each query: float64 ``(q,)``."""
    if kind == "cosine":
        return np.ones(len(queries))
    longest = float(np.linalg.norm(rows, axis=1).max(initial=0))
    norms = np.linalg.norm(queries, axis=1).astype(np.float64)
    return np.asarray(norms * longest if kind == "dot" else norms + longest)


def recall_distances(kind: VectorDistance, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Recall distances float64 ``(q, n)`` as the store gives them: 1 - cos, minus the product, or the 2-norm."""
    if kind == "cosine":
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        of_queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
        return np.asarray(1.0 - of_queries @ unit.T, dtype=np.float64)
    if kind == "dot":
        return np.asarray(-(queries @ rows.T), dtype=np.float64)
    q, r = queries.astype(np.float64), rows.astype(np.float64)  # the squares cancel
    squares = (q**2).sum(1)[:, None] + (r**2).sum(1)[None, :] - 2 * q @ r.T
    return np.asarray(np.sqrt(np.maximum(squares, 0)))
