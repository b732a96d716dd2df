"""The demo: photographs whose owners one can tell apart, a generator whose parents are known, credit beside the truth.

Seven photographs that ship with scikit-image belong to seven made-up owners; square crops of them are the training
images. The generator blends two crops, 70 to 30, moves, brightens and blurs them: so for each generated
image it is known whom it owes, and how much. Nothing is downloaded.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageFilter

from gmv_qdrant.errors import SettingsError
from gmv_qdrant.settings import FILE
from gmv_qdrant.workspace import Workspace

if TYPE_CHECKING:
    from gmv_qdrant.pipeline.streams import Progress

OWNERS = {
    "Ada": ("astronaut.png", 0.30),
    "Ben": ("chelsea.png", 0.21),
    "Chiara": ("coffee.png", 0.17),
    "Dev": ("ihc.png", 0.13),
    "Edith": ("motorcycle_left.png", 0.09),
    "Farid": ("retina.jpg", 0.06),
    "Grace": ("camera.png", 0.04),
}
"""Owner -> photograph, and how often the generator draws from it."""
CROPS = 48
"""Training images of each owner."""
GENERATED = 60
SIZE = 64
"""Pixels of a side."""
WEIGHTS = (0.7, 0.3)
"""How much of a generated image comes from each of its two parents."""
SHOWN = "image-00.png"
"""The generated image whose contributors are drawn."""


@dataclass(frozen=True, slots=True)
class Crop:
    """A training image: uint8 ``(64, 64, 3)`` pixels, its file's name and its owner."""

    name: str
    owner: str
    pixels: np.ndarray


def run_demo(folder: Path, *, seed: int, progress: Progress, tell: Callable[[str], None]) -> dict[str, Any]:
    """Make images and a workspace in ``folder``, run the main job, and return its figures.

    Raises `SettingsError` when the folder holds something else already.
    """
    place = folder / "workspace"
    if folder.exists() and not (place / FILE).exists() and any(folder.iterdir()):
        raise SettingsError(f"{folder} isn't empty: name a new folder for the demo")
    training, generated = folder / "training", folder / "generated"
    truth = draw_images(training, generated, seed)
    tell(
        f"{len(OWNERS) * CROPS} crops of {len(OWNERS)} photographs, each with an owner of its own, in {training}\n"
        f"{GENERATED} images in {generated}: each blends two crops, so it is known whom it owes"
    )
    Workspace.init(place, encoder="pixels:32", distance="l2@32", quality="piqe")
    workspace = Workspace(place, progress=progress)
    workspace.ingest([training])
    valued = workspace.value([generated], batch="demo")
    workspace.calibrate(name="demo")
    figures = {
        "training_images": len(OWNERS) * CROPS,
        "generated_images": GENERATED,
        "truth": truth,
        "paper": _shares(workspace),
        "calibrated": _shares(workspace, calibration="demo"),
        "parents": workspace.evaluate("known-parents", options={"calibrations": ["demo"]}),
        "conservation_error": valued["conservation_error"],
    }
    sheet = workspace.picture(SHOWN, folder / "contributors.png", calibration="demo")
    _tell_figures(figures, tell)
    tell(
        f"{sheet} shows {SHOWN} beside the images that earned its credit. Go on with:\n"
        f"  gmv-qdrant -w {place} explain {SHOWN} --calibration demo\n"
        f"  gmv-qdrant -w {place} credits --by owner --calibration demo\n"
        f"  gmv-qdrant -w {place} payout --budget 1000 --calibration demo\n"
        f"  gmv-qdrant -w {place} report {folder}/report.html --calibration demo"
    )
    return figures


def _shares(workspace: Workspace, calibration: str | None = None) -> dict[str, tuple[float, float, float]]:
    """Owner -> share of the credit, and the ends of its 95 % interval."""
    found = workspace.credits("owner", interval=95, calibration=calibration)
    rows = found.project(
        "owner, share, low / nullif(value, 0) * share, high / nullif(value, 0) * share"
    ).fetchall()
    return {owner: (share, low or 0.0, high or 0.0) for owner, share, low, high in rows}


def _tell_figures(figures: dict[str, Any], tell: Callable[[str], None]) -> None:
    tell(f"\n{'share of the credit':<20}{'truth':>9}{'paper':>9}{'calibrated':>12}{'95 % interval':>18}")
    for owner, share in figures["truth"].items():
        value, low, high = figures["calibrated"].get(owner, (0.0, 0.0, 0.0))
        paper = figures["paper"].get(owner, (0.0,))[0]
        interval = f"{low:.1%} to {high:.1%}"
        tell(f"  {owner:<18}{share:9.1%}{paper:9.1%}{value:12.1%}{interval:>18}")
    paper, *_, fitted = (row["parent_share"] for row in figures["parents"]["rows"])
    tell(
        f"Of an image's credit, its two true parents get {paper:.0%} by the paper's formula, which spreads it\n"
        f"almost evenly over the 30 nearest, and {fitted:.0%} at the temperature that 'calibrate' fitted on training\n"
        "images alone.\n"
    )


def draw_images(training: Path, generated: Path, seed: int) -> dict[str, float]:
    """Write training images and generated ones, with a metadata.csv each; returns each owner's true share."""
    random = np.random.default_rng(seed)
    crops = [crop for owner in OWNERS for crop in _crops(owner, random)]
    _write(training, crops, [{"file_name": crop.name, "owner": crop.owner} for crop in crops])
    drawn, rows, owed = [], [], dict.fromkeys(OWNERS, 0.0)
    popularity = [often for _, often in OWNERS.values()]
    for index in range(GENERATED):
        sides = random.choice(len(OWNERS), size=2, p=popularity) * CROPS + random.integers(CROPS, size=2)
        parents = [crops[side] for side in sides]
        drawn.append(Crop(f"image-{index:02d}.png", "", _blend(parents, random)))
        first, second = parents
        rows.append(
            {"file_name": drawn[-1].name, "parent": first.name, "weight": WEIGHTS[0]}
            | {"parent2": second.name, "weight2": WEIGHTS[1]}
        )
        for parent, weight in zip(parents, WEIGHTS, strict=True):
            owed[parent.owner] += weight / GENERATED
    _write(generated, drawn, rows)
    return owed


def _crops(owner: str, random: np.random.Generator) -> list[Crop]:
    import skimage

    file = Path(skimage.__file__).parent / "data" / OWNERS[owner][0]
    with Image.open(file) as opened:
        photograph = opened.convert("RGB")
    photograph.thumbnail((512, 512))
    crops = []
    for index in range(CROPS):
        side = min(int(random.integers(96, 200)), *photograph.size)
        left, top = (int(random.integers(length - side + 1)) for length in photograph.size)
        crop = photograph.crop((left, top, left + side, top + side))
        pixels = np.asarray(crop.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        crops.append(Crop(f"{owner.lower()}-{index:02d}.png", owner, pixels))
    return crops


def _blend(parents: Sequence[Crop], random: np.random.Generator) -> np.ndarray:
    """uint8 ``(64, 64, 3)``: both parents, moved by up to two pixels, brightened, with noise, blurred."""
    mixed = sum(weight * parent.pixels for weight, parent in zip(WEIGHTS, parents, strict=True))
    moved = np.roll(mixed, random.integers(-2, 3, size=2), axis=(0, 1))
    noisy = moved * random.uniform(0.95, 1.05) + random.normal(0, 3, moved.shape)
    image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(0.6)))


def _write(folder: Path, images: Sequence[Crop], rows: Sequence[dict[str, Any]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for image in images:
        Image.fromarray(image.pixels).save(folder / image.name)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
