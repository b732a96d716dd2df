"""From records to vectors: read, hash, decode and prepare in threads; encode in batches; say what can't be used.

Whatever goes wrong with one image, in whichever step, makes it an `Unusable`, and the others go on.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps

from gmv_qdrant.errors import GmvError, ImageError, ModelError
from gmv_qdrant.images.decode import decode
from gmv_qdrant.images.records import Record, Unusable, content_hash, point_id
from gmv_qdrant.models.base import Encoder
from gmv_qdrant.models.verified import Models
from gmv_qdrant.models.wrappers import RecallDistance
from gmv_qdrant.pipeline.batches import Forward
from gmv_qdrant.pipeline.streams import batched, mapped

Timed = Callable[[str], AbstractContextManager[None]]
View = Callable[[Image.Image], Image.Image]
VIEWS: dict[str, tuple[View, ...]] = {
    "none": (lambda image: image,),
    "flip": (lambda image: image, ImageOps.mirror),
}
"""What of a generated image is matched; the first is the image as it is."""


def untimed(phase: str) -> AbstractContextManager[None]:
    return contextlib.nullcontext()


@dataclass(frozen=True, slots=True)
class Loaded:
    """The bytes of a record, and what identifies them."""

    record: Record
    data: bytes
    hash: str

    @classmethod
    def of(cls, record: Record, data: bytes) -> Loaded:
        return cls(record, data, content_hash(data))


@dataclass(slots=True)
class Embedded:
    """An image that went through the networks: ``recall`` and ``rerank`` are float32 ``(views, dim)``.

    rerank has the rounding that its matrix gives it, so that matching now and later is the same.
    """

    record: Record
    hash: str
    width: int
    height: int
    recall: np.ndarray
    rerank: np.ndarray | None
    quality: float | None

    @property
    def point_id(self) -> uuid.UUID:
        return point_id(self.hash)


def read(records: Iterable[Record], threads: int | None = None) -> Iterator[Loaded | Unusable]:
    """Read and hash, in the order of the records."""

    def one(record: Record) -> Loaded | Unusable:
        try:
            return Loaded.of(record, record.read())
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this image's
            return unusable(record.uri, error, "can't be read", "unreadable")

    return mapped(one, records, threads=threads)


def unusable(uri: str, error: Exception, what: str, kind: str) -> Unusable:
    """What went wrong with an image, in the sentence and the word that its quarantine row keeps."""
    if isinstance(error, ImageError):
        return Unusable(uri, str(error), error.kind)
    if isinstance(error, MemoryError):
        return Unusable(uri, f"it {what}: there is not enough memory for it", "memory")
    said = (str(error).splitlines() or [""])[0]
    named = said if isinstance(error, GmvError) else f"{type(error).__name__}{': ' if said else ''}{said}"
    return Unusable(uri, f"it {what}: {named}", kind)


class Embedder:
    """Each image through each network once.

    views: one of `VIEWS`. rerank: also compute the re-rank vector, which is the recall vector where there is no
    re-ranking. quality: also score. batch_size: of the networks; None finds the fastest. length: of recall vectors;
    adopted collections may have another than 1.
    """

    def __init__(
        self,
        models: Models,
        *,
        views: str = "none",
        rerank: bool = True,
        quality: bool = False,
        batch_size: int | None = None,
        threads: int | None = None,
        length: float = 1.0,
        timed: Timed = untimed,
    ) -> None:
        self._views = VIEWS[views]
        self._same = rerank and isinstance(models.rerank, RecallDistance)
        self._storage = models.rerank.storage
        self._quality = models.quality if quality else None
        self._length = np.float32(length)
        self._threads = threads
        self._timed = timed
        self.under_way: Callable[[int], None] = lambda images: None
        """Told how many images each batch had, so that a bar moves within a chunk."""
        self._size = batch_size or (64 if models.device == "cpu" else 256)
        self._recall = forward(models.recall, models.device, batch_size)
        self._rerank = (
            forward(models.rerank, models.device, batch_size) if rerank and not self._same else None
        )

    def __call__(self, images: Iterable[Loaded]) -> Iterator[Embedded | Unusable]:
        """In the order of the images; they are decoded ahead while the networks work on the batch before."""
        size = max(1, self._size // len(self._views))
        for batch in batched(mapped(self._prepare, images, threads=self._threads, ahead=2 * size), size):
            good = [item for item in batch if isinstance(item, _Prepared)]
            done = iter(self._encode(good))
            self.under_way(len(batch))
            for item in batch:
                yield next(done) if isinstance(item, _Prepared) else item

    def _prepare(self, loaded: Loaded) -> _Prepared | Unusable:
        try:
            image = decode(loaded.data)
            seen = [view(image) for view in self._views]
            return _Prepared(
                loaded,
                image if self._quality else None,
                image.size,
                torch.stack([self._recall.encoder.prepare(one) for one in seen]),
                torch.stack([self._rerank.encoder.prepare(one) for one in seen]) if self._rerank else None,
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this image's
            return unusable(loaded.record.uri, error, "can't be decoded", "damaged")

    def _encode(self, batch: list[_Prepared]) -> list[Embedded | Unusable]:
        if not batch:
            return []
        with self._timed("recall embedding"):
            recall = encode_each(self._recall, [item.recall for item in batch])
        rerank: Sequence[np.ndarray | Exception | None] = recall if self._same else [None] * len(batch)
        if self._rerank:
            with self._timed("re-rank embedding"):
                rerank = encode_each(self._rerank, [item.rerank for item in batch if item.rerank is not None])
        return [self._finish(*one) for one in zip(batch, recall, rerank, strict=True)]

    def _finish(
        self, item: _Prepared, recall: np.ndarray | Exception, rerank: np.ndarray | Exception | None
    ) -> Embedded | Unusable:
        uri = item.loaded.record.uri
        for vectors in (recall, rerank):
            if isinstance(vectors, Exception):
                return unusable(uri, vectors, "can't be embedded", "embedding")
        assert isinstance(recall, np.ndarray)
        assert not isinstance(rerank, Exception)
        if reason := _refused(recall, "recall", zero=True) or _refused(rerank, "re-rank"):
            return Unusable(uri, reason, "embedding")
        if rerank is not None:
            rerank = self._storage.unpack(self._storage.pack(rerank))
        score = self._score(item) if self._quality else None
        if isinstance(score, Unusable):
            return score
        if self._length != 1.0:
            recall = recall * self._length
        return Embedded(item.loaded.record, item.loaded.hash, *item.size, recall, rerank, score)

    def _score(self, item: _Prepared) -> float | Unusable:
        assert self._quality is not None
        assert item.image is not None
        try:
            with self._timed("quality"):
                score = float(self._quality.score(item.image))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this image's
            return unusable(item.loaded.record.uri, error, "can't be scored", "quality")
        if not 0 <= score <= 1:
            reason = f"its quality score is {score:g}, not a number from 0 to 1"
            return Unusable(item.loaded.record.uri, reason, "quality")
        return score


@dataclass(slots=True)
class _Prepared:
    loaded: Loaded
    image: Image.Image | None
    size: tuple[int, int]
    recall: torch.Tensor
    rerank: torch.Tensor | None


def forward(encoder: Encoder, device: str, batch_size: int | None = None) -> Forward:
    """Passes of one network at the batch size that is given, or is fastest here."""
    # on a CPU the thread's own time is judged: other processes may be using the cores, too
    clock = time.thread_time if device == "cpu" else time.perf_counter
    size = batch_size or (64 if device == "cpu" else 256)
    return Forward(encoder, size, clock=clock, fixed=bool(batch_size))


def encode_each(network: Forward, tensors: list[torch.Tensor]) -> list[np.ndarray | Exception]:
    """For each image float32 ``(views, dim)``, or what went wrong with it: a batch that fails is tried one by one.

    Raises `ModelError` where the device failed, and with it every image.
    """
    try:
        rows = network(torch.cat(tensors))
        return list(rows.reshape(len(tensors), -1, rows.shape[1]))
    except torch.AcceleratorError as error:
        raise ModelError(
            f"the device failed ({error}): all before this is safe, run the command again"
        ) from error
    except Exception as error:  # noqa: BLE001 - of one image
        if len(tensors) == 1:
            return [error]
        return [one for tensor in tensors for one in encode_each(network, [tensor])]


def _refused(vectors: np.ndarray | None, name: str, *, zero: bool = False) -> str | None:
    """Why the store or a metric couldn't use these vectors, if so."""
    if vectors is None:
        return None
    if not np.isfinite(vectors).all():
        return f"its {name} vector has values that are not finite"
    if zero and not np.linalg.norm(vectors, axis=1).all():
        return f"its {name} vector is zero (an image that is black all over has no direction)"
    return None


