"""Recall: the collection is searched as hard as it must be, and the ledger keeps how hard that is."""

from __future__ import annotations

import json

import numpy as np

from gmv_qdrant.ledger.database import Ledger
from gmv_qdrant.ledger.runs import Run
from gmv_qdrant.settings import Settings
from gmv_qdrant.vectors.protocol import Hits, VectorStore
from gmv_qdrant.vectors.search import TunedSearch, Tuning


class Search:
    """The nearest points of queries, by a search that reaches the settings' ``target_recall``."""

    def __init__(self, store: VectorStore, ledger: Ledger, settings: Settings, run: Run) -> None:
        self._ledger, self._run = ledger, run
        kept = json.loads(ledger.meta().get("search", "null"))
        self._search = TunedSearch(store, settings.candidates, settings.target_recall, kept, self._keep)

    def __call__(self, queries: np.ndarray, limit: int) -> list[Hits]:
        """The ``limit`` nearest points of each query, float32 ``(q, dim)``."""
        hits = self._search(queries, limit)
        if self._search.recall is None:
            self._run.figures.pop("recall", None)
        else:
            self._run.figures["recall"] = self._search.recall
        return hits

    def _keep(self, tuning: Tuning) -> None:
        with self._ledger.write() as con:
            self._ledger.set_meta(con, search=tuning.as_dict())
