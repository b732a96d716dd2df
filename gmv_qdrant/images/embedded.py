"""Images inside others' payloads, as base64: each is kept once in the workspace, and named by the hash of its bytes."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from urllib.parse import unquote_to_bytes

from gmv_qdrant.errors import ImageError
from gmv_qdrant.images.kinds import HEAD, kind_of
from gmv_qdrant.images.limits import MIB, size_of
from gmv_qdrant.images.records import read_file

SCHEME = "payload://"
"""Before the SHA-256 of an image's bytes; in the places that may be read from, before the folder that holds them."""
FOLDER = "payload-images"
"""In a workspace."""
MOST_BYTES = 32 * MIB
"""Of one image: as much as a Qdrant server takes in one request."""
SHORTEST = 64
"""Characters: shorter text that looks like base64 is a name."""

_DATA = re.compile(r"data:[^,]{0,200}?(;base64)?,", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]+={0,2}\s*")


def image_in(value: object) -> bytes | None:
    """The bytes of an image that a payload's value is: a ``data:`` URI, or base64 of a known kind; None for a name.

    Raises `ImageError` for a ``data:`` URI that is damaged, and for an image above `MOST_BYTES`.
    """
    if not isinstance(value, str):
        return None
    found = _DATA.match(value)
    if found is None and (len(value) < SHORTEST or not _BASE64.fullmatch(value)):
        return None
    if len(value) > MOST_BYTES * 4 // 3 + 1_024:
        size = size_of(len(value) * 3 // 4)
        raise ImageError(f"it is {size} in a payload, more than {size_of(MOST_BYTES)}.", kind="too-large")
    if found is None:
        data = _decoded(value)
        return data if data is not None and kind_of(data[:HEAD]) is not None else None
    rest = value[found.end() :]
    data = _decoded(rest) if found[1] else unquote_to_bytes(rest)
    if data is None:
        raise ImageError("its data: URI is no base64.", kind="damaged")
    return data


def _decoded(text: str) -> bytes | None:
    text = "".join(text.split()).translate(_STANDARD)
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        return None


_STANDARD = str.maketrans("-_", "+/")


class KeptImages:
    """The images that came from payloads, in the workspace ``root``."""

    def __init__(self, root: Path) -> None:
        self._folder = root / FOLDER

    def keep(self, data: bytes) -> str:
        """The URI of these bytes, which are written down unless they are there already."""
        name = hashlib.sha256(data).hexdigest()
        path = _path(self._folder, name)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_suffix(".new")
            draft.write_bytes(data)
            draft.replace(path)
        return SCHEME + name

    def remove_all_but(self, uris: Collection[str]) -> None:
        for path in self._folder.glob("*/*"):
            if SCHEME + path.name not in uris:
                path.unlink(missing_ok=True)


def place_of(root: Path) -> str:
    """Where `read_kept` may read, as one of the allowed places."""
    return f"{SCHEME}{root / FOLDER}"


def read_kept(uri: str, allowed: Sequence[str]) -> bytes:
    """The bytes that `KeptImages.keep` gave this URI. Raises `ImageError` where they aren't there, or are others."""
    name = uri.removeprefix(SCHEME)
    if re.fullmatch(r"[0-9a-f]{64}", name):
        for place in allowed:
            path = _path(Path(place.removeprefix(SCHEME)), name)
            if place.startswith(SCHEME) and path.is_file():
                data = read_file(str(path))
                if hashlib.sha256(data).hexdigest() != name:
                    raise ImageError(
                        f"{path} isn't the image that was in the payload any more.", kind="changed"
                    )
                return data
    raise ImageError(
        f"{uri} is not kept any more: 'gmv-qdrant adopt' reads it from its payload.", kind="absent"
    )


def _path(folder: Path, name: str) -> Path:
    return folder / name[:2] / name
