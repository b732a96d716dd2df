"""Readers go on while a writer works; a second writer gets a sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_workspace

from gmv_qdrant import Workspace
from gmv_qdrant.errors import LedgerLocked

READER = """
import json, sys, tempfile, time
from pathlib import Path
from gmv_qdrant import Workspace

root, stop = Path(sys.argv[1]), Path(sys.argv[2])
rounds, slowest = 0, 0.0
while rounds == 0 or not stop.exists():
    with tempfile.TemporaryDirectory() as out:
        for ask in (
            lambda w: w.credits("owner").fetchall(),
            lambda w: w.credits("image").fetchall(),
            lambda w: w.sql("SELECT count(*) FROM matches").fetchall(),
            lambda w: w.status(),
            lambda w: w.export(out),
        ):
            started = time.monotonic()
            ask(Workspace(root))
            slowest = max(slowest, time.monotonic() - started)
    rounds += 1
print(json.dumps([rounds, slowest]))
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace.init(tmp_path / "workspace", **tiny_workspace.SETTINGS)
    made.ingest(tiny_workspace.write(tmp_path / "a", range(20)), owner="ada")
    made.value(tiny_workspace.write(tmp_path / "g", range(50, 60)))
    return made


def test_readers_see_whole_batches_while_runs_write(workspace: Workspace, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", READER, str(workspace.path), str(stop)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        for turn in range(2):
            workspace.ingest(
                tiny_workspace.write(tmp_path / f"b{turn}", range(100 + turn * 9, 110 + turn * 9)),
                owner=f"o{turn}",
            )
            workspace.value(tiny_workspace.write(tmp_path / "g", range(50, 62)))
            workspace.withdraw(owner=f"o{turn}") if turn % 2 else workspace.update()
        workspace.update()
    finally:
        stop.touch()
        ends = [reader.communicate(timeout=120) for reader in readers]
    for reader, (said, complaint) in zip(readers, ends, strict=True):
        assert reader.returncode == 0, complaint
        rounds, _ = json.loads(said)
        assert rounds >= 1
    assert workspace.check() == []


def test_a_second_writer_gets_a_sentence(workspace: Workspace, tmp_path: Path) -> None:
    with workspace._runs.alone():
        for attempt in (
            lambda: workspace.ingest([tmp_path / "a"]),
            lambda: workspace.value([tmp_path / "g"]),
            workspace.update,
            lambda: workspace.withdraw(owner="ada"),
            workspace.check,
        ):
            with pytest.raises(LedgerLocked, match="another process is working on the workspace"):
                attempt()
        done = subprocess.run(
            [sys.executable, "-m", "gmv_qdrant", "-w", str(workspace.path), "update"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert "error: another process is working on the workspace" in done.stderr
        assert "Traceback" not in done.stderr
        assert len(tiny_workspace.values(workspace)) == 20  # reading goes on
    workspace.update()
