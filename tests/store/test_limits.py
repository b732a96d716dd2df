"""Limits that a collection's strict mode, a rate limit or a server sets are kept within, or named with the way out."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback import Fault, Loopback
from loopback_grpc import GrpcLoopback
from qdrant_client.http import models as m
from samples import clustered, ids_of
from served import Bucket

from gmv_qdrant.errors import CollectionMismatch, SettingsError, StoreError, StoreUnavailable
from gmv_qdrant.setting_values import Secret
from gmv_qdrant.vectors.protocol import CollectionSpec, SearchParams
from gmv_qdrant.vectors.search import TunedSearch, default_params, tune_search
from gmv_qdrant.vectors.server import address, collections, connection
from gmv_qdrant.vectors.server.store import ServerConfig, ServerStore, create_indexes

SPEC = CollectionSpec("training", 16)
EXACT = SearchParams(exact=True)
ROWS, IDS = clustered(400, 16), ids_of(400)


@pytest.fixture
def config(server: Loopback) -> ServerConfig:
    return ServerConfig(server.url, timeout=1, patience=8)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_backoff", lambda _: 0.05)
    monkeypatch.setattr(collections, "POLL", 0.02)


def filled(server: Loopback, config: ServerConfig, count: int = 400, **strict: Any) -> ServerStore:
    """A collection with points, whose strict mode is set afterwards, as an operator would."""
    made = ServerStore.create(config, SPEC)
    payloads = [{"tenant": "ab"[i % 2], "n": i % 3, "uri": f"{i}.png"} for i in range(count)]
    made.upsert(IDS[:count], ROWS[:count], payloads)
    made.close()
    server.collections["training"].limit(m.StrictModeConfig(enabled=True, **strict))
    return ServerStore.open(config, "training")


def test_every_limit_of_a_search_is_kept_within(server: Loopback, config: ServerConfig) -> None:
    store = filled(
        server, config, search_allow_exact=False, max_query_limit=60, search_max_oversampling=2.0,
        search_max_hnsw_ef=64, search_max_batchsize=2, max_timeout=5, condition_max_size=7,
    )  # fmt: skip
    params, recall = tune_search(store, ROWS[:10], 20, target=0.99)
    assert not params.exact
    assert params.oversampling <= 2
    assert params.hnsw_ef == 64
    assert recall is not None, "measured on all vectors, without an exact search"
    truth = 1 - ROWS[:10] @ ROWS.T / np.outer(*(np.linalg.norm(r, axis=1) for r in (ROWS[:10], ROWS)))
    found = store.search(ROWS[:10], 20, params)
    share = np.mean(
        [
            len({IDS[i] for i in np.argsort(t)[:20]} & set(h.ids)) / 20
            for t, h in zip(truth, found, strict=True)
        ]
    )
    assert recall == pytest.approx(share, abs=0.02)
    assert store.count() == 400
    assert len(list(store.scroll(with_vectors=True))) >= 400 // 60
    with pytest.raises(
        StoreError, match=r"at most 60 points a query \(max_query_limit .*61 are needed.*--candidates"
    ):
        store.search(ROWS[:1], 61, default_params("pq", 61))
    assert store.search(ROWS[:1], 60, params)[0].ids, "the room for ties gives way"


def test_recall_that_cannot_be_measured_is_not_claimed(
    server: Loopback, config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gmv_qdrant.vectors.search.MOST_SCROLLED", 100)
    store = filled(server, config, search_allow_exact=False)
    store.enable_quantization("scalar")
    search = TunedSearch(store, 20, 0.99)
    search(ROWS[:5], 20)
    assert search.recall is None


def test_writes_within_batches_and_conditions(server: Loopback, config: ServerConfig) -> None:
    store = filled(server, config, 0, upsert_max_batchsize=30, condition_max_size=11, max_query_limit=50)
    store.upsert(IDS, ROWS, [{"tenant": "a"}] * 400)
    part = ServerStore.open(config, "training", only={"must": [{"key": "tenant", "match": {"value": "a"}}]})
    assert len(part.retrieve(IDS[:40], with_vectors=True)) == 40
    part.delete(IDS[:40])
    assert store.count() == 360


def test_a_rate_limit_is_waited_for_and_said(
    server: Loopback, config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(Bucket, "now", staticmethod(lambda: clock[0]))
    monkeypatch.setattr(connection, "SAY_AFTER", 0.0)
    waits: list[float] = []

    def wait(self: threading.Event, seconds: float | None = None) -> bool:
        waits.append(seconds or 0)
        clock[0] += seconds or 0
        return False

    told: list[str] = []
    store = filled(server, replace(config, tell=told.append), read_rate_limit=3)
    monkeypatch.setattr(threading.Event, "wait", wait)
    for _ in range(9):
        store.count()
    monkeypatch.undo()
    assert sum(waits) == pytest.approx(6 * 20)
    assert len(told) >= 1
    assert "to count points, for 20 s as it asks: Rate limiting exceeded" in told[0]


def test_a_batch_larger_than_the_bucket_is_halved(server: Loopback, config: ServerConfig) -> None:
    store = ServerStore.create(config, SPEC)
    server.collections["training"].limit(m.StrictModeConfig(enabled=True, write_rate_limit=100_000))
    server.collections["training"].buckets["Write"].capacity = 50  # set after the store was opened
    server.collections["training"].buckets["Write"].tokens = 50
    monkey = server.collections["training"].buckets["Write"]
    monkey.spend = lambda price: Bucket.spend(Bucket("Write", 50, 50), price)  # type: ignore[method-assign]
    store.upsert(IDS, ROWS, [{}] * 400)
    assert store.count() == 400


@pytest.mark.parametrize("door", [False, True])
def test_a_body_too_large_is_halved(server: Loopback, config: ServerConfig, door: bool) -> None:
    store = ServerStore.create(config, SPEC)
    server.max_body = 20_000
    store.upsert(IDS, ROWS, [{}] * 400)
    store.search(ROWS, 5, EXACT)
    store.delete(IDS[:300])
    assert store.count() == 100
    server.fail(Fault("answer", 413, text="too large"), on="/query")
    assert len(store.search(ROWS[:4], 5, EXACT)) == 4
    with pytest.raises(StoreError, match="finds a request to store points too large"):
        store.upsert(IDS[:1], ROWS[:1], [{"text": "x" * 30_000}])


def test_a_missing_index_is_named_and_can_be_made(server: Loopback, config: ServerConfig) -> None:
    filled(server, config, unindexed_filtering_retrieve=False).close()
    only = {"must": [{"key": "tenant", "match": {"value": "a"}}, {"key": "n", "range": {"gte": 1}}]}
    with pytest.raises(StoreError, match=r"field 'tenant', .* index of the kind 'keyword'.*--create-index'"):
        ServerStore.open(config, "training", only=only)
    create_indexes(config, "training", {"tenant": "keyword", "n": "float"})
    store = ServerStore.open(config, "training", only=only)
    assert store.count() == len([i for i in range(400) if i % 2 == 0 and i % 3])
    assert (
        store.payload_types() == {"run": "keyword", "tenant": "keyword", "n": "float"}
        or store.payload_types()
    )


def test_a_filter_that_is_none_is_refused(server: Loopback, config: ServerConfig) -> None:
    with pytest.raises(SettingsError, match=r"isn't one that Qdrant takes .*\"must\""):
        ServerStore.open(config, "training", only={"must": [{"key": "tenant", "matches": 1}]})
    assert server.requests == []


def test_tokens_for_one_collection(server: Loopback, config: ServerConfig) -> None:
    filled(server, config).close()
    server.api_key = "root"
    server.tokens = {"reader": {"training": "r"}, "old": {"!": ""}, "other": {"else": "rw"}}
    store = ServerStore.open(replace(config, api_key=Secret("reader")), "training")
    assert len(store.search(ROWS[:3], 3, EXACT)) == 3
    store.status()
    with pytest.raises(
        StoreError, match=r"may not store points .*Write access to collection training is required"
    ):
        store.upsert(IDS[:1], ROWS[:1], [{}])
    for key, sentence in (
        ("old", r"refused the API key \(ExpiredSignature\)"),
        ("other", "Access to collection training"),
    ):
        with pytest.raises(StoreError, match=sentence):
            ServerStore.open(replace(config, api_key=Secret(key)), "training")


def test_aliases_are_followed(server: Loopback, config: ServerConfig) -> None:
    filled(server, config).close()
    server.aliases["live"] = "training"
    store = ServerStore.open(config, "live")
    assert store.count() == 400
    assert store.status().points == 400
    before = store.status().searched
    server.handle("PUT", "/collections/next", b'{"vectors": {"recall": {"size": 16, "distance": "Cosine"}}}')
    server.aliases["live"] = "next"
    assert store.status().searched != before


def test_a_prefix_and_the_schemes_own_port(
    server: Loopback, config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.prefix = "/qdrant"
    ServerStore.create(replace(config, url=server.url), SPEC).close()
    monkeypatch.setattr(address, "REST_PORT", 9)
    monkeypatch.setattr(address, "SCHEME_PORTS", {"http": server.port, "https": 443})
    for url in ("http://127.0.0.1/qdrant", "http://127.0.0.1/qdrant/"):
        assert ServerStore.open(replace(config, url=url), "training").count() == 0
    monkeypatch.setattr(address, "SCHEME_PORTS", {"http": 10, "https": 443})
    with pytest.raises(
        StoreUnavailable, match=r"from http://127.0.0.1:9/qdrant .*nor from http://127.0.0.1:10/qdrant"
    ):
        ServerStore.open(replace(config, url="http://127.0.0.1/qdrant", patience=1), "training")


def test_grpc_is_found_by_asking(
    server: Loopback, config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with GrpcLoopback(server) as door:
        monkeypatch.setattr(address, "GRPC_PORT", door.port)
        store = ServerStore.create(replace(config, prefer_grpc=True), SPEC)
        assert store.protocol == f"gRPC on port {door.port}"
        store.upsert(IDS, ROWS, [{}] * 400)
        assert store.count() == 400
        store.close()
    with pytest.raises(
        StoreUnavailable, match=rf"doesn't answer to gRPC on {server.port + 1} or .*GMV_QDRANT_GRPC_PORT"
    ):
        ServerStore.open(replace(config, prefer_grpc=True), "training")
    assert ServerStore.open(config, "training").protocol == "REST"


@pytest.mark.parametrize("hanging", [False, True])
def test_a_dead_or_hanging_server_is_said_within_ten_seconds(server: Loopback, hanging: bool) -> None:
    url = server.url if hanging else "http://127.0.0.1:9"
    server.seconds = 30 if hanging else 0
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="no answer from"):
        ServerStore.open(ServerConfig(url), "training")
    assert time.monotonic() - began < 10
    server.seconds = 0


def test_in_the_middle_it_is_waited_for_and_said(
    server: Loopback, config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "SAY_AFTER", 0.2)
    told: list[str] = []
    store = filled(server, replace(config, tell=told.append))
    server.fail(Fault("restart", seconds=1), on="/count")
    assert store.count() == 400
    assert told
    assert "to count points" in told[0]


def test_the_first_failure_stops_the_rest(server: Loopback, config: ServerConfig) -> None:
    """What is given up isn't begun anew by the requests beside it."""
    store = filled(server, replace(config, patience=3), search_max_batchsize=2)
    server.fail(*[Fault("answer", 503)] * 1_000, on="/query")
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        store.search(ROWS, 5, EXACT)
    assert time.monotonic() - began < 8


