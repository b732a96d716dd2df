"""Matching (section 3.1): quantized recall of K candidates, then exact distances in the re-rank space.

The evidence of a generated image is all of its K candidates, in order of (distance, point id): content-derived
ids break ties, so the order doesn't depend on when an image was ingested. The next nearest by recall are kept in
spare, so that the evidence stays exact without a search when training images come and go (`ledger.candidates`).
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from gmv_qdrant.errors import StoreError
from gmv_qdrant.ledger.runs import Run
from gmv_qdrant.pipeline.collection import Sample
from gmv_qdrant.pipeline.context import Context
from gmv_qdrant.pipeline.ingest import stores_rerank
from gmv_qdrant.pipeline.reranking import RerankVectors
from gmv_qdrant.pipeline.searching import Search
from gmv_qdrant.vectors.protocol import Hits

UNKNOWN_LIMIT = 4
"""Times K that is searched at most to make up for points of the collection that are no training images."""


SPARE = 0.1
"""Share of K that is kept in spare: withdrawing one in a hundred training images takes 2 of 200 candidates."""


@dataclass(slots=True)
class Candidates:
    """Training images beside a generated one: keys int32, distances float64, views int8, recall float32, ``(n,)``."""

    keys: np.ndarray
    distances: np.ndarray
    views: np.ndarray
    recall: np.ndarray

    def __getitem__(self, which: np.ndarray) -> Candidates:
        return Candidates(self.keys[which], self.distances[which], self.views[which], self.recall[which])


@dataclass(slots=True)
class Matches(Candidates):
    """The evidence of one generated image: its K candidates, nearest first.

    radius: recall distance of the K-th candidate, infinite when the collection has fewer than K.
    spare: the next nearest by recall, where evidence is kept exact without searching; nearest by recall first.
    """

    radius: float
    spare: Candidates


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
        self.spare = spare_count(context)
        self.group = 512 if stores_rerank(context) else 2
        """Images to match at once; few when their candidates' vectors are too large to be kept on disk."""
        self.unknown_points: set[str] = set()
        """Points that the ledger doesn't know, such as those that came into an adopted collection meanwhile."""

    @cached_property
    def search(self) -> Search:
        if not self.context.remake_store:  # what is being repaired is as whole as it can be made
            Sample(self.context.root, self.context.ledger, self.context.store).verify()
        return Search(self.context.store, self.context.ledger, self.context.settings, self.run)

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
            hits, keys = self._recall(queries, wanted + self.spare)
        by_image = [hits[i * views : (i + 1) * views] for i in range(m)]
        with self.run.timed("re-rank"):
            drafts = [_draft(of_views, keys, one) for of_views, one in zip(by_image, known, strict=True)]
            there = self.vectors.require({point for draft in drafts for point in draft.missing()})
            return [
                self._rank(draft, there, rerank[image], wanted, _radius(by_image[image], wanted))
                for image, draft in enumerate(drafts)
            ]

    def _recall(self, queries: np.ndarray, wanted: int) -> tuple[list[Hits], dict[str, int]]:
        """The ``wanted`` nearest points of each query, and the training keys of those that are training images.

        Points that the ledger doesn't know don't take anybody's place: as many more are fetched.
        """
        limit = wanted
        while True:
            hits = self.search(queries, limit)
            found = {str(point) for hit in hits for point in hit.ids}
            keys = self.vectors.know(found)
            unknown_points = found - keys.keys()
            ours = [_without(hit, unknown_points, wanted) for hit in hits]
            if unknown_points:
                self.unknown_points |= unknown_points
                self.run.counts["unknown_points"] = len(self.unknown_points)
            lacking = [
                wanted - len(mine.ids) for mine, hit in zip(ours, hits, strict=True) if len(hit.ids) == limit
            ]
            if max(lacking, default=0) == 0 or limit > UNKNOWN_LIMIT * wanted:
                return ours, keys
            limit += max(lacking)

    def _rank(
        self, draft: _Draft, there: Container[str], queries: np.ndarray, wanted: int, radius: float
    ) -> Matches:
        """Order candidates by their smallest distance over the views; those without a vector are left out."""
        fresh = np.array([i for i in np.flatnonzero(draft.open) if draft.points[i] in there], dtype=np.intp)
        if len(fresh):
            by_view = self.vectors.distances([draft.points[i] for i in fresh], queries)
            draft.rows.distances[fresh] = by_view.min(axis=0)
            draft.rows.views[fresh] = by_view.argmin(axis=0)
            draft.open[fresh] = False
        spare = draft.places[wanted:]
        candidates = np.setdiff1d(np.arange(len(draft.keys)), spare)
        settled = candidates[~draft.open[candidates]]
        order = settled[np.argsort(draft.rows.distances[settled], kind="stable")[:wanted]]
        mine = draft.rows[order]
        # with a gap, in the list or in the spare, the next nearest aren't known any more
        whole = 0 if draft.open[candidates].any() else int(np.argmax([*draft.open[spare], True]))
        return Matches(mine.keys, mine.distances, mine.views, mine.recall, radius, draft.rows[spare[:whole]])


