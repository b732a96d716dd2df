"""What every store does, whatever stands behind it. Names of a real server come from QDRANT_URL."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from samples import MakeStore, clustered, ids_of

from gmv_qdrant.errors import StoreError
from gmv_qdrant.vectors.protocol import (
    CollectionSpec,
    PointId,
    SearchParams,
    VectorStore,
)
from gmv_qdrant.vectors.search import default_params

SPEC = CollectionSpec("training", 16)
EXACT = SearchParams(exact=True)


def filled(store: VectorStore, n: int, seed: int = 0) -> tuple[list[uuid.UUID], np.ndarray]:
    ids, rows = ids_of(n, seed), clustered(n, store.spec.dim, seed)
    store.upsert(ids, rows, [{"n": i} for i in range(n)])
    return ids, rows


def oracle(rows: np.ndarray, query: np.ndarray, distance: str) -> np.ndarray:
    a, q = rows.astype(np.float64), query.astype(np.float64)
    if distance == "euclid":
        return np.asarray(np.linalg.norm(a - q, axis=1))
    if distance == "dot":
        return -(a @ q)
    return 1 - (a @ q) / (np.linalg.norm(a, axis=1) * np.linalg.norm(q))


def test_what_goes_in_comes_out(make_store: MakeStore) -> None:
    store = make_store(replace(SPEC, distance="euclid"))
    ids: list[PointId] = [0, 7, 2**63, uuid.UUID(int=9)]
    rows = clustered(4, 16)
    payloads: list[dict[str, Any]] = [
        {"uri": "a/ü 1.png", "labels": ["cat", "dog"], "deep": {"er": 1}},
        {},
        {"flag": True, "none": None, "x": 1.5},
        {"big": 2**40},
    ]
    store.upsert(ids, rows, payloads)
    found = {p.id: p for p in store.retrieve([*ids, 12345, uuid.UUID(int=8)], with_vectors=True)}
    assert found.keys() == set(ids)
    for i, row, payload in zip(ids, rows, payloads, strict=True):
        assert found[i].payload == payload
        vector = found[i].vector
        assert vector is not None
        assert vector.dtype == np.float32
        np.testing.assert_array_equal(vector, row)
    assert all(p.vector is None for p in store.retrieve(ids))
    assert store.count() == 4


def test_cosine_keeps_unit_vectors(make_store: MakeStore) -> None:
    store = make_store(SPEC)
    store.upsert([1], np.full((1, 16), 5.0), [{}])
    vector = store.retrieve([1], with_vectors=True)[0].vector
    np.testing.assert_allclose(vector, np.full(16, 0.25), rtol=1e-6)


def test_upserting_again_replaces(make_store: MakeStore) -> None:
    store = make_store(SPEC)
    ids, rows = filled(store, 50)
    store.upsert(ids[:10], rows[10:20], [{"second": True}] * 10)
    assert store.count() == 50
    assert store.retrieve([ids[3]])[0].payload == {"second": True}
    hits = store.search(rows[13:14], 2, EXACT)[0]
    assert set(hits.ids) == {ids[3], ids[13]}


def test_the_last_of_equal_ids_wins(make_store: MakeStore) -> None:
    store = make_store(SPEC)
    ids: list[PointId] = [i % 1_500 for i in range(3_000)]
    store.upsert(ids, clustered(3_000, 16), [{"n": i} for i in range(3_000)])
    assert store.count() == 1_500
    assert {p.payload["n"] for page in store.scroll() for p in page} == set(range(1_500, 3_000))


def test_purging_keeps_what_is_alive(make_store: MakeStore) -> None:
    store = make_store(SPEC)
    ids, _ = filled(store, 300)
    store.delete(ids[:100])
    store.purge()
    assert {p.id for page in store.scroll() for p in page} == set(ids[100:])


@pytest.mark.parametrize("distance", ["cosine", "dot", "euclid"])
@pytest.mark.parametrize("name", ["recall", ""])
def test_search_agrees_with_numpy(make_store: MakeStore, distance: Any, name: str) -> None:
    store = make_store(CollectionSpec("training", 24, distance, name))
    ids, rows = filled(store, 700)
    queries = clustered(40, 24, seed=5)
    for params in (EXACT, default_params("pq", 30)):
        for query, hits in zip(queries, store.search(queries, 30, params), strict=True):
            truth = oracle(rows, query, distance)
            order = np.argsort(truth)[:30]
            assert hits.ids == [ids[i] for i in order]
            assert hits.distances.dtype == np.float32
            np.testing.assert_allclose(hits.distances, truth[order], rtol=1e-4, atol=1e-5)


def test_equal_distances_are_ordered_and_cut_by_id(make_store: MakeStore) -> None:
    store = make_store(SPEC)
    rows = np.repeat(clustered(3, 16), 200, axis=0)
    rng = np.random.default_rng(1)
    ids: list[PointId] = [int(i) for i in rng.permutation(300)] + list(ids_of(300))
    store.upsert(ids, rows, [{}] * 600)
    nearest_group = sorted(ids[:200], key=str)
    for params in (EXACT, SearchParams(oversampling=8)):
        for limit in (1, 50, 190, 200):
            assert store.search(rows[:1], limit, params)[0].ids == nearest_group[:limit]


def test_a_search_for_more_than_there_is_gives_all(make_store: MakeStore) -> None:
    store = make_store(SPEC)
    assert store.search(clustered(2, 16), 5, EXACT)[1].ids == []
    ids, rows = filled(store, 7)
    assert set(store.search(rows[:1], 100, default_params("pq", 100))[0].ids) == set(ids)
    assert store.search(np.zeros((0, 16), np.float32), 5, EXACT) == []


def test_quantized_search_finds_what_exact_search_finds(make_store: MakeStore) -> None:
    store = make_store(replace(SPEC, dim=64))
    filled(store, 1_200)
    assert store.status().quantization == "none"
    store.optimize(force=True)
    queries = clustered(20, 64, seed=3)
    exact = store.search(queries, 100, EXACT)
    coded = store.search(queries, 100, default_params("pq", 100))
    shared = [len(set(a.ids) & set(b.ids)) / 100 for a, b in zip(exact, coded, strict=True)]
    assert np.mean(shared) > 0.99
    status = store.status()
    assert (status.points, status.vector_bytes) == (1_200, 1_200 * 64 * 4)
    assert status.coded_points + status.tail_points == 1_200


def test_deleted_points_are_gone_and_unknown_ids_are_nothing(make_store: MakeStore) -> None:
    store = make_store(SPEC)
    ids, rows = filled(store, 30)
    store.delete([*ids[:10], uuid.UUID(int=1), 99])
    store.flush()
    assert store.count() == 20
    assert store.retrieve(ids[:10]) == []
    assert set(store.search(rows[:1], 30, EXACT)[0].ids) == set(ids[10:])


def test_scrolling_yields_every_point_once(make_store: MakeStore) -> None:
    store = make_store(SPEC)
    ids, rows = filled(store, 2_345)
    more: list[PointId] = list(range(1, 40))
    store.upsert(more, clustered(39, 16, seed=2), [{}] * 39)
    pages = list(store.scroll(with_vectors=True))
    found = [p for page in pages for p in page]
    assert len(found) == len(ids) + len(more)
    assert {i for page in store.ids() for i in page} == {*ids, *more}
    bare = [p for page in store.scroll(fields=["absent"]) for p in page]
    assert {p.id for p in bare} == {*ids, *more}
    assert not any(p.payload for p in bare)
    assert {p.id for p in found} == {*ids, *more}
    assert max(map(len, pages)) <= 1_000
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    by_id = dict(zip(ids, unit, strict=True))
    for p in found:
        if p.id in by_id:
            np.testing.assert_allclose(p.vector, by_id[p.id], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("value", "kind"), [(np.nan, "not finite"), (np.inf, "not finite"), (3e38, "not finite"), (0.0, "zero")]
)
def test_vectors_without_a_direction_are_refused_whole(
    make_store: MakeStore, value: float, kind: str
) -> None:
    store = make_store(SPEC)
    rows = clustered(3_000, 16)
    rows[2_500] = value
    with pytest.raises(StoreError, match=f"vector 2500 of 3000 is {kind}"):
        store.upsert(ids_of(3_000), rows, [{}] * 3_000)
    with pytest.raises(StoreError, match=kind):
        store.search(rows[2_500:2_501], 3, EXACT)
    assert store.count() == 0


def test_what_does_not_fit_is_refused_before_anything_is_stored(make_store: MakeStore) -> None:
    store = make_store(SPEC)
    ids, rows = ids_of(4), clustered(4, 16)
    bad: list[tuple[Any, Any, Any, str]] = [
        (ids, clustered(4, 15), [{}] * 4, r"\(4, 15\).*rows of 16 numbers"),
        (ids, rows[0], [{}] * 16, "do not belong together"),
        (ids[:3], rows, [{}] * 4, "3 ids, 4 vectors and 4 payloads"),
        ([*ids[:3], -1], rows, [{}] * 4, "-1 is not a point id"),
        ([*ids[:3], 2**64], rows, [{}] * 4, "is not a point id"),
        ([*ids[:3], "x"], rows, [{}] * 4, "'x' is not a point id"),
        ([*ids[:3], True], rows, [{}] * 4, "True is not a point id"),
        (ids, rows, [{}, {}, {}, {"when": object()}], "payload"),
    ]
    for some_ids, vectors, payloads, sentence in bad:
        with pytest.raises(StoreError, match=sentence):
            store.upsert(some_ids, vectors, payloads)
    with pytest.raises(StoreError, match="at least 1"):
        store.search(rows, 0, EXACT)
    with pytest.raises(StoreError, match="rows of 16"):
        store.search(clustered(2, 8), 3, EXACT)
    assert store.count() == 0


def test_a_closed_store_says_so(make_store: MakeStore) -> None:
    store = make_store(SPEC)
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed: open the workspace again"):
        store.count()
    with pytest.raises(StoreError, match="closed"):
        store.upsert([1], clustered(1, 16), [{}])


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["upsert", "delete", "optimize"]), st.sets(st.integers(0, 40), min_size=1)),
    max_size=8,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=OPERATIONS, seed=st.integers(0, 1_000))
def test_any_history_equals_a_dictionary(
    make_store: MakeStore, operations: list[tuple[str, set[int]]], seed: int
) -> None:
    store = make_store(replace(SPEC, name=f"h{uuid.uuid4().hex}", dim=4, distance="euclid"))
    model: dict[PointId, np.ndarray] = {}
    rng = np.random.default_rng(seed)
    for verb, numbers in operations:
        ids: list[PointId] = [uuid.UUID(int=n) if n % 2 else n for n in numbers]
        if verb == "upsert":
            rows = rng.integers(1, 4, (len(ids), 4)).astype(np.float32)  # few values: many ties
            store.upsert(ids, rows, [{"v": row.tolist()} for row in rows])
            model.update(zip(ids, rows, strict=True))
        elif verb == "delete":
            store.delete(ids)
            for i in ids:
                model.pop(i, None)
        else:
            store.optimize(force=True)
    found = {p.id: p for page in store.scroll(with_vectors=True) for p in page}
    assert found.keys() == model.keys()
    for i, row in model.items():
        np.testing.assert_array_equal(found[i].vector, row)
        assert found[i].payload == {"v": row.tolist()}
    query = np.full((1, 4), 2.0, np.float32)
    ranked = sorted(
        model, key=lambda i: (float(np.linalg.norm(model[i] - query[0]).astype(np.float32)), str(i))
    )
    assert store.search(query, 9, EXACT)[0].ids == ranked[:9]


def test_ids_are_those_of_all_points(make_store: MakeStore) -> None:
    store = make_store(SPEC)
    assert [page for page in store.ids() if page] == []
    ids = ids_of(2_500)
    store.upsert(ids, clustered(2_500, 16), [{}] * 2_500)
    store.delete(ids[:10])
    store.flush()
    found = [one for page in store.ids() for one in page]
    assert len(found) == 2_490
    assert set(found) == set(ids[10:])
