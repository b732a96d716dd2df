"""What people and pipes see: tables that never lose a digit, forms that programs read, a sentence at each mistake."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tiny_workspace
from click.testing import CliRunner

from gmv_qdrant import Workspace
from gmv_qdrant.cli import render
from gmv_qdrant.cli.main import cli
from gmv_qdrant.cli.progress import Bars
from gmv_qdrant.text import harmless_cell, printable, shortened, width

PATIENCE = 2 + 3 * (os.getloadavg()[0] > (os.cpu_count() or 1))
"""Seconds that a person waits; more where other work keeps the machine busy."""
OWNERS = ["José", "日本の写真館", "evil\x1b[31mred\x9b2J\u202e", "=cmd|calc", 'a, "b"\nand c | d', "x" * 90]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("terminal")
    made = Workspace.init(root / "ws", **tiny_workspace.SETTINGS)
    for seed, owner in enumerate(OWNERS):
        images = tiny_workspace.write(root / f"o{seed}", range(seed * 3, seed * 3 + 3))
        made.ingest(images, owner=owner if seed == 0 else f"owner {seed}")
        with made.ledger.write() as con:  # whatever `ingest` refuses today: names that harm a terminal
            con.execute("UPDATE sources SET owner = ? WHERE owner = ?", [owner, f"owner {seed}"])
    made.value(tiny_workspace.write(root / "generated", range(100, 110)), batch="first")
    return made.path


def gmv(workspace: Path, *words: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """The program in a pipe."""
    return subprocess.run(
        [sys.executable, "-m", "gmv_qdrant", *map(str, words)],
        capture_output=True,
        timeout=120,
        env={**os.environ, "GMV_WORKSPACE": str(workspace), **environment},
    )


def on_terminal(workspace: Path, *words: object, columns: int = 80, **environment: str) -> str:
    """What the program writes to a terminal so wide, answers and messages together."""
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-m", "gmv_qdrant", *map(str, words)],
        stdin=side,
        stdout=side,
        stderr=side,
        env={**kept, "GMV_WORKSPACE": str(workspace), **environment},
    )
    os.close(side)
    seen = b""
    try:
        while part := os.read(main, 65536):
            seen += part
    except OSError:  # the other side has ended
        pass
    process.wait(timeout=60)
    os.close(main)
    return seen.decode(errors="replace").replace("\r\n", "\n")


# -- tables ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [30, 50, 80, 200])
def test_tables_fit_and_numbers_keep_their_digits(workspace: Path, columns: int) -> None:
    exact = json.loads(gmv(workspace, "credits", "--json").stdout)
    seen = on_terminal(workspace, "credits", columns=columns)
    table = seen[: seen.index("left out") if "left out" in seen else seen.index("effective")]
    assert max(width(line) for line in table.splitlines()) <= columns
    for row in exact:
        assert f"{row['value']:.4f}" in table
    assert ("left out" in seen) == (columns < 50)


def test_points_stand_under_each_other_and_amounts_are_numbers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render, "on_terminal", lambda: True)
    monkeypatch.setattr(render, "columns_of_terminal", lambda: 30)
    amounts = ["1234567.89", "8.45", "-0.10"]
    found = [
        {"owner": "x" * 40, "label": None, "amount": amount, "share": share}
        for amount, share in zip(amounts, [0.5, 0.0421, 0.25], strict=True)
    ]
    render.print_rows(found, list(found[0]))
    seen = capsys.readouterr()
    rows = seen.out.splitlines()[2:]
    assert len({row.rindex(".") for row in rows}) == 1
    assert all(amount in row for amount, row in zip(amounts, rows, strict=True)), "no cent is lost"
    assert "left out: label" in seen.err, "what is empty goes first"


def test_a_command_is_never_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal: Any = type("Terminal", (io.StringIO,), {"isatty": lambda _: True})()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(render, "columns_of_terminal", lambda: 20)
    render.warn("go on, when you like, with:\n  gmv-qdrant -w demo/workspace credits --by owner")
    said = terminal.getvalue().splitlines()
    assert said[-1] == "  gmv-qdrant -w demo/workspace credits --by owner"
    assert max(map(len, said[:-1])) <= 20


def test_nothing_of_a_name_reaches_the_terminal(workspace: Path) -> None:
    for words in (
        ["credits"],
        ["credits", "--format", "csv"],
        ["credits", "--format", "md"],
        ["credits", "--json"],
        ["explain", "100.png"],
        ["sql", "SELECT owner FROM sources"],
        ["withdraw", "--owner", "no\x1b[2J"],
        ["credits", "--by", "\x1b]0;title\x07"],
    ):
        seen = re.sub("\r[^\r\n]*(?=\r)|\r", "", on_terminal(workspace, *words))  # but for the bar
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", seen), (words, seen)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_any_terminal_can_be_written_to(workspace: Path, encoding: str) -> None:
    for words in (
        ["credits"],
        ["status"],
        ["credits", "--json"],
        ["credits", "--format", "md"],
        ["explain", "é.png"],
    ):
        done = gmv(workspace, *words, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
        assert b"Traceback" not in done.stderr
        assert done.returncode == (1 if "é.png" in words else 0), done.stderr
    rows = json.loads(gmv(workspace, "credits", "--json", PYTHONIOENCODING=encoding).stdout.decode(encoding))
    assert {row["owner"] for row in rows} == set(OWNERS), "JSON is exact whatever the letters of the terminal"


def test_words_of_tables() -> None:
    assert [
        render.cell(value) for value in (1234567, 0.000012345, 0.0, 1234.5, True, None, [1, "a"], {"a": None})
    ] == [
        "1,234,567",
        "1.234e-05",
        "0.0000",
        "1,234.5000",
        "yes",
        "–",
        '[1, "a"]',
        '{"a": null}',
    ]
    assert render.cell(2024, grouped=False) == "2024"
    assert printable("a\x1b[31m\n\u202e") == "a\\x1b[31m\\x0a\\u202e"
    assert (width("日本"), width("e\u0301"), width("abc")) == (4, 1, 3)
    for text in ("/a/very/long/path/to/picture.png", "日本の写真館の名前", "short"):
        assert width(shortened(text, 11)) <= 11
    assert shortened("/a/very/long/path/to/picture.png", 16).endswith("icture.png")


@pytest.mark.parametrize(
    ("text", "harmless"),
    [
        ("=1+1", "'=1+1"),
        ("@x", "'@x"),
        (" +cmd", "' +cmd"),
        ("-4.5e-3", "-4.5e-3"),
        ("-x", "'-x"),
        ("Ada", "Ada"),
        ("＝1", "'＝1"),
        ("+1+1", "'+1+1"),
        ("-1,234.5", "-1,234.5"),
        ("\tx", "'\tx"),
        ("\rx", "'\rx"),
        ('"=1"', '\'"=1"'),
        ("“=HYPERLINK(1)", "'“=HYPERLINK(1)"),
        ("\u00a0\u200b@SUM(1)", "'\u00a0\u200b@SUM(1)"),
        ("O'Neill = Sons", "O'Neill = Sons"),
        ("", ""),
    ],
)
def test_cells_are_no_formulas(text: str, harmless: str) -> None:
    assert harmless_cell(text) == harmless


# -- forms -------------------------------------------------------------------------------------------


def test_a_pipe_gets_every_digit_and_no_boxes(workspace: Path) -> None:
    exact = {row["owner"]: row for row in json.loads(gmv(workspace, "credits", "--json").stdout)}
    piped = gmv(workspace, "credits")
    assert piped.stdout == gmv(workspace, "credits", "--format", "csv").stdout
    rows = list(csv.DictReader(io.StringIO(piped.stdout.decode())))
    assert [float(row["value"]) for row in rows] == [row["value"] for row in exact.values()]
    names = {row["owner"] for row in rows}
    assert {
        "José",
        "日本の写真館",
        "'=cmd|calc",
        'a, "b"\nand c | d',
        "evil\\x1b[31mred\\x9b2J\\u202e",
    } < names


def test_parquet_and_markdown(workspace: Path) -> None:
    exact = json.loads(gmv(workspace, "credits", "--json").stdout)
    table = pq.read_table(io.BytesIO(gmv(workspace, "credits", "--format", "parquet").stdout))
    assert table.to_pylist() == exact
    lines = gmv(workspace, "credits", "--format", "md").stdout.decode().splitlines()
    assert len(lines) == 2 + len(exact), "a name with a line's end stays in its line"
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(exact[0]) + 1}
    assert "isn't for the eye" in on_terminal(workspace, "credits", "--format", "parquet")


def test_json_is_exact(workspace: Path) -> None:
    query = """SELECT 170141183460469231731687303715884105727::HUGEINT AS huge, 9007199254740993 AS big,
        340282366920938463463374607431768211455::UHUGEINT AS unsigned, MAP {1: 'a', 2: NULL} AS map,
        MAP {[1]: 2} AS odd, 'nan'::DOUBLE AS nan, 1.10::DECIMAL(10, 2) AS money, DATE '2024-02-29' AS day,
        TIMESTAMPTZ '2024-01-01 00:00:00+00' AS moment, INTERVAL 1 DAY AS span, 'a\\x00b'::BLOB AS bytes,
        {'a': [1, NULL]} AS nested, true AS yes, NULL AS nothing, 'dead:beef'::VARCHAR AS words, 1e308 AS far"""
    found = json.loads(gmv(workspace, "sql", query, "--json").stdout)[0]
    assert found["huge"] == 170141183460469231731687303715884105727
    assert found["unsigned"] == 340282366920938463463374607431768211455
    assert found["big"] == 9007199254740993
    assert found["map"] == {"1": "a", "2": None}
    assert (found["nan"], found["money"], found["day"]) == (None, 1.1, "2024-02-29")
    assert found["moment"].startswith("2024-01-01T00:00:00")
    assert found["nested"] == {"a": [1, None]}
    text = next(csv.DictReader(io.StringIO(gmv(workspace, "sql", query).stdout.decode())))
    assert text["huge"] == "170141183460469231731687303715884105727"
    assert (text["yes"], text["nothing"], text["nested"]) == ("true", "", '{"a": [1, null]}')


def test_years_of_sql_are_no_thousands(workspace: Path) -> None:
    seen = on_terminal(workspace, "sql", "SELECT 2024 AS year, 0.123456789 AS x")
    assert "2024" in seen
    assert "2,024" not in seen


def test_sql_from_a_file(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "q.sql").write_text("SELECT count(*) AS n\nFROM training -- all of them\n")
    assert json.loads(gmv(workspace, "sql", "-f", tmp_path / "q.sql", "--json").stdout) == [{"n": 18}]
    assert gmv(workspace, "sql").returncode == 2
    assert gmv(workspace, "sql", "SELECT 1", "-f", tmp_path / "q.sql").returncode == 2


def test_two_forms_at_once_are_a_mistake(workspace: Path) -> None:
    done = gmv(workspace, "credits", "--json", "--format", "csv")
    assert (done.returncode, done.stdout) == (2, b"")


# -- options and mistakes ----------------------------------------------------------------------------


def test_the_workspace_before_and_after_the_verb(workspace: Path, tmp_path: Path) -> None:
    for words in (
        ["-w", workspace, "credits"],
        ["credits", "-w", workspace],
        ["-w", tmp_path, "credits", "-w", workspace],
    ):
        assert gmv(tmp_path, *words).returncode == 0
    assert gmv(workspace, "credits").returncode == 0, "GMV_WORKSPACE"
    done = gmv(workspace, "-w", tmp_path, "credits")
    assert done.returncode == 1
    assert b"is not a workspace" in done.stderr


@pytest.mark.parametrize(
    ("words", "says", "code"),
    [
        (["credit"], "There is no command 'credit' (did you mean 'credits'?)", 2),
        (["credits", "--temprature", "1"], "--temperature", 2),
        (["credits", "--by", "ownr"], "did you mean 'owner'", 1),
        (["credits", "--calibration", "x"], "there is no calibration 'x'", 1),
        (["explain", "10.pgn"], "no training or generated image is called '10.pgn'", 1),
        (["sql", "SELECT nonsense"], "this SQL can't be run", 1),
        (["credits", "--by", "image", "--interval", "95"], "intervals are given for", 1),
    ],
)
def test_a_mistake_is_one_sentence(workspace: Path, words: list[str], says: str, code: int) -> None:
    done = gmv(workspace, *words)
    assert done.returncode == code, done.stderr
    assert says in done.stderr.decode()
    assert done.stdout == b""


def test_quiet_and_verbose(workspace: Path) -> None:
    assert gmv(workspace, "-q", "value", "--batch", "q", workspace.parent / "generated").stderr == b""
    loud = gmv(workspace, "value", "--batch", "v", workspace.parent / "generated", "-v").stderr.decode()
    assert re.search(r"value: 10 valued.* in [\d.]+ s\n.*check [\d.]+ s", loud)


def test_nothing_taken_in_is_no_success(workspace: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    for verb in ("ingest", "value"):
        done = gmv(workspace, verb, tmp_path)
        assert done.returncode == 1
        assert b"nothing was taken in: all 1 inputs are in quarantine" in done.stderr
    known = gmv(workspace, "ingest", workspace.parent / "o0", "--owner", OWNERS[0])
    assert known.returncode == 0, "all of it is known already"


@pytest.mark.parametrize("zone", ["PST", "IST", "GMT+5", "US/Pacific-New", "nonsense", ""])
def test_any_time_zone(workspace: Path, zone: str) -> None:
    for words in (["status"], ["credits"], ["sql", "SELECT started_at FROM runs LIMIT 1", "--json"]):
        done = gmv(workspace, *words, TZ=zone)
        assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr


# -- streams that are not there ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [["credits"], ["credits", "--json"], ["--help"], ["status"], ["credits", "--format", "parquet"]]
)
def test_a_full_disk_is_one_sentence(workspace: Path, words: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gmv_qdrant", "-w", workspace, *words],
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
        )
    assert done.returncode == 1
    assert "No space left" in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_harm_nothing(workspace: Path, closed: str) -> None:
    before = (workspace / "ledger.duckdb").read_bytes()
    command = f"{sys.executable} -m gmv_qdrant -w '{workspace}' credits {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60)
    assert b"Traceback" not in done.stderr
    assert done.returncode == (1 if ">&-" in closed.replace("2>&-", "") else 0)
    assert (workspace / "ledger.duckdb").read_bytes() == before


def test_who_reads_on_is_not_told_of_who_stopped(workspace: Path) -> None:
    command = (
        f"{sys.executable} -m gmv_qdrant -w '{workspace}' sql 'SELECT range FROM range(200000)' | head -1"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60)
    assert (done.stdout, done.stderr) == (b"range\n", b"")


# -- progress ----------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_the_rate_does_not_count_what_was_skipped(clock: Callable[[float], None]) -> None:
    bars = Bars("value", terminal=True)
    bars.phase("value", 1000)
    bars.skip(800)
    for _ in range(10):
        clock(1)
        bars.advance(2)
    line = bars.line(80)
    assert "820/1,000" in line
    assert "2.0/s" in line
    assert "1:30 left" in line, "the 180 that are left, at 2 a second"
    assert len(line) <= 80
    assert len(bars.line(30)) <= 30


def test_a_bar_moves_inside_a_chunk(clock: Callable[[float], None]) -> None:
    bars = Bars("ingest", terminal=True)
    bars.phase("ingest", 100)
    clock(1)
    bars.under_way(10)
    assert "10/100" in bars.line(80)
    clock(1)
    bars.under_way(10)
    bars.advance(25)  # five of them were known under another name
    assert "25/100" in bars.line(80)
    assert "12.5/s" in bars.line(80)


def test_without_a_terminal_a_line_now_and_then(
    clock: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    bars = Bars("ingest", terminal=False)
    for _ in range(70):
        clock(1)
        bars.tick()
    bars.end()
    assert capsys.readouterr().err.splitlines() == ["ingest: 0:01", "ingest: 0:31", "ingest: 1:01"]


def test_something_is_seen_within_a_second(workspace: Path) -> None:
    main, side = pty.openpty()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "gmv_qdrant",
            "-w",
            str(workspace),
            "value",
            "--batch",
            "seen",
            str(workspace.parent / "generated"),
        ],
        stderr=side,
        stdout=subprocess.DEVNULL,
    )
    started = time.monotonic()
    first = os.read(main, 100)
    assert b"value" in first
    assert time.monotonic() - started < PATIENCE - 1
    os.close(side)
    try:
        while os.read(main, 65536):
            pass
    except OSError:
        pass
    assert process.wait(60) == 0
    os.close(main)


def test_verbose_names_what_is_in_quarantine(workspace: Path, tmp_path: Path) -> None:
    tiny_workspace.write(tmp_path / "more", [70])
    (tmp_path / "more" / "notes.png").write_text("no image")
    said = CliRunner().invoke(
        cli, ["-w", str(workspace), "-v", "value", str(tmp_path / "more"), "--batch", "bad"]
    )
    assert said.exit_code == 0
    assert f"  {tmp_path}/more/notes.png: " in said.stderr


# -- Ctrl-C ------------------------------------------------------------------------------------------

SLOW = """
import sys, time, gmv_qdrant.pipeline.value as value
def slow(*_, **__):
    print("slow", file=sys.stderr, flush=True)
    {wait}
