"""The docs say what the program does: every command, every method, every setting, every figure's command."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gmv_qdrant import Workspace
from gmv_qdrant.cli.main import cli
from gmv_qdrant.settings import ABOUT

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.glob("*.md")])

# Commands that make or look at no workspace, or are groups around functions of their own.
NOT_METHODS = {"demo", "models"}


def test_the_reference_is_what_the_commands_say() -> None:
    subprocess.run([sys.executable, str(ROOT / "scripts/cli_reference.py"), "--check"], check=True)


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_has_help_and_a_method_of_its_name(name: str) -> None:
    assert cli.commands[name].help
    if name not in NOT_METHODS:
        method = getattr(Workspace, name.replace("-", "_"))
        assert inspect.getdoc(method)
        assert f"`{name.replace('-', '_')}" in (DOCS / "python.md").read_text()


@pytest.mark.parametrize("name", sorted(ABOUT))
def test_every_setting_is_documented(name: str) -> None:
    assert f"`{name}`" in (DOCS / "settings.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_scripts_that_the_docs_name_are_there(page: Path) -> None:
    for script in re.findall(r"(?<![\w/])scripts/[\w/]+\.py", page.read_text()):
        assert (ROOT / script).is_file(), f"{page.name} names {script}"


def test_the_command_line_starts_without_heavy_imports() -> None:
    heavy = "{'torch', 'matplotlib', 'datasets', 'timm'}"
    code = f"import sys, gmv_qdrant.cli.main; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
