"""Matching (section 3.1) on arrays: recall of K candidates, then exact distances in the re-rank space.

The evidence of a generated image is all of its K candidates, in order of (distance, point id): content-derived
ids break ties, so the order doesn't depend on when an image was ingested. The next nearest by recall are kept in
spare, so that the evidence stays exact without a search when training images come and go (`ledger.candidates`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from gmv_qdrant.errors import StoreError
from gmv_qdrant.ledger.candidates import NOTHING_KNOWN, Candidates, Known, Matches
from gmv_qdrant.method import Metric, pair_distances
from gmv_qdrant.pipeline.embedding import Timed, untimed
from gmv_qdrant.pipeline.training_vectors import TrainingVectors
from gmv_qdrant.vectors.protocol import Hits

UNKNOWN_LIMIT = 16
"""Times as many points as are wanted that are searched to make up for points that are no training images."""
SPARE = 0.1
"""Share of K that is kept in spare: withdrawing one in a hundred training images takes 2 of 200 candidates."""
CPU_BYTES, GPU_BYTES = 2 << 20, 1 << 30
"""Training images' vectors that are read at once; on a CPU they stay in its cache while they are compared."""
GROUP, FEW = 512, 2
"""Images to match at once; few where their candidates' vectors are too large to be kept on disk."""

Searched = Callable[[np.ndarray, int], list[Hits]]
"""Queries float32 ``(q, dim)``, and how many points -> the nearest of each."""


def spare_count(candidates: int, views: int, stored: bool) -> int:
    """How many candidates beyond K are kept; none with several views, or where re-rank vectors aren't kept."""
    return math.ceil(SPARE * candidates) if views == 1 and stored else 0


