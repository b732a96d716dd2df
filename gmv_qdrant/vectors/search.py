"""How hard to search: defaults by kind of code, the recall they reach, and parameters that reach a target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gmv_qdrant.vectors.embedded.segments import HNSW_POINTS
from gmv_qdrant.vectors.protocol import Condition, Quantization, SearchParams, VectorStore

_LEAST: dict[Quantization, tuple[float, int]] = {
    "pq": (4.0, 1_600),
    "turbo": (4.0, 1_600),
    "scalar": (2.0, 400),
    "binary": (8.0, 3_200),
    "none": (1.0, 1),
}
"""Oversampling at least, and the number of candidates that the codes should name."""
MOST_OVERSAMPLING = 256.0
EXACT_SHARE = 10
"""To read a tenth of all vectors here and there takes as long as to read all of them in order."""
LEAST_EF = 256
"""A graph search looks at so many points at least."""


def default_oversampling(quantization: Quantization, limit: int) -> float:
    """How many times ``limit`` candidates to fetch by codes before the exact vectors order them.

    What counts is the number of candidates: about 1,600 give product quantization x16 a recall@200 of 0.999
    at 100,000 and 1,000,000 points (four times the limit at least); finer codes need fewer.
    """
    factor, candidates = _LEAST[quantization]
    return max(factor, candidates / max(1, limit))


def default_params(quantization: Quantization, limit: int) -> SearchParams:
    """The parameters that a search for ``limit`` points starts from, before any calibration."""
    return SearchParams(oversampling=default_oversampling(quantization, limit))


def measure_recall(
    store: VectorStore,
    queries: np.ndarray,
    limit: int,
    params: SearchParams,
    conditions: Sequence[Condition] = (),
) -> float:
    """Mean recall@``limit`` in [0,1] of ``params`` against exact search, over ``queries`` float32 ``(q, dim)``.

    A found point that is as near as the last exact one counts: which of equals is in is not the codes' fault.
    1.0 for an empty collection or without queries.
    """
    return _recall(store, queries, limit, params, conditions, _last_places(store, queries, limit, conditions))


def _last_places(
    store: VectorStore, queries: np.ndarray, limit: int, conditions: Sequence[Condition]
) -> list[tuple[int, float]]:
    """For each query how many points an exact search finds, and the distance of the last one."""
    exact = store.search(queries, limit, SearchParams(exact=True), conditions)
    return [(len(hits.ids), float(hits.distances[-1]) if hits.ids else 0.0) for hits in exact]


def _recall(
    store: VectorStore,
    queries: np.ndarray,
    limit: int,
    params: SearchParams,
    conditions: Sequence[Condition],
    last_places: Sequence[tuple[int, float]],
) -> float:
    found = store.search(queries, limit, params, conditions)
    shares = [
        np.count_nonzero(got.distances <= _as_near_as(last)) / count
        for (count, last), got in zip(last_places, found, strict=True)
        if count
    ]
    return float(np.mean(shares)) if shares else 1.0


def _as_near_as(last: float) -> float:
    """A bound that rounding doesn't miss."""
    return float(last + 1e-6 * max(1.0, abs(last)))


def tune_search(
    store: VectorStore,
    queries: np.ndarray,
    limit: int,
    target: float = 0.99,
    conditions: Sequence[Condition] = (),
) -> tuple[SearchParams, float]:
    """Parameters whose measured recall@``limit`` meets ``target``, and that recall.

    Begins with `default_params` and doubles the oversampling (the width of a graph search grows with it), up to
    256 times the limit or a tenth of the collection; then searches exactly. Where there is a graph, a wide search costs
    several times a narrow one, so it begins with the narrowest, and one that is narrower than the default has to
    lose no more than half of what the target allows. A few hundred queries that look like the real ones (generated
    images) are enough: 100 queries at K = 200 compare 20,000 neighbours.
    """
    default = default_params(store.spec.quantization, limit)
    points = store.count(conditions)
    last_places = _last_places(store, queries, limit, conditions)
    oversampling = 1.0 if points >= HNSW_POINTS else default.oversampling
    while True:
        params = replace(
            default, oversampling=oversampling, hnsw_ef=max(LEAST_EF, round(limit * oversampling))
        )
        recall = _recall(store, queries, limit, params, conditions, last_places)
        if recall >= (target if oversampling >= default.oversampling else (1 + target) / 2):
            return params, recall
        if oversampling >= MOST_OVERSAMPLING or oversampling * limit * EXACT_SHARE >= points:
            return replace(params, exact=True), 1.0
        oversampling *= 2
