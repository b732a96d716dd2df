"""Small things that pages show as text: cells of SQL results, and words where a picture can't be."""

from __future__ import annotations

from html import escape
from typing import Any

import pyarrow as pa


def columns(table: pa.Table) -> list[tuple[str, bool]]:
    """Name, and whether it holds numbers."""
    numeric = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    return [(field.name, any(test(field.type) for test in numeric)) for field in table.schema]


def rows(table: pa.Table) -> list[list[str]]:
    found = [[_cell(value) for value in column.to_pylist()] for column in table.columns]
    return [list(row) for row in zip(*found, strict=True)]


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 400 else text[:400] + "…"


def placeholder(reason: str) -> str:
    """A picture of words, for an image that can't be shown."""
    words, lines = reason.split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) > 20:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()[:24]
    text = "".join(f'<tspan x="60" dy="14">{escape(line)}</tspan>' for line in lines[:7])
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 120 120"><rect width="120" height="120" fill="#e8e4da"/>'
        f'<text y="8" font-family="sans-serif" font-size="10" text-anchor="middle" fill="#4a463e">{text}</text></svg>'
    )
