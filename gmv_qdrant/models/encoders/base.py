"""What an encoder is: an image goes in, one vector comes out, and a metric compares two of them.

Every distance of the paper (section 3.1) is a function of one vector per image, so a *distance* is an
encoder and a metric. Recall encoders have the metric ``cosine`` and give unit vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import torch

Metric = Literal["cosine", "euclid", "sqeuclid"]


@dataclass(frozen=True, slots=True)
class Storage:
    """How an encoder's vectors are kept in feature files: ``vector = stored * scale``.

    dtype: ``float32``, ``float16`` (where its error is proven below 1e-4) or ``uint8`` (pixels: exact).
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


def distances(metric: Metric, query: np.ndarray, rows: np.ndarray, device: str = "cpu") -> np.ndarray:
    """Distance of ``query`` ``(dim,)`` to each of ``rows`` ``(n, dim)`` -> float64 ``(n,)``, all >= 0.

    cosine: ``1 - cos``, clamped at 0. euclid: the 2-norm of the difference. sqeuclid: its square. Differences are
    taken before squares (never the Gram form), so equal vectors have distance 0 exactly. To 1e-6 relative; and a
    row's distance is the same to the bit whatever other rows it is computed with. On another ``device`` than the
    CPU, to 1e-6 of the vectors' size.
    """
    import torch

    q = _float_tensor(query).to(device)
    r = _float_tensor(rows).to(device)
    if metric == "cosine":
        wide = torch.float32 if device.startswith("mps") else torch.float64  # Apple's GPUs have no float64
        norms = torch.linalg.vector_norm(r, dim=1).to(wide) * torch.linalg.vector_norm(q).to(wide)
        dots = (r * q).sum(dim=1, dtype=wide)
        return np.asarray((1.0 - dots / norms).clamp_(min=0.0).cpu().double())
    # a few rows at a time stay in a processor's cache; torch's float32 sum is pairwise, so it is exact enough
    parts = torch.split(r, 25) if device == "cpu" else (r,)
    squares = torch.cat([(part - q).square_().sum(dim=1) for part in parts]).cpu().double()
    return np.asarray(squares if metric == "sqeuclid" else squares.sqrt_())


def _float_tensor(array: np.ndarray) -> torch.Tensor:
    import torch

    array = np.ascontiguousarray(array, dtype=np.float32)
    return torch.from_numpy(array if array.flags.writeable else array.copy())
