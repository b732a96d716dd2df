"""`explain FILE` of an image that was never valued: what `value` would say of it, and nothing kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_workspace
from click.testing import CliRunner

from gmv_qdrant import ImageError, SettingsError, StoreUnavailable, Workspace
from gmv_qdrant.cli.main import cli
from gmv_qdrant.ledger.selection import Selection


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("explain")
    tiny_workspace.write(root / "a", range(12))
    tiny_workspace.write(root / "b", range(12, 20))
    tiny_workspace.write(root / "g", range(50, 53))
    tiny_workspace.write(root / "new", range(60, 62))
    workspace = Workspace.init(root / "ws", **tiny_workspace.SETTINGS)
    workspace.ingest(root / "a", owner="ada")
    workspace.ingest(root / "b", owner="bo")
    workspace.value(root / "g")
    return root


@pytest.fixture
def workspace(root: Path) -> Workspace:
    return Workspace(root / "ws")


FUNCTIONS: list[dict[str, Any]] = [
    {},
    {"k": 3, "temperature": 0.05},
    {"null_distance": 0.3, "temperature": 0.1},
    {"calibration": "loss"},
]


@pytest.mark.parametrize("function", FUNCTIONS, ids=str)
def test_it_says_what_value_would(root: Path, tmp_path: Path, function: dict[str, Any]) -> None:
    file = root / "new" / "60.png"
    shutil.copytree(root / "ws", tmp_path / "ws")
    valued = Workspace(tmp_path / "ws")
    found = valued.explain(str(file), **function)
    valued.value(file)
    kept = valued.explain(str(file), **function)
    assert found.image.kind == kept.image.kind == "generated"
    assert found.image.uri == kept.image.uri == str(file)
    assert found.matches.columns == kept.matches.columns
    assert found.matches.fetchall() == kept.matches.fetchall()
    assert found.owners.fetchall() == kept.owners.fetchall()
    assert sum(row[2] for row in found.owners.fetchall()) == pytest.approx(1)


def test_nothing_is_written(root: Path, workspace: Workspace) -> None:
    def kept() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in workspace.path.rglob("*.duckdb")} | {
            str(path): path.read_bytes() for path in (workspace.path / "vectors").iterdir()
        }

    before = kept()
    workspace.explain(str(root / "new" / "61.png"))
    assert kept() == before


def test_a_copy_of_a_known_image_is_that_image(workspace: Workspace, tmp_path: Path) -> None:
    for seed, kind in ((51, "generated"), (3, "training")):
        (tmp_path / "other-name.png").write_bytes(tiny_workspace.png(seed))
        found = workspace.explain(str(tmp_path / "other-name.png"))
        assert found.image.kind == kind
        assert found.image.uri.endswith(f"/{seed}.png")


def test_only_some_contributors_may_be_asked_for(root: Path, workspace: Workspace) -> None:
    found = workspace.explain(str(root / "new" / "60.png"), select=Selection(owner="bo"))
    owner = found.matches.columns.index("owner")
    assert {row[owner] for row in found.matches.fetchall()} == {"bo"}


def test_the_command_line_says_the_same(root: Path, workspace: Workspace) -> None:
    file = str(root / "new" / "60.png")
    done = CliRunner().invoke(cli, ["-w", str(workspace.path), "explain", file, "-k", "5", "--json"])
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["image"] == file
    assert [row["uri"] for row in document["matches"]] == [
        row[1] for row in workspace.explain(file, k=5).matches.fetchall()
    ]


def test_what_is_no_image_is_said_in_a_sentence(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no image")
    with pytest.raises(ImageError):
        workspace.explain(str(tmp_path / "notes.png"))
    with pytest.raises(SettingsError, match=r"no training or generated image is called"):
        workspace.explain(str(tmp_path / "absent.png"))
    with pytest.raises(SettingsError, match="no training or generated image is called"):
        workspace.explain(str(tmp_path))


def test_a_batch_that_there_is_not_is_named(root: Path, workspace: Workspace) -> None:
    with pytest.raises(SettingsError, match="'default'"):
        workspace.explain(str(root / "new" / "60.png"), batch="defualt")


def test_while_a_run_works_it_is_refused(root: Path, workspace: Workspace) -> None:
    with workspace._runs.alone(), pytest.raises(StoreUnavailable, match="a run is working"):
        workspace.explain(str(root / "new" / "60.png"))
