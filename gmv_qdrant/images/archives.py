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
_Sample = dict[str, bytes | ImageError]  # by extension; the error is that of a member damaged alone
_SIDECARS = ("json", "cls", "txt")


def archive_stream(path: str, owner: str | None) -> Iterator[Record | Unusable]:
    """The images of an archive. Members that share a name up to its first dot are one sample (WebDataset).

    A sample's ``.json`` member gives its columns, ``.cls`` its label, ``.txt`` the attribute ``txt``; a
    sample without them has the name of the folder within the archive as its label. Damage after the
    first image ends the stream with an `Unusable`; before it, raises `SourceError`.
    """
    members = _tar_members(path) if _is_tar(path) else _zip_members(path)
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
        if not _is_tar(path):
            with zipfile.ZipFile(path) as archive:
                return archive.read(name)
        if not path.lower().endswith(".tar"):
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


def _samples(members: Iterator[_Member]) -> Iterator[tuple[str, _Sample]]:
    """Neighbouring members of one sample: its key, and bytes by extension."""
    current, sample = None, _Sample()
    for name, read in members:
        folder, base = posixpath.split(name)
        stem, dot, extension = base.partition(".")
        hidden = any(part.startswith(".") and part.strip(".") for part in name.split("/"))
        if hidden or not dot or folder.startswith("__MACOSX"):
            continue
        key = posixpath.join(folder, stem)
        if key != current and current is not None:
            yield current, sample
            sample = {}
        current = key
        if _is_image(extension) or extension in _SIDECARS:
            try:
                sample[extension] = read()
            except ImageError as error:
                sample[extension] = error
    if current is not None:
        yield current, sample


def _sample_images(path: str, key: str, sample: _Sample, owner: str | None) -> Iterator[Record | Unusable]:
    images = [extension for extension in sample if _is_image(extension)]
    # 1.png is the image and 1.mask.png belongs to it; a.1.png and a.2.png are two images.
    images = [extension for extension in images if "." not in extension] or images
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
        data = sample[extension]
        if isinstance(data, ImageError):
            yield Unusable(uri, str(data))
        else:
            yield Record(uri, data=data, **described)


def _columns(members: _Sample) -> dict[str, object]:
    sample = {name: data for name, data in members.items() if isinstance(data, bytes)}
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
            yield name, lambda name=name: _unzip(archive, name)  # type: ignore[misc]


def _unzip(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except _DAMAGE as error:
        raise ImageError(f"the member {name} is damaged: {error}") from error


def _is_image(extension: str) -> bool:
    return "." + extension.rpartition(".")[2].lower() in IMAGE_SUFFIXES


def _is_tar(path: str) -> bool:
    return path.lower().endswith(TAR_SUFFIXES)


@lru_cache(maxsize=4)
def _tar_index(path: str, _version: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """Where each member's bytes stand in an uncompressed tar; its size and time only key the cache."""
    with tarfile.open(path, "r:") as archive:
        return {member.name: (member.offset_data, member.size) for member in archive if member.isreg()}
