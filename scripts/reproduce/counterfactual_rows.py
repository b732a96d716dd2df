"""Credit by every rule that the yardstick judges: name -> float64 ``(m, n)``, what each training image has of each
generated one. Only the order within a row's sums over subsets counts, not their scale."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import common
import counterfactual_truth as truths
import numpy as np
import research
import retrained
import spaces
import torch
from spaces import CANDIDATES, Evidence, Space

from gmv_qdrant import method
from gmv_qdrant.evaluation.fitting import fit

TEMPERATURES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
"""In units of an image's 30th distance."""
MODELS = 3
"""Models of all images, by other seeds, over which gradient methods are averaged."""


class Rows:
    """All rows for one generator."""

    def __init__(self, kit: common.Kit, name: str, truth: truths.Truth, work: Path, probe_count: int) -> None:
        self.name, self.truth, self.work = name, truth, work
        self.n, self.m = len(truth.images), len(truth.made)
        training = spaces.pictures(truth.images)
        self.recipes, made = spaces.make_probes(training, truth.labels.tolist(), probe_count, 0, mirror=False)
        self.training = training
        self.others = {"made": spaces.pictures(truth.made), "probes": made}
        recall, lpips = spaces.encoders(kit, "efficientnet", "lpips:alex@64")
        self.recall = spaces.space(recall, training, self.others, work / "recall", mirror=False)
        self.lpips = spaces.space(lpips, training, self.others, work / "lpips", mirror=False)
        self.thumbnails = spaces.thumbnails(training, self.others, mirror=False)

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        yield from self.simple()
        if self.name in retrained.FAMILIES:
            yield from self.gradients()
        yield from self.ours()
        yield from self.researched()

    # -- without a tool ------------------------------------------------------------------------------

    def simple(self) -> Iterator[tuple[str, np.ndarray]]:
        yield "random", np.random.default_rng(0).random((self.m, self.n))
        cosine = self.recall.others["made"][0] @ self.recall.training.T
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
        """The paper's formula; calibrated; and a grid of temperatures, for k = 30 and all K."""
        unit = Space(self.recall.training, self.recall.others, "euclid")
        found = spaces.evidence(unit, unit, "made")
        yield "No-Rerank, paper", found.dense(method.shares(found.distances), self.n)
        for name, (recall, rerank) in self.compositions().items():
            made, probes = (spaces.evidence(recall, rerank, which) for which in ("made", "probes"))
            relative = method.relative(made.distances)
            fitted = fit(probes.distances, probes.parents(self.recipes), null_distance=False)
            yield f"{name}, paper", made.dense(method.shares(made.distances), self.n)
            credit = method.shares(relative, temperature=fitted.temperature)
            yield f"{name}, calibrated, k = 30", made.dense(credit, self.n)
            yield from self.grid(name, made, relative)

    def grid(self, name: str, found: Evidence, distances: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        for k in (30, None):
            for temperature in TEMPERATURES:
                credit = method.shares(distances, k=k, temperature=temperature)
                yield f"{name}, k = {k or CANDIDATES}, T = {temperature:g}", found.dense(credit, self.n)

    # -- research ---------------------------------------------------------------------------------------

    def researched(self) -> Iterator[tuple[str, np.ndarray]]:
        name = "A: LPIPS + 0.2 thumbnail"
        recall, rerank = self.compositions()[name]
        made, probes = (spaces.evidence(recall, rerank, which) for which in ("made", "probes"))
        yield f"B: two parents, {name}", self.two_parents(made, probes)
        parents = [recipe.parents for recipe in self.recipes]
        hubs = research.hubs(rerank.training, rerank.others["probes"][0], parents, rerank.metric)
        shifted = (made.distances - hubs[made.rows] / 2) / np.median(made.distances[:, 29])
        yield from self.grid(f"E: hubs, {name}", made, shifted)
        file = self.work / "patches.npy"
        if not file.exists():
            np.save(file, research.patches(self.training, self.others["made"]))
        yield "H: patches", np.load(file)

    def two_parents(self, made: Evidence, probes: Evidence) -> np.ndarray:
        truth = probes.dense(probes.parents(self.recipes), self.n)
        fitted = fit(probes.distances, probes.parents(self.recipes), null_distance=False)
        credit, of_probes = (
            each.dense(method.shares(method.relative(each.distances), temperature=fitted.temperature), self.n)
            for each in (made, probes)
        )
        mine, theirs = (
            research.pairs(self.training, self.others[name], each.rows[:, :10])
            for name, each in (("made", made), ("probes", probes))
        )
        return research.add_pairs(credit, mine, research.fit_pairs(of_probes, theirs, truth))
