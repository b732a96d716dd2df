"""init, status, demo."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import click

from gmv_qdrant.cli.options import (
    Session,
    answer_options,
    json_option,
    preset_option,
    progress,
    with_workspace,
)
from gmv_qdrant.cli.render import cell, note, print_json, show, write


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
    chosen = made.settings
    note(
        f"workspace {made.path}: encoder {chosen.encoder}, distance {chosen.distance}, quality {chosen.quality}, "
        f"K = {chosen.candidates}"
    )
    if missing := preflight(made.settings):
        note(missing)
    note(f"next: gmv-qdrant -w {workspace} ingest FOLDER")


@click.command()
@answer_options
@with_workspace
def status(workspace: Any, form: str) -> None:
    """What the workspace holds, what is quantized, what is stale."""
    found = workspace.status()
    runs = found["runs"]
    facts = [
        {"about": section, "what": _words(name), "is": value}
        for section, values in found.items()
        if section != "runs"
        for name, value in values.items()
    ]
    if form != "table":
        show(facts, form, document=found)
        return
    for section, of_section in itertools.groupby(facts, key=lambda fact: fact["about"]):
        write(f"{section}\n")
        write("".join(f"  {fact['what']:<24}{_fact(fact['is'])}\n" for fact in of_section))
    write("latest runs\n")
    for run in runs:
        counts = ", ".join(f"{cell(value)} {_words(name)}" for name, value in run["counts"].items() if value)
        write(
            f"  {run['started_at']:%Y-%m-%d %H:%M}  {run['verb']} {run['status']}: {counts or 'nothing to do'}\n"
        )


def _fact(value: Any) -> str:
    """A value for people; of several that belong together, those that say something."""
    if isinstance(value, dict):
        return ", ".join(f"{_words(name)} {cell(held)}" for name, held in value.items() if held) or cell(None)
    return cell(value)


def _words(name: str) -> str:
    return name.replace("_", " ")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), default=Path("gmv-demo"))
@click.option("--seed", default=0, show_default=True, help="Seed of the generator.")
@json_option
@click.pass_obj
def demo(session: Session, /, folder: Path, seed: int, as_json: bool) -> None:
    """The whole way on real images, in a minute, with nothing downloaded."""
    from gmv_qdrant.demo import run_demo

    session.writes = True
    with progress(session) as shown:
        figures = run_demo(folder, seed=seed, progress=shown, tell=(lambda _: None) if as_json else note)
    if as_json:
        print_json(figures)


COMMANDS = (init, status, demo)
