"""Bytes -> RGB: the one decode path, for training and generated images alike.

Two images that look the same must give the same pixels however they were stored, so everything that
Pillow leaves to its caller is settled here: sixteen bits, transparency, palettes, EXIF orientation,
CMYK, colour profiles, animations, TIFF's tags, PNG's ballast, size limits, damaged files.
"""

from __future__ import annotations

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image, UnidentifiedImageError

from gmv_qdrant.errors import ImageError, first_line
from gmv_qdrant.images import limits, png, tiff
from gmv_qdrant.images.colour import to_srgb
from gmv_qdrant.images.kinds import HEAD, kind_of

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000", "ICO")
"""Only formats known by their first bytes; none that Pillow hands to another program (EPS, WMF)."""

_ORIENTATION_TAG = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_BOMB = 256 << 20
_BOMB_RATIO = 300
"""Decoded sizes above the first are refused where they are as many times the file's."""
_STRIP = 1 << 22
"""Pixels that are composited at a time."""

# Pillow warns while it parses headers, and warnings.catch_warnings is not thread-safe: one thread at a
# time reads headers (well under a millisecond), decompression runs outside the lock.
_HEADERS = threading.Lock()


def decode(data: bytes, *, uri: str = "") -> Image.Image:
    """An image file's bytes -> an 8-bit RGB image with its pixels loaded and no metadata.

    - Integer samples of more than 8 bits keep their high byte; float samples are in [0, 1], or in [0, 255].
    - Transparency of any kind is composited on white.
    - The EXIF orientation is applied, and an embedded colour profile, to sRGB.
    - The first frame of an animation is taken, and of a TIFF the first page that is no preview.

    Raises `ImageError` with a short reason, led by ``uri`` when given: ``truncated JPEG: ...``.
    """
    try:
        return _decode(data)
    except ImageError as error:
        if not uri:
            raise
        raise ImageError(f"{uri}: {error}", kind=error.kind) from error.__cause__
    except MemoryError as error:
        lead = f"{uri}: " if uri else ""
        raise ImageError(f"{lead}there isn't enough memory to decode it", kind="too-large") from error


def thumbnail(image: Image.Image, size: int) -> bytes:
    """RGB image -> a JPEG file at most ``size`` pixels wide and high (never enlarged), without metadata."""
    small = image.copy()
    small.thumbnail((size, size), Image.Resampling.LANCZOS)
    small.info = {}  # Pillow writes comments found there
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85, subsampling=0)
    return buffer.getvalue()


def _decode(data: bytes) -> Image.Image:
    if not data:
        raise ImageError("empty file: 0 bytes", kind="empty")
    kind = kind_of(data[:HEAD])
    if kind is not None and kind.name != "image" and kind.reason:
        raise ImageError(kind.reason, kind=kind.name)
    if data.startswith(png.SIGNATURE):
        data = png.without_ballast(data)
    if tiff.is_tiff(data):
        return _decode_tiff(data)
    return _decode_page(data, 0)


def _decode_tiff(data: bytes) -> Image.Image:
    try:
        shown = tiff.picture(data)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # tifffile raises as many types as Pillow does
        raise ImageError(_reason("TIFF", error)) from error
    if shown.samples is None:
        return _decode_page(data, shown.page)
    mode = "CMYK" if shown.samples.ndim == 3 and shown.samples.shape[2] == 4 else None
    image = Image.fromarray(np.ascontiguousarray(shown.samples))
    if mode:
        image = Image.frombytes("CMYK", image.size, image.tobytes())
    return _turned(to_srgb(image, shown.profile) or image.convert("RGB"), shown.orientation)


def _decode_page(data: bytes, page: int) -> Image.Image:
    image = _open(data)
    with image:
        name = image.format or "image"
        try:
            if page:
                image.seek(page)
            with _room_for(image, len(data)):
                image.load()
                rgb = _to_rgb(image)
        except (ImageError, MemoryError):
            raise
        except Exception as error:  # Pillow's plugins raise a dozen unrelated types for damaged data
            raise ImageError(_reason(name, error)) from error
        # After load: the TIFF plugin applies the orientation itself there, and removes the tag.
        rgb = _turned(rgb, _orientation(image))
    rgb.info = {}
    return rgb


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    turn = _TRANSPOSE.get(orientation)
    return image if turn is None else image.transpose(turn)