def _without(hits: Hits, unknown_points: Set[str], wanted: int) -> Hits:
    """The nearest ``wanted`` of the hits that are no unknown_points."""
    if not unknown_points and len(hits.ids) <= wanted:
        return hits
    stay = [i for i, point in enumerate(hits.ids) if str(point) not in unknown_points][:wanted]
    return Hits([hits.ids[i] for i in stay], hits.distances[stay])


@dataclass(slots=True)
class _Draft:
    """Candidates of one image in order of their ids, and those of their distances that are known."""

    points: list[str]
    rows: Candidates
    open: np.ndarray
    places: np.ndarray
    """The candidates in order of recall, where a list that is kept exact has such an order: one view."""

    @property
    def keys(self) -> np.ndarray:
        return self.rows.keys

    def missing(self) -> Iterator[str]:
        return (self.points[i] for i in np.flatnonzero(self.open))


def _draft(hits: Sequence[Hits], keys: Mapping[str, int], known: Known) -> _Draft:
    recall: dict[str, float] = {}
    for hit in hits:
        for point, distance in zip(map(str, hit.ids), hit.distances.tolist(), strict=True):
            if point in keys:
                recall[point] = min(distance, recall.get(point, distance))
    points = sorted(recall)
    mine = np.array([keys[point] for point in points], dtype=np.int32)
    places = known.places(mine)
    found = places >= 0
    values, views = np.zeros(len(mine)), np.zeros(len(mine), dtype=np.int8)
    values[found], views[found] = known.distances[places[found]], known.views[places[found]]
    near = np.array([recall[point] for point in points], dtype=np.float32)
    order = np.argsort(near, kind="stable")
    return _Draft(
        points, Candidates(mine, values, views, near), ~found, order if len(hits) == 1 else order[:0]
    )


def _radius(hits: Sequence[Hits], wanted: int) -> float:
    """A new training image can only become a candidate if it is nearer than this in some view."""
    return max(float(hit.distances[wanted - 1]) if len(hit.ids) >= wanted else float("inf") for hit in hits)


def spare_count(context: Context) -> int:
    """How many candidates beyond K are kept; none with several views, or without re-rank vectors."""
    plain = len(context.views) == 1 and stores_rerank(context)
    return math.ceil(SPARE * context.settings.candidates) if plain else 0


def evidence_columns(keys: Sequence[int], evidence: Sequence[Matches]) -> dict[str, pa.Array]:
    """Rows of ``matches`` for these generated images."""
    ranks = [np.arange(1, len(matches.keys) + 1, dtype=np.int16) for matches in evidence]
    return {**_columns(keys, evidence), "rank": pa.array(np.concatenate(ranks))}


def spare_columns(keys: Sequence[int], evidence: Sequence[Matches]) -> dict[str, pa.Array]:
    """Rows of ``spare_candidates`` for these generated images."""
    return _columns(keys, [matches.spare for matches in evidence])


def _columns(keys: Sequence[int], lists: Sequence[Candidates]) -> dict[str, pa.Array]:
    sizes = [len(one.keys) for one in lists]
    return {
        "generated_key": pa.array(np.repeat(np.asarray(keys, dtype=np.int32), sizes)),
        "training_key": pa.array(np.concatenate([one.keys for one in lists])),
        "distance": pa.array(np.concatenate([one.distances for one in lists])),
        "view": pa.array(np.concatenate([one.views for one in lists])),
        "recall_distance": pa.array(np.concatenate([one.recall for one in lists])),
    }


def require_training_images(context: Context) -> int:
    """How many training images there are; none is an error with a hint."""
    count = int(
        context.ledger.query("SELECT count(*) AS n FROM training WHERE version_withdrawn IS NULL")["n"][
            0
        ].as_py()
    )
    if count == 0:
        raise StoreError(
            f"the workspace {context.root} has no training images to value against: "
            "take them in with 'gmv-qdrant ingest PATH' first"
        )
    return count
