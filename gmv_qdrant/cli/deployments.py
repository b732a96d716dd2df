"""Commands for a Qdrant that is there already, or is to be: adopt, copy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from gmv_qdrant.cli.options import Session, progress, run_options, with_workspace
from gmv_qdrant.cli.render import note
from gmv_qdrant.cli.runs import show_summary

COLUMNS = ("uri", "owner", "label", "licence")


def _field_options(command: Any) -> Any:
    for name in reversed(COLUMNS):
        usual = (
            f"Payload field with the image's {name if name != 'uri' else 'path or URL'}.  [default: {name}]"
        )
        command = click.option(f"--{name}-field", metavar="FIELD", help=usual)(command)
    return command


def _where(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> dict[str, str] | None:
    pairs = [one.partition("=") for one in given]
    if bad := [name for name, equals, _ in pairs if not (name and equals)]:
        raise click.BadParameter(f"{bad[0]!r} is not FIELD=VALUE")
    return {name: value for name, _, value in pairs} or None


def _filter(_: click.Context, __: click.Parameter, file: Path | None) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file else None
    except (OSError, ValueError) as error:
        raise click.BadParameter(f"{file} can't be read: {error}") from None
    if found is not None and not isinstance(found, dict):
        raise click.BadParameter(f"{file} holds no filter: it is a JSON object with must, should or must_not")
    return found.get("filter", found) if found else None


@click.command()
@click.argument("workspace", type=click.Path(path_type=Path), required=False)
@click.option("--qdrant-url", help="The Qdrant server; its key is QDRANT_API_KEY.")
@click.option("--collection", help="The collection's name.")
@click.option(
    "--vector", "vector_name", help="Which of its vectors; '' is the unnamed one.  [default: the only one]"
)
@click.option("--encoder", help="The encoder that the collection was made with.")
@click.option("--encoder-weights", type=click.Path(), help="A local file with the encoder's weights.")
@click.option("--distance", help="Re-rank distance.  [default: dreamsim]")
@click.option(
    "--distance-vector",
    metavar="NAME",
    help="Which of its vectors holds the embeddings of --distance, an encoder.",
)
@click.option("--quality", help="Quality metric.  [default: maniqa]")
@click.option("--candidates", type=int, help="K of the recall phase.  [default: 200]")
@click.option("--views", help="none, or flip: match mirrored images too.  [default: none]")
@_field_options
@click.option("--attribute-fields", help="More payload fields to credit by, with commas between; or all.")
@click.option("--uri-prefix", help="What stands before paths: /mnt/images/, s3://bucket/.")
@click.option(
    "--where", multiple=True, callback=_where, metavar="FIELD=VALUE", help="Only points with this payload."
)
@click.option(
    "--filter",
    type=click.Path(path_type=Path),
    callback=_filter,
    metavar="FILE.json",
    help="Only points that pass this filter, as Qdrant's own API takes it.",
)
@click.option(
    "--trust-encoder",
    is_flag=True,
    help="Prove nothing and read no images; needs --distance none or --distance-vector.",
)
@click.option("--create-index", is_flag=True, help="WRITES: payload indexes that the filter needs.")
@click.option("--enable-quantization", is_flag=True, help="WRITES: product quantization, in place.")
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Images to prove the encoder with.",
)
@run_options
@click.pass_obj
def adopt(session: Session, /, workspace: Path | None, as_json: bool, **options: Any) -> None:
    """Use a collection that is there already, full of image embeddings, as the training set.

    Makes WORKSPACE (by default that of -w), and proves first, on a sample of images, that the collection was made with
    the encoder. Run it again to take in what has changed since. Without the flags that say WRITES nothing
    is written to the collection.
    """
    from gmv_qdrant.workspace import Workspace

    fields = {name: options.pop(f"{name}_field") for name in COLUMNS}
    fields["uri_prefix"] = options.pop("uri_prefix")
    attributes = options.pop("attribute_fields")
    if attributes is not None:
        fields["attributes"] = "all" if attributes == "all" else tuple(_names(attributes))
    session.writes = True
    with progress(session) as shown:
        summary = Workspace.adopt(workspace or session.workspace, fields=fields, progress=shown, **options)
    show_summary(summary, as_json)
    if summary.get("same_image"):
        note(
            f"  {summary['same_image']:,} points are of an image that another point is of, and count with that"
        )
    if summary.get("other_owner"):
        note(
            f"  {summary['other_owner']:,} of them name another owner, who gets none of its credit: give the first "
            "point a list of owners"
        )
    if summary.get("sample_twins"):
        note(
            f"  {summary['sample_twins']:,} of 32 sampled vectors stand in the collection more than once: copies "
            "of an image share its credit"
        )
    if summary.get("without_uri"):
        note(f"  {summary['without_uri']:,} points name no image and were left out")
    if summary.get("sample_differing"):
        note("  some images of the sample are no longer those that were embedded")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


@click.command()
@click.argument("into", type=click.Path(path_type=Path))
@click.option("--qdrant-url", help="The server that gets its collection.  [default: embedded]")
@click.option("--collection", help="The collection's name there.  [default: as it is]")
@run_options
@with_workspace
def copy(workspace: Any, into: Path, as_json: bool, **where: Any) -> None:
    """Copy the workspace to the new folder INTO, its collection embedded or on a server.

    The old one stays as it was. Vectors, payloads and neighbours of a sample are compared before INTO is a workspace.
    Run it again when it was stopped: it goes on. The server's key is QDRANT_API_KEY.
    """
    show_summary(workspace.copy(into, **where), as_json)


COMMANDS = (adopt, copy)
