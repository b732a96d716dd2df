"""What new and withdrawn training images change: exactly the generated images that they can affect.

A new training image can only enter the candidates of a generated image if it is nearer, in the recall space, than
the last that is kept of them. Where the list is whole, it is put in its place; elsewhere the image is searched again.
A withdrawn one left the lists when it was withdrawn; `update` has to search where too few were in spare. All other
evidence is what a valuation from scratch would find, and stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from gmv_qdrant.errors import LedgerError, StoreError
from gmv_qdrant.ledger.candidates import ENTERING, rearrange
from gmv_qdrant.ledger.database import Connection
from gmv_qdrant.ledger.runs import Run
from gmv_qdrant.pipeline.context import Context
from gmv_qdrant.pipeline.matching import Known, spare_count
from gmv_qdrant.pipeline.streams import batched
from gmv_qdrant.pipeline.value import Valuation, check_conservation, replace_matches
from gmv_qdrant.vectors.protocol import VectorDistance, parse_point_id

SLACK = 1e-5
"""Of the size of the vectors, added to every radius: distances by the engine and by us differ by float32 rounding;
too many affected images are still exact."""
_BLOCK = 2048
_CHUNK = 512
"""Generated images that are searched, or whose distances are computed, together."""
_MERGED = 8192
"""Generated images whose lists are rearranged in one transaction."""
NEVER = np.iinfo(np.int32).max


@dataclass(slots=True)
class Block:
    """Training images with their recall vectors, float32 ``(n, dim)``, and the versions that they were added in."""

    points: list[str]
    training_versions: np.ndarray
    vectors: np.ndarray


@dataclass(slots=True)
class Near:
    """Training images that come as close to generated images as their candidates: one row for each pair.

    generated: int32 ``(p,)``, places in the arrays that were asked for, ascending. training: int32 ``(p,)``, places in
    ``points``. distances: float32 ``(p,)``, in the recall space. slack: float32 ``(p,)``, what rounding may
    have changed.
    """

    points: list[str]
    generated: np.ndarray
    training: np.ndarray
    distances: np.ndarray
    slack: np.ndarray

    def __getitem__(self, which: np.ndarray) -> Near:
        rows = (self.generated, self.training, self.distances, self.slack)
        return Near(self.points, *(column[which] for column in rows))


def update(context: Context, run: Run) -> None:
    """Make the evidence what a valuation from scratch would give, touching only what can have changed."""
    keys, training_versions, reach, whole = _stale(context, run.training_version)
    run.counts["stale"] = len(keys)
    if len(keys) == 0:
        return
    with run.timed("find affected"):
        newer = _newer(context, int(training_versions[training_versions > 0].min(initial=NEVER)))
        most = context.settings.candidates // 2
        coming, near = nearer(
            context, keys, np.where(training_versions > 0, training_versions, NEVER), reach, newer, most
        )
    affected = (training_versions == 0) | (coming > 0)
    merged = whole & (coming > 0) & (coming <= most)
    run.counts["affected"] = int(affected.sum())
    context.progress.phase("update", len(keys))
    if not affected.all():
        with context.ledger.write() as con:
            _set_epoch(con, keys[~affected], run.training_version)
    context.progress.advance(int((~affected).sum()))
    valuation = Valuation(context, run)
    doubtful: list[int] = []
    rows = np.flatnonzero(merged[near.generated])
    for start in range(0, len(keys), _MERGED):
        part = rows[(near.generated[rows] >= start) & (near.generated[rows] < start + _MERGED)]
        if len(part):
            doubtful += _merge(valuation, keys, near[part])
    searched = sorted([*keys[affected & ~merged].tolist(), *doubtful])
    run.counts["searched"] = len(searched)
    for chunk in batched(searched, _CHUNK):
        _search(valuation, chunk)
    check_conservation(context, run)


def _stale(context: Context, training_version: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Generated images with older evidence: keys; versions; recall distance that is in reach; whether lists are whole.

    A list that isn't whole (two views are merged, a vector couldn't be had, fewer than K exist) can't be rearranged.
    """
    rows = context.ledger.query(
        """
        SELECT generated_key, version_valued, greatest(recall_radius, last) AS reach,
               recall_radius < 'infinity'::DOUBLE AND coalesce(kept, 0) = $candidates AS whole
        FROM generated
        LEFT JOIN (SELECT generated_key, count(recall_distance) AS kept FROM matches GROUP BY ALL) USING (generated_key)
        LEFT JOIN (SELECT generated_key, max(recall_distance) AS last FROM spare_candidates GROUP BY ALL)
            USING (generated_key)
        WHERE version_valued < $training_version ORDER BY generated_key
        """,
        {"training_version": training_version, "candidates": context.settings.candidates},
    )
    keys, training_versions, reach, whole = (column.to_numpy() for column in rows.columns)
    return keys, training_versions, reach, whole.astype(bool) & (spare_count(context) > 0)


