"""fp32 and bf16 side by side: milliseconds an image, how far distances move, and how far values do.

    python scripts/bench/precision.py --images FOLDER_OR_NPZ --encoder timm:tf_efficientnet_lite0 --weights FILE
    python scripts/bench/precision.py --images FOLDER_OR_NPZ --distance lpips:alex@64
    python scripts/bench/precision.py --training FOLDER_OR_NPZ --generated FOLDER_OR_NPZ --encoder E --distance D

The first two compare one network on the same images, best of ``--repeat``; ``kept_order`` is the rank correlation of
all pairwise distances, ``same_nearest`` the share of images whose ten nearest are the same set. The third runs all of
`ingest` and `value` once in each precision and compares what comes out. Both sides in one process; prints one JSON
document.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Clock, end_to_end, machine, note, read_images, seconds, show, write_images
from PIL import Image
from scipy.stats import pearsonr, spearmanr

from gmv_qdrant import Workspace
from gmv_qdrant.method import distances
from gmv_qdrant.models.base import Encoder
from gmv_qdrant.models.devices import Runtime
from gmv_qdrant.models.registry import load_distance, load_encoder

PRECISIONS = ("fp32", "bf16")


def run(encoder: Encoder, images: list[Image.Image], batch: int, repeat: int) -> tuple[Clock, np.ndarray]:
    """Best milliseconds an image of the forward pass, and all pairwise distances."""
    prepared = torch.stack([encoder.prepare(image) for image in images])
    parts: list[np.ndarray] = []

    def forward() -> None:
        parts[:] = [encoder.encode(part) for part in torch.split(prepared, batch)]

    clocks = [seconds(forward) for _ in range(repeat)]
    vectors = np.concatenate(parts)
    table = np.stack([distances(encoder.metric, vector, vectors) for vector in vectors])
    return {name: 1000 * min(c[name] for c in clocks) / len(images) for name in ("wall", "cpu")}, table


def of_distances(options: argparse.Namespace) -> dict[str, Any]:
    """One network on the same images."""
    images = read_images(options.images, options.count)
    sides: dict[str, tuple[Clock, np.ndarray]] = {}
    for precision in PRECISIONS:
        runtime = Runtime(device=options.device, precision=precision)
        if options.distance:
            encoder = load_distance(options.distance, runtime=runtime)
        else:
            encoder = load_encoder(options.encoder, weights=options.weights, runtime=runtime)
        sides[precision] = run(encoder, images, options.batch, options.repeat)
    full, brief = (sides[precision][1] for precision in PRECISIONS)
    upper = np.triu_indices(len(images), k=1)
    nearest = [np.argsort(table, axis=1)[:, 1:11] for table in (full, brief)]
    same = [set(a) == set(b) for a, b in zip(*nearest, strict=True)]
    return {
        "name": encoder.identity.name,
        "images": len(images),
        "milliseconds_an_image": {precision: side[0] for precision, side in sides.items()},
        "times_faster": {
            clock: sides["fp32"][0][clock] / sides["bf16"][0][clock] for clock in ("wall", "cpu")
        },
        "mean_distance": float(full[upper].mean()),
        "largest_change_of_a_distance": float(np.abs(full - brief).max()),
        "kept_order": float(spearmanr(full[upper], brief[upper]).statistic),
        "same_nearest": float(np.mean(same)),
    }


def of_values(options: argparse.Namespace) -> dict[str, Any]:
    """`ingest` of images by several owners, and `value`, once in each precision."""
    work = Path(tempfile.mkdtemp(prefix="gmv-precision-"))
    training = read_images(options.training, options.count)
    owners = [
        write_images(training[owner :: options.owners], work / f"owner {owner}")
        for owner in range(options.owners)
    ]
    generated = write_images(read_images(options.generated, options.generated_count), work / "generated")
    sides = {precision: _value(work, precision, owners, generated, options) for precision in PRECISIONS}
    shutil.rmtree(work)
    full, brief = (sides[precision] for precision in PRECISIONS)
    uris = sorted(full["images"])
    values = [np.array([side["images"][uri] for uri in uris]) for side in (full, brief)]
    shares = [np.array([side["owners"][owner.name] for owner in owners]) for side in (full, brief)]
    tops = [{uris[i] for i in np.argsort(-of_side)[:100]} for of_side in values]
    first = [
        len(full["nearest"][uri] & brief["nearest"][uri]) / len(full["nearest"][uri])
        for uri in full["nearest"]
    ]
    return {
        "encoder": options.encoder,
        "distance": options.distance,
        "quality": options.quality,
        "training": len(training),
        "generated": len(full["nearest"]),
        "k": options.k,
        "seconds": {precision: side["seconds"] for precision, side in sides.items()},
        "times_faster": {
            clock: full["seconds"][clock] / brief["seconds"][clock] for clock in ("wall", "cpu")
        },
        "contributors_kept": float(np.mean(first)),
        "values_of_images": {
            "correlation": float(pearsonr(*values).statistic),
            "rank_correlation": float(spearmanr(*values).statistic),
            "largest_change": float(np.abs(values[0] - values[1]).max()),
            "mean_value": float(values[0].mean()),
            "top_100_kept": len(tops[0] & tops[1]) / len(tops[0]),
        },
        "shares_of_owners": {
            "correlation": float(pearsonr(*shares).statistic),
            "largest_change": float(np.abs(shares[0] - shares[1]).max()),
            "mean_share": float(shares[0].mean()),
        },
    }


def _value(
    work: Path, precision: str, owners: list[Path], generated: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Values by image, shares by owner, the k contributors of each generated image, and seconds."""
    root = work / precision
    Workspace.init(
        root, encoder=options.encoder, encoder_weights=options.weights, distance=options.distance,
        quality=options.quality,
    )  # fmt: skip
    workspace = Workspace(root, device=options.device, precision=precision)
    for owner in owners:
        workspace.ingest([owner], owner=owner.name)
    note(precision, "ingested")
    clock, _ = end_to_end(workspace, "value", generated)
    k = options.k
    nearest: dict[str, set[str]] = {}
    rows = workspace.sql(f"""SELECT g.uri, n.uri FROM matches JOIN generated g USING (generated_key)
                             JOIN images n USING (training_key) WHERE rank <= {k}""").fetchall()
    for image, contributor in rows:
        nearest.setdefault(image, set()).add(contributor)
    return {
        "images": dict(workspace.sql(f"SELECT uri, value FROM image_values(k := {k})").fetchall()),
        "owners": dict(workspace.sql(f"SELECT name, share FROM credits('owner', k := {k})").fetchall()),
        "nearest": nearest,
        "seconds": clock,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path)
    parser.add_argument("--training", type=Path)
    parser.add_argument("--generated", type=Path)
    parser.add_argument("--encoder", default="clip")
    parser.add_argument("--weights")
    parser.add_argument("--distance", help="with --images: compare this one, and not the encoder")
    parser.add_argument("--quality", default="none")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--count", type=int, default=64, help="images, or training images")
    parser.add_argument("--generated-count", type=int, default=100)
    parser.add_argument("--owners", type=int, default=10)
    parser.add_argument("-k", type=int, default=30)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if bool(options.images) == bool(options.training and options.generated):
        parser.error("give --images, or --training and --generated")
    options.distance = options.distance or ("none" if options.training else None)
    found = of_distances(options) if options.images else of_values(options)
    show({"machine": machine(), **found}, options.out)


if __name__ == "__main__":
    main()
