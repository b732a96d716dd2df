"""Images whose parents are known: does credit land on them?

    python scripts/reproduce/known_parents.py KIT [--encoder efficientnet] [--distances ...] [--views none flip]

500 pseudo-generated CIFAR-10 images, each a .75/.25 blend of two of the 10,000 training images, shifted,
jittered, blurred, half of them mirrored. `calibrate` sees the training images only. Figures of every distance:
the paper's formula, calibrated, and both with mirrored views. The same for 500 samples of a VAE drawn around
two training images each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import common

BATCHES = ("known-parents", "vae-seeds")


def write_sets(kit: common.Kit, work: Path) -> tuple[Path, dict[str, Path]]:
    training = kit("cifar10_train_10k_A")
    names = [p.name for p in common.write_set(training["images"], work / "cifar10", label=training["labels"])]
    name_of = dict(zip(training["index"].tolist(), names, strict=True))
    made = kit("cifar10_known_parents_A")
    first, second = ([name_of[row] for row in column] for column in made["parents"].T.tolist())
    count = len(first)
    common.write_set(
        made["images"], work / "cifar10-known-parents", label=made["labels"], flipped=made["flipped"],
        parent=first, parent2=second, weight=[0.75] * count, weight2=[0.25] * count,
    )  # fmt: skip
    vae = kit("cifar10_gen_vae")
    first, second = ([name_of[row] for row in vae[column].tolist()] for column in ("seed_i", "seed_j"))
    common.write_set(
        vae["images"], work / "cifar10-vae-seeds", label=vae["labels"], parent=first, parent2=second
    )
    return work / "cifar10", {batch: work / f"cifar10-{batch}" for batch in BATCHES}


def figures_of(
    path: Path, training: Path, made: dict[str, Path], settings: dict[str, Any], probes: int
) -> dict[str, Any]:
    workspace = common.workspace(path, [training], **settings)
    for batch, folder in made.items():
        workspace.value([folder], batch=batch)
    fitted = workspace.calibrate(probes=probes)
    rows = {
        batch: workspace.evaluate("known-parents", batch=batch, options={"calibrations": ("default",)})[
            "rows"
        ]
        for batch in made
    }
    return {"temperature": fitted["temperature"], "probes": fitted, **rows}


def main() -> None:
    parser = common.arguments(
        __doc__, encoder="efficientnet", distances=common.DISTANCES, views=("none", "flip"), probes=500
    )
    given = parser.parse_args()
    kit, work = common.Kit(given.kit), common.work_folder(given)
    common.remember_recall_vectors(work)
    training, made = write_sets(kit, work)
    found: dict[str, Any] = {"training_images": len(list(training.glob("*.png")))}
    for distance in given.distances:
        for views in given.views:
            common.note(distance, views)
            settings = {**kit.encoder(given.encoder), "distance": distance, "views": views}
            path = work / common.slug("parents", given.encoder, distance, views)
            found[f"{distance}, views {views}"] = figures_of(path, training, made, settings, given.probes)
            common.show(found, given.out, quiet=True)
    common.show(found, given.out)


if __name__ == "__main__":
    main()
