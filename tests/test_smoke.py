"""The contract of the command line in one go, on a few small images: what users' scripts call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tiny_workspace
from click.testing import CliRunner

from gmv_qdrant.cli.main import cli


@pytest.fixture
def call(tmp_path: Path) -> Any:
    """The command line on ``tmp_path/ws``: parsed JSON, or nothing."""

    def run(*words: str, code: int = 0) -> Any:
        result = CliRunner().invoke(cli, ["-w", str(tmp_path / "ws"), *words])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout) if "--json" in words else None

    return run


def test_the_contract(tmp_path: Path, call: Any) -> None:
    tiny_workspace.write(tmp_path / "ada", range(6))
    tiny_workspace.write(tmp_path / "bob", range(6, 10))
    tiny_workspace.write(tmp_path / "generated", (2, 7, 50))
    settings = tiny_workspace.SETTINGS
    words = [
        word
        for name in ("encoder", "distance", "quality", "quantization")
        for word in (f"--{name}", settings[name])
    ]
    call("init", str(tmp_path / "ws"), *words, "--candidates", "4")
    call("ingest", str(tmp_path / "ada"), "--owner", "Ada")
    call("ingest", str(tmp_path / "bob"), "--owner", "Bob")
    call("value", str(tmp_path / "generated"), "--batch", "first")
    images = call("credits", "--by", "image", "--json")
    assert len(images) == 10
    assert {"image", "uri", "value", "matches"} <= images[0].keys()
    assert sum(row["value"] for row in images) == pytest.approx(3)
    owners = call("credits", "--by", "owner", "-k", "2", "--temperature", "0.1", "--json")
    assert {row["owner"] for row in owners} == {"Ada", "Bob"}
    assert call("sql", "SELECT count(*) AS n FROM matches", "--json") == [{"n": 12}]
    paid = call("payout", "--budget", "100", "--by", "owner", "--json")
    assert sum(round(100 * float(row["amount"])) for row in paid) == 10_000
    call("export", str(tmp_path / "out"))
    written = {file.stem for file in (tmp_path / "out").glob("*.parquet")}
    assert {"values", "contributions", "sources", "generated"} <= written
    names = pq.read_schema(tmp_path / "out" / "contributions.parquet").names
    assert {"generated_uri", "training_uri", "rank", "distance", "quality", "contribution"} <= set(names)
    call("report", str(tmp_path / "report.html"))
    call("withdraw", "--owner", "Bob", "--dry-run")
    call("withdraw", "--owner", "Bob")
    call("update")
    assert {row["owner"] for row in call("credits", "--by", "owner", "--json")} == {"Ada"}
    call("check")


def test_every_command_is_in_the_list_of_verbs() -> None:
    """Only what `gmv_qdrant.cli.main.SECTIONS` lists can be called and is in the help."""
    from importlib import import_module
    from pkgutil import iter_modules

    import gmv_qdrant.cli
    from gmv_qdrant.cli.main import VERBS

    homes = {}
    for room in iter_modules(gmv_qdrant.cli.__path__):
        for command in getattr(import_module(f"gmv_qdrant.cli.{room.name}"), "COMMANDS", ()):
            homes[command.name] = room.name
    assert homes == VERBS
