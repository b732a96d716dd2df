"""Criterion C3 (Fig. 5): do corrupted training images get the lowest values? And does quality help (Figs. 8, 9)?

    python scripts/reproduce/ood.py KIT [--noise noisy05 pure mild02] [--training 10000] [--generated 500]
    [--ks 30 200] [--quality piqe --poor 0.2] [--plots DIR]

100 corrupted digits among the clean ones, samples of a GAN. For each distance and k: AUROC with average ranks for
ties, by value and by the smallest distance to any generated image; beside raw nearest neighbours (exact) and random
credit, judged by the same code.

With a quality metric, Figs. 8 and 9: scores of the first contributors, and C3, with and without q. As in the paper's
ablation, a share ``--poor`` of the generated images is of low quality: noise like that of the training images is added.
``--quality known`` scores those 0.1 and all others 1: what a metric could do that sees it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import common
import numpy as np
import others
from PIL import Image

from gmv_qdrant.evaluation.plots import plot
from gmv_qdrant.ledger.selection import Selection
from gmv_qdrant.models import registry

GROUP = {"group": Selection(attribute="corrupted")}
SIGMA = 127.5
"""Noise of the poor generated images: N(0, .5) on [0, 1]."""


def spoiled(images: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The images, ``share`` of them with noise; and which, bool ``(m,)``."""
    random = np.random.default_rng(seed)
    poor = np.zeros(len(images), dtype=bool)
    poor[common.spaced(len(images), round(share * len(images)))] = share > 0
    noisy = (images + random.normal(0, SIGMA, images.shape)).round().clip(0, 255).astype(np.uint8)
    return np.where(poor.reshape(-1, *[1] * (images.ndim - 1)), noisy, images), poor


class Known:
    """A quality metric that knows which images were spoiled."""

    identity = "known: 1, and 0.1 for the spoiled ones"

    def __init__(self, spoiled_images: np.ndarray) -> None:
        self._spoiled = {image.tobytes() for image in spoiled_images}

    def score(self, image: Image.Image) -> float:
        return 0.1 if np.asarray(image.convert("L")).tobytes() in self._spoiled else 1.0


def quality_of(workspace: Any, poor: np.ndarray) -> dict[str, float]:
    """Mean q of the generated images as they came, and of the spoiled ones."""
    rows = workspace.sql("SELECT quality FROM generated ORDER BY uri").fetchall()
    q = np.array([row[0] for row in rows])
    return {name: float(q[which].mean()) for name, which in (("good", ~poor), ("poor", poor)) if which.any()}


def main() -> None:
    parser = common.arguments(
        __doc__, noise=("noisy05",), encoder="efficientnet", distances=("none", "l2@64", "lpips:alex@64"),
        quality="none", poor=0.0, training=10_000, generated=500, ks=(30, 200), seed=0,
    )  # fmt: skip
    parser.add_argument("--plots", type=Path, help="a folder for the plots")
    given = parser.parse_args()
    kit, work = common.Kit(given.kit), common.work_folder(given)
    common.remember_recall_vectors(work)
    if given.plots:
        given.plots.mkdir(parents=True, exist_ok=True)
    clean, sampled = kit("mnist_train_10k_A", given.training), kit("mnist_gen_gan", given.generated)
    noisy = kit("mnist_noisy_ood")
    images, poor = spoiled(sampled["images"], given.poor, given.seed)
    if given.quality == "known":
        registry.FAMILIES["quality"]["known"] = registry.Family(lambda *_: Known(images[poor]))
    generated = work / f"mnist-gan-{len(images)}-poor-{given.poor:g}"
    made = common.write_set(images, generated, label=sampled["labels"])
    found: dict[str, Any] = {
        "clean": len(clean["images"]), "generated_images": len(images), "of_low_quality": int(poor.sum()),
    }  # fmt: skip
    for noise in given.noise:
        digits = np.concatenate([clean["images"], noisy[noise]])
        corrupted = [int(i >= len(clean["images"])) for i in range(len(digits))]
        training = work / f"mnist-{given.training}-{noise}"
        paths = common.write_set(digits, training, corrupted=corrupted)
        ks = [min(k, len(paths)) for k in given.ks]
        for distance in given.distances:
            common.note(noise, distance)
            name = common.slug(
                "ood", training.name, given.encoder, distance, given.quality, f"{given.poor:g}"
            )
            settings = {**kit.encoder(given.encoder), "distance": distance, "quality": given.quality}
            workspace = common.workspace(work / name, [training], **settings)
            workspace.value([generated])
            for k in ks:
                figures = workspace.evaluate("ood", k=k, options=GROUP)
                found[f"{noise}, {distance}, k = {k}"] = figures["rows"]
                if given.plots:
                    plot(figures, given.plots / f"fig5-{name}-k{k}.png")
            if given.quality != "none":
                figures = workspace.evaluate("quality-weighting", k=ks[0], options=GROUP)
                found[f"{noise}, {distance}, q"] = quality_of(workspace, poor)
                found[f"{noise}, {distance}, with and without q"] = [*figures["rows"], *figures["ood_rows"]]
                if given.plots:
                    plot(figures, given.plots / f"fig8-{name}.png")
            common.show(found, given.out, quiet=True)
        most, file = max(ks), work / "recall-vectors.sqlite"
        embedded = [others.vectors(kit, given.encoder, both, file) for both in (paths, made)]
        ranked = {
            "raw nearest neighbours": others.nearest(*embedded, most),
            "random": others.drawn(len(paths), len(made), most, given.seed),
        }
        for method, scores in ranked.items():
            into = work / common.slug(method.replace(" ", "-"), training.name, given.encoder)
            other = others.imported(workspace, into, made, paths, scores)
            for k in ks:
                found[f"{noise}, {method}, k = {k}"] = other.evaluate("ood", k=k, options=GROUP)["rows"]
    common.show(found, given.out)


if __name__ == "__main__":
    main()
