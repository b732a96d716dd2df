"""The docs run as written: each command of each page's `sh` blocks, in order, on the demo's images.

A page starts in a folder with ``photos/``, ``more/``, ``generated/``, ``strangers/`` and the workspace ``ws`` (of the
light preset, with photos and generated images valued as the batch ``model-7``), unless it makes ``ws`` itself. Commands
that aren't ours (pip, docker, ssh-keygen) are only there to be read; blocks under a line ``<!-- needs: ... -->`` need
what isn't here.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image
from store.loopback import Loopback

from gmv_qdrant import Workspace
from gmv_qdrant.cli.main import cli
from gmv_qdrant.demo import draw_images
from gmv_qdrant.models.registry import load_encoder

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


def test_from_each_shape_of_a_collection_to_credits(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The walk of "the Qdrant you have", against the stand-in with collections of these shapes."""
    page = (ROOT / "docs/how-to/your-qdrant.md").read_text(encoding="utf-8")
    [walk] = [b["text"] for b in BLOCK.finditer(page) if b["needs"] == "collections of these shapes"]
    asked = [shlex.split(line)[1:] for line in walk.replace("\\\n", " ").splitlines() if line]
    with Loopback(here / "server") as server:
        fill_shapes(server, here / "photos")
        monkeypatch.setenv("QDRANT_URL", server.url)
        for words in asked:
            result = CliRunner().invoke(cli, words)
            assert result.exit_code == 0, f"{OURS} {shlex.join(words)}\n{result.output}"
        assert server.writes() == []
    assert {words[1] for words in asked if words[0] == "adopt"} == server.names()
    for name in server.names():
        values = Workspace(here / name).credits("owner").fetchall()
        assert sum(row[1] for row in values) == pytest.approx(60)
        assert None not in {row[0] for row in values}


def fill_shapes(server: Loopback, photos: Path) -> None:
    encoders = {name: load_encoder(name) for name in ("pixels:32", "pixels:16")}

    def vector(path: Path, name: str) -> list[float]:
        image = Image.open(path).convert("RGB")
        return [float(x) for x in encoders[name].encode(encoders[name].prepare(image)[None])[0]]

    paths = sorted(photos.rglob("*.png"))
    owners = [f"owner {n % 3}" for n in range(len(paths))]
    both = list(zip(paths, owners, strict=True))
    content = [json.dumps({"metadata": {"path": str(path), "author": owner}}) for path, owner in both]
    payloads: dict[str, list[dict[str, Any]]] = {
        "nested": [{"file": {"path": str(p.relative_to(photos))}, "photographer": o} for p, o in both],
        "lists": [{"files": [{"url": str(p)}], "people": [o, "all"]} for p, o in both],
        "text": [{"_node_content": text} for text in content],
        "inside": [{"image": base64.b64encode(p.read_bytes()).decode(), "owner": o} for p, o in both],
        "two": [{"uri": str(p), "owner": o, "customer": "acme"} for p, o in both],
        "bare": [{"owner": o} for o in owners],
    }
    large = [vector(path, "pixels:32") for path in paths]
    small = [vector(path, "pixels:16") for path in paths]
    sizes: Any = {"large": {"size": 3072, "distance": "Cosine"}, "small": {"size": 768, "distance": "Dot"}}
    for name, rows in payloads.items():
        create = {"vectors": sizes if name == "two" else sizes["large"]}
        server.handle("PUT", f"/collections/{name}", json.dumps(create).encode())
        points = [
            {"id": n, "vector": {"large": large[n], "small": small[n]} if name == "two" else large[n], "payload": row}
            for n, row in enumerate(rows)
        ]  # fmt: skip
        server.handle("PUT", f"/collections/{name}/points", json.dumps({"points": points}).encode())


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
