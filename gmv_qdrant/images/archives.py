"""Tar and zip archives, known by their content: what is in them, and the way back to each member.

Ingest and `read_uri` use the same index and the same reader, so a URI leads back to the bytes that were taken in.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
import struct
import threading
import zipfile
from abc import ABC, abstractmethod
from collections import OrderedDict
from dataclasses import dataclass
from typing import BinaryIO

from gmv_qdrant.errors import ImageError, first_line
from gmv_qdrant.images import limits, names
from gmv_qdrant.images.kinds import HEAD, kind_of
from gmv_qdrant.images.records import read_file, too_large
from gmv_qdrant.images.tarball import DamagedTar, Header, read_headers
from gmv_qdrant.images.unpacked import Unpacked, is_compressed

_LINKS = 40
"""From link to link, before a member counts as not there."""


@dataclass(slots=True)
class Entry:
    """A member: ``part`` is what stands after ``#`` in its URI."""

    part: str
    path: str
    """As names are compared, with ``/`` between them."""
    size: int
    place: int
    """Where its bytes begin, which is the order to read members in."""
    link: str = ""
    refused: str = ""
    """Why it can't be read, and below, what kind of reason that is."""
    kind: str = "not-a-file"
    number: int = 1
    """Among those of the same name."""


class Archive(ABC):
    """One archive. Entries can be read from many threads; in order of ``place`` that costs one pass."""

    is_tar = False

    def __init__(self, path: str) -> None:
        self.path = path
        self.version: tuple[object, ...] = ()
        """Of the file, as far as its size and time tell."""
        self.entries: list[Entry] = []
        self.damage = ""
        """Why what follows the last entry is lost, if it is."""
        self.parts: dict[str, Entry] = {}
        self._lock = threading.Lock()

    def __del__(self) -> None:  # whoever still reads has it; when nobody does, its file is closed
        with contextlib.suppress(Exception):
            self.close()

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def _read(self, entry: Entry, size: int) -> bytes:
        """The first ``size`` bytes of a member that is no link."""

    def read(self, entry: Entry, limit: int = limits.FILE_BYTES) -> bytes:
        """A member's bytes. Raises `ImageError`."""
        self.check(entry, limit)
        data = self._guarded(entry, entry.size)
        if len(data) != entry.size:
            raise ImageError(f"the member {entry.part} is cut short", kind="damaged")
        return data

    def head(self, entry: Entry) -> bytes:
        self.check(entry)
        return self._guarded(entry, min(entry.size, HEAD))

    def check(self, entry: Entry, limit: int = limits.FILE_BYTES) -> None:
        """Raises `ImageError` when nothing can be read of it."""
        if entry.refused:
            raise ImageError(entry.refused, kind=entry.kind)
        if entry.size > limit:
            raise ImageError(too_large(entry.size, limit), kind="too-large")

    def entry(self, part: str) -> Entry:
        """Raises `ImageError` when there is none."""
        if part not in self.parts:
            raise ImageError(f"The archive {names.printable(self.path)} has no member {part}.", kind="absent")
        return self.parts[part]

    def _guarded(self, entry: Entry, size: int) -> bytes:
        try:
            with self._lock:
                return self._read(entry, size)
        except ImageError:
            raise
        except Exception as error:
            raise ImageError(
                f"the member {entry.part} is damaged: {first_line(error)}", kind="damaged"
            ) from error

    def _add(self, entry: Entry) -> None:
        """Names come as they are; a name that is there already is told apart by its number."""
        if len(self.entries) >= limits.ARCHIVE_MEMBERS:
            raise ImageError(f"it has more than {limits.ARCHIVE_MEMBERS:,} members", kind="too-large")
        part = entry.part
        while entry.part in self.parts:
            entry.number += 1
            entry.part = f"{part}#{entry.number}"
        self.parts[entry.part] = entry
        self.entries.append(entry)

    def _follow_links(self) -> None:
        """A link within the archive is the member that it leads to; any other can't be read."""
        by_path: dict[str, Entry] = {}
        for entry in self.entries:
            if not entry.link or entry.path not in by_path:
                by_path[entry.path] = entry
        for entry in self.entries:
            if entry.link and (target := _target(entry, by_path)) is not None:
                entry.place, entry.size, entry.link = target.place, target.size, ""
                entry.refused, entry.kind = target.refused, target.kind
        for entry in self.entries:
            if entry.link:
                entry.refused, entry.kind = f"a link to {entry.link}, which isn't in the archive", "link"


def _target(entry: Entry, by_path: dict[str, Entry]) -> Entry | None:
    """The member that a link leads to at last."""
    for _ in range(_LINKS):
        if not entry.link:
            return entry
        outside = entry.link.startswith("..")
        following = None if outside else by_path.get(names.key(entry.link))
        if following is None or following is entry:
            return None
        entry = following
    return None


