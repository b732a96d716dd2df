"""The recall that is shown is that of the search made: measured anew whenever what is searched has changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_workspace
from store.loopback import Loopback

from gmv_qdrant import Workspace

pytestmark = pytest.mark.usefixtures("impatient")
TRAINING = range(300)


@pytest.fixture
def server(folder: Path) -> Iterator[Loopback]:
    with Loopback(folder / "server") as loopback:
        yield loopback
    assert loopback.invalid == []


@pytest.fixture
def workspace(folder: Path, server: Loopback) -> Workspace:
    """A server that hasn't begun to index what was taken in."""
    tiny_workspace.write(folder / "training", TRAINING)
    for name in ("first", "second"):
        tiny_workspace.write(folder / name, range(1_000, 1_006))
    made = Workspace.init(
        folder / "ws", qdrant_url=server.url, **{**tiny_workspace.SETTINGS, "candidates": 20}
    )
    Loopback.create, create = _lazy(Loopback.create), Loopback.create  # type: ignore[method-assign]
    try:
        made.ingest([folder / "training"])
    finally:
        Loopback.create = create  # type: ignore[method-assign]
    return made


def _lazy(create: Any) -> Any:
    def made(self: Loopback, name: str, wanted: Any) -> Any:
        answer = create(self, name, wanted)
        self.collections[name].builds = False
        return answer

    return made


def index(server: Loopback, ef_needed: int) -> None:
    """The server gets to its index: a graph that a narrow search finds half of its neighbours in."""
    collection = server.collections["training"]
    collection.threshold = 1  # a server leaves so few vectors alone by itself
    collection.build()
    assert collection.shard.info().indexed_vectors_count == len(TRAINING)
    collection.ef_needed = ef_needed


def values(workspace: Workspace, batch: str) -> dict[str, float]:
    rows = workspace.credits("image", batch=batch, k=20)
    column = rows.columns.index("value")
    return {row[0]: row[column] for row in rows.fetchall()}


def test_a_graph_that_appears_between_two_runs(folder: Path, server: Loopback, workspace: Workspace) -> None:
    assert workspace.value([folder / "first"], batch="first")["recall"] == 1.0
    index(server, ef_needed=600)
    found = workspace.value([folder / "second"], batch="second")
    assert found["recall"] >= 0.99
    assert (
        workspace.status()["search"]["params"]["hnsw_ef"] >= 600
        or workspace.status()["search"]["params"]["exact"]
    )
    assert values(workspace, "second") == pytest.approx(values(workspace, "first"), abs=1e-9)


def test_a_graph_that_appears_while_it_is_searched(
    folder: Path, server: Loopback, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = Loopback.query_batch

    def meanwhile(self: Loopback, collection: Any, batch: Any) -> Any:
        if not collection.ef_needed:
            index(self, ef_needed=600)
        return query(self, collection, batch)

    monkeypatch.setattr(Loopback, "query_batch", meanwhile)
    assert workspace.value([folder / "first"], batch="first")["recall"] >= 0.99
    monkeypatch.undo()
    exact = Workspace.init(folder / "exact", **{**tiny_workspace.SETTINGS, "candidates": 20})
    exact.ingest([folder / "training"])
    exact.value([folder / "first"], batch="first")
    assert values(workspace, "first") == pytest.approx(values(exact, "first"), abs=1e-6)


def test_a_server_that_is_always_building_is_searched_exactly(
    folder: Path, server: Loopback, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    index(server, ef_needed=10**9)
    count = iter(range(10**6))
    info = type(server.collections["training"]).info
    monkeypatch.setattr(
        type(server.collections["training"]),
        "info",
        lambda self: {**info(self), "segments_count": next(count)},
    )
    assert workspace.value([folder / "first"], batch="first")["recall"] == 1.0
    monkeypatch.undo()
    before = values(workspace, "first")
    server.collections["training"].ef_needed = 0
    workspace.value([folder / "second"], batch="second")
    assert values(workspace, "second") == pytest.approx(before, abs=1e-9)


def test_what_was_measured_is_kept_while_nothing_changes(
    folder: Path, server: Loopback, workspace: Workspace
) -> None:
    index(server, ef_needed=0)
    workspace.value([folder / "first"], batch="first")
    seen = len(server.requests)
    workspace.value([folder / "second"], batch="second")
    kept = [r for r in server.requests[seen:] if "/query" in r[1]]
    assert sum(size for *_, size in kept) < 100_000, "no second measurement"
    assert np.isclose(workspace.recall() or 0, 1.0)
