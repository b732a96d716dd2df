"""The docs run as written: each command of each page's `sh` blocks, in order, on the demo's images.

A page starts in a folder with ``photos/``, ``more/``, ``generated/``, ``strangers/`` and the workspace ``ws`` (of the
light preset, with photos and generated images valued as the batch ``model-7``), unless it makes ``ws`` itself. Commands
that aren't ours (pip, docker, ssh-keygen) are only there to be read; blocks under a line ``<!-- needs: ... -->`` need
what isn't here.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from gmv_qdrant import Workspace
from gmv_qdrant.cli.main import cli
from gmv_qdrant.demo import draw_images

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(
    r"(?:<!-- needs: (?P<needs>[^>]+) -->\n)?^```(?P<kind>sh|python)\n(?P<text>.*?)^```", re.M | re.S
)
OURS = "gmv-qdrant"


def blocks(page: Path, kind: str) -> list[str]:
    """The page's fenced blocks of a kind that can be run here."""
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [block["text"] for block in found if block["kind"] == kind and not block["needs"]]


def commands(page: Path) -> list[list[str]]:
    """Our commands of the page's blocks, as words."""
    lines = [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    split = [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]
    return [words[1:] for words in split if words[:1] == [OURS]]


def make_workspace(folder: Path) -> None:
    made = Workspace.init(folder / "ws", preset="light")
    made.ingest([folder / "photos"])
    made.value([folder / "generated"], batch="model-7")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that pages start in."""
    folder = tmp_path_factory.mktemp("docs")
    draw_images(folder / "photos", folder / "generated", seed=0)
    draw_images(folder / "more", folder / "unused", seed=1)
    shutil.rmtree(folder / "unused")
    (folder / "strangers").mkdir()
    for name in list((folder / "more").glob("*.png"))[:6]:
        shutil.copy(name, folder / "strangers")
    return folder


@pytest.fixture
def here(images: Path, tmp_path: Path) -> Iterator[Path]:
    before = Path.cwd()
    shutil.copytree(images, tmp_path / "page")
    os.chdir(tmp_path / "page")
    yield tmp_path / "page"
    os.chdir(before)


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_the_commands_of_a_page_run(page: Path, here: Path) -> None:
    asked = commands(page)
    if not any(words[:2] == ["init", "ws"] for words in asked):
        make_workspace(here)
    for words in asked:
        result = CliRunner().invoke(cli, words)
        assert result.exit_code == 0, f"{page.name}: {OURS} {shlex.join(words)}\n{result.output}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name
)
def test_the_python_of_a_page_runs(page: Path, here: Path) -> None:
    names: dict[str, object] = {}
    if any('Workspace("ws")' in block for block in blocks(page, "python")):
        make_workspace(here)
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), names)


def test_the_rule_of_the_contributors_guide_divides_all_credit(here: Path) -> None:
    [rule] = [
        block["text"]
        for block in re.finditer(
            r"^```sql\n(?P<text>.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S
        )
    ]
    workspace = Workspace.init(here / "ws", preset="light")
    workspace.ingest([here / "photos"])
    workspace.value([here / "generated"])
    assert sum(value for _, value in workspace.sql(rule).fetchall()) == pytest.approx(60)
