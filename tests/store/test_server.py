"""The server store under faults, with foreign collections, and with its secrets kept."""

from __future__ import annotations

import logging
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from loopback import Fault, Loopback
from loopback_grpc import GrpcLoopback
from qdrant_client.http import models as m
from samples import clustered, ids_of

from gmv_qdrant.errors import CollectionMismatch, GmvError, StoreError, StoreUnavailable
from gmv_qdrant.setting_values import Secret
from gmv_qdrant.vectors.protocol import CollectionSpec, PointId, SearchParams
from gmv_qdrant.vectors.server import collections, connection
from gmv_qdrant.vectors.server.reader import FIRST_PAGE
from gmv_qdrant.vectors.server.store import ServerConfig, ServerStore

SPEC = CollectionSpec("training", 16)
EXACT = SearchParams(exact=True)
KEY = "sk-3f9a7c-very-secret"
PASSWORD = "open-sesame"


@pytest.fixture
def config(server: Loopback) -> ServerConfig:
    return ServerConfig(server.url, timeout=1, patience=8)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_backoff", lambda _: 0.05)
    monkeypatch.setattr(collections, "POLL", 0.02)


def everything(store: ServerStore) -> dict[PointId, Any]:
    found: dict[PointId, Any] = {}
    for page in store.scroll(with_vectors=True):
        for point in page:
            assert point.id not in found, "a point came twice"
            found[point.id] = point
    return found