def _open(data: bytes) -> Image.Image:
    try:
        with _HEADERS, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError(
            f"not an image, or damaged at its start: begins with {data[:8]!r}", kind="not-an-image"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"too large: the limit is {limits.PIXELS} pixels", kind="too-large") from error
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise ImageError(_reason("image", error)) from error


_room = threading.Condition()
_in_use = 0


@contextlib.contextmanager
def _room_for(image: Image.Image, size: int) -> Iterator[None]:
    """Wait until there is memory for an image; three large ones at once may not take three times as much.

    size: of its file. Raises `ImageError` for what is too large, or unpacks as no image does.
    """
    global _in_use
    pixels = image.width * image.height
    if pixels > limits.PIXELS:
        raise ImageError(
            f"too large: {image.width} x {image.height}, the limit is {limits.PIXELS} pixels",
            kind="too-large",
        )
    stored = pixels * _BITS.get(image.mode, 32) // 8
    if stored > _BOMB and stored > _BOMB_RATIO * size:
        raise ImageError(
            f"too large: {image.width} x {image.height} in a file of {limits.size_of(size)}, as only a bomb has it",
            kind="bomb",
        )
    needed = min(pixels * 8, limits.DECODED_BYTES)  # Pillow keeps four bytes a pixel; the image, and its RGB
    with _room:
        _room.wait_for(lambda: _in_use + needed <= limits.DECODED_BYTES)
        _in_use += needed
    try:
        yield
    finally:
        with _room:
            _in_use -= needed
            _room.notify_all()


_BITS = {"1": 1, "L": 8, "P": 8, "LA": 16, "PA": 16, "I;16": 16, "I;16B": 16, "RGB": 24}
"""Of a pixel as files have it."""


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; a damaged EXIF block doesn't cost an image whose pixels are whole."""
    try:
        with _HEADERS, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = image.getexif().get(_ORIENTATION_TAG, 1)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - as above
        return 1
    return value if isinstance(value, int) else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """A loaded image of any mode -> RGB."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I") or image.mode == "F":
        grey = _deep_grey(image)
        return to_srgb(grey, profile) or grey.convert("RGB")
    if image.has_transparency_data:
        return _on_white(image, profile)
    if image.mode in ("L", "CMYK"):
        return to_srgb(image, profile) or image.convert("RGB")
    rgb = image.convert("RGB")
    return to_srgb(rgb, profile) or rgb


def _on_white(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Composited strip by strip: a whole layer of white would double what a large image takes."""
    made = Image.new("RGB", image.size)
    height = max(1, _STRIP // max(image.width, 1))
    for top in range(0, image.height, height):
        box = (0, top, image.width, min(top + height, image.height))
        part = image.crop(box)
        part.info = {name: value for name, value in image.info.items() if name == "transparency"}
        part = part.convert("RGBA")
        if profile and (colours := to_srgb(part.convert("RGB"), profile)):
            colours.putalpha(part.getchannel("A"))
            part = colours
        made.paste(Image.alpha_composite(Image.new("RGBA", part.size, "white"), part).convert("RGB"), box)
    return made


def _deep_grey(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits -> 8 bits; Pillow's own ``convert`` would clip it to white."""
    samples = np.asarray(image)
    # Pillow gives 16-bit PGM as 32-bit samples
    high = samples.clip(0, 65535) >> 8 if image.mode != "F" else tiff.scaled_floats(samples)
    grey = high.astype(np.uint8)
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey = np.where(samples == key, 255, grey).astype(np.uint8)
    return Image.fromarray(grey)


def _reason(name: str, error: Exception) -> str:
    message = first_line(error)
    kind = "truncated" if "truncated" in message.lower() else "damaged"
    return f"{kind} {name}: {message}"
