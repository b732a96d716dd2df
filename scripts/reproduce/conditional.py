"""A class-conditional flow model: criterion C1 (Table 7's diffusion rows) and membership (Table 6) in one command.

    python scripts/reproduce/conditional.py KIT [--set fashion] [--training 10000] [--held-out 0.5] [--steps 3000]

One half of the training images, drawn at random, trains the model (a guided flow, `generators.py`); the workspace
holds all. C1 asks for the class that each sample was made for, beside raw nearest neighbours in pixels and
what chance would give. Membership asks whether the half that was trained on is worth more, by the paper's formula
and calibrated; a model that generalises shows little or nothing, one that was made to memorise must: `--training 500
--steps 6000 --samples 250`. `nearest to the trained half` is the share of samples whose nearest image by pixels lies
there, a figure without any of our code.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import common
import generators
import numpy as np

from gmv_qdrant.ledger.selection import Selection

SETS = {"mnist": "mnist_train_10k_A", "fashion": "fashion_train_10k_A", "cifar10": "cifar10_train_10k_A"}
KS = (30, 50, 100)


def make(
    data: dict[str, np.ndarray], trained: np.ndarray, file: Path, options: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray, float | None]:
    """Samples of all classes by turns, their labels, and the seconds of training; kept in ``file``."""
    if not file.exists():
        classes = int(data["labels"].max()) + 1
        started = time.perf_counter()
        model = generators.train(
            data["images"][trained], data["labels"][trained], classes=classes, steps=options["steps"],
            width=options["width"], seed=options["seed"], note=common.note,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        labels = np.arange(options["samples"]) % classes
        images = generators.sample(
            model, labels, data["images"].shape[1:], guidance=options["guidance"], seed=options["seed"]
        )
        np.savez(file, images=images, labels=labels, seconds=seconds)
    kept = np.load(file)
    return kept["images"], kept["labels"], float(kept["seconds"])


def plain(
    data: dict[str, np.ndarray], made: np.ndarray, labels: np.ndarray, trained: np.ndarray
) -> dict[str, Any]:
    """What raw nearest neighbours by pixels say, without any of our code."""
    x, y = (images.reshape(len(images), -1).astype(np.float32) / 255 for images in (data["images"], made))
    squares = (y**2).sum(axis=1)[:, None] + (x**2).sum(axis=1) - 2 * y @ x.T
    order = np.argsort(squares, axis=1, kind="stable")[:, : min(max(KS), len(x))]
    agrees = data["labels"][order] == labels[:, None]
    found: dict[str, Any] = {
        f"rho, raw nearest pixels, k = {k}": float(agrees[:, :k].mean()) for k in KS if k <= order.shape[1]
    }
    found["rho by chance"] = float(np.mean([(data["labels"] == label).mean() for label in labels]))
    if not trained.all():
        found["nearest to the trained half"] = float(trained[order[:, 0]].mean())
        found["trained on"] = float(trained.mean())
    return found


def judged(
    workspace: common.Workspace, batch: str, ks: tuple[int, ...], held_out: bool, probes: int
) -> dict[str, Any]:
    rho = workspace.evaluate("identical-class", batch=batch, options={"ks": ks})
    mine: dict[str, Any] = {"rho": rho["rows"], "by_class": rho["by_value"]}
    if held_out:
        mine["temperature"] = workspace.calibrate(probes=probes)["temperature"]
        for name, calibration in (("paper", None), ("calibrated", "default")):
            figures = workspace.evaluate(
                "membership",
                batch=batch,
                calibration=calibration,
                options={"group": Selection(attribute="trained")},
            )
            mine[f"membership, {name}"] = {
                part: figures[part] for part in ("rows", "test", "credit", "nearest_test")
            }
    return mine


def main() -> None:
    parser = common.arguments(
        __doc__, set="fashion", encoders=("pixels", "efficientnet"), distances=("none", "l2@64", "lpips:alex@64"),
        training=10_000, held_out=0.5, samples=500, steps=3000, width=48, guidance=1.5, probes=500, seed=0,
    )  # fmt: skip
    given = parser.parse_args()
    kit, work = common.Kit(given.kit), common.work_folder(given)
    common.remember_recall_vectors(work)
    data = kit(SETS[given.set], given.training)
    count = len(data["labels"])
    trained = np.random.default_rng(given.seed).permutation(count) >= round(given.held_out * count)
    name = f"conditional-{given.set}-{count}-{given.held_out:g}-{given.seed}"
    training, batch = work / name, f"{name}-{given.steps}-{given.samples}-{given.guidance:g}"
    common.write_set(data["images"], training, label=data["labels"], trained=trained.astype(int))
    common.note("training the flow on", int(trained.sum()), "images")
    made, labels, seconds = make(data, trained, work / f"{batch}.npz", vars(given))
    common.write_set(made, work / batch, label=labels)
    found: dict[str, Any] = {
        "training_images": count, "trained_on": int(trained.sum()), "generated_images": len(made),
        "seconds_of_training": seconds, **plain(data, made, labels, trained),
    }  # fmt: skip
    for encoder in given.encoders:
        for distance in given.distances:
            common.note(encoder, distance)
            path = work / common.slug(name, encoder, distance)
            workspace = common.workspace(path, [training], **kit.encoder(encoder), distance=distance)
            workspace.value([work / batch], batch=batch)
            ks = tuple(k for k in KS if k <= min(count, 200))
            found[f"{encoder}, {distance}"] = judged(workspace, batch, ks, given.held_out > 0, given.probes)
            common.show(found, given.out, quiet=True)
    common.show(found, given.out)


if __name__ == "__main__":
    main()
