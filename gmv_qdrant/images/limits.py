"""How much one input may cost. What would cost more is refused, before it is unpacked where that can be known."""

MIB = 1 << 20

FILE_BYTES = 1024 * MIB
"""Of one image file, or one member of an archive."""
SIDECAR_BYTES = 16 * MIB
"""Of one description beside an image."""
TABLE_BYTES = 4096 * MIB
"""Of one metadata table in a folder; in an archive, `FILE_BYTES`."""
ATTRIBUTE_CHARACTERS = 65_536
"""Of one attribute, as JSON: longer ones (whole workflows of image generators) aren't kept, which is said."""
NAME_CHARACTERS = 1_000
"""Of an owner, a label or a licence."""
ARCHIVE_MEMBERS = 2_000_000
DIRECTORY_BYTES = 512 * MIB
"""Of a zip's directory, and of the descriptions that are remembered of a compressed tar."""
HEADER_BYTES = MIB
"""Of one header of a tar (a long name, PAX attributes)."""

UNPACKED_FREE = 256 * MIB
UNPACKED_RATIO = 200
"""What is compressed may unpack to 256 MB, or to 200 times its size where that is more. Images hardly compress."""

PIXELS = 178_956_970
"""Larger images are refused: Pillow's own threshold for decompression bombs."""
DECODED_BYTES = 1536 * MIB
"""Pixels that may be in the making at once, in all threads together."""
TIFF_PAGES = 64
"""Looked at for the one that is the picture."""


def unpacked_limit(packed: int) -> int:
    """Bytes that ``packed`` bytes may unpack to."""
    return max(UNPACKED_FREE, UNPACKED_RATIO * packed)


def size_of(size: float) -> str:
    """``1.5 GB``, for messages."""
    for unit in ("bytes", "KB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:,.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:,.1f} {unit}"
