"""Recorded payouts against the ledger, and a stranger's script against their bundles: what was changed is found."""

from __future__ import annotations

import ast
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from gmv_qdrant import Workspace
from gmv_qdrant.web.app import application

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
SCRIPT = SCRIPTS / "verify_payout.py"


@pytest.fixture(scope="module")
def tamper() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPTS / "tamper.py"))


@pytest.fixture(scope="module")
def made(tamper: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tamper")
    tamper["make"](folder)
    return folder


def verified(*arguments: str | Path) -> tuple[int, str]:
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert not done.stderr
    return done.returncode, done.stdout


def test_the_script_is_short_and_imports_nothing_of_ours() -> None:
    text = SCRIPT.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).partition(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"duckdb", "pyarrow"}


def test_what_nobody_changed_is_right_inside_and_outside(made: Path) -> None:
    workspace = Workspace(made / "ws")
    assert workspace.verify() == []
    fingerprint = workspace.payouts()[-1]["fingerprint"]
    code, said = verified(made / "bundle", "--fingerprint", fingerprint)
    assert (code, "follows from its evidence" in said, fingerprint in said) == (0, True, True)
    code, said = verified(made / "bundle", "--previous", made / "ws/payouts/2026-Q1")
    assert (code, said.count("\n")) == (0, 2)
    code, said = verified(made / "bundle", "--fingerprint", "f" * 64)
    assert (code, "the statement: fingerprint" in said) == (1, True)


@pytest.mark.parametrize(
    "function",
    [
        {"rule": "shares", "k": 5, "temperature": 0.05},
        {"rule": "shares", "temperature": 0.001, "quality_weighted": False},
        {"rule": "owner-shapley", "k": 3, "temperature": 1.0},
        {"rule": "owner-shapley", "calibration": "nobody"},
        {"rule": "shares", "calibration": "nobody"},
    ],
)
@pytest.mark.parametrize("by", ["owner", "camera"])
def test_every_rule_is_recomputed_to_the_unit(
    made: Path, tmp_path: Path, tamper: dict[str, Any], function: dict[str, Any], by: str
) -> None:
    shutil.copytree(made / "ws", tmp_path / "ws")
    workspace = Workspace(tmp_path / "ws")
    with workspace.ledger.write() as con:
        con.execute(
            """INSERT INTO calibrations (name, version, temperature, null_distance, relative, fitted_at)
            VALUES ('nobody', 1, 0.1, 0.97, true, TIMESTAMP '2026-01-01')"""
        )
    workspace.payout("1000000", by, record="2026-Q3", currency="JPY", **function)
    document = workspace.payout_record("2026-Q3").payout
    differs, said = tamper["found_by_script"](workspace.path / "payouts/2026-Q3", document.fingerprint)
    assert not differs
    assert "follows from its evidence" in said
    assert ("nobody" in {line.kind for line in document.lines}) == ("calibration" in function)


def test_a_forged_amount_is_found_though_everything_is_hashed_anew(
    made: Path, tmp_path: Path, tamper: dict[str, Any]
) -> None:
    import json

    shutil.copytree(made / "bundle", tmp_path / "bundle")
    document = json.loads((tmp_path / "bundle/payout.json").read_bytes())
    first, second = document["lines"][:2]
    first["amount"], first["paid"], first["high"] = first["amount"] + 1, first["paid"] + 1, first["high"] + 1
    second["amount"], second["paid"], second["low"] = (
        second["amount"] - 1,
        second["paid"] - 1,
        second["low"] - 1,
    )
    tamper["_write"](tmp_path / "bundle/payout.json", document)
    tamper["_hash_anew"](tmp_path / "bundle")
    code, said = verified(tmp_path / "bundle")
    assert (code, f"amount of {first['name']!r}" in said) == (1, True)


@pytest.mark.parametrize("number", range(12))
def test_random_tamperings_are_found(made: Path, tamper: dict[str, Any], number: int) -> None:
    """The small version of ``scripts/tamper.py``, which makes a thousand."""
    what, found, said = tamper["one"](made, number, 20261)
    assert found, f"{what}: {said}"


def test_a_ledger_that_cannot_be_read_is_a_sentence(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "ws", tmp_path / "ws")
    workspace = Workspace(tmp_path / "ws")
    with workspace.ledger.write() as con:
        con.execute("UPDATE payouts SET value_function = '{\"rule\": 3}' WHERE payout_id = '2026-Q1'")
    (found, *_) = workspace.verify()
    assert found.wrong
    assert "changed by hand" in str(found)


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE source_history SET owner = 'Eve' WHERE owner = 'Cy'",
        "DELETE FROM source_history WHERE until IS NOT NULL",
        "UPDATE runs SET started_at = started_at - INTERVAL 1 DAY WHERE verb = 'value'",
        "UPDATE calibrations SET temperature = temperature * 1.01 WHERE version = 1",
    ],
)
def test_what_no_run_changes_is_held_against_the_seal_after_later_runs(
    made: Path, tmp_path: Path, sql: str
) -> None:
    shutil.copytree(made / "ws", tmp_path / "ws")
    workspace = Workspace(tmp_path / "ws")
    workspace.calibrate(name="later", probes=20)
    assert not [one for one in workspace.verify() if one.wrong]
    with workspace.ledger.write() as con:
        con.execute(sql)
    assert [one for one in workspace.verify() if one.wrong and "by hand" in one.what]


def test_a_run_is_one_since_whatever_the_clocks_say(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "ws", tmp_path / "ws")
    workspace = Workspace(tmp_path / "ws")
    workspace.withdraw(owner="Dee")
    with workspace.ledger.write() as con:
        con.execute("UPDATE runs SET started_at = TIMESTAMP '2020-01-01' WHERE verb = 'withdraw'")
    found = [one for one in workspace.verify() if one.payout]
    assert found
    assert not any(one.wrong for one in found)


def test_near_copies_across_owners_are_claims_in_every_answer(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "ws", tmp_path / "ws")
    workspace = Workspace(tmp_path / "ws")
    rows = workspace.payout("100", currency="EUR")
    (near,) = [claim for claim in rows.payout.claims if len(claim.images) == 3]
    assert near.names == ("Bay", "Fay")
    assert any("2 pictures that several owners claim" in note for note in rows.payout.notes)
    held = workspace.payout("100", currency="EUR", hold=True)
    mine = [hold for hold in held.payout.holds if hold.images == near.images]
    before = workspace.payout_record("2026-Q2").payout.holds
    outstanding = sum(hold.amount for hold in before if hold.images == near.images)
    assert sum(hold.amount for hold in mine) == near.amount + outstanding
    assert not any("several owners claim" in note for note in held.payout.notes)

    report = workspace.report(tmp_path / "report.html").read_text(encoding="utf-8")
    page = TestClient(
        application(workspace.path, workspace.published, workspace.settings), "http://127.0.0.1"
    ).get("/claims")
    assert page.status_code == 200
    for text in (report, page.text):
        assert "Claimed by several owners" in text
        assert "Bay, Fay" in text
        assert "near.png" in text
    statement = workspace.statement("Fay", tmp_path / "fay.html").read_text(encoding="utf-8")
    assert "near-copies of one another" in statement
    assert "owners, effectively" in statement
