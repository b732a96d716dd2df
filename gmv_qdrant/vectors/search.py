"""How hard to search: defaults by kind of code, parameters that reach a target, and what the search made then finds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gmv_qdrant.vectors.checks import distances_between
from gmv_qdrant.vectors.embedded.segments import HNSW_POINTS
from gmv_qdrant.vectors.protocol import Hits, Limits, Quantization, SearchParams, StoreStatus, VectorStore
from gmv_qdrant.vectors.server.answers import LimitExceeded

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
SAMPLE = 100
"""Queries that recall is measured on: 100 at K = 200 compare 20,000 neighbours."""
MOST_SCROLLED = 2**28
"""Bytes of vectors that are read to measure recall where a server allows no exact search."""
TRIES = 3
"""Searches of one group of queries by codes or a graph that change meanwhile, before it is searched exactly."""

Place = tuple[int, float]
"""How many points an exact search finds, and the distance of the last one."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """How a collection is searched for ``candidates`` points, and what that finds of the exact nearest.

    recall: in [0,1], on ``queries`` queries; None where it couldn't be measured. searched: `StoreStatus.searched` of
    what it was measured on.
    """

    params: SearchParams
    recall: float | None
    queries: int
    target: float
    candidates: int
    searched: str

    def as_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def parse(cls, kept: Mapping[str, Any]) -> Tuning:
        return cls(**{**kept, "params": SearchParams(**kept["params"])})


class TunedSearch:
    """Searches whose recall is known: measured on queries of their own, and again whenever what is searched changes.

    kept: what an earlier run measured, `Tuning.as_dict`. keep: is given what this one measures.
    """

    def __init__(
        self,
        store: VectorStore,
        candidates: int,
        target: float,
        kept: Mapping[str, Any] | None = None,
        keep: Callable[[Tuning], None] = lambda tuning: None,
    ) -> None:
        self._store, self._candidates, self._target, self._keep = store, candidates, target, keep
        self._tuning = Tuning.parse(kept) if kept else None
        self.recall: float | None = 1.0
        """The lowest of the searches so far; None when one couldn't be measured."""

    def __call__(self, queries: np.ndarray, limit: int) -> list[Hits]:
        """The ``limit`` nearest points of each query, float32 ``(q, dim)``."""
        for _ in range(TRIES):
            status, limits = self._store.status(), self._store.limits
            try:
                tuning = self._tuned(status, queries)
                hits = self._store.search(queries, limit, tuning.params)
            except LimitExceeded:
                if self._store.limits == limits:
                    raise
                continue  # limits were set meanwhile: tuned within them
            if tuning.params.exact or self._store.status().searched == status.searched:
                break
        else:
            if self._store.limits.exact:
                tuning = self._exact(tuning)
                hits = self._store.search(queries, limit, tuning.params)
            else:
                tuning = replace(tuning, recall=None)
        if tuning is not self._tuning:
            self._tuning = tuning
            self._keep(tuning)
        self.recall = None if None in (self.recall, tuning.recall) else min(self.recall, tuning.recall)  # type: ignore[type-var]
        return hits

    def _tuned(self, status: StoreStatus, queries: np.ndarray) -> Tuning:
        kept = self._tuning
        wanted = (status.searched, self._candidates, self._target)
        if kept and (kept.searched, kept.candidates, kept.target) == wanted:
            return kept
        if not status.approximate:
            default = default_params(self._store.spec.quantization, self._candidates)
            params = _within(self._store.limits, default, self._candidates)
            return Tuning(params, 1.0, 0, self._target, self._candidates, status.searched)
        sample = queries[np.random.default_rng(0).permutation(len(queries))[:SAMPLE]]
        params, recall = tune_search(self._store, sample, self._candidates, self._target)
        return Tuning(params, recall, len(sample), self._target, self._candidates, status.searched)

    def _exact(self, tuning: Tuning) -> Tuning:
        return replace(tuning, params=replace(tuning.params, exact=True), recall=1.0, queries=0)


def default_oversampling(quantization: Quantization, limit: int) -> float:
    """How many times ``limit`` candidates to fetch by codes before the exact vectors order them.

    What counts is the number of candidates: about 1,600 give product quantization x16 a recall@200 of 0.999
    at 100,000 and 1,000,000 points (four times the limit at least); finer codes need fewer.
    """
    factor, candidates = _LEAST[quantization]
    return max(factor, candidates / max(1, limit))


