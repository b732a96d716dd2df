"""What a setting may be, from what a flag, a variable or TOML holds; a ValueError says what it must be."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gmv_qdrant.errors import SettingsError, did_you_mean


def text(value: Any) -> str:
    found = str(value)
    if (
        not isinstance(value, str | Path)
        or "\x00" in found
        or found.encode(errors="ignore").decode() != found
    ):
        raise ValueError("text in UTF-8")
    return found


def path(value: Any) -> Path:
    return Path(text(value)).expanduser()


def flag(value: Any) -> bool:
    word = str(value).lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise ValueError("true or false")


def integer(low: int, high: int | None = None) -> Callable[[Any], int]:
    allowed = f"a whole number from {low}" + (f" to {high}" if high is not None else "")

    def parse(value: Any) -> int:
        if isinstance(value, bool) or not re.fullmatch(r"[+-]?[0-9]{1,18}", str(value).strip()):
            raise ValueError(allowed)
        number = int(str(value))
        if number < low or (high is not None and number > high):
            raise ValueError(allowed)
        return number

    return parse


def number(high: float = math.inf) -> Callable[[Any], float]:
    def parse(value: Any) -> float:
        try:
            found = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError):
            found = math.nan
        if not 0 < found <= high or math.isinf(found):
            raise ValueError("a number above 0" + (f", at most {high:g}" if high < math.inf else ""))
        return found

    return parse


def one_of(*names: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in names:
            raise ValueError(f"one of {', '.join(names)}{did_you_mean(str(value), names)}")
        return str(value)

    return parse


def collection(value: Any) -> str:
    if not re.fullmatch(r"[^/\\\x00<>:\"|?*]{1,255}", text(value)):
        raise ValueError('a name of 1 to 255 characters without any of / \\ < > : " | ? *')
    return str(value)


def server(value: Any) -> str | None:
    """The URL is kept in the workspace and shown, so nothing secret may be in it."""
    if "@" in text(value) or "?" in str(value):
        raise SettingsError(
            "the URL of the Qdrant server carries a user, a password or a query, and it would be kept in the "
            "workspace: give its bare address, and the API key as QDRANT_API_KEY"
        )
    return str(value) or None  # empty: the embedded store, whatever QDRANT_URL says


def places(value: Any) -> tuple[str, ...]:
    """Folders, absolute, and how URLs begin; as text, on lines of their own."""
    if isinstance(value, str):
        value = value.splitlines()
    if not isinstance(value, list | tuple) or not all(isinstance(place, str) for place in value):
        raise ValueError('a list of folders and of how URLs begin, such as ["/data", "s3://bucket/"]')
    return tuple(
        place if "://" in place else os.path.abspath(os.path.expanduser(place)) for place in map(text, value)
    )


def point_filter(value: Any) -> dict[str, Any]:
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError('a filter, such as {"must": [{"key": "customer", "match": {"value": "a"}}]}')
    return dict(found)


class Secret:
    """A text that nothing shows: only ``get_secret_value()`` gives it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def get_secret_value(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret('**********')"


def secret(value: Any) -> Secret:
    return value if isinstance(value, Secret) else Secret(text(value))
