"""Other methods' scores, judged by the same code as ours: imported into workspaces of their own.

Raw nearest neighbours are exact (one matrix product over float vectors: no quantization, no re-ranking, no candidates)
and must be beaten by every claim; random scores are the floor.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from gmv_qdrant import Workspace
from gmv_qdrant.models.registry import load_encoder

Ranked = tuple[np.ndarray, np.ndarray, str]
"""Indices of training images and their scores, both ``(m, most)``, and what `import_scores` is told that they are."""


def imported(
    workspace: Workspace,
    into: Path,
    generated: Sequence[Path],
    training: Sequence[Path],
    ranked: Ranked,
) -> Workspace:
    """A workspace with these scores, to evaluate like ours. What an earlier run put at ``into`` is replaced."""
    rows, scores, score_type = ranked
    shutil.rmtree(into, ignore_errors=True)
    file = into.with_name(into.name + ".parquet")
    names = {
        "generated": np.repeat([str(path) for path in generated], rows.shape[1]),
        "training": np.array([str(path) for path in training])[rows.ravel()],
        "score": scores.ravel().astype(np.float64),
    }
    pq.write_table(pa.table(names), file)
    workspace.import_scores(file, into, method=into.name, score_type=score_type, top_k=rows.shape[1])
    return Workspace(into)


def vectors(kit: common.Kit, name: str, paths: Sequence[Path], remember: Path | None = None) -> np.ndarray:
    """float32 ``(n, dim)`` unit vectors of the recall encoder; those in the file ``remember`` aren't computed again."""
    settings = kit.encoder(name)
    encoder: Any = load_encoder(settings["encoder"], weights=settings["encoder_weights"])
    if remember:
        encoder = common.Remembered(encoder, remember)
    return encoded(encoder, paths)


def encoded(encoder: Any, paths: Sequence[Path]) -> np.ndarray:
    """float32 ``(n, dim)`` vectors of image files."""
    found = []
    for start in range(0, len(paths), 32):
        images = []
        for path in paths[start : start + 32]:
            with Image.open(path) as image:
                images.append(encoder.prepare(image.convert("RGB")))
        found.append(encoder.encode(torch.stack(images)))
    return np.concatenate(found)


def nearest(training: np.ndarray, generated: np.ndarray, count: int) -> Ranked:
    """The ``count`` nearest by Euclidean distance, exact."""
    rows, distances = [], []
    for one in generated.astype(np.float64):
        squares = np.square(training - one).sum(axis=1)
        mine = np.argsort(squares, kind="stable")[:count]
        rows.append(mine)
        distances.append(np.sqrt(squares[mine]))
    return np.stack(rows), np.stack(distances), "distance"


def drawn(n: int, m: int, count: int, seed: int) -> Ranked:
    """For each of m images, ``count`` of n at random, with random scores."""
    random = np.random.default_rng(seed)
    rows = np.stack([random.permutation(n)[:count] for _ in range(m)])
    return rows, random.random(rows.shape), "similarity"
