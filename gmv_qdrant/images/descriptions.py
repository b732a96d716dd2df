"""What columns say about an image: who owns it, its label and licence, and attributes.

Columns come as ``(name, value)`` pairs, from a row of a table, a sidecar or a Parquet row, so that two columns of one
name are seen. A name is text or a number. A list of names is several names. Anything else is never turned into one.
"""

from __future__ import annotations

import ast
import contextlib
import datetime
import decimal
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from gmv_qdrant.errors import ImageError
from gmv_qdrant.images import limits
from gmv_qdrant.images.allowed import without_credentials

Pairs = Sequence[tuple[str, object]]

EMPTY = frozenset(
    {"nan", "NaN", "NAN", "-nan", "null", "NULL", "None", "NA", "N/A", "n/a", "<NA>", "#N/A", "NaT"}
)
"""What programs write where nothing is; as an owner, a label or a licence it counts as empty. ``Nan`` is a person."""

_CANONICAL = {
    "owner": "owner",
    "owners": "owner",
    "label": "label",
    "licence": "licence",
    "license": "licence",
}
_WHOLE = re.compile(r"-?\d+\.0+")
_LARGEST = 1 << 63
_LONGEST = 10**30


@dataclass(frozen=True, slots=True)
class Unreadable:
    """In place of a value that couldn't be had from where it was stored."""

    reason: str


@dataclass(frozen=True, slots=True)
class Description:
    """What is known about one image."""

    owners: tuple[str, ...] = ()
    label: str | None = None
    licence: str | None = None
    attributes: dict[str, object] = field(default_factory=dict)
    has_label: bool = False
    """Whether there was a place for a label: an empty one then counts, and the folder's name doesn't."""
    notes: tuple[str, ...] = ()
    """What was there and isn't used."""


def describe(pairs: Pairs, whole: frozenset[str] = frozenset()) -> Description:
    """Columns -> description. Empty strings and NaN count as absent.

    whole: canonical names of columns (``owner``) that hold ``101.0`` for 101 throughout, as a gap among whole numbers
    makes of them. Raises `ImageError` where a name isn't one: a dict, a flag, two columns that disagree.
    """
    named: dict[str, list[object]] = {"owner": [], "label": [], "licence": []}
    attributes: dict[str, object] = {}
    notes: list[str] = []
    for name, value in pairs:
        if isinstance(value, Unreadable):
            raise _refused(f"its column {_short(name)} can't be read: {value.reason}")
        if target := canonical(name):
            named[target].append(value)
        elif name.strip() in attributes:
            notes.append(f"of two columns {_short(name)} the first is kept")
        else:
            _add_attribute(attributes, name, value, notes)
    owners = _agreed("owner", named["owner"], whole)
    return Description(
        owners=owners,
        label=_single("label", named["label"], whole, attributes, notes),
        licence=_single("licence", named["licence"], whole, attributes, notes),
        attributes=attributes,
        has_label=bool(named["label"]),
        notes=tuple(notes),
    )


def merged(first: Description, second: Description, which: str) -> Description:
    """Two descriptions of one image; ``which`` says where they stand. Raises `ImageError` when they disagree."""
    for name in ("owners", "label", "licence"):
        one, other = getattr(first, name), getattr(second, name)
        if one and other and one != other:
            raise _refused(
                f"{which} disagree on its {name.removesuffix('s')}: {_listed(one)} and {_listed(other)}"
            )
    return Description(
        owners=first.owners or second.owners,
        label=first.label or second.label,
        licence=first.licence or second.licence,
        attributes=second.attributes | first.attributes,
        has_label=first.has_label or second.has_label,
        notes=first.notes + second.notes,
    )


def canonical(name: str) -> str | None:
    """``owner``, ``label`` or ``licence`` of a column called so, in any case; None of any other."""
    return _CANONICAL.get(name.strip().casefold())


def is_whole(value: object) -> bool:
    """Whether text is a whole number with ``.0`` behind it."""
    return isinstance(value, str) and bool(_WHOLE.fullmatch(value.strip()))


def names_of(value: object) -> tuple[str, ...]:
    """A value as names, each once; none for what is empty. Raises `ImageError` for what is no name."""
    if isinstance(value, str):
        value = _unpacked(value)
    items = list(value) if isinstance(value, list | tuple | set) else [value]
    found = (_name(item) for item in items)
    return tuple(dict.fromkeys(name for name in found if name))


def _agreed(what: str, values: list[object], whole: frozenset[str]) -> tuple[str, ...]:
    """Names that one or more columns of one meaning give; two that differ are refused."""
    found: tuple[str, ...] = ()
    for value in values:
        try:
            names = _named(what, value, whole)
        except ImageError as error:
            raise _refused(f"its {what} is no name: {error}") from None
        if names and found and names != found:
            raise _refused(f"two columns {what} disagree: {_listed(found)} and {_listed(names)}")
        found = found or names
    return found


