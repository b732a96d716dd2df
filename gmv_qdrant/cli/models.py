"""models: what each name needs, whether it is there, and fetching it beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gmv_qdrant.cli.options import json_option
from gmv_qdrant.cli.render import bars, note, print_json, print_rows


@click.group()
def models() -> None:
    """What encoders, distances and quality metrics need on disk."""


@models.command("list")
@json_option
def list_(as_json: bool) -> None:
    """The names that settings may hold."""
    from gmv_qdrant.models.catalogue import list_models

    found = [{"kind": model.kind, "name": model.name, "about": model.about} for model in list_models()]
    if as_json:
        print_json(found)
    else:
        print_rows(found, ["kind", "name", "about"])


@models.command()
@click.argument("names", nargs=-1)
@click.option(
    "-w",
    "--workspace",
    type=click.Path(path_type=Path),
    envvar="GMV_WORKSPACE",
    help="The models of a workspace.",
)
@json_option
def status(names: tuple[str, ...], workspace: Path | None, as_json: bool) -> None:
    """Whether NAMES can be loaded without a network; without any, the models of a workspace or the defaults."""
    from gmv_qdrant.models.catalogue import model_status
    from gmv_qdrant.settings import Settings

    if not names:
        settings = Settings.resolve(workspace)
        names = (settings.encoder, settings.distance, settings.quality)
    found = [model_status(name) for name in names]
    if as_json:
        print_json([one.as_dict() for one in found])
        return
    table: list[dict[str, Any]] = []
    for one in found:
        ready = {True: "yes", False: "no", None: "only loading it can tell"}[one.ready]
        for file in one.files or (None,):
            table.append(
                {
                    "name": one.name,
                    "ready": ready,
                    "needs": file.origin if file else "nothing",
                    "MB": round(file.size / 1e6) if file and file.size else None,
                    "looked for in": str(file.where) if file else "–",
                    "there": "–" if file is None else "yes" if file.path else "no",
                }
            )
    print_rows(table, list(table[0]))


@models.command()
@click.argument("names", nargs=-1, required=True)
@json_option
def fetch(names: tuple[str, ...], as_json: bool) -> None:
    """Download what NAMES lack, verified where a hash is published."""
    from gmv_qdrant.models.catalogue import fetch_model

    with bars() as shown:
        fetched = [fetch_model(name, progress=shown.download) for name in names]
    if as_json:
        print_json([one.as_dict() for one in fetched])
    else:
        note("ready: " + ", ".join(one.name for one in fetched))


COMMANDS = (models,)
