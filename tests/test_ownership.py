"""Who owns what, since when: never lost, never changed without being told, and never taken from somebody else."""

from __future__ import annotations

import csv
import datetime
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
import tiny_workspace
from hypothesis import given, settings
from hypothesis import strategies as st

from gmv_qdrant import SettingsError, Workspace
from gmv_qdrant.ledger import database
from gmv_qdrant.ledger.database import Ledger
from gmv_qdrant.ledger.sources import SOURCES, Change, changes, remove_sources, write_sources


def table(rows: Sequence[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist([{"attributes": "{}", **row} for row in rows], SOURCES)


def source(key: int, uri: str, *owners: str | None, **said: Any) -> list[dict[str, Any]]:
    return [{"training_key": key, "uri": uri, "owner": owner, **said} for owner in owners or (None,)]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    made = Ledger.create(tmp_path / "ledger.duckdb")
    with made.write() as con:
        con.execute(
            "INSERT INTO training (training_key, point_id, version_added) VALUES (1, 'a', 1), (2, 'b', 1)"
        )
    return made


def write(ledger: Ledger, rows: Sequence[dict[str, Any]], run: str = "r", *, reassign: bool = False) -> Any:
    with ledger.write() as con:
        return write_sources(con, run, table(rows), reassign=reassign)


def now(ledger: Ledger) -> list[tuple[int, str, str | None]]:
    rows = ledger.query("SELECT training_key, uri, owner FROM sources ORDER BY ALL").to_pylist()
    return [tuple(row.values()) for row in rows]


def test_a_change_is_told_and_kept_back_unless_it_is_asked_for(ledger: Ledger) -> None:
    assert write(ledger, [*source(1, "x", "Ada", label="cat"), *source(2, "y", label="cat")]).new == 2
    told = write(ledger, [*source(1, "x", label="dog"), *source(2, "y", "Bob", licence="CC0", label="cat")])
    expected = {
        Change("owner", "Ada", None, 1),
        Change("owner", None, "Bob", 1),
        Change("label", "cat", "dog", 1),
        Change("licence", None, "CC0", 1),
    }
    assert (told.new, set(told.changes)) == (0, expected)
    assert now(ledger) == [(1, "x", "Ada"), (2, "y", None)]
    assert set(write(ledger, source(1, "x", "Bob", label="dog"), "r2", reassign=True).changes) == {
        Change("owner", "Ada", "Bob", 1),
        Change("label", "cat", "dog", 1),
    }
    assert now(ledger) == [(1, "x", "Bob"), (2, "y", None)]
    history = ledger.query(
        "SELECT owner, label, run_id, until_run_id FROM source_history WHERE training_key = 1 ORDER BY since"
    ).to_pylist()
    assert [tuple(row.values()) for row in history] == [("Ada", "cat", "r", "r2"), ("Bob", "dog", "r2", None)]


def test_what_would_change_is_answered_before_anything_is_written(ledger: Ledger) -> None:
    write(ledger, [row for i in range(12) for row in source(1, f"x{i}", "Ada")])
    asked = [row for i in range(12) for row in source(0, f"x{i}", "Bob" if i else "Ada")]
    assert changes(ledger, table(asked)) == [Change("owner", "Ada", "Bob", 11)]
    assert changes(ledger, table(source(0, "new", "Eve"))) == []
    assert {owner for _, _, owner in now(ledger)} == {"Ada"}


def test_several_owners_of_one_source_share_and_leave_one_by_one(ledger: Ledger) -> None:
    write(ledger, source(1, "x", "Ada", "Bob"))
    assert write(ledger, source(1, "x", "Bob", "Ada")).changes == []
    assert write(ledger, source(1, "x", "Ada")).changes == [Change("owner", "Ada, Bob", "Ada", 1)]
    with ledger.write() as con:
        con.execute(
            "CREATE TEMP TABLE leaving AS SELECT training_key, uri, owner FROM sources WHERE owner = 'Bob'"
        )
        remove_sources(con, "r2", "leaving")
    assert now(ledger) == [(1, "x", "Ada")]
    open_rows = ledger.query("SELECT owner FROM source_history WHERE until IS NULL")["owner"].to_pylist()
    assert open_rows == ["Ada"]


def test_other_attributes_and_file_times_are_taken_as_they_come(ledger: Ledger) -> None:
    write(ledger, source(1, "x", "Ada", file_size=1, file_time=1))
    assert write(ledger, source(1, "x", "Ada", attributes='{"hat": 1}', file_time=2)).changes == []
    row = ledger.query("SELECT attributes::VARCHAR AS a, file_time AS t FROM sources").to_pylist()[0]
    assert (row["a"], row["t"]) == ('{"hat": 1}', 2)
    assert ledger.query("SELECT count(*) AS n FROM source_history")["n"].to_pylist() == [2]
    write(ledger, source(1, "x", "Ada", attributes='{"hat": 1}', file_time=3))
    assert ledger.query("SELECT count(*) AS n FROM source_history")["n"].to_pylist() == [2]


said = st.lists(
    st.tuples(
        st.integers(1, 3),
        st.sampled_from("xy"),
        st.lists(st.sampled_from(["Ada", "Bob", "Cy"]), max_size=2, unique=True),
        st.sampled_from([None, "cat", "dog"]),
        st.sampled_from(["{}", '{"hat": 1}']),
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda each: each[:2],
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(said, st.booleans()), min_size=1, max_size=5))
def test_history_has_every_state_that_the_sources_have_had(steps: list[tuple[list[Any], bool]]) -> None:
    """Against a dict that is told the same; the clock moves by an hour with each step."""
    with tiny_workspace.scratch() as folder, pytest.MonkeyPatch.context() as patched:
        ledger = Ledger.create(folder / "ledger.duckdb", publish=False)
        clock = itertools.count()
        start = datetime.datetime(2025, 1, 1)
        patched.setattr("gmv_qdrant.ledger.sources.utc_now", lambda: start + datetime.timedelta(hours=step))
        model: dict[tuple[int, str], tuple[frozenset[str], str | None, str]] = {}
        states = []
        with ledger.held():
            for rows, reassign in steps:
                step = next(clock)
                incoming = [
                    row
                    for key, uri, owners, label, attributes in rows
                    for row in source(key, uri, *owners, label=label, attributes=attributes)
                ]
                write(ledger, incoming, f"run {step}", reassign=reassign)
                for key, uri, owners, label, attributes in rows:
                    new = (frozenset(owners), label, attributes)
                    old = model.get((key, uri))
                    if old is None or reassign or old[:2] == new[:2]:
                        model[key, uri] = new
                states.append(dict(model))
            for hours, state in enumerate(states):
                at = (start + datetime.timedelta(hours=hours, minutes=1)).isoformat()
                found: dict[tuple[int, str], tuple[set[str], str | None, str]] = {}
                for row in ledger.query(f"FROM _gmv_sources('{at}')").to_pylist():
                    mine = found.setdefault(
                        (row["training_key"], row["uri"]), (set(), row["label"], row["attributes"])
                    )
                    mine[0].update({row["owner"]} - {None})
                assert found == {place: (set(o), label, a) for place, (o, label, a) in state.items()}
            rows = ledger.query("SELECT training_key, uri, owner, label FROM sources ORDER BY ALL")
            opened = ledger.query(
                "SELECT training_key, uri, owner, label FROM source_history WHERE until IS NULL ORDER BY ALL"
            )
            assert rows == opened


# -- through the verbs ----------------------------------------------------------------------------------


def described(folder: Path, seeds: Sequence[int], **columns: str) -> Path:
    """Images with a metadata.csv beside them."""
    tiny_workspace.write(folder, seeds)
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", *columns])
        writer.writerows([f"{seed}.png", *columns.values()] for seed in seeds)
    return folder


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace.init(tmp_path / "workspace", **tiny_workspace.SETTINGS)
    made.ingest(described(tmp_path / "a", range(10), owner="Ada", label="cat"))
    made.value(tiny_workspace.write(tmp_path / "g", range(50, 54)))
    return made


def owners(workspace: Workspace, **function: Any) -> dict[str | None, float]:
    return {row[0]: row[1] for row in workspace.credits("owner", **function).fetchall()}


def test_the_same_ingest_without_an_owner_moves_no_credit(workspace: Workspace, tmp_path: Path) -> None:
    before = owners(workspace)
    (tmp_path / "a" / "metadata.csv").unlink()
    summary = workspace.ingest(tmp_path / "a")
    assert summary["not_reassigned"] >= 10
    assert {"field": "owner", "before": "Ada", "after": None, "sources": 10} in summary["changes"]
    assert owners(workspace) == before
    workspace.ingest(tmp_path / "a", reassign=True)
    assert set(owners(workspace)) == {None}


def test_labels_by_image_and_by_label_agree_after_relabelling(workspace: Workspace, tmp_path: Path) -> None:
    described(tmp_path / "a", range(10), owner="Ada", label="dog")
    workspace.ingest(tmp_path / "a", reassign=True)
    by_image = workspace.credits("image").project("label").distinct().fetchall()
    by_label = workspace.credits("label").project("label").fetchall()
    assert by_image == by_label == [("dog",)]


def test_credits_as_of_a_date(workspace: Workspace, tmp_path: Path) -> None:
    before = database.utc_now().isoformat()
    described(tmp_path / "a", range(10), owner="Bob", label="cat")
    workspace.ingest(tmp_path / "a", reassign=True)
    assert set(owners(workspace)) == {"Bob"}
    assert set(owners(workspace, as_of=before)) == {"Ada"}
    assert set(owners(workspace, as_of="2001-01-01")) == {None}
    assert {row[2] for row in workspace.credits("image", as_of=before).fetchall()} == {"Ada"}
    assert sum(owners(workspace, as_of=before).values()) == pytest.approx(sum(owners(workspace).values()))
    with pytest.raises(SettingsError, match="2025-12-31"):
        workspace.credits(as_of="yesterday")


def test_copies_under_another_name_halve_and_no_more(workspace: Workspace, tmp_path: Path) -> None:
    """Nineteen folders with copies of everybody's images under the owner eve."""
    total = sum(owners(workspace).values())
    for turn in range(19):
        tiny_workspace.write(tmp_path / f"eve{turn}", range(10))
        workspace.ingest(tmp_path / f"eve{turn}", owner="eve")
    assert owners(workspace) == {"Ada": pytest.approx(total / 2), "eve": pytest.approx(total / 2)}
    claimed = workspace.sql("SELECT owners, sources FROM shared_images").fetchall()
    assert claimed == [(["Ada", "eve"], 20)] * 10


def test_a_stray_copy_without_an_owner_takes_nothing(workspace: Workspace, tmp_path: Path) -> None:
    before = owners(workspace)
    tiny_workspace.write(tmp_path / "stray", range(5))
    workspace.ingest(tmp_path / "stray")
    assert owners(workspace) == before


def test_withdrawing_closes_the_history_and_erasing_forgets_it(workspace: Workspace, tmp_path: Path) -> None:
    workspace.ingest(tiny_workspace.write(tmp_path / "b", range(20, 25)), owner="Bay")
    workspace.withdraw(owner="Bay")
    rows = workspace.sql(
        "SELECT owner, until IS NULL, count(*) FROM source_history GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    assert rows == [("Ada", True, 10), ("Bay", False, 5)]
    workspace.erase()
    assert workspace.sql("SELECT DISTINCT owner FROM source_history").fetchall() == [("Ada",)]
    for file in workspace.path.rglob("*.duckdb"):
        assert b"Bay" not in file.read_bytes()


@pytest.mark.parametrize(
    "name", ["value", "Value", "share", "name", "Owner", 'it\'s "odd"/~.x', "0", "images"]
)
def test_any_attribute_can_be_asked_by(tmp_path: Path, name: str) -> None:
    workspace = Workspace.init(tmp_path / "w", **tiny_workspace.SETTINGS)
    workspace.ingest(tiny_workspace.write(tmp_path / "a", range(6)), owner="Ada")
    workspace.value(tiny_workspace.write(tmp_path / "g", [50]))
    with workspace.ledger.write() as con:
        con.execute("UPDATE sources SET attributes = json_object(?, 'x' || training_key % 2)", [name])
    rows = workspace.credits(name).fetchall()
    assert {row[0] for row in rows} == {"x0", "x1"}
    values = [row[1] for row in rows]
    assert values == sorted(values, reverse=True)
    assert sum(values) == pytest.approx(1)
    paid = workspace.payout("10.00", name)
    assert sum(float(row["amount"]) for row in paid if isinstance(row, dict) and "amount" in row) or paid


def test_the_history_has_no_gap_in_which_nobody_owns_an_image(ledger: Ledger) -> None:
    for owner in ("Ada", "Bob", "Cy"):
        write(ledger, source(1, "x", owner), reassign=True)
    rows = ledger.query("SELECT owner, since, until FROM source_history ORDER BY since").to_pylist()
    assert [row["owner"] for row in rows] == ["Ada", "Bob", "Cy"]
    assert [row["until"] for row in rows] == [row["since"] for row in rows[1:]] + [None]


def test_exports_say_whose_images_they_are_and_no_spreadsheet_executes_them(tmp_path: Path) -> None:
    images = tmp_path / "images"
    names = [path.name for path in tiny_workspace.write(images, range(4))]
    owners = [["=cmd|'/C calc'!A0", "Ada"], ["“@SUM(1)"], ["-5"], []]
    with (images / "metadata.jsonl").open("w") as file:
        for name, one in zip(names, owners, strict=True):
            file.write(json.dumps({"file_name": name, "owner": one, "label": (one or ["+1+1"])[0]}) + "\n")
    workspace = Workspace.init(tmp_path / "ws", **tiny_workspace.SETTINGS)
    workspace.ingest([images])
    workspace.value([images])
    workspace.export(tmp_path / "parquet")
    workspace.export(tmp_path / "csv", file_format="csv")
    for table in ("values", "contributions"):
        rows = duckdb.read_parquet(str(tmp_path / f"parquet/{table}.parquet"))
        assert {tuple(row) for (row,) in rows.project("owners").fetchall()} == {tuple(one) for one in owners}
        with (tmp_path / f"csv/{table}.csv").open(newline="") as file:
            assert {tuple(json.loads(row["owners"])) for row in csv.DictReader(file)} == {
                tuple(one) for one in owners
            }
    with (tmp_path / "csv/sources.csv").open(newline="") as file:
        rows_of_csv = list(csv.DictReader(file))
    assert {row["owner"] for row in rows_of_csv} == {"'=cmd|'/C calc'!A0", "Ada", "'“@SUM(1)", "-5", ""}
    assert {row["label"] for row in rows_of_csv} == {"'=cmd|'/C calc'!A0", "'“@SUM(1)", "-5", "'+1+1"}
