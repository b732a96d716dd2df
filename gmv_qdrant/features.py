"""Feature files: the vectors that are read again and again, as memory-mapped matrices.

A *space* (``training/rerank``, ``generated/recall``, ...) is a folder of immutable ``.npy`` shards of one
width (`gmv_qdrant.shards`); the ledger says which row belongs to which image. So a crash leaves at most a shard
that nobody names, and a row that is named is whole.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gmv_qdrant.errors import StoreError
from gmv_qdrant.models.base import Storage
from gmv_qdrant.shards import make_shards

Locations = np.ndarray
"""int64 ``(n, 2)``: shard and row of each vector; ``-1, -1`` where there is none."""


class FeatureSpace:
    """The vectors of one space: ``dim`` wide, kept as ``storage`` says.

    place: a local folder, or the URL of one. shared: others may write there at the same time.
    ``append`` and ``gather`` speak float32; packing to the stored dtype happens here and nowhere else.
    """

    def __init__(self, place: Path | str, dim: int, storage: Storage, *, shared: bool = False) -> None:
        self.files = make_shards(place, by_content=shared)
        self.dim = dim
        self.storage = storage
        self._open_shards: dict[int, np.ndarray] = {}

    def shards(self) -> list[int]:
        """Shards that are there, those that nobody names included."""
        return self.files.numbers()

    def append(self, vectors: np.ndarray) -> Locations:
        """Write float32 ``(n, dim)`` as a new shard that survives a crash; returns its locations."""
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise StoreError(f"{self.files} holds vectors of {self.dim} numbers, not {vectors.shape}")
        return self._write(self.storage.pack(vectors))

    def _write(self, packed: np.ndarray) -> Locations:
        shard = self.files.write(packed)
        return np.stack([np.full(len(packed), shard), np.arange(len(packed))], axis=1)

    def _open(self, shard: int) -> np.ndarray:
        if shard not in self._open_shards:
            self._open_shards[shard] = self.files.open(shard)
        return self._open_shards[shard]

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
            self._open_shards.pop(shard, None)
        self.files.remove(shards)