value.value = slow
from gmv_qdrant.cli import main
main()
"""


@pytest.mark.parametrize(
    "wait",
    [
        "time.sleep(30)",
        "[time.sleep(.1) for _ in iter(int, 1)]",
        "import duckdb; duckdb.sql('SELECT sum(a.range * b.range) FROM range(10000000) a, range(100000) b').fetchall()",
        "try: time.sleep(30)\n    finally: time.sleep(30)",
    ],
    ids=["sleeping", "looping", "native", "tidying"],
)
def test_ctrl_c_ends_a_run_within_two_seconds(workspace: Path, wait: str) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            SLOW.format(wait=wait),
            "-w",
            str(workspace),
            "value",
            str(workspace.parent / "generated"),
        ],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stderr is not None
    while process.stderr.readline() != b"slow\n":
        pass
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, said = process.communicate(timeout=30)
    assert time.monotonic() - started < PATIENCE
    assert process.returncode == 130
    assert b"what was finished is safe; the same command goes on from there" in said
    assert b"Traceback" not in said


def test_ctrl_c_of_a_question_says_that_it_stopped(workspace: Path) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "gmv_qdrant",
            "-w",
            str(workspace),
            "sql",
            "SELECT sum(a.range * b.range) FROM range(10000000) a, range(100000) b",
        ],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said.strip()) == (130, b"stopped")


# -- through Python ----------------------------------------------------------------------------------


def test_the_group_can_be_called_by_programs(workspace: Path) -> None:
    done: Any = CliRunner().invoke(cli, ["-w", str(workspace), "credits", "--json"])
    assert (done.exit_code, len(json.loads(done.stdout))) == (0, len(OWNERS))
