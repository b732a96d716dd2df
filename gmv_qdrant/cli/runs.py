"""Commands that write: ingest, value."""

from __future__ import annotations

from typing import Any

import click

from gmv_qdrant.cli.options import run_options, with_workspace
from gmv_qdrant.cli.render import note, print_json, print_rows, print_summary


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


@click.command()
@click.option("--name", default="default", show_default=True, help="Name for 'credits --calibration NAME'.")
@click.option("--probes", type=click.IntRange(min=2), default=500, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option(
    "-k", type=click.IntRange(min=1), default=30, show_default=True, help="Contributors, for the figures."
)
@click.option("--no-contributor", is_flag=True, help="Also fit a mass of credit that goes to nobody.")
@run_options
@with_workspace
def calibrate(workspace: Any, as_json: bool, **options: Any) -> None:
    """Fit the temperature on probes: training images, transformed, whose parents are known."""
    figures = workspace.calibrate(**options)
    if as_json:
        print_json(figures)
        return
    rows = [{"": name.replace("_", " "), "paper (T = 1)": figures["before"][name], "calibrated": value}
            for name, value in figures["after"].items()]  # fmt: skip
    title = f"{figures['probes']} probes: temperature {figures['temperature']:.4g}"
    print_rows(rows, list(rows[0]), title=title)
    note(f"use it: gmv-qdrant credits --by owner --calibration {options['name']}")


COMMANDS = (ingest, value, calibrate)
