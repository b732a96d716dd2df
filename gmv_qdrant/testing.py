"""Conformance tests for plug-ins: what an encoder, a distance and a quality metric promise, for their authors to run.

    from gmv_qdrant.testing import check_encoder

    def test_it_conforms():
        check_encoder("mine:5")

Each raises `AssertionError` with a sentence, or the `ModelError` or `ImageError` that a user would get.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from PIL import Image

from gmv_qdrant.errors import ImageError
from gmv_qdrant.method import distances
from gmv_qdrant.models.base import Encoder
from gmv_qdrant.models.devices import Runtime
from gmv_qdrant.models.registry import Kind, canonical_name, load_distance, load_encoder, load_quality

T = TypeVar("T")
SAME = 1e-5
"""How far a vector may depend on the batch that it is computed in, as a share of its length."""
STORED = 1e-3
"""How far a distance of stored vectors may lie from that of the vectors themselves, as a share of the largest."""


def sample_images() -> list[Image.Image]:
    """Patterns and noise of many shapes, then images that some code trips over: tiny, long, flat."""
    random = np.random.default_rng(0)
    images = []
    for width, height in ((64, 64), (200, 130), (90, 240), (32, 32), (333, 333)):
        x, y = np.meshgrid(np.linspace(0, 9, width), np.linspace(0, 7, height))
        waves = np.stack([np.sin(x + random.uniform(0, 6)), np.cos(y), np.sin(x * y / 9)], axis=2)
        noisy = 128 + 80 * waves + random.normal(0, 15, waves.shape)
        images.append(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)))
    return images + [
        Image.new("RGB", size, colour)
        for size, colour in (((1, 1), "red"), ((2, 2), "grey"), ((1, 20_000), "blue"), ((64, 64), "black"))
    ]


def check_encoder(name: str, runtime: Runtime | None = None) -> None:
    """A recall encoder: unit vectors (or zero), compared by their cosine."""
    encoder = load_encoder(name, runtime=runtime)
    vectors = _check_vectors("encoder", name, encoder, lambda: load_encoder(name, runtime=runtime))
    assert encoder.metric == "cosine", f"{name} has the metric {encoder.metric}: a recall encoder's is cosine"
    norms = np.linalg.norm(vectors, axis=1)
    unit = (np.abs(norms - 1) < 1e-4) | (norms == 0)
    assert unit.all(), f"{name} gives vectors of length {norms[~unit][0]:g}: a recall encoder's have length 1"


def check_distance(name: str, runtime: Runtime | None = None) -> None:
    """A re-rank distance: vectors whose distance survives the form that they are stored in."""
    encoder = load_distance(name, runtime=runtime)
    vectors = _check_vectors("distance", name, encoder, lambda: load_distance(name, runtime=runtime))
    stored = encoder.storage.unpack(encoder.storage.pack(vectors))
    exact, kept = (
        np.stack([distances(encoder.metric, row, rows) for row in rows]) for rows in (vectors, stored)
    )
    assert np.isfinite(exact).all(), f"{name} gives distances that are not finite"
    lost = np.abs(exact - kept).max() / max(exact.max(), 1e-30)
    assert lost < STORED, (
        f"{name} loses {lost:.1%} of its distances when vectors are stored as {encoder.storage}"
    )


def check_quality(name: str, runtime: Runtime | None = None) -> None:
    """A quality metric: the same score in [0, 1] whatever was scored before; an `ImageError` where it has none."""
    metric, again = (load_quality(name, runtime=runtime) for _ in range(2))
    assert metric is not None, f"{name} is no metric"
    assert again is not None
    assert metric.identity == again.identity, f"{name} has another identity each time it is loaded"
    images = sample_images()
    forth = [_score(metric.score, image) for image in images]
    back = [_score(again.score, image) for image in reversed(images)][::-1]
    assert forth == back, f"the scores of {name} depend on what was scored before: {forth} and {back}"
    assert any(score is not None for score in forth), f"{name} can score none of the sample images"


def _check_vectors(kind: Kind, name: str, encoder: Encoder, load: Callable[[], Encoder]) -> np.ndarray:
    """What all encoders promise; gives the sample images' vectors."""
    import torch

    canonical = canonical_name(kind, name)
    assert canonical_name(kind, canonical) == canonical, f"{canonical} is spelt otherwise when read again"
    assert load().identity == encoder.identity, f"{name} has another identity each time it is loaded"
    images = sample_images()
    tensors = [encoder.prepare(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(encoder.prepare, images * 3))
    _all_equal(together, tensors * 3, f"{name} prepares an image otherwise in several threads")
    batch = torch.stack(tensors)
    vectors = encoder.encode(batch)
    assert np.isfinite(vectors).all(), f"{name} gives numbers that are not finite"
    assert np.array_equal(encoder.encode(batch), vectors), f"{name} gives other vectors the second time"
    alone = np.concatenate([encoder.encode(tensor[None]) for tensor in reversed(tensors)])[::-1]
    scale = max(float(np.abs(vectors).max()), 1e-30)
    moved = float(np.abs(alone - vectors).max()) / scale
    assert moved < SAME, f"a vector of {name} depends on its batch: it moves by {moved:g} of its size"
    assert not np.array_equal(vectors[0], vectors[1]), f"{name} gives two images one vector"
    return vectors


def _all_equal(found: Iterable[T], wanted: Iterable[T], sentence: str) -> None:
    import torch

    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True)), sentence  # type: ignore[arg-type]


def _score(score: Callable[[Image.Image], float], image: Image.Image) -> float | None:
    try:
        return score(image)
    except ImageError:
        return None
