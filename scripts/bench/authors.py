"""The authors' way against ours on the same images: IVF-PQ by faiss, then LPIPS pair by pair, both images read again.

    TORCH_HOME=... python scripts/bench/authors.py --training FOLDER_OR_NPZ --generated FOLDER_OR_NPZ [--pairs 3]

Both sides use the same encoder, the same K and the same files. Theirs embeds a generated image, searches, and then,
for each of the K candidates, reads and prepares both images and calls ``lpips.LPIPS()``: section 3.1, coded plainly.
Only ``--pairs`` generated images are timed, for it is slow. Ours is `Workspace.value` of all of them. Loading networks
and embedding the training images aren't counted on either side, as both do it once.
Prints one JSON document.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import arguments, end_to_end, machine, note, read_images, show, write_images
from PIL import Image

from gmv_qdrant import Workspace
from gmv_qdrant.models.registry import load_encoder


class Authors:
    """faiss and the package's pairwise calls."""

    def __init__(self, training: list[Path], options: argparse.Namespace) -> None:
        import faiss

        faiss.omp_set_num_threads(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import lpips

            self.model = lpips.LPIPS(net="alex", verbose=False)
        self.size: int = options.size
        self.training = training
        self.encoder = load_encoder(options.encoder, weights=options.weights)
        vectors = np.concatenate([self.embed(path) for path in training])
        cells = max(1, int(np.sqrt(len(vectors))))
        coarse = faiss.IndexFlatL2(vectors.shape[1])
        self.index = faiss.IndexIVFPQ(coarse, vectors.shape[1], cells, 16, 8)
        self.index.train(vectors)
        self.index.add(vectors)
        self.index.nprobe = cells  # all cells, so that K candidates are found

    def embed(self, path: Path) -> np.ndarray:
        with Image.open(path) as image:
            return self.encoder.encode(self.encoder.prepare(image.convert("RGB"))[None])

    def tensor(self, path: Path) -> torch.Tensor:
        with Image.open(path) as image:
            small = image.convert("RGB").resize((self.size, self.size), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(small)).permute(2, 0, 1)[None].float() / 127.5 - 1.0

    def value(self, path: Path, k: int) -> np.ndarray:
        """LPIPS distances float64 ``(k,)`` to the candidates, in the order that faiss gives them."""
        found = self.index.search(self.embed(path), k)[1][0]
        with torch.inference_mode():
            return np.array(
                [self.model(self.tensor(path), self.tensor(self.training[i])).item() for i in found if i >= 0]
            )


def main() -> None:
    parser = arguments(__doc__, 2_000, 100)
    parser.add_argument(
        "--pairs", type=int, default=3, help="generated images that the slow side is timed on"
    )
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--encoder", default="timm:tf_efficientnet_lite0")
    parser.add_argument("--weights")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    work = Path(tempfile.mkdtemp(prefix="gmv-authors-"))
    folders = {
        "training": write_images(read_images(options.training, options.n), work / "training"),
        "generated": write_images(read_images(options.generated, options.m), work / "generated"),
    }
    paths = {name: sorted(folder.glob("*.png")) for name, folder in folders.items()}
    authors = Authors(paths["training"], options)
    note("faiss index built")
    workspace = Workspace.init(
        work / "workspace", encoder=options.encoder, encoder_weights=options.weights,
        distance=f"lpips:alex@{options.size}", quality="none", candidates=options.candidates,
    )  # fmt: skip
    workspace.ingest([folders["training"]])
    note("ingested")
    theirs, distances = [], {}
    for path in paths["generated"][: options.pairs]:
        started = time.perf_counter(), time.process_time()
        distances[str(path)] = authors.value(path, options.candidates)
        theirs.append((time.perf_counter() - started[0], time.process_time() - started[1]))
        note("theirs", theirs[-1])
    whole, phases = end_to_end(workspace, "value", folders["generated"])
    ours, cpu = (whole[clock] / len(paths["generated"]) for clock in ("wall", "cpu"))
    their_wall, their_cpu = (min(one[clock] for one in theirs) for clock in (0, 1))
    nearest = dict(
        workspace.sql(
            "SELECT uri, min(distance) FROM matches JOIN generated USING (generated_key) GROUP BY uri"
        ).fetchall()
    )
    figures: dict[str, Any] = {
        "machine": machine(),
        "training": len(paths["training"]),
        "generated": len(paths["generated"]),
        "candidates": options.candidates,
        "seconds_an_image": {
            "authors": {"wall": their_wall, "cpu": their_cpu},
            "ours": {"wall": ours, "cpu": cpu},
        },
        "times_faster": {"wall": their_wall / ours, "cpu": their_cpu / cpu},
        "phases": phases,
        "nearest_distance": {
            Path(path).name: [float(found.min()), nearest[path]] for path, found in distances.items()
        },
    }
    shutil.rmtree(work)
    show(figures, options.out)


if __name__ == "__main__":
    main()
