"""The group, and the one place where errors become sentences and exit codes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import click

from gmv_qdrant.cli import STARTED, accounting, deployments, evaluation, models, pages, questions, runs, setup
from gmv_qdrant.cli.interrupts import INTERRUPTED, watched
from gmv_qdrant.cli.options import Session, common_options
from gmv_qdrant.cli.render import flush, forget_stdout, warn
from gmv_qdrant.errors import GmvError, did_you_mean


class _Verbs(click.Group):
    """Verbs in the order of a user's day, not of the alphabet; a misspelt one is answered with the near one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def main(self, args: Sequence[str] | None = None, *_: Any, **extra: Any) -> NoReturn:
        sys.exit(_run(self, args, **{name: value for name, value in extra.items() if name == "color"}))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if (name := args[0]) not in self.commands and not name.startswith("-"):
            ctx.fail(f"There is no command {name!r}{did_you_mean(name, self.commands)}.")
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
        for name, child in command.commands.items():
            yield from every_command(child, f"{path} {name}".strip())


for room in (setup, runs, questions, pages, evaluation, accounting, deployments, models):
    for one in room.COMMANDS:
        cli.add_command(one)
for name_, command_ in every_command(cli):
    command_.params = [*command_.params, *common_options(hidden=bool(name_))]


def farewell(session: Session) -> str:
    """What is said to who pressed Ctrl-C."""
    if not session.writes:
        return "stopped"
    return f"stopped after {session.elapsed:.0f} s: what was finished is safe; the same command goes on from there"


def _run(command: click.Command, arguments: Sequence[str] | None, **extra: Any) -> int:
    """Run one command; the exit code. Errors of the tool are one sentence; tracebacks need ``--debug``."""
    session = Session(started=STARTED)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # what a terminal has no letter for is written out
            stream.reconfigure(errors="backslashreplace")
    try:
        with watched(lambda: farewell(session)):
            code = click.Group.main(
                command, arguments, "gmv-qdrant", standalone_mode=False, obj=session, **extra
            )
            flush()
            return int(code or 0)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        warn(f"\n{farewell(session)}")
        return INTERRUPTED
    except BrokenPipeError:  # who read the answer has seen enough
        forget_stdout()
        return 1
    except Exception as error:
        if session.debug:
            raise
        warn(f"error: {_sentence(error)}")
        return 1


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
