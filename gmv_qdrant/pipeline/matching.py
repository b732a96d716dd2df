"""Matching (section 3.1): quantized recall of K candidates, then exact distances in the re-rank space.

The evidence of a generated image is all of its K candidates, in order of (distance, point id): content-derived
ids break ties, so the order doesn't depend on when an image was ingested.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from gmv_qdrant.errors import StoreError
from gmv_qdrant.ledger.runs import Run
from gmv_qdrant.pipeline.context import Context
from gmv_qdrant.pipeline.ingest import stores_rerank
from gmv_qdrant.pipeline.rerank_vectors import RerankVectors
from gmv_qdrant.pipeline.searching import Calibrated
from gmv_qdrant.store.base import Hits, SearchParams

MOST_STRANGERS = 4
"""Times K that is searched at most to make up for points of the collection that are no training images."""


@dataclass(slots=True)
class Matches:
    """The evidence of one generated image, nearest first.

    keys: int32 ``(K,)`` training keys. distances: float64 ``(K,)``, ascending. views: int8 ``(K,)``.
    radius: recall distance of the K-th candidate, infinite when the collection has fewer than K.
    """

    keys: np.ndarray
    distances: np.ndarray
    views: np.ndarray
    radius: float


@dataclass(frozen=True, slots=True)
class Known:
    """Distances that the ledger has for a generated image, in order of their training keys.

    keys: int32 ``(n,)``, ascending. distances: float64 ``(n,)``. views: int8 ``(n,)``.
    """

    keys: np.ndarray
    distances: np.ndarray
    views: np.ndarray

    def places(self, keys: np.ndarray) -> np.ndarray:
        """Where each of ``keys`` stands here; -1 where it doesn't."""
        if not len(self.keys):
            return np.full(len(keys), -1)
        places = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        return np.where(self.keys[places] == keys, places, -1)


NOTHING_KNOWN = Known(np.empty(0, np.int32), np.empty(0), np.empty(0, np.int8))


class Matcher:
    """Finds the evidence of generated images whose vectors are known."""

    def __init__(self, context: Context, run: Run) -> None:
        self.context = context
        self.run = run
        self.vectors = RerankVectors(context, run)
        self.params = Calibrated(context, run)
        self.group = 512 if stores_rerank(context) or context.reranks_in_engine else 2
        """Images to match at once; few when their candidates' vectors are too large to be kept on disk."""
        self.strangers: set[str] = set()
        """Points that the ledger doesn't know, such as those that came into an adopted collection meanwhile."""

    def match(
        self, recall: np.ndarray, rerank: np.ndarray, known: Sequence[Known] | None = None
    ) -> list[Matches]:
        """Evidence of m images: ``recall`` and ``rerank`` are float32 ``(m, views, dim)``.

        known: distances that the ledger has for each of them; only the others are computed.
        """
        wanted = self.context.settings.candidates
        m, views, dim = recall.shape
        known = known or [NOTHING_KNOWN] * m
        with self.run.timed("recall"):
            queries = recall.reshape(m * views, dim)
            params = self.params(queries)
            hits, keys = self._recall(queries, wanted, params)
        by_image = [hits[i * views : (i + 1) * views] for i in range(m)]
        with self.run.timed("re-rank"):
            if self.vectors.engine:  # it has no views, so there is one query for each image
                found = self.vectors.engine.distances(queries, rerank[:, 0], wanted, params)
                known = [_known(mine, keys) for mine in found]
            points = [sorted({str(point) for hit in of_views for point in hit.ids}) for of_views in by_image]
            drafts = [
                _draft([point for point in mine if point in keys], keys, one)
                for mine, one in zip(points, known, strict=True)
            ]
            there = self.vectors.require({point for draft in drafts for point in draft.missing()})
            return [
                self._rank(draft, there, rerank[image], wanted, _radius(by_image[image], wanted))
                for image, draft in enumerate(drafts)
            ]

    def _recall(
        self, queries: np.ndarray, wanted: int, params: SearchParams
    ) -> tuple[list[Hits], dict[str, int]]:
        """The ``wanted`` nearest points of each query, and the training keys of those that are training images.

        Points that the ledger doesn't know don't take anybody's place: as many more are fetched.
        """
        store = self.context.store
        limit = wanted
        while True:
            hits = store.search(queries, limit, params)
            found = {str(point) for hit in hits for point in hit.ids}
            keys = self.vectors.know(found)
            strangers = found - keys.keys()
            ours = [_without(hit, strangers, wanted) for hit in hits]
            if strangers:
                self.strangers |= strangers
                self.run.counts["unknown_points"] = len(self.strangers)
            lacking = [
                wanted - len(mine.ids) for mine, hit in zip(ours, hits, strict=True) if len(hit.ids) == limit
            ]
            if max(lacking, default=0) == 0 or limit > MOST_STRANGERS * wanted:
                return ours, keys
            limit += max(lacking)

    def _rank(
        self, draft: _Draft, there: Container[str], queries: np.ndarray, wanted: int, radius: float
    ) -> Matches:
        """Order candidates by their smallest distance over the views; those without a vector are left out."""
        fresh = np.array([i for i in np.flatnonzero(draft.open) if draft.points[i] in there], dtype=np.intp)
        if len(fresh):
            by_view = self.vectors.distances([draft.points[i] for i in fresh], queries)
            draft.distances[fresh] = by_view.min(axis=0)
            draft.views[fresh] = by_view.argmin(axis=0)
            draft.open[fresh] = False
        settled = np.flatnonzero(~draft.open)
        order = settled[np.argsort(draft.distances[settled], kind="stable")[:wanted]]
        return Matches(draft.keys[order], draft.distances[order], draft.views[order], radius)