def default_params(quantization: Quantization, limit: int) -> SearchParams:
    """The parameters that a search for ``limit`` points starts from, before any are tuned."""
    return SearchParams(oversampling=default_oversampling(quantization, limit))


def measure_recall(store: VectorStore, queries: np.ndarray, limit: int, params: SearchParams) -> float:
    """Mean recall@``limit`` in [0,1] of ``params`` against exact search, over ``queries`` float32 ``(q, dim)``.

    A found point that is as near as the last exact one counts: which of equals is in is not the codes' fault.
    1.0 for an empty collection or without queries.
    """
    return _recall(store, queries, limit, params, _exact_places(store, queries, limit))


def tune_search(
    store: VectorStore, queries: np.ndarray, limit: int, target: float = 0.99
) -> tuple[SearchParams, float | None]:
    """Parameters whose measured recall@``limit`` meets ``target``, and that recall; None where it can't be measured.

    Begins with `default_params` and doubles the oversampling (the width of a graph search grows with it), up to
    256 times the limit or a tenth of the collection; then searches exactly. Where there is a graph, a wide search costs
    several times a narrow one, so it begins with the narrowest, and one that is narrower than the default has to
    lose no more than half of what the target allows. The store's limits are kept within, even where the target is
    missed then. A few hundred queries that look like the real ones (generated images) are enough.
    """
    default, limits = default_params(store.spec.quantization, limit), store.limits
    points = store.count()
    places = _places(store, queries, limit, points)
    if places is None:
        return _as_hard_as_allowed(limits, limit), None
    oversampling = 1.0 if points >= HNSW_POINTS else default.oversampling
    while True:
        params = _within(limits, replace(default, oversampling=oversampling), limit)
        recall = _recall(store, queries, limit, params, places)
        if recall >= (target if oversampling >= default.oversampling else (1 + target) / 2):
            return params, recall
        if oversampling >= MOST_OVERSAMPLING or oversampling * limit * EXACT_SHARE >= points:
            break
        oversampling *= 2
    if limits.exact:
        return replace(params, exact=True), 1.0
    widest = _as_hard_as_allowed(limits, limit)
    return widest, _recall(store, queries, limit, widest, places)


def _within(limits: Limits, params: SearchParams, limit: int) -> SearchParams:
    ef = max(LEAST_EF, round(limit * params.oversampling))
    return replace(
        params, oversampling=min(params.oversampling, limits.oversampling), hnsw_ef=min(ef, limits.ef)
    )


def _as_hard_as_allowed(limits: Limits, limit: int) -> SearchParams:
    return _within(limits, SearchParams(oversampling=MOST_OVERSAMPLING), limit)


def _places(store: VectorStore, queries: np.ndarray, limit: int, points: int) -> list[Place] | None:
    if store.limits.exact:
        return _exact_places(store, queries, limit)
    return _scrolled_places(store, queries, limit) if points * store.spec.dim * 4 <= MOST_SCROLLED else None


def _exact_places(store: VectorStore, queries: np.ndarray, limit: int) -> list[Place]:
    exact = store.search(queries, limit, SearchParams(exact=True))
    return [_place(hits.distances) for hits in exact]


def _scrolled_places(store: VectorStore, queries: np.ndarray, limit: int) -> list[Place]:
    """The same from all vectors, read page by page."""
    best: list[np.ndarray] = [np.empty(0)] * len(queries)
    for page in store.scroll(with_vectors=True):
        rows = [point.vector for point in page if point.vector is not None]
        if rows:
            found = distances_between(store.spec.distance, queries, np.stack(rows))
            best = [np.sort(np.append(b, f))[:limit] for b, f in zip(best, found, strict=True)]
    return [_place(distances) for distances in best]


def _place(distances: np.ndarray) -> Place:
    return len(distances), float(distances[-1]) if len(distances) else 0.0


def _recall(
    store: VectorStore, queries: np.ndarray, limit: int, params: SearchParams, places: Sequence[Place]
) -> float:
    found = store.search(queries, limit, params)
    shares = [
        np.count_nonzero(got.distances <= _as_near_as(last)) / count
        for (count, last), got in zip(places, found, strict=True)
        if count
    ]
    return float(np.mean(shares)) if shares else 1.0


def _as_near_as(last: float) -> float:
    """A bound that rounding doesn't miss."""
    return float(last + 1e-6 * max(1.0, abs(last)))
