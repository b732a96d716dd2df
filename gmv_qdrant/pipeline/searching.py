"""Recall: the collection is searched as hard as it must be, after it was held against the ledger.

A store that lacks images of the ledger isn't searched: who isn't there would get no credit, without a word.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cached_property

import numpy as np

from gmv_qdrant.errors import StoreError
from gmv_qdrant.ledger.database import Ledger
from gmv_qdrant.ledger.runs import Run
from gmv_qdrant.pipeline.spaces import Spaces
from gmv_qdrant.settings import Settings
from gmv_qdrant.vectors.protocol import Hits, PointId, VectorStore
from gmv_qdrant.vectors.search import TunedSearch, Tuning


class Search:
    """The nearest points of queries, by a search that reaches the settings' ``target_recall``.

    keep: keep in the ledger what was measured.
    """

    def __init__(
        self, spaces: Spaces, ledger: Ledger, settings: Settings, run: Run, *, keep: bool = True
    ) -> None:
        self._spaces, self._ledger, self._settings, self._run = spaces, ledger, settings, run
        self._keep = keep

    def __call__(self, queries: np.ndarray, limit: int) -> list[Hits]:
        """The ``limit`` nearest points of each query, float32 ``(q, dim)``.

        Raises `StoreError` where the store isn't what the ledger says.
        """
        hits = self._tuned(queries, limit)
        if self._tuned.recall is None:
            self._run.figures.pop("recall", None)
        else:
            self._run.figures["recall"] = self._tuned.recall
        return hits

    @cached_property
    def _tuned(self) -> TunedSearch:
        if self._spaces.owned:
            require_same_images(self._ledger, self._spaces.store)
        self._spaces.sample(self._ledger).verify()
        kept = json.loads(self._ledger.meta().get("search", "null"))
        candidates, target = self._settings.candidates, self._settings.target_recall
        return TunedSearch(self._spaces.store, candidates, target, kept, self._remember)

    def _remember(self, tuning: Tuning) -> None:
        if self._keep:
            with self._ledger.write() as con:
                self._ledger.set_meta(con, search=tuning.as_dict())


def require_same_images(ledger: Ledger, store: VectorStore) -> None:
    """Raises `StoreError` where the store lacks training images.

    Points that are no training images do no harm: `Matcher` passes them over.
    """
    if _holds_the_same(ledger, store):
        return
    missing, unknown = differing(ledger, store)
    if missing:
        strange = f" and holds {len(unknown):,} points that aren't among them" if unknown else ""
        raise StoreError(
            f"the collection {store.spec.name!r} lacks {len(missing):,} of the ledger's training images{strange} (is "
            "one of the two an older copy?): 'gmv-qdrant check --repair' computes what is missing from its sources"
        )


def _holds_the_same(ledger: Ledger, store: VectorStore) -> bool:
    """Whether the store's points are exactly the ledger's training images, by a fingerprint of the ids."""
    row = ledger.query(
        """SELECT count(*) AS n, bit_xor(('0x' || left(id, 16))::UBIGINT) AS high,
        bit_xor(('0x' || right(id, 16))::UBIGINT) AS low
        FROM (SELECT replace(point_id, '-', '') AS id FROM training WHERE version_withdrawn IS NULL)"""
    ).to_pylist()[0]
    wanted = row["n"], (row["high"] or 0) << 64 | (row["low"] or 0)
    return fingerprint(point for page in store.ids() for point in page) == wanted


def fingerprint(ids: Iterable[PointId]) -> tuple[int, int]:
    """How many ids, and all of them joined by XOR: they come from SHA-1, so no two sets of images share it."""
    count = mixed = 0
    for one in ids:
        count += 1
        mixed ^= one if isinstance(one, int) else one.int
    return count, mixed


def differing(ledger: Ledger, store: VectorStore) -> tuple[list[str], list[PointId]]:
    """Training images that the store lacks, and points that are no training images of the ledger."""
    rows = ledger.query("SELECT point_id FROM training WHERE version_withdrawn IS NULL")
    missing = set(rows["point_id"].to_pylist())
    unknown: list[PointId] = []
    for page in store.ids():
        for point in page:
            if str(point) in missing:
                missing.remove(str(point))
            else:
                unknown.append(point)
    return sorted(missing), unknown
