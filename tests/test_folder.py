"""What is the user's stays the user's: a workspace is made in a folder of its own, and loses nothing."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_workspace

from gmv_qdrant import FingerprintMismatch, GmvError, LedgerError, SettingsError, Workspace, files, folder
from gmv_qdrant.settings import FILE, Settings

SMALL = {"encoder": "pixels:8", "distance": "l2@8", "quality": "none"}


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def made(root: Path) -> Workspace:
    return Workspace.init(root, **SMALL)


@pytest.mark.parametrize(
    "name", ["photo.png", "qdrant/x", "vectors/x", "features/x", "thumbnails/1.webp", "credits.duckdb"]
)
def test_a_folder_of_something_else_is_refused_and_untouched(tmp_path: Path, name: str) -> None:
    theirs = tmp_path / "project"
    (theirs / name).parent.mkdir(parents=True)
    (theirs / name).write_text("theirs")
    before = contents(theirs)
    with pytest.raises(SettingsError, match="holds other things"):
        made(theirs)
    with pytest.raises(SettingsError, match="holds other things"):
        Workspace.adopt(theirs, qdrant_url="http://127.0.0.1:1", collection="art", encoder="pixels:8")
    assert contents(theirs) == before


def test_an_adoption_that_fails_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    ours = tmp_path / "new"
    with pytest.raises(GmvError):
        Workspace.adopt(ours, qdrant_url="http://127.0.0.1:1", collection="art", **SMALL)
    assert not ours.exists()


def test_what_an_operating_system_leaves_in_folders_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "ws" / "lost+found").mkdir(parents=True)
    (tmp_path / "ws" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "ws" / FILE).write_text('device = "cpu"\n')
    assert made(tmp_path / "ws").settings.device == "cpu"
    assert 'device = "cpu"' in (tmp_path / "ws" / FILE).read_text()


def lose(file: Path) -> None:
    file.unlink()


def empty(file: Path) -> None:
    file.write_bytes(b"")


def keep_comforts(file: Path) -> None:
    file.write_text('device = "cpu"\n')


@pytest.mark.parametrize("harm", [lose, empty, keep_comforts])
def test_lost_settings_are_made_again_from_the_ledger(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    root = made(tmp_path / "ws").path
    before, ledger = Workspace(root).settings.evidence(), (root / folder.LEDGER).read_bytes()
    harm(root / FILE)
    assert Workspace(root).settings.evidence() == before, "questions need no file"
    again = Workspace.init(root, encoder=before["encoder"])
    assert again.settings.evidence() == before
    assert Settings.resolve(root).evidence() == before, "the file is there again"
    assert (root / folder.LEDGER).read_bytes() == ledger, "the ledger is never made anew"


def test_a_run_makes_the_file_again(tmp_path: Path) -> None:
    root = made(tmp_path / "ws").path
    (root / FILE).unlink()
    Workspace(root).ingest(tiny_workspace.write(tmp_path / "a", [1]))
    assert Settings.resolve(root).encoder == "pixels:8"


def test_init_over_a_ledger_with_other_settings_says_so(tmp_path: Path) -> None:
    root = made(tmp_path / "ws").path
    (root / FILE).unlink()
    with pytest.raises(FingerprintMismatch, match="made with encoder = 'pixels:8'"):
        Workspace.init(root, encoder="pixels:16", distance="l2@8", quality="none")
    assert Workspace(root).settings.encoder == "pixels:8"


def test_a_lost_ledger_is_named_and_nothing_is_made_in_its_place(tmp_path: Path) -> None:
    root = made(tmp_path / "ws").path
    (root / "qdrant").mkdir()
    (root / folder.LEDGER).unlink()
    for attempt in (lambda: made(root), lambda: Workspace(root)):
        with pytest.raises(LedgerError, match=r"has lost its ledger\.duckdb"):
            attempt()
    assert not (root / folder.LEDGER).exists()


def test_an_init_that_was_killed_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    for where, name in ((folder, "sync_folder"), (folder, "restore_settings"), (Settings, "write")):
        with monkeypatch.context() as patched:
            patched.setattr(where, name, killed)
            with pytest.raises(KeyboardInterrupt):
                made(tmp_path / name)
        assert made(tmp_path / name).settings.encoder == "pixels:8"
        assert Settings.resolve(tmp_path / name).encoder == "pixels:8", "the file is there, too"


def init_at(root: Path, gate: multiprocessing.synchronize.Event, told: multiprocessing.Queue[str]) -> None:
    gate.wait()
    try:
        told.put(made(root).settings.encoder)
    except GmvError as error:
        told.put(f"error: {error}")


def test_inits_at_the_same_time_all_succeed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    gate, told = context.Event(), context.Queue()
    several = [context.Process(target=init_at, args=(tmp_path / "ws", gate, told)) for _ in range(4)]
    for process in several:
        process.start()
    gate.set()
    assert [told.get(timeout=60) for _ in several] == ["pixels:8"] * 4
    for process in several:
        process.join()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(SettingsError, match=r"can't be made|can't be read"):
        made(tmp_path / "file" / "ws")


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "ws").write_text("a file")
    with pytest.raises(SettingsError, match="is a file"):
        made(tmp_path / "ws")
    with pytest.raises(SettingsError, match=r"can't be read|is not a workspace"):
        Workspace(tmp_path / "ws")


def test_a_workspace_inside_is_proposed(tmp_path: Path) -> None:
    made(tmp_path / "ws")
    with pytest.raises(SettingsError, match="-w ws"):
        Workspace(tmp_path)


def test_settings_are_synced_before_they_are_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order that a power cut asks for: the bytes, then the name, then the folder."""
    order: list[str] = []
    monkeypatch.setattr(files.os, "fsync", lambda handle: order.append("sync"))
    rename = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: (order.append("rename"), rename(self, to))[1])
    Settings.resolve(**SMALL).write(tmp_path)
    assert order == ["sync", "rename", "sync"]


def test_a_copy_is_a_workspace(tmp_path: Path) -> None:
    root = made(tmp_path / "ws").path
    shutil.copytree(root, tmp_path / "copy")
    assert Workspace(tmp_path / "copy").settings.encoder == "pixels:8"
