"""Re-ranking on a device: the matrix that stays there, sent block by block, and the CPU; the same distances.

    python scripts/bench/gpu.py --device cuda [-n 100000] [--dim 1792] [--small]

Random DreamSim-sized vectors, K = 200 for each of 512 images. ``networks.py --device cuda`` measures whole verbs.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from common import Row, count, in_turns, parser, row, show

from gmv_qdrant.models.base import Storage
from gmv_qdrant.pipeline.matching import Matcher
from gmv_qdrant.vectors.device_rows import DeviceRows
from gmv_qdrant.vectors.matrices import Matrix

IMAGES, K = 512, 200


class Rows:
    """The training vectors that `Matcher.distances` asks for."""

    def __init__(self, rows: DeviceRows) -> None:
        self.read = rows.read


def main() -> None:
    made = parser(__doc__)
    made.add_argument("-n", type=int, default=100_000)
    made.add_argument("--dim", type=int, default=1_792)
    options = made.parse_args()
    if options.small:
        options.n, options.dim, options.turns = 2_000, 32, 1
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        matrix = Matrix(Path(folder) / "rows", options.dim, Storage("float16"))
        for start in range(0, options.n, 10_000):
            keys = np.arange(start, min(start + 10_000, options.n))
            matrix.write(keys, random.normal(size=(len(keys), options.dim)).astype(np.float32))
        queries = random.normal(size=(IMAGES, 1, options.dim)).astype(np.float32)
        keys, images = random.integers(0, options.n, IMAGES * K), np.repeat(np.arange(IMAGES), K)

        def side(device: str, room: int | None) -> Matcher:
            rows = Rows(DeviceRows(matrix, device, room))
            return Matcher(None, rows, "cosine", candidates=K, spare=0, device=device)  # type: ignore[arg-type]

        sides = {
            "cpu": side("cpu", None),
            f"{options.device}, matrix stays there": side(options.device, 1 << 40 if options.small else None),
            f"{options.device}, sent block by block": side(options.device, 0),
        }
        found = {name: one.distances(keys, images, queries) for name, one in sides.items()}
        exact = found["cpu"]
        rows: list[Row] = [
            count(f"{name}: distances further than 1e-6 from the CPU's", np.sum(abs(one - exact) > 1e-6), 0)
            for name, one in found.items()
        ]
        if not options.small:

            def run(one: Matcher) -> None:
                one.distances(keys, images, queries)
                if options.device != "cpu":
                    torch.cuda.synchronize()

            clock = in_turns({name: lambda one=one: run(one) for name, one in sides.items()}, options.turns)  # type: ignore[misc]
            rows += [
                row(name, [1000 * s / IMAGES for s in times], "ms an image") for name, times in clock.items()
            ]
        show(rows)


if __name__ == "__main__":
    main()
