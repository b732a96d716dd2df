"""Moving a collection from one store to another: embedded to server, server to embedded, one name to another.

Nothing is remembered between runs but the collections themselves: what the target has already is skipped, so an
interrupted move goes on where it stopped. The source is only read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gmv_qdrant.errors import CollectionMismatch, StoreError
from gmv_qdrant.vectors.protocol import Point, PointId, SearchParams, VectorStore

SAMPLE = 200
"""Points whose vectors, payloads and neighbours are compared after a move."""
NEIGHBOURS = 20
TOLERANCE = 1e-5
"""Between float32 vectors that were normalised twice and written as decimal numbers once."""


@dataclass(frozen=True, slots=True)
class Migration:
    """What a move did, and that it was checked."""

    points: int
    """In the source, and so in the target."""
    copied: int
    """By this run; the others were there already."""
    compared: int
    """Points whose vector, payload and neighbours agree on both sides."""


def migrate(
    source: VectorStore,
    target: VectorStore,
    progress: Callable[[int], None] = lambda _: None,
) -> Migration:
    """Copy every point of ``source`` that ``target`` lacks, then `verify`. Resumable; the source stays.

    ``progress`` is told the number of points seen, page by page. Raises `CollectionMismatch` when the targets'
    vectors are of another kind, `StoreError` when the target has points that the source hasn't, or when the two
    don't agree in the end.
    """
    _check_kinds(source, target)
    copied = 0
    for page in source.scroll(with_vectors=True):
        there = {p.id for p in target.retrieve([p.id for p in page])}
        missing = [p for p in page if p.id not in there]
        if missing:
            target.upsert([p.id for p in missing], _vectors(missing), [p.payload for p in missing])
            copied += len(missing)
        progress(len(page))
    target.flush()
    target.optimize()
    points, compared = verify(source, target)
    return Migration(points, copied, compared)


def verify(source: VectorStore, target: VectorStore) -> tuple[int, int]:
    """(points, points compared in full): the same ids on both sides, and a sample with equal vectors, payloads
    and nearest neighbours. Holds one page and the sample in memory. Raises `StoreError` that says what differs.
    """
    points = source.count()
    chosen: list[PointId] = []
    lost, seen = 0, 0
    for page in source.scroll():
        ids = [p.id for p in page]
        lost += len(ids) - len(target.retrieve(ids))
        chosen += ids[-seen % max(1, points // SAMPLE) :: max(1, points // SAMPLE)]
        seen += len(ids)
    extra = target.count() - (seen - lost)
    if lost or extra:
        raise StoreError(
            f"the collections differ: {lost} points of {source.spec.name!r} are not in {target.spec.name!r}, "
            f"which has {extra} others: was either changed meanwhile? Run it again, or name an empty collection."
        )
    left = {p.id: p for p in source.retrieve(chosen, with_vectors=True)}
    right = {p.id: p for p in target.retrieve(chosen, with_vectors=True)}
    for i in chosen:
        _check_point(left[i], right[i])
    if chosen:
        queries = _vectors([left[i] for i in chosen[:: max(1, len(chosen) // 20)]])
        _check_neighbours(source, target, queries)
    return seen, len(chosen)


def _check_kinds(source: VectorStore, target: VectorStore) -> None:
    a, b = source.spec, target.spec
    if (a.dim, a.distance) != (b.dim, b.distance):
        raise CollectionMismatch(
            f"{a.name!r} has vectors of {a.dim} numbers ({a.distance}), {b.name!r} of {b.dim} ({b.distance}): "
            "a collection moves only to one of the same kind."
        )


def _check_point(a: Point, b: Point) -> None:
    stamped = {key: b.payload.get(key) for key in a.payload}  # a tenant's store adds fields of its own
    if a.payload != stamped:
        raise StoreError(
            f"the payload of point {a.id} differs between the collections: was it changed meanwhile?"
        )
    rows = a.vector, b.vector
    if (
        rows[0] is None
        or rows[1] is None
        or not np.allclose(rows[0], rows[1], rtol=TOLERANCE, atol=TOLERANCE)
    ):
        raise StoreError(
            f"the vector of point {a.id} differs between the collections: was it changed meanwhile?"
        )


def _check_neighbours(source: VectorStore, target: VectorStore, queries: np.ndarray) -> None:
    """Exact searches must agree, but for neighbours that are equally far."""
    exact = SearchParams(exact=True)
    left = source.search(queries, NEIGHBOURS, exact)
    right = target.search(queries, NEIGHBOURS, exact)
    for a, b in zip(left, right, strict=True):
        same = len(a.ids) == len(b.ids) and np.allclose(a.distances, b.distances, rtol=1e-4, atol=1e-5)
        last = a.distances[-1] if len(a.ids) else 0.0
        inner = {i for i, d in zip(a.ids, a.distances, strict=True) if d < last - 1e-4}
        if not same or not inner <= set(b.ids):
            raise StoreError(
                f"a sample search finds other points in {target.spec.name!r} than in {source.spec.name!r}: "
                "remove the target and migrate again."
            )


def _vectors(points: Sequence[Point]) -> np.ndarray:
    bare = [p.id for p in points if p.vector is None]
    if bare:
        raise StoreError(
            f"{len(bare)} points have no vector to move (such as {bare[0]}): delete or embed them first."
        )
    return np.stack([p.vector for p in points if p.vector is not None])
