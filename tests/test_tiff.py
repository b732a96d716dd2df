"""One picture stored as TIFF in many ways: the same pixels each time, or a refusal that says why."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from gmv_qdrant.errors import ImageError
from gmv_qdrant.images import tiff
from gmv_qdrant.images.decode import decode

_Y, _X = np.mgrid[0:48, 0:40]
GREY = np.clip(128 + 120 * np.sin(_X / 5) * np.cos(_Y / 7), 0, 255).astype(np.uint8)
RGB = np.stack([GREY, GREY[::-1], 255 - GREY], axis=-1)
GREY16, RGB16 = GREY.astype(np.uint16) * 257, RGB.astype(np.uint16) * 257
ALPHA = np.where(_X < 20, 255, 51).astype(np.uint8)
FLOAT, FLOAT_RGB = GREY / np.float32(255), RGB / np.float32(255)


def stored(samples: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, samples, **options)
    return buffer.getvalue()


def pages(*written: tuple[np.ndarray, dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        for samples, options in written:
            writer.write(samples, **options)
    return buffer.getvalue()


def by_pillow(image: Image.Image, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "TIFF", **options)
    return buffer.getvalue()


def planes(samples: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(samples, -1, 0))


def overshoot(samples: np.ndarray) -> np.ndarray:
    samples = samples.copy()
    samples[GREY == 255] = 1.0005
    samples.flat[0] = np.nan if GREY.flat[0] == 0 else samples.flat[0]
    return samples


ON_WHITE = np.rint(RGB * (ALPHA[..., None] / 255) + 255.0 * (1 - ALPHA[..., None] / 255)).astype(np.uint8)
PREMULTIPLIED = np.rint(RGB * (ALPHA[..., None] / 255)).astype(np.uint8)
BLACK, WHITE = {"photometric": "minisblack"}, {"photometric": "miniswhite"}
SEPARATE = {"photometric": "rgb", "planarconfig": "separate"}
SMALL = np.full((12, 10), 40, np.uint8)

SAME: dict[str, tuple[Callable[[], bytes], np.ndarray, float]] = {
    "grey8": (lambda: stored(GREY, **BLACK), GREY, 0),
    "grey8 white is zero": (lambda: stored(255 - GREY, **WHITE), GREY, 0),
    "grey16": (lambda: stored(GREY16, **BLACK), GREY, 0),
    "grey16 white is zero": (lambda: stored(65535 - GREY16, **WHITE), GREY, 0),
    "grey16 big-endian": (lambda: stored(GREY16, byteorder=">", **BLACK), GREY, 0),
    "grey16 BigTIFF": (lambda: stored(GREY16, bigtiff=True, **BLACK), GREY, 0),
    "grey16 in tiles": (lambda: stored(GREY16, tile=(16, 16), **BLACK), GREY, 0),
    "grey16 LZW with predictor": (
        lambda: stored(GREY16, compression="lzw", predictor=True, **BLACK),
        GREY,
        0,
    ),
    "grey16 Deflate": (lambda: stored(GREY16, compression="deflate", **BLACK), GREY, 0),
    "grey16 PackBits": (lambda: stored(GREY16, compression="packbits", **BLACK), GREY, 0),
    "grey16 Zstandard": (lambda: stored(GREY16, compression="zstd", **BLACK), GREY, 0),
    "grey16 LZMA": (lambda: stored(GREY16, compression="lzma", **BLACK), GREY, 0),
    "grey10 packed": (lambda: stored(GREY16 >> 6, bitspersample=10, **BLACK), GREY, 0),
    "grey12 packed": (lambda: stored(GREY16 >> 4, bitspersample=12, **BLACK), GREY, 0),
    "grey14 packed": (lambda: stored(GREY16 >> 2, bitspersample=14, **BLACK), GREY, 0),
    "uint32": (lambda: stored(GREY.astype(np.uint32) * 16843009, **BLACK), GREY, 0),
    "uint64": (lambda: stored(GREY.astype(np.uint64) << np.uint64(56), **BLACK), GREY, 0),
    "int8": (lambda: stored((GREY >> 1).astype(np.int8), **BLACK), GREY, 1),
    "int16": (lambda: stored((GREY16 // 2).astype(np.int16), **BLACK), GREY, 1),
    "int32": (lambda: stored((GREY.astype(np.int64) << 23).astype(np.int32), **BLACK), GREY, 0),
    "half": (lambda: stored(FLOAT.astype(np.float16), **BLACK), GREY, 1),
    "float": (lambda: stored(FLOAT, **BLACK), GREY, 0),
    "float white is zero": (lambda: stored(1 - FLOAT, **WHITE), GREY, 1),
    "float a little above 1": (lambda: stored(overshoot(FLOAT), **BLACK), GREY, 0),
    "float 0 to 255": (lambda: stored(GREY.astype(np.float32), **BLACK), GREY, 0),
    "float64": (lambda: stored(FLOAT.astype(np.float64), **BLACK), GREY, 0),
    "float with predictor": (lambda: stored(FLOAT, compression="deflate", predictor=3, **BLACK), GREY, 0),
    "float RGB": (lambda: stored(FLOAT_RGB, photometric="rgb"), RGB, 0),
    "float RGB in planes": (lambda: stored(planes(FLOAT_RGB), **SEPARATE), RGB, 0),
    "rgb8": (lambda: stored(RGB, photometric="rgb"), RGB, 0),
    "rgb8 in planes": (lambda: stored(planes(RGB), **SEPARATE), RGB, 0),
    "rgb8 LZW": (lambda: stored(RGB, photometric="rgb", compression="lzw"), RGB, 0),
    "rgb8 JPEG": (
        lambda: stored(RGB, photometric="rgb", compression="jpeg", compressionargs={"level": 98}),
        RGB,
        25,
    ),
    "rgb16": (lambda: stored(RGB16, photometric="rgb"), RGB, 0),
    "rgb16 LZW": (lambda: stored(RGB16, photometric="rgb", compression="lzw", predictor=True), RGB, 0),
    "rgb16 in planes": (lambda: stored(planes(RGB16), **SEPARATE), RGB, 0),
    "rgb16 in planes and tiles": (lambda: stored(planes(RGB16), tile=(16, 16), **SEPARATE), RGB, 0),
    "rgba8": (
        lambda: stored(np.dstack([RGB, ALPHA]), photometric="rgb", extrasamples=["unassalpha"]),
        ON_WHITE,
        1,
    ),
    "rgba16": (
        lambda: stored(
            np.dstack([RGB16, ALPHA * np.uint16(257)]), photometric="rgb", extrasamples=["unassalpha"]
        ),
        ON_WHITE,
        1,
    ),
    "rgba16 premultiplied": (
        lambda: stored(
            np.dstack([PREMULTIPLIED * np.uint16(257), ALPHA * np.uint16(257)]),
            photometric="rgb",
            extrasamples=["assocalpha"],
        ),
        ON_WHITE,
        1,
    ),
    "rgb16 with a channel of something": (
        lambda: stored(np.dstack([RGB16, GREY16]), photometric="rgb", extrasamples=["unspecified"]),
        RGB,
        0,
    ),
    "cmyk8": (lambda: by_pillow(Image.fromarray(RGB).convert("CMYK")), RGB, 1),
    "cmyk16": (
        lambda: stored(
            np.asarray(Image.fromarray(RGB).convert("CMYK")).astype(np.uint16) * 257, photometric="separated"
        ),
        RGB,
        1,
    ),
    "palette": (lambda: by_pillow(Image.fromarray(GREY).convert("P")), GREY, 0),
    "bilevel": (lambda: by_pillow(Image.fromarray(GREY > 127)), np.where(GREY > 127, 255, 0), 0),
    "bilevel Group 4": (
        lambda: by_pillow(Image.fromarray(GREY > 127), compression="group4"),
        np.where(GREY > 127, 255, 0),
        0,
    ),
    "preview first": (lambda: pages((SMALL, {"subfiletype": 1, **BLACK}), (GREY, BLACK)), GREY, 0),
    "preview first, 16 bits": (lambda: pages((SMALL, {"subfiletype": 1, **BLACK}), (GREY16, BLACK)), GREY, 0),
    "mask first": (
        lambda: pages((SMALL > 0, {"subfiletype": 4, **BLACK}), (RGB, {"photometric": "rgb"})),
        RGB,
        0,
    ),
    "several pages": (lambda: pages((GREY16, BLACK), (GREY16[::-1], BLACK)), GREY, 0),
    "nothing but a preview": (lambda: pages((GREY, {"subfiletype": 1, **BLACK})), GREY, 0),
}

REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "uint32 that uses 16 bits": (
        lambda: stored(GREY16.astype(np.uint32), **BLACK),
        "32 bits, of which they use few",
    ),
    "int16 with negatives": (
        lambda: stored(GREY16.astype(np.int16), **BLACK),
        "signed, and some are negative",
    ),
    "float up to 3,000": (lambda: stored(FLOAT * 3000, **BLACK), "floats up to 2905"),
    "float of high range": (
        lambda: stored(FLOAT * np.float32(7.3), **BLACK),
        "neither in 0 to 1 nor in 0 to 255",
    ),
    "float from -1": (lambda: stored(FLOAT * 2 - 1, **BLACK), "floats down to -0.9"),
    "complex": (lambda: stored(FLOAT.astype(np.complex64), **BLACK), "complex"),
    "a volume": (lambda: stored(np.stack([GREY] * 4), volumetric=True, **BLACK), "volume"),
    "nine bands": (lambda: stored(np.dstack([GREY16] * 9), planarconfig="contig", **BLACK), "9 channels"),
    "L*a*b*": (lambda: stored(RGB16, photometric="cielab"), r"CIE L\*a\*b\*"),
    "8-bit L*a*b*": (lambda: stored(RGB, photometric="cielab"), r"CIE L\*a\*b\*"),
    "a palette of 16 bits": (
        lambda: stored(GREY16, photometric="palette", colormap=np.zeros((3, 65536), np.uint16)),
        "palette",
    ),
    "a camera's mosaic": (lambda: stored(GREY16, photometric="cfa"), "camera RAW"),
    "a DNG with a preview": (
        lambda: pages(
            (RGB, {"subfiletype": 1, "photometric": "rgb", "extratags": [(50706, 1, 4, (1, 4, 0, 0))]})
        ),
        "camera RAW",
    ),
    "cut short": (lambda: stored(GREY16, **BLACK)[:1500], "damaged TIFF|truncated"),
    "no page": (lambda: b"II*\0\x08\0\0\0\0\0\0\0\0\0", "TIFF"),
    "a circle of pages": (lambda: b"II*\0\x08\0\0\0\0\0\x08\0\0\0", "TIFF"),
}


@pytest.mark.parametrize("kind", SAME)
def test_the_same_pixels(kind: str) -> None:
    make, expected, most = SAME[kind]
    image = decode(make())
    assert image.mode == "RGB"
    shown = np.asarray(image).astype(int)
    reference = expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, axis=2)
    assert shown.shape == reference.shape
    assert np.abs(shown - reference).max() <= most


@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_no_sure_meaning_is_refused_by_name(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    make, message = REFUSED[kind]
    with pytest.raises(ImageError, match=message):
        decode(make())
    assert not capsys.readouterr().err
    assert logging.getLogger("tifffile").level == logging.CRITICAL


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_samples_are_turned_like_others(orientation: int) -> None:
    tag = (274, 3, 1, orientation, True)
    deep = decode(stored(GREY16, extratags=[tag], metadata=None, **BLACK))
    plain = decode(stored(GREY, extratags=[tag], metadata=None, **BLACK))
    assert np.array_equal(np.asarray(deep), np.asarray(plain))


def test_profiles_hold_for_deep_samples() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(np.asarray(decode(stored(RGB16, photometric="rgb", iccprofile=profile))), RGB)


def test_floats_in_every_range() -> None:
    """Sparse digits in 0 to 255, and dark pictures in 0 to 1, are each what they are."""
    sparse = np.zeros((50, 50), np.float32)
    sparse[20:30, 20:25] = 250
    assert tiff.scaled_floats(sparse).max() == 250
    assert tiff.scaled_floats(sparse / 255).max() == 250
    assert tiff.scaled_floats(np.full((4, 4), 0.004, np.float32)).max() == 1
    assert not tiff.scaled_floats(np.zeros((4, 4), np.float32)).any()
    assert not tiff.scaled_floats(np.full((4, 4), np.nan, np.float32)).any()
