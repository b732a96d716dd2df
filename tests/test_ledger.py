"""The ledger's file: what is refused, what is repaired, what is published, and when."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from gmv_qdrant import LedgerError
from gmv_qdrant.errors import LedgerLocked
from gmv_qdrant.ledger import database
from gmv_qdrant.ledger.database import PUBLISHED, Ledger
from gmv_qdrant.ledger.publish import Published


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.create(tmp_path / "ledger.duckdb")


@pytest.fixture
def published(ledger: Ledger) -> Published:
    return Published(ledger.path.with_name(PUBLISHED))


def note(ledger: Ledger, uri: str) -> None:
    with ledger.write() as con:
        database.insert(con, "quarantine", {
            "uri": [uri], "reason": ["torn"], "kind": ["damaged"], "run_id": ["r"], "at": [database.utc_now()]
        })  # fmt: skip


def noted(readable: database.Readable) -> list[str]:
    return readable.query("SELECT uri FROM quarantine ORDER BY uri")["uri"].to_pylist()


def test_a_batch_is_whole_or_not_there(ledger: Ledger, published: Published) -> None:
    def fail_halfway() -> None:
        with ledger.write() as con:
            con.execute("INSERT INTO meta VALUES ('half', 'way')")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert "half" not in ledger.meta()
    assert "half" not in published.meta()


def test_what_is_written_is_published_at_once_and_what_a_run_writes_at_its_end(
    ledger: Ledger, published: Published
) -> None:
    note(ledger, "a")
    assert noted(published) == ["a"]
    with ledger.held():
        note(ledger, "b")
        assert (noted(ledger), noted(published)) == (["a", "b"], ["a"])
    assert noted(published) == ["a", "b"]


def test_a_run_that_fails_publishes_what_it_kept(ledger: Ledger, published: Published) -> None:
    def fail() -> None:
        with ledger.held():
            note(ledger, "a")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert noted(published) == ["a"]


def test_a_long_run_publishes_now_and_then(
    ledger: Ledger, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ledger.held():
        note(ledger, "a")
        assert noted(published) == []
        monkeypatch.setattr(database, "PUBLISH_EVERY", 0)
        note(ledger, "b")
        assert noted(published) == ["a", "b"]


def test_who_reads_a_state_goes_on_reading_it(ledger: Ledger, published: Published) -> None:
    note(ledger, "a")
    with published.read() as con:
        before = published.state
        note(ledger, "b")
        assert con.execute("SELECT count(*) FROM quarantine").fetchall() == [(1,)]
        assert noted(published) == ["a", "b"]
        assert published.state != before
        assert con.execute("SELECT count(*) FROM quarantine").fetchall() == [(1,)]


def test_the_published_file_is_read_only_and_has_the_macros(ledger: Ledger, published: Published) -> None:
    assert not published.path.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH)
    with duckdb.connect(str(published.path), read_only=True) as con:
        assert con.sql("FROM image_values()").fetchall() == []
    with duckdb.connect() as con:
        con.execute(f"ATTACH '{published.path}' AS paid (READ_ONLY); USE paid")
        assert con.sql("FROM credits('owner')").fetchall() == []


def test_a_published_file_with_other_value_functions_is_asked_by_those_of_today(
    ledger: Ledger, published: Published
) -> None:
    with ledger.held():  # which writes the macros of today
        with ledger.write() as con:
            con.execute("DROP MACRO TABLE image_values; DROP MACRO _gmv_fixed")
            con.execute("CREATE OR REPLACE MACRO credits(field) AS TABLE SELECT 'of another version' AS name")
            ledger.set_meta(con, macros="of another version")
        ledger.publish()
        assert published.query("FROM image_values()").num_rows == 0
        assert published.query("FROM credits('owner', k := 3)").num_rows == 0
        assert published.restricted().query("FROM credits('owner', k := 3)").num_rows == 0
    with ledger.held():
        assert ledger.query("FROM image_values()").num_rows == 0


def test_without_a_published_file_the_next_run_makes_one(ledger: Ledger, published: Published) -> None:
    published.path.unlink()
    with pytest.raises(LedgerError, match="gmv-qdrant update"):
        published.meta()
    with ledger.held():
        pass
    assert published.meta()["training_version"] == "0"


def test_what_is_no_ledger_is_said(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="gmv-qdrant init"), Ledger(tmp_path / "none.duckdb").held():
        pass
    (tmp_path / "text.duckdb").write_text("hello" * 1000)
    duckdb.connect(str(tmp_path / "other.duckdb")).close()
    for name, said in (("text", "could not be opened"), ("other", "is not a ledger of this tool")):
        file = tmp_path / f"{name}.duckdb"
        with pytest.raises(LedgerError, match=said), Ledger(file).held():
            pass
        with pytest.raises(LedgerError, match=said):
            Published(file).meta()


def test_another_schema_is_refused(ledger: Ledger, published: Published) -> None:
    with ledger.write() as con:
        ledger.set_meta(con, schema_version="99")
    with pytest.raises(LedgerError, match="schema version 99"), ledger.held():
        pass
    with pytest.raises(LedgerError, match="schema version 99"):
        published.query("FROM matches")


def test_a_program_that_holds_the_ledger_is_named_as_the_reason(ledger: Ledger) -> None:
    import subprocess
    import sys

    hold = f"import duckdb; c = duckdb.connect({str(ledger.path)!r}); print('open', flush=True); input()"
    holder = subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "open\n"
    try:
        with pytest.raises(LedgerLocked, match=r"another program has .*open credits.duckdb"), ledger.held():
            pass
    finally:
        holder.communicate("\n")
    note(ledger, "a")


def test_both_files_keep_the_storage_version_that_is_stated(ledger: Ledger, published: Published) -> None:
    def version(path: Path) -> int:
        """The eight bytes after checksum and magic number of a DuckDB file's first header."""
        return int.from_bytes(path.read_bytes()[12:20], "little")

    with duckdb.connect() as con:
        pinned = ledger.path.with_name("pinned.duckdb")
        con.execute(f"ATTACH '{pinned}' (STORAGE_VERSION '{database.STORAGE_VERSION}')")
    expected = version(pinned)
    duckdb.connect(str(ledger.path.with_name("newest.duckdb"))).close()
    assert version(ledger.path.with_name("newest.duckdb")) > expected
    note(ledger, "a")
    with ledger.held():
        ledger.rewrite()
        note(ledger, "b")
    assert (version(ledger.path), version(published.path)) == (expected, expected)
    assert noted(published) == ["a", "b"]


def test_no_room_for_the_published_file_is_said_and_leaves_the_old_one(
    ledger: Ledger, published: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: int, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    note(ledger, "a")
    with monkeypatch.context() as patched:
        patched.setattr(database, "_copy", full)
        with pytest.raises(LedgerError, match=r"No space left on device.*the ledger itself is safe"):
            note(ledger, "b")
    assert noted(published) == ["a"]
    assert [path.name for path in ledger.path.parent.iterdir() if "partial" in path.name] == []
    with ledger.held():
        pass
    assert noted(published) == ["a", "b"]


def test_a_run_says_which_versions_computed_without_importing_them() -> None:
    program = """
import sys
from gmv_qdrant.ledger.runs import versions
told = set(versions())
assert {"python", "gmv-qdrant", "torch", "open_clip_torch", "dreamsim", "lpips", "pyiqa", "Pillow",
        "numpy", "scipy", "timm", "duckdb", "qdrant-edge-py"} <= told, told
assert not {"torch", "open_clip", "dreamsim", "lpips", "pyiqa", "timm", "scipy"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
