"""A blind test of `calibrate`: does its lapse rate hold up on images with known parents that nobody had seen?

    python scripts/reproduce/fresh_parents.py KIT [--sets cifar10 airplanes fashion] [--distances lpips:alex@64]

The lapse rate was added after figures on the kit's own known-parents set had been looked at. This script makes
others, from training images that were no parents there: airplanes (those not among the kit's 10,000 CIFAR-10
images), Fashion-MNIST, and CIFAR-10 itself. Everything below was fixed and committed before the first run, and nothing
was tuned. Regimes: `blend` .75/.25 of two training images of one class, `half` .5/.5 and `three` .5/.3/.2. Each image
is then shifted by up to 2 px, gets gain and offset in each channel, is blurred, and half are mirrored.

`calibrate` runs as it is, once a workspace; plain maximum likelihood is fitted to the same probes. The rule, fixed
beforehand: the lapse rate stays if on `blend`, with lpips:alex@64 and mirrored views, averaged over the three sets,
it gives the parents a higher share than plain maximum likelihood does (paired, by more than two standard errors) and a
correlation that is no more than .005 lower.

Added after the first run, and no part of the rule: the regime `kit`, a fresh draw of the kit's own recipe as its images
show it (least squares on the blends of their parents): shifts of up to 2 px, one contrast and one brightness for all
channels, a blur of .5 px. It asks whether the figures on the kit's own images hold on others.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import common
import numpy as np
from PIL import Image, ImageFilter

from gmv_qdrant.evaluation import calibrate as calibrating
from gmv_qdrant.evaluation.calibration import Fit, credit_of, fit, parent_figures
from gmv_qdrant.evaluation.parents import known_parents

SEED = 20261122
REGIMES = {"blend": (0.75, 0.25), "half": (0.5, 0.5), "three": (0.5, 0.3, 0.2), "kit": (0.75, 0.25)}
COUNTS = {"blend": 500, "half": 250, "three": 250, "kit": 500}
SHIFT, GAIN, OFFSET, BLUR = 2, 0.1, 8.0, 0.6
"""Pixels, a factor within 1 ± GAIN, grey levels, and the radius of the Gaussian blur in pixels."""
KIT_CONTRAST, KIT_BRIGHTNESS, KIT_BLUR = 0.14, 14.0, 0.5
"""The kit's: contrast about the image's mean within 1 ± .14, grey levels, pixels."""


def training_set(kit: common.Kit, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, labels, and which of them may be parents."""
    if name == "fashion":
        data = kit("fashion_train_10k_A")
        return data["images"], data["labels"], np.ones(len(data["labels"]), dtype=bool)
    cifar, seen = kit("cifar10_train_10k_A"), kit("cifar10_known_parents_A")["parents"]
    if name == "cifar10":
        return cifar["images"], cifar["labels"], ~np.isin(cifar["index"], seen)
    known = {image.tobytes() for image in cifar["images"]}
    planes = kit("airplane_v1v2")["images"]
    planes = planes[[image.tobytes() not in known for image in planes]]
    return planes, np.zeros(len(planes), dtype=np.uint8), np.ones(len(planes), dtype=bool)


def make(
    images: np.ndarray, labels: np.ndarray, may: np.ndarray, regime: str, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """uint8 images, the rows of their parents ``(count, most)``, heaviest first, and which are mirrored."""
    random, weights = np.random.default_rng(seed), REGIMES[regime]
    made, parents = [], []
    flipped = np.arange(count) % 2 == 1
    for first, flip in zip(random.choice(np.flatnonzero(may), count, replace=False), flipped, strict=True):
        alike = np.flatnonzero(may & (labels == labels[first]))
        others = random.choice(alike[alike != first], len(weights) - 1, replace=False)
        rows = np.array([first, *others])
        parents.append(rows)
        mixed = np.tensordot(np.array(weights), images[rows].astype(float), axes=1)
        made.append((disturb_like_kit if regime == "kit" else disturb)(mixed, random, bool(flip)))
    return np.stack(made), np.stack(parents), flipped


def disturb(image: np.ndarray, random: np.random.Generator, flip: bool) -> np.ndarray:
    image = shifted(image, random)
    channels = image.shape[2:]
    image = image * random.uniform(1 - GAIN, 1 + GAIN, channels) + random.uniform(-OFFSET, OFFSET, channels)
    return finished(image, BLUR, flip)


def disturb_like_kit(image: np.ndarray, random: np.random.Generator, flip: bool) -> np.ndarray:
    image = shifted(image, random)
    contrast, brightness = random.uniform(-KIT_CONTRAST, KIT_CONTRAST), random.uniform(-1, 1) * KIT_BRIGHTNESS
    return finished(image + contrast * (image - image.mean()) + brightness, KIT_BLUR, flip)


def shifted(image: np.ndarray, random: np.random.Generator) -> np.ndarray:
    height, width = image.shape[:2]
    edges = [(SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)][: image.ndim]
    top, left = random.integers(0, 2 * SHIFT + 1, 2)
    return np.pad(image, edges, mode="edge")[top : top + height, left : left + width]


def finished(image: np.ndarray, blur: float, flip: bool) -> np.ndarray:
    image = image.round().clip(0, 255).astype(np.uint8)
    image = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(blur)))
    return image[:, ::-1] if flip else image


