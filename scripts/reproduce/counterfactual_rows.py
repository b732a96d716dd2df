"""Credit by every rule that the yardstick judges: name -> float64 ``(m, n)``, what each training image has of each
generated one. Only the order within a row's sums over subsets counts, not their scale."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import common
import counterfactual_truth as truths
import numpy as np
import research
import retrained
import torch
from PIL import Image

from gmv_qdrant import method
from gmv_qdrant.evaluation import calibration, probes
from gmv_qdrant.models.encoders import Encoder, Runtime, load_distance, load_encoder

CANDIDATES = 200
TEMPERATURES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
"""In units of an image's 30th distance."""
MODELS = 3
"""Models of all images, by other seeds, over which gradient methods are averaged."""


def pictures(images: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(image).convert("RGB") for image in images]


def vectors(encoder: Encoder, images: list[Image.Image], file: Path | None) -> np.ndarray:
    """float32 ``(n, dim)``, kept in a file."""
    if file and file.exists():
        kept: np.ndarray = np.load(file)
        return kept
    parts = [
        encoder.encode(torch.stack([encoder.prepare(image) for image in images[start : start + 32]]))
        for start in range(0, len(images), 32)
    ]
    if file:
        np.save(file, np.concatenate(parts))
    return np.concatenate(parts)


@dataclass
class Space:
    """Vectors of training images, generated ones and probes, and the metric that compares them."""

    training: np.ndarray
    made: np.ndarray
    probes: np.ndarray
    metric: method.Metric

    def with_thumbnail(self, other: Space, weight: float, *, unit: bool) -> Space:
        """Composed: ``other`` times sqrt(weight) is appended; with ``unit``, vectors stay of length 1."""
        scale = np.float32((1 + weight) ** -0.5 if unit else 1.0)
        pairs = [(getattr(self, name), getattr(other, name)) for name in ("training", "made", "probes")]
        return Space(
            *(scale * np.hstack([a, np.float32(weight**0.5) * b]) for a, b in pairs), metric=self.metric
        )


@dataclass
class Evidence:
    """Candidates ``(m, K)``, nearest first, and their distances; the same for probes, with their parents' weights."""

    rows: np.ndarray
    distances: np.ndarray
    probe_rows: np.ndarray
    probe_distances: np.ndarray
    probe_parents: np.ndarray


def evidence(recall: Space, rerank: Space, recipes: list[probes.Recipe], candidates: int) -> Evidence:
    found = []
    for which in ("made", "probes"):
        rows, _ = method.nearest(recall.metric, recall.training, getattr(recall, which), candidates)
        d = np.stack([
            method.distances(rerank.metric, one, rerank.training[mine])
            for one, mine in zip(getattr(rerank, which), rows, strict=True)
        ])  # fmt: skip
        order = np.argsort(d, axis=1, kind="stable")
        found += [np.take_along_axis(rows, order, axis=1), np.take_along_axis(d, order, axis=1)]
    parents = np.zeros(found[3].shape)
    for i, recipe in enumerate(recipes):
        for row, weight in zip(recipe.parents, recipe.weights, strict=True):
            parents[i, found[2][i] == row] = weight
    return Evidence(*found, parents)


def dense(rows: np.ndarray, credit: np.ndarray, n: int) -> np.ndarray:
    out = np.zeros((len(rows), n))
    np.put_along_axis(out, rows, credit, axis=1)
    return out