# -- what becomes of a record ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Content:
    """A record that was read; ``image`` is None where its content is known, so that it needs no network."""

    record: Record
    hash: str
    image: Embedded | None


KnownContents = Callable[[set[str]], set[str]]
"""Content hashes -> those that need no network."""


def embed_records(
    records: Sequence[Record | Unusable], embedder: Embedder, known: KnownContents, threads: int | None = None
) -> list[Content | Unusable]:
    """What became of each record, in their order. Equal contents go through the networks once."""
    loaded = read([item for item in records if isinstance(item, Record)], threads)
    items = [next(loaded) if isinstance(item, Record) else item for item in records]
    here = {item.hash: item for item in reversed(items) if isinstance(item, Loaded)}
    new = here.keys() - known(set(here))
    wanted = [item for hash_, item in reversed(here.items()) if hash_ in new]
    done = dict(zip((item.hash for item in wanted), embedder(wanted), strict=True))
    found: list[Content | Unusable] = []
    for item in items:
        if isinstance(item, Unusable):
            found.append(item)
            continue
        image = done.get(item.hash)
        if isinstance(image, Unusable):  # under each of its names
            found.append(Unusable(item.record.uri, image.reason, image.kind))
        else:
            found.append(Content(item.record, item.hash, image))
    return found
