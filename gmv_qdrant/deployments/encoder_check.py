"""Whether a collection was embedded by this workspace's encoder: images of it, embedded again, and compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

import numpy as np
import torch
from PIL import Image

from gmv_qdrant.errors import CollectionMismatch, GmvError, ImageError, SourceError
from gmv_qdrant.images.decode import decode
from gmv_qdrant.images.sources import read_uri
from gmv_qdrant.models.base import Encoder
from gmv_qdrant.models.catalogue import model_status
from gmv_qdrant.models.devices import Runtime
from gmv_qdrant.models.registry import load_encoder
from gmv_qdrant.pipeline.assembly import Assembly
from gmv_qdrant.pipeline.batches import Forward
from gmv_qdrant.pipeline.streams import batched, mapped
from gmv_qdrant.vectors.protocol import CollectionSpec, VectorDistance

SAME = 0.99
"""Least cosine of an image's stored vector and the one that we compute: other versions of a decoder stay above it."""
TRIES = 8
"""Images asked for, for each one wanted, before a sample that can't be read is given up."""
MEASURED = 3
"""Encoders tried on the sample when the workspace's own doesn't fit; only those whose weights are here."""

_KNOWN: dict[int, tuple[str, ...]] = {
    384: ("timm:vit_small_patch14_dinov2", "timm:vit_small_patch16_224"),
    512: (
        "clip:ViT-B-32-quickgelu/openai",
        "clip:ViT-B-32/laion2b_s34b_b79k",
        "clip:ViT-B-16-quickgelu/openai",
        "timm:resnet18",
    ),
    640: ("clip:RN50x4-quickgelu/openai",),
    768: ("clip:ViT-L-14-quickgelu/openai", "timm:vit_base_patch14_dinov2", "timm:vit_base_patch16_224"),
    1024: ("clip:RN50-quickgelu/openai", "clip:ViT-H-14/laion2b_s32b_b79k", "torchvision:densenet121"),
    1152: ("clip:ViT-SO400M-14-SigLIP/webli",),
    1280: ("timm:tf_efficientnet_lite0", "timm:efficientnet_b0", "clip:ViT-bigG-14/laion2b_s39b_b160k"),
    2048: ("timm:resnet50", "torchvision:resnet50"),
    4096: ("torchvision:alexnet",),
}
"""Encoders that image collections are often made with, by the number of their numbers."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A point of the collection: where its image is, and its vector."""

    uri: str
    vector: np.ndarray


@dataclass(frozen=True, slots=True)
class EncoderCheck:
    """cosine: of stored and computed vectors, the lower quartile of ``images``. length: of the stored vectors."""

    images: int
    cosine: float
    differing: int
    """Images of the sample below `SAME`: replaced since they were embedded, or embedded by something else."""
    length: float


@dataclass(frozen=True, slots=True)
class Claimed:
    """That the encoder ``name``, which ``option`` chose, made the vectors ``spec``."""

    name: str
    encoder: Encoder
    option: str
    spec: CollectionSpec


