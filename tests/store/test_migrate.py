"""Moving a collection between engines, stopped and started again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from loopback import Fault, Loopback
from samples import clustered, ids_of

from gmv_qdrant.deployments.copy_points import migrate, verify
from gmv_qdrant.errors import CollectionMismatch, StoreError, StoreUnavailable
from gmv_qdrant.vectors.embedded.store import EdgeStore
from gmv_qdrant.vectors.protocol import CollectionSpec, Condition, PointId, SearchParams, VectorStore
from gmv_qdrant.vectors.server.store import ServerConfig, ServerStore

SPEC = CollectionSpec("training", 16)
IDS: list[PointId] = [*ids_of(1_700), *range(800)]
ROWS = clustered(2_500, 16)
PAYLOADS = [{"uri": f"/img/{i}.png", "owner": f"o{i % 7}"} for i in range(2_500)]


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[EdgeStore]:
    with EdgeStore.open(tmp_path / "edge", SPEC) as store:
        yield store


@pytest.fixture
def config(server: Loopback) -> ServerConfig:
    return ServerConfig(server.url, timeout=2, patience=2)


def contents(store: VectorStore) -> dict[PointId, dict[str, object]]:
    return {p.id: p.payload for page in store.scroll() for p in page}


def test_there_and_back_again(tmp_path: Path, edge: EdgeStore, config: ServerConfig) -> None:
    edge.upsert(IDS, ROWS, PAYLOADS)
    seen: list[int] = []
    there = ServerStore.create(config, SPEC)
    done = migrate(edge, there, seen.append)
    assert (done.points, done.copied, sum(seen)) == (2_500, 2_500, 2_500)
    assert done.compared >= 200
    with EdgeStore.open(tmp_path / "back", replace(SPEC, name="again")) as back:
        done = migrate(there, back)
        assert (done.points, done.copied) == (2_500, 2_500)
        assert contents(back) == dict(zip(IDS, PAYLOADS, strict=True))
        exact = SearchParams(exact=True)
        for a, b in zip(edge.search(ROWS[:20], 50, exact), back.search(ROWS[:20], 50, exact), strict=True):
            assert a.ids == b.ids
            np.testing.assert_allclose(a.distances, b.distances, atol=1e-6)
        assert back.status().coded_points == 2_500, "an embedded target is quantized in the end"
        assert migrate(there, back).copied == 0


def test_a_move_that_broke_off_goes_on(server: Loopback, edge: EdgeStore, config: ServerConfig) -> None:
    edge.upsert(IDS, ROWS, PAYLOADS)
    there = ServerStore.create(config, SPEC)

    def cut(_: int) -> None:
        if there.count() >= 2_000:
            server.fail(*[Fault("drop")] * 100)

    with pytest.raises(StoreUnavailable, match="no answer"):
        migrate(edge, there, cut)
    server.faults.clear()
    done = migrate(edge, there)
    assert done.copied == 500
    assert contents(there) == dict(zip(IDS, PAYLOADS, strict=True))


def test_a_tenant_moves_alone(tmp_path: Path, edge: EdgeStore, config: ServerConfig) -> None:
    everybody = ServerStore.create(config, SPEC)
    everybody.upsert(IDS, ROWS, PAYLOADS)
    mine = ServerStore.open(config, "training", conditions=[Condition("owner", ("o3",))])
    wanted = {i: p for i, p in zip(IDS, PAYLOADS, strict=True) if p["owner"] == "o3"}
    assert migrate(mine, edge).points == len(wanted)
    assert contents(edge) == wanted


def test_differences_are_found(edge: EdgeStore, tmp_path: Path) -> None:
    edge.upsert(IDS, ROWS, PAYLOADS)
    with EdgeStore.open(tmp_path / "other", SPEC) as other:
        migrate(edge, other)
        other.upsert([99_999], ROWS[:1], [{}])
        with pytest.raises(
            StoreError, match=r"0 points of 'training' are not in 'training', which has 1 others"
        ):
            verify(edge, other)
        other.delete([99_999, IDS[0], IDS[1]])
        with pytest.raises(StoreError, match="2 points of 'training' are not in"):
            verify(edge, other)
        other.upsert(IDS, ROWS, [{}] * 2_500)
        with pytest.raises(StoreError, match=r"the payload of point .* differs"):
            verify(edge, other)
        other.upsert(IDS, ROWS[::-1], PAYLOADS)
        with pytest.raises(StoreError, match=r"the vector of point .* differs"):
            verify(edge, other)
    with (
        EdgeStore.open(tmp_path / "dot", replace(SPEC, distance="dot")) as dot,
        pytest.raises(CollectionMismatch, match=r"16 numbers \(cosine\).*of 16 \(dot\)"),
    ):
        migrate(edge, dot)


def test_an_empty_collection_moves(edge: EdgeStore, tmp_path: Path) -> None:
    with EdgeStore.open(tmp_path / "other", SPEC) as other:
        assert migrate(edge, other).points == 0
