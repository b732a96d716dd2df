"""Folders on disk: ten thousand files in well under a second, each real folder once, and nothing outside."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from gmv_qdrant.errors import ImageError
from gmv_qdrant.images import limits, names
from gmv_qdrant.images.allowed import check_file
from gmv_qdrant.images.census import Census
from gmv_qdrant.images.kinds import HEAD
from gmv_qdrant.images.members import Member
from gmv_qdrant.images.records import Unusable, irregular, read_file

_LONGEST_TIME = (1 << 63) - 1


class File(Member):
    """A file on disk."""

    __slots__ = ("_allowed", "_is_link", "_stat")

    def __init__(self, path: str, uri: str, allowed: Sequence[str], *, is_link: bool) -> None:
        """path: within the tree. allowed: where a link may lead."""
        self.path, self.uri = path, uri
        self._allowed, self._is_link = allowed, is_link
        self._stat: os.stat_result | None = None

    @property
    def size(self) -> int:
        return self._status().st_size

    @property
    def mtime_ns(self) -> int | None:
        """None for a time that no ledger has room for: after the year 2262."""
        time = self._status().st_mtime_ns
        return time if -_LONGEST_TIME <= time <= _LONGEST_TIME else None

    @property
    def version(self) -> tuple[object, ...]:
        try:
            return self.size, self._status().st_mtime_ns, self._status().st_ino
        except ImageError:  # reading it says why
            return ()

    def check(self) -> None:
        try:
            self.uri.encode()
        except UnicodeEncodeError:
            self.uri = names.printable(self.uri)
            raise ImageError(
                "the path is not valid UTF-8, so nothing could refer to it; rename it", kind="name"
            ) from None
        status = self._status()
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(irregular(status.st_mode), kind="not-a-file")
        if self._is_link:
            check_file(self.uri, self._allowed)

    def read(self, limit: int = limits.FILE_BYTES) -> bytes:
        self.check()
        return read_file(self.uri, limit)

    def head(self) -> bytes:
        self.check()
        return read_file(self.uri, most=HEAD)

    def _status(self) -> os.stat_result:
        if self._stat is None:
            try:
                self._stat = os.stat(self.uri)
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise ImageError(f"cannot be read: {reason}", kind="unreadable") from error
        return self._stat


@dataclass(slots=True)
class Listing:
    """The files of one folder, by name."""

    path: str
    """From the top of the tree; empty at the top."""
    files: list[File] = field(default_factory=list)


def walk(root: str, allowed: Sequence[str], census: Census) -> Iterator[Listing | Unusable]:
    """Each folder at and below ``root``, once: files by name, then its folders by name.

    Folders behind links come last, when they lead to where reading is allowed and weren't walked by then; so a
    labyrinth of links ends. Hidden folders are counted, and passed over.
    """
    walked: set[tuple[int, int]] = set()
    links: list[str] = []
    stack = [""]
    while stack or links:
        path = stack.pop() if stack else links.pop(0)
        place = os.path.join(root, path)
        try:
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in walked:
                census.pass_over("links to folders already walked", names.printable(place))
                continue
            if path and os.path.islink(place):
                check_file(place, allowed)
            walked.add((status.st_dev, status.st_ino))
            with os.scandir(place) as entries:
                listed = sorted(entries, key=lambda entry: os.fsencode(entry.name))
        except (ImageError, OSError) as error:
            yield _unusable(place, error)
            continue
        listing = Listing(path)
        below: list[str] = []
        for entry in listed:
            inside = os.path.join(path, entry.name)
            if not _is_folder(entry):
                listing.files.append(File(inside, entry.path, allowed, is_link=entry.is_symlink()))
            elif not _passed_over(entry, census):
                (links if entry.is_symlink() else below).append(inside)
        yield listing
        stack += reversed(below)


def _unusable(place: str, error: ImageError | OSError) -> Unusable:
    if isinstance(error, ImageError):
        return Unusable(names.printable(place), str(error), "link")
    return Unusable(names.printable(place), f"the folder cannot be read: {error.strerror}", "unreadable")


def _passed_over(folder: os.DirEntry[str], census: Census) -> bool:
    if hidden := names.is_hidden(folder.name):
        census.pass_over("hidden or system folders", names.printable(folder.path))
    return hidden


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle: not a folder, and its stat says why
        return False
