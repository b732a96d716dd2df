"""scripts/cost_model.py: its constants are sourced, its arithmetic is right, and docs/growing.md shows what it says."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from gmv_qdrant.cluster import jobs

from gmv_qdrant.ledger.database import Ledger
from gmv_qdrant.vectors.server.reader import BATCH

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "scripts" / "cost_model.py"


@pytest.fixture(scope="module")
def model() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cost_model", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_constant_says_where_it_comes_from(model: ModuleType) -> None:
    entries = json.loads(model.CONSTANTS.read_text())
    for name, entry in entries.items():
        assert entry["value"] > 0, name
        assert all(entry[field] for field in ("unit", "what", "from")), name
    constants = model.read_constants()
    assert constants["images of a GPU task"] == jobs.ROWS["gpu"]
    assert constants["images of a transaction"] == jobs.TOGETHER
    assert constants["points of a request"] == BATCH


def test_the_docs_show_what_the_script_says() -> None:
    said = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=True).stdout
    assert said in (ROOT / "docs" / "growing.md").read_text()


def test_arithmetic(model: ModuleType) -> None:
    c = model.read_constants()
    one, two = (model.training_set(n, c, gpus=8, tflops=12) for n in (1e6, 2e6))
    for row, value in one.items():
        grows = (
            2 < two[row] / value < 4
            if row == "hours of the ledger writer"
            else two[row] / value == pytest.approx(2)
        )
        assert grows, f"{row}: linear, but for the writer, who looks through what is there"
    assert one["GPU seconds, thousands"] == pytest.approx(
        1e6 * (c["recall network"] + c["re-rank network"]) / 12e12 / 1e3
    )
    assert one["feature files, GB"] == pytest.approx(1792 * 2 * 1e6 / 1e9)
    # twice the GPUs: half the time, the same seconds of GPUs
    double = model.training_set(1e6, c, gpus=16, tflops=12)
    assert double["hours on these GPUs"] == pytest.approx(one["hours on these GPUs"] / 2)
    assert double["GPU seconds, thousands"] == one["GPU seconds, thousands"]
    # a transaction at the writer's limit takes as long as the GPUs need for its images
    limit = next(n for n, what in model.limits(c, 8, 12, 64, 4000) if "writer" in what)
    transaction = (
        c["ledger seconds a transaction"] + c["ledger seconds a transaction and million"] * limit / 1e6
    )
    rate = 8 * 12e12 / (c["recall network"] + c["re-rank network"])
    assert transaction == pytest.approx(c["images of a transaction"] / rate)


def test_keys_are_as_wide_as_the_limit_says(model: ModuleType, tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "ledger.duckdb")
    columns = ledger.query("SELECT data_type FROM duckdb_columns() WHERE column_name = 'training_key'")
    assert set(columns["data_type"].to_pylist()) == {"INTEGER"}
    assert model.INT32 == 2**31 - 1


def test_the_ledger_is_measured_with_its_own_writers(model: ModuleType) -> None:
    found = model.measure_ledger(held=(500, 3_000), together=64)
    assert set(found) <= set(model.read_constants())
    assert 50 < found["snapshot bytes"] < 200
    assert found["evidence message bytes"] > model.CANDIDATES * (4 + 8 + 1 + 4)
    assert 0 < found["evidence seconds"] < 1
    assert found["look-up seconds"] >= 0
