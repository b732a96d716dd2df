"""One suite, several engines: ``make_store(spec)`` opens a fresh collection on the engine under test."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from loopback import Loopback
from loopback_grpc import GrpcLoopback
from samples import MakeStore

from gmv_qdrant.setting_values import Secret
from gmv_qdrant.vectors.embedded.store import EdgeStore
from gmv_qdrant.vectors.protocol import CollectionSpec, VectorStore
from gmv_qdrant.vectors.server.connection import Connection
from gmv_qdrant.vectors.server.store import ServerConfig, ServerStore

REAL = os.environ.get("QDRANT_URL")


def real_config() -> ServerConfig:
    key = os.environ.get("QDRANT_API_KEY")
    return ServerConfig(REAL or "", Secret(key) if key else None, patience=20)


@pytest.fixture(params=["edge", "server", "grpc", *(["real"] if REAL else [])])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make_store(engine: str, tmp_path: Path) -> Iterator[MakeStore]:
    opened: list[VectorStore] = []
    servers: list[Loopback] = []
    doors: list[GrpcLoopback] = []
    made: list[str] = []

    def make(spec: CollectionSpec) -> VectorStore:
        if engine == "edge":
            store: VectorStore = EdgeStore.open(tmp_path / "edge", spec)
        elif engine == "server":
            servers.append(Loopback(tmp_path / f"server{len(servers)}"))
            store = ServerStore.create(ServerConfig(servers[-1].url, patience=5), spec)
        elif engine == "grpc":
            servers.append(Loopback(tmp_path / f"server{len(servers)}"))
            doors.append(GrpcLoopback(servers[-1]))
            config = ServerConfig(servers[-1].url, prefer_grpc=True, grpc_port=doors[-1].port, patience=5)
            store = ServerStore.create(config, spec)
        else:
            spec = replace(spec, name=f"gmv-test-{uuid.uuid4().hex}")
            made.append(spec.name)
            store = ServerStore.create(real_config(), spec)
        opened.append(store)
        return store

    yield make
    for store in opened:
        store.close()
    for door in doors:
        door.__exit__()
    for server in servers:
        server.__exit__()
        assert server.invalid == []
    for name in made:
        Connection(real_config()).call("delete the test's collection", "delete_collection", name)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Loopback]:
    with Loopback(tmp_path / "server") as loopback:
        yield loopback
    assert loopback.invalid == []
