"""One Edge shard on disk: opened, held by one process, and its engine's bare exceptions turned into sentences."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import qdrant_edge as q

from gmv_qdrant.errors import CollectionMismatch, StoreError, StoreUnavailable
from gmv_qdrant.vectors.embedded.codec import shard_config
from gmv_qdrant.vectors.embedded.digests import Digests
from gmv_qdrant.vectors.embedded.purge import ShardWriter, moving_dirs, settle_move, shard_bytes
from gmv_qdrant.vectors.embedded.segments import collection_dir, write_note
from gmv_qdrant.vectors.ownership import Owner
from gmv_qdrant.vectors.protocol import CollectionSpec

DISK_RESERVE = 128 * 2**20
"""Bytes that stay free: a full disk would kill the process, for the engine writes through mapped memory."""


class Shard:
    """The shard of the collection ``spec`` under the folder ``path``; ``make``: created when it isn't there.

    Holds a lock of its own beside the engine's, so that nobody slips in while the engine's is handed to an
    optimizing process. Raises `CollectionMismatch`, `StoreUnavailable`, `StoreError`.
    """

    def __init__(
        self, path: Path, spec: CollectionSpec, owner: Owner | None = None, *, make: bool = True
    ) -> None:
        if not spec.name or spec.name in (".", "..") or re.search(r"[/\\\x00]", spec.name):
            raise StoreError(
                f"{spec.name!r} cannot name a collection: use letters, digits, '_', '-' and '.'."
            )
        self.path, self.spec = path, spec
        self.dir = collection_dir(path, spec.name)
        if not make and not self.dir.is_dir() and not moving_dirs(self.dir)[1].is_dir():
            raise StoreError(
                f"the collection {spec.name!r} has disappeared from {path}: restore the folder, or have its vectors "
                "computed again with 'gmv-qdrant check --repair'."
            )
        self._engine: q.EdgeShard | None = None
        self.digests = Digests(self.dir)
        self._writing = False
        try:
            path.mkdir(parents=True, exist_ok=True)
            # Not bound to a thread: any may close the store.
            self._lock = filelock.FileLock(path / f"{spec.name}.lock", thread_local=False)
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise self._busy() from None
        except OSError as e:
            raise StoreError(f"cannot write to the store's folder {path}: {e.strerror or e}.") from e
        try:
            if owner:
                owner.check_folder(path, spec.name)
            self.load()
            self.note()
        except BaseException:
            self.release()
            raise

    @property
    def closed(self) -> bool:
        return self._engine is None

    def load(self) -> None:
        """Hand the files to the engine (again)."""
        settle_move(self.dir)
        self._engine = self.run("open", self._open, graph=self._has_graph())
        # What a killed optimizer left half-built; nobody else can be building: the shard is ours now.
        shutil.rmtree(self.dir / "temp_segments", ignore_errors=True)

    def shut(self) -> None:
        """Take the files from the engine; our lock stays."""
        if self._engine is not None:
            engine, self._engine = self._engine, None
            self.run("close", engine.close)

    def release(self) -> None:
        try:
            if self._engine is not None:
                self.shut()
                self.digests.note()
        except OSError as e:
            raise StoreError(f"cannot write to the store's folder {self.path}: {e.strerror or e}.") from e
        finally:
            self._lock.release()

    def rewrite(self, pages: Iterable[Sequence[Any]]) -> None:
        """Put a new shard of these records, all vectors and payloads included, in the place of this one.

        A kill in between leaves the old one, or is finished by the next `load`.
        """
        self.check_disk("write the collection anew", shard_bytes(self.dir))
        draft, whole = moving_dirs(self.dir)
        shutil.rmtree(draft, ignore_errors=True)
        config = shard_config(self.spec, self.vectors(), graph=self._has_graph())
        fresh = self.run("write anew", ShardWriter, draft, config)
        for records in pages:
            self.run("write anew", fresh.take, records)
        self.run("write anew", fresh.close)
        self.shut()
        self.digests.forget()
        draft.rename(whole)
        self.load()

    def configure(self, *, graph: bool) -> None:
        """Leave the configuration on disk, where an optimizing process finds it. The shard must be shut."""
        self.run("configure", self.digests.forget_tail)
        self.run("configure", self._open, graph=graph).close()

    def do(self, action: str, method: str, *args: Any, **kwargs: Any) -> Any:
        """The engine's ``method``; ``action`` is the verb for the sentence when it fails."""
        if self._engine is None:
            raise StoreError(f"the store {self.spec.name!r} is closed: open the workspace again.")
        return self.run(action, getattr(self._engine, method), *args, **kwargs)

    def write(self, action: str, operation: q.UpdateOperation) -> None:
        if not self.dir.is_dir():  # the engine would go on writing into a deleted folder
            raise self._vanished()
        if not self._writing:
            self.run(action, self.digests.forget_tail)
            self._writing = True
        self.do(action, "update", operation)

    def run(self, action: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run ``call``; the engine's exceptions and panics become `StoreError`."""
        try:
            return call(*args, **kwargs)
        except (StoreError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
            raise
        except BaseException as e:
            text = " ".join(str(e).split())
            if "WouldBlock" in text:
                raise self._busy() from None
            if not self.dir.is_dir():
                raise self._vanished() from e
            raise StoreError(f"the embedded store could not {action} in {self.dir}: {text}.") from e

    def note(self, optimizer: int | None = None) -> None:
        """Leave what readers need to know beside the shard."""
        points = 0 if self._engine is None else self.do("count points", "info").points_count
        try:
            write_note(self.path, self.spec.name, points, optimizer)
        except OSError as e:
            raise StoreError(f"cannot write to the store's folder {self.path}: {e.strerror or e}.") from e

    def check_disk(self, action: str, needed: int) -> None:
        try:
            free = shutil.disk_usage(self.path).free
        except OSError:
            raise self._vanished() from None
        if free < needed + DISK_RESERVE:
            raise StoreError(
                f"the disk of {self.path} is nearly full: to {action} takes {(needed + DISK_RESERVE) >> 20} MB, "
                f"{free >> 20} MB are free; all that was stored before is safe."
            )

    def vectors(self) -> dict[str, Any]:
        """The vectors of the shard on disk: name -> {size, distance}; empty when there is none."""
        return dict(self._on_disk().get("vectors", {}))

    def _on_disk(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.dir / "edge_config.json").read_text()))
        except (OSError, ValueError):
            return {}

    def _has_graph(self) -> bool:
        return bool((self._on_disk().get("hnsw_config") or {}).get("m"))

    def _open(self, *, graph: bool) -> q.EdgeShard:
        vectors = self.vectors()
        if vectors:
            self._check_same(vectors)
        config = shard_config(self.spec, vectors, graph=graph)
        if any(self.dir.glob("segments/*/segment.json")):
            return q.EdgeShard.load(str(self.dir), config)
        return q.EdgeShard.create(str(self.dir), config)

    def _check_same(self, vectors: Mapping[str, Any]) -> None:
        spec = self.spec
        found = {n: (int(v["size"]), str(v["distance"]).lower()) for n, v in vectors.items()}
        if found.get(spec.vector_name) != (spec.dim, spec.distance):
            have = ", ".join(f"{n!r} ({d} numbers, {m})" for n, (d, m) in sorted(found.items()))
            raise CollectionMismatch(
                f"the collection {spec.name!r} has the vector {have}, but the settings ask for "
                f"{spec.vector_name!r} ({spec.dim} numbers, {spec.distance}): "
                "use the encoder it was made with, or start another workspace."
            )

    def _busy(self) -> StoreUnavailable:
        return StoreUnavailable(
            f"another gmv-qdrant is using the collection {self.spec.name!r} in {self.path}: wait until it is done."
        )

    def _vanished(self) -> StoreError:
        return StoreError(
            f"the store's folder {self.dir} has disappeared: restore it, or ingest the images again."
        )
