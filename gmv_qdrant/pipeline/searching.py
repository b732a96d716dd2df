"""How hard this collection must be searched: measured on queries of its own, kept in the ledger, measured again
when the collection has grown."""

from __future__ import annotations

import dataclasses
import json

import numpy as np

from gmv_qdrant.ledger.runs import Run
from gmv_qdrant.pipeline.context import Context
from gmv_qdrant.vectors.embedded.segments import HNSW_POINTS
from gmv_qdrant.vectors.protocol import SearchParams
from gmv_qdrant.vectors.search import default_params, tune_search

SAMPLE = 100
"""Queries that recall is measured on: 100 at K = 200 compare 20,000 neighbours."""
GROWN = 0.1
"""Share by which the number of coded points may change before recall is measured again."""


class SearchTuner:
    """Search parameters that reach the settings' ``target_recall``, by K."""

    def __init__(self, context: Context, run: Run) -> None:
        self.context = context
        self.run = run
        self._params: SearchParams | None = None

    def __call__(self, queries: np.ndarray) -> SearchParams:
        """Parameters for queries such as these, float32 ``(q, dim)``; the first call may measure with them."""
        if self._params is None:
            self._params = self._kept() or self._measure(queries)
        return self._params

    def hold(self, params: SearchParams) -> None:
        """Search with these, and measure nothing."""
        self._params = params

    def must_measure(self) -> bool:
        """Whether a call will measure recall, and so must bring queries."""
        return self._params is None and self._kept() is None and self._coded() > 0

    def _kept(self) -> SearchParams | None:
        text = self.context.ledger.meta().get("search")
        if text is None:
            return None
        kept = json.loads(text)
        coded = self._coded()
        settings = self.context.settings
        if (
            kept["candidates"] != settings.candidates
            or kept["recall"] < settings.target_recall
            or (kept["coded_points"] == 0) != (coded == 0)
            or abs(coded - kept["coded_points"]) > GROWN * kept["coded_points"]
        ):
            return None
        self.run.figures["recall"] = kept["recall"]
        return SearchParams(**kept["params"])

    def _coded(self) -> int:
        """Points that aren't searched exactly, because of codes or a graph."""
        status = self.context.store.status()
        if status.quantization != "none":
            return status.coded_points
        scanned = status.engine == "edge" and status.points < HNSW_POINTS
        return 0 if scanned or status.state == "exact" else status.points - status.tail_points

    def _measure(self, queries: np.ndarray) -> SearchParams:
        store, settings = self.context.store, self.context.settings
        coded = self._coded()
        if coded == 0:
            params, recall, asked = default_params(store.spec.quantization, settings.candidates), 1.0, 0
        else:
            sample = queries[np.random.default_rng(0).permutation(len(queries))[:SAMPLE]]
            with self.run.timed("tune search"):
                params, recall = tune_search(store, sample, settings.candidates, settings.target_recall)
            asked = len(sample)
        found = {
            "recall": recall,
            "target": settings.target_recall,
            "candidates": settings.candidates,
            "queries": asked,
            "coded_points": coded,
            "params": dataclasses.asdict(params),
        }
        with self.context.ledger.write() as con:
            self.context.ledger.set_meta(con, search=found)
        self.run.figures["recall"] = recall
        return params
