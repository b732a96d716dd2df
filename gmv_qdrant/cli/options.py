"""The options that many commands share, and how a command gets its workspace."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from gmv_qdrant.ledger.selection import Selection
    from gmv_qdrant.workspace import Workspace

F = TypeVar("F", bound=Callable[..., Any])

FORMS = ("table", "csv", "json", "parquet", "md")
"""What an answer may look like."""

preset_option = click.option(
    "--preset",
    type=click.Choice(["paper", "light"]),
    help="Models together: paper (CLIP, DreamSim, MANIQA), or light (no weights at all).  [default: paper]",
)


class Session:
    """One call of the program: what stands before or after any verb.

    given: the workspace, where one was named. writes: the verb is a run, and what it did so far is kept when it is
    interrupted. started: as `time.monotonic` says it.
    """

    def __init__(self, started: float = 0.0) -> None:
        self.given: Path | None = None
        self.debug = False
        self.verb = ""
        self.writes = False
        self.started = started

    @property
    def workspace(self) -> Path:
        return self.given or Path(".")

    @property
    def elapsed(self) -> float:
        """Seconds since the program was started."""
        return time.monotonic() - self.started


# -- for every command -------------------------------------------------------------------------------


def _workspace(ctx: click.Context, _: click.Parameter, value: Path | None) -> None:
    if value is not None:
        ctx.ensure_object(Session).given = value


def _debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Session).debug = True


def _quiet(_: click.Context, __: click.Parameter, value: bool) -> None:
    if value:
        from gmv_qdrant.cli.render import messages

        messages.quiet = True


def _verbose(_: click.Context, __: click.Parameter, value: bool) -> None:
    if value:
        from gmv_qdrant.cli.render import messages

        messages.verbose = True


def common_options(*, hidden: bool = False) -> list[click.Option]:
    """Options that work before the verb and after it.  hidden: not repeated in the help of each verb."""
    return [
        click.Option(
            ["-w", "--workspace", "workspace_folder"],
            type=click.Path(path_type=Path),
            envvar=None if hidden else "GMV_WORKSPACE",
            expose_value=False,
            callback=_workspace,
            help="The workspace folder; also GMV_WORKSPACE.  [default: .]",
        ),
        click.Option(
            ["-q", "--quiet"],
            is_flag=True,
            expose_value=False,
            callback=_quiet,
            hidden=hidden,
            help="Only answers, warnings and errors.",
        ),
        click.Option(
            ["-v", "--verbose"],
            is_flag=True,
            expose_value=False,
            callback=_verbose,
            hidden=hidden,
            help="Also what each phase of a run took, and what it put in quarantine.",
        ),
        click.Option(
            ["--debug"],
            is_flag=True,
            expose_value=False,
            callback=_debug,
            hidden=hidden,
            help="Show the traceback of an error.",
        ),
    ]


# -- what an answer looks like -----------------------------------------------------------------------

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


def answer_options(command: Callable[..., None]) -> Callable[..., None]:
    """``--format`` and ``--json``; the command gets ``form``, one of `FORMS`."""

    @functools.wraps(command)
    def called(*args: Any, as_json: bool, form: str | None, **options: Any) -> None:
        if as_json and form not in (None, "json"):
            raise click.UsageError(f"Give --json or --format {form}, not both.")
        from gmv_qdrant.cli.render import on_terminal

        usual = "table" if on_terminal() else "csv"
        command(*args, form="json" if as_json else form or usual, **options)

    form = click.option(
        "--format",
        "form",
        type=click.Choice(FORMS),
        help="[default: table on a terminal, csv in a pipe or file]",
    )
    return form(json_option(called))


# -- what is asked -----------------------------------------------------------------------------------


def function_options(command: F) -> F:
    """How evidence becomes values: the options of every command that shows values."""
    for option in reversed(
        (
            click.option(
                "-k",
                type=click.IntRange(min=1),
                help="Contributors of a generated image.  [default: 30; all candidates for 'loss']",
            ),
            click.option(
                "--temperature",
                type=click.FloatRange(min=0, min_open=True),
                help="T in exp(-d/T); 1 is the paper's formula.  [default: 1.0]",
            ),
            click.option(
                "--calibration",
                help="A value function that 'calibrate' kept under this name: of whom is an image nearly a copy? "
                "Or 'loss': what would a model lose without them?",
            ),
            click.option("--no-quality", is_flag=True, help="Don't weigh by the generated image's quality."),
            click.option("--batch", help="Only the generated images valued under this name."),
            click.option("--as-of", metavar="DATE", help="Credit goes to whom the sources named then (UTC)."),
        )
    ):
        command = option(command)
    return command


def function_of(options: dict[str, Any]) -> dict[str, Any]:
    """Options of the command line as fields of a value function."""
    return {
        **({"k": options["k"]} if options["k"] else {}),
        "temperature": options["temperature"],
        "calibration": options["calibration"],
        "quality_weighted": not options["no_quality"],
        "batch": options["batch"],
        "as_of": options["as_of"],
    }


def selection_options(command: F) -> F:
    """Which training images are meant; the command gets them through `selection_of`."""
    for option in reversed(
        (
            click.option("--owner", help="Those of this owner."),
            click.option(
                "--uri", metavar="PATTERN", help="Those whose URI matches: * and ? stand for any characters."
            ),
            click.option(
                "--ids",
                type=click.File(encoding="utf-8"),
                help="Those in a file (- is stdin): a URI, file name, id or SHA-256 on each line.",
            ),
            click.option(
                "--attribute",
                metavar="FIELD[=VALUE]",
                help="Those whose metadata has this value; or says yes.",
            ),
        )
    ):
        command = option(command)
    return command


def selection_of(options: dict[str, Any]) -> Selection | None:
    """Takes the options of `selection_options` away; None where none was given."""
    from gmv_qdrant.errors import SettingsError
    from gmv_qdrant.ledger.selection import Selection, lines

    given = {name: options.pop(name) for name in ("owner", "uri", "ids", "attribute")}
    if sum(value is not None for value in given.values()) > 1:
        raise click.UsageError("Give one of --owner, --uri, --ids and --attribute.")
    if (file := given["ids"]) is not None:
        try:
            given["ids"] = lines(file.read(), file.name)
        except UnicodeDecodeError:
            raise SettingsError(f"{file.name} isn't a text file of names") from None
    asked = {name: value for name, value in given.items() if value is not None}
    return Selection(**asked) if asked else None


rule_option = click.option(
    "--rule",
    type=click.Choice(["shares", "owner-shapley", "knn-shapley"]),
    default="shares",
    show_default=True,
    help="How the credit of one generated image is divided.",
)


# -- how a run is made -------------------------------------------------------------------------------

RUN = (
    "device",
    "batch_size",
    "workers",
    "offline",
    "trust",
    "precision",
    "cache_dir",
    "allow",
    "engine",
    "ray_workers",
)
"""Settings that the options of runs give."""


def run_options(command: F) -> F:
    """How fast a run is made: never what comes out."""
    for option in reversed(
        (
            click.option("--device", help="auto, cpu, cuda or mps.  [default: auto]"),
            click.option(
                "--precision", type=click.Choice(["fp32", "bf16"]), help="Of the networks.  [default: fp32]"
            ),
            click.option("--batch-size", type=click.IntRange(min=1), help="Images in one forward pass."),
            click.option("--workers", type=click.IntRange(min=1), help="Decoding threads."),
            click.option("--cache-dir", type=click.Path(path_type=Path), help="Where weights are kept."),
            click.option("--offline", is_flag=True, default=None, help="Never ask the network for weights."),
            click.option(
                "--trust",
                is_flag=True,
                default=None,
                help="Take weights whose SHA-256 nobody publishes as they come, and run code of model repositories.",
            ),
            click.option(
                "--allow",
                multiple=True,
                callback=lambda _ctx, _parameter, given: given or None,
                metavar="PLACE",
                help="Where images may be read from beside PATHS: a folder that links lead to, or s3://bucket/.",
            ),
            json_option,
        )
    ):
        command = option(command)
    return command


def engine_options(command: F) -> F:
    """Where a run is made."""
    workers = click.option(
        "--ray-workers", type=click.IntRange(min=1), help="Worker processes.  [default: one for each GPU]"
    )
    engine = click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        help="ray: read, decode and embed on a Ray cluster.  [default: local]",
    )
    return engine(workers(command))


def with_workspace(command: Callable[..., None]) -> Callable[..., None]:
    """Open the workspace with this call's flags, and pass it first; a run tells its progress from the first moment."""

    @functools.wraps(command)
    @click.pass_obj
    def opened(session: Session, /, **options: Any) -> None:
        overrides: Any = {name: options.pop(name) for name in RUN if name in options}
        session.writes = bool(overrides)
        with progress(session) as shown:
            from gmv_qdrant.workspace import Workspace

            command(Workspace(session.workspace, progress=shown, **overrides), **options)

    return opened


def progress(session: Session) -> Any:
    """Bars for a verb that is a run; None for a question."""
    import contextlib

    if not session.writes:
        return contextlib.nullcontext()
    from gmv_qdrant.cli.progress import bars

    return bars(session.verb)


def warn_if_stale(workspace: Workspace) -> None:
    from gmv_qdrant.cli.render import note

    if stale := workspace.stale():
        note(
            f"{stale:,} generated images were valued against another training set than today's: "
            "'gmv-qdrant update' makes their credits exact"
        )
