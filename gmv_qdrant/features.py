"""Feature files: the vectors that are read again and again, as memory-mapped matrices.

A *space* (``training/rerank``, ``generated/recall``, ...) is a folder of immutable ``.npy`` shards of one
width. A shard is written beside, synced, and renamed into place; the ledger says which row belongs to which
image. So a crash leaves at most a shard that nobody names, and a row that is named is whole.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np

from gmv_qdrant.encoders.base import Storage
from gmv_qdrant.errors import StoreError

Locations = np.ndarray
"""int64 ``(n, 2)``: shard and row of each vector; ``-1, -1`` where there is none."""


class FeatureSpace:
    """The vectors of one space: ``dim`` wide, kept as ``storage`` says.

    ``append`` and ``gather`` speak float32; packing to the stored dtype happens here and nowhere else.
    """

    def __init__(self, directory: Path, dim: int, storage: Storage) -> None:
        self.directory = directory
        self.dim = dim
        self.storage = storage
        self._shards: dict[int, np.ndarray] = {}

    def _path(self, shard: int) -> Path:
        return self.directory / f"{shard:06d}.npy"

    def shards(self) -> list[int]:
        """Shards on disk, those that nobody names included."""
        return sorted(int(path.stem) for path in self.directory.glob("[0-9]*.npy"))

    def append(self, vectors: np.ndarray) -> Locations:
        """Write float32 ``(n, dim)`` as a new shard that survives a crash; returns its locations."""
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise StoreError(f"{self.directory} holds vectors of {self.dim} numbers, not {vectors.shape}")
        return self._write(self.storage.pack(vectors))

    def _write(self, packed: np.ndarray) -> Locations:
        shard = max(self.shards(), default=-1) + 1
        partial = self._path(shard).with_suffix(".partial")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                np.save(file, packed)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(self._path(shard))
            _sync(self.directory)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)  # a full disk needs the room
            raise StoreError(
                f"{packed.nbytes >> 20} MB of vectors can't be written to {self.directory} "
                f"({error.strerror or error}): all before them is safe; make room and run the command again"
            ) from error
        return np.stack([np.full(len(packed), shard), np.arange(len(packed))], axis=1)

    def _open(self, shard: int) -> np.ndarray:
        if shard not in self._shards:
            try:
                self._shards[shard] = np.load(self._path(shard), mmap_mode="r")
            except (OSError, ValueError) as error:
                raise StoreError(
                    f"the feature file {self._path(shard)} cannot be read ({error}): "
                    "'gmv-qdrant check --repair' computes its vectors again"
                ) from error
        return self._shards[shard]

    def rows(self, shard: int) -> int:
        return len(self._open(shard))

    def _stored(self, locations: Locations) -> np.ndarray:
        out = np.empty((len(locations), self.dim), dtype=self.storage.dtype)
        shards = locations[:, 0]
        for shard in np.unique(shards):
            of_shard = shards == shard
            out[of_shard] = self._open(int(shard))[locations[of_shard, 1]]
        return out

    def gather(self, locations: Locations) -> np.ndarray:
        """The vectors at int64 ``(n, 2)`` locations, all present -> float32 ``(n, dim)``."""
        return self.storage.unpack(self._stored(locations))

    def compact(self, locations: Locations, rows_per_shard: int = 65_536) -> Locations:
        """Copy the named rows into new shards and return their new locations.

        The old shards stay until `drop` is called with them, after the ledger names the new ones.
        """
        written = [
            self._write(self._stored(locations[start : start + rows_per_shard]))
            for start in range(0, len(locations), rows_per_shard)
        ]
        return np.concatenate(written) if written else np.empty((0, 2), dtype=np.int64)

    def drop(self, shards: list[int]) -> None:
        """Remove shards that the ledger no longer names."""
        for shard in shards:
            self._shards.pop(shard, None)
            self._path(shard).unlink(missing_ok=True)
        if self.directory.is_dir():
            for partial in self.directory.glob("*.partial"):
                partial.unlink()
            _sync(self.directory)


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
