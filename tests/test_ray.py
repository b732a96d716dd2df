"""The Ray engine gives what the local one gives; a worker that is killed costs time and nothing else."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_workspace

from gmv_qdrant import Workspace
from gmv_qdrant.errors import FingerprintMismatch, SettingsError
from gmv_qdrant.images.records import Record
from gmv_qdrant.pipeline import ray_engine
from gmv_qdrant.pipeline.streams import NullProgress

ray = pytest.importorskip("ray")
WORKERS = {"engine": "ray", "ray_workers": 2, "workers": 1}
TABLES = (
    "SELECT training_key, content_hash, width, height FROM training ORDER BY 1",
    "SELECT training_key, uri, owner FROM sources ORDER BY ALL",
    "SELECT generated_key, uri, batch, content_hash, recall_radius FROM generated ORDER BY 1",
    "SELECT generated_key, training_key, rank, distance, view FROM matches ORDER BY 1, 3",
    "SELECT uri, reason, kind FROM quarantine ORDER BY 1",
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One cluster for all tests, of four logical CPUs."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture
def root() -> Iterator[Path]:
    with tiny_workspace.scratch() as folder:
        tiny_workspace.write(folder / "a", range(150))
        tiny_workspace.write(folder / "g", range(500, 530))
        (folder / "a" / "again.png").write_bytes(tiny_workspace.png(7))
        for name in ("cut", "cut-too"):
            (folder / "a" / f"{name}.png").write_bytes(tiny_workspace.png(3)[:70])
        yield folder


class Killer(NullProgress):
    """Progress that kills all workers when the first images are through."""

    def __init__(self) -> None:
        self.killed = 0

    def advance(self, items: int = 1) -> None:
        if not self.killed:
            for pid in workers():
                os.kill(pid, signal.SIGKILL)
                self.killed += 1


def workers() -> list[int]:
    """Processes of this test's cluster."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                title = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if title.startswith(b"ray::Worker"):
                found.append(int(entry.name))
    return found


def run(folder: Path, root: Path, progress: Any = None, **settings: Any) -> list[Any]:
    Workspace.init(folder, **tiny_workspace.SETTINGS)
    workspace = Workspace(folder, progress=progress, **settings)
    taken = workspace.ingest([root / "a"], owner="ada")
    valued = workspace.value([root / "g"])
    assert taken["seen"] == 153 == taken["new"] + taken["known"] + taken["quarantined"]
    assert (taken["new"], taken["quarantined"], valued["valued"]) == (150, 2, 30)
    assert workspace.check(read_images=True) == []
    return [workspace.sql(table).fetchall() for table in TABLES]


@pytest.mark.timeout(600)
def test_the_same_as_the_local_engine(cluster: None, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ray_engine.ROWS, "cpu", 16)
    expected = run(root / "local", root)
    assert run(root / "spread", root, **WORKERS) == expected
    killer = Killer()
    assert run(root / "killed", root, killer, **WORKERS) == expected
    assert killer.killed


@pytest.mark.timeout(600)
def test_a_worker_with_other_networks_ends_the_run(cluster: None, root: Path) -> None:
    workspace = Workspace.init(root / "ws", **tiny_workspace.SETTINGS)
    workspace.ingest([root / "a"], owner="ada")
    settings = Workspace(root / "ws", **WORKERS).settings
    engine = ray_engine.RayEngine(settings.replaced(encoder="pixels:9"), _fingerprint(workspace), {})
    with pytest.raises(FingerprintMismatch):
        next(engine(iter([[Record(str(root / "a" / "1.png"))]]), lambda hashes: set()))


def test_without_ray_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SettingsError, match=r"pip install 'gmv-qdrant\[ray\]'"):
        ray_engine._ray()


def _fingerprint(workspace: Workspace) -> Any:
    import json

    return json.loads(workspace.ledger.meta()["fingerprint"])
