"""``--engine ray`` with one and two workers against ``--engine local``: same images, settings and server, in one run.

    python scripts/bench/ray_engine.py --training NPZ --generated NPZ -n 400 -m 200 \\
        --encoder timm:tf_efficientnet_lite0 --weights FILE --distance lpips:alex@64 --quality none [--qdrant-url URL]

Without a URL, the tests' stand-in of a Qdrant server runs in a process of its own. Seconds by the clock for each verb:
``start`` until the first chunk is in the ledger (for Ray: its processes, imports, networks, and that chunk), ``rest``
for all others, and ``ms`` an image of the rest. One JSON document; exit code 1 when the credits differ.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import add_networks, arguments, machine, note, read_images, show, write_images

from gmv_qdrant import Workspace
from gmv_qdrant.cluster import jobs

TESTS = Path(__file__).resolve().parents[2] / "tests"


class Clock:
    """A `Progress` that only looks at its watch."""

    def __init__(self) -> None:
        self.advances: list[tuple[float, int]] = []

    def phase(self, name: str, total: int | None) -> None:
        pass

    def advance(self, items: int = 1) -> None:
        self.advances.append((time.perf_counter(), items))

    def note(self, sentence: str) -> None:
        pass


def timed(workspace: Workspace, clock: Clock, verb: str, folder: Path) -> dict[str, Any]:
    clock.advances.clear()
    began = time.perf_counter()
    summary = getattr(workspace, verb)([folder])
    whole = time.perf_counter() - began
    (first, some), *_ = clock.advances
    rest = sum(items for _, items in clock.advances) - some
    return {
        "seconds": round(whole, 2),
        "start": round(first - began, 2),
        "rest": round(whole - (first - began), 2),
        "ms": round(1000 * (whole - (first - began)) / rest, 1) if rest else None,
        "phases": summary["seconds"],
    }


def _serve(folder: str, address: Any) -> None:
    sys.path[:0] = [str(TESTS)]
    from store.loopback import Loopback

    with Loopback(Path(folder)) as server:
        address.put(server.url)
        while True:
            time.sleep(60)


@contextmanager
def stand_in(folder: Path) -> Iterator[str]:
    """The URL of a stand-in of a Qdrant server, which is a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    address = spawn.Queue()
    process = spawn.Process(target=_serve, args=(str(folder), address), daemon=True)
    process.start()
    try:
        yield address.get(timeout=120)
    finally:
        process.kill()
        process.join()


def main() -> int:
    parser = arguments(__doc__, 400, 200)
    add_networks(parser)
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--ray-workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--repeat", type=int, default=2, help="turns of all sides; the quickest of each counts"
    )
    parser.add_argument("--qdrant-url")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()

    figures: dict[str, Any] = {
        "machine": machine(),
        **{name: getattr(options, name) for name in ("encoder", "distance", "quality", "candidates")},
        "training": options.n,
        "generated": options.m,
        "images of a task": jobs.ROWS["cpu"],
    }
    work = Path(tempfile.mkdtemp(prefix="gmv-ray-"))
    training = write_images(read_images(options.training, options.n), work / "training")
    generated = write_images(read_images(options.generated, options.m), work / "generated")
    sides = {"local": 0, **{f"ray, {count} workers": count for count in options.ray_workers}}
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    credits = []
    with stand_in(work / "server") if not options.qdrant_url else _given(options.qdrant_url) as url:
        for turn in range(options.repeat):
            for side, workers in sides.items():
                clock, root = Clock(), work / f"{side} {turn}"
                Workspace.init(
                    root, encoder=options.encoder, encoder_weights=options.weights, distance=options.distance,
                    quality=options.quality, candidates=options.candidates, quantization="none", qdrant_url=url,
                    collection=f"bench-{time.time_ns()}",
                )  # fmt: skip
                workspace = Workspace(
                    root, progress=clock, engine="ray" if workers else "local", ray_workers=workers or None
                )
                load = os.getloadavg()[0]
                run = {
                    "ingest": timed(workspace, clock, "ingest", training),
                    "value": timed(workspace, clock, "value", generated),
                    "load": round(load, 1),
                }
                note(side, {verb: run[verb]["seconds"] for verb in ("ingest", "value")})
                runs[side].append(run)
                credits.append(dict(workspace.credits("image").project("image, value").fetchall()))
    figures["runs"] = runs
    figures["quickest"] = {
        side: {
            verb: {part: min(run[verb][part] for run in of_side) for part in ("seconds", "start", "ms")}
            for verb in ("ingest", "value")
        }
        for side, of_side in runs.items()
    }
    differs = max(abs(one[image] - credits[0][image]) for one in credits for image in credits[0])
    figures["largest difference of a credit"] = differs
    shutil.rmtree(work)
    show(figures, options.out)
    return int(differs > 1e-4)


@contextmanager
def _given(url: str) -> Iterator[str]:
    yield url


if __name__ == "__main__":
    logging.getLogger("httpx").setLevel(logging.WARNING)
    sys.exit(main())
