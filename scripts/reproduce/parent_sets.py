"""Images whose parents are known, and images that have none: from the kit, and fresh draws by seeds fixed here.

- `blend`, `half`, `three`: .75/.25, .5/.5 and .5/.3/.2 of training images of one class, shifted, with gain and offset
  in each channel, blurred; `hard` is `blend` rotated by up to 10 degrees, with a colour cast, as a JPEG. Half are
  mirrored.
- `one`: one training image, by one of 15 distortions.
- `kit`: 250 of the kit's own blends. `vae`: samples that a VAE drew around two training images.
- `orphans`: `blend` and `one` of images that are no training images; `vae orphans`: whose seeds are none.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field

import common
import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

SEED = 20261122
WEIGHTS = {"blend": (0.75, 0.25), "half": (0.5, 0.5), "three": (0.5, 0.3, 0.2), "hard": (0.75, 0.25)}
SHIFT, GAIN, OFFSET, BLUR = 2, 0.1, 8.0, 0.6
"""Pixels, a factor within 1 ± GAIN, grey levels, and the radius of the Gaussian blur in pixels."""


@dataclass(frozen=True)
class Parents:
    """Rows of an image's parents and their weights (sum 1); none where there is no such row."""

    parents: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()


@dataclass
class Task:
    """A training set, and sets of images made from it."""

    images: np.ndarray
    labels: np.ndarray
    mirror: bool
    sets: dict[str, tuple[np.ndarray, list[Parents]]] = field(default_factory=dict)

    def add(self, name: str, images: np.ndarray, parents: list[Parents]) -> None:
        self.sets[name] = images, parents


def shifted(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    height, width = image.shape[:2]
    top, left = random.integers(0, 2 * SHIFT + 1, 2)
    edges = [(SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)]
    return np.pad(image, edges, mode="edge")[top : top + height, left : left + width]


def blended(
    images: np.ndarray, weights: tuple[float, ...], random: np.random.Generator, *, hard: bool
) -> np.ndarray:
    image = shifted(np.tensordot(np.array(weights), images.astype(float), axes=1), random)
    gain = random.uniform(1 - GAIN, 1 + GAIN, 3) * (random.uniform(0.8, 1.2, 3) if hard else 1)
    image = (image * gain + random.uniform(-OFFSET, OFFSET, 3)).round().clip(0, 255).astype(np.uint8)
    made = Image.fromarray(image).filter(ImageFilter.GaussianBlur(BLUR))
    if hard:
        made = rotated(made, float(random.uniform(-10, 10)))
        made = jpeg(made, int(random.integers(40, 80)))
    return np.asarray(made)


def rotated(image: Image.Image, degrees: float) -> Image.Image:
    """The corners that come in are the edges, repeated."""
    side = image.width
    wide = Image.fromarray(np.pad(np.asarray(image), ((side, side), (side, side), (0, 0)), mode="edge"))
    return wide.rotate(degrees, Image.Resampling.BICUBIC).crop((side, side, 2 * side, 2 * side))


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def cropped(image: Image.Image, share: float) -> Image.Image:
    side = image.width
    edge = side * (1 - share) / 2
    return image.resize((side, side), Image.Resampling.BICUBIC, box=(edge, edge, side - edge, side - edge))


def noisy(image: Image.Image) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, 16, np.asarray(image).shape)
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def with_a_hole(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image).copy()
    pixels[8:18, 8:18] = 128
    return Image.fromarray(pixels)


def cast(image: Image.Image) -> Image.Image:
    return Image.fromarray((np.asarray(image) * np.array([1.25, 1.0, 0.75])).clip(0, 255).astype(np.uint8))


DISTORTIONS: tuple[Callable[[Image.Image], Image.Image], ...] = (
    lambda image: cropped(image, 0.9),
    lambda image: cropped(image, 0.7),
    lambda image: rotated(image, 10),
    lambda image: rotated(image, 30),
    lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    lambda image: image.filter(ImageFilter.GaussianBlur(2)),
    noisy,
    lambda image: jpeg(image, 20),
    lambda image: ImageEnhance.Brightness(image).enhance(1.4),
    lambda image: ImageEnhance.Contrast(image).enhance(0.6),
    lambda image: ImageEnhance.Color(image).enhance(0.2),
    cast,
    with_a_hole,
    ImageOps.mirror,
    lambda image: ImageOps.posterize(image, 3),
)


