"""Colour profiles: an image whose file says what its numbers mean is converted to sRGB."""

from __future__ import annotations

import io
import threading
from functools import lru_cache
from typing import Any

from PIL import Image, ImageCms

_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_LARGEST = 16 << 20
_LOCK = threading.Lock()
"""Little CMS keeps its error messages in one place."""


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image | None:
    """An ``L``, ``RGB`` or ``CMYK`` image whose numbers ``profile`` explains -> RGB.

    None where there is nothing to do, because the profile is sRGB or there is none, or nothing can be done: it is
    damaged or of another kind of image. The numbers then count as sRGB, as everywhere.
    """
    if not profile or len(profile) > _LARGEST:
        return None
    try:
        with _LOCK:
            transform = _transform(profile, image.mode)
            return None if transform is None else ImageCms.applyTransform(image, transform)
    except Exception:  # noqa: BLE001 - damaged profiles raise half a dozen types
        return None


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> Any:
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if _MODES.get(source.profile.xcolor_space.strip()) != mode:
        return None
    name = ImageCms.getProfileDescription(source)
    if mode == "RGB" and "srgb" in name.lower():
        return None
    return ImageCms.buildTransform(
        source,
        _srgb(),
        mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )


@lru_cache(maxsize=1)
def _srgb() -> Any:
    return ImageCms.createProfile("sRGB")
