"""Names that others gave, made harmless where they are shown."""

from __future__ import annotations

import hashlib
import re
import unicodedata

_CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""What moves the cursor, starts an escape sequence, or turns the direction of writing; and no characters at all."""


def printable(text: str, keep: str = "") -> str:
    """Text that a terminal shows and doesn't obey: control characters as ``\\x1b``, but for those in ``keep``."""
    return _CONTROL.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), text)


def _escaped(character: str) -> str:
    number = ord(character)
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"


_BLANK = " \\t\\r\\n\\v\\f\u00a0\u1680\u2000-\u200f\u2028\u2029\u202f\u205f\u2060\u3000\ufeff\"'`´‘’“”"
FORMULA = rf"^([\t\r\n]|[{_BLANK}]*[=+\-@＝＋－＠])"
"""What a spreadsheet executes, also behind blanks and quotes; in words that Python and DuckDB both understand."""
NUMBER = r"^[+-]?[0-9][0-9.,]*([eE][+-]?[0-9]+)?$"


def harmless_cell(text: str) -> str:
    """Text for a cell of a CSV that people open in a spreadsheet: it can't become a formula."""
    return f"'{text}" if re.match(FORMULA, text) and not re.match(NUMBER, text) else text


def width(text: str) -> int:
    """Columns that a terminal takes for printable text."""
    if text.isascii():
        return len(text)
    return sum(
        0
        if unicodedata.combining(one) or unicodedata.category(one) in ("Mn", "Me", "Cf")
        else 2
        if unicodedata.east_asian_width(one) in "WF"
        else 1
        for one in text
    )


def shortened(text: str, columns: int, sign: str = "…") -> str:
    """At most so many columns; what is left out is taken from the middle, so that a path keeps its file name."""
    if width(text) <= columns:
        return text
    room = max(columns - width(sign), 0)
    head, tail = "", ""
    for one in text:
        if width(head + one) > room // 3:
            break
        head += one
    for one in reversed(text):
        if width(head + one + tail) > room:
            break
        tail = one + tail
    return head + sign + tail


def digest(*facts: object) -> str:
    """A short text that is another one when any of the facts is."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
