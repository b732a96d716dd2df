"""Around encoders and metrics: a guard that turns failures into our errors, sums, the recall distance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from gmv_qdrant.errors import GmvError, ImageError, ModelError, first_line
from gmv_qdrant.method import Metric
from gmv_qdrant.models.base import Encoder, Identity, QualityMetric, Storage, unit_rows

if TYPE_CHECKING:
    import torch

KIND = "model"
"""Of quarantine rows: an image that a model can't take."""
ROUNDING = 1e-6
"""How far beyond [0, 1] a quality may lie by the rounding of float32."""


class CheckedEncoder:
    """An encoder whose failures are ours: whatever one image makes it raise is an `ImageError`.

    It is tried on a blank image first; raises `ModelError` when what comes out isn't what `Encoder` promises.
    """

    def __init__(self, name: str, encoder: Encoder) -> None:
        self.name, self.inner = name, encoder
        try:
            self.dim: int = int(encoder.dim)
            self.metric: Metric = encoder.metric
            self.storage: Storage = encoder.storage
            self.identity: Identity = encoder.identity
            blank = encoder.prepare(Image.new("RGB", (64, 64), (90, 120, 150)))
            self._form = (tuple(blank.shape), blank.dtype)
            vectors = encoder.encode(blank[None].clone())
        except GmvError:
            raise
        except Exception as error:  # a plug-in may do anything
            raise ModelError(f"{name} doesn't work on a blank image: {_said(error)}") from error
        wrong = self._wrong(vectors, 1)
        if not wrong and not np.isfinite(vectors).all():
            wrong = "numbers that are not finite"
        if wrong:
            raise ModelError(f"{name} gives {wrong} for a blank image")

    def prepare(self, image: Image.Image) -> torch.Tensor:
        try:
            tensor = self.inner.prepare(image)
            form = (tuple(tensor.shape), tensor.dtype)
        except GmvError:
            raise
        except Exception as error:
            raise self._failed(f"take an image of {image.width}x{image.height}", error) from error
        if form != self._form:
            raise ImageError(
                f"{self.name} makes {_words(*form)} of an image of {image.width}x{image.height}, not "
                f"{_words(*self._form)} as of others",
                kind=KIND,
            )
        return tensor

    def encode(self, batch: torch.Tensor) -> np.ndarray:
        """Raises `ImageError`; for several images, that only says that one of them can't be embedded."""
        import torch

        try:
            vectors = self.inner.encode(batch)
        except (GmvError, torch.OutOfMemoryError, torch.AcceleratorError):
            raise  # a device that has no room, or failed, is no image's fault
        except Exception as error:
            raise self._failed(
                "embed this image" if len(batch) == 1 else "embed these images", error
            ) from error
        if wrong := self._wrong(vectors, len(batch)):
            raise ImageError(f"{self.name} gives {wrong} for {len(batch)} images", kind=KIND)
        return vectors

    def _failed(self, what: str, error: Exception) -> ImageError:
        return ImageError(f"{self.name} cannot {what}: {_said(error)}", kind=KIND)

    def _wrong(self, vectors: Any, count: int) -> str:
        """What is wrong with the form of these vectors, or nothing."""
        if not isinstance(vectors, np.ndarray):
            return f"a {type(vectors).__name__}, not an array,"
        if vectors.shape != (count, self.dim) or vectors.dtype != np.float32:
            return f"{_words(vectors.shape, vectors.dtype)}, not {_words((count, self.dim), 'float32')},"
        return ""


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _words(shape: tuple[int, ...], dtype: object) -> str:
    return f"{'x'.join(map(str, shape))} of {str(dtype).removeprefix('torch.')}"


