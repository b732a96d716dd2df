"""What both engines share: refusing bad input before anything is stored, and one order of the hits."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from gmv_qdrant.errors import StoreError
from gmv_qdrant.vectors.protocol import CollectionSpec, Hits, Payload, Point, PointId, VectorDistance

MAX_INT_ID = 2**64 - 1
TIES, MOST_TIES = 16, 4_096
"""Fetched beyond the limit, at first and at most, so that a tie at the last place is cut by ``str(id)``."""


def check_ids(ids: Sequence[PointId]) -> list[PointId]:
    """Ids that every engine takes: integers in [0, 2**64) and UUIDs; raises `StoreError` for others."""
    for i in ids:
        if type(i) is uuid.UUID or (type(i) is int and 0 <= i <= MAX_INT_ID):
            continue
        raise StoreError(f"{i!r} is not a point id: use an integer from 0 to 2**64 - 1 or a uuid.UUID.")
    return list(ids)


def check_vectors(vectors: np.ndarray, spec: CollectionSpec) -> np.ndarray:
    """float32 contiguous ``(n, dim)``; raises `StoreError` for another shape, NaN, inf or zero vectors.

    Engines accept NaN and then fail when they quantize; a zero vector has no direction, so it is refused
    under cosine.
    """
    rows = np.ascontiguousarray(vectors, dtype=np.float32)
    if rows.ndim != 2 or rows.shape[1] != spec.dim:
        raise StoreError(
            f"the vectors have the shape {tuple(np.shape(vectors))}, but the collection {spec.name!r} "
            f"takes rows of {spec.dim} numbers: was another encoder used?"
        )
    squares = np.einsum("ij,ij->i", rows, rows)
    good = np.isfinite(squares)
    if spec.distance == "cosine":
        good &= squares > 0
    if not good.all():
        row = int(np.argmin(good))
        kind = "zero" if squares[row] == 0 else "not finite (NaN, infinite or beyond float32)"
        raise StoreError(
            f"vector {row} of {len(rows)} is {kind}; nothing was stored: check the encoder's output."
        )
    return rows


def check_batch(
    ids: Sequence[PointId], vectors: np.ndarray, payloads: Sequence[Payload], spec: CollectionSpec
) -> tuple[list[PointId], np.ndarray]:
    """Checked ids and vectors of one upsert; raises `StoreError` when the three lengths differ, too."""
    if not len(ids) == len(vectors) == len(payloads):
        raise StoreError(
            f"{len(ids)} ids, {len(vectors)} vectors and {len(payloads)} payloads do not belong together: "
            "give one of each per point."
        )
    return check_ids(ids), check_vectors(vectors, spec)


def check_limit(limit: int) -> None:
    if limit < 1:
        raise StoreError(f"a search for {limit} points finds nothing: ask for at least 1.")


def asked_payload(fields: Sequence[str] | None) -> bool | list[str]:
    """What both engines take: all, none, or these fields."""
    return True if fields is None else list(fields) if fields else False


def asked_vectors(spec: CollectionSpec, with_vectors: bool) -> bool | list[str]:
    """Only the vector of ``spec``, whatever others a point has."""
    return [spec.vector_name] if with_vectors and spec.vector_name else with_vectors


def point_of(point: PointId, payload: Mapping[str, Any] | None, vector: Any, spec: CollectionSpec) -> Point:
    """A point from an engine's record."""
    if isinstance(vector, dict):
        vector = vector.get(spec.vector_name)
    return Point(point, dict(payload or {}), None if vector is None else np.asarray(vector, dtype=np.float32))


def to_distances(scores: Sequence[float], distance: VectorDistance) -> np.ndarray:
    """An engine's scores -> float32 distances, smaller is nearer."""
    values = np.asarray(scores, dtype=np.float32)
    if distance == "cosine":
        return np.asarray(np.maximum(np.float32(1) - values, np.float32(0)))
    return np.negative(values) if distance == "dot" else values


def distances_between(kind: VectorDistance, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """float64 ``(q, n)`` as the store gives them: 1 - cos, minus the product, or the 2-norm."""
    q, r = queries.astype(np.float64), rows.astype(np.float64)
    if kind == "cosine":
        q /= np.linalg.norm(q, axis=1, keepdims=True)
        r /= np.linalg.norm(r, axis=1, keepdims=True)
        return np.asarray(1.0 - q @ r.T)
    if kind == "dot":
        return np.asarray(-(q @ r.T))
    squares = (q**2).sum(1)[:, None] + (r**2).sum(1)[None, :] - 2 * q @ r.T
    return np.asarray(np.sqrt(np.maximum(squares, 0)))


def nearest(ids: Sequence[PointId], distances: np.ndarray, limit: int) -> Hits:
    """The first ``limit`` by (distance, ``str(id)``): engines return equal scores in no fixed order."""
    order = np.argsort(distances, kind="stable")
    ranked = distances[order]
    found = [ids[i] for i in order]
    if len(ranked) > 1 and bool((ranked[1:] == ranked[:-1]).any()):
        starts = [0, *(np.flatnonzero(ranked[1:] != ranked[:-1]) + 1).tolist(), len(ranked)]
        for a, b in pairwise(starts):
            if b - a > 1:
                found[a:b] = sorted(found[a:b], key=str)
    return Hits(found[:limit], ranked[:limit])


def settled(
    ask: Callable[[Sequence[int], int], Sequence[Sequence[Any]]],
    count: int,
    limit: int,
    distance: VectorDistance,
    as_id: Callable[[Any], PointId] = lambda point: point,
    most: int = 2**31,
) -> list[Hits]:
    """Hits of ``count`` queries; ``ask(queries, n)`` gives an engine's n best scored points of those queries.

    Where the last place is shared with points that weren't fetched, more are, up to MOST_TIES beyond the limit (and
    ``most`` in all): so that ``str(id)``, and not the engine's mood, decides who is in.
    """
    found: dict[int, Hits] = {}
    most = min(most, limit + MOST_TIES)
    fetch, open_ = min(limit + TIES, most), list(range(count))
    while open_:
        again = []
        for query, points in zip(open_, ask(open_, fetch), strict=True):
            distances = to_distances([p.score for p in points], distance)
            if len(points) == fetch < most and _cuts_a_tie(distances, limit):
                again.append(query)
            else:
                found[query] = nearest([as_id(p.id) for p in points], distances, limit)
        fetch, open_ = min(2 * fetch, most), again
    return [found[query] for query in range(count)]


def _cuts_a_tie(distances: np.ndarray, limit: int) -> bool:
    return bool(np.partition(distances, limit - 1)[limit - 1] == distances.max())