def _merge(valuation: Valuation, keys: np.ndarray, near: Near) -> list[int]:
    """Put new training images where they belong; returns the keys of generated images that must be searched."""
    context, run, vectors = valuation.context, valuation.run, valuation.matcher.vectors
    with run.timed("re-rank"):
        come = {near.points[i] for i in np.unique(near.training).tolist()}
        training = vectors.know(come)
        there = vectors.require(training)
        usable = np.array([point in there for point in near.points])[near.training]
        lacking = np.unique(near.generated[~usable])
        near = near[~np.isin(near.generated, lacking)]
        if not len(near.generated):
            return list(keys[lacking].tolist())
        places, starts = np.unique(near.generated, return_index=True)
        distances = [np.empty(0)]
        lists = zip(places.tolist(), np.split(near.training, starts[1:]), strict=True)
        for chunk in batched(lists, valuation.matcher.group):
            mine = locate(context, "generated/rerank", keys[[place for place, _ in chunk]].tolist())
            queries = context.space("generated/rerank").gather(mine)
            for query, (_, rows) in zip(queries, chunk, strict=True):
                distances.append(vectors.distances([near.points[i] for i in rows.tolist()], query[None])[0])
    entering = (
        keys[near.generated],
        [training[near.points[i]] for i in near.training.tolist()],
        near.distances,
        np.concatenate(distances),
        np.zeros(len(near.training)),
        near.slack,
    )
    columns = {
        field.name: pa.array(column).cast(field.type)
        for field, column in zip(ENTERING, entering, strict=True)
    }
    moved: list[int] = keys[places].tolist()
    with run.timed("write"), context.ledger.write() as con:
        doubtful = rearrange(
            con, moved, context.settings.candidates, valuation.matcher.spare, pa.table(columns)
        )
        _set_epoch(con, np.setdiff1d(moved, doubtful), run.training_version)
    context.progress.advance(len(moved) - len(doubtful))
    return [*doubtful, *keys[lacking].tolist()]


def _search(valuation: Valuation, keys: list[int]) -> None:
    """Find the candidates of generated images anew; known distances stay."""
    context, run = valuation.context, valuation.run
    evidence = valuation.match(
        {space: locate(context, space, keys) for space in context.generated_spaces},
        _evidence(context, keys),
    )
    with run.timed("write"), context.ledger.write() as con:
        replace_matches(con, keys, evidence)
        con.register("fresh", pa.table({"key": keys, "radius": [matches.radius for matches in evidence]}))
        con.execute(
            "UPDATE generated SET recall_radius = fresh.radius FROM fresh WHERE generated_key = fresh.key"
        )
        con.unregister("fresh")
        _set_epoch(con, np.array(keys), run.training_version)
        run.write_quarantine(con, [])
    context.progress.advance(len(keys))