class Matcher:
    """Finds the evidence of generated images whose vectors are known.

    search: recall. training: re-rank vectors, which ``metric`` compares on ``device``. candidates: K. spare: see
    `spare_count`; most: points that a search may ask for; both are asked for when they are needed first.
    """

    def __init__(
        self,
        search: Searched,
        training: TrainingVectors,
        metric: Metric,
        *,
        candidates: int,
        spare: Callable[[], int],
        most: Callable[[], int] = lambda: 2**31,
        device: str = "cpu",
        group: int = GROUP,
        timed: Timed = untimed,
    ) -> None:
        self._search = search
        self.training = training
        self._metric: Metric = metric
        self._device = device
        self.candidates = candidates
        self._spare, self._most = spare, most
        self._group = group
        self._timed = timed
        self.unknown_points: set[str] = set()
        """Points that are no training images, such as those that came into an adopted collection meanwhile."""

    @cached_property
    def spare(self) -> int:
        """How many candidates beyond K are kept."""
        return self._spare()

    def match(
        self, recall: np.ndarray, rerank: np.ndarray, known: Sequence[Known] | None = None
    ) -> list[Matches]:
        """Evidence of m images: ``recall`` and ``rerank`` are float32 ``(m, views, dim)``.

        known: distances that each of them has already; only the others are computed.
        """
        known = known or [NOTHING_KNOWN] * len(recall)
        found: list[Matches] = []
        for start in range(0, len(recall), self._group):
            some = slice(start, start + self._group)
            found += self._match(recall[some], rerank[some], known[some])
        return found

    def _match(self, recall: np.ndarray, rerank: np.ndarray, known: Sequence[Known]) -> list[Matches]:
        m, views, dim = recall.shape
        with self._timed("recall"):
            hits, keys = self._recall(recall.reshape(m * views, dim), self.candidates + self.spare)
        by_image = [hits[i * views : (i + 1) * views] for i in range(m)]
        with self._timed("re-rank"):
            drafts = [_draft(of_views, keys, one) for of_views, one in zip(by_image, known, strict=True)]
            there = self.training.require(
                {key for draft in drafts for key in draft.keys[draft.open].tolist()}
            )
            self._compare(drafts, there, rerank)
            return [
                self._rank(draft, _radius(hits, self.candidates))
                for draft, hits in zip(drafts, by_image, strict=True)
            ]

    def _compare(self, drafts: Sequence[_Draft], there: Set[int], rerank: np.ndarray) -> None:
        """Fill in the open distances of those that are ``there``: the smallest over the views, ``(m, views, dim)``."""
        known = np.array(sorted(there), dtype=np.int32)
        fresh = [np.flatnonzero(draft.open & np.isin(draft.keys, known)) for draft in drafts]
        keys = [draft.keys[which] for draft, which in zip(drafts, fresh, strict=True)]
        ends = np.cumsum([len(which) for which in fresh])[:-1]
        by_view = self.distances(
            np.concatenate(keys), np.repeat(np.arange(len(drafts)), [len(which) for which in fresh]), rerank
        )
        nearest, views = (np.split(rows, ends) for rows in (by_view.min(axis=0), by_view.argmin(axis=0)))
        for draft, which, distances, view in zip(drafts, fresh, nearest, views, strict=True):
            draft.rows.distances[which], draft.rows.views[which] = distances, view
            draft.open[which] = False

    def distances(self, keys: np.ndarray, images: np.ndarray, queries: np.ndarray) -> np.ndarray:
        """float64 ``(views, pairs)``: of training image ``keys[i]`` to the views of ``queries[images[i]]``.

        queries: float32 ``(m, views, dim)``. The training images' vectors are there; each is read once.
        """
        found = np.empty((queries.shape[1], len(keys)))
        if not len(keys):
            return found
        by_view = torch.from_numpy(queries).to(self._device).unbind(1)
        distinct, places = np.unique(keys, return_inverse=True)
        order = np.argsort(places, kind="stable")
        block = max(25, (CPU_BYTES if self._device == "cpu" else GPU_BYTES) // (4 * queries.shape[2]))
        starts = np.arange(0, len(distinct), block)
        for start, pairs in zip(
            starts, np.split(order, np.searchsorted(places[order], starts[1:])), strict=True
        ):
            rows = torch.as_tensor(self.training.read(distinct[start : start + block])).to(self._device)
            which, whose = torch.from_numpy(places[pairs] - start), torch.from_numpy(images[pairs])
            for view, vectors in enumerate(by_view):
                found[view, pairs] = pair_distances(self._metric, vectors, rows, whose, which)
        return found

    def _recall(self, queries: np.ndarray, wanted: int) -> tuple[list[Hits], dict[str, int]]:
        """The ``wanted`` nearest training images of each query, and the training keys of all of them.

        Points that are no training images don't take anybody's place: as many more are fetched.
        """
        limit, most = wanted, max(wanted, min(UNKNOWN_LIMIT * wanted, self._most()))
        while True:
            hits = self._search(queries, limit)
            found = {str(point) for hit in hits for point in hit.ids}
            keys = self.training.keys(found)
            unknown = found - keys.keys()
            self.unknown_points |= unknown
            ours = [_without(hit, unknown, wanted) for hit in hits]
            lacking = [
                wanted - len(mine.ids) for mine, hit in zip(ours, hits, strict=True) if len(hit.ids) == limit
            ]
            if max(lacking, default=0) <= 0:
                return ours, keys
            if limit >= most:
                raise StoreError(
                    f"of the {limit} nearest points of the collection {max(lacking) + limit - wanted} are no training "
                    "images that the ledger knows, so candidates can't be found: run 'gmv-qdrant adopt' again"
                )
            limit = min(2 * limit + max(lacking), most)

    def _rank(self, draft: _Draft, radius: float) -> Matches:
        """Order candidates by their distance; those without a vector are left out."""
        spare = draft.places[self.candidates :]
        candidates = np.setdiff1d(np.arange(len(draft.keys)), spare)
        settled = candidates[~draft.open[candidates]]
        order = settled[np.argsort(draft.rows.distances[settled], kind="stable")[: self.candidates]]
        mine = draft.rows[order]
        # with a gap, in the list or in the spare, the next nearest aren't known any more
        whole = 0 if draft.open[candidates].any() else int(np.argmax([*draft.open[spare], True]))
        return Matches(mine.keys, mine.distances, mine.views, mine.recall, radius, draft.rows[spare[:whole]])


def _without(hits: Hits, unknown: Set[str], wanted: int) -> Hits:
    """The nearest ``wanted`` of the hits that aren't unknown."""
    if not unknown and len(hits.ids) <= wanted:
        return hits
    stay = [i for i, point in enumerate(hits.ids) if str(point) not in unknown][:wanted]
    return Hits([hits.ids[i] for i in stay], hits.distances[stay])


@dataclass(slots=True)
class _Draft:
    """Candidates of one image in order of their ids, and those of their distances that are known."""

    rows: Candidates
    open: np.ndarray
    places: np.ndarray
    """The candidates in order of recall, where a list that is kept exact has such an order: one view."""

    @property
    def keys(self) -> np.ndarray:
        return self.rows.keys


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
    return _Draft(Candidates(mine, values, views, near), ~found, order if len(hits) == 1 else order[:0])


def _radius(hits: Sequence[Hits], wanted: int) -> float:
    """A new training image can only become a candidate if it is nearer than this in some view."""
    return max(float(hit.distances[wanted - 1]) if len(hit.ids) >= wanted else float("inf") for hit in hits)
