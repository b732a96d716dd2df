"""The embedded store: one Qdrant Edge shard per collection, in this process, nothing to install or start."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import qdrant_edge as q

from ..errors import CollectionMismatch, StoreError, StoreUnavailable
from . import optimize as optimizer
from .base import (
    CollectionSpec,
    Condition,
    Hits,
    Payload,
    Point,
    PointId,
    SearchParams,
    StoreStatus,
)
from .checks import (
    TIES,
    check_batch,
    check_ids,
    check_limit,
    check_vectors,
    settle,
)
from .edge_words import flags_at, json_path, shard_config, shard_filter
from .segments import (
    HNSW_POINTS,
    MIN_CODED,
    collection_dir,
    read_status,
    tail_warrants,
    write_note,
)

__all__ = ["EdgeStore", "read_status"]

FLUSH_EVERY = 20_000
"""Points after which the write-ahead log (which grows until then) is folded into the segments."""
DISK_RESERVE = 128 * 2**20
"""Bytes that stay free: a full disk would kill the process, for the engine writes through mapped memory."""
BATCH = 1_000
EXACT_BATCH = 32


class EdgeStore:
    """`VectorStore` over one embedded shard. One process at a time; methods are not thread-safe."""

    def __init__(self, path: Path, spec: CollectionSpec, lock: filelock.BaseFileLock) -> None:
        """Use `open`."""
        self._path, self._spec, self._lock = path, spec, lock
        self._dir = collection_dir(path, spec.name)
        self._unflushed = 0
        self._shard: q.EdgeShard | None = self._load()

    @classmethod
    def open(cls, path: Path, spec: CollectionSpec) -> EdgeStore:
        """Create or load the collection ``spec.name`` under the folder ``path``.

        Raises `CollectionMismatch` when it exists with another dimension, distance or vector name,
        `StoreUnavailable` when another process has it open, `StoreError` when the folder can't be used.
        """
        if spec.name in (".", "..") or re.search(r"[/\\\x00]", spec.name) or not spec.name:
            raise StoreError(
                f"{spec.name!r} cannot name a collection: use letters, digits, '_', '-' and '.'."
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(path / f"{spec.name}.lock")
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise _busy(spec, path) from None
        except OSError as e:
            raise StoreError(f"cannot write to the store's folder {path}: {e.strerror or e}.") from e
        try:
            store = cls(path, spec, lock)
            store._note()
        except BaseException:
            lock.release()
            raise
        return store

    def __enter__(self) -> EdgeStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def spec(self) -> CollectionSpec:
        return self._spec

    def upsert(self, ids: Sequence[PointId], vectors: np.ndarray, payloads: Sequence[Payload]) -> None:
        """See `VectorStore.upsert`. It survives a killed process; after `flush`, a power cut."""
        ids, rows = check_batch(ids, vectors, payloads, self._spec)
        points = self._engine("take the payloads", self._points, ids, rows, payloads)
        self._check_disk("store these points", 4 * rows.nbytes)
        for start in range(0, len(points), BATCH):
            batch = points[start : start + BATCH]
            self._write("store points", q.UpdateOperation.upsert_points(batch), len(batch))

    def delete(self, ids: Sequence[PointId]) -> None:
        ids = check_ids(ids)
        for start in range(0, len(ids), BATCH):
            batch = ids[start : start + BATCH]
            self._write("delete points", q.UpdateOperation.delete_points([*batch]), len(batch))

    def search(
        self,
        queries: np.ndarray,
        limit: int,
        params: SearchParams,
        conditions: Sequence[Condition] = (),
    ) -> list[Hits]:
        """See `VectorStore.search`. One query at a time: with codes, the engine's batches are slower."""
        check_limit(limit)
        rows = check_vectors(queries, self._spec)
        only = self._filter(conditions)
        few = self._do("search", "info").points_count < HNSW_POINTS
        exact = params.exact or (self._spec.quantization == "none" and few)
        found: list[list[Any]] = []
        for start in range(0, len(rows), EXACT_BATCH):
            requests = [
                self._request(row, limit + TIES, params, exact, only)
                for row in rows[start : start + EXACT_BATCH]
            ]
            if exact:
                found += self._do("search", "query_batch", q.QueryBatchRequest(requests))
            else:
                found += [self._do("search", "query", r) for r in requests]
        return [
            settle(
                points,
                lambda n, row=row: self._do("search", "query", self._request(row, n, params, exact, only)),  # type: ignore[misc]
                limit,
                self._spec.distance,
                lambda i: i,
            )
            for row, points in zip(rows, found, strict=True)
        ]

    def _request(self, row: np.ndarray, limit: int, params: SearchParams, exact: bool, only: Any) -> Any:
        ef = params.hnsw_ef or max(256, round(limit * params.oversampling))
        codes = q.QuantizationSearchParams(
            ignore=exact, rescore=params.rescore, oversampling=max(1.0, params.oversampling)
        )
        return q.QueryRequest(
            limit=limit,
            query=q.Query.Nearest(row, using=self._spec.vector_name),  # type: ignore[arg-type]
            filter=only,
            params=q.SearchParams(hnsw_ef=ef, exact=exact, quantization=codes),
        )

    def retrieve(self, ids: Sequence[PointId], *, with_vectors: bool = False) -> list[Point]:
        wanted = list(dict.fromkeys(check_ids(ids)))
        found: list[Point] = []
        for start in range(0, len(wanted), BATCH):
            batch = wanted[start : start + BATCH]
            records = self._do("read points", "retrieve", batch, with_payload=True, with_vector=with_vectors)
            found += [self._point(r) for r in records]
        return found

    def scroll(
        self, *, with_vectors: bool = False, conditions: Sequence[Condition] = ()
    ) -> Iterator[list[Point]]:
        for records in self._pages(True, with_vectors, self._filter(conditions)):
            yield [self._point(r) for r in records]

    def count(self, conditions: Sequence[Condition] = ()) -> int:
        request = q.CountRequest(exact=True, filter=self._filter(conditions))
        return int(self._do("count points", "count", request))

    def flush(self) -> None:
        self._do("flush", "flush")
        self._unflushed = 0
        self._note()

    def optimize(self, *, force: bool = False) -> bool:
        """Quantize the tail when it exceeds max(5,000, a tenth of the points), or when ``force``.

        Runs in another process and blocks until it ends; killing either loses nothing. Below 256 points
        nothing is coded and every search is exact. From a million points on a graph (HNSW) is built, too.
        """
        self.flush()
        status = read_status(self._path, self._spec)
        points, tail = status.points, status.tail_points
        if not (tail_warrants(points, tail) or (force and tail)):
            return False
        if points < MIN_CODED:
            return False
        graph = points >= HNSW_POINTS
        self._check_disk("quantize", status.vector_bytes * 3 // 2)
        try:
            self._shut()
            # Loading with a configuration leaves it on disk, where the other process finds it.
            self._engine("optimize", self._open_shard, graph=graph).close()
            built = self._run_optimizer(points)
        finally:
            self._shard = self._load()
            self._note()
        return built

    def _run_optimizer(self, points: int) -> bool:
        command = [sys.executable, "-P", str(optimizer.__file__), str(self._dir)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        ) as child:
            write_note(self._path, self._spec.name, points, child.pid)
            try:
                said, complaint = child.communicate()
            except BaseException:
                child.kill()
                raise
        if child.returncode != 0:
            reason = complaint.strip() or f"exit code {child.returncode}"
            raise StoreError(
                f"quantizing {self._spec.name!r} stopped ({reason}); no point is lost and searches "
                "stay right: run it again."
            )
        return said == "built"

    def status(self) -> StoreStatus:
        """As of now: flushes first, then reads the files (`read_status` is the same for other processes)."""
        self.flush()
        return read_status(self._path, self._spec)

    def close(self) -> None:
        """Flush and release the collection; closing twice is fine."""
        if self._shard is None:
            return
        try:
            self.flush()
        finally:
            self._shut()
            self._lock.release()

    # -- the engine ------------------------------------------------------------------------------------

    def _described(self) -> dict[str, Any]:
        """The vectors of the shard on disk: name -> {size, distance}; empty when there is none."""
        try:
            vectors = json.loads((self._dir / "edge_config.json").read_text())["vectors"]
        except (OSError, ValueError, KeyError):
            return {}
        return dict(vectors)

    def _open_shard(self, *, graph: bool) -> q.EdgeShard:
        described = self._described()
        if described:
            self._check_same(described)
        config = shard_config(self._spec, described, graph=graph)
        if any(self._dir.glob("segments/*/segment.json")):
            return q.EdgeShard.load(str(self._dir), config)
        return q.EdgeShard.create(str(self._dir), config)

    def _check_same(self, described: Mapping[str, Any]) -> None:
        found = {n: (int(v["size"]), str(v["distance"]).lower()) for n, v in described.items()}
        if found.get(self._spec.vector_name) != (self._spec.dim, self._spec.distance):
            have = ", ".join(f"{n!r} ({d} numbers, {m})" for n, (d, m) in sorted(found.items()))
            raise CollectionMismatch(
                f"the collection {self._spec.name!r} has the vector {have}, but the settings ask for "
                f"{self._spec.vector_name!r} ({self._spec.dim} numbers, {self._spec.distance}): "
                "use the encoder it was made with, or start another workspace."
            )

    def _load(self) -> q.EdgeShard:
        graph = self._graph_on_disk()
        shard: q.EdgeShard = self._engine("open", self._open_shard, graph=graph)
        # What a killed optimizer left half-built; nobody else can be building: the shard is ours now.
        shutil.rmtree(self._dir / "temp_segments", ignore_errors=True)
        return shard

    def _graph_on_disk(self) -> bool:
        try:
            return bool(json.loads((self._dir / "edge_config.json").read_text())["hnsw_config"]["m"])
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _shut(self) -> None:
        if self._shard is not None:
            shard, self._shard = self._shard, None
            self._engine("close", shard.close)

    def _note(self) -> None:
        points = self._do("count points", "info").points_count
        try:
            write_note(self._path, self._spec.name, points)
        except OSError as e:
            raise StoreError(f"cannot write to the store's folder {self._path}: {e.strerror or e}.") from e

    def _check_disk(self, action: str, needed: int) -> None:
        try:
            free = shutil.disk_usage(self._path).free
        except OSError:
            raise self._vanished() from None
        if free < needed + DISK_RESERVE:
            raise StoreError(
                f"the disk of {self._path} is nearly full: to {action} takes {(needed + DISK_RESERVE) >> 20} MB, "
                f"{free >> 20} MB are free; all that was stored before is safe."
            )

    def _write(self, action: str, operation: q.UpdateOperation, points: int) -> None:
        if not self._dir.is_dir():  # the engine would go on writing into a deleted folder
            raise self._vanished()
        self._do(action, "update", operation)
        self._unflushed += points
        if self._unflushed >= FLUSH_EVERY:
            self.flush()

    def _do(self, action: str, method: str, *args: Any, **kwargs: Any) -> Any:
        if self._shard is None:
            raise StoreError(f"the store {self._spec.name!r} is closed: open the workspace again.")
        return self._engine(action, getattr(self._shard, method), *args, **kwargs)

    def _engine(self, action: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run ``call``; the engine's bare exceptions and panics become `StoreError`."""
        try:
            return call(*args, **kwargs)
        except (StoreError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
            raise
        except BaseException as e:
            text = " ".join(str(e).split())
            if "WouldBlock" in text:
                raise _busy(self._spec, self._path) from None
            if not self._dir.is_dir():
                raise self._vanished() from e
            raise StoreError(f"the embedded store could not {action} in {self._dir}: {text}.") from e

    def _vanished(self) -> StoreError:
        return StoreError(
            f"the store's folder {self._dir} has disappeared: restore it, or ingest the images again."
        )

    def _points(self, ids: Sequence[PointId], rows: np.ndarray, payloads: Sequence[Payload]) -> list[q.Point]:
        name = self._spec.vector_name
        return [q.Point(i, {name: row}, dict(p)) for i, row, p in zip(ids, rows, payloads, strict=True)]

    # -- translation -----------------------------------------------------------------------------------

    def _point(self, record: Any) -> Point:
        vector = record.vector
        if isinstance(vector, dict):
            vector = vector.get(self._spec.vector_name)
        row = None if vector is None else np.asarray(vector, dtype=np.float32)
        return Point(record.id, dict(record.payload or {}), row)

    def _pages(self, payload: Any, vectors: bool, only: Any) -> Iterator[list[Any]]:
        wanted: Any = [self._spec.vector_name] if vectors and self._spec.vector_name else vectors
        offset = None
        while True:
            request = q.ScrollRequest(
                offset=offset, limit=BATCH, filter=only, with_payload=payload, with_vector=wanted
            )
            records, offset = self._do("read points", "scroll", request)
            if records:
                yield records
            if offset is None:
                return

    def _filter(self, conditions: Sequence[Condition]) -> q.Filter | None:
        return shard_filter(conditions, self._ids_with_flag)

    def _ids_with_flag(self, field: str, flags: set[bool]) -> set[PointId]:
        path = field.split(".")
        pages = self._pages([json_path(path[0])], False, None)
        return {r.id for page in pages for r in page if flags.intersection(flags_at(r.payload or {}, path))}


def _busy(spec: CollectionSpec, path: Path) -> StoreUnavailable:
    return StoreUnavailable(
        f"another gmv-qdrant is using the collection {spec.name!r} in {path}: wait until it is done."
    )
