"""Shared by the benchmarks of this folder: images, clocks, counters, and the rows that they print.

A row is ``{"figure", "value", "low", "high", "unit", "aim"}``: the median of the turns, the smallest and the largest. A
count, which no machine changes, is ``{"figure", "count", "expected"}``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import runpy
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gmv_qdrant import Workspace

Row = dict[str, Any]
KIT = Path(__file__).resolve().parents[2].parent / "shared/data"
"""Real images and weights (docs/research/performance.md); small runs need none."""
PACKAGES = ("torch", "qdrant-edge-py", "duckdb", "numpy")


def parser(text: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks have."""
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--kit", type=Path, default=KIT)
    made.add_argument(
        "--small", action="store_true", help="seconds, without the kit: counts are what is looked at"
    )
    made.add_argument("--turns", type=int, default=5)
    made.add_argument("--device", default="cpu")
    return made


def row(figure: str, values: Sequence[float], unit: str = "times", aim: str | None = None) -> Row:
    """aim: as ``<= 1.10`` or ``>= 0.99``."""
    return {
        "figure": figure, "value": statistics.median(values), "low": min(values), "high": max(values),
        "turns": len(values), "unit": unit, "aim": aim,
    }  # fmt: skip


def count(figure: str, found: int, expected: int) -> Row:
    return {"figure": figure, "count": int(found), "expected": int(expected)}


def show(rows: Sequence[Row], **more: Any) -> None:
    print(json.dumps({"rows": list(rows), **more}, indent=2, default=float))


def in_turns(sides: Mapping[str, Callable[[], Any]], turns: int) -> dict[str, list[float]]:
    """Seconds by the clock of each side, taken in turns, so that whatever else happens meets all of them."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            found[name].append(time.perf_counter() - started)
    return found


def ratios(of: Sequence[float], to: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(of, to, strict=True)]


def images(kit: Path, name: str, first: int, last: int) -> list[Image.Image]:
    """Images of a set of the kit; random ones where there is no kit."""
    if not kit.is_dir():
        random = np.random.default_rng(len(name))
        pixels = random.integers(0, 256, (last, 32, 32, 3), dtype=np.uint8)[first:]
    else:
        pixels = runpy.run_path(str(kit / "load.py"))["load"](kit / "images" / f"{name}.npz")["images"][
            first:last
        ]
    return [Image.fromarray(one).convert("RGB") for one in pixels]


def write_images(pictures: Iterable[Image.Image], folder: Path) -> Path:
    """PNG files, as users have them."""
    folder.mkdir(parents=True)
    for index, image in enumerate(pictures):
        image.save(folder / f"{index:06d}.png", compress_level=1)
    return folder


def networks(kit: Path, small: bool) -> dict[str, Any]:
    """EfficientNet-Lite0 and LPIPS at 64 pixels with real weights; small runs have no networks."""
    if small:
        return {"encoder": "pixels:16", "distance": "l2@16", "quality": "none"}
    os.environ["TORCH_HOME"] = str(kit / "weights/torch_home")
    weights = str(kit / "weights/tf_efficientnet_lite0-fp16.pth")
    return {
        "encoder": "timm:tf_efficientnet_lite0", "encoder_weights": weights, "distance": "lpips:alex@64",
        "quality": "none",
    }  # fmt: skip


def workspace(root: Path, device: str, settings: Mapping[str, Any], **more: Any) -> Workspace:
    Workspace.init(root, **settings, **more)
    return Workspace(root, device=device)


@contextmanager
def counted(owner: Any, method: str, size: Callable[..., int]) -> Iterator[list[int]]:
    """What each call of a method within the block adds, by ``size`` of its arguments."""
    before, found = getattr(owner, method), []

    def call(*args: Any, **options: Any) -> Any:
        found.append(size(*args, **options))
        return before(*args, **options)

    setattr(owner, method, call)
    try:
        yield found
    finally:
        setattr(owner, method, before)


@contextmanager
def peak_memory() -> Iterator[dict[str, int]]:
    """Peak MB of this process within the block that can't be dropped; 0 where there is no /proc."""
    peak, done, status = {"own": 0}, threading.Event(), Path("/proc/self/status")

    def watch() -> None:
        while not done.wait(0.02):
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
            peak["own"] = max(peak["own"], int(lines["RssAnon"].split()[0]) >> 10)

    watcher = threading.Thread(target=watch, daemon=True)
    if status.exists():
        watcher.start()
    try:
        yield peak
    finally:
        done.set()
        if watcher.is_alive():
            watcher.join()


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = Path("/proc/cpuinfo")
    names = (
        [line for line in cpu.read_text().splitlines() if line.startswith("model name")]
        if cpu.exists()
        else []
    )
    return {
        "processor": names[0].split(":")[1].strip() if names else platform.machine(),
        "cores": os.cpu_count(),
        "threads": int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }


def note(*words: object) -> None:
    print(time.strftime("%H:%M:%S"), *words, file=sys.stderr, flush=True)
