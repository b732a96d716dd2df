"""Commands that read: credits, explain, sql, export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gmv_qdrant.cli.options import function_options, json_option, warn_if_stale, with_workspace
from gmv_qdrant.cli.render import note, print_json, print_rows, rows


def function_of(options: dict[str, Any]) -> dict[str, Any]:
    """Options of the command line as fields of a value function."""
    return {
        "k": options["k"],
        "temperature": options["temperature"],
        "calibration": options["calibration"],
        "quality_weighted": not options["no_quality"],
        "batch": options["batch"],
    }


rule_option = click.option(
    "--function",
    "rule",
    type=click.Choice(["shares", "owner-shapley", "knn-shapley"]),
    default="shares",
    show_default=True,
    help="How the credit of one generated image is divided.",
)


@click.command()
@click.option(
    "--by", default="owner", show_default=True, help="image, owner, label, licence or any attribute."
)
@function_options
@rule_option
@click.option(
    "--interval", type=float, help="Add an interval of so many percent, say 95: columns low and high."
)
@click.option("--top", type=click.IntRange(min=1), help="Only the largest.")
@json_option
@with_workspace
def credits(
    workspace: Any, by: str, top: int | None, rule: str, interval: float | None, as_json: bool, **options: Any
) -> None:
    """Who earned how much: values summed by owner, label, any attribute, or image by image."""
    function = function_of(options)
    relation = workspace.credits(by, top=top, rule=rule, interval=interval, **function)
    warn_if_stale(workspace)
    found = rows(relation)
    if as_json:
        print_json(found)
        return
    print_rows(found, relation.columns, title=f"credits by {by}")
    effective = workspace.effective_contributors(**function)
    if effective is None:
        note("nothing was valued yet: gmv-qdrant value FOLDER")
    else:
        note(f"effective contributors: {effective:.2f} of at most {function['k']} for a generated image")
    if (recall := workspace.recall()) is not None:
        note(f"candidates: {recall:.2%} of the exact nearest were found (measured)")


@click.command()
@click.argument("image")
@click.option(
    "--picture", type=click.Path(path_type=Path, dir_okay=False), help="Also write a contact sheet, PNG."
)
@function_options
@json_option
@with_workspace
def explain(workspace: Any, image: str, picture: Path | None, as_json: bool, **options: Any) -> None:
    """A generated image's contributors, or a training image's beneficiaries.

    IMAGE is a path, a file name or an id.
    """
    kind, relation = workspace.explain(image, **function_of(options))
    found = rows(relation)
    if picture:
        note(f"wrote {workspace.picture(image, picture, **function_of(options))}")
    if as_json:
        print_json({"image": image, "kind": kind, "matches": found})
        return
    title = "contributors of the generated image" if kind == "generated" else "generated images that credit"
    print_rows(found, relation.columns, title=f"{title} {image}")


@click.command()
@click.argument("query")
@json_option
@with_workspace
def sql(workspace: Any, query: str, as_json: bool) -> None:
    """Any SELECT over the ledger: its tables, and the macros image_values, credits, contributions, ..."""
    relation = workspace.sql(query)
    found = rows(relation)
    if as_json:
        print_json(found)
    else:
        print_rows(found, relation.columns)


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--format", "file_format", type=click.Choice(["parquet", "csv"]), default="parquet", show_default=True
)
@function_options
@json_option
@with_workspace
def export(workspace: Any, directory: Path, file_format: str, as_json: bool, **options: Any) -> None:
    """Write values, contributions, sources and generated images to files."""
    warn_if_stale(workspace)
    written = workspace.export(directory, file_format=file_format, **function_of(options))
    if as_json:
        print_json([str(path) for path in written])
    else:
        note("wrote " + ", ".join(str(path) for path in written))


COMMANDS = (credits, explain, sql, export)
