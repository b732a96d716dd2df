"""Tiny workspaces for tests of maintenance: 8-pixel images, the pixels as both encoders, exact search."""

from __future__ import annotations

import hashlib
import io
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gmv_qdrant import Workspace
from gmv_qdrant.images.records import point_id

SIZE = 8
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


def point(seed: int) -> uuid.UUID:
    return point_id(hashlib.sha256(png(seed)).hexdigest())


def contributions(generated: int, training: Iterable[int], candidates: int, k: int) -> dict[int, float]:
    """Eq. 6 in plain numpy: recall by cosine, re-ranking by the root-mean-square difference."""
    query = pixels(generated).astype(np.float64).transpose(2, 0, 1).ravel()

    def both(seed: int) -> tuple[float, float]:
        row = pixels(seed).astype(np.float64).transpose(2, 0, 1).ravel()
        cosine = 1 - query @ row / np.linalg.norm(query) / np.linalg.norm(row)
        return cosine, float(np.sqrt(np.mean((query / 255 - row / 255) ** 2)))

    found = {seed: both(seed) for seed in training}
    recalled = sorted(found, key=lambda seed: (found[seed][0], str(point(seed))))[:candidates]
    nearest = sorted(recalled, key=lambda seed: (found[seed][1], str(point(seed))))[:k]
    if not nearest:
        return {}
    weights = np.exp([-found[seed][1] for seed in nearest])
    return dict(zip(nearest, (weights / weights.sum()).tolist(), strict=True))


def values(workspace: Workspace, k: int | None = None) -> dict[str, float]:
    """Value by image id, zeros included."""
    relation = workspace.credits("image", k=k)
    return {row[0]: row[relation.columns.index("value")] for row in relation.fetchall()}


def owners(workspace: Workspace, k: int | None = None) -> dict[str | None, float]:
    return {row[0]: row[1] for row in workspace.credits("owner", k=k).fetchall()}
