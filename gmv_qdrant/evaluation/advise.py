"""Advise: which vectors fit these images, tried on a sample of them before anybody ingests a million.

Training images of the sample are made into probes, as `calibrate` does. Each network runs once over the sample and the
probes; each composition with a thumbnail, and each pair of recall and distance, is then a matter of arrays. What finds
the probes' true parents best is advised.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from gmv_qdrant import method
from gmv_qdrant.errors import GmvError, SettingsError
from gmv_qdrant.evaluation.fitting import fit
from gmv_qdrant.evaluation.parents import parent_figures
from gmv_qdrant.evaluation.probes import Recipe, make_probe, recipes
from gmv_qdrant.images.decode import decode
from gmv_qdrant.images.records import Record, Unusable
from gmv_qdrant.models.base import Encoder
from gmv_qdrant.models.devices import Runtime
from gmv_qdrant.models.registry import canonical_name, load_distance, load_encoder
from gmv_qdrant.pipeline.streams import Progress

THUMBNAIL = "thumb:16"
RECALL_WEIGHTS, RERANK_WEIGHTS = (0.0, 0.5), (0.0, 0.2, 1.0)
"""Weights of the thumbnail that are tried; 0 is none."""
LEAST = 40
"""Fewest images that say anything."""


@dataclass(frozen=True, slots=True)
class Vectors:
    """training ``(n, dim)``, probes ``(views, p, dim)``, float32."""

    training: np.ndarray
    probes: np.ndarray
    metric: method.Metric

    def plus(self, other: Vectors, weight: float, *, unit: bool) -> Vectors:
        """As `models.wrappers.WeightedSum` does it."""
        if not weight:
            return self
        scale = math.sqrt(0.5) if self.metric == "cosine" and not unit else 1.0

        def join(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            whole = np.concatenate([np.float32(scale) * a, np.float32(math.sqrt(weight)) * b], axis=-1)
            return whole / np.linalg.norm(whole, axis=-1, keepdims=True).clip(1e-30) if unit else whole

        metric: method.Metric = "cosine" if unit else "euclid" if self.metric == "euclid" else "sqeuclid"
        return Vectors(join(self.training, other.training), join(self.probes, other.probes), metric)


def advise(
    records: Iterable[Record | Unusable],
    *,
    encoders: Sequence[str],
    distances: Sequence[str],
    views: str,
    sample: int,
    probes: int,
    candidates: int,
    seed: int,
    runtime: Runtime,
    progress: Progress,
) -> list[dict[str, Any]]:
    """A row for each pair of encoder and distance, with and without thumbnails, the best first.

    log_likelihood: of the probes' true parents, those that recall missed included. temperature: in units of an image's
    30th distance. runtime: its weights are the first encoder's. Raises `SettingsError` for fewer than `LEAST` images.
    """
    images, labels = _sample(records, sample)
    wanted = recipes(probes, labels, seed)
    mirrored = views != "none"
    made = [make_probe(one, [images[row] for row in one.parents], mirrored=mirrored) for one in wanted]
    seen = [made, *([[ImageOps.mirror(image) for image in made]] if mirrored else [])]
    progress.phase("advise", (len(images) + len(seen) * len(made)) * (len(encoders) + len(distances) + 1))

    def vectors(encoder: Encoder) -> Vectors:
        return Vectors(
            _embed(encoder, images, progress),
            np.stack([_embed(encoder, view, progress) for view in seen]),
            encoder.metric,
        )

    plain = replace(runtime, weights=None)
    thumbnail = vectors(load_encoder(THUMBNAIL, runtime=plain))
    loaded = {
        canonical_name("encoder", name): load_encoder(name, runtime=plain if place else runtime)
        for place, name in enumerate(encoders)
    }
    recall = {name: vectors(encoder) for name, encoder in loaded.items()}
    rerank = {
        canonical_name("distance", name): vectors(load_distance(name, runtime=plain))
        for name in distances
        if name != "none"
    }
    rows = []
    for encoder, of_recall in recall.items():
        for weight in RECALL_WEIGHTS if THUMBNAIL not in encoder else (0.0,):
            mine = of_recall.plus(thumbnail, weight, unit=True)
            near = _candidates(mine, min(candidates, len(images)))
            for distance, of_rerank in rerank.items():
                for share in RERANK_WEIGHTS if THUMBNAIL not in distance else (0.0,):
                    found = _judged(of_rerank.plus(thumbnail, share, unit=False), near, wanted, len(images))
                    rows.append(
                        {"encoder": _name(encoder, weight), "distance": _name(distance, share), **found}
                    )
    return sorted(rows, key=lambda row: -row["log_likelihood"])


def _name(name: str, weight: float) -> str:
    return f"{name}+{THUMBNAIL}*{weight:g}" if weight else name


def _sample(records: Iterable[Record | Unusable], most: int) -> tuple[list[Image.Image], list[str | None]]:
    """Every so many of the images, evenly over the whole; those that can't be read are passed over."""
    kept: list[Record] = [record for record in records if isinstance(record, Record)]
    step = max(1, len(kept) // most)
    images, labels = [], []
    for record in kept[::step][:most]:
        try:
            images.append(decode(record.read()))
        except GmvError:
            continue
        labels.append(record.label)
    if len(images) < LEAST:
        raise SettingsError(f"{len(images)} images can't say what fits them: at least {LEAST} are needed")
    return images, labels


def _embed(encoder: Encoder, images: Sequence[Image.Image], progress: Progress) -> np.ndarray:
    parts = []
    for start in range(0, len(images), 16):
        batch = [encoder.prepare(image) for image in images[start : start + 16]]
        parts.append(encoder.storage.unpack(encoder.storage.pack(encoder.encode(torch.stack(batch)))))
        progress.advance(len(batch))
    return np.concatenate(parts)


def _candidates(recall: Vectors, count: int) -> list[np.ndarray]:
    """Training rows that each probe recalls in any view."""
    found = [method.nearest(recall.metric, recall.training, view, count)[0] for view in recall.probes]
    return [np.unique(np.concatenate(rows)) for rows in zip(*found, strict=True)]


def _judged(rerank: Vectors, near: list[np.ndarray], wanted: Sequence[Recipe], n: int) -> dict[str, Any]:
    width = max(map(len, near))
    d, w = np.full((len(near), width), np.inf), np.zeros((len(near), width))
    for i, (rows, recipe) in enumerate(zip(near, wanted, strict=True)):
        of_views = [method.distances(rerank.metric, view[i], rerank.training[rows]) for view in rerank.probes]
        best = np.min(of_views, axis=0)
        order = np.argsort(best, kind="stable")
        d[i, : len(rows)] = best[order]
        w[i, : len(rows)] = [_weight(recipe, row) for row in rows[order].tolist()]
    found = fit(d, w)
    share = method.shares(method.relative(d), k=None, temperature=found.temperature)
    mixed = np.log((1 - found.lapse) * share + found.lapse / n)
    missed = (1 - w.sum(axis=1)).clip(min=0) * math.log(found.lapse / n)
    weights = np.array([[*recipe.weights, 0.0][:2] for recipe in wanted])
    figures = parent_figures(
        d, w, training=n, weights=weights, temperature=found.temperature, relative=True
    )  # without nobody: what parents get is compared
    return {
        "log_likelihood": float(((w * mixed).sum(axis=1) + missed).mean()),
        "overlap": figures.overlap,
        "overlap_se": figures.overlap_se,
        "recalled": figures.recalled,
        "temperature": found.temperature,
        "lapse": found.lapse,
    }


def _weight(recipe: Recipe, row: int) -> float:
    pairs: Iterator[tuple[int, float]] = zip(recipe.parents, recipe.weights, strict=True)
    return sum(weight for parent, weight in pairs if parent == row)
