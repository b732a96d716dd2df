"""What all networks share: pixels stay uint8 until they are on the device, one pass, float32 vectors out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from gmv_qdrant.errors import ModelError, first_line
from gmv_qdrant.method import Metric
from gmv_qdrant.models.base import Identity, Storage
from gmv_qdrant.models.devices import Runtime, exact_inference, resolve_device

Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """crop: RGB image -> RGB image of a fixed size. Then ``(pixels / 255 - mean) / std`` on the device.

    line: the same in words; part of the encoder's identity, so it must not change with library versions.
    """

    crop: Callable[[Image.Image], Image.Image]
    mean: Triple
    std: Triple
    line: str

    @classmethod
    def of_transform(cls, transform: Any, line: str) -> Preprocessing:
        """Split a ``Compose`` that ends in ToTensor and Normalize: the same numbers, less memory."""
        from torchvision.transforms import CenterCrop, Normalize, ToTensor

        *steps, to_tensor, normalize = transform.transforms
        if not isinstance(to_tensor, ToTensor) or not isinstance(normalize, Normalize):
            raise ModelError(
                f"cannot use the image transform {transform!r}: it must end in ToTensor, Normalize"
            )

        centre = any(isinstance(step, CenterCrop) for step in steps)

        def crop(image: Image.Image) -> Image.Image:
            if centre:
                image = middle(image)
            for step in steps:
                image = step(image)
            return image

        mean, std = triple(normalize.mean), triple(normalize.std)
        return cls(crop, mean, std, f"{line} mean {words(mean)} std {words(std)}")

    @classmethod
    def squash(cls, size: int, mean: Triple, std: Triple, words: str) -> Preprocessing:
        """The whole image to ``size x size``, PIL bicubic: the working resolution of a distance."""
        return cls(lambda image: resize(image, size), mean, std, f"{size}x{size} squash bicubic {words}")


def middle(image: Image.Image) -> Image.Image:
    """The middle of an image that is more than 16 times as long as wide: a centre crop sees no more of it, and
    resizing the whole by its shorter side would take gigabytes."""
    width, height = (min(side, 16 * min(image.size)) for side in image.size)
    if (width, height) == image.size:
        return image
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def resize(image: Image.Image, size: int) -> Image.Image:
    """PIL bicubic to ``size x size`` (antialiased); an image of that size stays as it is."""
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BICUBIC)


def to_uint8(image: Image.Image) -> torch.Tensor:
    """RGB image -> uint8 ``(3, h, w)``."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()


class NetworkEncoder:
    """An `Encoder` around one network.

    forward: normalised float ``(n, 3, h, w)`` on the device -> ``(n, dim)``. ``unit`` divides by the norm.
    With ``bf16`` the network's weights and input are bfloat16; normalisation and vectors stay float32.
    """

    def __init__(
        self,
        name: str,
        network: torch.nn.Module,
        preprocessing: Preprocessing,
        runtime: Runtime,
        *,
        weights: str,
        forward: Callable[[torch.Tensor], torch.Tensor] | None = None,
        metric: Metric = "cosine",
        storage: Storage | None = None,
        unit: bool = False,
    ) -> None:
        self._device = torch.device(resolve_device(runtime.device))
        self._dtype = torch.bfloat16 if runtime.precision == "bf16" else torch.float32
        self._network = network.eval().requires_grad_(False).to(self._device, self._dtype)
        self._forward = forward or network
        self._preprocessing = preprocessing
        self._mean = torch.tensor(preprocessing.mean, device=self._device).view(3, 1, 1)
        self._std = torch.tensor(preprocessing.std, device=self._device).view(3, 1, 1)
        self._unit = unit
        self._metric: Metric = metric
        self._storage = storage or Storage()
        suffix = "" if runtime.precision == "fp32" else f", {runtime.precision}"
        self._identity = Identity(name, weights, preprocessing.line + suffix)
        self._dim = self._probe_dim()

    @property
    def dim(self) -> int:
        return self._dim

    @property
    def metric(self) -> Metric:
        return self._metric

    @property
    def storage(self) -> Storage:
        return self._storage

    @property
    def identity(self) -> Identity:
        return self._identity

    def prepare(self, image: Image.Image) -> torch.Tensor:
        """RGB image -> uint8 ``(3, h, w)`` on the CPU."""
        return to_uint8(self._preprocessing.crop(image))

    def encode(self, batch: torch.Tensor) -> np.ndarray:
        """uint8 ``(n, 3, h, w)`` -> float32 ``(n, dim)``."""
        with exact_inference():
            pixels = batch.to(self._device, non_blocking=True).float().div_(255.0)
            pixels = pixels.sub_(self._mean).div_(self._std).to(self._dtype)
            vectors = self._forward(pixels).float()
            if self._unit:
                vectors = torch.nn.functional.normalize(vectors, dim=-1)
            return vectors.cpu().numpy()

    def _probe_dim(self) -> int:
        blank = self.prepare(Image.new("RGB", (64, 64)))
        try:
            vectors = self.encode(blank.unsqueeze(0))
        except RuntimeError as error:
            size = f"{blank.shape[2]}x{blank.shape[1]}"
            raise ModelError(
                f"{self._identity.name} cannot take images of {size}: {first_line(error)}"
            ) from error
        if vectors.ndim != 2:
            raise ModelError(f"{self._identity.name} gives {vectors.shape[1:]} per image, not one vector")
        return int(vectors.shape[1])


def triple(values: Any) -> Triple:
    red, green, blue = (float(value) for value in (values.tolist() if hasattr(values, "tolist") else values))
    return red, green, blue


def words(values: Sequence[float]) -> str:
    return "/".join(f"{value:.6g}" for value in values)
