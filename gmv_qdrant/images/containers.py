"""Files that hold many images: which they are, and how to stream them."""

from __future__ import annotations

from collections.abc import Iterator

from gmv_qdrant.errors import ImageError
from gmv_qdrant.images.archives import TAR_SUFFIXES, archive_stream, read_member
from gmv_qdrant.images.records import Record, Unusable
from gmv_qdrant.images.tables import parquet_rows, parquet_stream, read_parquet_row


def is_container(name: str) -> bool:
    """Whether a file of this name is a table or an archive of images."""
    return name.lower().endswith((".parquet", ".zip", *TAR_SUFFIXES))


def container_stream(path: str, owner: str | None) -> Iterator[Record | Unusable]:
    """The images in a table or an archive. Raises `SourceError` when it cannot be read or holds none."""
    return parquet_stream(path, owner) if _is_parquet(path) else archive_stream(path, owner)


def container_count(path: str) -> int | None:
    """How many images the container holds, where its directory tells; None where only reading it would."""
    return parquet_rows(path) if _is_parquet(path) else None


def read_part(path: str, part: str) -> bytes:
    """The bytes of ``path#part``: a row of a table, a member of an archive. Raises `ImageError`."""
    if not _is_parquet(path):
        return read_member(path, part)
    if not part.isdecimal():
        raise ImageError(f"{path}#{part} names no row: after # comes a number.")
    return read_parquet_row(path, int(part))


def _is_parquet(path: str) -> bool:
    return path.lower().endswith(".parquet")
