"""``rerank = engine``: re-rank vectors live in Qdrant, as a second vector of each point, and it re-ranks, too.

For thin clients that share a server. The evidence is that of local re-ranking, to 1e-4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from gmv_qdrant.encoders.base import Metric
from gmv_qdrant.errors import SettingsError
from gmv_qdrant.pipeline.context import Context
from gmv_qdrant.store.base import PointId, RerankStore, SearchParams, VectorDistance

VECTOR = "rerank"
MOST_NUMBERS = 65_536
"""The widest vector that Qdrant takes."""
MARGIN = 32
"""More candidates than asked for: by codes, a search for a few more can drop one that a search for fewer finds."""
_DISTANCE: dict[Metric, VectorDistance] = {"cosine": "cosine", "euclid": "euclid", "sqeuclid": "euclid"}


class EngineRerank:
    """The second vector of this workspace's points; made when it isn't there.

    Raises `SettingsError` where re-ranking must be local.
    """

    def __init__(self, context: Context) -> None:
        shape = context.rerank_shape
        if not context.owns_collection:
            raise SettingsError("rerank = 'engine' would change an adopted collection: use rerank = 'local'")
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
        self._store.add_vector(VECTOR, shape.dim, _DISTANCE[shape.metric])

    def keep(self, points: Sequence[PointId], vectors: np.ndarray) -> None:
        """Re-rank vectors, float32 ``(n, dim)``, of points that are in the collection."""
        self._store.upsert_named(VECTOR, points, vectors)

    def distances(
        self, recall: np.ndarray, rerank: np.ndarray, limit: int, params: SearchParams
    ) -> list[dict[str, float]]:
        """Re-rank distance by point id of about the ``limit`` nearest by recall, for float32 ``(m, dim)`` queries."""
        found = self._store.search_two_stage(recall, VECTOR, rerank, limit + MARGIN, params)
        power = 2 if self._metric == "sqeuclid" else 1
        return [
            {
                str(point): max(0.0, float(distance)) ** power
                for point, distance in zip(hits.ids, hits.distances, strict=True)
            }
            for hits in found
        ]