class CheckedMetric:
    """A quality metric whose failures are ours, and whose scores lie in [0, 1]."""

    def __init__(self, name: str, metric: QualityMetric) -> None:
        self.name, self.inner = name, metric
        self.identity = str(metric.identity)

    def score(self, image: Image.Image) -> float:
        """Raises `ImageError` for an image that the metric can't score, or scores beyond [0, 1]."""
        size = f"an image of {image.width}x{image.height}"
        try:
            score = float(self.inner.score(image))
        except GmvError:
            raise
        except Exception as error:
            raise ImageError(f"{self.name} cannot score {size}: {_said(error)}", kind=KIND) from error
        if not -ROUNDING <= score <= 1 + ROUNDING:  # nor is NaN
            raise ImageError(
                f"{self.name} gives {score:g} for {size}, and a quality lies in [0, 1]", kind=KIND
            )
        return min(1.0, max(0.0, score))


class RecallDistance:
    """``none``: the Euclidean distance of the recall vectors. Who has those already need not encode."""

    metric: Metric = "euclid"
    storage = Storage()

    def __init__(self, recall: Encoder) -> None:
        self.recall = recall
        self.dim = recall.dim
        self.identity = recall.identity

    def prepare(self, image: Image.Image) -> torch.Tensor:
        return self.recall.prepare(image)

    def encode(self, batch: torch.Tensor) -> np.ndarray:
        return self.recall.encode(batch)


class WeightedSum:
    """Several encoders as one, whose vector is theirs side by side.

    unit: for recall; the parts are unit vectors times the root of their weights, and the whole has unit length, so its
    cosine is the weighted mean of theirs. Otherwise the distance is the weighted sum of theirs, where a Euclidean part
    counts by its square; where the first part is Euclidean, so is the whole: the root of the sum.
    """

    def __init__(self, name: str, parts: Sequence[tuple[Encoder, float]], *, unit: bool) -> None:
        self._parts = parts
        self._unit = unit
        first = parts[0][0]
        self.dim = sum(encoder.dim for encoder, _ in parts)
        self.metric: Metric = "cosine" if unit else "euclid" if first.metric == "euclid" else "sqeuclid"
        self.storage = Storage() if unit else _storage(parts)
        self.identity = Identity(
            name,
            " + ".join(encoder.identity.weights for encoder, _ in parts),
            " + ".join(encoder.identity.preprocessing for encoder, _ in parts),
        )
        blank = Image.new("RGB", (64, 64))
        self._forms = [(one.shape, one.dtype) for one in (encoder.prepare(blank) for encoder, _ in parts)]

    def prepare(self, image: Image.Image) -> torch.Tensor:
        """The parts' tensors, byte by byte: uint8 ``(n,)``."""
        import torch

        prepared = [encoder.prepare(image).contiguous().reshape(-1) for encoder, _ in self._parts]
        return torch.cat([tensor.view(torch.uint8) for tensor in prepared])

    def encode(self, batch: torch.Tensor) -> np.ndarray:
        import torch

        vectors, start = [], 0
        for (encoder, weight), (shape, dtype) in zip(self._parts, self._forms, strict=True):
            end = start + math.prod(shape) * dtype.itemsize
            mine = batch[:, start:end].clone(memory_format=torch.contiguous_format)
            found = encoder.encode(mine.view(dtype).reshape(-1, *shape))
            if encoder.metric == "cosine" and not self._unit:
                # half the square between unit vectors is 1 - cos
                found = unit_rows(found) * np.float32(math.sqrt(0.5))
            vectors.append(found * np.float32(math.sqrt(weight)))
            start = end
        whole = np.concatenate(vectors, axis=1)
        return unit_rows(whole) if self._unit else whole


def _storage(parts: Sequence[tuple[Encoder, float]]) -> Storage:
    """float16 where the first part is, and the others weigh so little that a distance stays right to 2e-4."""
    if parts[0][0].storage.dtype != "float16" or sum(weight for _, weight in parts[1:]) > 0.3:
        return Storage()
    return Storage("float16", 2.0**-15)  # entries are at most 1; small ones stay normal numbers
