"""What models are: an encoder makes one vector of an image, and a metric compares two; a quality metric scores one.

Every distance of the paper (section 3.1) is a function of one vector per image, so a *distance* is an
encoder and a metric. Recall encoders have the metric ``cosine`` and give unit vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from PIL import Image

from gmv_qdrant.method import Metric

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Storage:
    """How an encoder's vectors are kept in feature files: ``vector = stored * scale``.

    dtype: ``float32``, ``float16`` (a distance stays right to 1e-4, of sums to 2e-4) or ``uint8`` (pixels: exact).
    """

    dtype: Literal["float32", "float16", "uint8"] = "float32"
    scale: float = 1.0

    def pack(self, vectors: np.ndarray) -> np.ndarray:
        """float32 ``(n, dim)`` -> the stored dtype."""
        scaled = vectors if self.scale == 1.0 else vectors / np.float32(self.scale)
        if self.dtype == "uint8":
            scaled = np.rint(scaled)
        return np.ascontiguousarray(scaled, dtype=self.dtype)

    def unpack(self, stored: np.ndarray) -> np.ndarray:
        """Stored ``(n, dim)`` -> float32. By torch, which widens float16 eight times faster than numpy."""
        import torch

        source = np.ascontiguousarray(stored)
        vectors = torch.from_numpy(source if source.flags.writeable else source.copy()).to(
            torch.float32, copy=True
        )
        return np.asarray(vectors if self.scale == 1.0 else vectors.mul_(self.scale))


def unit_rows(vectors: np.ndarray, least: float = 0.0) -> np.ndarray:
    """Each row divided by its norm; a row whose norm isn't above ``least`` stays as it is."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: np.ndarray = vectors / np.where(norms > least, norms, vectors.dtype.type(1))
    return unit


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes two encoders the same: their vectors may be compared only when these are equal."""

    name: str
    weights: str
    """SHA-256 of the weights (of the state dict's bytes or of the file), or ``"none"``."""
    preprocessing: str
    """A readable line: size, interpolation, crop, mean and standard deviation."""


class Encoder(Protocol):
    """image -> vector. One instance lives on one device; ``prepare`` may run in other threads."""

    @property
    def dim(self) -> int: ...

    @property
    def metric(self) -> Metric: ...

    @property
    def storage(self) -> Storage: ...

    @property
    def identity(self) -> Identity: ...

    def prepare(self, image: Image.Image) -> torch.Tensor:
        """RGB image -> CPU tensor of a fixed shape. Thread-safe: it runs in decoding threads."""
        ...

    def encode(self, batch: torch.Tensor) -> np.ndarray:
        """``(n, ...)`` stacked prepared tensors -> float32 ``(n, dim)``.

        A row doesn't depend on what else is in the batch, beyond 1e-5 relative.
        """
        ...


class QualityMetric(Protocol):
    """q in [0, 1] of one generated image (section 3.2), higher is better: the same whatever else is scored."""

    @property
    def identity(self) -> str:
        """Name, mapping to [0, 1] and weights' hash, in one line."""
        ...

    def score(self, image: Image.Image) -> float:
        """RGB image -> quality in [0, 1]."""
        ...
