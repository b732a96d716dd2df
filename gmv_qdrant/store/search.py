"""How hard to search: defaults by kind of code, the recall they reach, and parameters that reach a target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .base import Condition, Quantization, SearchParams, VectorStore

_LEAST: dict[Quantization, tuple[float, int]] = {
    "pq": (4.0, 1_600),
    "turbo": (4.0, 1_600),
    "scalar": (2.0, 400),
    "binary": (8.0, 3_200),
    "none": (1.0, 1),
}
"""Oversampling at least, and the number of candidates that the codes should name."""
MOST_OVERSAMPLING = 256.0


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
    exact = store.search(queries, limit, replace(params, exact=True), conditions)
    found = store.search(queries, limit, params, conditions)
    shares = [
        np.count_nonzero(got.distances <= _as_near_as(truth.distances[-1])) / len(truth.ids)
        for truth, got in zip(exact, found, strict=True)
        if truth.ids
    ]
    return float(np.mean(shares)) if shares else 1.0


def _as_near_as(last: float) -> float:
    """A bound that rounding doesn't miss."""
    return float(last + 1e-6 * max(1.0, abs(last)))


def calibrate_search(
    store: VectorStore,
    queries: np.ndarray,
    limit: int,
    target: float = 0.99,
    conditions: Sequence[Condition] = (),
) -> tuple[SearchParams, float]:
    """Parameters whose measured recall@``limit`` meets ``target``, and that recall.

    Begins with `default_params` and doubles the oversampling (the width of a graph search grows with it), up to
    256 times the limit or the whole collection; then searches exactly. A few hundred queries that look like
    the real ones (generated images) are enough: 100 queries at K = 200 compare 20,000 neighbours.
    """
    params = default_params(store.spec.quantization, limit)
    points = store.count(conditions)
    while True:
        params = replace(params, hnsw_ef=max(256, round(limit * params.oversampling)))
        recall = measure_recall(store, queries, limit, params, conditions)
        if recall >= target:
            return params, recall
        if params.oversampling >= MOST_OVERSAMPLING or params.oversampling * limit >= points:
            return replace(params, exact=True), 1.0
        params = replace(params, oversampling=params.oversampling * 2)
