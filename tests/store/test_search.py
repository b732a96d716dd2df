"""Recall is measured against exact search, and raised until it meets its target."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from samples import clustered, ids_of

from gmv_qdrant.vectors.embedded.store import EdgeStore
from gmv_qdrant.vectors.protocol import CollectionSpec, SearchParams
from gmv_qdrant.vectors.search import default_params, measure_recall, tune_search


def test_recall_equals_the_overlap_with_exact_search(tmp_path: Path) -> None:
    rows = clustered(3_000, 64)
    queries = clustered(25, 64, seed=1)
    with EdgeStore.open(tmp_path, CollectionSpec("training", 64)) as store:
        store.upsert(ids_of(3_000), rows, [{}] * 3_000)
        poor = SearchParams(rescore=False, oversampling=1.0)
        assert measure_recall(store, queries, 50, poor) == 1.0  # nothing is coded yet
        store.optimize(force=True)
        truth = store.search(queries, 50, SearchParams(exact=True))
        found = store.search(queries, 50, replace(poor, rescore=True))
        overlap = np.mean([len(set(a.ids) & set(b.ids)) / 50 for a, b in zip(truth, found, strict=True)])
        assert measure_recall(store, queries, 50, replace(poor, rescore=True)) == pytest.approx(overlap)
        assert overlap < 0.95
        assert measure_recall(store, queries, 50, default_params("pq", 50)) > 0.99


def test_oversampling_is_raised_until_the_target_is_met(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gmv_qdrant.vectors.search._LEAST", {"pq": (1.0, 1)})
    rng = np.random.default_rng(0)
    rows, queries = rng.standard_normal((2, 2_000, 96)).astype(np.float32)  # no clusters: hard for codes
    with EdgeStore.open(tmp_path, CollectionSpec("training", 96)) as store:
        store.upsert(list(range(2_000)), rows, [{}] * 2_000)
        store.optimize(force=True)
        few = queries[:20]
        easy, low = tune_search(store, few, 20, target=0.3)
        hard, high = tune_search(store, few, 20, target=0.99)
        assert 0.3 <= low < 0.99 <= high
        assert 1 <= easy.oversampling < hard.oversampling
        assert measure_recall(store, few, 20, hard) == high
        assert hard.hnsw_ef is not None
        assert hard.hnsw_ef >= 20 * hard.oversampling
        best, recall = tune_search(store, few, 20, target=1.0)
        assert recall == 1.0
        assert best.exact or measure_recall(store, few, 20, best) == 1.0


def test_with_a_graph_the_narrowest_search_that_is_good_enough_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, queries = clustered(3_000, 64), clustered(25, 64, seed=1)
    spec = CollectionSpec("training", 64, quantization="scalar")
    with EdgeStore.open(tmp_path, spec) as store:
        store.upsert(ids_of(3_000), rows, [{}] * 3_000)
        for module in ("embedded.store", "embedded.segments", "search"):
            monkeypatch.setattr(f"gmv_qdrant.vectors.{module}.HNSW_POINTS", 1_000)
        store.optimize(force=True)
        wide = default_params("scalar", 20)
        params, recall = tune_search(store, queries, 20, target=0.9)
        assert params.oversampling == 1.0 < wide.oversampling
        assert 0.95 <= recall == measure_recall(store, queries, 20, params)
        none, recall = tune_search(store, queries, 20, target=1.0)
        assert recall == 1.0
        assert none.exact or measure_recall(store, queries, 20, none) == 1.0


def test_nothing_to_search_is_found_completely(tmp_path: Path) -> None:
    with EdgeStore.open(tmp_path, CollectionSpec("training", 8)) as store:
        params, recall = tune_search(store, clustered(3, 8), 10)
        assert (params.exact, recall) == (False, 1.0)
        assert measure_recall(store, np.zeros((0, 8), np.float32), 10, params) == 1.0
