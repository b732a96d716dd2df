"""One folder, on disk or in an archive: each of its files becomes an image with its description, or is said to be none.

This is the only place that decides what a file is, so that a zip of a folder gives what the folder gives.
"""

from __future__ import annotations

import dataclasses
import posixpath
import unicodedata
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gmv_qdrant.errors import ImageError, first_line
from gmv_qdrant.images import limits, names
from gmv_qdrant.images.census import Census
from gmv_qdrant.images.described import Table
from gmv_qdrant.images.descriptions import Description, Pairs, describe, merged
from gmv_qdrant.images.kinds import kind_of
from gmv_qdrant.images.records import Unusable
from gmv_qdrant.images.tables import pairs_of, parse_json


class Member(ABC):
    """A file of a folder or of an archive."""

    __slots__ = ("path", "uri")
    path: str
    """From the top of the tree, with ``/`` between names."""
    uri: str

    @property
    @abstractmethod
    def version(self) -> tuple[object, ...]:
        """Another one where its content may be another."""

    @abstractmethod
    def read(self, limit: int = limits.FILE_BYTES) -> bytes:
        """All bytes. Raises `ImageError`, also when there are more than ``limit``."""

    @abstractmethod
    def head(self) -> bytes:
        """The first bytes, as many as tell what it is. Raises `ImageError`."""

    @abstractmethod
    def check(self) -> None:
        """Raises `ImageError` when it is nothing to read: a device, a link that leads out, too large."""

    @property
    def name(self) -> str:
        return posixpath.basename(self.path)

    @property
    def number(self) -> int:
        """1, and more where an archive has the name several times."""
        return 1


Found = tuple[Member, Description] | Unusable
"""An image with what is known about it, or what can't be one."""


@dataclass(frozen=True, slots=True)
class Tables:
    """The tables that govern a folder."""

    tables: tuple[Table, ...] = ()
    folder: str = ""
    """Where they are, from the top of the tree."""
    archive: str = ""
    """The archive, from the top of the tree, whose members they are asked about."""

    def paths(self, member: Member) -> Sequence[str]:
        """How they may call a file: an archive is named, stands for a folder of its name, or for its own folder."""
        found = [member.path]
        if self.archive:
            inside, beside = names.without_suffix(self.archive), posixpath.dirname(self.archive)
            found = [posixpath.join(place, member.path) for place in (self.archive, inside, beside)]
        return [path.removeprefix(f"{self.folder}/") for path in found]

    @property
    def has_label(self) -> bool:
        return any(table.has_label for table in self.tables)

    def describe(self, member: Member) -> Description | None:
        """What they say of a file. Raises `ImageError` where they disagree or can't be used."""
        for path in self.paths(member):
            found = [description for table in self.tables if (description := table.describe(path))]
            if found:
                together = " and ".join(table.uri for table in self.tables)
                description = found[0]
                for other in found[1:]:
                    description = merged(description, other, together)
                return description
        return None


_ANNOTATIONS = names.words("""
    mask masks seg segmentation label labels depth normal normals canny edge edges hed pose openpose condition
    conditioning control alpha matte trimap thumb thumbnail preview
""")
"""What stands between the dots of a second image of a WebDataset sample: ``001.mask.png`` belongs to ``001.jpg``."""


