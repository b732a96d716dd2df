"""Images whose parents are known, and images that have none: where does their credit go?

    python scripts/reproduce/known_parents.py KIT [--tasks cifar airplanes digits] [--sets kit vae ...] [--work DIR]

`parent_sets` says what the sets are. Fits see training images only, transformed into probes. Compositions:
EfficientNet recall and LPIPS (alex, 64 px), and A, both with a thumbnail (16 px, weights .5 and .2). Figures for each
set and rule: overlap (the sum of min(credit, true weight)), share of credit on true parents, correlation with the
truth, and the share that nobody gets; on orphans, everything should be nobody's. K = 200, k = 30, exact recall,
mirrored views but for digits. Rules that aren't in the tool are `research`'s: B (two parents), E (hubs), F (probes as
blurred as the images).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import numpy as np
import parent_sets
import research
import spaces
import torch
from spaces import Evidence, Space

from gmv_qdrant import method
from gmv_qdrant.evaluation.fitting import Fit, fit
from gmv_qdrant.evaluation.parents import parent_figures

RECALL, RERANK = 0.5, 0.2
"""Weights of the thumbnail."""


class Judge:
    """All rules on one task."""

    def __init__(
        self, kit: common.Kit, task: parent_sets.Task, folder: Path, probes: int, research_too: bool
    ) -> None:
        self.task, self.n, self.research_too = task, len(task.images), research_too
        self.training = spaces.pictures(task.images)
        self.others = {each: spaces.pictures(images) for each, (images, _) in task.sets.items()}
        options = {"mirror": task.mirror}
        self.recipes, made = spaces.make_probes(self.training, task.labels.tolist(), probes, 0, **options)
        self.others["probes"] = made
        for each in ("vae", "kit") if research_too else ():
            if each in task.sets:
                self.others[f"probes like {each}"] = research.like(self.others[each], made)
        recall, rerank = spaces.encoders(kit, "efficientnet", "lpips:alex@64")
        self.recall = spaces.space(recall, self.training, self.others, folder / "recall", **options)
        self.rerank = spaces.space(rerank, self.training, self.others, folder / "rerank", **options)
        self.thumbnails = spaces.thumbnails(self.training, self.others, **options)

    def compositions(self) -> Iterator[tuple[str, Space, Space]]:
        yield "LPIPS", self.recall, self.rerank
        recall = self.recall.with_thumbnail(self.thumbnails, RECALL, unit=True)
        yield "A", recall, self.rerank.with_thumbnail(self.thumbnails, RERANK, unit=False)

    def figures(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, recall, rerank in self.compositions():
            of = {each: spaces.evidence(recall, rerank, each) for each in self.others}
            probes = of["probes"]
            truth = probes.parents(self.recipes)
            fits = {
                "calibrated": fit(probes.distances, truth, null_distance=False),
                "nobody": fit(probes.distances, truth),
            }
            found[f"{name}, fits"] = {each: one.__repr__() for each, one in fits.items()}
            for each in self.task.sets:
                mine = of[each]
                rows = {"paper": self.judged(each, mine, {})}
                rows |= {rule: self.judged(each, mine, function(one)) for rule, one in fits.items()}
                if name == "A" and self.research_too:
                    rows |= self.researched(each, of, rerank, fits["calibrated"])
                found[f"{name}, {each}"] = rows
        return found

    def judged(self, each: str, mine: Evidence, options: dict[str, Any]) -> dict[str, float]:
        _, parents = self.task.sets[each]
        weights = np.array([[*one.weights, 0, 0, 0][:3] for one in parents])
        found = parent_figures(
            mine.distances, mine.parents(parents), training=self.n, weights=weights, **options
        )
        return {name: round(value, 4) for name, value in found.as_dict().items()}

    # -- research ------------------------------------------------------------------------------------------

    def researched(self, each: str, of: dict[str, Evidence], rerank: Space, fitted: Fit) -> dict[str, Any]:
        rows = {}
        if (like := f"probes like {each}") in of:
            one = fit(of[like].distances, of[like].parents(self.recipes), null_distance=False)
            rows["F: probes like these"] = self.judged(each, of[each], function(one))
        hubs = research.hubs(
            rerank.training, rerank.others["probes"][0], [one.parents for one in self.recipes], rerank.metric
        )
        shifted = {name: without_hubs(of[name], hubs) for name in (each, "probes")}
        one = fit(
            shifted["probes"].distances,
            shifted["probes"].parents(self.recipes),
            null_distance=False,
            relative=False,
        )
        rows["E: hubs"] = self.judged(each, shifted[each], {"temperature": one.temperature})
        rows["B: two parents"] = self.two_parents(each, of, fitted)
        return rows

    def two_parents(self, each: str, of: dict[str, Evidence], fitted: Fit) -> dict[str, float]:
        truth = of["probes"].dense(of["probes"].parents(self.recipes), self.n)
        credit, pairs = {}, {}
        for name in (each, "probes"):
            shares = method.shares(method.relative(of[name].distances), temperature=fitted.temperature)
            credit[name] = of[name].dense(shares, self.n)
            seen = [
                image if view == 0 else spaces.mirrored([image])[0]
                for image, view in zip(self.others[name], of[name].views[:, 0], strict=True)
            ]
            pairs[name] = research.pairs(self.training, seen, of[name].rows[:, :10])
        z = research.fit_pairs(credit["probes"], pairs["probes"], truth)
        mixed = research.add_pairs(credit[each], pairs[each], z)
        true = np.zeros_like(mixed)
        for i, one in enumerate(self.task.sets[each][1]):
            true[i, list(one.parents)] = one.weights
        overlap = np.minimum(mixed, true).sum(axis=1)
        return {
            "overlap": round(float(overlap.mean()), 4),
            "overlap_se": round(float(overlap.std(ddof=1) / len(overlap) ** 0.5), 4),
            "parent_share": round(float((mixed * (true > 0)).sum(axis=1).mean()), 4),
            "correlation": round(float(np.corrcoef(mixed.ravel(), true.ravel())[0, 1]), 4)
            if true.any()
            else 0.0,
        }


def function(one: Fit) -> dict[str, Any]:
    return {"temperature": one.temperature, "null_distance": one.null_distance, "relative": one.relative}


def without_hubs(found: Evidence, hubs: np.ndarray) -> Evidence:
    d = found.distances - hubs[found.rows] / 2
    order = np.argsort(d, axis=1, kind="stable")
    return Evidence(*(np.take_along_axis(of, order, axis=1) for of in (found.rows, d, found.views)))


def main() -> None:
    parser = common.arguments(__doc__, tasks=tuple(parent_sets.TASKS), training=4000, each=200, probes=400)
    parser.add_argument("--sets", nargs="+", help="only these  [all]")
    parser.add_argument("--research", action="store_true", help="also B, E and F")
    given = parser.parse_args()
    torch.set_num_threads(1)
    kit, work = common.Kit(given.kit), common.work_folder(given)
    found: dict[str, Any] = {}
    for name in given.tasks:
        task = parent_sets.TASKS[name](kit, given.training, given.each)
        task.sets = {each: of for each, of in task.sets.items() if not given.sets or each in given.sets}
        common.note(name, len(task.images), {each: len(images) for each, (images, _) in task.sets.items()})
        found[name] = Judge(kit, task, work / f"parents-{name}", given.probes, given.research).figures()
        common.show(found, given.out, quiet=True)
    common.show(found, given.out)


if __name__ == "__main__":
    main()
