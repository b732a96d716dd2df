"""Probes: training images put through what generators do to them, so that their parents are known.

Each probe goes through every step below with the chance given, in this order, by one seeded generator; nothing of
a real generated set, and no label, is looked at.

1. blend with a second training image of the same label (half of the probes), ``w`` of the first in [0.5, 0.9]
2. crop to 84-100 % of each side, anywhere, and back to size (always)
3. mirror (half; not at all where generated images are matched as they are only, for then no parent could be found)
4. brightness, contrast and saturation by a factor in [0.85, 1.15] (always)
5. Gaussian blur with a radius of up to 2.5 % of the shorter side (half)
6. JPEG at quality 40 to 95 (half)
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

BLEND, MIRROR, BLUR, REENCODE = 0.5, 0.5, 0.5, 0.5
SMALLEST_CROP = 0.84
JITTER = 0.15
LARGEST_BLUR = 0.025
LIGHTEST_PARENT = 0.1


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one probe is made: rows of its parents, their weights (sum 1), and the seed of the other steps."""

    parents: tuple[int, ...]
    weights: tuple[float, ...]
    seed: int


def recipes(count: int, labels: Sequence[str | None], seed: int) -> list[Recipe]:
    """``count`` recipes over the training rows that ``labels`` stand for.

    The second parent of a blend has the label of the first: a generator blends what it was taught as one thing. Each
    image is a first parent at most once, while there are enough of them.
    """
    random = np.random.default_rng(seed)
    training = len(labels)
    rows_of: dict[str | None, list[int]] = {}
    for row, label in enumerate(labels):
        rows_of.setdefault(label, []).append(row)
    first = np.concatenate([random.permutation(training) for _ in range(-(-count // training))])[:count]
    made = []
    for parent in first.tolist():
        seeded = int(random.integers(2**31))
        alike = rows_of[labels[parent]]
        other = alike[int(random.integers(len(alike)))]
        if other != parent and random.random() < BLEND:
            weight = float(random.uniform(0.5, 1 - LIGHTEST_PARENT))
            made.append(Recipe((parent, other), (weight, 1 - weight), seeded))
        else:
            made.append(Recipe((parent,), (1.0,), seeded))
    return made


def make_probe(recipe: Recipe, parents: list[Image.Image], *, mirrored: bool = True) -> Image.Image:
    """The probe of these RGB parents, in the size of the first. mirrored: half of the probes are."""
    random = np.random.default_rng(recipe.seed)
    image = parents[0]
    if len(parents) > 1:
        image = Image.blend(image, parents[1].resize(image.size, Image.Resampling.BICUBIC), recipe.weights[1])
    image = _crop(image, random)
    if random.random() < MIRROR and mirrored:
        image = ImageOps.mirror(image)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(float(random.uniform(1 - JITTER, 1 + JITTER)))
    if random.random() < BLUR:
        image = image.filter(
            ImageFilter.GaussianBlur(float(random.uniform(0, LARGEST_BLUR)) * min(image.size))
        )
    return _reencode(image, random) if random.random() < REENCODE else image


def _crop(image: Image.Image, random: np.random.Generator) -> Image.Image:
    width, height = (max(1, round(side * random.uniform(SMALLEST_CROP, 1))) for side in image.size)
    left, top = random.integers(image.width - width + 1), random.integers(image.height - height + 1)
    box = (int(left), int(top), int(left) + width, int(top) + height)
    return image.resize(image.size, Image.Resampling.BICUBIC, box=box)


def _reencode(image: Image.Image, random: np.random.Generator) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(random.integers(40, 96)))
    return Image.open(buffer).convert("RGB")
