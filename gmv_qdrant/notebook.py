"""What a notebook shows: a workspace and the tables that it answers with, as HTML."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from html import escape
from typing import Any

ROWS = 20
"""Rows of a table that are shown."""


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], found: int | None = None) -> str:
    """Rows as an HTML table; ``found``: of how many they are the first."""
    from gmv_qdrant.cli.render import cell

    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell(value))}</td>" for value in row) + "</tr>" for row in rows
    )
    more = f"<p>the first {len(rows):,} rows</p>" if found is not None and found > len(rows) else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def relation(found: Any) -> str:
    """A relation's first rows; it isn't used up by being shown."""
    rows = found.limit(ROWS + 1).fetchall()
    return table(found.columns, rows[:ROWS], len(rows))


def workspace(path: str, counts: dict[str, dict[str, Any]]) -> str:
    rows = [
        [section, name.replace("_", " "), value]
        for section, held in counts.items()
        for name, value in held.items()
    ]
    return f"<p><b>{escape(path)}</b></p>" + table(["", "", ""], rows)


def register() -> None:
    """Show relations as tables in the notebook that this runs in, if it runs in one."""
    interactive = sys.modules.get("IPython")
    shell = interactive.get_ipython() if interactive is not None else None
    if shell is None:
        return
    import duckdb

    shell.display_formatter.formatters["text/html"].for_type(duckdb.DuckDBPyRelation, relation)
