"""Matching (section 3.1): quantized recall of K candidates, then exact distances in the re-rank space.

The evidence of a generated image is all of its K candidates, in order of (distance, point id): content-derived
ids break ties, so the order doesn't depend on when an image was ingested.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from gmv_qdrant.encoders.base import distances
from gmv_qdrant.errors import StoreError
from gmv_qdrant.ledger.runs import Run
from gmv_qdrant.pipeline.context import Context
from gmv_qdrant.pipeline.ingest import stores_rerank
from gmv_qdrant.pipeline.rerank_vectors import RerankVectors
from gmv_qdrant.store.base import Hits
from gmv_qdrant.store.search import default_params


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


class Matcher:
    """Finds the evidence of generated images whose vectors are known."""

    def __init__(self, context: Context, run: Run) -> None:
        self.context = context
        self.run = run
        self.vectors = RerankVectors(context, run)
        settings = context.settings
        self.group = 64 if stores_rerank(context) else 2
        """Images to match at once; few when their candidates' vectors are too large to be kept on disk."""
        self.params = default_params(settings.quantization, settings.candidates)

    def match(self, recall: np.ndarray, rerank: np.ndarray) -> list[Matches]:
        """Evidence of m images: ``recall`` and ``rerank`` are float32 ``(m, views, dim)``."""
        wanted = self.context.settings.candidates
        m, views, dim = recall.shape
        with self.run.timed("recall"):
            hits = self.context.store.search(recall.reshape(m * views, dim), wanted, self.params)
        by_image = [hits[i * views : (i + 1) * views] for i in range(m)]
        with self.run.timed("re-rank"):
            known = self.vectors.look_up({str(point) for hit in hits for point in hit.ids})
            evidence = []
            for image, of_views in enumerate(by_image):
                points = sorted({str(point) for hit in of_views for point in hit.ids} & known.keys())
                evidence.append(self._rank(points, rerank[image], wanted, _radius(of_views, wanted)))
        return evidence

    def _rank(self, points: Sequence[str], queries: np.ndarray, wanted: int, radius: float) -> Matches:
        """Order candidates, given in order of their ids, by their smallest distance over the views."""
        keys, rows = self.vectors.gather(points)
        metric = self.context.distance.metric
        by_view = np.stack([distances(metric, query, rows) for query in queries])
        nearest = by_view.min(axis=0)
        order = np.argsort(nearest, kind="stable")[:wanted]
        return Matches(keys[order], nearest[order], by_view.argmin(axis=0)[order].astype(np.int8), radius)


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