class Folder:
    """The files of one folder, sorted into images, their descriptions, containers and the rest."""

    def __init__(
        self,
        members: Sequence[Member],
        tables: Tables,
        census: Census,
        *,
        label: str | None = None,
        is_tar: bool = False,
        beside: Sequence[Member] = (),
    ) -> None:
        """label: of images that nothing gives one. is_tar: names are those of WebDataset, in samples up to a dot.

        beside: files that may describe, and weren't asked for themselves.
        """
        self.members, self.tables, self.census, self.is_tar = members, tables, census, is_tar
        self.label = unicodedata.normalize("NFC", label) if label else None
        self.containers: list[Member] = []
        """Archives and Parquet files among them, once `images` was gone through."""
        self._sidecars: dict[str, list[Member]] = defaultdict(list)
        self._used: set[str] = set()
        self._stems: set[str] = set()
        for member in (*members, *beside):
            ending = names.suffix(member.name)
            if ending in names.SIDECAR_SUFFIXES and not names.is_table(member.name):
                self._sidecars[_stem(member.name)].append(member)
            elif ending in names.IMAGE_SUFFIXES:
                self._stems.add(_stem(member.name))

    def images(self) -> Iterator[Found]:
        """Each file once, in order; what is no image is counted."""
        sidecars: list[Member] = []
        for member in self.members:
            if names.is_table(member.name):  # whoever read it counts it
                continue
            try:
                row = self.tables.describe(member)
                if row is None and names.suffix(member.name) in names.SIDECAR_SUFFIXES:
                    sidecars.append(member)
                elif row is not None or self._is_tried(member):
                    member.check()
                    yield member, self._described(member, row)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is about this one file
                if _is_no_image(member):
                    self.census.pass_over(_what(member.name), member.uri)
                else:
                    yield unusable(member.uri, error)
        for member in sidecars:
            used = _stem(member.name) in self._used
            self.census.pass_over(
                "descriptions" if used else f"{_what(member.name)} about no image", member.uri
            )

    def _is_tried(self, member: Member) -> bool:
        """Whether it may be an image. What isn't is counted, or kept for later where it may hold some."""
        ending = names.suffix(member.name)
        if names.is_hidden(member.name):
            self.census.pass_over("hidden or system files", member.uri)
        elif names.is_container(member.name):
            self.containers.append(member)
        elif ending in names.OTHER_SUFFIXES:
            is_sheet = _stem(member.name).lower() == "metadata" and ending in (".xlsx", ".xls", ".ods")
            what = f"{ending} tables, which aren't read: save them as CSV" if is_sheet else _what(member.name)
            self.census.pass_over(what, member.uri)
        elif self._is_annotation(member.name):
            self.census.pass_over("second images of a WebDataset sample", member.uri)
        elif ending not in names.IMAGE_SUFFIXES and _holds_images(member):
            self.containers.append(member)
        else:
            return True
        return False

    def _is_annotation(self, name: str) -> bool:
        key, *middle, _ = name.split(".") if name.count(".") > 1 else (name, "")
        return (
            self.is_tar
            and bool(middle)
            and middle[-1].lower() in _ANNOTATIONS
            and unicodedata.normalize("NFC", key) in self._stems
            and _stem(name) not in self._sidecars
        )

    def _described(self, member: Member, row: Description | None) -> Description:
        beside = self._beside(member)
        if row is not None and beside is not None:
            description = merged(row, beside, "its row and the file beside it")
        else:
            description = row or beside or Description()
        if description.has_label or self.tables.has_label:
            return description
        return dataclasses.replace(description, label=self.label)

    def _beside(self, member: Member) -> Description | None:
        """What files of the same name say: ``a.json`` or ``a.jpg.json`` of ``a.jpg``."""
        stems = [unicodedata.normalize("NFC", member.name), _stem(member.name)]
        if self.is_tar:
            stems.append(stems[0].partition(".")[0])
        found = next((stem for stem in stems if stem in self._sidecars), None)
        if found is None:
            return None
        self._used.add(found)
        named = self._sidecars[found]
        return _together([one for one in named if one.number == member.number] or named)


def _together(sidecars: Sequence[Member]) -> Description:
    """What files beside an image say: texts count where no JSON has a column of their name."""
    pairs: list[tuple[str, object]] = []
    texts: dict[str, object] = {}
    for sidecar in sidecars:
        if names.suffix(sidecar.name) == ".json":
            pairs += _columns(sidecar)
        else:
            texts |= dict(_columns(sidecar))
    there = {name.strip().casefold() for name, _ in pairs}
    columns = [*pairs, *((name, value) for name, value in texts.items() if name not in there)]
    return dataclasses.replace(describe(columns), has_label=bool(pairs) or "label" in texts)


def _columns(sidecar: Member) -> Pairs:
    """What a file beside an image says. Raises `ImageError`."""
    ending = names.suffix(sidecar.name)
    try:
        data = sidecar.read(limits.SIDECAR_BYTES)
        if ending != ".json":
            text = data.decode(errors="replace").strip("\ufeff\r\n ")
            return [("label" if ending == ".cls" else "txt", text)]
        value = parse_json(data)
    except (ImageError, ValueError, RecursionError) as error:
        raise ImageError(
            f"its description {sidecar.uri} can't be read: {str(error) or 'it is nested too deeply'}",
            kind="description",
        ) from None
    return pairs_of(value) if isinstance(value, dict) else [("json", value)]


def unusable(uri: str, error: Exception) -> Unusable:
    """What can't be given because of any error at all."""
    if isinstance(error, ImageError):
        return Unusable(names.printable(uri), str(error), error.kind)
    kind, said = type(error).__name__, first_line(error)[:300]
    return Unusable(names.printable(uri), said if said == kind else f"{said} ({kind})")


def _is_no_image(member: Member) -> bool:
    """Whether what a table of no use might be about is no image by its name."""
    ending = names.suffix(member.name)
    return names.is_hidden(member.name) or ending in names.OTHER_SUFFIXES or ending in names.SIDECAR_SUFFIXES


def _holds_images(member: Member) -> bool:
    kind = kind_of(member.head())
    return kind is not None and kind.name in ("zip", "tar", "parquet")


def _stem(name: str) -> str:
    return unicodedata.normalize("NFC", posixpath.splitext(name)[0])


def _what(name: str) -> str:
    return names.suffix(name) or "files without a suffix"
