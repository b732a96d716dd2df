"""scripts/bench: one command runs it whole, sees a count that isn't what it must be, and writes the page's tables."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts/bench"


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module; other folders of scripts have modules of the same names."""
    monkeypatch.syspath_prepend(SCRIPTS)
    names = [path.stem for path in SCRIPTS.glob("*.py")]
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    yield importlib.import_module("all")
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(before)


def document(*rows: dict[str, Any]) -> dict[str, Any]:
    machine = {"processor": "p", "cores": 2, "threads": 1, "torch": "2"}
    return {
        "rows": list(rows),
        "command": "python scripts/bench/x.py",
        "date": "2026-01-01",
        "machine": machine,
    }


@pytest.mark.scripts
def test_the_small_run_is_whole_and_every_count_is_what_it_must_be(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "all.py"), "--small"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("networks", "recall", "credits", "update", "gpu", "phases"):
        assert f"## {name}" in done.stdout
    assert "missed" not in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_one_pass_too_many_fails(
    runner: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = document(runner_count("passes", 100, 100), runner_count("queries", 12, 12))
    monkeypatch.setattr(runner, "run", lambda _: found)
    monkeypatch.setattr(sys, "argv", ["all.py", "--small", "--only", "credits"])
    runner.main()
    found["rows"][0]["count"] = 101
    with pytest.raises(SystemExit, match="passes: 101, not 100"):
        runner.main()
    monkeypatch.setattr(runner, "run", lambda _: None)
    with pytest.raises(SystemExit, match="credits failed"):
        runner.main()


def runner_count(figure: str, found: int, expected: int) -> dict[str, Any]:
    return {"figure": figure, "count": found, "expected": expected}


def test_medians_with_their_spread_beside_the_aims(runner: Any, tmp_path: Path) -> None:
    common = importlib.import_module("common")
    rows = [
        common.row("a / b", [1.3, 1.0, 1.1], aim="<= 1.10"),
        common.row("recall", [0.98], "of 1", aim=">= 0.99"),
    ]
    page, figures = tmp_path / "page.md", tmp_path / "figures.json"
    page.write_text(
        "before\n<!-- figures: x -->\nold\n<!-- /figures -->\nafter\n<!-- figures: y --><!-- /figures -->\n"
    )
    figures.write_text(json.dumps({"x": document(*rows)}))
    runner.fill(page, json.loads(figures.read_text()))
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("before\n")
    assert "\nafter\n" in text
    assert "| a / b | 1.1 | 1 to 1.3 | times | <= 1.10 | met |" in text
    assert "| recall | 0.98 | one turn | of 1 | >= 0.99 | missed |" in text
    runner.fill(page, json.loads(figures.read_text()))
    assert page.read_text() == text
