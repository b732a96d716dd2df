"""What `check` finds and `--repair` repairs; quarantine tried again; full disks, lost files and clocks that go back."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_workspace
from click.testing import CliRunner

from gmv_qdrant import Workspace
from gmv_qdrant.cli.main import cli
from gmv_qdrant.errors import LedgerError, StoreError
from gmv_qdrant.ledger import database
from gmv_qdrant.vectors.embedded.store import EdgeStore
from gmv_qdrant.vectors.matrices import GROUP, PAGE
from gmv_qdrant.vectors.protocol import RUN


@pytest.fixture
def root() -> Iterator[Path]:
    with tiny_workspace.scratch() as folder:
        yield folder


@pytest.fixture
def workspace(root: Path) -> Workspace:
    return fill(root)


@pytest.fixture(scope="module")
def repaired() -> Iterator[Workspace]:
    """One workspace for all damages: each test leaves it whole."""
    with tiny_workspace.scratch() as folder:
        yield fill(folder)


def fill(root: Path) -> Workspace:
    """16 training images of two owners, 6 generated ones."""
    made = Workspace.init(root / "workspace", **tiny_workspace.SETTINGS)
    made.ingest(tiny_workspace.write(root / "a", range(8)), owner="ada")
    made.ingest(tiny_workspace.write(root / "b", range(8, 16)), owner="bo")
    made.value(tiny_workspace.write(root / "g", range(50, 56)))
    return made


def gmv(workspace: Workspace, *arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(cli, ["-w", str(workspace.path), *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def write(workspace: Workspace, sql: str) -> None:
    with workspace.ledger.write() as con:
        con.execute(sql)


def store_points(workspace: Workspace, change: Callable[[Any], None]) -> None:
    with tiny_workspace.spaces(workspace) as spaces:
        change(spaces.store)
        spaces.store.flush()


def matrix_file(workspace: Workspace, name: str) -> Path:
    return workspace.path / "vectors" / name


def flip(file: Path, position: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(position)
        (byte,) = opened.read(1)
        opened.seek(position)
        opened.write(bytes([byte ^ 1]))


def clear(file: Path) -> None:
    """32 KB of zeros, as a lost block of a disk."""
    with file.open("r+b") as opened:
        opened.seek(PAGE)
        opened.write(bytes(32768))


def forget_row(workspace: Workspace) -> None:
    with tiny_workspace.spaces(workspace) as spaces:
        spaces.training.zero([3])


def rename_payload(store: Any) -> None:
    (point,) = store.retrieve([tiny_workspace.point(3)], with_vectors=True)
    store.upsert([point.id], point.vector[None], [{"uri": "x"}])


def leave_over(workspace: Workspace) -> None:
    """A point of a run that was killed before the ledger knew of it."""
    write(workspace, "UPDATE runs SET status = 'killed' WHERE verb = 'value'")
    (run,) = workspace.sql("SELECT run_id FROM runs WHERE verb = 'value' LIMIT 1").fetchall()[0]
    store_points(
        workspace,
        lambda store: store.upsert(
            [tiny_workspace.point(900)], np.ones((1, 192), np.float32), [{"uri": "x", RUN: run}]
        ),
    )


SQL_DAMAGE = {
    "rank": ("ranks that don't run", "UPDATE matches SET rank = 9 WHERE rank = 2"),
    "order": ("aren't in order", "UPDATE matches SET distance = 7 WHERE rank = 2"),
    "distance": ("no distances", "UPDATE matches SET distance = 'nan' WHERE rank = 4"),
    "lost match": ("fewer matches", "DELETE FROM matches WHERE rank = 4"),
    "foreign match": ("aren't there", "UPDATE matches SET training_key = 99 WHERE rank = 1"),
    "stray match": ("no generated image", "UPDATE matches SET generated_key = 77 WHERE generated_key = 1"),
    "doubled match": (
        "one training image twice",
        """UPDATE matches m SET training_key = o.training_key FROM matches o
        WHERE m.generated_key = o.generated_key AND m.rank = 2 AND o.rank = 1""",
    ),
    "doubled generated": ("ledger twice", "INSERT INTO generated SELECT * FROM generated LIMIT 1"),
    "doubled source": ("same source twice", "INSERT INTO sources SELECT * FROM sources LIMIT 1"),
    "stray source": ("belong to no training", "INSERT INTO sources (training_key, uri) VALUES (99, 'x')"),
    "spare of nothing": (
        "no generated image",
        "UPDATE spare_candidates SET generated_key = 77 WHERE generated_key = 1",
    ),
    "foreign spare": ("aren't the next nearest", "UPDATE spare_candidates SET training_key = 99"),
    "near spare": ("aren't the next nearest", "UPDATE spare_candidates SET recall_distance = 0"),
    "future": ("still to come", "UPDATE generated SET version_valued = 1000"),
    "killed run": (
        "killed before",
        """UPDATE runs SET status = 'running' WHERE verb = 'value';
        UPDATE meta SET value = 'false' WHERE key = 'settled'""",
    ),
}
FIRST_ROW = PAGE + 8 * GROUP + 192  # key 1 of vectors of 192 bytes
FILE_DAMAGE: dict[str, tuple[str, Callable[[Workspace], Any]]] = {
    "lost training vectors": (
        "16 training images have no vector",
        lambda w: matrix_file(w, "training-rerank").unlink(),
    ),
    "lost row": ("1 training images have no vector", forget_row),
    "flipped bit": (
        "1 training images have no vector, or a damaged one, in training-rerank",
        lambda w: flip(matrix_file(w, "training-rerank"), FIRST_ROW + 100),
    ),
    "zeroed block": ("have no vector", lambda w: clear(matrix_file(w, "training-rerank"))),
    "lost recall vectors": (
        "6 generated images have no vector, or a damaged one, in generated-recall",
        lambda w: matrix_file(w, "generated-recall").unlink(),
    ),
    "zeroed re-rank vectors": (
        "in generated-rerank",
        lambda w: clear(matrix_file(w, "generated-rerank")),
    ),
    "lost points": (
        "are not in the store",
        lambda w: store_points(w, lambda s: s.delete([tiny_workspace.point(3)])),
    ),
    "flipped vector of the store": (
        "1 files of the store's vectors are damaged",
        lambda w: flip(next(w.path.glob("qdrant/**/chunk_0.*")), 192 * 4 * 3 + 1),
    ),
    "left-over point": ("were left behind by runs", leave_over),
    "wrong payload": ("a source that is not theirs", lambda w: store_points(w, rename_payload)),
}


@pytest.mark.parametrize("damage", [*SQL_DAMAGE, *FILE_DAMAGE])
def test_damage_is_found_and_mended(repaired: Workspace, damage: str) -> None:
    expected, owners = tiny_workspace.values(repaired, 3), tiny_workspace.owners(repaired, 3)
    if damage in SQL_DAMAGE:
        sentence, sql = SQL_DAMAGE[damage]
        write(repaired, sql)
    else:
        sentence, spoil = FILE_DAMAGE[damage]
        spoil(repaired)
    findings = repaired.check(repair=True, read_images=damage == "wrong payload")
    assert any(sentence in finding.sentence for finding in findings), findings
    assert all(finding.repaired for finding in findings), [str(finding) for finding in findings]
    assert repaired.stale() == 0
    assert tiny_workspace.values(repaired, 3) == pytest.approx(expected, abs=1e-9)
    assert tiny_workspace.owners(repaired, 3) == pytest.approx(owners, abs=1e-9)


def test_a_flipped_byte_of_vectors_or_codes_is_found_even_after_another_run(root: Path) -> None:
    settings = {**tiny_workspace.SETTINGS, "quantization": "pq"}
    made = Workspace.init(root / "workspace", **settings)
    made.ingest(tiny_workspace.write(root / "a", range(300)), owner="ada")
    made.value(tiny_workspace.write(root / "g", range(500, 505)))
    assert made.check() == []
    expected = tiny_workspace.values(made)
    for other, name in enumerate(("matrix.dat", "quantized.data"), 600):
        (file,) = made.path.glob(f"qdrant/**/{name}")
        flip(file, 5000)
        made.ingest(tiny_workspace.write(root / name, [other]), owner="bo")  # writes, and closes the store
        assert [finding.kind for finding in made.check()] == ["damaged files"]
        assert "computed again" in gmv(made, "check")[2]
        made.withdraw(owner="bo")
        assert all(finding.repaired for finding in made.check(repair=True))
        assert made.check(read_images=True) == []
        assert tiny_workspace.values(made) == pytest.approx(expected, abs=1e-9)


def test_the_mended_workspace_is_whole(repaired: Workspace) -> None:
    assert repaired.check(read_images=True) == []


def test_what_cannot_be_mended_is_left_and_said(workspace: Workspace, root: Path) -> None:
    (root / "a/3.png").unlink()
    (root / "a/4.png").write_bytes(tiny_workspace.png(400))
    assert workspace.check() == []  # the vectors are kept: nothing needs the files
    assert gmv(workspace, "check")[0] == 0
    code, out, err = gmv(workspace, "check", "--read-images")
    assert code == 1
    assert out == ""
    assert "1 source images can't be read any more" in err
    assert "1 source images are no longer what was taken in" in err
    store_points(workspace, lambda store: store.delete([tiny_workspace.point(3), tiny_workspace.point(5)]))
    code, out, _ = gmv(workspace, "check", "--repair", "--json")
    findings = json.loads(out)
    assert code == 1
    assert [finding["count"] for finding in findings if not finding["repaired"]] == [
        1
    ]  # 5 was computed again
    workspace.withdraw(ids=[str(tiny_workspace.point(3))])
    workspace.update()
    assert workspace.check() == []


def test_a_lost_matrix_doesnt_lock_anyone_out(workspace: Workspace, root: Path) -> None:
    for file in (workspace.path / "vectors").iterdir():
        file.unlink()
    with pytest.raises(StoreError, match="check --repair"):
        workspace.value(tiny_workspace.write(root / "g", [60]))
    workspace.withdraw(owner="ada", update=False)
    assert gmv(workspace, "check", "--repair")[0] == 0
    assert workspace.check(read_images=True) == []
    assert set(tiny_workspace.owners(workspace)) == {"bo"}


def test_nothing_of_a_withdrawn_image_stays_on_disk(workspace: Workspace, root: Path) -> None:
    (workspace.path / "thumbnails").mkdir()
    (workspace.path / "thumbnails/x.jpg").write_bytes(b"a picture")
    with tiny_workspace.spaces(workspace) as spaces:
        kept = {
            str(point.id): point
            for point in spaces.store.retrieve(
                [tiny_workspace.point(3), tiny_workspace.point(12)], with_vectors=True
            )
        }
    traces = {
        seed: [
            kept[str(tiny_workspace.point(seed))].vector.tobytes(),  # type: ignore[union-attr]
            tiny_workspace.pixels(seed).transpose(2, 0, 1).tobytes(),
            f"{root}/{'a' if seed < 8 else 'b'}/{seed}.png".encode(),
        ]
        for seed in (3, 12)
    }

    def found(seed: int) -> int:
        files = [path.read_bytes() for path in workspace.path.rglob("*") if path.is_file()]
        return sum(trace in data for trace in traces[seed] for data in files)

    assert found(3) >= 3
    summary = workspace.withdraw(owner="ada")
    assert summary["images_withdrawn"] == 8
    assert found(3) > 0  # an engine keeps what it deleted
    summary = workspace.erase()
    assert summary["traces_searched"] >= 24
    assert found(3) == 0
    assert found(12) >= 3
    assert not (workspace.path / "thumbnails").exists()
    tombstones = workspace.sql("SELECT * FROM training WHERE version_withdrawn IS NOT NULL").fetchall()
    assert len(tombstones) == 8
    workspace.update()
    assert workspace.check(read_images=True) == []


def test_a_withdrawn_duplicate_is_described_by_the_source_that_stays(root: Path) -> None:
    workspace = Workspace.init(root / "workspace", **tiny_workspace.SETTINGS)
    for folder, label in (("first", "secret name"), ("second", "plain")):
        tiny_workspace.write(root / folder, range(5))
        rows = [f"{seed}.png,{label},{folder}" for seed in range(5)]
        (root / folder / "metadata.csv").write_text("\n".join(["file_name,label,owner", *rows]) + "\n")
        workspace.ingest([root / folder])
    assert workspace.status()["training"]["duplicates"] == 5
    assert workspace.withdraw(uri="*/first/*")["images_withdrawn"] == 0
    workspace.erase()
    assert workspace.sql("SELECT DISTINCT label FROM images").fetchall() == [("plain",)]
    files = [path for path in workspace.path.rglob("*") if path.is_file()]
    assert not [
        path for path in files if b"secret name" in path.read_bytes() or b"first/3.png" in path.read_bytes()
    ]
    assert workspace.check(read_images=True) == []


def test_withdraw_counts_ids_that_are_nothing(workspace: Workspace, root: Path) -> None:
    ids = root / "ids.txt"
    ids.write_text(f"{tiny_workspace.point(1)}\n\nno such image\n{root}/a/2.png\n")
    code, out, err = gmv(workspace, "withdraw", "--ids", str(ids), "--dry-run", "--json")
    assert (code, json.loads(out)["images"], json.loads(out)["unknown_ids"]) == (0, 2, 1)
    code, _, err = gmv(workspace, "withdraw", "--ids", str(ids))
    assert code == 0
    assert "1 of the ids are no training image" in err
    assert gmv(workspace, "withdraw")[0] == 2
    assert gmv(workspace, "withdraw", "--owner", "ada", "--uri", "*")[0] == 2
    code, _, err = gmv(workspace, "withdraw", "--owner", "nobody")
    assert code == 1
    assert "there is no owner 'nobody'" in err


def test_withdrawn_images_come_back_only_on_request(workspace: Workspace, root: Path) -> None:
    workspace.withdraw(owner="ada")
    assert workspace.ingest([root / "a"], owner="ada")["quarantined"] == 8
    reasons = workspace.sql("SELECT DISTINCT reason FROM quarantine").fetchall()
    assert "withdrawn on" in reasons[0][0]
    assert "--readmit" in reasons[0][0]
    summary = workspace.ingest(retry_quarantined=True, readmit=True)
    assert summary["new"] == 8
    workspace.update()
    assert set(tiny_workspace.owners(workspace)) == {"ada", "bo"}
    assert workspace.status()["training"]["quarantined"] == 0


# -- quarantine ------------------------------------------------------------------------------------------------------


def test_quarantined_inputs_are_tried_again_as_they_were_asked_for(workspace: Workspace, root: Path) -> None:
    for folder in ("c", "d"):
        tiny_workspace.write(root / folder, range(20, 23) if folder == "c" else range(23, 26))
    whole = {path: path.read_bytes() for path in (root / "c/20.png", root / "c/21.png", root / "d/23.png")}
    for path, data in whole.items():
        path.write_bytes(data[:60])
    assert workspace.ingest([root / "c"], owner="chi")["quarantined"] == 2
    assert workspace.ingest([root / "d"], owner="dee")["quarantined"] == 1
    (root / "g/59.png").write_bytes(b"no image")
    assert workspace.value([root / "g"], batch="second")["quarantined"] == 1
    assert gmv(workspace, "ingest", "--retry-quarantined", str(root))[0] == 2
    assert gmv(workspace, "ingest")[0] == 2
    summary = workspace.ingest(retry_quarantined=True)
    assert (summary["quarantined"], summary.get("new", 0)) == (3, 0)
    for path in (root / "c/20.png", root / "d/23.png"):
        path.write_bytes(whole[path])
    code, out, _ = gmv(workspace, "ingest", "--retry-quarantined", "--json")
    summary = json.loads(out)
    assert (code, summary["new"], summary["quarantined"]) == (0, 2, 1)
    owners = workspace.sql(
        "SELECT uri, owner FROM sources WHERE owner IN ('chi', 'dee') ORDER BY uri"
    ).fetchall()
    assert {(Path(uri).name, owner) for uri, owner in owners} == {
        ("20.png", "chi"), ("22.png", "chi"), ("23.png", "dee"), ("24.png", "dee"), ("25.png", "dee"),
    }  # fmt: skip
    (root / "g/59.png").write_bytes(tiny_workspace.png(59))
    assert workspace.value(retry_quarantined=True)["valued"] == 1
    assert workspace.sql("SELECT batch FROM generated WHERE uri LIKE '%59.png'").fetchall() == [("second",)]
    assert workspace.sql("SELECT uri FROM quarantine").fetchall() == [(str(root / "c/21.png"),)]
    (root / "c/21.png").write_bytes(whole[root / "c/21.png"])
    workspace.ingest([root / "c"], owner="chi")  # any way of taking it in heals it
    assert workspace.status()["training"]["quarantined"] == 0


def test_an_image_that_vanishes_while_it_is_read_is_quarantined(
    workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = tiny_workspace.write(root / "c", range(20, 24))
    from gmv_qdrant.pipeline import embedding

    def read(*arguments: Any) -> Any:
        paths[1].unlink(missing_ok=True)
        return original(*arguments)

    original = embedding.read
    monkeypatch.setattr(embedding, "read", read)
    summary = workspace.ingest([root / "c"], owner="chi")
    assert (summary["new"], summary["quarantined"]) == (3, 1)
    assert workspace.check() == []


def test_a_file_changed_in_place_is_a_new_image_and_the_old_one_stays(
    workspace: Workspace, root: Path
) -> None:
    (root / "a/3.png").write_bytes(tiny_workspace.png(300))
    assert workspace.ingest([root / "a"], owner="ada")["new"] == 1
    workspace.update()
    values = tiny_workspace.values(workspace)
    assert {str(tiny_workspace.point(3)), str(tiny_workspace.point(300))} <= values.keys()
    assert [finding.kind for finding in workspace.check(read_images=True)] == ["changed"]
    (root / "g/50.png").write_bytes(tiny_workspace.png(550))
    assert workspace.value([root / "g"])["valued"] == 1
    assert workspace.status()["generated"]["images"] == 6


# -- a machine that fails --------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 330 MB: the store wants 128 MB to stay free."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=330m", "tmpfs", str(folder)]
    if os.name != "posix" or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root can mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("free", [100_000_000, 3_000, 0])
def test_a_full_disk_is_said_and_loses_nothing(small_disk: Path, root: Path, free: int) -> None:
    workspace = Workspace.init(small_disk / "workspace", **tiny_workspace.SETTINGS)
    workspace.ingest(tiny_workspace.write(root / "a", range(8)), owner="ada")
    workspace.value(tiny_workspace.write(root / "g", range(50, 56)))
    before = tiny_workspace.values(workspace)
    left = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    ballast = small_disk / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, left - left % 4096 - free // 4096 * 4096)
    tiny_workspace.write(root / "b", range(8, 16))
    code, _, err = gmv(workspace, "ingest", str(root / "b"))
    assert code == 1
    assert err.count("\n") == 1, err
    assert "full" in err or "No space left" in err
    assert tiny_workspace.values(workspace) == before
    ballast.unlink()
    assert workspace.ingest([root / "b"], owner="bo")["new"] == 8
    workspace.update()
    assert workspace.check() == []


def test_a_ledger_that_cant_be_written_is_a_sentence(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    import duckdb

    def full(*_: Any) -> None:
        raise duckdb.IOException("Could not write file: No space left on device\nand more")

    monkeypatch.setattr("gmv_qdrant.ledger.database.insert", full)
    with pytest.raises(LedgerError, match="No space left on device"), workspace.ledger.write():
        full()


def test_a_folder_that_cant_be_written_to(
    workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", refused)
    code, _, err = gmv(workspace, "ingest", str(root / "a"))
    assert (code, err) == (
        1,
        f"error: the workspace {workspace.path} can't be written to: Permission denied\n",
    )
    assert gmv(workspace, "credits", "--json")[0] == 0


def test_a_clock_that_goes_back_changes_nothing(
    workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Back(datetime):
        calls = 0

        @classmethod
        def now(cls, tz: Any = None) -> Back:
            cls.calls += 1
            then = datetime.now(UTC) - timedelta(days=cls.calls)
            return cls.fromtimestamp(then.timestamp(), tz)

    monkeypatch.setattr(database, "datetime", Back)
    (root / "b/9.png").touch()
    os.utime(root / "b/9.png", (1, 1))
    summary = workspace.ingest([root / "a", root / "b"], owner="bo")
    assert summary.get("new", 0) == 0
    workspace.ingest(tiny_workspace.write(root / "c", range(20, 24)), owner="chi")
    workspace.update()
    assert all((run["seconds"] or 0) >= 0 for run in workspace.status()["runs"])
    assert workspace.check(read_images=True) == []


def test_a_failed_run_is_tidied_up_by_the_next(
    workspace: Workspace, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points that the ledger doesn't know must not take the places of candidates."""

    def broken(self: EdgeStore) -> None:
        raise StoreError("the store has an accident.")

    tiny_workspace.write(root / "c", range(20, 60))
    with monkeypatch.context() as patched:
        patched.setattr(EdgeStore, "flush", broken)
        with pytest.raises(StoreError):
            workspace.ingest([root / "c"], owner="chi")
    assert [finding.kind for finding in workspace.check()][:1] == ["unfinished"]
    workspace.value(tiny_workspace.write(root / "g", [70, 71]))
    assert workspace.check() == []
    expected: dict[str, float] = {}
    for seed in (*range(50, 56), 70, 71):
        for one, share in tiny_workspace.contributions(seed, range(16), 4, 3).items():
            expected[str(tiny_workspace.point(one))] = expected.get(str(tiny_workspace.point(one)), 0) + share
    values = tiny_workspace.values(workspace, 3)
    assert values == pytest.approx({**dict.fromkeys(values, 0.0), **expected}, abs=tiny_workspace.CLOSE)
