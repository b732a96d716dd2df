"""init, status, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gmv_qdrant.cli.options import json_option, preset_option, with_workspace
from gmv_qdrant.cli.render import bars, cell, note, out, print_json


@click.command()
@click.argument("workspace", type=click.Path(path_type=Path))
@preset_option
@click.option("--encoder", help="Recall encoder.  [default: clip:ViT-B-32-quickgelu/openai]")
@click.option("--encoder-weights", type=click.Path(), help="A local file with the encoder's weights.")
@click.option("--distance", help="Re-rank distance.  [default: dreamsim]")
@click.option("--quality", help="Quality metric.  [default: maniqa]")
@click.option("--candidates", type=int, help="K of the recall phase.  [default: 200]")
@click.option("--quantization", help="pq, turbo, scalar or none.  [default: pq]")
@click.option("--views", help="none, or flip: match mirrored images too.  [default: none]")
@click.option("--qdrant-url", help="A Qdrant server instead of the embedded store.")
@click.option("--collection", help="Name of the collection.  [default: training]")
def init(workspace: Path, **settings: Any) -> None:
    """Make a workspace: settings, and an empty ledger."""
    from gmv_qdrant.models.catalogue import preflight
    from gmv_qdrant.workspace import Workspace

    made = Workspace.init(workspace, **settings)
    note(f"workspace {made.path}: encoder {made.settings.encoder}, distance {made.settings.distance}, "
         f"quality {made.settings.quality}, K = {made.settings.candidates}")  # fmt: skip
    if missing := preflight(made.settings):
        note(missing)
    note(f"next: gmv-qdrant -w {workspace} ingest FOLDER")


@click.command()
@json_option
@with_workspace
def status(workspace: Any, as_json: bool) -> None:
    """What the workspace holds, what is quantized, what is stale."""
    found = workspace.status()
    if as_json:
        print_json(found)
        return
    runs = found.pop("runs")
    for section, facts in found.items():
        out.print(section, style="bold")
        for name, value in facts.items():
            out.print(f"  {name.replace('_', ' '):<24}{cell(value)}", markup=False)
    for run in runs:
        out.print(f"{run['started_at']:%Y-%m-%d %H:%M} {run['verb']} {run['status']}", style="bold", end="  ")
        out.print(
            ", ".join(f"{value:,} {name}" for name, value in run["counts"].items() if value), markup=False
        )


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("gmv-demo"))
@click.option("--seed", default=0, show_default=True, help="Seed of the generator.")
@json_option
def demo(folder: Path, seed: int, as_json: bool) -> None:
    """The whole way on real images, in a minute, with nothing downloaded."""
    from gmv_qdrant.demo import run_demo

    with bars() as progress:
        figures = run_demo(folder, seed=seed, progress=progress, tell=(lambda _: None) if as_json else note)
    if as_json:
        print_json(figures)


COMMANDS = (init, status, demo)
