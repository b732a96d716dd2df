"""Everything that images come from, as one stream of records; and the way back from a URI to the bytes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote

from gmv_qdrant.errors import ImageError, SourceError
from gmv_qdrant.images.allowed import SCHEME, check_allowed, check_file
from gmv_qdrant.images.census import Census
from gmv_qdrant.images.containers import container_count, container_stream, is_container, read_part
from gmv_qdrant.images.folders import candidates, file_record, folder_stream
from gmv_qdrant.images.records import Record, Unusable, printable, read_file
from gmv_qdrant.images.tables import HUB, check_hub, hub_stream, read_hub_row


@dataclass(frozen=True)
class Sources:
    """All images that ``paths`` lead to: iterate it, as often as you like, or send it to another process.

    only: URIs to keep; None keeps all.
    """

    paths: tuple[str, ...]
    owner: str | None = None
    only: frozenset[str] | None = None
    census: Census = field(default_factory=Census, compare=False)
    """What the last iteration has come by so far."""

    def __iter__(self) -> Iterator[Record | Unusable]:
        self.census.clear()
        for item in _stream(self.paths, self.owner):
            if self.only is None or item.uri in self.only:
                self.census.count(item)
                yield item

    def count(self) -> int | None:
        """As `count_images`."""
        return count_images(self.paths) if self.only is None else len(self.only)

    def parts(self) -> list[Sources]:
        """The same images in the same order, in parts that can be read side by side: files together, others alone."""
        found: list[list[str]] = []
        for path in self.paths:
            if found and _is_file(path) and _is_file(found[-1][-1]):
                found[-1].append(path)
            else:
                found.append([path])
        return [Sources(tuple(paths), self.owner, self.only) for paths in found]


def _is_file(path: str) -> bool:
    return not (path.startswith(HUB) or os.path.isdir(path) or is_container(path))


def open_sources(
    paths: Sequence[str], *, owner: str | None = None, only: frozenset[str] | None = None
) -> Sources:
    """One stream of all images that ``paths`` lead to, in a fixed order and bounded memory.

    A path is a folder, an image file, a Parquet file with image bytes, a tar (WebDataset) or zip
    archive, or ``hf://NAME[:SPLIT]``. ``owner`` owns what names no owner itself. Labels come from the
    metadata; where it has no label column, or there is none, from the name of an image's folder.

    All paths are checked here, before the first record. Raises `SourceError` for a missing path, an empty
    folder, a data set that the hub doesn't give; later, from the stream, for a damaged metadata file and
    for a table or an archive without images.
    """
    if not paths:
        raise SourceError("No path was given: name a folder, an image, a Parquet file, a tar or hf://NAME.")
    checked = [path if path.startswith(HUB) else os.path.abspath(path) for path in map(os.fspath, paths)]
    missing = [path for path in checked if not path.startswith(HUB) and not os.path.exists(path)]
    if missing:
        raise SourceError(
            f"{printable(missing[0])} does not exist"
            + (f" (nor do {len(missing) - 1} more of the paths)" if missing[1:] else "")
            + "; check the spelling, or mount the disk."
        )
    for path in checked:
        if path.startswith(HUB):
            check_hub(path)
        elif os.path.isdir(path) and next(candidates(path), None) is None:
            raise SourceError(f"The folder {printable(path)} holds no images, nor do the folders in it.")
    return Sources(tuple(checked), owner, only)


def _stream(paths: Sequence[str], owner: str | None) -> Iterator[Record | Unusable]:
    for path in paths:
        if path.startswith(HUB):
            yield from hub_stream(path, owner)
        elif os.path.isdir(path):
            yield from folder_stream(path, owner)
        elif is_container(path):
            yield from container_stream(path, owner)
        else:
            yield file_record(path, owner)


def count_images(paths: Sequence[str]) -> int | None:
    """How many images `open_sources` will try, for a progress bar; None where only reading would tell."""
    total = 0
    for path in paths:
        for file in candidates(path) if os.path.isdir(path) else (path,):
            count = None if file.startswith(HUB) else container_count(file) if is_container(file) else 1
            if count is None:
                return None
            total += count
    return total


def read_uri(uri: str, allowed: Sequence[str]) -> bytes:
    """The bytes of an image, from the URI that its `Record` had, or from a URL that fsspec reads.

    allowed: the folders, files and beginnings of URLs that the user named (`images.allowed`).
    Raises `ImageError` when there is nothing readable at that place, or when it isn't allowed.
    """
    if uri.startswith("file:///"):
        uri = unquote(uri.removeprefix("file://"))
    check_allowed(uri, allowed)
    if uri.startswith(HUB) and not uri.startswith(HUB + "datasets/") and "#" in uri:
        name, _, row = uri.rpartition("#")
        if not row.isdecimal():
            raise ImageError(f"{uri} names no row: after # comes a number.")
        return read_hub_row(name, int(row))
    if SCHEME.match(uri):
        return _read_url(uri)
    if os.path.exists(uri):
        check_file(uri, allowed)
        return read_file(uri)
    for mark in re.finditer("#", uri):  # paths and member names may contain the mark themselves
        path, part = uri[: mark.start()], uri[mark.end() :]
        if os.path.isfile(path) and is_container(path):
            check_file(path, allowed)
            return read_part(path, part)
    raise ImageError(f"{printable(uri)} does not exist any more.")


def _read_url(url: str) -> bytes:
    import fsspec

    try:
        with fsspec.open(url, "rb") as file:
            data: bytes = file.read()
    except Exception as error:
        message = (str(error).splitlines() or [""])[0].rstrip(".") or type(error).__name__
        raise ImageError(f"{url} cannot be read: {message}.") from error
    return data
