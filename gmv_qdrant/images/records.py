"""What a source yields: a record for each image, or an `Unusable` for what it names but cannot give."""

from __future__ import annotations

import datetime
import hashlib
import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gmv_qdrant.errors import ImageError

NAMESPACE = uuid.UUID("42a89fbf-b577-594c-be45-4bf7460b1188")
"""UUIDv5 of ``gmv-qdrant`` among URLs: the namespace of all point ids.

Changing it orphans every collection ever filled."""


@dataclass(frozen=True, slots=True)
class Record:
    """One image as a source gives it: where it is, who owns it, what is known about it."""

    uri: str
    """A local path, ``/abs/file.parquet#17``, ``/abs/file.tar#name.png`` or ``hf://NAME:SPLIT#17``."""
    owners: tuple[str, ...] = ()
    """Whoever owns it, each once; several share. Empty: nobody is named."""
    label: str | None = None
    licence: str | None = None
    attributes: dict[str, object] = field(default_factory=dict)
    """Every other metadata column that has a value; JSON-able."""
    size: int | None = None
    """Bytes; of local files only."""
    mtime_ns: int | None = None
    """Modification time; of local files only. With ``size``, it lets ingest skip a file it has seen."""
    data: bytes | None = field(default=None, repr=False)
    """The image's bytes where the source has them in hand (tables, archives); None for local files."""

    def read(self) -> bytes:
        """The image file's bytes, undecoded. Raises `ImageError` when they cannot be read."""
        return self.data if self.data is not None else read_file(self.uri)


@dataclass(frozen=True, slots=True)
class Unusable:
    """Something that a source names but cannot give: it becomes a quarantine row."""

    uri: str
    reason: str
    kind: str = "unreadable"
    """One word for reasons of this sort, to count them by."""


def read_file(path: str) -> bytes:
    """The bytes of a local file. Raises `ImageError` when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{printable(path)} cannot be read: {reason}.") from error


def printable(path: str) -> str:
    """A path that can be printed and stored: bytes that aren't UTF-8 are written as ``\\xNN``."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def describe(columns: Mapping[str, object], *, owner: str | None) -> dict[str, Any]:
    """Metadata columns -> the describing fields of a `Record`: owner, label, licence, attributes.

    Empty strings and NaN count as absent; ``owner`` is the default where the columns name none.
    """
    values = {name: value for name, raw in columns.items() if (value := jsonable(raw)) is not None}
    return {
        "owners": tuple(name for name in (text(values.pop("owner", None)) or owner,) if name),
        "label": text(values.pop("label", None)),
        "licence": text(_first(values.pop("licence", None), values.pop("license", None))),
        "attributes": values,
    }


def jsonable(value: object) -> object:
    """A value that JSON can hold; None for what is empty (``""``, NaN) or has no JSON form (bytes)."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return value or None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, bytes | bytearray | memoryview):
        return None
    return str(value)


def text(value: object) -> str | None:
    """A name as text: ``7`` and ``7.0`` are both ``"7"`` (a column with a gap turns integers to floats)."""
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() or None


def _first(*values: object) -> object:
    return next((value for value in values if value is not None), None)


def content_hash(data: bytes) -> str:
    """SHA-256 of an image file's bytes, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def point_id(content_hash: str) -> uuid.UUID:
    """The Qdrant point id of a content hash: the same content has the same id on every machine."""
    return uuid.uuid5(NAMESPACE, content_hash)
