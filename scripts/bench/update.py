"""What keeping credits exact costs: `update` after adding and after withdrawing 1 % of the training images, against
valuing every generated image from scratch on the same collection. One JSON document on stdout.

    TORCH_HOME=$DATA/weights/torch_home python scripts/bench/update.py --data $DATA --work /tmp/bench-update

$DATA is the folder with ``images/*.npz`` and ``weights/`` that docs/how-to/add-and-withdraw.md describes.
Both sides run one after the other in one process; `cpu_s` is processor time, which other work on the machine
disturbs less.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import runpy
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from PIL import Image

from gmv_qdrant import Workspace

TRAINING = ("cifar10_train_10k_A", "fashion_train_10k_A", "mnist_train_10k_A")
WEIGHTS = {"timm:tf_efficientnet_lite0": "weights/tf_efficientnet_lite0-fp16.pth"}
GENERATED = (
    "cifar10_gen_vae",
    "fashion_gen_pcaflow",
    "fashion_gen_cvae_weak",
    "cifar10_gen_pcaflow_weak",
    "mnist_gen_gan",
)


def write(images: np.ndarray, folder: Path, owners: list[str] | None = None) -> None:
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).convert("RGB").save(folder / f"{i:06d}.png", compress_level=1)
    if owners:
        lines = [f"{i:06d}.png,{owner}" for i, owner in enumerate(owners)]
        (folder / "metadata.csv").write_text("\n".join(["file_name,owner", *lines]) + "\n")


def gather(data: Path, names: tuple[str, ...], wanted: int) -> list[np.ndarray]:
    """Images of all sets, in turn, so that each is represented."""
    load = runpy.run_path(str(data / "load.py"))["load"]
    sets = [list(load(data / "images" / f"{name}.npz")["images"]) for name in names]
    images: list[np.ndarray] = []
    while len(images) < wanted and any(sets):
        images += [one.pop(0) for one in sets if one]
    return images[:wanted]


def timed(call: Callable[[], Any]) -> dict[str, Any]:
    gc.collect()
    wall, cpu = time.perf_counter(), sum(os.times()[:4])
    summary = call()
    return {
        "wall_s": round(time.perf_counter() - wall, 2),
        "cpu_s": round(sum(os.times()[:4]) - cpu, 2),
        **{name: value for name, value in summary.items() if name != "verb"},
    }


def from_scratch(workspace: Path, generated: Path, target: Path) -> tuple[Workspace, dict[str, Any]]:
    """A copy that has valued nothing yet, and what valuing everything takes."""
    shutil.copytree(workspace, target)
    for matrix in (target / "vectors").glob("generated-*"):
        matrix.unlink()
    with duckdb.connect(str(target / "ledger.duckdb")) as con:
        con.execute("DELETE FROM matches; DELETE FROM spare_candidates; DELETE FROM generated")
    fresh = Workspace(target)
    return fresh, timed(lambda: fresh.value([generated]))


def compare(mine: Workspace, fresh: Workspace) -> dict[str, Any]:
    """How far the credits of an updated workspace are from those of one valued from scratch."""
    a = dict(mine.credits("image").project("image, value").fetchall())
    b = dict(fresh.credits("image").project("image, value").fetchall())
    assert a.keys() == b.keys()
    difference = np.array([abs(a[image] - b[image]) for image in a])
    by_owner = [dict(one.credits("owner").project("owner, value").fetchall()) for one in (mine, fresh)]
    return {
        "largest_difference_of_an_image": float(difference.max()),
        "images_that_differ_by_more_than_1e-6": int((difference > 1e-6).sum()),
        "largest_difference_of_an_owner": max(abs(by_owner[0][o] - by_owner[1][o]) for o in by_owner[0]),
        "total": sum(a.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="An empty folder for images and workspaces.")
    parser.add_argument("-n", type=int, default=20_000)
    parser.add_argument("-m", type=int, default=2_000)
    parser.add_argument("--quantization", default="pq")
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--encoder", default="timm:tf_efficientnet_lite0")
    parser.add_argument("--distance", default="lpips:alex@64")
    options = parser.parse_args()
    work: Path = options.work
    work.mkdir(parents=True)
    one_percent = max(1, options.n // 100)
    images = gather(options.data, TRAINING, options.n)
    order = np.random.default_rng(0).permutation(len(images))
    owners = [
        "leaver" if place < one_percent else f"owner {place % 20}"
        for place in range(len(order) - one_percent)
    ]
    write([images[i] for i in order[one_percent:]], work / "training", owners)
    write([images[i] for i in order[:one_percent]], work / "new", ["newcomer"] * one_percent)
    write(gather(options.data, GENERATED, options.m), work / "generated")
    workspace = Workspace.init(
        work / "workspace",
        encoder=options.encoder,
        encoder_weights=str(options.data / WEIGHTS[options.encoder]) if options.encoder in WEIGHTS else None,
        distance=options.distance,
        quality="none",
        quantization=options.quantization,
        candidates=options.candidates,
    )
    result: dict[str, Any] = {
        "n": len(images), "m": options.m, "K": options.candidates, "quantization": options.quantization,
        "encoder": options.encoder, "distance": options.distance,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
    }  # fmt: skip

    def tell(name: str, value: Any) -> None:
        result[name] = value
        print(f"{name}: {json.dumps(value)}", file=sys.stderr, flush=True)

    tell("ingest 99 %", timed(lambda: workspace.ingest([work / "training"])))
    tell("value", timed(lambda: workspace.value([work / "generated"])))

    def quantize() -> dict[str, Any]:
        with workspace._alone() as context:
            return {"built": context.store.optimize()}

    def both(change: str, own: str) -> None:
        """``own``: the step that makes the change; it counts in the second share."""
        tell(f"{change}: update", timed(workspace.update))
        tell(f"{change}: codes anew, on neither side", timed(quantize))
        fresh, spent = from_scratch(workspace.path, work / "generated", work / f"scratch {change}")
        tell(f"{change}: from scratch", spent)
        tell(f"{change}: credits", compare(workspace, fresh))
        update, made = result[f"{change}: update"], result[f"{change}: {own}"]
        for name, seconds in (
            ("share", update),
            (f"share with {own}", {unit: update[unit] + made[unit] for unit in ("wall_s", "cpu_s")}),
        ):
            tell(
                f"{change}: {name}",
                {unit: round(seconds[unit] / spent[unit], 4) for unit in ("wall_s", "cpu_s")},
            )

    tell("add 1 %: ingest", timed(lambda: workspace.ingest([work / "new"])))
    both("add 1 %", "ingest")
    tell("withdraw 1 %: withdraw", timed(lambda: workspace.withdraw(owner="leaver")))
    both("withdraw 1 %", "withdraw")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
