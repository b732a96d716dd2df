"""The options that many commands share, and how a command gets its workspace."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gmv_qdrant.cli.render import bars, note

if TYPE_CHECKING:
    from gmv_qdrant.workspace import Workspace

F = TypeVar("F", bound=Callable[..., Any])

preset_option = click.option(
    "--preset",
    type=click.Choice(["paper", "light"]),
    help="Models together: paper (CLIP, DreamSim, MANIQA), or light (no weights at all).  [default: paper]",
)
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
                help="T in exp(-d/T); 1 is the paper's formula.  [default: 1.0]",
            ),
            click.option("--calibration", help="A value function that 'calibrate' kept under this name."),
            click.option("--no-quality", is_flag=True, help="Don't weigh by the generated image's quality."),
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
        help="ray: spread over a Ray cluster, against a Qdrant server.  [default: local]",
    )
    return engine(workers(command))


def with_workspace(command: Callable[..., None]) -> Callable[..., None]:
    """Open the workspace, with progress bars and this run's flags, and pass it first."""

    @functools.wraps(command)
    @click.pass_obj
    def opened(path: Path, /, **options: Any) -> None:
        from gmv_qdrant.workspace import Workspace

        names = (
            "device",
            "batch_size",
            "workers",
            "offline",
            "trust",
            "precision",
            "cache_dir",
            "engine",
            "ray_workers",
        )
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