def check_encoder(parts: Assembly, claimed: Claimed, points: Sequence[Stored], wanted: int) -> EncoderCheck:
    """Embed about ``wanted`` of the points' images again; a quarter of them may have changed meanwhile.

    Raises `SourceError` when none can be read, `CollectionMismatch` when the encoder is another one.
    """
    chosen = list(points[:: max(1, len(points) // (TRIES * wanted))])
    images, stored, reason = _read(parts, chosen, wanted)
    name = parts.settings.collection
    if not images:
        raise SourceError(
            f"none of {len(chosen)} images that the points of {name!r} name could be read ({reason}): mount them "
            "where the points say, or say what stands before their names with --uri-prefix"
        )
    encoder, option = claimed.encoder, claimed.option
    cosines = _cosines(encoder, images, stored)
    cosine = float(np.quantile(cosines, 0.25, method="lower"))
    if not cosine >= SAME:
        raise CollectionMismatch(
            f"the collection {name!r} was not embedded by {claimed.name}: {len(images)} of its images, "
            f"embedded again, have a cosine of {cosine:.4f} with their stored vectors, and {SAME} is needed; "
            + _fitting(parts, claimed, images, stored)
        )
    length = (
        common_length(claimed.spec.distance, name, [point.vector for point in points])
        if option == "--encoder"
        else 1.0
    )
    return EncoderCheck(len(images), cosine, int((cosines < SAME).sum()), length)


def encoders_of(dim: int) -> list[str]:
    """Encoders that give ``dim`` numbers, as far as that is known without loading them."""
    side = isqrt(dim // 3)
    pixels = [f"pixels:{side}"] if side and 3 * side * side == dim else []
    return pixels + list(_KNOWN.get(dim, ()))


def name_encoders(dim: int) -> str:
    """The end of a sentence: which encoders could have made vectors of ``dim`` numbers."""
    if names := encoders_of(dim):
        return f"encoders of {dim} numbers: {', '.join(names)}"
    return f"no encoder that this program knows by name gives {dim} numbers ('gmv-qdrant models list')"


def _read(
    parts: Assembly, chosen: Sequence[Stored], wanted: int
) -> tuple[list[Image.Image], np.ndarray, str]:
    """Images, their stored vectors float32 ``(n, dim)``, and why the last one that couldn't be read couldn't."""

    def read(point: Stored) -> tuple[Image.Image, np.ndarray] | str:
        try:
            return decode(read_uri(point.uri, parts.allowed)), point.vector
        except ImageError as error:
            return str(error).rstrip(".")

    images: list[Image.Image] = []
    vectors: list[np.ndarray] = []
    reason = "no point has a vector and names an image"
    order = np.random.default_rng(0).permutation(len(chosen)).tolist()
    for result in mapped(read, [chosen[index] for index in order], ahead=min(16, wanted)):
        if isinstance(result, str):
            reason = result
            continue
        images.append(result[0])
        vectors.append(result[1])
        if len(images) == wanted:
            break
    return images, np.array(vectors, dtype=np.float32), reason


def _cosines(encoder: Encoder, images: Sequence[Image.Image], stored: np.ndarray) -> np.ndarray:
    forward = Forward(encoder, 16, fixed=True)
    ours = np.concatenate(
        [forward(torch.stack([encoder.prepare(image) for image in batch])) for batch in batched(images, 16)]
    ).astype(np.float64)
    lengths = np.linalg.norm(ours, axis=1) * np.linalg.norm(stored, axis=1)
    return np.asarray((ours * stored).sum(axis=1) / np.where(lengths > 0, lengths, np.nan))


def _fitting(parts: Assembly, claimed: Claimed, images: Sequence[Image.Image], stored: np.ndarray) -> str:
    """Which other encoder fits: measured where its weights are here, named where they aren't."""
    dim = stored.shape[1]
    others = [name for name in encoders_of(dim) if name != claimed.name]
    ready = [name for name in others if _is_ready(parts, name)]
    for name in ready[:MEASURED]:
        try:
            encoder = load_encoder(name, runtime=Runtime.of(parts.settings))
            cosine = float(np.quantile(_cosines(encoder, images, stored), 0.25, method="lower"))
        except (GmvError, ValueError):  # not to be had after all, or of another dimension
            continue
        if cosine >= SAME:
            return f"{name} fits (cosine {cosine:.4f}): adopt it with {claimed.option} {name}"
    if others:
        return f"others of {dim} numbers: {', '.join(others)}"
    return f"this program knows no other encoder of {dim} numbers by name"


def _is_ready(parts: Assembly, name: str) -> bool:
    try:
        return model_status(name, Runtime.of(parts.settings)).ready is True
    except GmvError:
        return False


def common_length(distance: VectorDistance, name: str, vectors: Sequence[np.ndarray]) -> float:
    """What a generated image's vector is scaled to, so that it lies among vectors that aren't of unit length.

    A cosine divides by lengths. Under Euclid a query is given the usual one; under Dot the order depends on the stored
    lengths alone. Raises `CollectionMismatch` where those differ: it would be lengths that order the candidates.
    """
    norms = np.array([np.linalg.norm(vector) for vector in vectors])
    if distance == "cosine" or np.allclose(norms, 1.0, atol=1e-3):
        return 1.0
    if norms.max() > MAY_DIFFER[distance] * norms.min():
        raise CollectionMismatch(
            f"the vectors of {name!r} are compared by {distance.capitalize()} and have lengths from {norms.min():.3g} "
            f"to {norms.max():.3g}, while encoders here give directions without a length: value against a collection "
            "with the distance Cosine, or with vectors of one length"
        )
    return float(np.median(norms)) if distance == "euclid" else 1.0


MAY_DIFFER: dict[VectorDistance, float] = {"euclid": 2.0, "dot": 1.02}
"""The longest vector by the shortest: what recall bears, for the re-ranking after it orders the candidates anew."""
