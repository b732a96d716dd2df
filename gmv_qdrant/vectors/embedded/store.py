"""The embedded store: one Qdrant Edge shard per collection, in this process, nothing to install or start."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as q

from gmv_qdrant.errors import StoreError
from gmv_qdrant.vectors.checks import (
    asked_payload,
    asked_vectors,
    check_batch,
    check_ids,
    check_limit,
    check_vectors,
    point_of,
    settled,
)
from gmv_qdrant.vectors.embedded import optimize as optimizer
from gmv_qdrant.vectors.embedded.codec import search_params
from gmv_qdrant.vectors.embedded.segments import (
    HNSW_POINTS,
    MIN_CODED,
    read_status,
    tail_warrants,
    write_note,
)
from gmv_qdrant.vectors.embedded.shard import Shard
from gmv_qdrant.vectors.ownership import Owner
from gmv_qdrant.vectors.protocol import (
    CollectionSpec,
    Hits,
    Limits,
    Payload,
    Point,
    PointId,
    SearchParams,
    StoreStatus,
)

__all__ = ["EdgeStore", "read_status"]

FLUSH_EVERY = 20_000
"""Points after which the write-ahead log (which grows until then) is folded into the segments."""
BATCH = 1_000
EXACT_BATCH = 32


class EdgeStore:
    """`VectorStore` over one embedded shard. One process at a time; methods are not thread-safe."""

    def __init__(self, shard: Shard) -> None:
        """Use `open`."""
        self._shard, self._spec = shard, shard.spec
        self._unflushed = 0

    @classmethod
    def open(
        cls, path: Path, spec: CollectionSpec, owner: Owner | None = None, *, make: bool = True
    ) -> EdgeStore:
        """Load the collection ``spec.name`` of ``owner`` under the folder ``path``; ``make``: it may be absent.

        Raises `CollectionMismatch` when it exists with another owner, dimension, distance or vector name,
        `StoreUnavailable` when another process has it open, `StoreError` when the folder can't be used.
        """
        return cls(Shard(path, spec, owner, make=make))

    def __enter__(self) -> EdgeStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def spec(self) -> CollectionSpec:
        return self._spec

    @property
    def limits(self) -> Limits:
        return Limits()

    def upsert(self, ids: Sequence[PointId], vectors: np.ndarray, payloads: Sequence[Payload]) -> None:
        """See `VectorStore.upsert`. It survives a killed process; after `flush`, a power cut."""
        ids, rows = check_batch(ids, vectors, payloads, self._spec)
        points = self._shard.run("take the payloads", self._points, ids, rows, payloads)
        self._shard.check_disk("store these points", 4 * rows.nbytes)
        for start in range(0, len(points), BATCH):
            batch = points[start : start + BATCH]
            self._write("store points", q.UpdateOperation.upsert_points(batch), len(batch))

    def delete(self, ids: Sequence[PointId]) -> None:
        ids = check_ids(ids)
        for start in range(0, len(ids), BATCH):
            batch = ids[start : start + BATCH]
            self._write("delete points", q.UpdateOperation.delete_points([*batch]), len(batch))

    def search(self, queries: np.ndarray, limit: int, params: SearchParams) -> list[Hits]:
        """See `VectorStore.search`. One query at a time: with codes, the engine's batches are slower."""
        check_limit(limit)
        rows = check_vectors(queries, self._spec)
        params = self._exact_where_nothing_is_coded(params)

        def request(index: int, fetch: int) -> q.QueryRequest:
            near = q.Query.Nearest(rows[index], using=self._spec.vector_name)
            return q.QueryRequest(limit=fetch, query=near, params=search_params(params, fetch))

        def ask(indices: Sequence[int], fetch: int) -> list[Sequence[Any]]:
            requests = [request(index, fetch) for index in indices]
            if not params.exact:
                return [self._shard.do("search", "query", one) for one in requests]
            parts = [requests[i : i + EXACT_BATCH] for i in range(0, len(requests), EXACT_BATCH)]
            batches = [self._shard.do("search", "query_batch", q.QueryBatchRequest(part)) for part in parts]
            return [points for batch in batches for points in batch]

        return settled(ask, len(rows), limit, self._spec.distance)

    def retrieve(
        self, ids: Sequence[PointId], *, with_vectors: bool = False, fields: Sequence[str] | None = None
    ) -> list[Point]:
        wanted = list(dict.fromkeys(check_ids(ids)))
        found: list[Point] = []
        for start in range(0, len(wanted), BATCH):
            batch = wanted[start : start + BATCH]
            records = self._shard.do(
                "read points",
                "retrieve",
                batch,
                with_payload=asked_payload(fields),
                with_vector=asked_vectors(self._spec, with_vectors),
            )
            found += [self._point(r) for r in records]
        return found

    def scroll(
        self, *, with_vectors: bool = False, fields: Sequence[str] | None = None
    ) -> Iterator[list[Point]]:
        for records in self._pages(asked_payload(fields), asked_vectors(self._spec, with_vectors)):
            yield [self._point(r) for r in records]

    def ids(self) -> Iterator[list[PointId]]:
        for records in self._pages(False, False):
            yield [r.id for r in records]

    def count(self) -> int:
        return int(self._shard.do("count points", "count", q.CountRequest(exact=True)))

    def flush(self) -> None:
        self._shard.do("flush", "flush")
        self._unflushed = 0
        self._shard.note()

    def optimize(self, *, force: bool = False) -> bool:
        """Quantize when the tail warrants it (see `tail_warrants`), or when ``force`` and there is one.

        Runs in another process and blocks until it ends; killing either loses nothing. Below 256 points
        nothing is coded and every search is exact. From a million points on a graph (HNSW) is built, too.
        """
        self.flush()
        status = read_status(self._shard.path, self._spec)
        points, tail = status.points, status.tail_points
        if points < MIN_CODED or not (tail_warrants(points, tail) or (force and tail)):
            return False
        self._shard.check_disk("quantize", status.vector_bytes * 3 // 2)
        try:
            self._shard.shut()
            self._shard.configure(graph=points >= HNSW_POINTS)
            return self._run_optimizer(points)
        finally:
            self._shard.load()
            self._shard.note()

    def purge(self) -> None:
        """Write the collection anew, without what was deleted.

        The engine keeps deleted vectors and payloads in its segments, and all that was ever upserted in its log,
        whose numbering can't be restarted: so the living points move to a new shard. It has no codes, and is searched
        exactly, until the next `optimize`: several withdrawals cost one training of codes.
        """
        self._shard.rewrite(self._pages(True, True))
        self._shard.note()

    def damaged(self) -> list[str]:
        return self._shard.run("compare its files", self._shard.digests.differing)  # type: ignore[no-any-return]

    def status(self) -> StoreStatus:
        """As of now: flushes first, then reads the files (`read_status` is the same for other processes)."""
        self.flush()
        return read_status(self._shard.path, self._spec)

    def close(self) -> None:
        """Flush and release the collection; closing twice is fine."""
        if self._shard.closed:
            return
        try:
            self.flush()
        finally:
            self._shard.release()

    # -- the engine ------------------------------------------------------------------------------------

    def _run_optimizer(self, points: int) -> bool:
        command = [sys.executable, "-P", str(optimizer.__file__), str(self._shard.dir)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        ) as child:
            write_note(self._shard.path, self._spec.name, points, child.pid)
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

    def _write(self, action: str, operation: q.UpdateOperation, points: int) -> None:
        self._shard.write(action, operation)
        self._unflushed += points
        if self._unflushed >= FLUSH_EVERY:
            self.flush()

    def _exact_where_nothing_is_coded(self, params: SearchParams) -> SearchParams:
        """Without codes or a graph a search is exact anyway; said so, it may run in batches."""
        plain = (
            self._spec.quantization == "none" and self._shard.do("search", "info").points_count < HNSW_POINTS
        )
        return replace(params, exact=True) if plain else params

    def _points(self, ids: Sequence[PointId], rows: np.ndarray, payloads: Sequence[Payload]) -> list[q.Point]:
        name = self._spec.vector_name
        return [q.Point(i, {name: row}, dict(p)) for i, row, p in zip(ids, rows, payloads, strict=True)]

    def _point(self, record: Any) -> Point:
        return point_of(record.id, record.payload, record.vector, self._spec)

    def _pages(self, payload: Any, vectors: Any) -> Iterator[list[Any]]:
        offset = None
        while True:
            request = q.ScrollRequest(offset=offset, limit=BATCH, with_payload=payload, with_vector=vectors)
            records, offset = self._shard.do("read points", "scroll", request)
            if records:
                yield records
            if offset is None:
                return
