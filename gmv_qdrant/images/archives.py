"""Tar and zip archives of images: WebDataset samples, or plain files.

Read with the standard library: the `datasets` reader of WebDataset demands the same members in every
sample, and gives no way back to one member. One sample is in memory at a time.
"""

from __future__ import annotations

import json
import os
import posixpath
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache

from gmv_qdrant.errors import ImageError, SourceError
from gmv_qdrant.images.decode import IMAGE_SUFFIXES
from gmv_qdrant.images.records import Record, Unusable, describe, printable

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    OSError,
    EOFError,
    zlib.error,
    RuntimeError,
    NotImplementedError,
)

_Member = tuple[str, Callable[[], bytes]]


def archive_stream(path: str, owner: str | None) -> Iterator[Record | Unusable]:
    """The images of an archive. Members that share a name up to its first dot are one sample (WebDataset).

    A sample's ``.json`` member gives its columns, ``.cls`` its label, ``.txt`` the attribute ``txt``; a
    sample without them has the name of the folder within the archive as its label. Damage after the
    first image ends the stream with an `Unusable`; before it, raises `SourceError`.
    """
    members = _tar_members(path) if path.endswith(TAR_SUFFIXES) else _zip_members(path)
    found = False
    try:
        for key, sample in _samples(members):
            for item in _sample_images(path, key, sample, owner):
                found = True
                yield item
    except _DAMAGE as error:
        if not found:
            raise SourceError(f"The archive {path} cannot be read: {error}; is it complete?") from error
        yield Unusable(path, f"the archive is damaged, and what follows in it is lost: {error}")
        return
    if not found:
        raise SourceError(f"The archive {path} holds no images (looked for .png, .jpg, .webp and the like).")


def read_member(path: str, name: str) -> bytes:
    """One member's bytes. Raises `ImageError` when it isn't there or cannot be read."""
    try:
        if not path.endswith(TAR_SUFFIXES):
            with zipfile.ZipFile(path) as archive:
                return archive.read(name)
        if not path.endswith(".tar"):
            return next(read() for member, read in _tar_members(path) if member == name)
        stat = os.stat(path)
        offset, size = _tar_index(path, (stat.st_size, stat.st_mtime_ns))[name]
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)
    except (KeyError, StopIteration):
        raise ImageError(f"The archive {path} has no member {name}.") from None
    except _DAMAGE as error:
        raise ImageError(f"The member {name} of {path} cannot be read: {error}.") from error


def _samples(members: Iterator[_Member]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Neighbouring members of one sample: its key, and bytes by extension."""
    current, sample = None, dict[str, bytes]()
    for name, read in members:
        folder, base = posixpath.split(name)
        stem, dot, extension = base.partition(".")
        if not stem or not dot or folder.startswith("__MACOSX"):  # hidden, or no extension
            continue
        key = posixpath.join(folder, stem)
        if key != current and current is not None:
            yield current, sample
            sample = {}
        current = key
        sample[extension] = read()
    if current is not None:
        yield current, sample


def _sample_images(
    path: str, key: str, sample: dict[str, bytes], owner: str | None
) -> Iterator[Record | Unusable]:
    images = [ext for ext in sample if "." + ext.rpartition(".")[2].lower() in IMAGE_SUFFIXES]
    images = [
        ext for ext in images if "." not in ext
    ] or images  # 1.png is the image, 1.mask.png belongs to it
    if not images:
        return
    columns: dict[str, object] = {}
    try:
        columns = _columns(sample)
    except ValueError as error:
        yield Unusable(printable(f"{path}#{key}.json"), f"not valid JSON, so the sample is left out: {error}")
        return
    described = describe(columns, owner=owner)
    if not columns:
        described["label"] = posixpath.basename(posixpath.dirname(key)) or None
    for extension in images:
        uri = printable(f"{path}#{key}.{extension}")
        yield Record(uri=uri, data=sample[extension], **described)


def _columns(sample: dict[str, bytes]) -> dict[str, object]:
    columns: dict[str, object] = {}
    if "cls" in sample:
        columns["label"] = sample["cls"].decode(errors="replace").strip()
    if "txt" in sample:
        columns["txt"] = sample["txt"].decode(errors="replace")
    if "json" in sample:
        parsed = json.loads(sample["json"])
        columns |= parsed if isinstance(parsed, dict) else {"json": parsed}
    return columns


def _tar_members(path: str) -> Iterator[_Member]:
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
            if member.isreg():
                yield member.name, lambda member=member: _extract(archive, member)  # type: ignore[misc]


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    data = file.read() if file is not None else b""
    if len(data) != member.size:
        raise tarfile.ReadError(f"{member.name} is cut short")
    return data


def _zip_members(path: str) -> Iterator[_Member]:
    with zipfile.ZipFile(path) as archive:
        for name in sorted(name for name in archive.namelist() if not name.endswith("/")):
            yield name, lambda name=name: archive.read(name)  # type: ignore[misc]


@lru_cache(maxsize=4)
def _tar_index(path: str, _version: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """Where each member's bytes stand in an uncompressed tar; its size and time only key the cache."""
    with tarfile.open(path, "r:") as archive:
        return {member.name: (member.offset_data, member.size) for member in archive if member.isreg()}
