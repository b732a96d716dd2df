"""The group, the options that many commands share, and the one place where errors become sentences."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gmv_qdrant.cli.render import bars, note
from gmv_qdrant.errors import GmvError

if TYPE_CHECKING:
    from gmv_qdrant.workspace import Workspace

F = TypeVar("F", bound=Callable[..., Any])


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


def main() -> None:
    """Entry point of ``gmv-qdrant``."""
    from gmv_qdrant.cli import questions, runs, setup

    for module in (setup, runs, questions):
        for command in module.COMMANDS:
            cli.add_command(command)
    cli(prog_name="gmv-qdrant")


json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


def function_options(command: F) -> F:
    """How evidence becomes values: the options of every command that shows values."""
    for option in reversed(
        (
            click.option(
                "-k",
                type=click.IntRange(min=1),
                default=30,
                show_default=True,
                help="Contributors of a generated image.",
            ),
            click.option(
                "--temperature",
                type=click.FloatRange(min=0, min_open=True),
                default=1.0,
                show_default=True,
                help="T in exp(-d/T); 1 is the paper's formula.",
            ),
            click.option(
                "--uncalibrated", is_flag=True, help="Don't weigh by the generated image's quality."
            ),
            click.option("--batch", help="Only the generated images valued under this name."),
        )
    ):
        command = option(command)
    return command


def run_options(command: F) -> F:
    """How fast a run is made: never what comes out."""
    for option in reversed(
        (
            click.option("--device", help="auto, cpu, cuda or mps.  [default: auto]"),
            click.option("--batch-size", type=click.IntRange(min=1), help="Images in one forward pass."),
            click.option("--workers", type=click.IntRange(min=1), help="Decoding threads."),
            click.option("--offline", is_flag=True, default=None, help="Never ask the network for weights."),
            json_option,
        )
    ):
        command = option(command)
    return command


def with_workspace(command: Callable[..., None]) -> Callable[..., None]:
    """Open the workspace, with progress bars and this run's flags, and pass it first."""

    @functools.wraps(command)
    @click.pass_obj
    def opened(path: Path, /, **options: Any) -> None:
        from gmv_qdrant.workspace import Workspace

        names = ("device", "batch_size", "workers", "offline", "precision")
        overrides = {name: options.pop(name) for name in names if name in options}
        with bars() as progress:
            workspace = Workspace(path, progress=progress, **overrides)
            command(workspace, **options)

    return opened


def warn_if_stale(workspace: Workspace) -> None:
    if stale := workspace.stale():
        note(
            f"{stale:,} generated images were valued against another training set than today's: "
            "'gmv-qdrant update' makes their credits exact"
        )
