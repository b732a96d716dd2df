"""The re-rank vectors of training images: gathered where they are kept, computed once where they are not."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from gmv_qdrant.errors import ImageError
from gmv_qdrant.images.decode import decode
from gmv_qdrant.images.records import content_hash
from gmv_qdrant.images.sources import read_uri
from gmv_qdrant.ledger.runs import Run
from gmv_qdrant.method import distances
from gmv_qdrant.models.registry import NONE
from gmv_qdrant.pipeline.context import Context
from gmv_qdrant.pipeline.ingest import stores_rerank
from gmv_qdrant.pipeline.streams import batched, mapped
from gmv_qdrant.vectors.protocol import parse_point_id

MEMORY_BYTES = 1 << 30
"""Room for vectors that are too large to be kept on disk."""
BLOCK_BYTES = 2 << 20
"""Vectors that are compared at once on a CPU."""


@dataclass(slots=True)
class _Known:
    key: int
    shard: int
    row: int


def missing_rerank_vectors(context: Context, images: int) -> int:
    """How many re-rank vectors valuing so many images will compute at most; 0 where they are kept at ingest."""
    if context.owns_collection and stores_rerank(context):
        return 0
    missing = context.ledger.query(
        """SELECT count(*) AS n FROM training ANTI JOIN (FROM features WHERE space = 'training/rerank') f
        ON f.key = training_key WHERE version_withdrawn IS NULL"""
    )["n"][0]
    return min(int(missing.as_py()), images * context.settings.candidates * len(context.views))


class RerankVectors:
    """Re-rank vectors by point id.

    A vector that is missing (an adopted collection) is computed from the image's URI, for candidates only, and kept;
    a vector too large to be kept is computed once for each distinct candidate and remembered in bounded memory.
    """

    def __init__(self, context: Context, run: Run) -> None:
        self.context = context
        self.run = run
        self.space = context.space("training/rerank")
        self._known: dict[str, _Known] = {}
        self._remembered: OrderedDict[int, np.ndarray] = OrderedDict()

    def know(self, points: Iterable[str]) -> dict[str, int]:
        """Training keys of those of ``points`` that are training images; no vector is touched.

        Points that the ledger doesn't know (left by a crash, or just withdrawn) are left out.
        """
        rows = self.context.ledger.query(
            """
            SELECT t.point_id, t.training_key, coalesce(f.shard, -1) AS shard, coalesce(f.row, -1) AS row
            FROM training t JOIN points USING (point_id)
            LEFT JOIN features f ON f.space = 'training/rerank' AND f.key = t.training_key
            WHERE t.version_withdrawn IS NULL
            """,
            points=pa.table({"point_id": pa.array(list(points), pa.string())}),
        )
        self._known = {
            point: _Known(key, shard, row)
            for point, key, shard, row in zip(*(column.to_pylist() for column in rows.columns), strict=True)
        }
        return {point: known.key for point, known in self._known.items()}

    def require(self, points: Iterable[str]) -> set[str]:
        """Make the vectors of these points, which `know` returned, available; returns those that are.

        An image whose vector is missing and can't be computed is quarantined.
        """
        wanted = {point: self._known[point] for point in points}
        missing = [one for one in wanted.values() if one.shard < 0 and one.key not in self._remembered]
        if missing:
            self._compute(missing)
        return {point for point, one in wanted.items() if one.shard >= 0 or one.key in self._remembered}

    def distances(self, points: Sequence[str], queries: np.ndarray) -> np.ndarray:
        """float64 ``(q, n)`` distances of float32 ``(q, dim)`` queries to points that `require` returned."""
        metric, device = self.context.rerank_shape.metric, self.context.device
        parts = []
        # a GPU takes all rows at once; on a CPU a block stays in the cache from reading to the last sum
        block = len(points) if device != "cpu" else max(25, BLOCK_BYTES // (4 * self.space.dim))
        for start in range(0, len(points), block):
            rows = self.gather(points[start : start + block])
            parts.append(np.stack([distances(metric, query, rows, device) for query in queries]))
        return np.concatenate(parts, axis=1)

    def gather(self, points: Sequence[str]) -> np.ndarray:
        """float32 ``(n, dim)`` vectors of points that `require` returned."""
        known = [self._known[point] for point in points]
        locations = np.array([(one.shard, one.row) for one in known], dtype=np.int64)
        kept = locations[:, 0] >= 0
        if kept.all():
            return self.space.gather(locations)
        vectors = np.empty((len(known), self.space.dim), dtype=np.float32)
        vectors[kept] = self.space.gather(locations[kept])
        for index in np.flatnonzero(~kept):
            stored = self._remembered[known[index].key]
            vectors[index] = self.space.storage.unpack(stored)
        return vectors

    def _compute(self, missing: Sequence[_Known]) -> None:
        """Vectors from the source images: kept in the feature file, or remembered when too large for it."""
        with self.run.timed("missing re-rank vectors"):
            by_key = {known.key: known for known in missing}
            shared = self.context.settings.distance == NONE
            found = list((self._from_store if shared else self._from_sources)(list(by_key)))
            self.run.counts["computed"] += len(found)
            if not found:
                return
            keys = [key for key, _ in found]
            vectors = np.concatenate([vector for _, vector in found])
            if stores_rerank(self.context):
                locations = self.space.append(vectors)
                self.context.keep_features("training/rerank", keys, locations)
                for key, (shard, row) in zip(keys, locations.tolist(), strict=True):
                    by_key[key].shard, by_key[key].row = shard, row
            else:
                packed = self.space.storage.pack(vectors)
                self._remembered.update(zip(keys, packed, strict=True))
                in_use = {known.key for known in self._known.values()}
                self._forget(in_use, packed[0].nbytes)

    def _from_sources(self, keys: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Vector of each training image, from the first of its sources that can be read and hasn't changed."""
        rows = self.context.ledger.query(
            """
            SELECT training_key, any_value(content_hash) AS hash, list(uri ORDER BY uri) AS uris
            FROM training JOIN sources USING (training_key) JOIN wanted USING (training_key) GROUP BY training_key
            """,
            wanted=pa.table({"training_key": pa.array(keys, pa.int32())}),
        ).to_pylist()
        encoder = self.context.distance

        def prepare(row: dict[str, Any]) -> tuple[int, torch.Tensor] | tuple[str, str]:
            reason = "no source of this image is known"
            for uri in row["uris"]:
                try:
                    data = read_uri(uri, self.context.allowed)
                    if row["hash"] not in (None, content_hash(data)):
                        raise ImageError("this is no longer the image that was ingested")
                    return row["training_key"], encoder.prepare(decode(data))
                except ImageError as error:
                    reason = str(error)
            return row["uris"][0], f"its re-rank vector can't be computed: {reason}"

        self.context.progress.phase("missing re-rank vectors", len(rows))
        size = self.context.batch_size
        for batch in batched(mapped(self.context.pool, prepare, rows, 2 * size), size):
            good: list[tuple[int, torch.Tensor]] = []
            for key, result in batch:
                if isinstance(key, int) and isinstance(result, torch.Tensor):
                    good.append((key, result))
                else:
                    self.run.quarantine(str(key), str(result))
            if good:
                vectors = self.context.embed_rerank(torch.stack([tensor for _, tensor in good]))
                yield from zip([key for key, _ in good], vectors[:, None], strict=True)
            self.context.progress.advance(len(batch))

    def _from_store(self, keys: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Without re-ranking the vector is the recall embedding, and the store has it."""
        points = {
            parse_point_id(point): key for point, known in self._known.items() if (key := known.key) in keys
        }
        for point in self.context.store.retrieve(list(points), with_vectors=True):
            if point.vector is not None:
                yield points[point.id], (point.vector / np.linalg.norm(point.vector))[None]

    def _forget(self, in_use: set[int], bytes_each: int) -> None:
        for key in list(self._remembered):
            if len(self._remembered) * bytes_each <= MEMORY_BYTES:
                return
            if key not in in_use:
                del self._remembered[key]
