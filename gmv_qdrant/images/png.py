"""PNG files without what has nothing to do with their pixels.

Image generators write whole workflows into text chunks, and Pillow refuses a file whose text is large, or in which any
chunk has a wrong checksum. So chunks that pixels don't depend on are left out before it sees them.
"""

from __future__ import annotations

import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_PIXELS = frozenset({b"tRNS", b"acTL", b"fcTL", b"fdAT"})
"""Beside the critical chunks: transparency, animation."""
_ABOUT = frozenset({b"iCCP", b"eXIf", b"sRGB", b"gAMA", b"cHRM"})
"""What colours mean and which way is up: kept when whole."""
_TURNING = (b"Raw profile type exif\0", b"Raw profile type APP1\0", b"XML:com.adobe.xmp\0")
"""Texts that say which way is up."""
_LARGEST_TEXT = 256 << 10
_LARGEST_PROFILE = 1 << 20
"""Unpacked, as Pillow has it."""


def without_ballast(data: bytes) -> bytes:
    """The same pixels in fewer chunks. What isn't made of chunks comes back as it is, for Pillow to say why."""
    kept = [SIGNATURE]
    at = len(SIGNATURE)
    while at + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        end = at + 12 + length
        if end > len(data):
            break
        if _is_kept(kind, data[at + 8 : end - 4], data[end - 4 : end]):
            kept.append(data[at:end])
        at = end
        if kind == b"IEND":
            return b"".join(kept)
    kept.append(data[at:])
    return b"".join(kept)


def _is_kept(kind: bytes, content: bytes, checksum: bytes) -> bool:
    if not kind[0] & 0x20 or kind in _PIXELS:  # critical by its first letter
        return True
    if struct.pack(">I", zlib.crc32(kind + content)) != checksum:
        return False
    if kind == b"iCCP":
        return _unpacks_to(content.partition(b"\0")[2][1:], _LARGEST_PROFILE)
    if kind in _ABOUT:
        return True
    return (
        kind in (b"tEXt", b"zTXt", b"iTXt") and content.startswith(_TURNING) and len(content) < _LARGEST_TEXT
    )


def _unpacks_to(data: bytes, limit: int) -> bool:
    try:
        return len(zlib.decompressobj().decompress(data, limit + 1)) <= limit
    except zlib.error:
        return False
