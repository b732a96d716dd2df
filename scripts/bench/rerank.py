"""Re-rank K candidates by LPIPS at 64 px: the package's pairwise calls, batched pairs, and stored vectors.

    TORCH_HOME=... python scripts/bench/rerank.py --images FOLDER_OR_NPZ [--candidates 200] [--repeat 3]

One generated image against K training images, all sides in one process, best of ``--repeat``. Prints one JSON
document: seconds, ratios, and the largest difference of a distance.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from common import Clock, read_images, seconds

from gmv_qdrant.method import distances
from gmv_qdrant.models.devices import Runtime
from gmv_qdrant.models.registry import load_distance


def best(run: Callable[[], np.ndarray], repeat: int) -> tuple[Clock, np.ndarray]:
    """The least wall and processor seconds, and what ``run`` gave."""
    results: list[np.ndarray] = []
    clocks = [seconds(lambda: results.append(run())) for _ in range(repeat)]
    return {name: min(clock[name] for clock in clocks) for name in ("wall", "cpu")}, results[-1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--size", type=int, default=64)
    options = parser.parse_args()

    encoder = load_distance(f"lpips:alex@{options.size}", runtime=Runtime(device="cpu"))
    images = read_images(options.images, options.candidates + 1)
    prepared = torch.stack([encoder.prepare(image) for image in images])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lpips

        model = lpips.LPIPS(net="alex", verbose=False)
    tensors = prepared.float() / 127.5 - 1.0
    query, rest = tensors[:1], tensors[1:]

    def pairwise() -> np.ndarray:
        with torch.inference_mode():
            return np.array([model(query, candidate[None]).item() for candidate in rest])

    def batched() -> np.ndarray:
        with torch.inference_mode():
            parts = [model(query.expand_as(part), part).flatten() for part in rest.split(50)]
            return torch.cat(parts).numpy()

    with TemporaryDirectory() as folder:
        np.save(Path(folder) / "rows.npy", encoder.storage.pack(encoder.encode(prepared[1:])))
        rows = np.load(Path(folder) / "rows.npy", mmap_mode="r")
        candidates = np.random.default_rng(0).permutation(len(rows))
        back = np.argsort(candidates)

        def stored() -> np.ndarray:
            """What valuing does: one forward pass, K gathered rows, exact distances."""
            vector = encoder.storage.unpack(encoder.storage.pack(encoder.encode(prepared[:1])))[0]
            return distances(encoder.metric, vector, encoder.storage.unpack(rows[candidates]))[back]

        sides = {name: best(run, options.repeat) for name, run in (("stored", stored), ("batched", batched))}
        sides["pairwise"] = best(pairwise, options.repeat)
    mine = sides["stored"]
    report = {
        "candidates": len(rest),
        "size": options.size,
        "dim": encoder.dim,
        "threads": torch.get_num_threads(),
        "seconds": {name: clock for name, (clock, _) in sides.items()},
        "times_faster_than": {
            name: {clock: sides[name][0][clock] / mine[0][clock] for clock in ("wall", "cpu")}
            for name in ("pairwise", "batched")
        },
        "largest_difference": float(np.abs(mine[1] - sides["pairwise"][1]).max()),
        "same_order": bool((np.argsort(mine[1])[:30] == np.argsort(sides["pairwise"][1])[:30]).all()),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
