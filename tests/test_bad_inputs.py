"""The inputs of scripts/bad_inputs.py, one of each kind; the script itself tries more than 350."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_nothing_stops_a_run() -> None:
    # in a process of its own: it counts memory, and keeps time by an alarm
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/bad_inputs.py", "--depth", "1"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    tried, survived = next(line.split()[1:] for line in done.stdout.splitlines() if line.startswith("all"))
    assert tried == survived
    assert int(tried) > 200