FAULTS: dict[str, Callable[[], Fault]] = {
    "429": lambda: Fault("answer", 429),
    "429 with Retry-After": lambda: Fault("answer", 429, headers={"Retry-After": "0"}),
    "429 with a date": lambda: Fault("answer", 429, headers={"Retry-After": "Fri, 31 Dec 2027 23:59:59 GMT"}),
    "500": lambda: Fault("answer", 500),
    "503": lambda: Fault("answer", 503),
    "slow": lambda: Fault("slow", seconds=1.5),
    "half an answer": lambda: Fault("half"),
    "dropped": lambda: Fault("drop"),
    "done, but dropped": lambda: Fault("drop after"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_passing_fault_loses_and_doubles_nothing(server: Loopback, config: ServerConfig, name: str) -> None:
    fault, quick = FAULTS[name], name != "slow"

    def fail(on: str) -> None:
        if quick or on in ("/points", "/points/scroll"):
            server.fail(fault(), on=on)

    fail("PUT /collections/training")
    store = ServerStore.create(config, SPEC)
    ids, rows = ids_of(1_200), clustered(1_200, 16)
    fail("/points")
    store.upsert(ids, rows, [{"n": i} for i in range(1_200)])
    fail("/points/delete")
    store.delete(ids[:100])
    fail("/points/scroll")
    found = everything(store)
    assert found.keys() == set(ids[100:])
    assert all(found[i].payload == {"n": n} for n, i in enumerate(ids) if n >= 100)
    fail("/points/count")
    assert store.count() == 1_100
    fail("/points/query")
    hits = store.search(rows[100:103], 3, EXACT)
    assert [h.ids[0] for h in hits] == ids[100:103]
    fail("POST /collections/training/points")
    assert len(store.retrieve(ids)) == 1_100
    fail("GET /collections/training")
    assert store.status().points == 1_100
    assert server.faults == []


@pytest.mark.parametrize("name", ["429", "500", "503", "slow", "dropped", "done, but dropped"])
def test_a_passing_fault_over_grpc(server: Loopback, config: ServerConfig, name: str) -> None:
    with GrpcLoopback(server) as door:
        store = ServerStore.create(replace(config, prefer_grpc=True, grpc_port=door.port), SPEC)
        ids, rows = ids_of(1_200), clustered(1_200, 16)
        for call in (
            ("Upsert", "Scroll") if name == "slow" else ("Upsert", "Delete", "Scroll", "Count", "Query")
        ):
            server.fail(FAULTS[name](), on=f"GRPC {call}")
        store.upsert(ids, rows, [{"n": i} for i in range(1_200)])
        store.delete(ids[:100])
        assert everything(store).keys() == set(ids[100:])
        assert store.count() == 1_100
        assert store.search(rows[100:101], 3, SearchParams())[0].ids[0] == ids[100]
        assert server.faults == []
        store.close()


def test_sentences_over_grpc(server: Loopback, config: ServerConfig) -> None:
    with GrpcLoopback(server) as door:
        grpc = replace(config, prefer_grpc=True, grpc_port=door.port, patience=0.5)
        with pytest.raises(StoreError, match=r"has no collection 'nope' \(it has: none\)"):
            ServerStore.open(grpc, "nope")
        store = ServerStore.create(grpc, SPEC)
        server.fail(*[Fault("answer", 429, text="slow down") for _ in range(100)])
        with pytest.raises(StoreUnavailable, match=r"with 429 \(slow down\)"):
            store.count()
        server.faults.clear()
        server.fail(*[Fault("drop") for _ in range(100)])
        with pytest.raises(StoreUnavailable, match="no answer from"):
            store.count()
        server.faults.clear()
        server.api_key = KEY
        for key in (None, Secret("wrong")):
            with pytest.raises(StoreError, match="set QDRANT_API_KEY"):
                ServerStore.open(replace(grpc, api_key=key), "training")
        server.api_key = None
        server.handle("DELETE", "/collections/training", b"")
        ServerStore.create(grpc, replace(SPEC, dim=8)).close()
        with pytest.raises(CollectionMismatch, match="other vectors than before"):
            store.search(clustered(1, 16), 3, EXACT)
        store.close()


def test_retry_after_is_waited_for(server: Loopback, config: ServerConfig) -> None:
    store = ServerStore.create(config, SPEC)
    server.fail(Fault("answer", 429, headers={"Retry-After": "1"}))
    start = time.monotonic()
    assert store.count() == 0
    assert time.monotonic() - start >= 1


def test_a_restart_in_the_middle(server: Loopback, config: ServerConfig) -> None:
    store = ServerStore.create(config, SPEC)
    ids, rows = ids_of(5_000), clustered(5_000, 16)
    server.fail(Fault("restart", seconds=0.5), on="/points")
    store.upsert(ids, rows, [{"n": i} for i in range(5_000)])
    found = everything(store)
    assert {i: p.payload["n"] for i, p in found.items()} == {i: n for n, i in enumerate(ids)}


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (Fault("answer", 429, text="slow down"), r"with 429 \(slow down\)"),
        (Fault("answer", 503, text="not ready"), r"with 503 \(not ready\)"),
        (Fault("drop"), "no answer from .* is the server running"),
        (Fault("slow", seconds=1.2), "no answer from .* is the server running"),
    ],
)
def test_a_lasting_fault_ends_in_bounded_time_with_a_sentence(
    server: Loopback, fault: Fault, sentence: str
) -> None:
    store = ServerStore.create(ServerConfig(server.url, timeout=1, patience=1), SPEC)
    server.fail(*[replace(fault) for _ in range(200)])
    start = time.monotonic()
    with pytest.raises(StoreUnavailable, match=sentence):
        store.count()
    assert time.monotonic() - start < 10
    server.faults.clear()
    assert store.count() == 0


