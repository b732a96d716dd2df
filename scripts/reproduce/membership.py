"""App. D (Table 6): are images that a generator was trained on worth more than images it never saw?

    python scripts/reproduce/membership.py KIT [--distances ...] [--views none] [--generated 250]

5,000 CIFAR-10 airplanes, of which one half (v2) trained two generators: a VAE that overfits on purpose, and a flow that
generalises and doesn't copy. The test must see the first and nothing in the second, with the paper's formula and
calibrated; calibration sees neither. For the VAE the seeds of each sample are known, too.
"""

from __future__ import annotations

from typing import Any

import common
import numpy as np

from gmv_qdrant.ledger.selection import Selection

GENERATORS = {"overfit": "airplane_gen_vae", "generalises": "airplane_gen_unetflow"}


def main() -> None:
    parser = common.arguments(
        __doc__, encoder="efficientnet", distances=("none", "l2@64", "l2-norm@64", "lpips:alex@64"), views=("none",),
        training=5_000, generated=250, probes=500,
    )  # fmt: skip
    given = parser.parse_args()
    kit, work = common.Kit(given.kit), common.work_folder(given)
    common.remember_recall_vectors(work)
    planes = kit("airplane_v1v2", given.training)
    training = work / f"airplanes-{given.training}"
    paths = common.write_set(planes["images"], training, label=["airplane"] * len(planes["images"]),
                             v2=planes["is_v2"].astype(int))  # fmt: skip
    of_v2 = {
        int(row): paths[i].name for i, row in enumerate(np.cumsum(planes["is_v2"]) - 1) if planes["is_v2"][i]
    }
    found: dict[str, Any] = {"training_images": len(paths), "v2": int(planes["is_v2"].sum())}
    for name, file in GENERATORS.items():
        made = kit(file, given.generated)
        columns = {}
        if "seed_i" in made and given.training >= 5_000:
            columns = {
                "parent": [of_v2[i] for i in made["seed_i"]],
                "parent2": [of_v2[i] for i in made["seed_j"]],
            }
        common.write_set(made["images"], work / f"airplanes-{name}-{given.generated}", **columns)
    for distance in given.distances:
        for views in given.views:
            common.note(distance, views)
            path = work / common.slug("membership", training.name, given.encoder, distance, views)
            settings = {**kit.encoder(given.encoder), "distance": distance, "views": views}
            workspace = common.workspace(path, [training], **settings)
            for name in GENERATORS:
                workspace.value([work / f"airplanes-{name}-{given.generated}"], batch=name)
            fitted = workspace.calibrate(probes=given.probes)
            mine: dict[str, Any] = {"temperature": fitted["temperature"]}
            for name in GENERATORS:
                for calibration in (None, "default"):
                    figures = workspace.evaluate(
                        "membership",
                        batch=name,
                        calibration=calibration,
                        options={"group": Selection(attribute="v2")},
                    )
                    said = {part: figures[part] for part in ("rows", "test", "credit", "nearest_test")}
                    mine[f"{name}, {'calibrated' if calibration else 'paper'}"] = said
            if given.training >= 5_000:
                seeds = workspace.evaluate(
                    "known-parents", batch="overfit", options={"calibrations": ("default",)}
                )
                mine["seeds of the overfit generator"] = seeds["rows"]
            found[f"{distance}, views {views}"] = mine
            common.show(found, given.out, quiet=True)
    common.show(found, given.out)


if __name__ == "__main__":
    main()
