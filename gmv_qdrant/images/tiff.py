"""TIFF files as their tags describe them.

Pillow goes by how samples are laid out, not by what they mean: it shows white where white is zero, takes signed
numbers for unsigned ones and a preview for the picture. So the tags are read here. Eight unsigned bits are
left to Pillow, from the right page; other samples are read by tifffile; what has no sure meaning is refused by name.
"""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from gmv_qdrant.errors import ImageError
from gmv_qdrant.images import limits

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB = 0, 1, 2, 3, 5, 6, 8
_RAW = frozenset({32803, 34892})
_PHOTOMETRIC_NAMES = {
    4: "a mask",
    8: "CIE L*a*b*",
    9: "ICC L*a*b*",
    10: "ITU L*a*b*",
    32844: "LogL",
    32845: "LogLuv",
}
_UNSIGNED, _SIGNED, _FLOAT, _VOID = 1, 2, 3, 4
_DNG_VERSION, _CFA_PATTERN = 50706, 33422


@dataclass(frozen=True, slots=True)
class Picture:
    """The page of a TIFF that is the picture."""

    page: int
    """For Pillow, where ``samples`` is None."""
    samples: np.ndarray | None = None
    """uint8 ``(height, width)``, or with 3 (RGB) or 4 (CMYK) channels; transparency is composited on white."""
    orientation: int = 1
    profile: bytes | None = None


def is_tiff(data: bytes) -> bool:
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def picture(data: bytes) -> Picture:
    """What to show of a TIFF. Raises `ImageError` where that isn't sure, or it is a camera's RAW."""
    import tifffile

    logging.getLogger("tifffile").setLevel(
        logging.CRITICAL
    )  # it tells of damage that isn't the user's to mend
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        number, page = _page(file)
        bits = _tags(page, "BitsPerSample", 1)
        widths, kinds = set(bits), set(_tags(page, "SampleFormat", _UNSIGNED))
        photometric = int(_tag(page, "PhotometricInterpretation", _BLACK_IS_ZERO))
        _check(page, photometric)
        is_plain = kinds <= {_UNSIGNED, _VOID} and (
            widths == {8} or (len(bits) == 1 and bits[0] in (1, 2, 4))
        )
        if is_plain and (number == 0 or photometric in (_PALETTE, _YCBCR)):
            return Picture(number)
        if len(widths) > 1 or len(kinds) > 1:
            raise _refused(f"its samples differ in width or kind ({sorted(widths)} bits)")
        samples = np.asarray(page.asarray(maxworkers=1))
        profile = _tag(page, "InterColorProfile", None)
        return Picture(
            number,
            _shown(page, samples, photometric, widths.pop(), kinds.pop()),
            int(_tag(page, "Orientation", 1)),
            bytes(profile) if profile else None,
        )


def scaled_floats(samples: np.ndarray) -> np.ndarray:
    """Float samples -> uint8. They are in [0, 1], a little above it here and there, or in [0, 255].

    NaN is black. Raises `ImageError` for any other range, which could mean anything.
    """
    samples = np.nan_to_num(samples.astype(np.float64), nan=0.0, posinf=np.inf, neginf=-np.inf)
    finite = np.isfinite(samples)
    top, bottom = (float(samples[finite].max()), float(samples[finite].min())) if finite.any() else (0.0, 0.0)
    lit = samples[finite & (samples > 0)]
    if top <= 1 or (top <= 2 and float((lit > 1).mean()) < 0.05):
        scale = 255.0
    elif top <= 255.5 and (bool((lit == np.rint(lit)).all()) or (top > 64 and float(np.median(lit)) > 2)):
        scale = 1.0
    else:
        raise _refused(f"its samples are floats up to {top:g}, neither in 0 to 1 nor in 0 to 255")
    if bottom * scale < -13:  # a twentieth of the range, as sharpening leaves it
        raise _refused(f"its samples are floats down to {bottom:g}")
    return np.rint(np.clip(samples * scale, 0, 255)).astype(np.uint8)


