"""Where images may be read from: what the user named, and nothing else that a URI leads to."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Sequence
from functools import lru_cache

from gmv_qdrant.errors import ImageError
from gmv_qdrant.images.names import printable

SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)(?:::[^/]*)?://")
"""How a URL begins; of one letter it would be a drive."""


def check_allowed(uri: str, allowed: Sequence[str]) -> None:
    """Raises `ImageError` unless ``uri`` lies at or below one of the places in ``allowed``.

    A place is a file, a folder, or how a URL begins (``hf://NAME``, ``s3://bucket/``, ``https://host/folder/``).
    Links are followed before paths are compared, ``..`` is resolved, and a URL that chains others
    (``zip://x::https://...``) or carries a password is never allowed.
    """
    if not SCHEME.match(uri):
        return
    if "::" in uri:
        raise ImageError(
            f"{without_credentials(uri)} chains several places, which isn't read.", kind="foreign"
        )
    if without_credentials(uri) != uri:
        raise ImageError(
            f"{without_credentials(uri)} was given with credentials in it: keep those in the environment.",
            kind="foreign",
        )
    scheme, _, rest = uri.partition("://")
    for place in allowed:
        theirs, mark, beginning = place.partition("://")
        if mark and theirs.lower() == scheme.lower() and _below(rest, beginning):
            return
    raise ImageError(
        f"{uri} isn't among the places that were given to read from: --allow {_start(uri)}, if it may be read.",
        kind="foreign",
    )


def check_file(path: str, allowed: Sequence[str]) -> None:
    """As `check_allowed`, of a local path without a member after it."""
    real = os.path.realpath(path)
    if not any(
        real == root or real.startswith(root.rstrip(os.sep) + os.sep) for root in _roots(tuple(allowed))
    ):
        raise ImageError(
            f"{printable(path)} isn't in a folder that was given to read from"
            + (f" (it leads to {printable(real)})" if real != os.path.abspath(path) else "")
            + ": --allow its folder, if it may be read.",
            kind="foreign",
        )


@lru_cache(maxsize=64)
def _roots(allowed: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(os.path.realpath(place) for place in allowed if not SCHEME.match(place))


def _below(rest: str, beginning: str) -> bool:
    """Whether the path of a URL lies under a beginning, by whole names: ``host`` isn't ``host.evil``."""
    path = posixpath.normpath(re.split(r"[?#]", rest)[0])
    if ".." in re.split(r"[/\\\\]", rest.replace("%2e", ".").replace("%2E", ".")):
        return False
    beginning = beginning.rstrip("/")
    return (
        not beginning
        or path == beginning
        or path.startswith((beginning + "/", beginning + ":", beginning + "@"))
    )


def _start(uri: str) -> str:
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}/"


_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/?#\s@]*@")
_SECRET = re.compile(
    r"([?&#;])(?:[\w.-]*(?:token|secret|signature|password|passwd|credential|accesskeyid)[\w.-]*"
    r"|sig|key|api_?key|pwd|auth)=[^&#;\s]*",
    re.IGNORECASE,
)


def without_credentials(text: str) -> str:
    """A text, without users, passwords and signatures in the URLs that it has."""
    return _SECRET.sub(r"\1", _USER.sub(r"\1", text)) if "://" in text else text