class Rows:
    """All rows for one generator."""

    def __init__(self, kit: common.Kit, name: str, truth: truths.Truth, work: Path, probe_count: int) -> None:
        self.name, self.truth, self.work = name, truth, work
        self.n, self.m = len(truth.images), len(truth.made)
        self.recipes = probes.recipes(probe_count, [str(label) for label in truth.labels], 0)
        self.parts = {"training": pictures(truth.images), "made": pictures(truth.made)}
        self.parts["probes"] = [
            probes.make_probe(recipe, [self.parts["training"][row] for row in recipe.parents])
            for recipe in self.recipes
        ]
        runtime = Runtime(device="cpu")
        of = kit.encoder("efficientnet")
        self.recall = self.space(
            load_encoder(of["encoder"], weights=of["encoder_weights"], runtime=runtime), "recall"
        )
        self.lpips = self.space(load_distance("lpips:alex@64", runtime=runtime), "lpips")
        self.thumbnails = Space(
            *(research.thumbnails(self.parts[part]) for part in ("training", "made", "probes")),
            metric="sqeuclid",
        )

    def space(self, encoder: Encoder, name: str) -> Space:
        files = {part: self.work / f"{name}-{part}.npy" for part in self.parts}
        return Space(
            *(vectors(encoder, self.parts[part], files[part]) for part in self.parts), metric=encoder.metric
        )

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        yield from self.simple()
        if self.name in retrained.FAMILIES:
            yield from self.gradients()
        yield from self.ours()
        yield from self.researched()

    # -- without a tool ------------------------------------------------------------------------------

    def simple(self) -> Iterator[tuple[str, np.ndarray]]:
        yield "random", np.random.default_rng(0).random((self.m, self.n))
        cosine = self.recall.made @ self.recall.training.T
        yield "cosine, EfficientNet", cosine
        nearest = np.argsort(-cosine, axis=1)[:, :30]
        classes = (self.truth.labels[nearest][:, :, None] == self.truth.labels).mean(axis=1)
        yield "class of the 30 nearest", classes
        x, g = (of.reshape(len(of), -1) / 255 for of in (self.truth.images, self.truth.made))
        d = np.sqrt((g**2).sum(1)[:, None] - 2 * g @ x.T + (x**2).sum(1)).clip(min=0) / x.shape[1] ** 0.5
        yield "pixels, paper, k = 30", method.shares(d)
        for k in (30, None):
            for temperature in (0.02, 0.05, 0.1):
                yield (
                    f"pixels, k = {k or 'all'}, T = {temperature}",
                    method.shares(d, k=k, temperature=temperature),
                )

    # -- with the model's gradients --------------------------------------------------------------------

    def gradients(self) -> Iterator[tuple[str, np.ndarray]]:
        file = self.work / "gradients.npz"
        if not file.exists():
            np.savez(file, **self._gradients())
        with np.load(file) as kept:
            yield from kept.items()

    def _gradients(self) -> dict[str, np.ndarray]:
        x, made = truths.pixels(self.truth.images), truths.pixels(self.truth.made)
        labels, of = torch.from_numpy(self.truth.labels), torch.from_numpy(self.truth.made_labels)
        found: dict[str, np.ndarray] = {}

        def add(name: str, scores: torch.Tensor) -> None:
            found[name] = found.get(name, 0.0) + scores.double().numpy()

        for seed in range(MODELS):
            family, last, path = truths.full_model(self.name, self.truth.images, self.truth.labels, seed)
            for p in path:
                g, q = (retrained.gradients(family, p, *of_set, 8) for of_set in ((x, labels), (made, of)))
                add("TracIn, 3 checkpoints", q @ g.T)
                add("TracIn, cosine", (q / q.norm(dim=1, keepdim=True)) @ (g / g.norm(dim=1, keepdim=True)).T)
            g, q = (retrained.gradients(family, last, *of_set, 8) for of_set in ((x, labels), (made, of)))
            random = torch.Generator().manual_seed(seed)
            projection = torch.randn(g.shape[1], 1024, generator=random) / 32
            g, q = (g @ projection).double(), (q @ projection).double()
            kernel = g.T @ g
            size = float(kernel.diagonal().mean())
            for damping in (0.001, 0.01, 0.1, 1.0):
                inverse = torch.linalg.inv(kernel + damping * size * torch.eye(1024, dtype=torch.float64))
                add(f"TRAK-like, 1,024, damping {damping}", q @ inverse @ g.T)
        return found

    # -- the tool ---------------------------------------------------------------------------------------

    def compositions(self) -> dict[str, tuple[Space, Space]]:
        """name -> spaces of recall and re-ranking."""
        recall = self.recall.with_thumbnail(self.thumbnails, 0.5, unit=True)
        found = {"LPIPS": (self.recall, self.lpips)}
        for weight in (0.2, 1.0):
            found[f"A: LPIPS + {weight:g} thumbnail"] = (
                recall,
                self.lpips.with_thumbnail(self.thumbnails, weight, unit=False),
            )
        found["A: thumbnail"] = (recall, self.thumbnails)
        return found

    def ours(self) -> Iterator[tuple[str, np.ndarray]]:
        """The paper's formula; calibrated (relative and with nobody); and a grid of temperatures, k = 30 and all K."""
        d = method.nearest("euclid", self.recall.training, self.recall.made, CANDIDATES)
        yield "No-Rerank, paper", dense(d[0], method.shares(d[1]), self.n)
        for name, (recall, rerank) in self.compositions().items():
            found = evidence(recall, rerank, self.recipes, CANDIDATES)
            yield from self.functions(name, found)

    def functions(self, name: str, found: Evidence) -> Iterator[tuple[str, np.ndarray]]:
        def row(d: np.ndarray, **options: Any) -> np.ndarray:
            return dense(found.rows, method.shares(d, **options), self.n)

        yield f"{name}, paper", row(found.distances)
        relative = method.relative(found.distances)
        fitted = calibration.fit(
            method.relative(found.probe_distances), found.probe_parents, null_distance=True
        )
        yield f"{name}, calibrated, k = 30", row(relative, temperature=fitted.temperature)
        yield (
            f"{name}, calibrated with nobody, k = 30",
            row(relative, temperature=fitted.temperature, null_distance=fitted.null_distance),
        )
        for k in (30, None):
            for temperature in TEMPERATURES:
                yield (
                    f"{name}, k = {k or CANDIDATES}, T = {temperature:g}",
                    row(relative, k=k, temperature=temperature),
                )

    # -- research ---------------------------------------------------------------------------------------

    def researched(self) -> Iterator[tuple[str, np.ndarray]]:
        recall, rerank = self.compositions()["A: LPIPS + 0.2 thumbnail"]
        found = evidence(recall, rerank, self.recipes, CANDIDATES)
        yield from self.two_parents(found)
        yield from self.without_hubs(rerank, found)
        yield (
            "H: patches",
            self.kept("patches", lambda: research.patches(self.parts["training"], self.parts["made"])),
        )

    def kept(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        file = self.work / f"{name}.npy"
        if not file.exists():
            np.save(file, make())
        kept: np.ndarray = np.load(file)
        return kept

    def two_parents(self, found: Evidence) -> Iterator[tuple[str, np.ndarray]]:
        relative, of_probes = method.relative(found.distances), method.relative(found.probe_distances)
        fitted = calibration.fit(of_probes, found.probe_parents)
        credit = dense(found.rows, method.shares(relative, temperature=fitted.temperature), self.n)
        probe_credit = dense(
            found.probe_rows, method.shares(of_probes, temperature=fitted.temperature), self.n
        )
        training = self.parts["training"]
        mine = research.pairs(training, self.parts["made"], found.rows[:, :10])
        theirs = research.pairs(training, self.parts["probes"], found.probe_rows[:, :10])
        truth = np.zeros_like(probe_credit)
        for i, recipe in enumerate(self.recipes):
            truth[i, list(recipe.parents)] = recipe.weights
        z = research.fit_pairs(probe_credit, theirs, truth)
        yield "B: two parents, A: LPIPS + 0.2 thumbnail", research.add_pairs(credit, mine, z)

    def without_hubs(self, rerank: Space, found: Evidence) -> Iterator[tuple[str, np.ndarray]]:
        parents = [recipe.parents for recipe in self.recipes]
        hubs = research.hubs(rerank.training, rerank.probes, parents, rerank.metric)
        unit = float(np.median(found.distances[:, 29]))
        shifted = (found.distances - hubs[found.rows] / 2) / unit
        for k in (30, None):
            for temperature in TEMPERATURES:
                credit = method.shares(shifted, k=k, temperature=temperature)
                name = f"E: hubs, A: LPIPS + 0.2 thumbnail, k = {k or CANDIDATES}, T = {temperature:g}"
                yield name, dense(found.rows, credit, self.n)
