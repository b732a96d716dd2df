"""The headers of a tar, read by us: bounded in memory, going on after the end of a tar that others were added to.

`tarfile` stops silently at the first end mark, keeps each header, reads headers of any size into memory, and needs
forty microseconds for one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from gmv_qdrant.images import limits

BLOCK = 512
_REGULAR = b"0\x007"
_KINDS = dict.fromkeys([b"3", b"4"], "a device, not a regular file") | {b"6": "a pipe, not a regular file"}
_ZEROS = bytes(BLOCK)
_END = 2 * limits.MIB
"""Zeros after which nothing more is looked for: tapes were padded by less."""


class Seekable(Protocol):
    """What a tar is read from; seeking may be possible forwards only."""

    def read(self, size: int, /) -> bytes: ...

    def seek(self, place: int, /) -> object: ...


class DamagedTar(Exception):
    """What follows can't be read."""


@dataclass(slots=True)
class Header:
    """One member. ``place`` is where its bytes begin."""

    name: str
    size: int
    place: int
    link: str = ""
    """The member, or the path, that it is a link to."""
    is_symbolic: bool = False
    refused: str = ""
    """What it is that can't be read."""


def read_headers(file: Seekable) -> Iterator[Header]:
    """The members of a tar, folders left out. Raises `DamagedTar` where a header doesn't add up."""
    at, zeros, found = 0, 0, False
    overrides: dict[str, str] = {}
    while (block := _block(file, at, found or bool(zeros))) is not None and zeros <= _END:
        at += BLOCK
        zeros = zeros + BLOCK if block == _ZEROS else 0
        if zeros:
            continue
        kind, size = _checked(block), _number(block[124:136])
        if kind in b"xXgLK":
            overrides |= _overrides(file, kind, size)
            at += _padded(size)
            continue
        if kind == b"S":
            at = _skip_sparse_map(file, block, at)
        header, stored = _member(block, kind, size, at, overrides)
        overrides, found = {}, True
        if header is not None:
            yield header
        at += _padded(stored)


def _block(file: Seekable, at: int, may_end: bool) -> bytes | None:
    file.seek(at)
    block = file.read(BLOCK)
    if len(block) == BLOCK:
        return block
    if block.strip(b"\0") or not may_end:
        raise DamagedTar("it ends within a header")
    return None


def _overrides(file: Seekable, kind: bytes, size: int) -> dict[str, str]:
    """What a header says of the member after it."""
    if size > limits.HEADER_BYTES:
        raise DamagedTar(f"it has a header of {limits.size_of(size)}")
    data = file.read(size)
    if kind == b"g":
        return {}
    return _pax(data) if kind in b"xX" else {"path" if kind == b"L" else "linkpath": _text(data)}


def _member(
    block: bytes, kind: bytes, size: int, at: int, overrides: dict[str, str]
) -> tuple[Header | None, int]:
    """A member, or None for a folder and the like; and how many bytes of it follow."""
    if "size" in overrides:
        size = _decimal(overrides["size"])
    name = _name(block, overrides)
    stored = 0 if kind in b"123456" else size
    sparse = kind == b"S" or _is_sparse(overrides)
    if kind in _REGULAR or sparse:
        refused = "a sparse file, which isn't read from an archive: unpack it" if sparse else ""
        return None if name.endswith("/") else Header(name, size, at, refused=refused), stored
    if kind in b"12":
        link = overrides.get("linkpath") or _text(block[157:257])
        return Header(name, 0, at, link=link, is_symbolic=kind == b"2"), stored
    if kind in _KINDS:
        return Header(name, 0, at, refused=_KINDS[kind]), stored
    if kind in b"5DVNM":
        return None, stored
    return Header(name, size, at, refused=f"of kind {kind!r} in its tar, which isn't known"), stored


def _checked(block: bytes) -> bytes:
    """The kind of a header whose sum is right."""
    try:
        written = _number(block[148:156])
    except DamagedTar:
        written = -1
    unsigned = sum(block[:148]) + 8 * 32 + sum(block[156:])
    high = sum(byte > 127 for byte in block[:148] + block[156:])
    if written not in (unsigned, unsigned - 256 * high):
        raise DamagedTar("a header doesn't add up")
    return block[156:157]


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # base 256, for what octal has no room for
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        if field[0] == 0xFF or value > 1 << 60:
            raise DamagedTar("a size in a header makes no sense")
        return value
    digits = field.split(b"\0")[0].strip()
    try:
        return int(digits or b"0", 8)
    except ValueError:
        raise DamagedTar("a number in a header makes no sense") from None


def _decimal(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > 18:
        raise DamagedTar("a size in a header makes no sense")
    return int(text)


def _pax(data: bytes) -> dict[str, str]:
    """``27 path=folder/name.png\\n``, one after the other."""
    found: dict[str, str] = {}
    at = 0
    while at < len(data):
        length, _, _ = data[at : at + 20].partition(b" ")
        if not length.isdigit() or not 4 < int(length) <= len(data) - at:
            break
        key, _, value = data[at + len(length) + 1 : at + int(length) - 1].partition(b"=")
        found[key.decode("utf-8", "replace")] = _text(value)
        at += int(length)
    return found


def _skip_sparse_map(file: Seekable, block: bytes, at: int) -> int:
    more = block[482]
    while more:
        extension = file.read(BLOCK)
        if len(extension) < BLOCK:
            raise DamagedTar("it ends within a header")
        at += BLOCK
        more = extension[504]
    return at


def _is_sparse(overrides: dict[str, str]) -> bool:
    return any(key.startswith("GNU.sparse") for key in overrides)


def _name(block: bytes, overrides: dict[str, str]) -> str:
    if said := overrides.get("GNU.sparse.name") or overrides.get("path"):
        return said
    name = _text(block[:100])
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(data: bytes) -> str:
    """A name; older archives have it in Latin-1."""
    data = data.split(b"\0")[0]
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
