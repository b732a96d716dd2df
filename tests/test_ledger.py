"""The ledger file: what is refused, what is repaired, and who may write."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from gmv_qdrant import LedgerError
from gmv_qdrant.ledger.database import Ledger


def test_a_batch_is_whole_or_not_there(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "ledger.duckdb")

    def fail_halfway() -> None:
        with ledger.write() as con:
            con.execute("INSERT INTO features VALUES ('a', 1, 1, 1)")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert ledger.query("FROM features").num_rows == 0


def test_an_older_ledger_gets_the_value_functions_of_today(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "ledger.duckdb")
    with ledger.write() as con:
        con.execute("DROP MACRO TABLE image_values")
        ledger.set_meta(con, macros="of an older version")
    assert Ledger.open(ledger.path).query("FROM image_values()").num_rows == 0


def test_what_is_no_ledger_is_said(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="gmv-qdrant init"):
        Ledger.open(tmp_path / "ledger.duckdb")
    (tmp_path / "text.duckdb").write_text("hello" * 1000)
    with pytest.raises(LedgerError):
        Ledger.open(tmp_path / "text.duckdb")
    duckdb.connect(str(tmp_path / "other.duckdb")).close()
    with pytest.raises(LedgerError, match="not a ledger"):
        Ledger.open(tmp_path / "other.duckdb")


def test_another_schema_is_refused(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "ledger.duckdb")
    with ledger.write() as con:
        ledger.set_meta(con, schema_version="99")
    with pytest.raises(LedgerError, match="schema version 99"):
        Ledger.open(ledger.path)
