"""kill -9 at random moments of the command line, in real processes; `scripts/crash.py` does it with more seeds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "crash.py"


@pytest.mark.timeout(900)
def test_whatever_is_killed_ends_like_an_undisturbed_run() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--seeds", "24", "--start", "1000"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "24 of 24 seeds" in done.stdout
    assert ": killed" in done.stdout
