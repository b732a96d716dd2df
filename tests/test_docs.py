"""From the docs to the program and back: every command, option, setting and name that is written anywhere is there."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import gmv_qdrant
from gmv_qdrant import Workspace, errors
from gmv_qdrant.cli.main import cli, every_command
from gmv_qdrant.settings import ABOUT

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
SOURCES = sorted(
    path
    for path in (ROOT / "gmv_qdrant").rglob("*")
    if path.suffix in (".py", ".html", ".js", ".sql", ".svg")
)
COMMANDS = dict(every_command(cli))
OPTIONS = {
    option
    for command in COMMANDS.values()
    for parameter in command.params
    for option in (*parameter.opts, *parameter.secondary_opts)
} | {"--help"}

# Commands that make or look at no workspace, or are groups around functions of their own.
NOT_METHODS = {"demo", "models"}


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_the_reference_is_what_the_program_says() -> None:
    subprocess.run([sys.executable, str(ROOT / "scripts/reference.py"), "--check"], check=True)


@pytest.mark.parametrize("name", sorted(name for name in COMMANDS if name))
def test_every_command_has_help_and_a_method_of_its_name(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    assert all(
        parameter.help
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.show_default
    ), "every option says what it is"
    verb = name.partition(" ")[0]
    if verb not in NOT_METHODS:
        assert inspect.getdoc(getattr(Workspace, verb.replace("-", "_")))


@pytest.mark.parametrize("name", sorted(ABOUT))
def test_every_setting_is_documented(name: str) -> None:
    if name not in ("value", "payout"):
        assert f"`{name}`" in (DOCS / "reference" / "settings.md").read_text()


def test_every_exported_name_is_there_and_every_error_is_exported() -> None:
    assert sorted(gmv_qdrant.__all__) == gmv_qdrant.__all__
    assert all(getattr(gmv_qdrant, name) for name in gmv_qdrant.__all__)
    tree = {
        name
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, errors.GmvError)
    }
    assert tree == {
        name for name in gmv_qdrant.__all__ if name.endswith(("Error", "Unavailable", "Locked", "Mismatch"))
    }
    assert all(name in (errors.__doc__ or "") for name in tree)


# -- commands ----------------------------------------------------------------------------------------


def commands_in(text: str) -> Iterator[str]:
    """Calls of the program in fenced blocks: one for each line, with lines that a backslash continues."""
    for block in re.findall(r"^ *```(?:bash|sh|shell|console)?\n(.*?)^ *```", text, flags=re.S | re.M):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            line = re.sub(r"^\s*\$ ", "", line)
            yield from re.findall(
                r"(?:^|[;&|(]\s*|\s)(gmv-qdrant(?: [^;&|#\n]*(?:\"[^\"]*\"|'[^']*')?[^;&|#\n]*)?)", line
            )


def parse(words: list[str]) -> None:
    """Raises `click.UsageError` where the program would, for a command or an option that isn't there."""
    command: click.Command = cli
    while True:
        context = click.Context(command)
        context.resilient_parsing = True
        _, rest, _ = command.make_parser(context).parse_args(list(words))
        if not isinstance(command, click.Group) or not rest:
            return
        found = command.get_command(context, rest[0])
        if found is None:
            raise click.UsageError(f"no command {rest[0]!r}")
        command, words = found, rest[1:]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_in_blocks_are_there_with_all_their_options(page: Path) -> None:
    for call in commands_in(page.read_text()):
        words = shlex.split(re.sub(r"[\[\]]", "", call) if "[--" in call else call)[1:]
        try:
            parse([word for word in words if word != "..."])
        except click.UsageError as error:
            pytest.fail(f"{call!r}: {error.format_message()}")


@pytest.mark.parametrize("page", [*PAGES, *SOURCES], ids=named)
def test_commands_named_anywhere_are_there(page: Path) -> None:
    quote = "" if page.suffix == ".md" else "(?<=['`‘\"])"
    for call in re.findall(
        quote + r"gmv-qdrant((?: -w \S+| --?[a-z-]+)* [a-z][a-z-]+(?: [a-z][a-z-]+)?)", page.read_text()
    ):
        words = re.sub(r" -w \S+| --?[a-z-]+", "", call).split()
        if page.suffix != ".md" or words[0] in {name.partition(" ")[0] for name in COMMANDS}:
            assert words[0] in COMMANDS, f"{named(page)}: gmv-qdrant{call}"


@pytest.mark.parametrize("page", SOURCES, ids=named)
def test_options_named_in_help_errors_and_pages_are_there(page: Path) -> None:
    scripts = "".join(path.read_text() for path in (ROOT / "scripts").rglob("*.py"))
    for option in re.findall(r"(?<![\w$(-])--[a-z][a-z0-9-]+(?![\w:(]|: )", page.read_text()):
        if page.suffix in (".py", ".html"):
            assert option in OPTIONS or f'"{option}"' in scripts, f"{named(page)} names {option}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_options_in_inline_code_are_there(page: Path) -> None:
    scripts = "".join(
        path.read_text() for path in [*(ROOT / "scripts").rglob("*.py"), ROOT / "docker-compose.yml"]
    )
    for code in re.findall(
        r"`([^`\n]*gmv-qdrant [^`\n]*|--[^`\n]*|(?:[a-z-]+ )+--[^`\n]*)`", page.read_text()
    ):
        first = code.split()[0]
        if (
            first.startswith("--")
            or first == "gmv-qdrant"
            or first in {name.partition(" ")[0] for name in COMMANDS}
        ):
            for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", code):
                assert option in OPTIONS or f'"{option}"' in scripts, f"{named(page)} names {code}"


# -- links and scripts -------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{named(page)} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_scripts_that_the_docs_name_are_there(page: Path) -> None:
    for script in re.findall(r"(?<![\w/])scripts/[\w/]+\.py", page.read_text()):
        assert (ROOT / script).is_file(), f"{named(page)} names {script}"


def test_the_command_line_starts_without_heavy_imports() -> None:
    heavy = "{'torch', 'matplotlib', 'datasets', 'timm', 'numpy', 'pyarrow', 'duckdb', 'rich', 'pydantic', 'json'}"
    code = f"import sys, gmv_qdrant.cli.main as m; m.cli.get_help; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
