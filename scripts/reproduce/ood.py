"""Criterion C3 (Fig. 5): do corrupted training images get the lowest values?

    python scripts/reproduce/ood.py KIT [--noise noisy05 pure mild02] [--training 10000] [--generated 500] [--ks 30 200]

100 corrupted digits among the clean ones, samples of a GAN. For each distance and k: AUROC with average ranks
for ties, by value and by the smallest distance to any generated image; `--quality piqe` adds Figs. 8 and 9
(with and without q).
"""

from __future__ import annotations

from typing import Any

import common
import numpy as np

from gmv_qdrant.evaluation.evidence import Group


def main() -> None:
    parser = common.arguments(
        __doc__, noise=("noisy05",), encoder="efficientnet", distances=("none", "l2@64", "lpips:alex@64"),
        quality="none", training=10_000, generated=500, ks=(30, 200),
    )  # fmt: skip
    given = parser.parse_args()
    kit, work = common.Kit(given.kit), common.work_folder(given)
    common.remember_recall_vectors(work)
    clean, made = kit("mnist_train_10k_A", given.training), kit("mnist_gen_gan", given.generated)
    noisy = kit("mnist_noisy_ood")
    generated = work / f"mnist-gan-{given.generated}"
    common.write_set(made["images"], generated, label=made["labels"])
    found: dict[str, Any] = {"clean": len(clean["images"]), "generated_images": len(made["images"])}
    for noise in given.noise:
        images = np.concatenate([clean["images"], noisy[noise]])
        training = work / f"mnist-{given.training}-{noise}"
        common.write_set(
            images, training, corrupted=[int(i >= len(clean["images"])) for i in range(len(images))]
        )
        for distance in given.distances:
            common.note(noise, distance)
            path = work / common.slug("ood", training.name, given.encoder, distance, given.quality)
            settings = {**kit.encoder(given.encoder), "distance": distance, "quality": given.quality}
            workspace = common.workspace(path, [training], **settings)
            workspace.value([generated])
            group = {"group": Group(attribute="corrupted")}
            for k in given.ks:
                figures = workspace.evaluate("ood", k=k, options=group)
                found[f"{noise}, {distance}, k = {k}"] = figures["rows"]
            if given.quality != "none":
                figures = workspace.evaluate("calibration", k=given.ks[0], options=group)
                found[f"{noise}, {distance}, with and without q"] = [*figures["rows"], *figures["ood_rows"]]
            common.show(found, given.out, quiet=True)
    common.show(found, given.out)


if __name__ == "__main__":
    main()