class Tar(Archive):
    is_tar = True

    def __init__(self, path: str, size: int, head: bytes) -> None:
        super().__init__(path)
        self._file: BinaryIO | Unpacked = (
            Unpacked(path) if is_compressed(head) else open(path, "rb")  # noqa: SIM115 - `close` closes it
        )
        self._kept: dict[int, bytes] = {}
        self._remembered = 0
        try:
            for header in read_headers(self._file):
                entry = _entry(header)
                if isinstance(self._file, Unpacked):
                    self._keep(header, self._file)
                elif header.place + header.size > size:
                    entry.refused, entry.kind = f"the member {entry.part} is cut short", "damaged"
                self._add(entry)
        except (DamagedTar, ImageError) as error:
            self._lost(str(error), getattr(error, "kind", "archive"))
        except Exception as error:  # noqa: BLE001 - each decompressor has its own for damage
            self._lost(first_line(error), "archive")
        if self.entries and self.entries[-1].kind == "damaged":
            self._lost("it ends within a member", "archive")
        self._follow_links()

    def _keep(self, header: Header, file: Unpacked) -> None:
        """Descriptions are remembered where going back to them would unpack everything again."""
        if not _describes(header.name) or header.size > limits.SIDECAR_BYTES or header.refused:
            return
        self._remembered += header.size
        if self._remembered > limits.DIRECTORY_BYTES:
            raise ImageError("it has too many descriptions for a compressed archive: unpack it")
        self._kept[header.place] = file.read(header.size)

    def close(self) -> None:
        self._file.close()

    def _lost(self, reason: str, kind: str) -> None:
        if not self.entries:
            raise ImageError(f"this archive can't be read: {reason}", kind=kind)
        self.damage = (
            f"the archive is damaged, and what follows {self.entries[-1].part} in it is lost: {reason}"
        )

    def _read(self, entry: Entry, size: int) -> bytes:
        if entry.place in self._kept:
            return self._kept[entry.place][:size]
        self._file.seek(entry.place)
        return self._file.read(size)


def _entry(header: Header) -> Entry:
    link = header.link
    if header.is_symbolic and not link.startswith("/"):
        link = posixpath.normpath(posixpath.join(posixpath.dirname(header.name), link))
    found = Entry(names.printable(header.name), names.key(header.name), header.size, header.place, link)
    found.refused = header.refused
    return found


class Zip(Archive):
    def __init__(self, path: str) -> None:
        super().__init__(path)
        with open(path, "rb") as file:
            _check_directory(file)
        self._zip = zipfile.ZipFile(path)
        self._infos = self._zip.infolist()
        for number, info in sorted(enumerate(self._infos), key=lambda numbered: numbered[1].header_offset):
            name = _zip_name(info)
            if name.endswith(("/", "\\")):
                continue
            entry = Entry(names.printable(name), names.key(name), info.file_size, number)
            mode = stat.S_IFMT(info.external_attr >> 16)
            packed_limit = limits.unpacked_limit(info.compress_size)
            if info.flag_bits & 1:
                entry.refused, entry.kind = "it is encrypted, which isn't read", "encrypted"
            elif info.file_size > packed_limit:
                entry.kind = "bomb"
                entry.refused = f"it unpacks to {limits.size_of(info.file_size)}, as no image does"
            elif mode == stat.S_IFLNK:
                target = self._guarded(entry, min(info.file_size, 4096)).decode(errors="replace")
                entry.link = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
            elif mode not in (0, stat.S_IFREG):
                entry.refused = "not a regular file"
            self._add(entry)
        self._follow_links()

    def close(self) -> None:
        self._zip.close()

    def _read(self, entry: Entry, size: int) -> bytes:
        with self._zip.open(self._infos[entry.place]) as file:
            return file.read(size)  # to the end, that compares the checksum


_OPEN: OrderedDict[tuple[str, int, int], Archive] = OrderedDict()
_MOST_OPEN = 4
_opening = threading.Lock()


def open_archive(path: str) -> Archive:
    """The archive at ``path``, indexed; the last few stay open. Raises `ImageError` when it can't be read at all."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise ImageError(f"{names.printable(path)} cannot be read: {error}", kind="unreadable") from error
    version = (path, status.st_size, status.st_mtime_ns)
    with _opening:
        if version not in _OPEN:
            _OPEN[version] = _opened(path, status.st_size)
            _OPEN[version].version = version
            while len(_OPEN) > _MOST_OPEN:
                _OPEN.popitem(last=False)
        _OPEN.move_to_end(version)
        return _OPEN[version]


def _opened(path: str, size: int) -> Archive:
    head = read_file(path, most=HEAD)
    kind = kind_of(head)
    if kind is not None and kind.name not in ("tar", "zip"):
        raise ImageError(kind.reason or f"it isn't an archive, but of the kind {kind.name}", kind=kind.name)
    try:
        if kind is not None and kind.name == "tar":
            return Tar(path, size, head)
        if zipfile.is_zipfile(path):
            return Zip(path)
        raise ImageError("it is neither a tar nor a zip, or is damaged at its start or end", kind="archive")
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(
            f"this archive can't be read: {first_line(error)}; is it complete?", kind="archive"
        ) from error


def _check_directory(file: BinaryIO) -> None:
    """Refuse a zip whose directory alone would fill the memory."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 65_557))
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    directory = struct.unpack("<L", tail[at + 12 : at + 16])[0] if 0 <= at <= len(tail) - 16 else 0
    at64 = tail.rfind(b"PK\6\6")
    if directory == 0xFFFFFFFF and 0 <= at64 <= len(tail) - 48:
        directory = struct.unpack("<Q", tail[at64 + 40 : at64 + 48])[0]
    if directory > limits.DIRECTORY_BYTES:
        raise ImageError(f"its directory has {limits.size_of(directory)}", kind="too-large")


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Many programs write UTF-8 without saying so, which is then read as the letters of DOS."""
    if info.flag_bits & 0x800:
        return info.filename
    try:
        return info.filename.encode("cp437").decode()
    except UnicodeError:
        return info.filename


def _describes(name: str) -> bool:
    base = posixpath.basename(name.replace("\\", "/"))
    return names.suffix(base) in names.SIDECAR_SUFFIXES or names.is_table(base)
