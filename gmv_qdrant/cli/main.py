"""The group, and the one place where errors become sentences and exit codes."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from gmv_qdrant.cli import STARTED
from gmv_qdrant.cli.interrupts import INTERRUPTED, watched
from gmv_qdrant.cli.options import Session, common_options
from gmv_qdrant.errors import GmvError, did_you_mean

SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "A workspace": {
        "init": ("setup", "Make a workspace: settings, and an empty ledger."),
        "demo": ("setup", "The whole way on real images, in a minute, with nothing downloaded."),
        "status": ("setup", "What the workspace holds, what is quantized, what is stale."),
    },
    "The main job": {
        "ingest": ("runs", "Take in training images: folders, files, Parquet, tars, hf://NAME."),
        "value": ("runs", "Value generated images: find the training images they resemble most."),
        "update": ("runs", "Make all credits exact again after the training set has changed."),
        "withdraw": ("runs", "Take training images out, and all that follows from them."),
        "erase": ("runs", "Take what was withdrawn off the disk, and prove it."),
        "check": ("runs", "Prove that ledger and store agree, and that the credits add up."),
    },
    "Questions": {
        "credits": ("questions", "Who earned how much: by owner, label, any attribute, or image by image."),
        "explain": ("questions", "A generated image's contributors, or a training image's beneficiaries."),
        "copies": ("questions", "Generated images that are nearly a training image, with its owners."),
        "sql": ("questions", "Any SELECT over the ledger, its tables and value functions."),
        "export": ("questions", "Write values, contributions, sources and generated images to files."),
        "report": ("pages", "One self-contained HTML file: credits, intervals, pictures, provenance."),
        "serve": ("pages", "The same as local pages: browse, sort, filter, drop an image."),
    },
    "Evaluation": {
        "advise": ("evaluation", "Which encoder and distance fit these images, before a million come in."),
        "calibrate": ("evaluation", "Fit on transformed training images: of whom is this nearly a copy?"),
        "evaluate": (
            "evaluation",
            "The paper's criteria, and known parents, on the images of this workspace.",
        ),
        "import-scores": (
            "evaluation",
            "Scores of another attribution method, to credit and evaluate beside ours.",
        ),
    },
    "Money": {
        "payout": ("accounting", "Share a budget by credit, exact to the smallest unit."),
        "verify": ("accounting", "Whether every recorded payout is what was written."),
        "statement": (
            "accounting",
            "What an owner earned by a recorded payout, how sure that is, by which images.",
        ),
        "statements": ("accounting", "The statements of everybody in a recorded payout."),
    },
    "The Qdrant and the models you have": {
        "adopt": ("deployments", "Use a collection that is there already as the training set."),
        "copy": ("deployments", "Copy the workspace, its collection embedded or on a server."),
        "models": ("models", "What encoders, distances and quality metrics need on disk."),
    },
}
"""The verbs in the order of a user's day: the file each is in, and what it does. Only the one asked for is imported."""
VERBS = {name: home for verbs in SECTIONS.values() for name, (home, _) in verbs.items()}


class _Verbs(click.Group):
    """The verbs, each imported when it is asked for; a misspelt one is answered with the near one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.commands and cmd_name in VERBS:
            room = import_module(f"gmv_qdrant.cli.{VERBS[cmd_name]}")
            command = next(one for one in room.COMMANDS if one.name == cmd_name)
            for _, each in every_command(command):
                each.params = [*each.params, *common_options(hidden=True)]
            self.add_command(command)
        return self.commands.get(cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, verbs in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, about) for name, (_, about) in verbs.items()], col_max=14)

    def main(self, args: Sequence[str] | None = None, *_: Any, **extra: Any) -> NoReturn:
        sys.exit(_run(self, args, **{name: value for name, value in extra.items() if name == "color"}))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if (name := args[0]) not in VERBS and not name.startswith("-"):
            ctx.fail(f"There is no command {name!r}{did_you_mean(name, VERBS)}.")
        return super().resolve_command(ctx, args)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="gmv-qdrant")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Who earned the credit for a generated image?

    Take training images in, value generated images against them, and ask for credits per image, label or
    owner. The method is GMValuator (ICLR 2025); credit is a share of perceptual similarity, not of causal
    influence.

    Exit codes: 0 done, 1 an error or nothing done (one sentence says why), 2 wrong usage, 130 stopped by Ctrl-C.
    """
    ctx.ensure_object(Session).verb = ctx.invoked_subcommand or ""


def every_command(command: click.Command, path: str = "") -> Iterator[tuple[str, click.Command]]:
    """A command and all under it, with their names."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            if child := command.get_command(context, name):
                yield from every_command(child, f"{path} {name}".strip())


cli.params = [*cli.params, *common_options()]


def farewell(session: Session) -> str:
    """What is said to who pressed Ctrl-C."""
    if not session.writes:
        return "stopped"
    return f"stopped after {session.elapsed:.0f} s: what was finished is safe; the same command goes on from there"


def _run(command: click.Command, arguments: Sequence[str] | None, **extra: Any) -> int:
    """Run one command; the exit code. Errors of the tool are one sentence; tracebacks need ``--debug``."""
    session = Session(started=STARTED)
    interrupted = threading.Event()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what a terminal has no letter for is written out
            stream.reconfigure(errors="backslashreplace")
    try:
        with watched(lambda: farewell(session), interrupted):
            code = click.Group.main(
                command, arguments, "gmv-qdrant", standalone_mode=False, obj=session, **extra
            )
            _render().flush()
            return int(code or 0)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _render().warn(f"\n{farewell(session)}")
        return INTERRUPTED
    except BrokenPipeError:  # who read the answer has seen enough
        _render().forget_stdout()
        return 1
    except Exception as error:
        if interrupted.wait(0.05):  # DuckDB, for one, makes an error of its own of Ctrl-C
            _render().warn(f"\n{farewell(session)}")
            return INTERRUPTED
        if session.debug:
            raise
        _render().warn(f"error: {_sentence(error)}")
        return 1


def _render() -> Any:
    """Imported when something is to be said: ``--help`` needs nothing of it."""
    return import_module("gmv_qdrant.cli.render")


def _sentence(error: Exception) -> str:
    if isinstance(error, GmvError):
        return str(error)
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        return f"the system refused: {error.strerror or error}{where}"
    if isinstance(error, MemoryError):
        return "there is not enough memory: close other programs, or give a smaller --batch-size and fewer --workers"
    first = (str(error).splitlines() or [""])[0]
    return f"something that isn't foreseen went wrong ({type(error).__name__}: {first}); --debug shows where"
