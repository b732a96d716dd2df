"""Shared by the scripts of this folder: the data kit, folders of PNG files with metadata, one workspace a setting.

A data kit is a folder with ``images/*.npz``, ``weights/`` and ``load.py`` whose ``load(path)`` gives a dict of arrays
with ``images`` as uint8 ``(n, h, w[, 3])``.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import io
import json
import os
import runpy
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gmv_qdrant import Workspace
from gmv_qdrant.models import verified

ENCODERS = {
    "efficientnet": "timm:tf_efficientnet_lite0",
    "alexnet": "torchvision:alexnet@features",
    "clip": "clip:ViT-B-32-quickgelu/openai",
    "pixels": "pixels:32",
}
"""Short names of the recall encoders; any other name goes to ``init --encoder`` as it is."""
DISTANCES = ("none", "l2@64", "l2-norm@64", "lpips:alex@64")


class Kit:
    """The data kit; `os.environ["TORCH_HOME"]` is set to its weights, unless it is set already."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        if not (self.folder / "load.py").is_file():
            sys.exit(f"{folder} is no data kit: it has no load.py")
        self._load = runpy.run_path(str(self.folder / "load.py"))["load"]
        os.environ.setdefault("TORCH_HOME", str(self.folder / "weights/torch_home"))

    def __call__(self, name: str, count: int | None = None) -> dict[str, np.ndarray]:
        """A set, or ``count`` of its rows evenly spaced."""
        data = self._load(self.folder / f"images/{name}.npz")
        rows = spaced(len(next(iter(data.values()))), count)
        return {column: values[rows] for column, values in data.items()}

    def encoder(self, name: str) -> dict[str, Any]:
        """Settings of a recall encoder by its short name, with the kit's weights where it has them."""
        weights = self.folder / "weights/tf_efficientnet_lite0-fp16.pth"
        full = ENCODERS.get(name, name)
        return {"encoder": full, "encoder_weights": str(weights) if name == "efficientnet" else None}


def spaced(total: int, count: int | None) -> np.ndarray:
    """``count`` of ``total`` rows, evenly spaced; all of them when there are no more."""
    if count is None or count >= total:
        return np.arange(total)
    return np.linspace(0, total, count, endpoint=False).astype(int)


def write_set(images: np.ndarray, folder: Path, **columns: Sequence[Any]) -> list[Path]:
    """PNG files with a metadata.csv beside them; files that are there already are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{folder.name}-{i:06d}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        if not path.exists():
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            path.write_bytes(buffer.getvalue())
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", *columns])
        for i, path in enumerate(paths):
            writer.writerow([path.name, *(column[i] for column in columns.values())])
    return paths


def workspace(path: Path, training: Iterable[Path], **settings: Any) -> Workspace:
    """A workspace with these training folders in it; what an earlier run took in is kept."""
    made = Workspace.init(path, **{"quality": "none", "candidates": 200, **settings})
    made.ingest([str(folder) for folder in training])
    return made


def arguments(text: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """``KIT [--work DIR] [--out FILE]`` and a flag for each default."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kit", type=Path, help="the data kit")
    parser.add_argument(
        "--work", type=Path, help="where images and workspaces are kept, to go on from  [a new folder]"
    )
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    for name, value in defaults.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, tuple):
            parser.add_argument(flag, nargs="+", default=list(value), type=type(value[0]))
        else:
            parser.add_argument(flag, default=value, type=type(value))
    return parser


def work_folder(given: argparse.Namespace) -> Path:
    return (given.work or Path(tempfile.mkdtemp(prefix="gmv-reproduce-"))).resolve()


def slug(*parts: str) -> str:
    return "-".join(part.replace(":", "-").replace("@", "-").replace("/", "-") for part in parts)


def show(figures: Mapping[str, Any], out: Path | None, *, quiet: bool = False) -> None:
    """Figures as JSON in a file, and, unless quiet, on stdout."""
    text = json.dumps(figures, indent=2, default=str)
    if not quiet:
        print(text)
    if out:
        out.write_text(text + "\n")


def note(*words: object) -> None:
    print(time.strftime("%H:%M:%S"), *words, file=sys.stderr, flush=True)


class Remembered:
    """An encoder whose vectors are kept in a file, so that settings which share a network share its passes.

    Only for figures about credit: timings of a run that remembers say nothing.
    """

    def __init__(self, encoder: Any, file: Path) -> None:
        self._encoder = encoder
        self._kept = sqlite3.connect(file, check_same_thread=False)
        self._kept.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB)")
        self._salt = str(encoder.identity).encode()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode(self, batch: Any) -> np.ndarray:
        keys = [hashlib.sha256(self._salt + row.numpy().tobytes()).digest() for row in batch]
        found = [
            self._kept.execute("SELECT vector FROM vectors WHERE key = ?", [key]).fetchone() for key in keys
        ]
        fresh = [i for i, row in enumerate(found) if row is None]
        out = np.zeros((len(keys), self._encoder.dim), dtype=np.float32)
        if fresh:
            out[fresh] = self._encoder.encode(batch[fresh])
            with self._kept:
                rows = [(keys[i], out[i].tobytes()) for i in fresh]
                self._kept.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?)", rows)
        for i, row in enumerate(found):
            if row is not None:
                out[i] = np.frombuffer(row[0], dtype=np.float32)
        return out


def remember_recall_vectors(work: Path) -> None:
    """Recall encoders of this process keep their vectors in a file of the work folder."""
    work.mkdir(parents=True, exist_ok=True)
    load = verified.load_encoder
    verified.load_encoder = lambda *args, **kwargs: Remembered(  # type: ignore[assignment]
        load(*args, **kwargs), work / "recall-vectors.sqlite"
    )


@contextlib.contextmanager
def remembering(work: Path) -> Iterator[None]:
    """`remember_recall_vectors`, but only inside: for ingests whose timings don't count."""
    load = verified.load_encoder
    remember_recall_vectors(work)
    try:
        yield
    finally:
        verified.load_encoder = load