def test_quantization_that_can_never_happen_is_said_at_once(server: Loopback, config: ServerConfig) -> None:
    store = filled(server, config)
    for setting in ("indexing_threshold", "max_optimization_threads"):
        change = m.UpdateCollection(optimizers_config=m.OptimizersConfigDiff(**{setting: 0}))
        server.handle("PATCH", "/collections/training", change.model_dump_json(exclude_none=True).encode())
        with pytest.raises(StoreError, match=rf"nothing would ever be quantized.*{setting} = 0.*PATCH"):
            store.enable_quantization("pq")
        server.collections["training"].threshold = 1


def test_pages_are_bounded_by_bytes(server: Loopback, config: ServerConfig) -> None:
    store = ServerStore.create(config, SPEC)
    store.upsert(IDS[:200], ROWS[:200], [{"uri": f"{i}.png", "text": "x" * 200_000} for i in range(200)])
    server.requests.clear()
    pages = list(store.scroll())
    assert sum(map(len, pages)) == 200
    assert max(len(page) for page in pages) <= 42, "8 MB of 200 KB each"
    server.answered = 0
    assert {p.payload["uri"] for page in store.scroll(fields=["uri"]) for p in page} == {
        f"{i}.png" for i in range(200)
    }
    assert server.answered < 100_000


