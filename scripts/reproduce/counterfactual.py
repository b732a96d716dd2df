"""Does credit follow what a model would lose? Each rule of credit, beside generators trained again without the images.

    python scripts/reproduce/counterfactual.py KIT [--size small] [--generators vae flow local] [--work DIR]

Three generators of small images: a VAE and a class-conditional flow (an MLP that flow matching trains) of 1,000 digits,
and a denoiser in closed form that sees patches only, of 600 colour images. Each is trained (or asked) again on random
halves of its images, and without each of 50 owners, whose images are of one class; its losses on 60 images that it
generated from all images are the truth.

LDS: the rank correlation, over the halves, of minus the loss with the credit that the half's images have; a mean over
the generated images. "owner" is the same over the models without an owner. Standard errors have both sides of the
sampling, other generated images and other halves or owners; the ceiling is what a perfect prediction would reach
against losses with this much noise between seeds. The denoiser compares patches of pixels, as one of the rules does:
nothing is judged on it alone.
"""

from __future__ import annotations

from typing import Any

import common
import counterfactual_rows as rows
import counterfactual_truth as truths
import numpy as np
import torch

from gmv_qdrant.evaluation.counterfactuals import agreement, ceiling, predicted


def judged(truth: truths.Truth, credit: np.ndarray) -> dict[str, float]:
    """LDS and owners left out of one rule's credit ``(m, n)``."""
    halves = agreement(predicted(credit, truth.halves), truth.half_losses.mean(axis=1))
    owners = agreement(predicted(credit, truth.without_owner), truth.owner_losses.mean(axis=1))
    return {
        "LDS": halves.mean,
        "LDS standard error": halves.standard_error,
        "owner": owners.mean,
        "owner standard error": owners.standard_error,
        "owner totals": owners.totals,
    }


def nearness(truth: truths.Truth) -> dict[str, float]:
    """Root-mean-square distance to the nearest training image: of generated images, and of training images."""
    x, g = (of.reshape(len(of), -1) / 255 for of in (truth.images, truth.made))
    near = [np.sqrt(((one - x) ** 2).mean(axis=1)) for one in g]
    own = [np.partition(np.sqrt(((one - x) ** 2).mean(axis=1)), 1)[1] for one in x]
    return {"generated": float(np.mean([d.min() for d in near])), "training": float(np.mean(own))}


def table(found: dict[str, Any]) -> str:
    lines = [f"{'credit':58} {'LDS':>7} {'±':>5} {'owner':>7} {'±':>5}"]
    for name, row in sorted(found["rows"].items(), key=lambda item: -item[1]["LDS"]):
        values = [row[key] for key in ("LDS", "LDS standard error", "owner", "owner standard error")]
        lines.append(f"{name:58} {values[0]:7.3f} {values[1]:5.3f} {values[2]:7.3f} {values[3]:5.3f}")
    return "\n".join(lines)


def main() -> None:
    parser = common.arguments(__doc__, generators=("vae", "flow", "local"), size="full", probes=400)
    given = parser.parse_args()
    torch.set_num_threads(1)  # more take longer: the matrices are small
    kit, work = common.Kit(given.kit), common.work_folder(given)
    found: dict[str, Any] = {}
    for name in given.generators:
        size, folder = truths.SIZES[given.size][name], work / f"{name}-{given.size}"
        truth = truths.truth(kit, name, size, folder)
        mine: dict[str, Any] = {
            "ceiling": ceiling(truth.half_losses), "owner ceiling": ceiling(truth.owner_losses),
            "nearest": nearness(truth), "images": len(truth.images), "generated": len(truth.made),
            "halves": len(truth.halves), "owners": len(truth.without_owner), "rows": {},
        }  # fmt: skip
        for rule, credit in rows.Rows(kit, name, truth, folder, given.probes):
            mine["rows"][rule] = judged(truth, credit)
            common.show({**found, name: mine}, given.out, quiet=True)
        found[name] = mine
        common.note(name, "ceiling", mine["ceiling"], "owner ceiling", mine["owner ceiling"])
        print(table(mine), flush=True)
    common.show(found, given.out, quiet=True)


if __name__ == "__main__":
    main()
