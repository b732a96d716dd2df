"""Arrow columns as Python values, one bad cell at a time, and what the hub's own writer left in a schema about them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gmv_qdrant.errors import first_line
from gmv_qdrant.images.descriptions import Unreadable


def hub_features(metadata: Mapping[bytes, bytes] | None) -> tuple[dict[str, dict[str, Any]], str]:
    """The hub's types of columns, by name, and what is wrong with them if they can't be used."""
    text = (metadata or {}).get(b"huggingface")
    if text is None:
        return {}, ""
    try:
        features = json.loads(text)["info"]["features"]
        return {str(name): feature for name, feature in features.items() if isinstance(feature, dict)}, ""
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}, "its 'huggingface' metadata is malformed, so classes stay numbers"


def class_names(feature: Mapping[str, Any] | None) -> list[str] | None:
    """Of a ClassLabel, or of a list of them; None of another type."""
    if not feature:
        return None
    if feature.get("_type") in ("List", "LargeList", "Sequence") and isinstance(feature.get("feature"), dict):
        feature = feature["feature"]
    names = feature.get("names")
    if feature.get("_type") != "ClassLabel" or not isinstance(names, list):
        return None
    return [str(name) for name in names]


def classes_of(features: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """The names behind the numbers of a column, by column."""
    found = {name: class_names(feature) for name, feature in features.items()}
    return {name: names for name, names in found.items() if names is not None}


def values(column: Any, classes: list[str] | None = None) -> list[object]:
    """A column's values; `Unreadable` in place of one that Python cannot hold (a date after the year 9999)."""
    try:
        found = column.to_pylist()
    except Exception:  # noqa: BLE001 - invalid UTF-8, overflow, half a dozen more
        found = [_value(cell) for cell in column]
    return found if classes is None else [named(value, classes) for value in found]


def _value(cell: Any) -> object:
    try:
        return cell.as_py()
    except Exception as error:  # noqa: BLE001 - as above
        try:
            return str(cell.cast("string").as_py())
        except Exception:  # noqa: BLE001 - as above
            return Unreadable(first_line(error)[:200])


def named(value: object, classes: list[str] | None) -> object:
    """A class number, or a list of them, as names."""
    if classes is None:
        return value
    if isinstance(value, list):
        return [named(item, classes) for item in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return classes[value] if 0 <= value < len(classes) else None  # -1 is the hub's "no label"
    return value
