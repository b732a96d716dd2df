"""The demo: the whole way on real images that ship in a package, with nothing downloaded.

scikit-learn's 8x8 handwritten digits belong to five made-up owners. The generator is a Gaussian for each digit
in the space of its principal components, fitted on the training images: it blurs and blends, it doesn't copy.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from gmv_qdrant.errors import SettingsError
from gmv_qdrant.workspace import Workspace

if TYPE_CHECKING:
    from gmv_qdrant.pipeline.streams import Progress

OWNERS = {
    "Ada's archive": (0, 1),
    "Bay Street library": (2, 3),
    "Camera club": (4, 5),
    "Dana (freelance)": (6, 7),
    "Emeritus fund": (8, 9),
}
POPULARITY = (0.20, 0.20, 0.15, 0.12, 0.10, 0.08, 0.06, 0.04, 0.03, 0.02)
"""How often the generator is asked for each digit: so the owners of 0 and 1 should earn most."""
GENERATED = 100
COMPONENTS = 16
SIZE = 32


def run_demo(folder: Path, *, seed: int, progress: Progress, tell: Callable[[str], None]) -> dict[str, Any]:
    """Make images and a workspace in ``folder``, run the main job, and return its figures.

    Raises `SettingsError` when the folder holds something else already.
    """
    if folder.exists() and not (folder / "workspace" / "gmv.toml").exists() and any(folder.iterdir()):
        raise SettingsError(f"{folder} isn't empty: name a new folder for the demo")
    training, generated = folder / "training", folder / "generated"
    digits = draw_images(training, generated, seed)
    tell(
        f"{folder}: {digits} digits of {len(OWNERS)} made-up owners, and {GENERATED} images drawn from "
        "Gaussians that were fitted on them"
    )
    made = Workspace.init(
        folder / "workspace", encoder=f"pixels:{SIZE}", distance=f"l2@{SIZE}", quality="piqe", candidates=200
    )
    workspace = Workspace(made.path, progress=progress)
    ingested = workspace.ingest([training])
    valued = workspace.value([generated], batch="demo")
    same_class = workspace.sql(
        """SELECT avg((t.label = g.label)::INTEGER) FROM contributions(k := 30) c
        JOIN training t USING (training_key) JOIN generated g USING (generated_key)"""
    ).fetchall()[0][0]
    figures = {
        "training_images": workspace.sql("SELECT count(*) FROM training").fetchall()[0][0],
        "generated_images": workspace.sql("SELECT count(*) FROM generated").fetchall()[0][0],
        "credits": dict(workspace.credits("owner").project("owner, value").fetchall()),
        "identical_class_ratio": same_class,
        "effective_contributors": workspace.effective_contributors(),
        "conservation_error": valued["conservation_error"],
        "seconds": ingested["seconds"]["total"] + valued["seconds"]["total"],
    }
    _report(folder, figures, tell)
    return figures


def _report(folder: Path, figures: dict[str, Any], tell: Callable[[str], None]) -> None:
    total = sum(figures["credits"].values())
    for owner, value in figures["credits"].items():
        digits = " and ".join(map(str, OWNERS[owner]))
        tell(f"  {owner:<20} {value:8.3f}  {value / total:6.1%}   (owns the digits {digits})")
    tell(
        f"identical class: {figures['identical_class_ratio']:.1%} of the 30 contributors show the digit asked for\n"
        f"effective contributors: {figures['effective_contributors']:.2f} of 30: with the paper's exp(-d) the "
        "credit of one image is spread almost evenly over its 30 nearest\n"
        "go on with:\n"
        f"  gmv-qdrant -w {folder}/workspace credits --by label\n"
        f"  gmv-qdrant -w {folder}/workspace credits --by owner --temperature 0.01\n"
        f"  gmv-qdrant -w {folder}/workspace explain demo-000.png\n"
        f'  gmv-qdrant -w {folder}/workspace sql "FROM image_values(k := 10) ORDER BY value DESC LIMIT 5"\n'
        f"  gmv-qdrant -w {folder}/workspace status"
    )


def draw_images(training: Path, generated: Path, seed: int) -> int:
    """Every other digit of scikit-learn's set as training images, and samples of the generator, as PNG files.

    Returns how many training images there are.
    """
    from sklearn.datasets import load_digits
    from sklearn.decomposition import PCA

    digits = load_digits()
    pixels, labels = digits.data[::2] / 16.0, digits.target[::2]
    owner_of = {digit: owner for owner, owned in OWNERS.items() for digit in owned}
    _write(
        training,
        [(f"digit-{i:04d}.png", image, {"owner": owner_of[label], "label": str(label)})
         for i, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True))],
    )  # fmt: skip
    random = np.random.default_rng(seed)
    asked = random.choice(10, size=GENERATED, p=POPULARITY)
    models = {d: PCA(COMPONENTS, random_state=0).fit(pixels[labels == d]) for d in range(10)}
    samples = []
    for index, digit in enumerate(asked.tolist()):
        model = models[digit]
        code = random.normal(size=COMPONENTS) * np.sqrt(model.explained_variance_)
        samples.append(
            (f"demo-{index:03d}.png", model.inverse_transform(code[None])[0], {"label": str(digit)})
        )
    _write(generated, samples)
    return len(pixels)


def _write(folder: Path, images: list[tuple[str, np.ndarray, dict[str, str]]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels, _ in images:
        small = Image.fromarray((np.clip(pixels, 0, 1) * 255).round().astype(np.uint8).reshape(8, 8))
        small.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(folder / name)
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["file_name", *images[0][2]])
        writer.writeheader()
        writer.writerows({"file_name": name, **facts} for name, _, facts in images)