def draw(task: Task, pool: np.ndarray, regime: str, count: int) -> tuple[np.ndarray, list[Parents]]:
    """Fresh images from those of the ``pool`` (indices of images of the whole source)."""
    random = np.random.default_rng([SEED, sum(map(ord, regime))])
    made, parents = [], []
    for i, first in enumerate(random.choice(pool, count, replace=False).tolist()):
        if regime == "one":
            rows, weights = [first], (1.0,)
            image = np.asarray(DISTORTIONS[i % len(DISTORTIONS)](Image.fromarray(task.images[first])))
        else:
            weights = WEIGHTS[regime]
            alike = pool[(task.labels[pool] == task.labels[first]) & (pool != first)]
            rows = [first, *random.choice(alike, len(weights) - 1, replace=False).tolist()]
            image = blended(task.images[rows], weights, random, hard=regime == "hard")
            image = image[:, ::-1] if i % 2 else image
        made.append(np.ascontiguousarray(image))
        parents.append(Parents(tuple(rows), tuple(weights)))
    return np.stack(made), parents


def cifar(kit: common.Kit, count: int, each: int) -> Task:
    """``count`` CIFAR-10 images; everything that is made of others has no parents among them."""
    source = kit("cifar10_train_10k_A")
    everything = Task(source["images"], source["labels"], True)
    row_of = {index: row for row, index in enumerate(source["index"].tolist())}
    made, vae = kit("cifar10_known_parents_A", each), kit("cifar10_gen_vae", 2 * each)
    of_kit = [Parents(tuple(row_of[i] for i in pair), (0.75, 0.25)) for pair in made["parents"].tolist()]
    pairs = zip(vae["seed_i"].tolist(), vae["seed_j"].tolist(), strict=True)
    of_vae = [Parents(tuple(row_of[i] for i in pair), (0.5, 0.5)) for pair in pairs]
    wanted = {row for one in (*of_kit, *of_vae[:each]) for row in one.parents}
    lost = {row for one in of_vae[each:] for row in one.parents} - wanted
    free = np.setdiff1d(np.arange(len(source["images"])), sorted(wanted | lost))
    more = np.random.default_rng(SEED).choice(free, count - len(wanted), replace=False)
    inside = np.sort([*wanted, *more])
    outside = np.setdiff1d(np.arange(len(source["images"])), inside)
    place = {row: at for at, row in enumerate(inside.tolist())}

    def placed(parents: list[Parents]) -> list[Parents]:
        return [Parents(tuple(place[row] for row in one.parents), one.weights) for one in parents]

    task = Task(source["images"][inside], source["labels"][inside], True)
    task.add("kit", made["images"], placed(of_kit))
    for regime in ("blend", "hard", "half", "three", "one"):
        images, parents = draw(everything, inside, regime, each)
        task.add(regime, images, placed(parents))
    task.add("vae", vae["images"][:each], placed(of_vae[:each]))
    orphans = [draw(everything, outside, regime, each // 2)[0] for regime in ("blend", "one")]
    task.add("orphans", np.concatenate(orphans), [Parents()] * (2 * (each // 2)))
    alone = [i for i, one in enumerate(of_vae) if i >= each and not set(one.parents) & set(inside.tolist())]
    task.add("vae orphans", vae["images"][alone], [Parents()] * len(alone))
    return task


def airplanes(kit: common.Kit, count: int, each: int) -> Task:
    """The half that a VAE was trained on, and its samples; orphans are blends of the other half."""
    source, vae = kit("airplane_v1v2"), kit("airplane_gen_vae", each)
    inside = np.flatnonzero(source["is_v2"])
    task = Task(source["images"][inside], np.zeros(len(inside), np.uint8), True)
    pairs = zip(vae["seed_i"].tolist(), vae["seed_j"].tolist(), strict=True)
    task.add("vae", vae["images"], [Parents(pair, (0.5, 0.5)) for pair in pairs])
    everything = Task(source["images"], np.zeros(len(source["images"]), np.uint8), True)
    images, _ = draw(everything, np.flatnonzero(~source["is_v2"]), "blend", each)
    task.add("orphans", images, [Parents()] * len(images))
    return task


def digits(kit: common.Kit, count: int, each: int) -> Task:
    """MNIST, and what a VAE makes of single digits; orphans are those whose digit is no training image."""
    source, vae = kit("mnist_train_10k_A"), kit("mnist_gen_vae_posterior")
    there = np.isin(vae["seed_index"], source["index"])
    rows = {index: row for row, index in enumerate(source["index"].tolist())}
    wanted = [rows[index] for index in vae["seed_index"][there].tolist()]
    free = np.setdiff1d(np.arange(len(source["images"])), wanted)
    inside = np.unique(
        np.concatenate([np.unique(wanted), free[common.spaced(len(free), count - len(set(wanted)))]])
    )
    place = {row: at for at, row in enumerate(inside.tolist())}
    task = Task(source["images"][inside], source["labels"][inside], False)
    task.add("vae", vae["images"][there], [Parents((place[row],), (1.0,)) for row in wanted])
    alone = vae["images"][~there][:each]
    task.add("orphans", alone, [Parents()] * len(alone))
    return task


TASKS: dict[str, Callable[[common.Kit, int, int], Task]] = {
    "cifar": cifar,
    "airplanes": airplanes,
    "digits": digits,
}
