"""Who may read while who writes: processes, threads, notebooks, people's SQL."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
import tiny_workspace

from gmv_qdrant import Workspace
from gmv_qdrant.errors import GmvError, LedgerError, SettingsError
from gmv_qdrant.ledger.database import PUBLISHED


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace.init(tmp_path / "workspace", **tiny_workspace.SETTINGS)
    made.ingest(tiny_workspace.write(tmp_path / "a", range(20)), owner="ada")
    made.value(tiny_workspace.write(tmp_path / "g", range(50, 60)))
    return made


@contextmanager
def notebook(file: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the file open and answers with ada's credit at each line it gets."""
    program = f"""
import duckdb, sys
con = duckdb.connect({str(file)!r}, read_only=True)
for line in sys.stdin:
    print(con.sql("SELECT count(*) FROM credits('owner')").fetchall()[0][0], flush=True)
"""
    held = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield held
    finally:
        held.communicate()


def ask(held: subprocess.Popen[str]) -> int:
    assert held.stdin is not None
    assert held.stdout is not None
    held.stdin.write("?\n")
    held.stdin.flush()
    return int(held.stdout.readline())


def test_a_notebook_holds_the_file_open_while_images_are_taken_in(
    workspace: Workspace, tmp_path: Path
) -> None:
    with notebook(workspace.path / PUBLISHED) as held:
        assert ask(held) == 1
        started = time.monotonic()
        workspace.ingest(tiny_workspace.write(tmp_path / "b", range(100, 110)), owner="bay")
        workspace.value(tiny_workspace.write(tmp_path / "g", range(50, 65)))
        workspace.withdraw(uri="*/3.png")
        assert time.monotonic() - started < 60
        assert ask(held) == 1  # the state that it opened
        assert {row[0] for row in workspace.credits().fetchall()} == {"ada", "bay"}
    with notebook(workspace.path / PUBLISHED) as held:
        assert ask(held) == 2


def test_connections_of_ones_own_in_the_same_process(workspace: Workspace, tmp_path: Path) -> None:
    mine = duckdb.connect(str(workspace.path / PUBLISHED), read_only=True, config={"threads": 1})
    assert mine.sql("SELECT count(*) FROM training").fetchall() == [(20,)]
    workspace.ingest(tiny_workspace.write(tmp_path / "b", range(100, 110)), owner="bay")
    assert mine.sql("SELECT count(*) FROM training").fetchall() == [(20,)]
    assert workspace.sql("SELECT count(*) FROM training").fetchall() == [(30,)]
    assert len(workspace.credits().fetchall()) == 2
    with duckdb.connect() as con:
        con.execute(f"ATTACH '{workspace.path / PUBLISHED}' AS mine (READ_ONLY); USE mine")
        assert con.sql("SELECT count(*) FROM image_values()").fetchall() == [(30,)]
    mine.close()


def test_one_workspace_in_eight_threads_while_it_writes(workspace: Workspace, tmp_path: Path) -> None:
    def question(turn: int) -> int:
        kind = turn % 5
        if kind == 0:
            return len(workspace.credits("owner", interval=95).fetchall())
        if kind == 1:
            return len(workspace.credits("image").fetchall())
        if kind == 2:
            return len(workspace.status())
        if kind == 3:
            return len(workspace.explain(str(tmp_path / "g" / "50.png"))[1].fetchall())
        return int(workspace.stale() >= 0)

    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(question, turn) for turn in range(80)]
        workspace.ingest(tiny_workspace.write(tmp_path / "b", range(100, 120)), owner="bay")
        workspace.value(tiny_workspace.write(tmp_path / "g", range(50, 70)))
        assert all(answer.result() for answer in answers)
    assert workspace.check() == []


def test_a_half_read_answer_disturbs_nobody(workspace: Workspace) -> None:
    reader = pa.RecordBatchReader.from_stream(workspace.sql("FROM range(5000)"))
    first = reader.read_next_batch().num_rows
    assert len(workspace.credits("image").fetchall()) == 20
    assert first + sum(batch.num_rows for batch in reader) == 5000
    half = workspace.credits("image")
    assert len(half.limit(1).fetchall()) == 1
    assert half.fetchall() == workspace.credits("image").fetchall()


def files(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
    }


def test_questions_write_nothing(workspace: Workspace, tmp_path: Path) -> None:
    before = files(workspace.path)
    asked = Workspace(workspace.path)
    asked.credits("owner", interval=95).fetchall()
    asked.sql("FROM training").fetchall()
    asked.status()
    asked.explain("50.png")
    asked.export(tmp_path / "out")
    repr(asked)
    with pytest.raises(GmvError):
        asked.explain("nobody.png")
    assert files(workspace.path) == before


