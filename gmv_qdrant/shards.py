"""Where shards of feature files are: immutable ``.npy`` files in a local folder, or behind any URL that fsspec writes.

A shard is a number. A local folder counts them; where several processes write at once, and behind a URL, the number
comes from the content. So work that is done twice writes the same file twice, and a copy never goes out of date.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from gmv_qdrant.errors import SettingsError, StoreError
from gmv_qdrant.files import sync_folder

NAMED_BY_CONTENT = 1 << 62
"""Numbers from here on come from contents; smaller ones were counted."""


class Shards(Protocol):
    """A folder of shards. Raises `StoreError` for what can't be written or read."""

    def numbers(self) -> list[int]:
        """Those that are there, whether anybody names them or not."""
        ...

    def open(self, shard: int) -> np.ndarray:
        """Memory-mapped."""
        ...

    def write(self, packed: np.ndarray) -> int:
        """A new shard, whole and safe when this returns; its number."""
        ...

    def remove(self, shards: Iterable[int]) -> None:
        """Remove these, and what killed writers left."""
        ...


def make_shards(place: Path | str, *, by_content: bool = False) -> Shards:
    """Shards in a local folder, or behind a URL; ``by_content`` where others may write there at the same time."""
    return RemoteShards(place) if isinstance(place, str) else LocalShards(place, by_content=by_content)


def require_empty(place: Path | str) -> None:
    """Raises `SettingsError` where there is something already: what isn't named by a ledger is removed one day."""
    if isinstance(place, Path):
        filled = place.is_dir() and any(place.iterdir())
    else:
        shards = RemoteShards(place)
        with shards._translated("be listed"):
            filled = shards._fs.exists(shards._path) and bool(shards._fs.ls(shards._path))
    if filled:
        raise SettingsError(f"features = {str(place)!r} isn't empty: give each workspace a place of its own")


def clear(place: Path | str) -> None:
    """Remove everything there, as well as that goes."""
    if isinstance(place, Path):
        shutil.rmtree(place, ignore_errors=True)
    else:
        shards = RemoteShards(place)
        with contextlib.suppress(FileNotFoundError, StoreError), shards._translated("be removed"):
            shards._fs.rm(shards._path, recursive=True)


def _file_name(shard: int) -> str:
    return f"{shard:06d}.npy"


def _numbers(names: Iterable[str]) -> list[int]:
    stems = (name.removesuffix(".npy") for name in names if name.endswith(".npy"))
    return sorted(int(stem) for stem in stems if stem.isdecimal())


def _content_number(packed: np.ndarray) -> int:
    """63 bits, the highest of them set: a million shards share a number with a chance of one in ten million."""
    digest = hashlib.sha256(f"{packed.dtype} {packed.shape}".encode())
    digest.update(packed.data)
    return NAMED_BY_CONTENT | int.from_bytes(digest.digest()[:8], "big") >> 2


def _write_synced(path: Path, packed: np.ndarray) -> None:
    """Beside, synced, renamed into place: a file of this name is whole."""
    partial = path.with_name(f"{path.stem}-{uuid.uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.save(file, packed)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)  # a full disk needs the room
        raise StoreError(
            f"{packed.nbytes >> 20} MB of vectors can't be written to {path.parent} "
            f"({error.strerror or error}): all before them is safe; make room and run the command again"
        ) from error


def _load(path: Path, shown: str) -> np.ndarray:
    try:
        rows: np.ndarray = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise StoreError(
            f"the feature file {shown} cannot be read ({error}): "
            "'gmv-qdrant check --repair' computes its vectors again"
        ) from error
    return rows


class LocalShards:
    """A folder of this machine, or one that all machines mount."""

    def __init__(self, directory: Path, *, by_content: bool = False) -> None:
        self.directory = directory
        self._by_content = by_content

    def __str__(self) -> str:
        return str(self.directory)

    def path(self, shard: int) -> Path:
        return self.directory / _file_name(shard)

    def numbers(self) -> list[int]:
        return _numbers(path.name for path in self.directory.glob("*.npy"))

    def open(self, shard: int) -> np.ndarray:
        return _load(self.path(shard), str(self.path(shard)))

    def write(self, packed: np.ndarray) -> int:
        if self._by_content:
            shard = _content_number(packed)
        else:
            counted = (number for number in self.numbers() if number < NAMED_BY_CONTENT)
            shard = max(counted, default=-1) + 1
        _write_synced(self.path(shard), packed)
        return shard

    def remove(self, shards: Iterable[int]) -> None:
        for shard in shards:
            self.path(shard).unlink(missing_ok=True)
        if self.directory.is_dir():
            for partial in self.directory.glob("*.partial"):
                partial.unlink(missing_ok=True)
            sync_folder(self.directory)


class RemoteShards:
    """BackgroundWriter a URL, with a copy on this machine's disk of each shard that was written or read here.

    Needs a file system that shows a file whole or not at all, as object stores do. The copies are in
    ``$XDG_CACHE_HOME/gmv-qdrant/shards``.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url
        try:
            self._fs, self._path = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise StoreError(f"feature files can't be kept at {url}: {error}") from error
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        name = hashlib.sha256(url.encode()).hexdigest()[:32]
        self.copies = LocalShards(home / "gmv-qdrant" / "shards" / name)

    def __str__(self) -> str:
        return self.url

    def _there(self, shard: int) -> str:
        return f"{self._path}/{_file_name(shard)}"

    def numbers(self) -> list[int]:
        with self._translated("be listed"):
            self._fs.invalidate_cache()
            if not self._fs.exists(self._path):
                return []
            return _numbers(name.rpartition("/")[2] for name in self._fs.ls(self._path, detail=False))

    def open(self, shard: int) -> np.ndarray:
        copy = self.copies.path(shard)
        if not copy.exists():
            partial = copy.with_name(f"{copy.stem}-{uuid.uuid4().hex}.partial")
            copy.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._translated(
                f"be read ({_file_name(shard)}; 'gmv-qdrant check --repair' computes its vectors again)"
            ):
                self._fs.get_file(self._there(shard), str(partial))
                partial.rename(copy)
        return _load(copy, f"{self.url}/{_file_name(shard)}")

    def write(self, packed: np.ndarray) -> int:
        shard = _content_number(packed)
        buffer = io.BytesIO()
        np.save(buffer, packed)
        data = buffer.getvalue()
        with self._translated("be written"):
            self._fs.makedirs(self._path, exist_ok=True)
            self._fs.pipe_file(self._there(shard), data)
        self.copies.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write_synced(self.copies.path(shard), packed)
        return shard

    def remove(self, shards: Iterable[int]) -> None:
        shards = list(shards)
        with self._translated("be removed"):
            for shard in shards:
                with contextlib.suppress(FileNotFoundError):
                    self._fs.rm_file(self._there(shard))
        self.copies.remove(shards)

    def forget(self, named: Iterable[int]) -> None:
        """Remove copies of all shards but these: vectors of images that were withdrawn go with them."""
        for shard in set(self.copies.numbers()) - set(named):
            self.copies.path(shard).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """The errors of fsspec's file systems: OSError, and whatever their clients raise."""
        try:
            yield
        except Exception as error:
            words = (str(error).splitlines() or [""])[0] or type(error).__name__
            raise StoreError(f"feature files at {self.url} can't {what}: {words}") from error
