"""Criterion C1 (Tables 2, 7, 9; Fig. 7): do contributors have the class of the generated image?

    python scripts/reproduce/identical_class.py KIT [--sets mnist-gan ...] [--encoders alexnet efficientnet]
    [--generated 100] [--draws 500] [--plots DIR]

rho at k = 30, 50, 100 with standard errors, for each recall encoder and distance, beside raw nearest neighbours in the
recall encoder (exact, no quantization, no re-ranking) and contributors drawn at random, all judged by the same code.
Fig. 7 draws m images again and again, from ``--draws`` generated images and No-Rerank, of all classes and of the most
frequent one.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import common
import numpy as np
import others

from gmv_qdrant import Workspace
from gmv_qdrant.evaluation.plots import plot

SETS = {
    "mnist-gan": ("mnist_train_10k_A", "mnist_gen_gan"),
    "mnist-vae": ("mnist_train_10k_A", "mnist_gen_vae"),
    "fashion-flow": ("fashion_train_10k_A", "fashion_gen_pcaflow"),
    "fashion-weak": ("fashion_train_10k_A", "fashion_gen_cvae_weak"),
    "cifar10-vae": ("cifar10_train_10k_A", "cifar10_gen_vae"),
    "cifar10-weak": ("cifar10_train_10k_A", "cifar10_gen_pcaflow_weak"),
}


KS, SIZES = (30, 50, 100), (1, 10, 30, 50)


def rho(workspace: Workspace, batch: str | None, ks: tuple[int, ...]) -> dict[str, Any]:
    found = workspace.evaluate("identical-class", batch=batch, options={"ks": ks})
    return {"rho": found["rows"], "by_class": found["by_value"]}


def spread(
    workspace: Workspace, batch: str, labels: list[str], repeats: int, k: int, plots: Path | None
) -> dict[str, Any]:
    """Fig. 7: rho over repeated draws of m generated images, of all classes and of the most frequent one."""
    found: dict[str, Any] = {}
    largest = Counter(labels).most_common(1)[0][0]
    for name, label in (("all classes", None), (f"class {largest}", largest)):
        there = len(labels) if label is None else labels.count(label)
        options = {"repeats": repeats, "sizes": tuple(m for m in SIZES if m <= there), "label": label}
        figures = workspace.evaluate("sensitivity", batch=batch, k=k, options=options)
        found[name] = figures["rows"]
        if plots:
            plot(figures, plots / f"fig7-{workspace.path.name}-{name.replace(' ', '-')}.png")
    return found


def main() -> None:
    parser = common.arguments(
        __doc__, sets=("mnist-gan",), encoders=("alexnet", "efficientnet"),
        distances=("none", "l2@64", "lpips:alex@64"), training=10_000, generated=100, draws=500,
        least_confidence=0.0, repeats=10, seed=0,
    )  # fmt: skip
    parser.add_argument("--plots", type=Path, help="a folder for the plots of Fig. 7")
    given = parser.parse_args()
    kit, work = common.Kit(given.kit), common.work_folder(given)
    common.remember_recall_vectors(work)
    if given.plots:
        given.plots.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    for name in given.sets:
        training_set, generated_set = SETS[name]
        training, everything = kit(training_set, given.training), kit(generated_set)
        allowed = np.arange(len(everything["labels"]))
        if given.least_confidence and "confidence" in everything:
            allowed = np.flatnonzero(everything["confidence"] >= given.least_confidence)
        folder = work / f"{training_set}-{given.training}"
        paths = common.write_set(training["images"], folder, label=training["labels"])
        batches, made = {}, []
        for use, count in (("rho", given.generated), ("draws", given.draws)):
            rows = allowed[common.spaced(len(allowed), count)]
            batches[use] = work / f"{name}-{len(rows)}-{given.least_confidence:g}"
            written = common.write_set(
                everything["images"][rows], batches[use], label=everything["labels"][rows]
            )
            if use == "rho":
                made, m = written, len(rows)
        ks = tuple(k for k in KS if k <= len(paths))
        found[name] = {"training_images": len(paths), "generated_images": m}
        for encoder in given.encoders:
            for distance in given.distances:
                common.note(name, encoder, distance)
                path = work / common.slug("class", training_set, str(given.training), encoder, distance)
                workspace = common.workspace(path, [folder], **kit.encoder(encoder), distance=distance)
                batch = batches["rho"].name
                workspace.value([batches["rho"]], batch=batch)
                figures = rho(workspace, batch, ks)
                figures["effective_contributors"] = workspace.effective_contributors(batch=batch)
                if distance == "none":
                    workspace.value([batches["draws"]], batch="draws")
                    labels = [row[0] for row in workspace.sql(
                        "SELECT label FROM generated WHERE batch = 'draws'").fetchall()]  # fmt: skip
                    figures["spread_of_rho_over_m"] = spread(
                        workspace, "draws", labels, given.repeats, ks[0], given.plots
                    )
                found[f"{name}, {encoder}, {distance}"] = figures
                common.show(found, given.out, quiet=True)
            common.note(name, encoder, "raw nearest neighbours")
            file = work / "recall-vectors.sqlite"
            ranked = others.nearest(
                others.vectors(kit, encoder, paths, file), others.vectors(kit, encoder, made, file), ks[-1]
            )
            raw = others.imported(workspace, work / f"raw-{name}-{encoder}", made, paths, ranked)
            found[f"{name}, {encoder}, raw nearest neighbours"] = rho(raw, None, ks)
        random = others.drawn(len(paths), len(made), ks[-1], given.seed)
        raw = others.imported(workspace, work / f"random-{name}", made, paths, random)
        found[f"{name}, random"] = rho(raw, None, ks)
    common.show(found, given.out)


if __name__ == "__main__":
    main()
