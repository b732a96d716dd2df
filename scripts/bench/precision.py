"""fp32 and bf16 side by side: milliseconds an image, and how far distances move.

    python scripts/bench/precision.py --images FOLDER_OR_NPZ --encoder timm:tf_efficientnet_lite0 --weights FILE
    python scripts/bench/precision.py --images FOLDER_OR_NPZ --distance lpips:alex@64

Both sides in one process, best of ``--repeat``. Prints one JSON document. ``kept_order`` is the rank correlation of
all pairwise distances; ``same_nearest`` the share of images whose ten nearest are the same set.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.stats import spearmanr

from gmv_qdrant.encoders import Encoder, Runtime, distances, load_distance, load_encoder


def read_images(source: Path, count: int) -> list[Image.Image]:
    """The first images of a folder, or of the array ``images`` in an .npz file."""
    if source.is_dir():
        paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in {".png", ".jpg", ".jpeg"})
        return [Image.open(path).convert("RGB") for path in paths[:count]]
    with np.load(source) as archive:
        return [Image.fromarray(array).convert("RGB") for array in archive["images"][:count]]


def run(encoder: Encoder, images: list[Image.Image], batch: int, repeat: int) -> tuple[float, np.ndarray]:
    """Best milliseconds an image of the forward pass, and all pairwise distances."""
    prepared = torch.stack([encoder.prepare(image) for image in images])
    seconds = []
    for _ in range(repeat):
        started = time.perf_counter()
        vectors = np.concatenate([encoder.encode(part) for part in torch.split(prepared, batch)])
        seconds.append(time.perf_counter() - started)
    table = np.stack([distances(encoder.metric, vector, vectors) for vector in vectors])
    return 1000 * min(seconds) / len(images), table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--encoder")
    parser.add_argument("--weights")
    parser.add_argument("--distance")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()

    images = read_images(options.images, options.count)
    sides: dict[str, tuple[float, np.ndarray]] = {}
    for precision in ("fp32", "bf16"):
        runtime = Runtime(device=options.device, precision=precision)
        if options.distance:
            encoder = load_distance(options.distance, runtime=runtime)
        else:
            encoder = load_encoder(options.encoder or "clip", weights=options.weights, runtime=runtime)
        sides[precision] = run(encoder, images, options.batch, options.repeat)
    full, brief = (sides[precision][1] for precision in ("fp32", "bf16"))
    upper = np.triu_indices(len(images), k=1)
    nearest = [np.argsort(table, axis=1)[:, 1:11] for table in (full, brief)]
    same = [set(a) == set(b) for a, b in zip(*nearest, strict=True)]
    report = {
        "name": encoder.identity.name,
        "images": len(images),
        "threads": torch.get_num_threads(),
        "milliseconds_an_image": {precision: round(side[0], 3) for precision, side in sides.items()},
        "times_faster": round(sides["fp32"][0] / sides["bf16"][0], 2),
        "mean_distance": float(full[upper].mean()),
        "largest_change_of_a_distance": float(np.abs(full - brief).max()),
        "kept_order": float(spearmanr(full[upper], brief[upper]).statistic),
        "same_nearest": float(np.mean(same)),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