def scaled_integers(samples: np.ndarray, bits: int, *, signed: bool) -> np.ndarray:
    """Integer samples of more than 8 bits -> uint8: their high byte. Raises `ImageError` where the range isn't sure."""
    top = int(samples.max(initial=0))
    if signed:
        if int(samples.min(initial=0)) < 0:
            raise _refused("its samples are signed, and some are negative")
        bits -= 1
    if bits > 24 and 0 < top < 1 << 24:
        raise _refused(f"its samples have {bits} bits, of which they use few (the largest is {top:,})")
    wide = samples.astype(np.uint64)
    return (wide >> (bits - 8) if bits > 8 else wide * 255 // ((1 << bits) - 1)).astype(np.uint8)


def _page(file: Any) -> tuple[int, Any]:
    """The first page that is neither a smaller copy of another nor a mask."""
    first = None
    for number in range(limits.TIFF_PAGES):
        try:
            page = file.pages[number]
        except IndexError:
            break
        except Exception:
            if number == 0:
                raise
            break
        first = first or (number, page)
        if _is_raw(page):
            raise ImageError("a camera RAW image, which isn't read: develop it to JPEG or TIFF", kind="raw")
        if not int(_tag(page, "NewSubfileType", 0)) & 0b101 and int(_tag(page, "SubfileType", 0)) != 2:
            return number, page
    if first is None:
        raise ImageError("damaged TIFF: it has no page")
    return first


def _is_raw(page: Any) -> bool:
    if (
        _DNG_VERSION in page.tags
        or _CFA_PATTERN in page.tags
        or _tag(page, "PhotometricInterpretation", 1) in _RAW
    ):
        return True
    below = page.pages or ()
    return any(_tag(sub, "PhotometricInterpretation", 1) in _RAW for sub in list(below)[:8])


def _check(page: Any, photometric: int) -> None:
    width, height = int(page.imagewidth), int(page.imagelength)
    if width < 1 or height < 1:
        raise ImageError("damaged TIFF: it has no pixels")
    if width * height > limits.PIXELS:
        raise ImageError(
            f"too large: {width} x {height}, the limit is {limits.PIXELS} pixels", kind="too-large"
        )
    if int(page.imagedepth) > 1:
        raise _refused("it is a volume of several layers")
    if photometric in _PHOTOMETRIC_NAMES:
        raise _refused(f"its colours are {_PHOTOMETRIC_NAMES[photometric]}")
    if photometric > _YCBCR:
        raise _refused(f"its colours are of kind {photometric}, which isn't known")
    per_sample = max(int(page.bitspersample), 8) // 8
    if width * height * int(page.samplesperpixel) * per_sample > limits.DECODED_BYTES:
        raise ImageError(
            f"too large: {width} x {height} with {page.samplesperpixel} channels", kind="too-large"
        )


def _shown(page: Any, samples: np.ndarray, photometric: int, bits: int, kind: int) -> np.ndarray:
    """Samples as they are stored -> uint8, black at zero, transparency on white."""
    samples = _channels_last(page, samples)
    channels = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _CMYK: 4}.get(photometric)
    if channels is None:
        raise _refused(
            f"it has {'a palette' if photometric == _PALETTE else 'YCbCr colours'} with {bits} bits a sample"
        )
    extras = _tags(page, "ExtraSamples", 0) if "ExtraSamples" in page.tags else ()
    if samples.shape[2] != channels + len(extras) or len(extras) > 1:
        raise _refused(f"it has {samples.shape[2]} channels that aren't explained")
    scaled, alpha = _scaled(samples, channels, bits, kind)
    if photometric == _WHITE_IS_ZERO:
        scaled = 255 - scaled
    if extras and extras[0] in (1, 2) and channels < 4:
        scaled = _on_white(scaled, alpha[..., :1], premultiplied=extras[0] == 1)
    return scaled[..., 0] if channels == 1 else scaled


def _scaled(samples: np.ndarray, channels: int, bits: int, kind: int) -> tuple[np.ndarray, np.ndarray]:
    """Colours as uint8, and what stands beside them from 0 to 1."""
    if kind == _FLOAT:
        alpha = np.clip(np.nan_to_num(samples[..., channels:].astype(np.float64)), 0, 1)
        return scaled_floats(samples[..., :channels]), alpha
    if kind not in (_UNSIGNED, _SIGNED, _VOID):
        raise _refused("its samples are complex numbers")
    signed = kind == _SIGNED
    alpha = samples[..., channels:] / float((1 << (bits - signed)) - 1)
    return scaled_integers(samples[..., :channels], bits, signed=signed), alpha


def _on_white(colours: np.ndarray, alpha: np.ndarray, *, premultiplied: bool) -> np.ndarray:
    own = colours.astype(np.float64) * (1.0 if premultiplied else alpha)
    return np.rint(np.clip(own + 255.0 * (1.0 - alpha), 0, 255)).astype(np.uint8)


def _channels_last(page: Any, samples: np.ndarray) -> np.ndarray:
    """``(height, width, channels)``, from any order that a page may have."""
    axes = str(page.axes)
    if len(axes) != samples.ndim or set(axes) - set("YXS"):
        raise _refused(f"its samples are laid out as {axes}")
    if "S" not in axes:
        samples, axes = samples[..., np.newaxis], axes + "S"
    return np.moveaxis(samples, [axes.index("Y"), axes.index("X"), axes.index("S")], [0, 1, 2])


def _tag(page: Any, name: str, default: Any) -> Any:
    tag = page.tags.get(name)
    return default if tag is None or tag.value is None else tag.value


def _tags(page: Any, name: str, default: int) -> tuple[int, ...]:
    """A tag's values, one for each sample or one for all."""
    value = _tag(page, name, default)
    return tuple(int(one) for one in value) if isinstance(value, tuple) else (int(value),)


def _refused(reason: str) -> ImageError:
    return ImageError(
        f"a TIFF that isn't read, because {reason}: save it with 8 or 16 bits a sample", kind="tiff"
    )