def test_an_upsert_that_failed_midway_can_be_done_again(
    server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gmv_qdrant.vectors.server.limits.BATCH", 100)
    store = ServerStore.create(ServerConfig(server.url, timeout=1, patience=1), SPEC)
    ids, rows = ids_of(1_000), clustered(1_000, 16)
    payloads = [{"n": i} for i in range(1_000)]
    seen = len(server.requests)
    server.fail(*[Fault("answer", 400, text="no room")], on="/points")
    with pytest.raises(StoreError, match=r"refused to store points \(400\): no room"):
        store.upsert(ids, rows, payloads)
    assert len(server.requests) - seen < 10, "a refusal stops the batches that haven't begun"
    assert store.count() < 1_000
    store.upsert(ids, rows, payloads)
    assert {i: p.payload["n"] for i, p in everything(store).items()} == {i: n for n, i in enumerate(ids)}


def test_what_cannot_be_retried_fails_at_once(server: Loopback, config: ServerConfig) -> None:
    server.api_key, server.read_only_key = KEY, "may-read"
    for key, sentence in (
        (None, "wants an API key: set QDRANT_API_KEY"),
        (Secret("wrong"), r"refused the API key \(Invalid API key or JWT\): set QDRANT_API_KEY"),
    ):
        seen = len(server.requests)
        with pytest.raises(StoreError, match=sentence):
            ServerStore.open(replace(config, api_key=key), "training")
        assert len(server.requests) == seen + 1
    ServerStore.create(replace(config, api_key=Secret(KEY)), SPEC).close()
    reader = ServerStore.open(replace(config, api_key=Secret("may-read")), "training")
    assert reader.count() == 0
    with pytest.raises(
        StoreError, match=r"may not store points at .* \(Forbidden: Global manage access is required\)"
    ):
        reader.upsert([1], clustered(1, 16), [{}])


def test_a_collection_that_is_not_there_lists_those_that_are(server: Loopback, config: ServerConfig) -> None:
    with pytest.raises(StoreError, match=r"has no collection 'nope' \(it has: none\)"):
        ServerStore.open(config, "nope")
    for name in ("photos", "art"):
        ServerStore.create(config, replace(SPEC, name=name)).close()
    with pytest.raises(StoreError, match=r"has no collection 'nope' \(it has: art, photos\)"):
        ServerStore.open(config, "nope")
    with pytest.raises(StoreError, match="already has a collection 'art'"):
        ServerStore.create(config, replace(SPEC, name="art"))


def test_wrong_urls_are_said_soon(tmp_path: Path) -> None:
    start = time.monotonic()
    cases = {
        "http://127.0.0.1:9": "no answer from http://127.0.0.1:9 ",
        "ftp://127.0.0.1": "is not the URL of a Qdrant server",
        "http://no-such-host.invalid:6333": "no answer of a Qdrant server",
    }
    for url, sentence in cases.items():
        with pytest.raises(StoreError, match=sentence):
            ServerStore.open(ServerConfig(url, timeout=1, patience=1), "training")
    assert time.monotonic() - start < 20


def test_a_server_of_something_else(server: Loopback, config: ServerConfig) -> None:
    server.handle = lambda *_: "<html>"  # type: ignore[assignment, method-assign]
    with pytest.raises(StoreError, match="no answer of a Qdrant server"):
        ServerStore.open(config, "training")


def test_collections_that_change_while_in_use(server: Loopback, config: ServerConfig) -> None:
    store = ServerStore.create(config, SPEC)
    ids, rows = ids_of(1_500), clustered(1_500, 16)
    store.upsert(ids, rows, [{}] * 1_500)
    pages = store.scroll()
    assert len(next(pages)) == FIRST_PAGE
    server.handle("DELETE", "/collections/training", b"")
    gone = r"'training' has disappeared from .* \(it has: none\)"
    calls: list[Callable[[], object]] = [
        lambda: next(pages),
        store.count,
        store.status,
        lambda: store.search(rows[:1], 3, EXACT),
        lambda: store.retrieve(ids[:1]),
        lambda: store.upsert(ids[:1], rows[:1], [{}]),
        lambda: store.delete(ids[:1]),
    ]
    for call in calls:
        with pytest.raises(StoreError, match=gone):
            call()
    ServerStore.create(config, replace(SPEC, dim=8)).close()
    with pytest.raises(CollectionMismatch, match=r"other vectors than before: .*expected dim: 8, got 16"):
        store.search(rows[:1], 3, EXACT)
    server.handle("DELETE", "/collections/training", b"")
    ServerStore.create(config, replace(SPEC, vector_name="other")).close()
    with pytest.raises(CollectionMismatch, match="other vectors than before"):
        store.upsert(ids[:1], rows[:1], [{}])
    with pytest.raises(CollectionMismatch, match="has no vector 'recall'; it has 'other'"):
        store.status()


def foreign(server: Loopback, **create: Any) -> None:
    body = m.CreateCollection(**create).model_dump_json(exclude_none=True).encode()
    server.handle("PUT", "/collections/theirs", body)


@pytest.mark.parametrize("distance", ["Dot", "Euclid", "Cosine"])
def test_a_foreign_collection_is_read_as_it_is(server: Loopback, config: ServerConfig, distance: str) -> None:
    """Unnamed vector, int ids, no codes, two tenants."""
    foreign(server, vectors=m.VectorParams(size=16, distance=m.Distance(distance)))
    rows = clustered(300, 16)
    theirs = m.PointsBatch(
        batch=m.Batch(
            ids=list(range(300)),
            vectors=rows.tolist(),
            payloads=[{"tenant": "a" if i % 3 else "b", "path": f"/img/{i}.jpg"} for i in range(300)],
        )
    )
    server.handle("PUT", "/collections/theirs/points", theirs.model_dump_json().encode())
    server.requests.clear()

    only = {"must": [{"key": "tenant", "match": {"value": "a"}}]}
    store = ServerStore.open(config, "theirs", only=only)
    assert store.spec == CollectionSpec("theirs", 16, distance.lower(), "", "none")  # type: ignore[arg-type]
    mine = {i for i in range(300) if i % 3}
    assert store.count() == len(mine)
    assert set(everything(store)) == mine
    assert {p.id for p in store.retrieve(list(range(10)), with_vectors=True)} == {
        i for i in range(10) if i % 3
    }
    hits = store.search(rows[:5], 400, EXACT) + store.search(rows[:5], 400, SearchParams(oversampling=4))
    assert all(set(h.ids) == mine for h in hits)
    assert store.status().quantization == "none"
    assert not store.optimize()
    store.flush()
    store.close()
    assert server.writes() == []

    writer = ServerStore.open(config, "theirs", only=only)
    writer.delete(list(range(10)))  # not the other tenant's 0, 3, 6, 9
    assert {p.id for page in writer.scroll() for p in page} == {i for i in mine if i > 9}
    assert ServerStore.open(config, "theirs").count() == 300 - 6


def test_foreign_vectors_that_cannot_be_used(server: Loopback, config: ServerConfig) -> None:
    dense = m.VectorParams(size=16, distance=m.Distance.COSINE)
    cases: list[tuple[dict[str, m.VectorParams], str | None, str]] = [
        ({"clip": dense, "dino": dense}, None, "has these vectors: 'clip', 'dino'; name the one to use"),
        ({"clip": dense, "dino": dense}, "blip", "has no vector 'blip'; it has 'clip', 'dino'"),
        ({"clip": dense}, "", "has no unnamed vector; it has 'clip'"),
        (
            {"clip": m.VectorParams(size=4, distance=m.Distance.MANHATTAN)},
            None,
            "distance Manhattan: Cosine, Dot and Euclid",
        ),
        (
            {
                "late": m.VectorParams(
                    size=4,
                    distance=m.Distance.DOT,
                    multivector_config=m.MultiVectorConfig(comparator=m.MultiVectorComparator.MAX_SIM),
                )
            },
            "late",
            "holds several rows a point",
        ),
    ]
    for vectors, name, sentence in cases:
        foreign(server, vectors=vectors)
        with pytest.raises(CollectionMismatch, match=sentence):
            ServerStore.open(config, "theirs", name)
        server.handle("DELETE", "/collections/theirs", b"")
    foreign(server, vectors={"clip": dense, "dino": dense})
    assert ServerStore.open(config, "theirs", "dino").spec.vector_name == "dino"


@pytest.mark.parametrize("kind", ["pq", "scalar", "turbo"])
def test_quantization_in_place_waits_until_it_is_built(
    server: Loopback, config: ServerConfig, kind: Any
) -> None:
    foreign(server, vectors=m.VectorParams(size=64, distance=m.Distance.COSINE))
    store = ServerStore.open(config, "theirs")
    store.upsert(list(range(900)), clustered(900, 64), [{}] * 900)
    server.collections["theirs"].yellow = 3
    status = store.enable_quantization(kind)
    assert server.collections["theirs"].yellow == 0
    assert (status.quantization, status.coded_points, status.tail_points) == (kind, 900, 0)
    assert status.state == "green"
    assert store.spec.quantization == kind
    assert status.code_bytes == 900 * 64 * {"pq": 2, "scalar": 8, "turbo": 2}[kind] / 8
    server.collections["theirs"].yellow = 10_000
    assert store.status().state == "yellow"
    with pytest.raises(StoreUnavailable, match=r"still yellow after 0 seconds.*goes on by itself"):
        store.wait_until_built(0.1)


def test_batches_stay_below_the_limits_and_requests_are_bounded(
    server: Loopback, config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gmv_qdrant.vectors.server.store.BATCH_BYTES", 200_000)
    store = ServerStore.create(replace(config, parallel=3), SPEC)
    server.seconds = 0.03
    payloads = [{"text": "x" * (150_000 if i == 7 else 300 * (i % 20))} for i in range(1_000)]
    store.upsert(ids_of(1_000), clustered(1_000, 16), payloads)
    sizes = [size for method, path, size in server.requests if (method, path[-6:]) == ("PUT", "points")]
    assert len(sizes) > 10
    assert max(sizes) < 200_000
    assert store.count() == 1_000
    assert 1 < server.most_at_once <= 3
    server.most_at_once = 0
    seen = len(server.requests)
    store.search(clustered(600, 16), 5, SearchParams())
    assert 1 < server.most_at_once <= 3
    assert len(server.requests) - seen == 3, "256 searches a request"


def test_one_store_can_be_used_by_several_threads(server: Loopback, config: ServerConfig) -> None:
    store = ServerStore.create(config, SPEC)
    rows = clustered(100, 16)
    threads = [
        threading.Thread(
            target=store.upsert, args=([uuid.UUID(int=100 * t + i) for i in range(100)], rows, [{}] * 100)
        )
        for t in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.count() == 400


def test_the_key_appears_nowhere(
    server: Loopback,
    config: ServerConfig,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Not in reprs, sentences, tracebacks or logs; not even when the server or a proxy echoes it."""
    caplog.set_level(logging.DEBUG)
    server.api_key = KEY
    secret = replace(config, api_key=Secret(KEY), patience=0.5)
    with_password = replace(secret, url=server.url.replace("//", f"//user:{PASSWORD}@"))
    seen: list[str] = [repr(secret), repr(with_password)]
    store = ServerStore.create(secret, SPEC)
    seen += [repr(store), str(vars(store)), repr(store._connection)]

    def fails(call: Callable[[], object]) -> None:
        with pytest.raises(GmvError) as caught:
            call()
        seen.append(str(caught.value))
        seen.append("".join(traceback.format_exception(caught.value)))

    for status in (400, 401, 403, 404, 413, 422, 429, 500, 503):
        server.fail(*[Fault("answer", status, text=f"bad key {KEY}") for _ in range(50)])
        fails(store.count)
        server.faults.clear()
    for effect in ("drop", "half"):
        server.fail(*[Fault(effect) for _ in range(50)])  # type: ignore[arg-type]
        fails(store.count)
        server.faults.clear()
    fails(lambda: ServerStore.open(replace(secret, api_key=Secret(KEY + "x")), "training"))
    fails(lambda: ServerStore.open(replace(secret, url=f"ftp://user:{PASSWORD}@x/{KEY}"), "training"))
    fails(lambda: ServerStore.open(secret, "absent"))
    fails(lambda: ServerStore.open(with_password, "training"))
    assert "give the API key as QDRANT_API_KEY" in seen[-2]
    output = capfd.readouterr()
    seen += [caplog.text, output.out, output.err]
    for text in seen:
        assert KEY not in text
        assert PASSWORD not in text


def test_read_only_use_writes_nothing(server: Loopback, config: ServerConfig) -> None:
    ServerStore.create(config, SPEC).close()
    server.requests.clear()
    with ServerStore.open(config, "training") as store:
        everything(store)
        store.search(clustered(3, 16), 3, EXACT)
        store.retrieve([1, 2])
        list(store.ids())
        store.count()
        store.status()
        store.flush()
        store.optimize()
    assert server.requests
    assert server.writes() == []