def write_sets(
    kit: common.Kit, work: Path, name: str, regimes: list[str], most: int
) -> tuple[Path, dict[str, Path]]:
    images, labels, may = training_set(kit, name)
    training = work / f"fresh-{name}"
    names = [path.name for path in common.write_set(images, training, label=labels)]
    folders = {}
    for regime in regimes:
        count = min(COUNTS[regime], most, int(may.sum()))
        seed = SEED + list(REGIMES).index(regime)
        made, parents, flipped = make(images, labels, may, regime, count, seed)
        columns: dict[str, Any] = {"flipped": flipped}
        for place, weight in enumerate(REGIMES[regime]):
            after = "" if place == 0 else str(place + 1)
            columns["parent" + after] = [names[row] for row in parents[:, place]]
            columns["weight" + after] = [weight] * count
        folders[regime] = work / f"fresh-{name}-{regime}-{count}"
        common.write_set(made, folders[regime], label=labels[parents[:, 0]], **columns)
    return training, folders


def both_fits(workspace: common.Workspace, probes: int) -> tuple[dict[str, Any], Fit]:
    """What `calibrate` says, and plain maximum likelihood on the very probes that it made."""
    plain: list[Fit] = []

    def also_plain(distances: np.ndarray, parents: np.ndarray, **options: Any) -> Fit:
        plain.append(fit(distances, parents, lapse=False))
        return fit(distances, parents, **options)

    calibrating.fit = also_plain  # type: ignore[attr-defined]
    try:
        return workspace.calibrate(probes=probes), plain[0]
    finally:
        calibrating.fit = fit  # type: ignore[attr-defined]


def figures_of(
    workspace: common.Workspace, batch: str, temperatures: dict[str, float], k: int = 30
) -> dict[str, Any]:
    """Figures of each value function, and the paired differences of calibrate's from plain's."""
    ledger = workspace.published
    known = known_parents(ledger, batch)
    training = workspace.status()["training"]["images"]
    found: dict[str, Any] = {"images": len(known.distances)}
    shares = {}
    for name, temperature in temperatures.items():
        figures = parent_figures(
            known.distances,
            known.parents,
            training=training,
            weights=known.weights,
            k=k,
            temperature=temperature,
        )
        found[name] = {"temperature": temperature, **figures.as_dict()}
        credit = credit_of(known.distances[:, :k], temperature)[0]
        shares[name] = (credit * (known.parents[:, :k] > 0)).sum(axis=1)
    gap = shares["calibrate"] - shares["plain"]
    found["calibrate minus plain"] = {
        "parent_share": float(gap.mean()),
        "standard_error": float(gap.std(ddof=1) / np.sqrt(len(gap))),
        "correlation": found["calibrate"]["correlation"] - found["plain"]["correlation"],
    }
    return found


def verdict(found: dict[str, Any], distance: str, sets: list[str]) -> dict[str, Any]:
    """The rule of the first lines: means over the sets, each counting alike."""
    gaps = [found[f"{name}, {distance}"]["blend"]["calibrate minus plain"] for name in sets]
    share = float(np.mean([gap["parent_share"] for gap in gaps]))
    error = float(np.sqrt(sum(gap["standard_error"] ** 2 for gap in gaps)) / len(gaps))
    correlation = float(np.mean([gap["correlation"] for gap in gaps]))
    stays = share > 2 * error and correlation > -0.005
    return {
        "parent_share": share,
        "standard_error": error,
        "correlation": correlation,
        "lapse_rate_stays": stays,
    }


def main() -> None:
    parser = common.arguments(
        __doc__, sets=("cifar10", "airplanes", "fashion"), encoder="efficientnet", distances=("lpips:alex@64",),
        views="flip", regimes=tuple(REGIMES), probes=500, most=500,
    )  # fmt: skip
    given = parser.parse_args()
    kit, work = common.Kit(given.kit), common.work_folder(given)
    common.remember_recall_vectors(work)
    found: dict[str, Any] = {}
    for name in given.sets:
        training, folders = write_sets(kit, work, name, given.regimes, given.most)
        for distance in given.distances:
            common.note(name, distance)
            settings = {**kit.encoder(given.encoder), "distance": distance, "views": given.views}
            path = work / common.slug("fresh", name, given.encoder, distance, given.views)
            workspace = common.workspace(path, [training], **settings)
            for regime, folder in folders.items():
                workspace.value([folder], batch=regime)
            fitted, plain = both_fits(workspace, given.probes)
            temperatures = {"paper": 1.0, "plain": plain.temperature, "calibrate": fitted["temperature"]}
            mine: dict[str, Any] = {"calibrate": fitted, "plain": asdict(plain)}
            mine |= {regime: figures_of(workspace, regime, temperatures) for regime in folders}
            found[f"{name}, {distance}"] = mine
            common.show(found, given.out, quiet=True)
    for distance in given.distances if "blend" in given.regimes else ():
        found[f"verdict, {distance}"] = verdict(found, distance, given.sets)
    common.show(found, given.out)


if __name__ == "__main__":
    main()
