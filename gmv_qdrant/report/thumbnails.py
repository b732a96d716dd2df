"""Small pictures for pages: decoded by the one decode path, stripped of metadata, cached by content.

A picture is shown only when the file still is the image that was taken in: its SHA-256 is compared with the ledger's.
"""

from __future__ import annotations

import base64
import contextlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from gmv_qdrant.errors import ImageError
from gmv_qdrant.files import thumbnail_stem
from gmv_qdrant.images.decode import decode, thumbnail
from gmv_qdrant.images.records import content_hash
from gmv_qdrant.images.sources import read_uri

SMALL = 96
LARGE = 384
FULL = 1536
"""Pixels of the longer side."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A JPEG file, or the reason why there is none."""

    jpeg: bytes | None
    reason: str = ""

    @property
    def data_uri(self) -> str:
        return "data:image/jpeg;base64," + base64.b64encode(self.jpeg or b"").decode("ascii")


class Thumbnails:
    """Pictures of images of one workspace; ``workspace/thumbnails/`` can be removed at any time."""

    def __init__(self, root: Path, allowed: Sequence[str]) -> None:
        """allowed: where images may be read from, as `read_uri` takes it."""
        self.root = root
        self.allowed = allowed

    def get(self, image: Mapping[str, Any], size: int = SMALL) -> Picture:
        """Of an image as `queries.training_names` or `queries.generated_names` describe it: point_id, hash, uris.

        An image that can't be read, or isn't what it was, gives a reason; nothing is raised, and nothing cached.
        """
        stem = thumbnail_stem(self.root, image["hash"], image["point_id"])
        cached = stem.with_name(f"{stem.name}-{size}.jpg")
        with contextlib.suppress(OSError):
            return Picture(cached.read_bytes())
        reason = "No source of this image is known."
        for uri in image["uris"]:
            try:
                data = read_uri(uri, self.allowed)
                if image["hash"] and content_hash(data) != image["hash"]:
                    raise ImageError("The file is no longer the image that was taken in.")
                jpeg = thumbnail(_enlarged(decode(data), size), size)
            except ImageError as error:
                reason = str(error)
                continue
            _keep(cached, jpeg)
            return Picture(jpeg)
        return Picture(None, reason)


def _enlarged(image: Image.Image, size: int) -> Image.Image:
    """A small image in whole steps, so that its pixels stay sharp where a browser would blur them."""
    times = size // max(image.size)
    return (
        image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
        if times > 1
        else image
    )


def _keep(path: Path, data: bytes) -> None:
    """Whole or not at all; a workspace that can't be written to is only slower."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(partial, path)
