"""One walk over everything that holds images: folders, archives, Parquet files, data sets of the hub.

Whatever is in them becomes a `Record`, an `Unusable`, or is counted in the census as what it is. Whatever one input
does to a library that reads it, that input is unusable, and the walk goes on.
"""

from __future__ import annotations

import io
import os
import posixpath
from collections import defaultdict
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gmv_qdrant.errors import ImageError
from gmv_qdrant.images import limits, names
from gmv_qdrant.images.archives import Archive, Entry, open_archive
from gmv_qdrant.images.census import Census
from gmv_qdrant.images.described import Exists, Rows, Table
from gmv_qdrant.images.descriptions import Description, Pairs, describe
from gmv_qdrant.images.folders import File, walk
from gmv_qdrant.images.hub import hub_image, hub_rows
from gmv_qdrant.images.kinds import kind_of
from gmv_qdrant.images.members import Folder, Found, Member, Tables, unusable
from gmv_qdrant.images.parquet import image_bytes, read_images
from gmv_qdrant.images.reading import locate
from gmv_qdrant.images.records import Record, Unusable, too_large
from gmv_qdrant.images.unpacked import is_compressed

PLANNED_ARCHIVE = 256 * limits.MIB
"""A compressed tar larger than this is only gone through when its images are wanted: it has to be unpacked for that."""

Item = Record | Unusable


class ArchiveMember(Member):
    """A member of an archive, whose index knows the way back to it."""

    __slots__ = ("archive", "entry")

    def __init__(self, archive: Archive, entry: Entry) -> None:
        self.archive, self.entry = archive, entry
        self.path = entry.path
        self.uri = f"{archive.path}#{entry.part}"

    @property
    def number(self) -> int:
        return self.entry.number

    @property
    def version(self) -> tuple[object, ...]:
        return self.archive.version

    def check(self) -> None:
        self.archive.check(self.entry)
        _check_way_back(self.uri, self.archive.path, self.entry.part)

    def read(self, limit: int = limits.FILE_BYTES) -> bytes:
        return self.archive.read(self.entry, limit)

    def head(self) -> bytes:
        return self.archive.head(self.entry)


def _place_in_archive(image: tuple[ArchiveMember, Description]) -> int:
    """In this order an archive is gone through once."""
    return image[0].entry.place


def _check_way_back(uri: str, path: str, part: str) -> None:
    if locate(uri) != (path, part):
        raise ImageError(
            "its name leads to another file, so nothing could refer to it; rename it", kind="name"
        )


