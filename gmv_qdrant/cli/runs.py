"""Commands that write: ingest, value."""

from __future__ import annotations

from typing import Any

import click

from gmv_qdrant.cli.options import run_options, with_workspace
from gmv_qdrant.cli.render import print_json, print_summary


def _show(summary: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(summary)
    else:
        print_summary(summary)


@click.command()
@click.argument("paths", nargs=-1, required=True)
@click.option("--owner", help="Owner of images whose metadata names none.")
@click.option("--readmit", is_flag=True, help="Take in images again that were withdrawn.")
@run_options
@with_workspace
def ingest(workspace: Any, paths: tuple[str, ...], owner: str | None, readmit: bool, as_json: bool) -> None:
    """Take in training images: folders, files, Parquet, tars, hf://NAME.

    A metadata.csv, .jsonl or .parquet beside the images gives file_name, owner, label, licence and any other
    attribute. What is known already is skipped; what can't be used is quarantined with its reason.
    """
    _show(workspace.ingest(paths, owner=owner, readmit=readmit), as_json)


@click.command()
@click.argument("paths", nargs=-1, required=True)
@click.option(
    "--batch", default="default", show_default=True, help="A name for this set of generated images."
)
@run_options
@with_workspace
def value(workspace: Any, paths: tuple[str, ...], batch: str, as_json: bool) -> None:
    """Value generated images: find the training images that each one resembles most."""
    _show(workspace.value(paths, batch=batch), as_json)


COMMANDS = (ingest, value)
