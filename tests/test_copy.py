"""`copy` makes a second workspace that answers the same, and goes on wherever it was stopped; the first one stays."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_workspace
from click.testing import CliRunner
from store.loopback import Fault, Loopback
from store.relay import Server

from gmv_qdrant import Workspace
from gmv_qdrant.cli.main import cli
from gmv_qdrant.deployments import copying
from gmv_qdrant.errors import CollectionMismatch, SettingsError, StoreError

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture
def server(folder: Path) -> Iterator[Loopback]:
    with Server(folder / "server") as loopback:
        yield loopback
    assert loopback.invalid == []


@pytest.fixture
def stand_in(folder: Path) -> Iterator[Loopback]:
    """Kills the process that asks, before or after it does what is asked."""
    with Loopback(folder / "server") as loopback:
        yield loopback


@pytest.fixture
def source(folder: Path) -> Workspace:
    tiny_workspace.write(folder / "training", range(40))
    tiny_workspace.write(folder / "generated", range(100, 104))
    workspace = Workspace.init(folder / "ws", **tiny_workspace.SETTINGS)
    workspace.ingest([folder / "training"], owner="Ada")
    workspace.value([folder / "generated"])
    workspace.withdraw(ids=[str(tiny_workspace.point(3))])
    return workspace


def same(one: Workspace, other: Workspace) -> None:
    question = "SELECT generated_key, training_key, rank, distance FROM matches ORDER BY ALL"
    assert one.sql(question).fetchall() == other.sql(question).fetchall()
    assert tiny_workspace.values(one) == tiny_workspace.values(other)
    assert other.check() == []


def test_to_a_server_and_back(folder: Path, server: Loopback, source: Workspace) -> None:
    command = ["-w", str(folder / "ws"), "copy", str(folder / "remote"), "--qdrant-url", server.url,
               "--collection", "art", "--json"]  # fmt: skip
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert (summary["points"], summary["copied"], summary["compared"]) == (39, 39, 39)
    remote = Workspace(folder / "remote")
    assert (remote.settings.qdrant_url, remote.settings.collection) == (server.url, "art")
    same(source, remote)
    assert source.check() == []

    tiny_workspace.write(folder / "more", [50, 51])
    remote.ingest([folder / "more"])
    remote.copy(folder / "back")
    back = Workspace(folder / "back")
    assert back.settings.qdrant_url is None
    same(remote, back)
    assert len(tiny_workspace.values(source)) == 39, "the old one stays as it was"
    remote.withdraw(owner="Ada")
    assert back.check() == source.check() == []


def test_what_is_there_already_is_refused(folder: Path, server: Loopback, source: Workspace) -> None:
    source.copy(folder / "one", qdrant_url=server.url)
    with pytest.raises(SettingsError, match="is a workspace already"):
        source.copy(folder / "one", qdrant_url=server.url)
    with pytest.raises(CollectionMismatch, match=r"belongs to another workspace .*/one"):
        source.copy(folder / "two", qdrant_url=server.url)
    with pytest.raises(SettingsError, match=r"another copy to .*/two was begun"):
        source.copy(folder / "two")
    (folder / "photos").mkdir()
    (folder / "photos" / "a.png").write_bytes(b"mine")
    with pytest.raises(SettingsError, match="holds other things"):
        source.copy(folder / "photos")
    assert [path.name for path in (folder / "photos").iterdir()] == ["a.png"]
    assert not Workspace(folder / "one").check()


STOPS: dict[str, Callable[[pytest.MonkeyPatch], Any]] = {
    "among the points": lambda patch: patch.setattr(copying, "_compare", _stop),
    "among the matrices": lambda patch: patch.setattr(copying, "_copy_matrices", _stop),
    "before the ledger": lambda patch: patch.setattr(copying, "_finish", _stop),
    "at the ledger": lambda patch: patch.setattr(copying, "sync_folder", _stop),
}


def _stop(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("remote", [True, False])
def test_a_copy_that_was_stopped_goes_on(
    folder: Path,
    server: Loopback,
    source: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    stop: str,
    remote: bool,
) -> None:
    url = server.url if remote else None
    with monkeypatch.context() as stopping:
        STOPS[stop](stopping)
        with pytest.raises(KeyboardInterrupt):
            source.copy(folder / "copy", qdrant_url=url)
    if stop != "at the ledger":  # from there on it is a workspace
        tiny_workspace.write(folder / "more", [60])
        source.ingest([folder / "more"])
        source.withdraw(ids=[str(tiny_workspace.point(5))])
    source.copy(folder / "copy", qdrant_url=url)
    same(source, Workspace(folder / "copy"))


@pytest.mark.parametrize("after", [False, True])
def test_a_copy_that_was_killed_goes_on(
    folder: Path, stand_in: Loopback, source: Workspace, after: bool
) -> None:
    stand_in.fail(Fault("kill after" if after else "kill"), on="PUT /collections/training/points")
    command = [
        sys.executable,
        "-m",
        "gmv_qdrant",
        "-w",
        folder / "ws",
        "copy",
        folder / "copy",
        "--qdrant-url",
        stand_in.url,
    ]
    assert subprocess.run(list(map(str, command)), timeout=120).returncode == -signal.SIGKILL
    assert subprocess.run(list(map(str, command)), timeout=120).returncode == 0
    same(source, Workspace(folder / "copy"))


def test_a_source_that_lost_a_point_is_not_copied(folder: Path, source: Workspace) -> None:
    with source._runs.alone():
        from gmv_qdrant.pipeline.spaces import open_spaces

        with open_spaces(source.path, source.settings, source.ledger) as spaces:
            spaces.store.delete([tiny_workspace.point(7)])
            spaces.store.flush()
    with pytest.raises(StoreError, match=r"lacks 1 of the ledger's training images"):
        source.copy(folder / "copy")
    assert not (folder / "copy" / "ledger.duckdb").exists()