def _named(what: str, value: object, whole: frozenset[str]) -> tuple[str, ...]:
    text = value.strip() if isinstance(value, str) else ""
    if what == "owner" and text.lower() in ("true", "false"):
        raise ImageError(f"{text} is a flag")
    return names_of(text.partition(".")[0] if what in whole and is_whole(text) else value)


def _single(
    what: str, values: list[object], whole: frozenset[str], attributes: dict[str, object], notes: list[str]
) -> str | None:
    """One name. What is none, or several, is kept as an attribute: it isn't money."""
    try:
        names = _agreed(what, values, whole)
    except ImageError as error:
        if what == "licence" or len(values) > 1:
            raise
        names = ()
        notes.append(f"{str(error).removeprefix('its ')}; it is kept as an attribute")
        _add_attribute(attributes, what, values[0], notes)
    if len(names) > 1:
        notes.append(f"several {what}s of one image are kept as its attribute {what}")
        attributes[what] = list(names)
    return names[0] if len(names) == 1 else None


def _name(item: object) -> str | None:
    if isinstance(item, bytes | bytearray | memoryview):
        try:
            item = bytes(item).decode()
        except UnicodeDecodeError:
            raise ImageError("bytes that aren't text") from None
    if item is None:
        return None
    if isinstance(item, bool):
        raise ImageError(f"{str(item).lower()} is a flag")
    if isinstance(item, str):
        return _clean(item)
    if isinstance(item, int | float | decimal.Decimal):
        return _number(item)
    if isinstance(item, datetime.date | datetime.time):
        return item.isoformat()
    raise ImageError(f"{_short(repr(item))} is {_called(item)}")


def _clean(text: str) -> str | None:
    text = unicodedata.normalize("NFC", text.strip())
    if text in EMPTY:
        return None
    if len(text) > limits.NAME_CHARACTERS:
        raise ImageError(f"{_short(text)} has {len(text):,} characters")
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text):
        raise ImageError(f"{_short(text)} has a line break or another control character in it")
    return text or None


def _number(value: float | decimal.Decimal) -> str | None:
    if isinstance(value, decimal.Decimal):
        value = int(value) if value.is_finite() and value == value.to_integral_value() else float(value)
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if not value.is_integer():
            return str(value) if math.isfinite(value) else _raise("it is infinite")
        value = int(value)
    return str(value) if -_LONGEST < value < _LONGEST else _raise("it is a number of more than 30 digits")


def _raise(reason: str) -> str:
    raise ImageError(reason)


def _unpacked(text: str) -> object:
    """A list or a dict that a cell of a table holds as text: ``["Ada", "Bob"]``; any other text as it is."""
    bare = text.strip()
    if len(bare) > limits.ATTRIBUTE_CHARACTERS or bare[:1] + bare[-1:] not in ("[]", "{}", "()"):
        return text
    for parse in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            return parse(bare) if not bare.startswith("(") or "," in bare else text
    return text


def _add_attribute(attributes: dict[str, object], name: str, value: object, notes: list[str]) -> None:
    try:
        plain = jsonable(value)
        size = len(json.dumps(plain))
    except (RecursionError, ValueError) as error:
        raise _refused(
            f"its column {_short(name)} can't be kept: {error or 'it is nested too deeply'}"
        ) from None
    if plain is None:
        return
    if size > limits.ATTRIBUTE_CHARACTERS:
        notes.append(
            f"{_short(name)} is longer than {limits.ATTRIBUTE_CHARACTERS:,} characters and isn't kept"
        )
        return
    attributes[_encodable(name.strip())] = plain


def jsonable(value: object) -> object:
    """A value that JSON can hold; None for what is empty (``""``, NaN) or has no JSON form (bytes).

    URLs lose the users, passwords and signatures in them. Raises `ValueError` for text that isn't Unicode.
    """
    if isinstance(value, str):
        return without_credentials(_encodable(value)) or None
    if isinstance(value, Mapping):
        return {_encodable(str(key)): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [jsonable(item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return _plain_number(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return None
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else _encodable(str(value))


def _plain_number(value: float | None) -> float | str | None:
    if isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
        return _digits(value)
    return value if value is not None and math.isfinite(value) else None


def _digits(value: int) -> str:
    try:
        return str(value)
    except ValueError:
        raise ValueError("it is a number of thousands of digits") from None


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("it has half a character (a lone surrogate) in it") from None
    return text


def _refused(reason: str) -> ImageError:
    return ImageError(reason, kind="description")


def _called(item: object) -> str:
    if isinstance(item, list | tuple | set):
        return "a list in a list"
    return "a dict" if isinstance(item, Mapping) else f"a {type(item).__name__}"


def _listed(names: str | Iterable[str]) -> str:
    return names if isinstance(names, str) else ", ".join(names)


def _short(text: str, most: int = 60) -> str:
    plain = text.encode("utf-8", "backslashreplace").decode().strip()
    plain = "".join(character if character.isprintable() else "?" for character in plain)
    return plain if len(plain) <= most else plain[: most - 3] + "..."
