"""Commands that read: credits, explain, sql, export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gmv_qdrant.cli.options import (
    answer_options,
    function_of,
    function_options,
    json_option,
    rule_option,
    selection_of,
    selection_options,
    warn_if_stale,
    with_workspace,
)
from gmv_qdrant.cli.render import note, print_json, rows, show, write


@click.command()
@click.option(
    "--by", default="owner", show_default=True, help="image, owner, label, licence, batch or any attribute."
)
@function_options
@rule_option
@click.option(
    "--interval", type=float, help="Add an interval of so many percent, say 95: columns low and high."
)
@click.option("--top", type=click.IntRange(min=1), help="Only the largest.")
@selection_options
@answer_options
@with_workspace
def credits(
    workspace: Any, by: str, top: int | None, rule: str, interval: float | None, form: str, **options: Any
) -> None:
    """Who earned how much: values summed by owner, label, any attribute, or image by image.

    --owner, --uri, --ids and --attribute choose among images, with --by image.
    """
    selection = selection_of(options)
    function = function_of(options)
    relation = workspace.credits(by, top=top, rule=rule, interval=interval, select=selection, **function)
    warn_if_stale(workspace)
    show(relation, form, title=f"credits by {by}")
    if form != "table":
        return
    effective = workspace.effective_contributors(**function)
    if effective is None:
        note("nothing was valued yet: gmv-qdrant value FOLDER")
    else:
        asked = workspace.value_function(**function)
        most = f"at most {asked.k}" if asked.k else "all candidates"
        note(f"this answers: {asked.question}")
        note(f"effective contributors: {effective:.2f} of {most} for a generated image")
    if (recall := workspace.recall()) is not None:
        note(f"candidates: {recall:.2%} of the exact nearest were found (measured)")


@click.command()
@click.argument("image", required=False)
@click.option(
    "--payout", metavar="ID", help="With --owner and no IMAGE: by the evidence of a recorded payout."
)
@click.option(
    "--picture", type=click.Path(path_type=Path, dir_okay=False), help="Also write a contact sheet, PNG."
)
@click.option("--training", is_flag=True, help="The training image, where a generated one has the same name.")
@function_options
@selection_options
@answer_options
@with_workspace
def explain(
    workspace: Any,
    image: str | None,
    payout: str | None,
    picture: Path | None,
    training: bool,
    form: str,
    **options: Any,
) -> None:
    """A generated image's contributors, a training image's beneficiaries, or why an owner gets what she gets.

    IMAGE is a path, a file name, an id or a SHA-256. Where it was valued in several batches, --batch says which.
    --owner, --uri, --ids and --attribute show only some of the contributors. --owner without IMAGE shows which images
    earn an owner what she gets.
    """
    selection = selection_of(options)
    if image is None:
        if selection is None or selection.owner is None:
            raise click.UsageError("Give IMAGE, or --owner NAME [--payout ID].")
        _explain_owner(workspace, selection.owner, payout, form)
        return
    if payout is not None:
        raise click.UsageError("--payout goes with --owner, without IMAGE.")
    function = function_of(options)
    found = workspace.explain(image, training=training, select=selection, **function)
    if picture:
        note(f"wrote {workspace.picture(image, picture, training=training, **function)}")
    kind, matches, owners = found.image.kind, rows(found.matches), rows(found.owners)
    title = "contributors of the generated image" if kind == "generated" else "generated images that credit"
    document = {"image": found.image.uri, "kind": kind, "matches": matches, "owners": owners}
    show(matches, form, columns=found.matches.columns, title=f"{title} {found.image.uri}", document=document)
    if form in ("table", "md"):
        write("\n")
        show(owners, form, columns=found.owners.columns, title="by owner")


def _explain_owner(workspace: Any, owner: str, payout: str | None, form: str) -> None:
    relation = workspace.explain_owner(owner, payout=payout)
    found = rows(relation)
    show(
        found,
        form,
        columns=relation.columns,
        title=f"images that earn {owner} credit",
        document={"owner": owner, "images": found},
    )


@click.command()
@click.argument("query", required=False)
@click.option("-f", "--file", "file", type=click.File(encoding="utf-8"), help="SQL from a file (- is stdin).")
@click.option(
    "--attach",
    metavar="[NAME=]FILE",
    multiple=True,
    help="A CSV, JSON or Parquet file to join with, as a table of its name; can be repeated.",
)
@answer_options
@with_workspace
def sql(workspace: Any, query: str | None, file: Any, attach: tuple[str, ...], form: str) -> None:
    """Any SELECT over the ledger: its tables, and the macros image_values, credits, contributions, ..."""
    if (query is None) == (file is None):
        raise click.UsageError("Give a QUERY or -f FILE.")
    relation = workspace.sql(query if file is None else file.read(), attach=_attached(attach))
    show(relation, form, grouped=False)


def _attached(given: tuple[str, ...]) -> dict[str, str]:
    """Names of tables, and their files: ``invoices=path/to.csv``, or a path, whose name counts."""
    pairs = [one.partition("=") if "=" in one else (Path(one).stem, "=", one) for one in given]
    return {name: path for name, _, path in pairs}


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


@click.command()
@click.option("--batch", help="Only the generated images valued under this name.")
@click.option(
    "--level",
    type=click.FloatRange(0, 1),
    help="Only those that come nearer than strangers, at this share of false discoveries, say .05.",
)
@click.option("--training", is_flag=True, help="Instead: training images of different owners, as claims.")
@click.option(
    "--sample", type=click.IntRange(min=2), help="With --training: look at so many.  [default: all]"
)
@click.option("--top", type=click.IntRange(min=1), default=20, show_default=True, help="Rows to show.")
@answer_options
@with_workspace
def copies(workspace: Any, form: str, **options: Any) -> None:
    """Generated images that are nearly a training image, the most unusual first, with its owners.

    p_value says how many strangers come as near ('value --control' brings them), q_value corrects it for the number of
    images, among_training says how many training images have a neighbour as near ('copies --training' looks).
    """
    if options["sample"] and not options["training"]:
        raise click.UsageError("--sample is for --training.")
    relation = workspace.copies(**options)
    show(relation, form, title="claims" if options["training"] else "copies")
    if form == "table" and not options["training"] and not relation.filter("p_value IS NOT NULL").fetchall():
        note(
            "how near strangers come isn't known: gmv-qdrant value --control FOLDER of images that are none of these"
        )


COMMANDS = (credits, copies, explain, sql, export)
