"""Everything that images come from, as one stream of records, and beforehand, what there is."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gmv_qdrant.errors import ImageError, SourceError
from gmv_qdrant.images.allowed import SCHEME, without_credentials
from gmv_qdrant.images.census import Census
from gmv_qdrant.images.described import Rows
from gmv_qdrant.images.descriptions import names_of
from gmv_qdrant.images.hub import HUB, check_hub
from gmv_qdrant.images.names import is_table, printable
from gmv_qdrant.images.reading import read_uri as read_uri
from gmv_qdrant.images.records import Record, Unusable
from gmv_qdrant.images.walk import Walk


@dataclass(frozen=True)
class Sources:
    """All images that ``paths`` lead to: iterate it, as often as you like, or send it to another process.

    only: URIs to keep; None keeps all. allowed: where links may lead, beside the paths themselves.
    """

    paths: tuple[str, ...]
    owner: str | None = None
    only: frozenset[str] | None = None
    allowed: tuple[str, ...] = ()
    census: Census = field(default_factory=Census, compare=False)
    """What the last iteration has come by so far."""
    _rows: Rows = field(default_factory=Rows, compare=False, repr=False)
    """The tables that a plan has read needn't be read again."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Sources, (self.paths, self.owner, self.only, self.allowed)

    def __iter__(self) -> Iterator[Record | Unusable]:
        self.census.clear()
        return self._stream(self.census, load=True)

    def plan(self) -> Census:
        """What there is, from names, tables and sidecars alone: how many images, and what is wrong with descriptions.

        No image is read. Raises `SourceError` when there is nothing that could be taken in.
        """
        census = Census()
        for _ in self._stream(census, load=False):
            pass
        if census.complete and not census.images and not census.unusable and self.only is None:
            what = printable(self.paths[0]) if len(self.paths) == 1 else f"The {len(self.paths)} paths"
            notes = "".join(f"; {note}" for note in census.notes[:3])
            raise SourceError(
                f"{what} holds no images, nor do the folders in it: {census.sentence()}{notes}."
            )
        for path in self.paths:
            _note_tables_above(path, census)
        return census

    def _stream(self, census: Census, *, load: bool) -> Iterator[Record | Unusable]:
        only = self.only
        walk = Walk(
            self.owner,
            (*self.paths, *self.allowed),
            census,
            load,
            (lambda uri: True) if only is None else (lambda uri: uri in only),
            self._rows,
        )
        folders = [path for path in self.paths if os.path.isdir(path)]
        for place, paths in itertools.groupby(self.paths, _place):
            if place is not None:
                yield from walk.files(place, list(paths))
                continue
            for path in paths:
                if path.startswith(HUB):
                    yield from walk.hub(path)
                else:
                    yield from walk.folder(path, os.path.basename(path) if len(folders) > 1 else None)


def _place(path: str) -> str | None:
    """The folder of a single file; None of a folder or a data set."""
    return None if path.startswith(HUB) or os.path.isdir(path) else os.path.dirname(path)


def open_sources(
    paths: Sequence[str | os.PathLike[str]],
    *,
    owner: str | None = None,
    only: frozenset[str] | None = None,
    allowed: Sequence[str] = (),
) -> Sources:
    """One stream of all images that ``paths`` lead to, in a fixed order and bounded memory.

    A path is a folder, an image file, a Parquet file with image bytes, a tar or zip archive, or ``hf://NAME[:SPLIT]``.
    ``owner`` owns what names no owner itself. Labels come from descriptions; where none has a place for a label, from
    the name of an image's folder below a given path (of the path itself where several folders are given). Links may
    lead to the paths and to the places ``allowed``, no further.

    Raises `SourceError` for a missing path, and for a data set that the hub doesn't give. Everything else that can't be
    used comes out of the stream as `Unusable`.
    """
    if not paths:
        raise SourceError("No path was given: name a folder, an image, a Parquet file, a tar or hf://NAME.")
    given = [os.fspath(path) for path in paths]
    for path in given:
        _check_path(path)
    checked = [path if path.startswith(HUB) else os.path.abspath(path) for path in given]
    _require_there([path for path in checked if not path.startswith(HUB)])
    for path in checked:
        if path.startswith(HUB):
            check_hub(path)
    return Sources(tuple(checked), _owner(owner), only, tuple(allowed))


def _require_there(paths: Sequence[str]) -> None:
    missing = [path for path in paths if not os.path.lexists(path)]
    if missing:
        others = f" (nor do {len(missing) - 1} more of the paths)" if missing[1:] else ""
        raise SourceError(
            f"{printable(missing[0])} does not exist{others}; check the spelling, or mount the disk."
        )


def _check_path(path: str) -> None:
    if without_credentials(path) != path:
        raise SourceError(
            f"{without_credentials(path)} was given with credentials in it, which would be kept: put them into the "
            "environment."
        )
    if SCHEME.match(path) and not path.startswith(HUB):
        raise SourceError(
            f"{path} can't be read: give a local path or hf://NAME; copy or mount the images first."
        )
    if "\0" in path:
        raise SourceError("A path has a zero byte in it; check the spelling.")


def _owner(owner: str | None) -> str | None:
    try:
        names = names_of([owner])
    except ImageError as error:
        raise SourceError(f"the owner can't be used: {error}") from None
    return names[0] if names else None


def _note_tables_above(path: str, census: Census) -> None:
    """A table in the folder above describes what is given, and isn't read unless its folder is."""
    above = os.path.dirname(path) if not path.startswith(HUB) and os.path.isdir(path) else None
    try:
        tables = [name for name in os.listdir(above) if is_table(name)] if above else []
    except OSError:
        return
    for name in tables:
        census.note(
            "is in the folder above, so it isn't used: give that folder to use it",
            os.path.join(str(above), name),
        )
