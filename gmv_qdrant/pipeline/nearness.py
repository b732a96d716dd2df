"""Which training images come as close to generated images as their candidates do: matrix products over blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from gmv_qdrant.pipeline.streams import batched
from gmv_qdrant.vectors.protocol import PointId, VectorDistance, VectorStore, parse_point_id

SLACK = 1e-5
"""Of the size of the vectors, added to every radius: distances by the engine and by us differ by float32 rounding;
too many affected images are still exact."""
BLOCK = 2048
TOGETHER = 32
"""Blocks of training images that all generated images are held against at once: 256 MB at 1,024 numbers."""


@dataclass(slots=True)
class Block:
    """Training images with their recall vectors, float32 ``(n, dim)``, and the versions that they were added in."""

    points: list[str]
    versions: np.ndarray
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


def blocks_of(store: VectorStore, points: Iterable[tuple[str, int]]) -> Iterator[Block]:
    """Blocks of these points, each with the version that it was added in; those that the store lacks are left out."""
    for some in batched(points, BLOCK):
        added: dict[PointId, int] = {parse_point_id(point): version for point, version in some}
        found = [
            (point.id, point.vector)
            for point in store.retrieve(list(added), with_vectors=True)
            if point.vector is not None
        ]
        if found:
            yield Block(
                [str(point) for point, _ in found],
                np.array([added[point] for point, _ in found]),
                np.stack([vector for _, vector in found]),
            )


def nearer(
    read: Callable[[np.ndarray], np.ndarray],
    kind: VectorDistance,
    keys: np.ndarray,
    versions: np.ndarray,
    reach: np.ndarray,
    blocks: Iterable[Block],
    most: int = 0,
) -> tuple[np.ndarray, Near]:
    """Which training images newer than their evidence come as close to generated images as ``reach``, in any view.

    read: keys of generated images -> recall vectors, float32 ``(n, views, dim)``. keys, versions, reach: ``(m,)``, the
    generated images, what they were valued against, recall distances. Returns how many come to each, int64 ``(m,)``,
    and who; no more is counted or named once there are over ``most``.
    """
    counts = np.zeros(len(keys), dtype=np.int64)
    points: list[str] = []
    found = [(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32), np.empty(0, np.float32))]
    for together in batched(blocks, TOGETHER):
        offsets = np.cumsum([len(points), *(len(block.points) for block in together)])
        newest = max(int(block.versions.max()) for block in together)
        for start in range(0, len(keys), BLOCK):
            part = np.arange(start, min(start + BLOCK, len(keys)), dtype=np.int32)
            part = part[(versions[part] < newest) & (counts[part] <= most)]
            if not len(part):
                continue
            views = read(keys[part])
            for block, offset in zip(together, offsets, strict=False):
                newer = block.versions[None, :] > versions[part, None]
                for view in range(views.shape[1]):
                    queries = np.ascontiguousarray(views[:, view])
                    slack = SLACK * _size(kind, queries, block.vectors)
                    distances = recall_distances(kind, queries, block.vectors)
                    near = (distances <= (reach[part] + slack)[:, None]) & newer
                    counts[part] += near.sum(axis=1)
                    near[counts[part] > most] = False
                    which, whom = np.nonzero(near)
                    found.append(
                        (
                            part[which],
                            (whom + offset).astype(np.int32),
                            distances[near].astype(np.float32),
                            slack[which].astype(np.float32),
                        )
                    )
        points += [point for block in together for point in block.points]
    near_all = Near(points, *(np.concatenate(column) for column in zip(*found, strict=True)))
    return counts, near_all[np.argsort(near_all.generated, kind="stable")]


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
