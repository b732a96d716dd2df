"""scripts/attack.py at its smallest: power cuts, flipped bytes, SQL bombs; the script tries more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.scripts
@pytest.mark.timeout(900)
def test_every_attack_ends_well(tmp_path: Path) -> None:
    # in a process of its own: it forks, counts what is synced, and keeps time by an alarm
    only = [word for kind in ("tables", "tiffs", "cuts", "flips", "bombs") for word in ("--only", kind)]
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/attack.py", "--count", "ci", *only, "--json", tmp_path / "all.json"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "all.json").read_text())
    assert len(rows) == 5
    assert all(row["tried"] == row["survived"] > 0 for row in rows)