def _without(hits: Hits, strangers: Set[str], wanted: int) -> Hits:
    """The nearest ``wanted`` of the hits that are no strangers."""
    if not strangers and len(hits.ids) <= wanted:
        return hits
    stay = [i for i, point in enumerate(hits.ids) if str(point) not in strangers][:wanted]
    return Hits([hits.ids[i] for i in stay], hits.distances[stay])


@dataclass(slots=True)
class _Draft:
    """Candidates of one image in order of their ids, and those of their distances that are known."""

    points: list[str]
    keys: np.ndarray
    distances: np.ndarray
    views: np.ndarray
    open: np.ndarray

    def missing(self) -> Iterator[str]:
        return (self.points[i] for i in np.flatnonzero(self.open))


def _draft(points: list[str], keys: Mapping[str, int], known: Known) -> _Draft:
    mine = np.array([keys[point] for point in points], dtype=np.int32)
    places = known.places(mine)
    found = places >= 0
    values, views = np.zeros(len(mine)), np.zeros(len(mine), dtype=np.int8)
    values[found], views[found] = known.distances[places[found]], known.views[places[found]]
    return _Draft(points, mine, values, views, ~found)


def _known(found: Mapping[str, float], keys: Mapping[str, int]) -> Known:
    """Distances by point id as those of training keys."""
    pairs = sorted((keys[point], distance) for point, distance in found.items() if point in keys)
    return Known(
        np.array([key for key, _ in pairs], dtype=np.int32),
        np.array([distance for _, distance in pairs], dtype=np.float64),
        np.zeros(len(pairs), dtype=np.int8),
    )


def _radius(hits: Sequence[Hits], wanted: int) -> float:
    """A new training image can only become a candidate if it is nearer than this in some view."""
    return max(float(hit.distances[wanted - 1]) if len(hit.ids) >= wanted else float("inf") for hit in hits)


def evidence_columns(keys: Sequence[int], evidence: Sequence[Matches]) -> dict[str, pa.Array]:
    """Rows of ``matches`` for these generated images."""
    sizes = [len(matches.keys) for matches in evidence]
    return {
        "generated_key": pa.array(np.repeat(np.asarray(keys, dtype=np.int32), sizes)),
        "training_key": pa.array(np.concatenate([matches.keys for matches in evidence])),
        "rank": pa.array(np.concatenate([np.arange(1, size + 1, dtype=np.int16) for size in sizes])),
        "distance": pa.array(np.concatenate([matches.distances for matches in evidence])),
        "view": pa.array(np.concatenate([matches.views for matches in evidence])),
    }


def require_training_images(context: Context) -> int:
    """How many training images there are; none is an error with a hint."""
    count = int(
        context.ledger.query("SELECT count(*) AS n FROM training WHERE epoch_withdrawn IS NULL")["n"][
            0
        ].as_py()
    )
    if count == 0:
        raise StoreError(
            f"the workspace {context.root} has no training images to value against: "
            "take them in with 'gmv-qdrant ingest PATH' first"
        )
    return count
