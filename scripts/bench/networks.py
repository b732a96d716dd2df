"""`ingest` and `value`, end to end, against the bare forward passes of the same networks; and where the time goes.

    python scripts/bench/networks.py [--turns 5] [--device cuda] [--small]

Each turn has images of its own, on both sides. The bare side has its images decoded, resized and stacked beforehand,
runs at the batch size that is fastest, and only counts the networks. Quantizing is told apart: it isn't paid for each
image.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import (
    Row,
    count,
    counted,
    images,
    networks,
    note,
    parser,
    ratios,
    row,
    show,
    workspace,
    write_images,
)
from PIL import Image

from gmv_qdrant import Workspace
from gmv_qdrant.models.base import Encoder
from gmv_qdrant.models.devices import Runtime
from gmv_qdrant.models.registry import load_distance, load_encoder
from gmv_qdrant.pipeline.batches import Forward
from gmv_qdrant.vectors.embedded.store import EdgeStore
from gmv_qdrant.vectors.matrices import Matrix

VERBS = ("ingest", "value")
BATCHES = (1, 2, 4, 8, 16, 32, 64)


class Bare:
    """The networks alone, on tensors that are ready."""

    def __init__(self, settings: dict[str, Any], device: str, sample: list[Image.Image]) -> None:
        runtime = Runtime(device=device)
        encoder = load_encoder(settings["encoder"], weights=settings.get("encoder_weights"), runtime=runtime)
        self._networks: list[Encoder] = [encoder, load_distance(settings["distance"], runtime=runtime)]
        self._sizes = [self._fastest(network, sample) for network in self._networks]

    def _fastest(self, network: Encoder, sample: list[Image.Image]) -> int:
        tensors = torch.stack([network.prepare(image) for image in sample])
        network.encode(tensors[:2])

        def seconds(size: int) -> float:
            started = time.perf_counter()
            for part in tensors.split(size):
                network.encode(part)
            return time.perf_counter() - started

        return min(BATCHES, key=seconds)

    def seconds(self, pictures: list[Image.Image]) -> float:
        total = 0.0
        for network, size in zip(self._networks, self._sizes, strict=True):
            tensors = torch.stack([network.prepare(image) for image in pictures])
            started = time.perf_counter()
            for part in tensors.split(size):
                network.encode(part)
            total += time.perf_counter() - started
        return total


def measure(
    mine: Workspace, bare: Bare, pictures: dict[str, list[list[Image.Image]]], work: Path
) -> list[Row]:
    """Each turn's new images to the workspace; rows of both verbs, and of their phases."""
    rows = []
    for verb in VERBS:
        alone, whole, phases = [], [], []
        for turn, some in enumerate(pictures[verb]):
            folder = write_images(some, work / verb / str(turn))
            alone.append(bare.seconds(some))
            spent = getattr(mine, verb)([folder])["seconds"]
            whole.append(spent["total"] - spent.get("optimize", 0.0))
            phases.append({name: 1000 * seconds / len(some) for name, seconds in spent.items()})
            note(verb, turn, alone[-1], whole[-1])
        rows.append(row(f"{verb}: end to end / bare forward passes", ratios(whole, alone), aim="<= 1.10"))
        for name in sorted({name for one in phases for name in one}):
            rows.append(row(f"{verb}: {name}", [one.get(name, 0.0) for one in phases], "ms an image"))
    return rows


def counts(root: Path, n: int, m: int) -> list[Row]:
    """What no machine changes: passes, queries, rows of the matrix, bytes of them."""
    training, generated = (
        write_images(images(Path("none"), name, 0, many), root / name) for name, many in (("a", n), ("bb", m))
    )
    mine = workspace(root / "ws", "cpu", networks(Path("none"), small=True), candidates=50)

    def passes(_: Forward, tensors: torch.Tensor) -> int:
        return len(tensors)

    def gathered(matrix: Matrix, keys: Any) -> int:
        return len(keys) if matrix.path.name == "training-rerank" else 0

    rows = []
    with counted(Forward, "__call__", passes) as through:
        mine.ingest([training])
    rows.append(count("ingest: images through each of two networks", sum(through), 2 * n))
    with (
        counted(Forward, "__call__", passes) as through,
        counted(EdgeStore, "search", lambda _, queries, *__: len(queries)) as asked,
        counted(Matrix, "read", gathered) as read,
    ):
        mine.value([generated], batch="first")
    rows += [
        count("value: images through each of two networks", sum(through), 2 * m),
        count("value: queries to the store", sum(asked), m),
        count("value: rows of the matrix that are read", sum(read), n),
        count("value: bytes of them", sum(read) * 3 * 16 * 16, n * 3 * 16 * 16),
    ]
    with counted(Forward, "__call__", passes) as through:
        mine.value([generated], batch="second")
        mine.ingest([training])
    rows.append(count("known images: through networks", sum(through), 0))
    return rows


def main() -> None:
    options = parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if options.small:
            show(counts(work, 60, 12))
            return
        settings = networks(options.kit, small=False)
        sizes = {"ingest": ("cifar10_train_10k_A", 800), "value": ("cifar10_gen_vae", 200)}
        pictures = {
            verb: [images(options.kit, name, each * turn, each * (turn + 1)) for turn in range(options.turns)]
            for verb, (name, each) in sizes.items()
        }
        bare = Bare(settings, options.device, pictures["ingest"][0][:64])
        mine = workspace(work / "ws", options.device, settings)
        mine.ingest([write_images(images(options.kit, "cifar10_train_10k_A", 9_900, 10_000), work / "first")])
        show(measure(mine, bare, pictures, work))


if __name__ == "__main__":
    main()
