"""Bytes -> RGB: the one decode path, for training and generated images alike.

Two images that look the same must give the same pixels however they were stored, so everything that
Pillow leaves to its caller is settled here: sixteen bits, transparency, palettes, EXIF orientation,
CMYK, animations, size limits, damaged files. Colour profiles are not applied.
"""

from __future__ import annotations

import io
import threading
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from gmv_qdrant.errors import ImageError

MAX_PIXELS = 178_956_970
"""Larger images are refused as decompression bombs: Pillow's own error threshold (512 MB as RGB)."""

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000", "ICO")
"""Only formats known by their first bytes; none that Pillow hands to another program (EPS, WMF)."""

# fmt: off
IMAGE_SUFFIXES = frozenset({
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".gif", ".webp", ".tif", ".tiff", ".bmp",
    ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".jpx", ".ico", ".heic", ".heif",
})
# fmt: on
"""Names that promise an image; HEIC cannot be decoded, and is told so rather than passed over."""

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

# Pillow warns while it parses headers, and warnings.catch_warnings is not thread-safe: one thread at a
# time reads headers (well under a millisecond), decompression runs outside the lock.
_HEADERS = threading.Lock()


def decode(data: bytes, *, uri: str = "") -> Image.Image:
    """An image file's bytes -> an 8-bit RGB image with its pixels loaded and no metadata.

    - 16-bit samples keep their high byte; 32-bit integer samples are read as 16-bit ones (that is how
      Pillow gives 16-bit PGM); float samples are in [0, 1], or in [0, 255] where any exceeds 1.
    - Transparency of any kind is composited on white.
    - The EXIF orientation is applied; the first frame of an animation or a multi-page file is taken.

    Raises `ImageError` with a short reason, led by ``uri`` when given: ``truncated JPEG: ...``.
    """
    try:
        return _decode(data)
    except ImageError as error:
        if not uri:
            raise
        raise ImageError(f"{uri}: {error}") from error.__cause__


def resize(image: Image.Image, resolution: int) -> Image.Image:
    """RGB image -> RGB ``(resolution, resolution)``, bicubic as Pillow does it: the ``@64`` of a distance.

    Pillow widens the filter when it shrinks, so this is antialiased; the aspect ratio is not kept.
    """
    return image.resize((resolution, resolution), Image.Resampling.BICUBIC)


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
        raise ImageError("empty file: 0 bytes")
    image = _open(data)
    with image:
        name = image.format or "image"
        if image.width * image.height > MAX_PIXELS:
            raise ImageError(f"too large: {image.width} x {image.height}, the limit is {MAX_PIXELS} pixels")
        try:
            image.load()
            rgb = _to_rgb(image)
        except MemoryError:
            raise
        except Exception as error:  # Pillow's plugins raise a dozen unrelated types for damaged data
            raise ImageError(_reason(name, error)) from error
        # After load: the TIFF plugin applies the orientation itself there, and removes the tag.
        turn = _TRANSPOSE.get(_orientation(image))
    if turn is not None:
        rgb = rgb.transpose(turn)
    rgb.info = {}
    return rgb


def _open(data: bytes) -> Image.Image:
    try:
        with _HEADERS, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError(f"not an image, or damaged at its start: begins with {data[:8]!r}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"too large: the limit is {MAX_PIXELS} pixels") from error
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise ImageError(_reason("image", error)) from error


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
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _deep_grey(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits -> RGB; Pillow's own ``convert`` would clip it to white."""
    samples = np.asarray(image)
    if image.mode == "F":
        samples = np.nan_to_num(samples, nan=0.0, posinf=255.0, neginf=0.0)
        scaled = samples * 255.0 if samples.max() <= 1.0 else samples
        grey = np.rint(scaled.clip(0.0, 255.0))
    else:
        grey = samples.clip(0, 65535) >> 8
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey = np.where(samples == key, 255, grey)
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def _reason(name: str, error: Exception) -> str:
    message = str(error) or type(error).__name__
    kind = "truncated" if "truncated" in message.lower() else "damaged"
    return f"{kind} {name}: {message}"