@dataclass
class Walk:
    """load: give records the bytes that aren't in a file of their own; a walk that plans doesn't need them."""

    owner: str | None
    allowed: Sequence[str]
    census: Census
    load: bool = True
    wanted: Callable[[str], bool] = lambda uri: True
    """Whether an image is asked for, by its URI."""
    rows: Rows = field(default_factory=Rows)
    """Tables that were read before."""
    _tables: list[Table] = field(default_factory=list)
    """Those of the folder or archive that is gone through; the innermost are last."""

    def folder(self, root: str, label: str | None) -> Iterator[Item]:
        """Everything at and below a folder. label: of images right in it that nothing gives one."""
        mark = len(self._tables)
        governing: dict[str, Tables] = {}
        try:
            for listing in walk(root, self.allowed, self.census):
                if isinstance(listing, Unusable):
                    yield from self._given(listing)
                    continue
                here, path = os.path.join(root, listing.path), listing.path
                own = self._tables_among(listing.files, partial(_is_file, here))
                above = governing.get(posixpath.dirname(path), Tables()) if path else Tables()
                governing[path] = tables = Tables(own, path) if own else above
                found = Folder(listing.files, tables, self.census, label=os.path.basename(path) or label)
                yield from self._images_of(found, tables)
            yield from self._leftover(mark)
        finally:
            del self._tables[mark:]

    def files(self, folder: str, paths: Sequence[str]) -> Iterator[Item]:
        """Files of one folder, described by its tables and by the files beside them; only they are spoken of."""
        mark = len(self._tables)
        chosen = dict.fromkeys(os.path.basename(path) for path in paths)
        listed = _listed(folder)
        stems = {stem for name in chosen for stem in (name, posixpath.splitext(name)[0])}
        beside = [self._file(folder, name) for name in listed if _is_sidecar_of(stems, name)]
        try:
            own = self._tables_among(
                [self._file(folder, name) for name in listed if names.is_table(name)],
                partial(_is_file, folder),
            )
            members = [self._file(folder, name) for name in chosen]
            found = Folder(members, Tables(own), self.census, beside=beside)
            yield from self._images_of(found, Tables(own))
            for table in own:
                yield from (self._counted(item) for item in table.leftover() if item.kind == "table")
        finally:
            del self._tables[mark:]

    def _images_of(self, found: Folder, tables: Tables) -> Iterator[Item]:
        for image in found.images():
            yield from self._given(image)
        for container in found.containers:
            yield from self._container(container, tables)

    def hub(self, uri: str) -> Iterator[Item]:
        """A data set of the hub."""
        self.census.complete = self.census.complete and self.load
        if not self.load:
            return
        name, layout, rows = hub_rows(uri)
        yield from self._rows(name, layout.notes, rows, lambda value: hub_image(uri, value))

    # -- containers --------------------------------------------------------------------------------------------------

    def _container(self, member: Member, tables: Tables) -> Iterator[Item]:
        """What a file holds that is an archive or a Parquet file, by its content."""
        try:
            yield from self._contents(member, tables)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is about this one file
            found = unusable(member.uri, error)
            if found.kind == "no-images":
                self.census.pass_over("tables without images", found.uri)
            elif found.kind == "archive" and not names.is_container(member.name):
                self.census.pass_over(names.suffix(member.name) or "files without a suffix", found.uri)
            elif self.wanted(found.uri):
                yield self._counted(found)

    def _contents(self, member: Member, tables: Tables) -> Iterator[Item]:
        member.check()
        head = member.head()
        kind = kind_of(head)
        if (kind is not None and kind.name == "parquet") or names.suffix(member.name) == ".parquet":
            layout, rows = read_images(member.uri, load=self.load)
            _check_way_back(f"{member.uri}#0", member.uri, "0")
            is_whole = yield from self._rows(member.uri, layout.notes, rows, image_bytes)
        elif is_compressed(head) and not self.load and os.path.getsize(member.uri) > PLANNED_ARCHIVE:
            self.census.complete = is_whole = False
        else:
            archive = open_archive(member.uri)
            yield from self._archive(archive, member.path, tables)
            is_whole = not archive.damage
        if is_whole:
            self.census.whole.append(member.uri)

    def _archive(self, archive: Archive, path: str, tables: Tables) -> Iterator[Item]:
        mark = len(self._tables)
        folders = self._folders_of(archive)
        present = {entry.path for entry in archive.entries}
        governing = {"": Tables(tables.tables, tables.folder, path)}
        images: list[tuple[ArchiveMember, Description]] = []
        try:
            for folder in sorted(folders):
                own = self._tables_among(folders[folder], partial(_is_member, present, folder))
                above = folder
                while above not in governing:
                    above = posixpath.dirname(above)
                governing[folder] = Tables(own, folder) if own else governing[above]
                label = posixpath.basename(folder) or None
                found = Folder(
                    folders[folder], governing[folder], self.census, label=label, is_tar=archive.is_tar
                )
                for item in found.images():
                    if isinstance(item, Unusable):
                        yield from self._given(item)
                    else:
                        images.append(item)  # type: ignore[arg-type]
                for container in found.containers:
                    self.census.pass_over("archives or tables in an archive", container.uri)
            for image in sorted(images, key=_place_in_archive):
                yield from self._given(image)
            if archive.damage:
                yield from self._given(Unusable(names.printable(archive.path), archive.damage, "archive"))
            yield from self._leftover(mark)
        finally:
            del self._tables[mark:]

    def _folders_of(self, archive: Archive) -> dict[str, list[ArchiveMember]]:
        """The members by folder; those in hidden ones are counted."""
        folders: dict[str, list[ArchiveMember]] = defaultdict(list)
        for entry in archive.entries:
            folder = posixpath.dirname(entry.path)
            if any(names.is_hidden(part) for part in folder.split("/") if part):
                self.census.pass_over("hidden or system files", f"{archive.path}#{entry.part}")
            else:
                folders[folder].append(ArchiveMember(archive, entry))
        return folders

    def _rows(
        self,
        uri: str,
        notes: Sequence[str],
        rows: Iterator[tuple[Pairs, object]],
        bytes_of: Callable[[object], bytes],
    ) -> Generator[Item, None, bool]:
        """The images of a table; True where none of it was damaged."""
        for note in notes:
            self.census.note(note, uri)
        number = -1
        try:
            for number, (pairs, image) in enumerate(rows):
                row = f"{uri}#{number}"
                if not self.wanted(row):
                    continue
                try:
                    data = bytes_of(image) if self.load else None
                    yield self._record(row, describe(pairs), data=data)
                except Exception as error:  # noqa: BLE001 - whatever it is, it is about this one row
                    yield self._counted(unusable(row, error))
        except Exception as error:  # noqa: BLE001
            broken = unusable(uri, error)
            yield self._counted(
                Unusable(broken.uri, f"it is damaged from row {number + 1} on: {broken.reason}", "table")
            )
            return False
        if number < 0:
            self.census.pass_over("tables without rows", uri)
        return True

    # -- what all of them share --------------------------------------------------------------------------------------

    def _given(self, item: Found) -> Iterator[Item]:
        """An image as a record, with its bytes where they are wanted."""
        if isinstance(item, Unusable):
            if self.wanted(item.uri):
                yield self._counted(item)
            return
        member, description = item
        if not self.wanted(member.uri):
            return
        try:
            if isinstance(member, File):
                if member.size > limits.FILE_BYTES:
                    raise ImageError(too_large(member.size), kind="too-large")
                facts: dict[str, Any] = {"size": member.size, "mtime_ns": member.mtime_ns}
            else:
                facts = {"data": member.read() if self.load else None}
            yield self._record(member.uri, description, **facts)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is about this one image
            yield self._counted(unusable(member.uri, error))

    def _record(self, uri: str, description: Description, **facts: Any) -> Record:
        for note in description.notes:
            self.census.note(note, uri)
        record = Record(
            uri,
            description.owners or ((self.owner,) if self.owner else ()),
            description.label,
            description.licence,
            description.attributes,
            **facts,
        )
        self.census.count(record)
        return record

    def _counted(self, item: Unusable) -> Unusable:
        self.census.count(item)
        return item

    def _file(self, folder: str, name: str) -> File:
        path = os.path.join(folder, name)
        return File(name, path, self.allowed, is_link=os.path.islink(path))

    def _tables_among(self, members: Sequence[Member], exists: Exists) -> tuple[Table, ...]:
        """The metadata tables among the files of a folder, read."""
        found = []
        for member in members:
            if names.is_table(member.name):
                opened = partial(_opened, member)
                table = self.rows.table(member.uri, member.version, opened, exists, self.census.note)
                self._tables.append(table)
                found.append(table)
                if table.is_other:
                    self.census.pass_over(f"{names.suffix(member.name)} about no image", table.uri)
                elif not table.problem:  # else it comes out as unusable
                    self.census.pass_over("descriptions", table.uri)
                    self.census.whole.append(table.uri)
        return tuple(table for table in found if not table.is_other)

    def _leftover(self, mark: int) -> Iterator[Unusable]:
        for table in self._tables[mark:]:
            yield from (self._counted(item) for item in table.leftover() if self.wanted(item.uri))


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:  # its files say why they can't be read
        return []


def _is_sidecar_of(stems: Collection[str], name: str) -> bool:
    return names.suffix(name) in names.SIDECAR_SUFFIXES and posixpath.splitext(name)[0] in stems


def _is_file(folder: str, name: str) -> bool:
    return os.path.isfile(os.path.join(folder, name))


def _is_member(present: Collection[str], folder: str, name: str) -> bool:
    return posixpath.join(folder, name) in present


def _opened(member: Member) -> Any:
    """A table's bytes: a file's from disk, a member's from memory."""
    if isinstance(member, File):
        member.check()
        return open(member.uri, "rb")
    return io.BytesIO(member.read())
