"""From records to vectors: read, hash, decode and prepare in threads; encode in batches; refuse what can't be used."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps

from gmv_qdrant.errors import ImageError
from gmv_qdrant.images.decode import decode
from gmv_qdrant.images.records import Record, Unusable, content_hash, point_id
from gmv_qdrant.ledger.runs import Run
from gmv_qdrant.models.base import Encoder
from gmv_qdrant.models.wrappers import RecallDistance
from gmv_qdrant.pipeline.context import Context
from gmv_qdrant.pipeline.streams import batched, mapped


@dataclass(slots=True)
class Loaded:
    """The bytes of a record, and what identifies them."""

    record: Record
    data: bytes
    hash: str

    @property
    def point_id(self) -> uuid.UUID:
        return point_id(self.hash)


@dataclass(slots=True)
class Embedded:
    """An image that went through the networks. ``recall`` and ``rerank`` are float32, one row for each view."""

    loaded: Loaded
    width: int
    height: int
    recall: np.ndarray
    rerank: np.ndarray | None
    quality: float | None


def usable(run: Run, chunk: Sequence[Record | Unusable]) -> list[Record]:
    """The records of a chunk; what its source names but cannot give is quarantined."""
    for item in chunk:
        if isinstance(item, Unusable):
            run.quarantine(item.uri, item.reason)
    return [item for item in chunk if isinstance(item, Record)]


def load(context: Context, run: Run, records: Sequence[Record]) -> Iterator[Loaded]:
    """Read and hash; what can't be read is quarantined."""

    def read(record: Record) -> Loaded | tuple[str, str]:
        try:
            data = record.read()
        except ImageError as error:
            return record.uri, str(error)
        return Loaded(record, data, content_hash(data))

    for result in mapped(context.pool, read, records, 64):
        if isinstance(result, Loaded):
            yield result
        else:
            run.quarantine(*result)


View = Callable[[Image.Image], Image.Image]
AS_IT_IS: dict[str, View] = {"": lambda image: image}
VIEW_OF: dict[str, View] = {**AS_IT_IS, "@flip": ImageOps.mirror}


class Embedder:
    """Each image through each network once.

    rerank: also compute the re-rank vector. It shares the recall vector when there is no re-ranking.
    """

    def __init__(
        self, context: Context, *, views: Sequence[str] = ("",), rerank: bool = True, quality: bool = False
    ) -> None:
        self.context = context
        self.views = [VIEW_OF[view] for view in views]
        self.recall: Encoder = context.encoder
        shared = isinstance(context.distance, RecallDistance)
        self.rerank: Encoder | None = context.distance if rerank and not shared else None
        self.shared = rerank and shared
        self.quality = context.quality if quality else None

    def _prepare(self, loaded: Loaded) -> _Prepared | tuple[str, str]:
        try:
            image = decode(loaded.data)
        except ImageError as error:
            return loaded.record.uri, str(error)
        seen = [view(image) for view in self.views]
        return _Prepared(
            loaded,
            image if self.quality else None,
            image.size,
            torch.stack([self.recall.prepare(one) for one in seen]),
            torch.stack([self.rerank.prepare(one) for one in seen]) if self.rerank else None,
        )

    def embed(self, run: Run, images: Sequence[Loaded]) -> Iterator[Embedded]:
        """Decode ahead in threads while the networks work on the batch before; quarantine what fails."""
        size = max(1, self.context.batch_size // len(self.views))
        prepared = mapped(self.context.pool, self._prepare, images, 2 * size)
        for batch in batched(prepared, size):
            good = [item for item in batch if isinstance(item, _Prepared)]
            for item in batch:
                if not isinstance(item, _Prepared):
                    run.quarantine(*item)
            if good:
                yield from self._encode(run, good)

    def _encode(self, run: Run, batch: list[_Prepared]) -> Iterator[Embedded]:
        with run.timed("recall embedding"):
            recall = self.context.embed_recall(torch.cat([item.recall for item in batch]))
        rerank = recall if self.shared else None
        if self.context.query_length != 1.0:
            recall = recall * np.float32(self.context.query_length)
        if self.rerank:
            with run.timed("re-rank embedding"):
                rerank = self.context.embed_rerank(
                    torch.cat([item.rerank for item in batch if item.rerank is not None])
                )
        for index, item in enumerate(batch):
            rows = slice(index * len(self.views), (index + 1) * len(self.views))
            mine = recall[rows], rerank[rows] if rerank is not None else None
            if reason := _unusable(mine[0], "recall", zero=True) or _unusable(mine[1], "re-rank"):
                run.quarantine(item.loaded.record.uri, reason)
                continue
            score = None
            if self.quality and item.image is not None:
                with run.timed("quality"):
                    score = self.quality.score(item.image)
            yield Embedded(item.loaded, *item.size, mine[0], mine[1], score)


@dataclass(slots=True)
class _Prepared:
    loaded: Loaded
    image: Image.Image | None
    size: tuple[int, int]
    recall: torch.Tensor
    rerank: torch.Tensor | None


def _unusable(vectors: np.ndarray | None, name: str, *, zero: bool = False) -> str | None:
    """Why the store or a metric couldn't use these vectors, if so."""
    if vectors is None:
        return None
    if not np.isfinite(vectors).all():
        return f"its {name} vector has values that are not finite"
    if zero and not np.linalg.norm(vectors, axis=1).all():
        return f"its {name} vector is zero (an image that is black all over has no direction)"
    return None
