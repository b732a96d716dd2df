"""The group, and the one place where errors become sentences."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from gmv_qdrant.cli import accounting, deployments, evaluation, models, pages, questions, runs, setup
from gmv_qdrant.cli.render import note
from gmv_qdrant.errors import GmvError


class _Verbs(click.Group):
    """Errors of the tool become one sentence and exit 1; usage errors exit 2; tracebacks need ``--debug``."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except GmvError as error:
            if ctx.params.get("debug"):
                raise
            note(f"error: {error}")
            ctx.exit(1)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(1)
        except OSError as error:
            if ctx.params.get("debug"):
                raise
            where = f" ({error.filename})" if error.filename else ""
            note(f"error: the system refused: {error.strerror or error}{where}; run with --debug for where")
            ctx.exit(1)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of a user's day, not of the alphabet


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-w",
    "--workspace",
    type=click.Path(path_type=Path),
    default=Path("."),
    envvar="GMV_WORKSPACE",
    show_envvar=True,
    help="The workspace folder.  [default: .]",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="gmv-qdrant")
@click.pass_context
def cli(ctx: click.Context, workspace: Path, debug: bool) -> None:
    """Who earned the credit for a generated image?

    Take training images in, value generated images against them, and ask for credits per image, label or
    owner. The method is GMValuator (ICLR 2025); credit is a share of perceptual similarity, not of causal
    influence.
    """
    ctx.obj = workspace


for room in (setup, runs, questions, pages, evaluation, accounting, deployments, models):
    for command in room.COMMANDS:
        cli.add_command(command)


def main() -> None:
    """Entry point of ``gmv-qdrant``."""
    cli(prog_name="gmv-qdrant")