def test_kinds_of_vectors_that_would_be_ordered_wrongly(server: Loopback, config: ServerConfig) -> None:
    for name, params, sentence in (
        (
            "bytes",
            m.VectorParams(size=16, distance=m.Distance.COSINE, datatype=m.Datatype.UINT8),
            "datatype uint8",
        ),
        ("city", m.VectorParams(size=16, distance=m.Distance.MANHATTAN), "distance Manhattan"),
    ):
        body = m.CreateCollection(vectors=params).model_dump_json(exclude_none=True).encode()
        server.handle("PUT", f"/collections/{name}", body)
        with pytest.raises(CollectionMismatch, match=sentence):
            ServerStore.open(config, name)
    half = m.VectorParams(size=16, distance=m.Distance.COSINE, datatype=m.Datatype.FLOAT16)
    body = m.CreateCollection(vectors=half).model_dump_json(exclude_none=True).encode()
    server.handle("PUT", "/collections/half", body)
    assert ServerStore.open(config, "half").spec.dim == 16


@pytest.mark.parametrize(
    "strict",
    [
        {"max_query_limit": 9},
        {"search_allow_exact": False},
        {"search_max_batchsize": 3, "upsert_max_batchsize": 7, "condition_max_size": 5},
        {"search_max_hnsw_ef": 40, "search_max_oversampling": 1.5},
        {"read_rate_limit": 100_000, "write_rate_limit": 40_000, "max_query_limit": 50},
    ],
)
@pytest.mark.parametrize("only", [None, {"must": [{"key": "tenant", "match": {"value": "a"}}]}])
def test_limits_that_are_set_while_a_run_goes(
    server: Loopback, config: ServerConfig, strict: dict[str, Any], only: Any
) -> None:
    """Whatever the store is doing when strict mode is switched on, it goes on within the new limits."""
    filled(server, config).close()
    store = ServerStore.open(config, "training", only=only)
    mine = {str(i) for n, i in enumerate(IDS) if only is None or n % 2 == 0}
    search = TunedSearch(store, 5, 0.9)
    assert len(search(ROWS[:20], 5)[0].ids) == 5
    pages = store.scroll()
    seen = [point.id for point in next(pages)]
    server.collections["training"].limit(m.StrictModeConfig(enabled=True, **strict))
    seen += [point.id for page in pages for point in page]
    assert {str(one) for one in seen} == mine
    assert len(seen) == len(mine)
    assert store.count() == len(mine)
    assert {str(point.id) for point in store.retrieve(IDS)} == mine
    assert {str(one) for page in store.ids() for one in page} == mine
    hits = search(ROWS[:20], 5)
    assert [len(hit.ids) for hit in hits] == [5] * 20
    store.upsert(IDS[:100], ROWS[:100], [{"tenant": "a"}] * 100)
    store.delete(IDS[:50])
    assert store.count() == len(mine | {str(i) for i in IDS[:100]}) - 50


def test_a_limit_below_what_is_needed_is_a_sentence(server: Loopback, config: ServerConfig) -> None:
    store = filled(server, config)
    server.collections["training"].limit(m.StrictModeConfig(enabled=True, max_query_limit=9))
    with pytest.raises(StoreError, match=r"at most 9 points a query.*fewer --candidates"):
        TunedSearch(store, 20, 0.9)(ROWS[:5], 20)


def test_a_chunk_of_queries_is_one_request(server: Loopback, tmp_path: Path, config: ServerConfig) -> None:
    store = filled(server, config)
    server.requests.clear()
    found = store.search(clustered(200, 16, seed=3), 30, EXACT)
    assert len(found) == 200
    assert [path for _, path, _ in server.requests] == ["/collections/training/points/query/batch"]
