"""Criterion C1 (Tables 2, 7, 9; Fig. 7): do contributors have the class of the generated image?

    python scripts/reproduce/identical_class.py KIT [--sets mnist-gan ...] [--encoders alexnet efficientnet]
    [--generated 100]

rho at k = 30, 50, 100 with standard errors, for each recall encoder and distance, beside raw nearest neighbours in the
recall encoder (exact, no quantization, no re-ranking) and what contributors drawn at random would give.
"""

from __future__ import annotations

from typing import Any

import common

SETS = {
    "mnist-gan": ("mnist_train_10k_A", "mnist_gen_gan"),
    "mnist-vae": ("mnist_train_10k_A", "mnist_gen_vae"),
    "fashion-flow": ("fashion_train_10k_A", "fashion_gen_pcaflow"),
    "fashion-weak": ("fashion_train_10k_A", "fashion_gen_cvae_weak"),
    "cifar10-vae": ("cifar10_train_10k_A", "cifar10_gen_vae"),
    "cifar10-weak": ("cifar10_train_10k_A", "cifar10_gen_pcaflow_weak"),
}


def main() -> None:
    parser = common.arguments(
        __doc__, sets=("mnist-gan",), encoders=("alexnet", "efficientnet"),
        distances=("none", "l2@64", "lpips:alex@64"), training=10_000, generated=100, least_confidence=0.0, repeats=10,
    )  # fmt: skip
    given = parser.parse_args()
    kit, work = common.Kit(given.kit), common.work_folder(given)
    common.remember_recall_vectors(work)
    found: dict[str, Any] = {"training_images": given.training, "generated_images": given.generated}
    for name in given.sets:
        training_set, generated_set = SETS[name]
        training = kit(training_set, given.training)
        generated = kit(generated_set)
        rows = common.spaced(len(generated["labels"]), given.generated)
        if given.least_confidence and "confidence" in generated:
            sure = (generated["confidence"] >= given.least_confidence).nonzero()[0]
            rows = sure[common.spaced(len(sure), given.generated)]
        folders = [
            work / f"{training_set}-{given.training}",
            work / f"{name}-{len(rows)}-{given.least_confidence:g}",
        ]
        common.write_set(training["images"], folders[0], label=training["labels"])
        common.write_set(generated["images"][rows], folders[1], label=generated["labels"][rows])
        for encoder in given.encoders:
            for distance in given.distances:
                common.note(name, encoder, distance)
                path = work / common.slug("class", training_set, str(given.training), encoder, distance)
                workspace = common.workspace(path, folders[:1], **kit.encoder(encoder), distance=distance)
                batch = folders[1].name
                workspace.value([folders[1]], batch=batch)
                rho = workspace.evaluate("identical-class", batch=batch)
                spread = workspace.evaluate(
                    "sensitivity", batch=batch, options={"repeats": given.repeats, "sizes": (1, 10, 30, 50)}
                )
                found[f"{name}, {encoder}, {distance}"] = {
                    "rho": rho["rows"], "by_class": rho["by_value"], "spread_of_rho_over_m": spread["rows"],
                    "effective_contributors": workspace.effective_contributors(batch=batch),
                }  # fmt: skip
                common.show(found, given.out, quiet=True)
    common.show(found, given.out)


if __name__ == "__main__":
    main()
