"""Names of encoders and distances, and what they load.

A name is ``FAMILY``, ``FAMILY:ARGUMENT`` or ``FAMILY@SIZE``. The families of this package stand in the two
tables below; another package adds its own by an entry point in the group ``gmv_qdrant.encoders`` (a callable
``(argument, weights, runtime) -> Encoder``) or ``gmv_qdrant.distances`` (``(argument, runtime) -> Encoder``).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from gmv_qdrant.errors import ModelError
from gmv_qdrant.method import Metric
from gmv_qdrant.models.devices import Runtime, nearest, plugin, plugin_names, resolve_device
from gmv_qdrant.models.encoders import backbones, clip, dreamsim, lpips, pixels
from gmv_qdrant.models.encoders.base import Encoder, Identity, Storage
from gmv_qdrant.models.weights import WeightFile

if TYPE_CHECKING:
    import torch

ENCODERS = "gmv_qdrant.encoders"
DISTANCES = "gmv_qdrant.distances"
DEFAULT_ENCODER = f"clip:{clip.DEFAULT}"
DEFAULT_DISTANCE = "dreamsim"
NO_RERANK = "none"

Canonical = Callable[[str], str]
Files = Callable[[str, Runtime], list[WeightFile]]


def _no_files(_: str, __: Runtime) -> list[WeightFile]:
    return []


def _model_name(argument: str) -> str:
    if not argument:
        raise ModelError("which model? Write timm:MODEL or torchvision:MODEL")
    return argument


@dataclass(frozen=True, slots=True)
class RecallFamily:
    load: Callable[[str, str | None, Runtime], Encoder]
    canonical: Canonical = str
    files: Files = _no_files


@dataclass(frozen=True, slots=True)
class DistanceFamily:
    load: Callable[[str, Runtime], Encoder]
    canonical: Canonical = str
    files: Files = _no_files
    joint: str = ":"
    """What stands between family and argument in the canonical name."""


RECALL_FAMILIES = {
    "clip": RecallFamily(clip.load, clip.canonical, clip.files),
    "timm": RecallFamily(backbones.load_timm, _model_name, backbones.timm_files),
    "torchvision": RecallFamily(backbones.load_torchvision, _model_name, backbones.torchvision_files),
    "pixels": RecallFamily(pixels.load_recall, lambda argument: pixels.canonical_size(argument, 32)),
}
DISTANCE_FAMILIES = {
    "dreamsim": DistanceFamily(dreamsim.load, dreamsim.canonical, dreamsim.files),
    "lpips": DistanceFamily(lpips.load, lpips.canonical, lpips.files),
    "l2": DistanceFamily(pixels.load_rms, pixels.canonical_size, joint="@"),
    "l2-norm": DistanceFamily(pixels.load_norm, pixels.canonical_size, joint="@"),
}


def canonical_encoder_name(name: str) -> str:
    """``clip`` -> ``clip:ViT-B-32-quickgelu/openai``, ``pixels`` -> ``pixels:32``. Raises `ModelError`."""
    family, argument, entry = _recall_family(name)
    return _join(family, ":", entry.canonical(argument))


def canonical_distance_name(name: str) -> str:
    """``l2`` -> ``l2@64``, ``lpips:vgg`` -> ``lpips:vgg@64``, ``dreamsim:ensemble`` -> ``dreamsim``."""
    if is_no_rerank(name):
        return NO_RERANK
    family, argument, entry = _distance_family(name)
    return _join(family, entry.joint, entry.canonical(argument))


def load_encoder(name: str, *, weights: str | None = None, runtime: Runtime | None = None) -> Encoder:
    """The recall encoder ``name``: float32 unit vectors, metric ``cosine``.

    weights: a file to load instead of the published weights (``--encoder-weights``). Raises `ModelError` at
    once when the name is unknown or its weights cannot be had.
    """
    _, argument, entry = _recall_family(name)
    runtime = runtime or Runtime()
    resolve_device(runtime.device)
    return entry.load(entry.canonical(argument), weights, runtime)


def load_distance(name: str, *, runtime: Runtime | None = None, recall: Encoder | None = None) -> Encoder:
    """The encoder behind the re-rank distance ``name``; ``none`` is `RecallDistance` over ``recall``."""
    if is_no_rerank(name):
        if recall is None:
            raise ModelError("the distance 'none' is the recall encoder's: load that one first")
        return RecallDistance(recall)
    _, argument, entry = _distance_family(name)
    runtime = runtime or Runtime()
    resolve_device(runtime.device)
    return entry.load(entry.canonical(argument), runtime)


def encoder_files(name: str, runtime: Runtime) -> list[WeightFile]:
    """What `load_encoder` needs on disk when it is given no weights of its own."""
    _, argument, entry = _recall_family(name)
    return entry.files(entry.canonical(argument), runtime)


def distance_files(name: str, runtime: Runtime) -> list[WeightFile]:
    """What `load_distance` needs on disk."""
    if is_no_rerank(name):
        return []
    _, argument, entry = _distance_family(name)
    return entry.files(entry.canonical(argument), runtime)


def is_no_rerank(name: str) -> bool:
    """Whether candidates keep the distance of the recall vectors (the paper's No-Rerank)."""
    return name == NO_RERANK


class RecallDistance:
    """``none``: the Euclidean distance of the recall vectors. Who has those already need not encode."""

    metric: Metric = "euclid"
    storage = Storage()

    def __init__(self, recall: Encoder) -> None:
        self.recall = recall

    @property
    def dim(self) -> int:
        return self.recall.dim

    @property
    def identity(self) -> Identity:
        return self.recall.identity

    def prepare(self, image: Image.Image) -> torch.Tensor:
        return self.recall.prepare(image)

    def encode(self, batch: torch.Tensor) -> np.ndarray:
        return self.recall.encode(batch)


def _recall_family(name: str) -> tuple[str, str, RecallFamily]:
    family, argument = _split(name)
    entry = RECALL_FAMILIES.get(family)
    if entry is None and (load := plugin(ENCODERS, family)) is not None:
        entry = RecallFamily(load)
    if entry is None:
        known = [*RECALL_FAMILIES, *plugin_names(ENCODERS)]
        raise ModelError(f"unknown encoder {name!r}{nearest(family, known)}")
    return family, argument, entry


def _distance_family(name: str) -> tuple[str, str, DistanceFamily]:
    family, argument = _split(name)
    entry = DISTANCE_FAMILIES.get(family)
    if entry is None and (load := plugin(DISTANCES, family)) is not None:
        entry = DistanceFamily(load)
    if entry is None:
        known = [*DISTANCE_FAMILIES, NO_RERANK, *plugin_names(DISTANCES)]
        raise ModelError(f"unknown distance {name!r}{nearest(family, known)}")
    return family, argument, entry


def _split(name: str) -> tuple[str, str]:
    """``lpips@32`` -> ``lpips``, ``@32``; ``l2@32`` and ``l2:32`` -> ``l2``, ``32``."""
    found = re.fullmatch(r"([^:@]*)(?::(.*)|(@.*))?", name, flags=re.DOTALL)
    assert found is not None
    family, argument, size = found.groups()
    if size is not None:
        argument = size if family == "lpips" else size[1:]
    return family, argument or ""


def _join(family: str, joint: str, argument: str) -> str:
    return f"{family}{joint}{argument}" if argument else family
