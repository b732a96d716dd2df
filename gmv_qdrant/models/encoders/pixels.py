"""Encoders without a network: the pixels themselves, at a working resolution."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from gmv_qdrant.errors import ModelError
from gmv_qdrant.method import Metric
from gmv_qdrant.models.base import Encoder, Identity, Storage, unit_rows
from gmv_qdrant.models.devices import Runtime

if TYPE_CHECKING:
    import torch

MAX_SIZE = 1024


def canonical_size(argument: str, default: int = 64) -> str:
    """``""`` -> the default; otherwise a whole number of pixels from 1 to 1024. Raises `ModelError`."""
    size = argument or str(default)
    if not size.isdecimal() or not 1 <= int(size) <= MAX_SIZE:
        raise ModelError(f"{argument!r} is not a resolution: use a whole number of pixels up to {MAX_SIZE}")
    return str(int(size))


def load_recall(argument: str, _: Runtime) -> Encoder:
    """``pixels:N``: RGB at NxN in [0,1], divided by the norm. A black image gives the zero vector."""
    return PixelEncoder(f"pixels:{argument}", int(argument), "cosine", Storage(), "in [0,1], unit length")


def load_rms(argument: str, _: Runtime) -> Encoder:
    """``l2@N``: pixels / (255 sqrt(dim)), so the distance is the root-mean-square difference in [0,1]."""
    scale = 1.0 / (255.0 * math.sqrt(3 * int(argument) ** 2))
    return PixelEncoder(
        f"l2@{argument}", int(argument), "euclid", Storage("uint8", scale), "in [0,1] / sqrt(dim)"
    )


def load_norm(argument: str, _: Runtime) -> Encoder:
    """``l2-norm@N``: pixels / 255, the paper's plain 2-norm."""
    return PixelEncoder(
        f"l2-norm@{argument}", int(argument), "euclid", Storage("uint8", 1.0 / 255.0), "in [0,1]"
    )


def load_thumb(argument: str, _: Runtime) -> Encoder:
    """``thumb:N``: RGB at NxN minus its mean, of unit length: composition, whatever the brightness and contrast."""
    return ThumbEncoder(int(argument), "cosine")


def load_thumb_distance(argument: str, _: Runtime) -> Encoder:
    """The squared distance of two thumbnails, from 0 to 4."""
    return ThumbEncoder(int(argument), "sqeuclid")


class PixelEncoder:
    """RGB, PIL bicubic to ``size x size``, flattened channel by channel.

    With uint8 storage the vector is the pixels times the storage's scale, so a stored row is exact; with
    float32 storage it has unit length.
    """

    def __init__(self, name: str, size: int, metric: Metric, storage: Storage, words: str) -> None:
        self.metric: Metric = metric
        self.storage = storage
        self.dim = 3 * size * size
        self.identity = Identity(name, "none", f"{size}x{size} squash bicubic {words}")
        self._size = size

    def prepare(self, image: Image.Image) -> torch.Tensor:
        """RGB image -> uint8 ``(dim,)``."""
        from gmv_qdrant.models.encoders.network import resize, to_uint8

        return to_uint8(resize(image, self._size)).reshape(-1)

    def encode(self, batch: torch.Tensor) -> np.ndarray:
        """uint8 ``(n, dim)`` -> float32 ``(n, dim)``."""
        pixels = batch.numpy()
        if self.storage.dtype == "uint8":
            return self.storage.unpack(pixels)
        return unit_rows(pixels.astype(np.float32) / np.float32(255.0))


class ThumbEncoder(PixelEncoder):
    """The same, minus the mean of all its numbers, divided by the norm.

    An image of one colour that is grey gives the zero vector.
    """

    def __init__(self, size: int, metric: Metric) -> None:
        super().__init__(f"thumb:{size}", size, metric, Storage(), "minus mean, unit length")

    def encode(self, batch: torch.Tensor) -> np.ndarray:
        """uint8 ``(n, dim)`` -> float32 ``(n, dim)``."""
        pixels = batch.numpy().astype(np.float64)
        return unit_rows(pixels - pixels.mean(axis=1, keepdims=True), 1e-6).astype(np.float32)
