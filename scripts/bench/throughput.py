"""`ingest` and `value`, end to end, against the bare forward passes of the same networks at their best batch size.

    python scripts/bench/throughput.py --training FOLDER_OR_NPZ --generated FOLDER_OR_NPZ [--encoder E --weights FILE]
    python scripts/bench/throughput.py --training ... --generated ... -n 48 -m 48 --random-weights FOLDER

``--random-weights`` writes the paper's three networks (CLIP, DreamSim, MANIQA) in full size with random weights into
FOLDER, and runs on them: an option of this benchmark only, where real weights can't be had; values mean nothing.

The bare side has its images decoded, resized and stacked beforehand, and only counts the networks. Both sides in one
process, taking turns ``--repeat`` times; the best of each counts. Prints one JSON document: milliseconds an image by
the clock and by the processor, their ratios, and where the end-to-end time went (phases overlap).
"""

from __future__ import annotations

import argparse
import gc
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import (
    Clock,
    add_networks,
    arguments,
    end_to_end,
    machine,
    note,
    read_images,
    seconds,
    show,
    write_images,
)
from PIL import Image

from gmv_qdrant import Workspace
from gmv_qdrant.models.base import Encoder
from gmv_qdrant.models.devices import Runtime
from gmv_qdrant.models.registry import load_distance, load_encoder, load_quality


class Bare:
    """The networks alone, on tensors that are ready."""

    def __init__(self, options: argparse.Namespace) -> None:
        runtime = Runtime(
            device=options.device, precision=options.precision, cache_dir=options.random_weights
        )
        self.batches: list[int] = options.batches
        self.networks: dict[str, Encoder] = {
            "recall": load_encoder(options.encoder, weights=options.weights, runtime=runtime)
        }
        if options.distance != "none":
            self.networks["re-rank"] = load_distance(options.distance, runtime=runtime)
        self.quality = load_quality(options.quality, runtime=runtime)
        self.best: dict[str, int] = {}

    def prepare(self, images: list[Image.Image]) -> dict[str, torch.Tensor]:
        return {
            name: torch.stack([encoder.prepare(image) for image in images])
            for name, encoder in self.networks.items()
        }

    def choose(self, tensors: dict[str, torch.Tensor]) -> None:
        """The batch size that each network is fastest at."""
        for name, encoder in self.networks.items():
            some = tensors[name][: max(self.batches)]
            encoder.encode(some[:2])
            tried = {size: self._cpu(encoder, some, size) for size in self.batches if size <= len(some)}
            self.best[name] = min(tried, key=lambda size: tried[size])

    @staticmethod
    def _cpu(encoder: Encoder, tensors: torch.Tensor, size: int) -> float:
        """Processor seconds, which other work on the machine disturbs less; on a GPU, those by the clock."""
        clock = "wall" if torch.cuda.is_available() else "cpu"
        return min(seconds(lambda: [encoder.encode(p) for p in tensors.split(size)])[clock] for _ in range(2))

    def run(self, tensors: dict[str, torch.Tensor], images: list[Image.Image] | None) -> Clock:
        def forward() -> None:
            for name, encoder in self.networks.items():
                for part in tensors[name].split(self.best[name]):
                    encoder.encode(part)
            for image in images or []:
                if self.quality:
                    self.quality.score(image)

        return seconds(forward)


def main() -> None:
    parser = arguments(__doc__, 512, 256)
    add_networks(parser)
    parser.add_argument("--quantization", default="pq")
    parser.add_argument("--rerank", default="local")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8, 16, 32, 64])
    parser.add_argument("--random-weights", type=Path, metavar="FOLDER", help="for speed only, see above")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    figures: dict[str, Any] = {
        "machine": machine(),
        **{
            name: getattr(options, name) for name in ("encoder", "distance", "quality", "precision", "rerank")
        },
    }
    if options.random_weights:
        from random_weights import seed

        figures["weights"] = "random"
        seed(options.random_weights)
    training, generated = read_images(options.training, options.n), read_images(options.generated, options.m)
    figures |= {"training": len(training), "generated": len(generated)}
    work = Path(tempfile.mkdtemp(prefix="gmv-throughput-"))
    folders = {
        "ingest": write_images(training, work / "training"),
        "value": write_images(generated, work / "generated"),
    }
    bare = Bare(options)
    tensors = {"ingest": bare.prepare(training), "value": bare.prepare(generated)}
    bare.choose(tensors["ingest"])
    figures["best_batch"] = bare.best
    runs: dict[str, list[tuple[Clock, Clock, Clock]]] = {"ingest": [], "value": []}
    for turn in range(options.repeat):
        root = work / f"workspace {turn}"
        Workspace.init(
            root, encoder=options.encoder, encoder_weights=options.weights, distance=options.distance,
            quality=options.quality, quantization=options.quantization, rerank=options.rerank,
        )  # fmt: skip
        workspace = Workspace(
            root, device=options.device, precision=options.precision, cache_dir=options.random_weights
        )
        for verb, images in (("ingest", None), ("value", generated)):
            gc.collect()
            alone, (whole, phases) = (
                bare.run(tensors[verb], images),
                end_to_end(workspace, verb, folders[verb]),
            )
            runs[verb].append((alone, whole, phases))
            note(verb, turn, "bare", alone, "end to end", whole)
    for verb, count in (("ingest", len(training)), ("value", len(generated))):
        alone, whole = (
            {clock: min(run[side][clock] for run in runs[verb]) for clock in ("wall", "cpu")}
            for side in (0, 1)
        )
        phases = min(runs[verb], key=lambda run: run[1]["wall"])[2]
        figures[verb] = {
            "bare_ms": {clock: 1000 * value / count for clock, value in alone.items()},
            "end_to_end_ms": {clock: 1000 * value / count for clock, value in whole.items()},
            "times_the_bare_passes": {clock: whole[clock] / alone[clock] for clock in alone},
            "each_turn": [run[1]["wall"] / run[0]["wall"] for run in runs[verb]],
            "phases_ms": {name: 1000 * value / count for name, value in phases.items()},
        }
    shutil.rmtree(work)
    show(figures, options.out)


if __name__ == "__main__":
    main()
