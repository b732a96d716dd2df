"""Write docs/cli.md from the command line's own help; tests/test_docs.py fails when they differ.

python scripts/cli_reference.py            # writes docs/cli.md
python scripts/cli_reference.py --check    # exits 1 when it would change
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from gmv_qdrant.cli.main import cli

PAGE = Path(__file__).resolve().parents[1] / "docs" / "cli.md"
HEAD = """# The command line

Written by `python scripts/cli_reference.py` from the help of the commands. Every command is a method of
[`Workspace`](python.md) with the same name and the same words.

A flag beats the environment, which beats `gmv.toml` in the workspace, which beats the default: see
[settings](settings.md). `--json` prints one JSON document on stdout and nothing else; progress and messages go to
stderr. Exit codes: 0 done, 1 an error (one sentence on stderr), 2 wrong usage.
"""


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from commands(child, f"{path} {name}")


def reference() -> str:
    """The page: each command's help, as a terminal of 100 columns shows it."""
    parts = [HEAD]
    for path, command in commands(cli, "gmv-qdrant"):
        context = click.Context(command, info_name=path, terminal_width=100, max_content_width=100)
        parts.append(f"\n## {path}\n\n```text\n{command.get_help(context).rstrip()}\n```\n")
    return "".join(parts)


if __name__ == "__main__":
    if "--check" in sys.argv[1:]:
        sys.exit(PAGE.read_text(encoding="utf-8") != reference())
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(reference(), encoding="utf-8")
