"""What people and programs see: tables and JSON on stdout; progress and messages on stderr."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from gmv_qdrant.workspace import Relation

err = Console(stderr=True, highlight=False)
out = Console(highlight=False)

MOST_ROWS = 50
"""Rows of a table on a terminal; ``--json``, ``--top`` and files give all."""


def print_json(document: Any) -> None:
    """One JSON document, and nothing else, on stdout."""
    click.echo(json.dumps(_finite(document), default=str, ensure_ascii=False, allow_nan=False, indent=2))


def _finite(value: Any) -> Any:
    """JSON has no infinity: a radius or a threshold that isn't there becomes null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def rows(relation: Relation) -> list[dict[str, Any]]:
    return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]


def print_rows(
    found: Sequence[dict[str, Any]], columns: Sequence[str], *, title: str = "", most: int = MOST_ROWS
) -> None:
    """A table on stdout; on a terminal, long ones are cut and say so."""
    table = Table(title=title or None, title_justify="left")
    shown = found if not sys.stdout.isatty() else found[:most]
    for column in columns:
        numeric = all(isinstance(row[column], int | float) or row[column] is None for row in shown)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in shown:
        table.add_row(*(Text(cell(row[column])) for column in columns))
    console = out if sys.stdout.isatty() else Console(width=200, highlight=False)
    console.print(table)
    if len(shown) < len(found):
        err.print(f"{len(found) - len(shown)} more rows: use --top, --json or export")


def cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.4f}" if abs(value) >= 0.0001 or value == 0 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def note(message: str) -> None:
    """A message for people, on stderr."""
    err.print(message, markup=False, soft_wrap=True)


def print_summary(summary: dict[str, Any]) -> None:
    """What a run did, in one line; its slowest phases in another."""
    seconds = dict(summary.get("seconds", {}))
    total = seconds.pop("total", 0.0)
    counts = ", ".join(
        f"{value:,} {name.replace('_', ' ')}"
        if isinstance(value, int)
        else f"{name.replace('_', ' ')} {value:.2g}"
        for name, value in summary.items()
        if name not in ("verb", "seconds") and value
    )
    note(f"{summary['verb']}: {counts or 'nothing to do'} in {total:.1f} s")
    if phases := sorted(seconds.items(), key=lambda item: -item[1])[:6]:
        note("  " + ", ".join(f"{name} {spent:.1f} s" for name, spent in phases if spent >= 0.05))
    if summary.get("quarantined"):
        note('  what was wrong: gmv-qdrant sql "SELECT uri, reason FROM quarantine"')


class Bars:
    """Progress bars with rate and time left, on stderr; silent where stderr is no terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: Any = None
        self._file = ""

    def phase(self, name: str, total: int | None) -> None:
        if self._task is not None:
            self._progress.update(self._task, visible=False)
        self._task = self._progress.add_task(name, total=total)

    def download(self, name: str, done: int, total: int | None) -> None:
        """Bytes of a file so far; a file of another name begins another bar."""
        if name != self._file:
            self._file = name
            self.phase(name, total)
        self._progress.update(self._task, completed=done, total=total)

    def advance(self, items: int = 1) -> None:
        if self._task is not None:
            self._progress.update(self._task, advance=items)

    def note(self, sentence: str) -> None:
        note(sentence)


class _Rate(TextColumn):
    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Any) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="progress.data.speed")


@contextmanager
def bars() -> Iterator[Bars]:
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    ) as progress:
        yield Bars(progress)