def _evidence(context: Context, keys: list[int]) -> list[Known]:
    """The distances that the ledger has for each of these generated images."""
    rows = context.ledger.query(
        """SELECT generated_key, training_key, distance, view FROM (
            SELECT generated_key, training_key, distance, view FROM matches
            UNION ALL SELECT generated_key, training_key, distance, view FROM spare_candidates)
        JOIN wanted ON generated_key = key ORDER BY generated_key, training_key""",
        wanted=pa.table({"key": pa.array(keys, pa.int32())}),
    )
    of, training, distances, views = (column.to_numpy() for column in rows.columns)
    starts, ends = np.searchsorted(of, keys), np.searchsorted(of, keys, side="right")
    return [
        Known(training[start:end], distances[start:end], views[start:end])
        for start, end in zip(starts, ends, strict=True)
    ]


def _set_epoch(con: Connection, keys: np.ndarray, training_version: int) -> None:
    con.execute(
        "UPDATE generated SET version_valued = ? WHERE generated_key IN (SELECT unnest(?::INTEGER[]))",
        [training_version, keys.tolist()],
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


def nearer(
    context: Context,
    keys: np.ndarray,
    training_versions: np.ndarray,
    reach: np.ndarray,
    blocks: Iterator[Block],
    most: int = 0,
) -> tuple[np.ndarray, Near]:
    """Which training images newer than their evidence come as close to generated images as ``reach``, in any view.

    keys, training_versions, reach: ``(m,)``, the generated images, what they were valued against, recall distances.
    Returns how many come to each, int64 ``(m,)``, and who; no more is counted or named once there are over ``most``.
    """
    kind = context.store.spec.distance
    counts = np.zeros(len(keys), dtype=np.int64)
    points: list[str] = []
    found = [(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32), np.empty(0, np.float32))]
    for block in blocks:
        for start in range(0, len(keys), _BLOCK):
            part = np.arange(start, min(start + _BLOCK, len(keys)), dtype=np.int32)
            part = part[(training_versions[part] < block.training_versions.max()) & (counts[part] <= most)]
            newer = block.training_versions[None, :] > training_versions[part, None]
            for view in context.views:
                space = f"generated/recall{view}"
                queries = context.space(space).gather(locate(context, space, keys[part].tolist()))
                slack = SLACK * _size(kind, queries, block.vectors)
                distances = recall_distances(kind, queries, block.vectors)
                near = (distances <= (reach[part] + slack)[:, None]) & newer
                counts[part] += near.sum(axis=1)
                near[counts[part] > most] = False
                which, whom = np.nonzero(near)
                found.append((
                    part[which],
                    (whom + len(points)).astype(np.int32),
                    distances[near].astype(np.float32),
                    slack[which].astype(np.float32),
                ))  # fmt: skip
        points += block.points
    near_all = Near(points, *(np.concatenate(column) for column in zip(*found, strict=True)))
    return counts, near_all[np.argsort(near_all.generated, kind="stable")]


def _newer(context: Context, training_version: int) -> Iterator[Block]:
    """The training images that were added after ``training_version``."""
    rows = context.ledger.query(
        """SELECT point_id, version_added FROM training
        WHERE version_added > $training_version AND version_withdrawn IS NULL""",
        {"training_version": training_version},
    )
    yield from recall_vectors(context, rows["point_id"].to_pylist(), rows["version_added"].to_pylist())


def recall_vectors(context: Context, points: list[str], training_versions: list[int]) -> Iterator[Block]:
    """Blocks of these points, from the store.

    Raises `StoreError` when the store has lost one.
    """
    for block in batched(zip(points, training_versions, strict=True), _BLOCK):
        added = {parse_point_id(point): training_version for point, training_version in block}
        found = context.store.retrieve(list(added), with_vectors=True)
        vectors = [point.vector for point in found if point.vector is not None]
        if len(vectors) < len(added):
            ours = context.owns_collection
            raise StoreError(
                f"the store lacks {len(added) - len(vectors)} training images that the ledger has: "
                + ("'gmv-qdrant check --repair' computes them again from their sources" if ours
                   else "'gmv-qdrant adopt' brings the ledger to what the collection is now")
            )  # fmt: skip
        yield Block(
            [str(point.id) for point in found],
            np.array([added[point.id] for point in found]),
            np.stack(vectors),
        )


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
