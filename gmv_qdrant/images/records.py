"""What a source yields: a record for each image, or an `Unusable` for what it names but cannot give."""

from __future__ import annotations

import hashlib
import os
import stat
import uuid
from dataclasses import dataclass, field

from gmv_qdrant.errors import ImageError
from gmv_qdrant.images import limits
from gmv_qdrant.images.names import printable

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


def read_file(path: str, limit: int = limits.FILE_BYTES, *, most: int | None = None) -> bytes:
    """The bytes of a regular file; only the first ``most`` of them when given.

    Raises `ImageError` when it cannot be read, is no regular file (a pipe would be waited for, for ever), or has more
    than ``limit`` bytes.
    """
    try:
        _require_regular(path, os.stat(path))
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            status = os.fstat(handle)
            _require_regular(path, status)  # it may be another one by now
            with open(handle, "rb", closefd=False) as file:
                if most is not None:
                    return file.read(most)
                if status.st_size > limit:
                    raise ImageError(too_large(status.st_size, limit), kind="too-large")
                return file.read(limit)
        finally:
            os.close(handle)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{printable(path)} cannot be read: {reason}.", kind="unreadable") from error


def _require_regular(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{printable(path)} is {irregular(status.st_mode)}.", kind="not-a-file")


def too_large(size: int, limit: int = limits.FILE_BYTES) -> str:
    return f"too large: {limits.size_of(size)}, the limit is {limits.size_of(limit)}"


def irregular(mode: int) -> str:
    """What a file that isn't regular is."""
    kinds = {
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
    }
    return f"{kinds.get(stat.S_IFMT(mode), 'a folder or the like')}, not a regular file"


def content_hash(data: bytes) -> str:
    """SHA-256 of an image file's bytes, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def point_id(content_hash: str) -> uuid.UUID:
    """The Qdrant point id of a content hash: the same content has the same id on every machine."""
    return uuid.uuid5(NAMESPACE, content_hash)
