"""Commands that write: ingest, value, update, withdraw, erase, check."""

from __future__ import annotations

from typing import Any

import click

from gmv_qdrant.cli.options import (
    Session,
    engine_options,
    run_options,
    selection_of,
    selection_options,
    warn_if_stale,
    with_workspace,
)
from gmv_qdrant.cli.render import messages, note, print_json, print_summary, warn


def show_summary(summary: dict[str, Any], as_json: bool, workspace: Any = None) -> None:
    """What a run did, as JSON or as a sentence; how long it took counts from the start of the program.

    workspace: of a run that reads inputs: with ``--verbose``, those that it put in quarantine are named.
    """
    if as_json:
        print_json(summary)
        return
    session: Session = click.get_current_context().obj
    print_summary(summary, session.elapsed)
    if messages.verbose and workspace is not None and summary.get("quarantined"):
        for row in workspace.published.rows(_QUARANTINED):
            note(f"  {row['uri']}: {row['reason']}")


_QUARANTINED = """
    SELECT uri, reason FROM quarantine
    WHERE run_id = (SELECT run_id FROM runs ORDER BY started_at DESC LIMIT 1) ORDER BY uri LIMIT 50"""


def _require_something(summary: dict[str, Any], taken: tuple[str, ...]) -> None:
    """Nothing taken in is not a success. taken: counts of which one is enough."""
    if not any(summary.get(name) for name in taken):
        bad = summary.get("quarantined", 0)
        why = f"all {bad:,} inputs are in quarantine" if bad else "there was no image"
        warn(f"error: nothing was taken in: {why}")
        click.get_current_context().exit(1)


retry_option = click.option(
    "--retry-quarantined", is_flag=True, help="Only what is in quarantine, as it was asked for then."
)


update_option = click.option(
    "--update/--no-update", default=True, help="Bring all credits up to date at the end.  [default: update]"
)


def _paths_or_retry(paths: tuple[str, ...], retry: bool) -> None:
    if bool(paths) == retry:
        raise click.UsageError("Give PATHS, or --retry-quarantined without any.")


@click.command()
@click.argument("paths", nargs=-1)
@click.option("--owner", help="Owner of images whose metadata names none.")
@click.option("--readmit", is_flag=True, help="Take in images again that were withdrawn.")
@click.option(
    "--reassign", is_flag=True, help="Believe sources that name another owner, licence or label than before."
)
@retry_option
@update_option
@engine_options
@run_options
@with_workspace
def ingest(
    workspace: Any,
    paths: tuple[str, ...],
    owner: str | None,
    readmit: bool,
    reassign: bool,
    retry_quarantined: bool,
    update: bool,
    as_json: bool,
) -> None:
    """Take in training images: folders, files, Parquet, tars, hf://NAME.

    A metadata.csv, .jsonl or .parquet beside the images gives file_name, owner, label, licence and any other
    attribute. What is known already is skipped; what can't be used is quarantined with its reason. A source that
    names another owner, licence or label than before stays as it was, unless you say --reassign.
    """
    _paths_or_retry(paths, retry_quarantined)
    summary = workspace.ingest(
        paths,
        owner=owner,
        readmit=readmit,
        reassign=reassign,
        retry_quarantined=retry_quarantined,
        update=update,
    )
    show_summary(summary, as_json, workspace)
    _require_something(summary, ("new", "sources", "known"))


@click.command()
@click.argument("paths", nargs=-1)
@click.option("--batch", help="A name for this set of images.  [default: default, or control]")
@click.option(
    "--control",
    is_flag=True,
    help="They are known to resemble no training image: they earn no credit, and say how near strangers come.",
)
@retry_option
@engine_options
@run_options
@with_workspace
def value(
    workspace: Any,
    paths: tuple[str, ...],
    batch: str | None,
    control: bool,
    retry_quarantined: bool,
    as_json: bool,
) -> None:
    """Value generated images: find the training images that each one resembles most."""
    _paths_or_retry(paths, retry_quarantined)
    summary = workspace.value(paths, batch=batch, control=control, retry_quarantined=retry_quarantined)
    show_summary(summary, as_json, workspace)
    _require_something(summary, ("valued", "known"))


@click.command()
@run_options
@with_workspace
def update(workspace: Any, as_json: bool) -> None:
    """Make all credits exact again after the training set has changed.

    Only generated images whose candidates can have changed are matched again.
    """
    show_summary(workspace.update(), as_json)


@click.command()
@selection_options
@click.option("--dry-run", is_flag=True, help="Only count what would go.")
@update_option
@run_options
@with_workspace
def withdraw(workspace: Any, dry_run: bool, update: bool, as_json: bool, **options: Any) -> None:
    """Take training images out, and all that follows from them.

    An image that other sources bring, too, stays, and its credit is theirs. What stays of one that goes is its
    hash, so that it isn't taken in again by accident, and the date. erase takes its bytes off the disk, too.
    """
    chosen = selection_of(options)
    if chosen is None:
        raise click.UsageError("Give one of --owner, --uri, --ids and --attribute.")
    summary = workspace.withdraw(
        owner=chosen.owner,
        uri=chosen.uri,
        ids=chosen.ids,
        attribute=chosen.attribute,
        dry_run=dry_run,
        update=update,
    )
    if as_json:
        print_json(summary)
    elif dry_run:
        note(
            f"would withdraw {summary['sources']:,} sources and {summary['images']:,} images, and touch the evidence "
            f"of {summary['affected']:,} generated images"
        )
    else:
        show_summary(summary, as_json)
    if summary.get("unknown_ids"):
        note(f"{summary['unknown_ids']:,} of the ids are no training image: look for spelling mistakes")
    if not dry_run:
        warn_if_stale(workspace)


@click.command()
@run_options
@with_workspace
def erase(workspace: Any, as_json: bool) -> None:
    """Take what was withdrawn off the disk: rewrite the files that keep bytes of it, and search them all.

    Exit code 1, with the names of the files, where a path or a vector of a withdrawn image is still to be found.
    """
    summary = workspace.erase()
    show_summary(summary, as_json)
    if not as_json:
        note(
            f"searched {summary['files_searched']:,} files for {summary.get('traces_searched', 0):,} traces of "
            "withdrawn images: none is there"
        )


@click.command()
@click.option(
    "--read-images", is_flag=True, help="Also the networks, all vectors of the store, and every source."
)
@click.option("--repair", is_flag=True, help="Mend what can be repaired, and say what was done.")
@click.option(
    "--take-over",
    is_flag=True,
    help="This is a copy of a workspace that is gone: its server's collection is this one's from now on.",
)
@run_options
@with_workspace
@click.pass_context
def check(
    ctx: click.Context, workspace: Any, read_images: bool, repair: bool, take_over: bool, as_json: bool
) -> None:
    """Prove that ledger, store and matrices agree, and that the credits add up.

    Exit code 1 when something is wrong (after --repair: when something is left that is wrong).
    """
    findings = workspace.check(read_images=read_images, repair=repair, take_over=take_over)
    if as_json:
        print_json([finding.as_dict() for finding in findings])
    else:
        for finding in findings:
            note(str(finding))
        if not findings:
            note("nothing is wrong")
    if any(not finding.repaired for finding in findings):
        ctx.exit(1)


COMMANDS = (ingest, value, update, withdraw, erase, check)
