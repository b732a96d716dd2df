"""scripts/bench: ratios are read, judged and drawn; one command runs the benchmarks and sees a regression."""

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
def figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module; other folders of scripts have modules of the same names."""
    monkeypatch.syspath_prepend(SCRIPTS)
    names = [path.stem for path in SCRIPTS.glob("*.py")]
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    yield importlib.import_module("figures")
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(before)


def side(recall_ms: float, rerank_ms: float = 1.0, recall: float = 0.995) -> dict[str, Any]:
    """As scale.py writes it."""
    search = {"ms": recall_ms, "cpu_ms": recall_ms}
    return {
        "code_mb": 1.0,
        "vector_mb": 16.0,
        "recall@200": recall,
        "ms@200": {"recall": recall_ms, "re-rank": rerank_ms, "search": search},
        "sweep": [{"recall": recall, "cpu_ms": recall_ms}],
    }


def matmul(ms: float) -> dict[str, Any]:
    return {"search@200": {"ms": ms, "cpu_ms": ms}}


DOCUMENTS: dict[str, dict[str, Any]] = {
    "scale": {
        "forward_ms": 8.0,
        "n": {"10000": {"matmul": matmul(1.0), "pq": side(1.0)}, "100000": {"matmul": matmul(5), "pq": side(2.5)}},
    },
    "million": {"n": {"1000000": {"matmul": matmul(50.0), "pq": side(10.0, recall=0.98)}}},
    "paper": {"value": {"bare_ms": {"cpu": 998.0}}},
}  # fmt: skip


def test_ratios_and_aims(figures: Any) -> None:
    documents = DOCUMENTS | figures.joined(DOCUMENTS)
    found = {
        f"{one.bench}: {one.figure.name}": (one.value, one.figure.keeps(one.value, one.figure.aim))
        for name, document in documents.items()
        for one in figures.read(name, document)
    }
    growth = "growth: pq: time of a generated image, largest n / smallest, "
    assert found == {
        "scale: pq: search / float32 matmul, processor": (0.5, None),
        "scale: pq: recall@200": (0.995, True),
        "scale: pq: codes / float32 vectors": (0.0625, True),
        "million: pq: search / float32 matmul, processor": (0.2, True),
        "million: pq: recall@200": (0.98, False),
        "million: pq: codes / float32 vectors": (0.0625, True),
        growth + "without networks": (11 / 2, None),
        growth + "with EfficientNet-Lite0's pass": (19 / 10, False),
        growth + "with the paper's networks": (1009 / 1000, True),
    }


def test_worse_is_worse_whichever_way_is_good(figures: Any) -> None:
    most, least = figures.Figure("time", None), figures.Figure("recall", None, least=True)
    assert most.worse(3.0, 2.0) == least.worse(2.0, 3.0) == 1.5
    assert most.worse(2.0, 3.0) == least.worse(3.0, 2.0) < 1
    assert most.worse(0.0, 0.0) == 1.0


def test_plots_of_what_there_is(figures: Any, tmp_path: Path) -> None:
    plots = importlib.import_module("plots")
    drawn = plots.draw(DOCUMENTS, tmp_path / "plots")
    assert [path.name for path in drawn] == ["growth.png", "candidates.png", "recall.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    assert plots.draw({}, tmp_path / "none") == []


def run_all(work: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / "all.py"), "--small", "--only", "credits", "--work", str(work)]
    return subprocess.run([*command, *options], capture_output=True, text=True, check=False)


def test_one_command_sees_a_regression(tmp_path: Path) -> None:
    first = run_all(tmp_path / "first")
    assert first.returncode == 0, first.stderr
    kept = json.loads((tmp_path / "first/figures.json").read_text())
    names = [f"credits: credits / bare GROUP BY, k = {k}, processor" for k in (30, 200)]
    assert sorted(kept["ratios"]) == sorted(names)
    assert kept["benches"]["credits"]["command"].startswith("python scripts/bench/credits.py")
    assert kept["benches"]["credits"]["document"]["replace_1_percent"]["credits_changed"] is True
    assert "hit" in first.stdout

    kept["ratios"][names[0]] /= 1_000  # as if it had been that fast once
    baseline = tmp_path / "baseline.json"
    baseline.write_text(json.dumps(kept))
    again = run_all(tmp_path / "second", "--baseline", str(baseline), "--tolerance", "100")
    assert again.returncode == 1
    assert "1 figures too bad" in again.stdout


def test_a_small_run_fails_where_a_ratio_is_far_off(
    figures: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runner = importlib.import_module("all")
    document = {"n": {"5000": {"matmul": matmul(0.1), "pq": side(0.1, recall=0.5)}}, "growth": {}}
    monkeypatch.setattr(runner, "run", lambda *_: {"document": document})
    monkeypatch.setattr(sys, "argv", ["all.py", "--small", "--only", "scale", "--work", str(tmp_path)])
    with pytest.raises(SystemExit, match="1"):
        runner.main()
    document["n"]["5000"]["pq"] = side(0.1)
    runner.main()
    monkeypatch.setattr(runner, "run", lambda *_: None)
    with pytest.raises(SystemExit, match="1"):
        runner.main()
