"""Moving an embedded shard's living points to a new shard, so that nothing of the deleted ones stays on disk."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import qdrant_edge as q

from gmv_qdrant.files import sync_folder

FLUSH_EVERY = 20_000


class ShardWriter:
    """A new shard in an empty folder; whole, and safe from a power cut, when `close` returns."""

    def __init__(self, folder: Path, config: q.EdgeConfig) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._shard = q.EdgeShard.create(str(folder), config)
        self._unflushed = 0

    def take(self, records: Sequence[Any]) -> None:
        """Points as the engine reads them, all of their vectors and payload included."""
        points = [q.Point(record.id, record.vector, record.payload or {}) for record in records]
        self._shard.update(q.UpdateOperation.upsert_points(points))
        self._unflushed += len(points)
        if self._unflushed >= FLUSH_EVERY:
            self._shard.flush()
            self._unflushed = 0

    def close(self) -> None:
        self._shard.flush()
        self._shard.close()
        for path in self._folder.rglob("*"):
            if path.is_file():
                sync_folder(path)


def moving_dirs(shard: Path) -> tuple[Path, Path]:
    """Where a shard is written anew, and where it stands when it is whole but the old one isn't gone yet."""
    return shard.with_name(f"{shard.name}.draft"), shard.with_name(f"{shard.name}.whole")


def settle_move(shard: Path) -> None:
    """Finish, or forget, a move that was interrupted."""
    draft, whole = moving_dirs(shard)
    shutil.rmtree(draft, ignore_errors=True)
    if whole.is_dir():
        shutil.rmtree(shard, ignore_errors=True)
        whole.rename(shard)
        sync_folder(shard.parent)


def shard_bytes(shard: Path) -> int:
    """Bytes of the files of a shard."""
    return sum(path.stat().st_size for path in shard.rglob("*") if path.is_file())
