"""What people and programs see: answers on stdout, progress and messages on stderr."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gmv_qdrant.errors import GmvError
from gmv_qdrant.text import harmless_cell, printable, shortened, width

if TYPE_CHECKING:
    from gmv_qdrant.workspace import Relation

MOST_ROWS = 50
"""Rows of a table on a terminal; other forms, ``--top`` and files give all."""
_NARROWEST = 12
"""Columns that a text is shortened to, before columns are left out."""


class OutputError(GmvError):
    """Standard output can't be written: it is closed, or its disk is full."""


# -- streams -----------------------------------------------------------------------------------------


def write(content: str | bytes) -> None:
    """On stdout, at once. Raises `OutputError` where that can't be; who stops reading is no error of ours."""
    if sys.stdout is None:
        raise OutputError("standard output is closed, so the answer has nowhere to go")
    try:
        if isinstance(content, bytes):
            sys.stdout.buffer.write(content)
        else:
            sys.stdout.write(content)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:
        forget_stdout()
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise OutputError(f"the answer can't be written to standard output: {reason}") from None


class _Messages:
    """Whether messages are shown: not those for people when ``--quiet``, and nowhere while a bar is drawn."""

    quiet = False
    verbose = False


messages = _Messages()


def flush() -> None:
    """What is left in the buffer of stdout goes out. Raises `OutputError`."""
    if sys.stdout is not None:
        write("")


def forget_stdout() -> None:
    """Nothing more is written to stdout, not even at the end of the program."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def warn(message: str) -> None:
    """A sentence on stderr, also when ``--quiet``."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.write(_wrapped(printable(message, keep="\n")) + "\n")
        sys.stderr.flush()
    except (OSError, ValueError):  # nobody is there to be told
        pass


def _wrapped(message: str) -> str:
    """Broken between words where a terminal would break it anywhere."""
    room = columns_of_terminal()
    if sys.stderr is None or not sys.stderr.isatty() or len(message) < room:
        return message

    def folded(line: str) -> str:  # an indented line is a command to copy, or of a table
        return line if line.startswith(" ") else fold(line, room)

    return "\n".join(map(folded, message.split("\n")))


