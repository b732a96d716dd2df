"""Commands about money: payout (list, show, export), verify, statement, statements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gmv_qdrant.cli.options import answer_options, json_option, with_workspace
from gmv_qdrant.cli.render import note, print_json, show, warn

_new_folder = click.Path(path_type=Path, file_okay=False)


@click.group(invoke_without_command=True)
@click.option("--budget", help="What is shared in all, such as 10000 or 10000.00.")
@click.option("--by", default="owner", show_default=True, help="owner, label, licence or any attribute.")
@click.option(
    "--record", metavar="PERIOD", help="Keep it under this period: 2026-Q1, 2026-03, FIRST/LAST day."
)
@click.option("--batch", multiple=True, help="Only generated images of this batch; can be repeated.")
@click.option("--currency", metavar="CODE", help="ISO 4217, such as EUR, JPY, KWD.")
@click.option("--minimum", help="Who is due less is paid nothing now: it is carried forward.")
@click.option("--exclude", metavar="NAME", multiple=True, help="Pays nothing to this name; can be repeated.")
@click.option("--exclude-unnamed", is_flag=True, help="Pays nothing where no name is known.")
@click.option(
    "--reason", multiple=True, help="Why: once for all exclusions, or once for each, in their order."
)
@click.option("--hold", is_flag=True, help="Keep back what several names claim.")
@click.option("--release", is_flag=True, help="Give back what was held before, to those it was kept from.")
@click.option("--allow-overlap", is_flag=True, help="Record it though the same images were paid by before.")
@click.option("--rule", type=click.Choice(["owner-shapley", "shares"]), help="How credit is divided.")
@click.option("-k", type=click.IntRange(min=1), help="Candidates of a generated image that count.")
@click.option("--temperature", type=click.FloatRange(min=0, min_open=True), help="T in exp(-d/T).")
@click.option("--calibration", help="A value function that 'calibrate' kept: NAME, or NAME@VERSION.")
@click.option("--no-quality", is_flag=True, help="Don't weigh by the generated image's quality.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write to a .csv or .json file.")
@answer_options
@click.pass_context
def payout(ctx: click.Context, /, **options: Any) -> None:
    """Share a budget by credit, exact to the smallest unit. Without --record it is a preview.

    The value function is the workspace's own ([value] in gmv.toml), by default the rule owner-shapley with the
    latest calibration; options change it for once. A recorded payout keeps its evidence, so that it can be
    recomputed by a stranger (export) and checked (verify).
    """
    if ctx.invoked_subcommand is None:
        if options["budget"] is None:
            raise click.UsageError("Give --budget, or one of the commands list, show, export.")
        _pay(**options)


@with_workspace
def _pay(
    workspace: Any,
    exclude: tuple[str, ...],
    exclude_unnamed: bool,
    reason: tuple[str, ...],
    batch: tuple[str, ...],
    no_quality: bool,
    out: Path | None,
    form: str,
    **options: Any,
) -> None:
    names = [*exclude, *([None] if exclude_unnamed else [])]
    if len(reason) not in (0, 1, len(names)):
        raise click.UsageError("Give --reason once, or once for each exclusion.")
    reasons = reason if len(reason) == len(names) else (reason or ("",)) * len(names)
    rows = workspace.payout(
        batch=batch or None,
        exclude=dict(zip(names, reasons, strict=True)),
        quality_weighted=False if no_quality else None,
        **options,
    )
    _show(rows, out, form)
    if options["record"]:
        paid = rows.payout
        note(f"recorded as {paid.payout_id}, fingerprint {paid.fingerprint}")


def _show(rows: Any, out: Path | None, form: str) -> None:
    """The lines of a payout, and what is to be said about it; a table leaves out what is nothing for everybody."""
    terms = rows.payout.terms
    if out:
        from gmv_qdrant.accounting.sheets import write_sheet

        note(f"wrote {write_sheet(rows, out)}")
    if form == "json" or not out:
        title = f"payout of {terms.currency.text(terms.budget)} {terms.currency.code} by {terms.by}"
        show(rows, form, columns=_columns(rows, people=form in ("table", "md")), title=title)
    if rows.said:
        note(rows.said)
    for sentence in rows.payout.notes:
        warn(sentence)


def _columns(rows: Any, *, people: bool) -> list[str]:
    columns = list(rows[0]) if rows else []
    if not people:
        return columns
    nothing = {name for name in columns[2:] if not any(float(row[name]) for row in rows)}
    return [name for name in columns if name not in nothing - {"amount", "paid"} and name != "kind"]


@payout.command("list")
@answer_options
@with_workspace
def list_payouts(workspace: Any, form: str) -> None:
    """The recorded payouts, the oldest first."""
    rows = workspace.payouts()
    people = ["payout", "by", "currency", "budget", "paid", "balance", "held", "fingerprint"]
    show(rows, form, columns=people if form in ("table", "md") else None, title="recorded payouts")
    if not rows:
        note("no payout is recorded yet: gmv-qdrant payout --budget AMOUNT --record PERIOD")


@payout.command("show")
@click.argument("payout_id", metavar="PAYOUT")
@answer_options
@with_workspace
def show_payout(workspace: Any, payout_id: str, form: str) -> None:
    """A recorded payout: its lines; with --json its whole document."""
    rows = workspace.payout_record(payout_id)
    if form == "json":
        print_json(rows.payout.as_dict() | {"fingerprint": rows.payout.fingerprint})
    else:
        _show(rows, None, form)
        note(f"fingerprint {rows.payout.fingerprint}")


@payout.command()
@click.argument("payout_id", metavar="PAYOUT")
@click.argument("directory", type=_new_folder)
@json_option
@with_workspace
def export(workspace: Any, payout_id: str, directory: Path, as_json: bool) -> None:
    """Write what a stranger needs to recompute it: evidence as Parquet, and a manifest."""
    files = workspace.export_payout(payout_id, directory)
    if as_json:
        print_json([str(path) for path in files])
    else:
        note(
            f"wrote {len(files)} files to {directory}: scripts/verify_payout.py recomputes the payout from them"
        )


@click.command()
@click.argument("payout_id", metavar="[PAYOUT]", required=False)
@json_option
@with_workspace
@click.pass_context
def verify(ctx: click.Context, workspace: Any, payout_id: str | None, as_json: bool) -> None:
    """Check every recorded payout, or one: its record, its evidence, its amounts, and what changed since.

    Exit code 1 when something is wrong. That evidence has changed by later runs is said, and isn't wrong.
    """
    found = workspace.verify(payout_id)
    if as_json:
        print_json([one.as_dict() for one in found])
    else:
        for one in found:
            note(str(one))
        if not any(one.wrong for one in found):
            note("every recorded payout is what was recorded, and follows from its evidence")
    if any(one.wrong for one in found):
        ctx.exit(1)


_payout_option = click.option("--payout", metavar="ID", help="A recorded payout.  [default: the latest]")


@click.command()
@click.option("--owner", required=True, metavar="NAME", help="Whose: an owner, or what else was paid by.")
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path, dir_okay=False))
@_payout_option
@with_workspace
def statement(workspace: Any, owner: str, target: Path, payout: str | None) -> None:
    """What an owner earned by a recorded payout, how sure that is, and by which pictures.

    OUT is one self-contained .html file, made to be printed, or a .csv of the images that earned it.
    """
    note(f"wrote {workspace.statement(owner, target, payout=payout)}")


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
@_payout_option
@with_workspace
def statements(workspace: Any, directory: Path, payout: str | None) -> None:
    """The statements of everybody in a recorded payout, as .html and .csv, and statements.csv that lists them."""
    written = workspace.statements(directory, payout=payout)
    note(f"wrote {(len(written) - 1) // 2:,} statements to {directory}")


COMMANDS = (payout, verify, statement, statements)
