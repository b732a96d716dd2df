"""Shared by the benchmarks of this folder: images, clocks, memory, and one JSON document on stdout."""

from __future__ import annotations

import argparse
import json
import os
import platform
import runpy
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gmv_qdrant import Workspace

Clock = dict[str, float]
"""Seconds by the clock (``wall``) and of the processor (``cpu``), or by phase."""


def arguments(text: str | None, training: int, generated: int) -> argparse.ArgumentParser:
    """``--training`` and ``--generated``, each a folder or an .npz file, and how many of each: ``-n`` and ``-m``."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", type=Path, required=True)
    parser.add_argument("--generated", type=Path, required=True)
    parser.add_argument("-n", type=int, default=training)
    parser.add_argument("-m", type=int, default=generated)
    return parser


def add_networks(parser: argparse.ArgumentParser) -> None:
    """The three networks, the paper's by default."""
    parser.add_argument("--encoder", default="clip")
    parser.add_argument("--weights", help="a file with the encoder's weights")
    parser.add_argument("--distance", default="dreamsim")
    parser.add_argument("--quality", default="maniqa")


def read_images(source: Path, count: int) -> list[Image.Image]:
    """The first images of a folder, or of the array ``images`` in an .npz file.

    An .npz file without that array is read by the ``load.py`` of the data kit that it stands in.
    """
    if source.is_dir():
        paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in {".png", ".jpg", ".jpeg"})
        return [Image.open(path).convert("RGB") for path in paths[:count]]
    with np.load(source) as archive:
        arrays = archive.get("images")
    if arrays is None:
        arrays = runpy.run_path(str(source.parents[1] / "load.py"))["load"](source)["images"]
    return [Image.fromarray(array).convert("RGB") for array in arrays[:count]]


def write_images(images: Iterable[Image.Image], folder: Path) -> Path:
    """PNG files, as users have them."""
    folder.mkdir(parents=True)
    for index, image in enumerate(images):
        image.save(folder / f"{index:06d}.png", compress_level=1)
    return folder


def seconds(call: Callable[[], Any]) -> Clock:
    """Wall and processor seconds of ``call``; other work on the machine disturbs the second less."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def end_to_end(workspace: Workspace, verb: str, folder: Path) -> tuple[Clock, Clock]:
    """Seconds of a verb, and of its phases; without what isn't paid per image: loading networks, quantizing."""
    with workspace._alone() as context:
        loading = seconds(context.claim)
    summary: dict[str, Any] = {}
    whole = seconds(lambda: summary.update(getattr(workspace, verb)([folder])))
    phases = summary["seconds"]
    quantizing = phases.get("optimize", 0.0)
    return {"wall": phases["total"] - quantizing, "cpu": whole["cpu"] - loading["cpu"]}, phases


@contextmanager
def peak_memory() -> Iterator[dict[str, int]]:
    """Peak MB of this process within the block: ``own`` is what can't be dropped, ``mapped`` files in use.

    Where there is no /proc, the block runs and the peaks stay 0.
    """
    peak = {"own": 0, "mapped": 0}
    done = threading.Event()
    status = Path("/proc/self/status")

    def watch() -> None:
        while True:
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
            for name, key in (("own", "RssAnon"), ("mapped", "RssFile")):
                peak[name] = max(peak[name], int(lines[key].split()[0]) >> 10)
            if done.wait(0.02):
                return

    watcher = threading.Thread(target=watch, daemon=True)
    if status.exists():
        watcher.start()
    try:
        yield peak
    finally:
        done.set()
        if watcher.is_alive():
            watcher.join()


def disk_mb(folder: Path) -> float:
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20, 1)


def machine() -> dict[str, Any]:
    """What the figures were measured on; ``load`` is the number of processes that wanted a core at the start."""
    return {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "threads": int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1),
        "load": round(os.getloadavg()[0], 1),
        **{name: version(name) for name in ("torch", "qdrant-edge-py", "duckdb")},
    }


def note(*words: object) -> None:
    print(time.strftime("%H:%M:%S"), *words, file=sys.stderr, flush=True)


def show(figures: Mapping[str, Any], out: Path | None = None) -> None:
    """Figures as JSON on stdout, and in a file."""
    text = json.dumps(figures, indent=2, default=float)
    print(text)
    if out:
        out.write_text(text + "\n")
