"""Requests and bytes that `adopt`, `value`, `adopt` again and `update` take: counted, so the same on every machine.

    python scripts/bench/requests_counted.py [--training 1000] [--generated 1000]

The server is the tests' stand-in. Prints the table of ``docs/how-to/your-qdrant.md``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gmv_qdrant import Workspace

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "tests" / part) for part in ("store", "")]

SIDE = 13
"""Of the encoder ``pixels:13``: vectors of 507 numbers, as many as CLIP's 512, nearly."""


@dataclass(frozen=True)
class Count:
    """What one command asked of the server."""

    command: str
    requests: int
    sent: int
    received: int

    def row(self) -> str:
        return f"| {self.command} | {self.requests} | {self.sent / 1e6:.2f} | {self.received / 1e6:.2f} |"


def counted(training: int, generated: int, folder: Path) -> list[Count]:
    """A foreign collection of ``training`` images, ``generated`` valued against it, then a tenth more of them."""
    from loopback import Loopback

    more = training // 10
    for name, start, count in (("theirs", 0, training + more), ("new", 10**6, generated)):
        (folder / name).mkdir()
        for seed in range(start, start + count):
            _image(seed).save(folder / name / f"{seed}.png")
    found = []
    with Loopback(folder / "server") as server:

        def count(command: str, run: Callable[[], Any]) -> None:
            server.requests.clear()
            server.answered = 0
            run()
            sent = sum(size for _, _, size in server.requests)
            found.append(Count(command, len(server.requests), sent, server.answered))

        body = {"vectors": {"size": 3 * SIDE * SIDE, "distance": "Cosine"}}
        server.handle("PUT", "/collections/theirs", json.dumps(body).encode())
        _put(server, folder, range(training))
        settings: Any = {
            "encoder": f"pixels:{SIDE}",
            "distance": f"l2@{SIDE}",
            "quality": "none",
            "candidates": 200,
            "workers": 1,
            "qdrant_url": server.url,
            "collection": "theirs",
            "allow": [str(folder)],
        }
        count("`adopt`", lambda: Workspace.adopt(folder / "ws", **settings))
        count("`value`", lambda: Workspace(folder / "ws").value([folder / "new"]))
        _put(server, folder, range(training, training + more))
        count(f"`adopt` again, {more} images more", lambda: Workspace.adopt(folder / "ws", **settings))
        count("`update`", lambda: Workspace(folder / "ws").update())
    return found


def _image(seed: int) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8), "RGB"
    )


def _put(server: Any, folder: Path, seeds: range) -> None:
    rows = [np.asarray(_image(seed), np.float64).transpose(2, 0, 1).ravel() for seed in seeds]
    points = [
        {
            "id": seed,
            "vector": row.tolist(),
            "payload": {"uri": f"{folder}/theirs/{seed}.png", "owner": "ada"},
        }
        for seed, row in zip(seeds, rows, strict=True)
    ]
    server.handle("PUT", "/collections/theirs/points", json.dumps({"points": points}).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--training", type=int, default=1_000)
    parser.add_argument("--generated", type=int, default=1_000)
    given = parser.parse_args()
    print("| command | requests | MB sent | MB received |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for one in counted(given.training, given.generated, Path(folder)):
            print(one.row())


if __name__ == "__main__":
    main()
