"""The tool's encoders and distances on arrays: vectors of a few thousand images, composed in any way, and exact search.

What the tool does with a collection and a ledger, without either: for figures about which vectors and which rule of
credit are right, where networks run once and everything else is tried in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import numpy as np
import research
import torch
from PIL import Image, ImageOps

from gmv_qdrant import method
from gmv_qdrant.evaluation import probes
from gmv_qdrant.models.base import Encoder
from gmv_qdrant.models.devices import Runtime
from gmv_qdrant.models.registry import load_distance, load_encoder

CANDIDATES = 200
Pictures = Sequence[Image.Image]


def pictures(images: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(image).convert("RGB") for image in images]


def mirrored(images: Pictures) -> list[Image.Image]:
    return [ImageOps.mirror(image) for image in images]


def make_probes(
    training: Pictures, labels: Sequence[object], count: int, seed: int, *, mirror: bool
) -> tuple[list[probes.Recipe], list[Image.Image]]:
    recipes = probes.recipes(count, [str(label) for label in labels], seed)
    return recipes, [
        probes.make_probe(recipe, [training[row] for row in recipe.parents], mirrored=mirror)
        for recipe in recipes
    ]


def encoders(kit: common.Kit, encoder: str, distance: str) -> tuple[Encoder, Encoder]:
    """Recall and re-ranking."""
    runtime, of = Runtime(device="cpu"), kit.encoder(encoder)
    recall = load_encoder(of["encoder"], weights=of["encoder_weights"], runtime=runtime)
    return recall, load_distance(distance, runtime=runtime, recall=recall)


@dataclass
class Space:
    """Vectors of training images, float32 ``(n, dim)``, and of sets of others, ``(views, m, dim)`` each."""

    training: np.ndarray
    others: dict[str, np.ndarray]
    metric: method.Metric

    def with_thumbnail(self, other: Space, weight: float, *, unit: bool) -> Space:
        """Composed: ``other`` times sqrt(weight) is appended; with ``unit``, vectors stay of length 1."""
        scale = np.float32((1 + weight) ** -0.5 if unit else 1.0)

        def join(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return scale * np.concatenate([a, np.float32(weight**0.5) * b], axis=-1)

        others = {name: join(vectors, other.others[name]) for name, vectors in self.others.items()}
        return Space(join(self.training, other.training), others, self.metric)


def space(
    encoder: Encoder, training: Pictures, others: Mapping[str, Pictures], folder: Path, *, mirror: bool
) -> Space:
    """Embedded once; vectors are kept in the folder, as the tool's matrices keep them."""
    folder.mkdir(parents=True, exist_ok=True)

    def vectors(images: Pictures, name: str) -> np.ndarray:
        file = folder / f"{name}.npy"
        if not file.exists():
            parts = []
            for start in range(0, len(images), 32):
                batch = torch.stack([encoder.prepare(image) for image in images[start : start + 32]])
                parts.append(encoder.storage.pack(encoder.encode(batch)))
            np.save(file, np.concatenate(parts))
        return encoder.storage.unpack(np.load(file))

    found = {}
    for name, images in others.items():
        views = [vectors(images, name)]
        views += [vectors(mirrored(images), f"{name}-mirrored")] if mirror else []
        found[name] = np.stack(views)
    return Space(vectors(training, "training"), found, encoder.metric)


def thumbnails(training: Pictures, others: Mapping[str, Pictures], *, mirror: bool) -> Space:
    found = {
        name: np.stack(
            [research.thumbnails(images), *([research.thumbnails(mirrored(images))] if mirror else [])]
        )
        for name, images in others.items()
    }
    return Space(research.thumbnails(training), found, "sqeuclid")


@dataclass
class Evidence:
    """Candidates int64 ``(m, K)``, nearest first; distances float64 ``(m, K)``; which view was the nearer one."""

    rows: np.ndarray
    distances: np.ndarray
    views: np.ndarray

    def parents(self, recipes: Sequence[Any]) -> np.ndarray:
        """float64 ``(m, K)``: the weight of each candidate as a parent, by recipes with ``parents`` and ``weights``."""
        found = np.zeros(self.rows.shape)
        for i, recipe in enumerate(recipes):
            for row, weight in zip(recipe.parents, recipe.weights, strict=True):
                found[i, self.rows[i] == row] += weight
        return found

    def dense(self, credit: np.ndarray, n: int) -> np.ndarray:
        """Credit ``(m, K)`` as ``(m, n)``."""
        out = np.zeros((len(self.rows), n))
        np.put_along_axis(out, self.rows, credit, axis=1)
        return out


def evidence(recall: Space, rerank: Space, name: str, candidates: int = CANDIDATES) -> Evidence:
    """The ``candidates`` nearest in any view, in order of their smallest distance over the views."""
    near = [method.nearest(recall.metric, recall.training, view, candidates) for view in recall.others[name]]
    count = min(candidates, len(recall.training))
    m = len(near[0][0])
    rows, views = np.empty((m, count), np.int64), np.empty((m, count), np.int8)
    found = np.empty((m, count))
    for i in range(m):
        mine = np.unique(np.concatenate([each[0][i] for each in near]))
        vectors = rerank.training[mine]
        d = np.stack([method.distances(rerank.metric, view[i], vectors) for view in rerank.others[name]])
        order = np.argsort(d.min(axis=0), kind="stable")[:count]
        rows[i], found[i], views[i] = mine[order], d.min(axis=0)[order], d.argmin(axis=0)[order]
    return Evidence(rows, found, views)
