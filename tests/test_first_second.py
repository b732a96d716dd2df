"""The first second: what a command imports, which is what its start costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tiny_workspace

from gmv_qdrant import Workspace

ANSWERS = {"numpy", "pyarrow", "PIL", "torch", "scipy", "qdrant_client", "jinja2", "filelock"}
HELP = {*ANSWERS, "duckdb", "gmv_qdrant.workspace"}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("first")
    made = Workspace.init(root / "ws", **tiny_workspace.SETTINGS)
    made.ingest(tiny_workspace.write(root / "a", range(12)), owner="ada")
    made.value(tiny_workspace.write(root / "g", range(50, 53)))
    return made.path


@pytest.mark.parametrize(
    ("arguments", "without"),
    [
        (["--help"], HELP),
        (["--version"], ANSWERS),
        (["credits", "--help"], HELP),
        (["credits"], ANSWERS),
        (["credits", "--json"], ANSWERS),
        (["credits", "--by", "image", "--format", "table"], ANSWERS),
        (["credits", "--by", "batch", "--format", "md"], ANSWERS),
        (["status"], ANSWERS),
        (["status", "--json"], ANSWERS),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_a_question_imports_only_what_it_needs(
    workspace: Path, arguments: list[str], without: set[str]
) -> None:
    code = f"""
import sys
sys.argv = ["gmv-qdrant", *{arguments!r}]
from gmv_qdrant.cli import main
try:
    main()
except SystemExit as done:
    assert not done.code, done.code
print(sorted({without!r} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=workspace, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert done.stderr.splitlines()[-1] == "[]"
