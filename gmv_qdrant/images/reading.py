"""The way back from a URI to an image's bytes, to where reading is allowed and nowhere else."""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

from gmv_qdrant.errors import ImageError, SourceError, first_line
from gmv_qdrant.images import embedded, limits
from gmv_qdrant.images.allowed import SCHEME, check_allowed, check_file
from gmv_qdrant.images.archives import open_archive
from gmv_qdrant.images.hub import HUB, read_hub_row
from gmv_qdrant.images.kinds import HEAD, kind_of
from gmv_qdrant.images.names import printable
from gmv_qdrant.images.parquet import read_row
from gmv_qdrant.images.records import read_file, too_large

SECONDS = 60.0
"""That a server may take to answer, or to send the next bytes."""


def read_uri(uri: str, allowed: Sequence[str]) -> bytes:
    """The bytes of an image, from the URI that its `Record` had, or from a URL.

    allowed: the folders, files and beginnings of URLs that the user named. Nothing else is read, wherever a link,
    ``..`` or a server's redirection leads. Raises `ImageError` when nothing readable is there, or it isn't allowed.
    """
    if uri.startswith("file:///"):
        uri = unquote(uri.removeprefix("file://"))
    if uri.startswith(embedded.SCHEME):
        return embedded.read_kept(uri, allowed)
    if SCHEME.match(uri):
        check_allowed(uri, allowed)
        return _read_hub(uri) if uri.startswith(HUB) and "#" in uri else _read_url(uri, allowed)
    path, part = locate(uri)
    check_file(path, allowed)
    return read_file(path) if part is None else read_part(path, part)


def locate(uri: str) -> tuple[str, str | None]:
    """The file that a URI leads to, and the part of it that it names. Raises `ImageError` when there is none."""
    if os.path.exists(uri):
        return uri, None
    for mark in re.finditer("#", uri):  # paths and names of members may contain the mark themselves
        path = uri[: mark.start()]
        if os.path.isfile(path):
            return path, uri[mark.end() :]
    raise ImageError(f"{printable(uri)} does not exist any more.", kind="absent")


def read_part(path: str, part: str) -> bytes:
    """The bytes of ``path#part``: a row of a table, a member of an archive. Raises `ImageError`."""
    kind = kind_of(read_file(path, most=HEAD))
    if kind is None or kind.name != "parquet":
        archive = open_archive(path)
        return archive.read(archive.entry(part))
    if not part.isascii() or not part.isdecimal() or len(part) > 18:
        raise ImageError(f"{printable(path)}#{part} names no row: after # comes a number.", kind="absent")
    return read_row(path, int(part))


def _read_hub(uri: str) -> bytes:
    name, _, row = uri.rpartition("#")
    if not row.isascii() or not row.isdecimal() or len(row) > 18:
        raise ImageError(f"{uri} names no row: after # comes a number.", kind="absent")
    try:
        return read_hub_row(name, int(row))
    except SourceError as error:
        raise ImageError(str(error), kind="unreadable") from error


class _Redirected(urllib.request.HTTPRedirectHandler):
    """Follows a server only to where reading is allowed."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self.allowed = allowed

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        check_allowed(newurl, self.allowed)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _read_url(url: str, allowed: Sequence[str]) -> bytes:
    try:
        if url.lower().startswith(("http://", "https://")):
            opener = urllib.request.build_opener(_Redirected(allowed))
            with opener.open(url, timeout=SECONDS) as answer:
                data: bytes = answer.read(limits.FILE_BYTES + 1)
        else:
            import fsspec

            with fsspec.open(url, "rb") as file:
                data = file.read(limits.FILE_BYTES + 1)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"{url} cannot be read: {first_line(error)}.", kind="unreadable") from error
    if len(data) > limits.FILE_BYTES:
        raise ImageError(too_large(len(data)), kind="too-large")
    return data