def test_questions_are_answered_while_another_program_holds_the_ledger(workspace: Workspace) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c",
         f"import duckdb; c = duckdb.connect({str(workspace.ledger.path)!r}); print(1, flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert writer.stdout is not None
    writer.stdout.readline()
    try:
        assert len(Workspace(workspace.path).credits().fetchall()) == 1
    finally:
        writer.communicate("\n")


# -- SQL that people type ---------------------------------------------------------------------------

BOMBS = (
    "SELECT length(lpad('', 2000000000, 'x'))",
    "SELECT length(repeat('x', 2000000000))",
    "SELECT list_sum(range(2000000000))",
    "SELECT count(*) FROM range(100000000000) a(i) WHERE hash(i) = 0",
    "SELECT count(*) FROM range(1000000) a, range(1000000) b, range(1000000) c",
    "SELECT * FROM range(1000000000)",
    "SELECT * FROM range(100000) a(i), range(100000) b(j) ORDER BY hash(i, j)",
    "SELECT string_agg(i::VARCHAR, ',') FROM range(1000000000) t(i)",
    "SELECT list(x) FROM (SELECT repeat('x', 1000) AS x FROM range(100000000))",
    "WITH RECURSIVE a AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM a) SELECT count(*) FROM a",
    "WITH RECURSIVE a AS (SELECT 'x' AS s UNION ALL SELECT s || s FROM a) SELECT max(length(s)) FROM a",
    "SELECT unnest(range(10000000000))",
    "SELECT levenshtein(repeat('a', 1000000), repeat('b', 1000000))",
    "SELECT list_sort(range(400000000))[1]",
    "SELECT to_json(range(300000000))",
    "SELECT array_to_string(range(500000000), ',')",
    "SELECT printf('%1000000000d', 1)",
    "SELECT 1 WHERE list_contains(list_transform(range(100000000), x -> md5(x::VARCHAR)), 'a')",
    "CREATE TABLE memory.main.t AS SELECT repeat('x', 1000) AS x FROM range(1000000000)",
)


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_bounded_in_time_and_memory(workspace: Workspace, bomb: str) -> None:
    started = time.monotonic()
    with pytest.raises(LedgerError, match=r"stopped after 2 s|needs more than 0.5 GiB|can't be run"):
        workspace.published.restricted(seconds=2, memory=512 << 20).query(bomb)
    assert time.monotonic() - started < 15


FORBIDDEN = (
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_text('/etc/passwd')",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM glob('/etc/*')",
    "COPY (SELECT 1) TO '/tmp/gmv-qdrant-written.csv'",
    "ATTACH '/tmp/gmv-qdrant-other.duckdb'",
    "ATTACH 'https://example.org/x.duckdb'",
    "SELECT * FROM read_parquet('https://example.org/x.parquet')",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET threads = 64",
    "SET enable_external_access = true",
    "SET memory_limit = '100GB'",
    "RESET lock_configuration",
    "PRAGMA enable_external_access = true",
    "INSERT INTO credits.main.meta VALUES ('a', 'b')",
    "DELETE FROM matches",
    "DROP TABLE sources",
    "DETACH credits",
    "EXPORT DATABASE '/tmp/gmv-qdrant-exported'",
    "CREATE OR REPLACE MACRO credits(field) AS TABLE SELECT 1",
)


@pytest.mark.parametrize("sql", FORBIDDEN)
def test_people_may_only_read_the_tables(workspace: Workspace, sql: str) -> None:
    before = files(workspace.path)
    with pytest.raises((LedgerError, SettingsError)):
        workspace.published.restricted().query(sql)
    assert files(workspace.path) == before


def test_what_people_may_ask(workspace: Workspace, tmp_path: Path) -> None:
    asked = workspace.published.restricted()
    assert asked.query("SELECT count(*) AS n FROM matches")["n"].to_pylist() == [40]
    assert asked.query("SELECT $n + 1 AS n", {"n": 1})["n"].to_pylist() == [2]
    assert workspace.sql("SELECT 170141183460469231731687303715884105727::HUGEINT").fetchall() == [
        (2**127 - 1,)
    ]
    assert workspace.sql("SELECT 340282366920938463463374607431768211455::UHUGEINT").fetchall() == [
        (2**128 - 1,)
    ]
    assert workspace.sql("SELECT MAP {1: 2, 3: 4}").fetchall() == [({1: 2, 3: 4},)]
    with pytest.raises(SettingsError, match="only SELECT"):
        asked.query("")
    (tmp_path / "in voices.csv").write_text("owner,euros\nada,5\n")
    found = workspace.published.restricted(attach={"in voices": tmp_path / "in voices.csv"}).query(
        "SELECT euros FROM \"in voices\" JOIN credits('owner') ON name = owner"
    )
    assert found.to_pylist() == [{"euros": 5}]
    assert isinstance(found, pa.Table)
