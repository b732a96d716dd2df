"""Rows as files that people open: CSV that no spreadsheet takes for formulas, and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gmv_qdrant.errors import SettingsError
from gmv_qdrant.files import write_atomically
from gmv_qdrant.text import harmless_cell


def write_sheet(rows: Sequence[Mapping[str, Any]], target: Path) -> Path:
    """Write rows as ``.csv`` or ``.json``, whole or not at all. Raises `SettingsError` for another suffix."""
    suffix = target.suffix.lower()
    if suffix not in (".csv", ".json"):
        raise SettingsError(f"this is written as .csv or .json, and {target.name!r} is neither")
    text = csv_text(rows) if suffix == ".csv" else json.dumps(list(rows), indent=2) + "\n"
    try:
        write_atomically(target, text)
    except OSError as error:
        raise SettingsError(f"{target} can't be written: {error.strerror}") from error
    return target


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """UTF-8 CSV with a header; texts that a spreadsheet would take for a formula begin with an apostrophe."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {name: harmless_cell(value) if isinstance(value, str) else value for name, value in row.items()}
        )
    return text.getvalue()
