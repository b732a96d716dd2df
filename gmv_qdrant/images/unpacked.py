"""A compressed file's content, read forwards and within a budget."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from collections.abc import Callable
from typing import Any, BinaryIO

from gmv_qdrant.errors import ImageError
from gmv_qdrant.images import limits


def _by_arrow(kind: str) -> Callable[[BinaryIO], Any]:
    def opened(file: BinaryIO) -> Any:
        import pyarrow as pa

        return pa.CompressedInputStream(pa.PythonFile(file, "r"), kind)

    return opened


_OPENERS: tuple[tuple[bytes, Callable[[BinaryIO], Any]], ...] = (
    (b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file)),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\0", lzma.LZMAFile),
    (b"\x28\xb5\x2f\xfd", _by_arrow("zstd")),
    (b"\x04\x22\x4d\x18", _by_arrow("lz4")),
)


def is_compressed(head: bytes) -> bool:
    return any(head.startswith(start) for start, _ in _OPENERS)


class Unpacked:
    """A seekable file of what another unpacks to; a step back begins anew.

    Reading raises `ImageError` beyond the budget, and whatever the decompressor raises for damage.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._limit = limits.unpacked_limit(os.path.getsize(path))
        self._file: BinaryIO | None = None
        self._begin()

    def read(self, size: int) -> bytes:
        parts = []
        while size > 0 and (part := self._stream.read(min(size, limits.MIB))):
            self._at += len(part)
            size -= len(part)
            if self._at > self._limit:
                raise ImageError(
                    f"it unpacks to more than {limits.size_of(self._limit)}, as no images do: unpack it yourself if "
                    "you trust it",
                    kind="bomb",
                )
            parts.append(part)
        return b"".join(parts)

    def seek(self, place: int) -> None:
        if place < self._at:
            self._begin()
        while self._at < place and self.read(min(place - self._at, limits.MIB)):
            pass

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _begin(self) -> None:
        self.close()
        self._file = open(self._path, "rb")  # noqa: SIM115 - `close` closes it
        head = self._file.read(8)
        self._file.seek(0)
        self._stream = next(opener for start, opener in _OPENERS if head.startswith(start))(self._file)
        self._at = 0
