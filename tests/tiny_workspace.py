"""Tiny workspaces for tests of maintenance: 8-pixel images, the pixels as both encoders, exact search."""

from __future__ import annotations

import hashlib
import io
import math
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gmv_qdrant import Workspace
from gmv_qdrant.images.records import point_id
from gmv_qdrant.pipeline.spaces import Spaces, open_spaces

SIZE = 8
CLOSE = 1e-7
"""Between credits of the package, which sums squares in float32, and of plain numpy; a wrong candidate costs 1e-4."""
SETTINGS: dict[str, Any] = {
    "encoder": f"pixels:{SIZE}",
    "distance": f"l2@{SIZE}",
    "quality": "none",
    "quantization": "none",
    "candidates": 4,
}


def pixels(seed: int) -> np.ndarray:
    """uint8 ``(8, 8, 3)``: random, never black."""
    return np.random.default_rng(seed).integers(1, 256, (SIZE, SIZE, 3), dtype=np.uint8)


@cache
def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(seed)).save(buffer, "png")
    return buffer.getvalue()


def write(folder: Path, seeds: Iterable[int]) -> list[Path]:
    """One file for each seed, named after it."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for seed in seeds:
        path = folder / f"{seed}.png"
        path.write_bytes(png(seed))
        paths.append(path)
    return paths


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory where there is one: thousands of small synced writes are slow on a disk."""
    roomy = os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 2**30
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if roomy else None))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@cache
def point(seed: int) -> uuid.UUID:
    return point_id(hashlib.sha256(png(seed)).hexdigest())


@cache
def _rows(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The unit recall vector, and the re-rank vector in the float32 numbers that a feature file gives back."""
    row = pixels(seed).transpose(2, 0, 1).ravel()
    scale = np.float32(1 / (255 * math.sqrt(row.size)))
    return row / np.linalg.norm(row.astype(np.float64)), row.astype(np.float32) * scale


@cache
def _pair(generated: int, training: int) -> tuple[float, float]:
    """Recall and re-rank distance of two images."""
    (a, p), (b, q) = _rows(generated), _rows(training)
    return 1 - float(a @ b), math.sqrt(np.square(q - p).sum(dtype=np.float64))


def contributions(
    generated: int, training: Iterable[int], candidates: int, k: int | None
) -> dict[int, float]:
    """Eq. 6 in plain numpy: recall by cosine, re-ranking by the root-mean-square difference."""
    found = {seed: _pair(generated, seed) for seed in training}
    recalled = sorted(found, key=lambda seed: (found[seed][0], str(point(seed))))[:candidates]
    nearest = sorted(recalled, key=lambda seed: (found[seed][1], str(point(seed))))[:k]
    weights = np.exp([-found[seed][1] for seed in nearest])
    return dict(zip(nearest, (weights / weights.sum()).tolist(), strict=True))


def values(workspace: Workspace, k: int | None = None) -> dict[str, float]:
    """Value by image id, zeros included."""
    relation = workspace.credits("image", k=k)
    return {row[0]: row[relation.columns.index("value")] for row in relation.fetchall()}


def owners(workspace: Workspace, k: int | None = None) -> dict[str | None, float]:
    return {row[0]: row[1] for row in workspace.credits("owner", k=k).fetchall()}


@contextmanager
def spaces(workspace: Workspace) -> Iterator[Spaces]:
    """The workspace's store and matrices, opened as its writer does."""
    with workspace._runs.alone(), open_spaces(workspace.path, workspace.settings, workspace.ledger) as opened:
        yield opened
