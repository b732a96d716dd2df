"""``rerank = engine``: re-rank vectors live in Qdrant, as a second vector of each point, and it re-ranks, too.

For thin clients that share a server. The evidence is that of local re-ranking, to 1e-4.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import cast

import numpy as np

from gmv_qdrant.encoders.base import Metric
from gmv_qdrant.errors import SettingsError
from gmv_qdrant.pipeline.context import Context
from gmv_qdrant.store.base import PointId, RerankStore, SearchParams, VectorDistance

MOST_NUMBERS = 65_536
"""The widest vector that Qdrant takes."""
MARGIN = 32
"""More candidates than asked for: by codes, a search for a few more can drop one that a search for fewer finds."""


def vector_name(distance: str) -> str:
    """What the second vector is called; the name stands in URLs."""
    return "gmv-" + re.sub(r"[^\w.-]", "-", distance)


def engine_distance(metric: Metric) -> VectorDistance:
    return "cosine" if metric == "cosine" else "euclid"


class EngineRerank:
    """The second vector of this workspace's points; made when it isn't there.

    Raises `SettingsError` where re-ranking must be local.
    """

    def __init__(self, context: Context) -> None:
        shape = context.rerank_shape
        if len(context.views) > 1:
            raise SettingsError(
                "rerank = 'engine' sees one view of an image: use rerank = 'local', or views = 'none'"
            )
        if shape.dim > MOST_NUMBERS:
            raise SettingsError(
                f"the distance {context.settings.distance} has vectors of {shape.dim:,} numbers, Qdrant takes "
                f"{MOST_NUMBERS:,}: use rerank = 'local', or a smaller working resolution"
            )
        self._metric = shape.metric
        self._store = cast(RerankStore, context.store)
        self._name = vector_name(context.settings.distance)
        if (
            context.owns_collection
        ):  # an adopted one is never changed: 'adopt --write-rerank-vectors' asked first
            self._store.add_vector(self._name, shape.dim, engine_distance(shape.metric))

    def keep(self, points: Sequence[PointId], vectors: np.ndarray) -> None:
        """Re-rank vectors, float32 ``(n, dim)``, of points that are in the collection."""
        self._store.upsert_named(self._name, points, vectors)

    def distances(
        self, recall: np.ndarray, rerank: np.ndarray, limit: int, params: SearchParams
    ) -> list[dict[str, float]]:
        """Re-rank distance by point id of about the ``limit`` nearest by recall, for float32 ``(m, dim)`` queries."""
        found = self._store.search_two_stage(recall, self._name, rerank, limit + MARGIN, params)
        power = 2 if self._metric == "sqeuclid" else 1
        return [
            {
                str(point): max(0.0, float(distance)) ** power
                for point, distance in zip(hits.ids, hits.distances, strict=True)
            }
            for hits in found
        ]