def fold(text: str, room: int, indent: str = "") -> str:
    """Lines of at most so many columns, where words allow it; those after the first are indented."""
    import textwrap

    return textwrap.fill(text, room, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def note(message: str) -> None:
    """A message for people, on stderr."""
    if not messages.quiet:
        warn(message)


def on_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def columns_of_terminal() -> int:
    return shutil.get_terminal_size((100, 24)).columns


def _speaks(characters: str) -> bool:
    try:
        characters.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


# -- answers -----------------------------------------------------------------------------------------


def rows(relation: Relation) -> list[dict[str, Any]]:
    return [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]


def show(
    found: Sequence[dict[str, Any]] | Relation,
    form: str,
    *,
    columns: Sequence[str] | None = None,
    title: str = "",
    document: Any = None,
    grouped: bool = True,
) -> None:
    """An answer in one of the forms of ``--format``: rows, or a relation of them.

    document: what JSON shows in the place of rows. grouped: thousands apart, in tables for people.
    """
    if form == "parquet":
        _write_parquet(found)
        return
    held = found if isinstance(found, Sequence) else rows(found)
    names = list(columns or (found.columns if not isinstance(found, Sequence) else held[0] if held else ()))
    if form == "json":
        print_json(held if document is None else document)
    elif form == "csv":
        write(_csv(held, names))
    elif form == "md":
        write(_markdown(held, names))
    else:
        print_rows(held, names, title=title, grouped=grouped)


def print_json(document: Any) -> None:
    """One JSON document, and nothing else, on stdout; integers of any size are exact, and infinity is null."""
    text = json.dumps(_plain(document), ensure_ascii=not _speaks("é…中"), allow_nan=False, indent=2)
    unseen = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
    write(unseen.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")


def _plain(value: Any) -> Any:
    """As JSON has it: no infinity, no dates, and names of objects are text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(_key(name)): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if isinstance(value, str | int | None):
        return value
    return _worded(value)


def _key(name: Any) -> Any:
    return json.dumps(_plain(name)) if isinstance(name, bool | None) else _worded(name)


def _worded(value: Any) -> Any:
    """Of a value that JSON and CSV have no form for: a number where that is exact, else text."""
    import base64
    import datetime
    from decimal import Decimal

    if isinstance(value, Decimal):
        number = int(value) if value == value.to_integral_value() else float(value)
        return number if value.is_finite() and Decimal(str(number)) == value else str(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return base64.b64encode(value).decode() if isinstance(value, bytes | bytearray) else str(value)


def _csv(found: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    """Every digit, ``true`` and ``false``, lists and structures as JSON; control characters are written out."""
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_csv_cell(name) for name in columns])
    writer.writerows([_csv_cell(row[name]) for name in columns] for row in found)
    return text.getvalue()


def _csv_cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, bool | Mapping | list | tuple):
        return printable(json.dumps(_plain(value), ensure_ascii=False))
    if isinstance(value, int | float):
        return value
    return harmless_cell(printable(str(_worded(value) if not isinstance(value, str) else value), keep="\n\t"))


def _markdown(found: Sequence[dict[str, Any]], columns: Sequence[str]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(text.replace("\\", "\\\\").replace("|", "\\|") for text in cells) + " |\n"

    numeric = _numeric(found, columns)
    rule = "|" + "|".join("---:" if name in numeric else "---" for name in columns) + "|\n"
    return (
        line([printable(name) for name in columns])
        + rule
        + "".join(line([cell(row[name]) for name in columns]) for row in found)
    )


def _write_parquet(found: Sequence[dict[str, Any]] | Relation) -> None:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    if on_terminal():
        raise OutputError("Parquet isn't for the eye: send it to a file, with '> answer.parquet'")
    table = pa.Table.from_pylist(list(found)) if isinstance(found, Sequence) else found.to_arrow_table()
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    write(buffer.getvalue())


# -- tables for people -------------------------------------------------------------------------------


def print_rows(
    found: Sequence[dict[str, Any]],
    columns: Sequence[str],
    *,
    title: str = "",
    most: int = MOST_ROWS,
    grouped: bool = True,
) -> None:
    """A table on stdout. Texts are shortened and columns left out where the terminal is narrow, numbers never.

    On a terminal long tables are cut; a note says what isn't shown.
    """
    shown = found[:most] if on_terminal() else found
    numeric = _numeric(shown, columns)
    cells = {name: [cell(row[name], grouped=grouped) for row in shown] for name in columns}
    for name in numeric:
        cells[name] = _points_aligned(cells[name])
    widths = {name: max(map(width, [printable(name), *cells[name]])) for name in columns}
    room = columns_of_terminal() if on_terminal() else sys.maxsize
    empty = {name for name in columns if all(row[name] is None for row in shown)}
    kept = _fitted(list(columns), widths, numeric, empty, room)
    sign, bar = ("…", "─") if _speaks("…─–") else ("~", "-")
    lines = [shortened(printable(title), room, sign)] if title else []
    lines.append("  ".join(_aligned(printable(name), widths[name], name in numeric, sign) for name in kept))
    lines.append("  ".join(bar * widths[name] for name in kept))
    for row in range(len(shown)):
        parts = [_aligned(cells[name][row], widths[name], name in numeric, sign) for name in kept]
        lines.append("  ".join(parts))
    write("\n".join(line.rstrip() for line in lines) + "\n")
    if left_out := [name for name in columns if name not in kept]:
        note(f"left out: {', '.join(left_out)} (a wider terminal, --format csv or --json shows them)")
    if len(shown) < len(found):
        note(f"{len(found) - len(shown):,} more rows: --top, --format csv or --json shows them")


def _fitted(
    columns: list[str], widths: dict[str, int], numeric: set[str], empty: set[str], room: int
) -> list[str]:
    """The columns that are shown; how wide texts are is set in ``widths``.

    Empty columns go first, then texts give way, and then the columns on the right go.
    """
    while sum(widths[name] + 2 for name in columns) - 2 > room and len(columns) > 1:
        narrowest = {
            name: widths[name] if name in numeric else min(widths[name], _NARROWEST) for name in columns
        }
        if gone := [name for name in columns if name in empty]:
            columns.remove(gone[-1])
        elif sum(narrowest.values()) + 2 * (len(columns) - 1) > room:
            columns.pop()
        else:
            widest = max((name for name in columns if name not in numeric), key=lambda name: widths[name])
            widths[widest] -= 1
    return columns


_AMOUNT = re.compile(r"-?[0-9]{1,18}(\.[0-9]+)?")


def _numeric(found: Sequence[dict[str, Any]], columns: Sequence[str]) -> set[str]:
    """Columns of numbers, amounts of money (texts, so that no cent is lost) among them."""
    from decimal import Decimal

    def number(value: Any) -> bool:
        return isinstance(value, int | float | Decimal | None) or (
            isinstance(value, str) and _AMOUNT.fullmatch(value) is not None
        )

    return {name for name in columns if all(number(row[name]) for row in found)}


def _points_aligned(cells: list[str]) -> list[str]:
    """Numbers of a column, padded on the right so that their decimal points stand under each other."""
    behind = [len(text) - text.find(".") if "." in text else 0 for text in cells]
    return [text + " " * (max(behind) - own) for text, own in zip(cells, behind, strict=True)]


def _aligned(text: str, columns: int, right: bool, sign: str) -> str:
    text = text if right else shortened(text, columns, sign)
    space = " " * max(columns - width(text), 0)
    return space + text if right else text + space


def cell(value: Any, *, grouped: bool = True) -> str:
    """A value for people: four decimals, or as many digits as a small number has."""
    if value is None:
        return "–" if _speaks("–") else "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        comma = "," if grouped else ""
        return format(value, f"{comma}.4f" if abs(value) >= 0.1 or value == 0 else ".4g")
    if isinstance(value, int):
        return f"{value:,}" if grouped else str(value)
    if isinstance(value, Mapping | list | tuple):
        return printable(json.dumps(_plain(value), ensure_ascii=False))
    return printable(str(value))


def changes_told(summary: dict[str, Any], most: int = 5) -> list[str]:
    """Sentences on sources that name another owner, licence or label than before."""
    changes = summary.get("changes", [])
    if not changes:
        return []
    shown = [
        f"{change['field']} of {change['sources']:,} from {change['before'] or 'none'} to {change['after'] or 'none'}"
        for change in changes[:most]
    ]
    what = "; ".join([*shown, *([f"{len(changes) - most:,} more"] if changes[most:] else [])])
    if summary.get("not_reassigned"):
        return [f"  not changed: {what}; these sources stay as they were, and --reassign changes them"]
    return [f"  changed: {what}; what was said before stays in source_history"]


def print_summary(summary: dict[str, Any], elapsed: float) -> None:
    """What a run did, in one line; with ``--verbose``, what each phase took."""
    counts = ", ".join(
        f"{value:,} {name.replace('_', ' ')}"
        if isinstance(value, int)
        else f"{name.replace('_', ' ')} {value:.2g}"
        for name, value in summary.items()
        if name not in ("verb", "seconds", "seen", "without_owner")
        and isinstance(value, int | float)
        and value
    )
    note(f"{summary['verb']}: {counts or 'nothing to do'} in {elapsed:.1f} s")
    seconds = {name: spent for name, spent in summary.get("seconds", {}).items() if name != "total"}
    if messages.verbose and seconds:
        ordered = sorted(seconds.items(), key=lambda item: -item[1])
        note("  " + ", ".join(f"{name.replace('_', ' ')} {spent:.2f} s" for name, spent in ordered))
    for line in changes_told(summary):
        note(line)
    if summary.get("quarantined"):
        note('  what was wrong: gmv-qdrant sql "SELECT uri, reason FROM quarantine"')
