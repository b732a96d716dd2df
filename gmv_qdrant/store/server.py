"""The server store: a collection of any Qdrant deployment behind the same protocol as the embedded one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from qdrant_client import models as m

from ..errors import CollectionMismatch, StoreError, StoreUnavailable
from .base import (
    CollectionSpec,
    Condition,
    Hits,
    Payload,
    Point,
    PointId,
    Quantization,
    SearchParams,
    StoreStatus,
)
from .checks import TIES, check_batch, check_ids, check_limit, check_vectors, settle
from .connection import PREFLIGHT, Connection, Missing, ServerConfig
from .server_words import (
    conditions_filter,
    dense_vectors,
    describe,
    our_id,
    plain_id,
    quantization_config,
    quantization_of,
    search_params,
    vector_params,
)

__all__ = ["ServerConfig", "ServerStore"]

BATCH = 1_000
BATCH_BYTES = 16 * 2**20
"""Half of the size of a request that a server accepts by default."""
NUMBER_BYTES = 22
"""Of one float32 in JSON, at most."""
EXACT_BATCH = 16
POLL = 0.5


class ServerStore:
    """`VectorStore` over one collection of a server. Thread-safe; requests run in parallel, bounded.

    ``conditions`` (a tenant's filter) are ANDed into every call, deletions included, and points that are
    written carry their fields. Nothing is written but by the methods whose names say so.
    """

    def __init__(
        self, connection: Connection, spec: CollectionSpec, conditions: Sequence[Condition] = ()
    ) -> None:
        """Use `open`, `create` or `open_or_create`."""
        self._connection, self._spec, self._base = connection, spec, tuple(conditions)
        self._stamp = {c.field: c.values[0] for c in conditions if len(c.values) == 1 and "." not in c.field}

    @classmethod
    def open(
        cls,
        config: ServerConfig,
        name: str,
        vector_name: str | None = None,
        conditions: Sequence[Condition] = (),
    ) -> ServerStore:
        """The existing collection ``name``, as it is: nothing is changed.

        ``vector_name`` None takes its only vector. Raises `StoreError` (no such collection, key refused),
        `CollectionMismatch` (no such vector), `StoreUnavailable`.
        """
        connection = Connection(config)
        try:
            info = _describe(connection, name, patience=min(PREFLIGHT, config.patience))
            return cls(connection, describe(info, name, vector_name), conditions)
        except BaseException:
            connection.close()
            raise

    @classmethod
    def create(
        cls, config: ServerConfig, spec: CollectionSpec, conditions: Sequence[Condition] = ()
    ) -> ServerStore:
        """A new collection. Raises `StoreError` when there is one of that name."""
        connection = Connection(config)
        try:
            preflight = min(PREFLIGHT, config.patience)
            if connection.call("look for the collection", "collection_exists", spec.name, patience=preflight):
                raise StoreError(
                    f"{connection.shown} already has a collection {spec.name!r}: choose another name."
                )
            _create(connection, spec)
            return cls(connection, spec, conditions)
        except BaseException:
            connection.close()
            raise

    @classmethod
    def open_or_create(
        cls, config: ServerConfig, spec: CollectionSpec, conditions: Sequence[Condition] = ()
    ) -> ServerStore:
        """The collection that ``spec`` asks for. Raises `CollectionMismatch` when it is there with other vectors."""
        connection = Connection(config)
        try:
            preflight = min(PREFLIGHT, config.patience)
            if not connection.call(
                "look for the collection", "collection_exists", spec.name, patience=preflight
            ):
                _create(connection, spec)
            found = describe(_describe(connection, spec.name), spec.name, spec.vector_name)
            if (found.dim, found.distance) != (spec.dim, spec.distance):
                raise CollectionMismatch(
                    f"the collection {spec.name!r} at {connection.shown} has vectors of {found.dim} numbers "
                    f"({found.distance}), but the settings ask for {spec.dim} ({spec.distance}): use the encoder "
                    "it was made with, or another collection name."
                )
            return cls(connection, found, conditions)
        except BaseException:
            connection.close()
            raise

    def __enter__(self) -> ServerStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def spec(self) -> CollectionSpec:
        return self._spec

    @property
    def version(self) -> str:
        """The server's version, such as ``1.18.2``."""
        return str(self._connection.call("tell its version", "info").version)

    def upsert(self, ids: Sequence[PointId], vectors: np.ndarray, payloads: Sequence[Payload]) -> None:
        """See `VectorStore.upsert`. When it fails midway, some batches are stored: doing it again is safe."""
        ids, rows = check_batch(ids, vectors, payloads, self._spec)
        stamped = [{**p, **self._stamp} for p in payloads]
        sizes = [rows.shape[1] * NUMBER_BYTES + _payload_bytes(p) for p in stamped]

        def send(part: slice) -> None:
            lines = rows[part].tolist()
            name = self._spec.vector_name
            batch = m.Batch(
                ids=[plain_id(i) for i in ids[part]],
                vectors={name: lines} if name else lines,
                payloads=stamped[part],
            )
            self._call("store points", "upsert", points=batch, wait=True)

        self._connection.each(send, list(_slices(sizes)))

    def delete(self, ids: Sequence[PointId]) -> None:
        """See `VectorStore.delete`. Points outside of the store's own conditions stay."""
        ids = check_ids(ids)

        def send(part: list[PointId]) -> None:
            if self._base:
                only = m.FilterSelector(filter=_some(conditions_filter(self._base, part)))
                self._call("delete points", "delete", points_selector=only, wait=True)
            else:
                chosen = m.PointIdsList(points=[plain_id(i) for i in part])
                self._call("delete points", "delete", points_selector=chosen, wait=True)

        self._connection.each(send, [ids[i : i + BATCH] for i in range(0, len(ids), BATCH)])

    def search(
        self,
        queries: np.ndarray,
        limit: int,
        params: SearchParams,
        conditions: Sequence[Condition] = (),
    ) -> list[Hits]:
        """See `VectorStore.search`. Query by query in parallel; exact ones in batches."""
        check_limit(limit)
        rows = check_vectors(queries, self._spec)
        only = self._filter(conditions)

        def request(row: np.ndarray, fetch: int) -> m.QueryRequest:
            return m.QueryRequest(
                query=row.tolist(),
                using=self._spec.vector_name or None,
                filter=only,
                params=search_params(params, fetch),
                limit=fetch,
                with_payload=False,
                with_vector=False,
            )

        def ask(batch: np.ndarray, fetch: int) -> list[list[m.ScoredPoint]]:
            wanted = [request(row, fetch) for row in batch]
            answers = self._call("search", "query_batch_points", requests=wanted)
            return [answer.points for answer in answers]

        def run(batch: np.ndarray) -> list[Hits]:
            return [
                settle(
                    points,
                    lambda fetch, row=row: ask(row[None], fetch)[0],  # type: ignore[misc]
                    limit,
                    self._spec.distance,
                    our_id,
                )
                for row, points in zip(batch, ask(batch, limit + TIES), strict=True)
            ]

        step = EXACT_BATCH if params.exact else 1
        found = self._connection.each(run, [rows[i : i + step] for i in range(0, len(rows), step)])
        return [hits for batch in found for hits in batch]

    def retrieve(self, ids: Sequence[PointId], *, with_vectors: bool = False) -> list[Point]:
        wanted = list(dict.fromkeys(check_ids(ids)))
        page = self._page(with_vectors)
        vectors: Any = self._wanted(with_vectors)

        def read(part: list[PointId]) -> list[Point]:
            if self._base:  # retrieval by id takes no filter
                records, _ = self._call(
                    "read points",
                    "scroll",
                    scroll_filter=conditions_filter(self._base, part),
                    limit=len(part),
                    with_payload=True,
                    with_vectors=vectors,
                )
            else:
                plain = [plain_id(i) for i in part]
                records = self._call(
                    "read points", "retrieve", ids=plain, with_payload=True, with_vectors=vectors
                )
            return [self._point(r) for r in records]

        parts = [wanted[i : i + page] for i in range(0, len(wanted), page)]
        return [point for part in self._connection.each(read, parts) for point in part]

    def scroll(
        self, *, with_vectors: bool = False, conditions: Sequence[Condition] = ()
    ) -> Iterator[list[Point]]:
        """See `VectorStore.scroll`. In order of ids, so a retried page neither repeats nor skips a point."""
        offset = None
        while True:
            records, offset = self._call(
                "read points",
                "scroll",
                scroll_filter=self._filter(conditions),
                limit=self._page(with_vectors),
                offset=offset,
                with_payload=True,
                with_vectors=self._wanted(with_vectors),
            )
            if records:
                yield [self._point(r) for r in records]
            if offset is None:
                return

    def count(self, conditions: Sequence[Condition] = ()) -> int:
        found = self._call("count points", "count", count_filter=self._filter(conditions), exact=True)
        return int(found.count)

    def flush(self) -> None:
        """Nothing is left to do: every write waited until the server had applied it."""

    def optimize(self, *, force: bool = False) -> bool:
        """A server optimizes on its own. ``force`` waits until it is done; True when there was anything to do."""
        if not force or self._info().status == m.CollectionStatus.GREEN:
            return False
        self.wait_until_built()
        return True

    def purge(self) -> None:
        """Nothing to do here: the server vacuums its segments by itself, when a fifth of one was deleted."""

    def enable_quantization(self, kind: Quantization = "pq", patience: float = 3_600.0) -> StoreStatus:
        """Quantize the collection in place, and return when it is really done. The one change we make to it.

        Collections below the server's indexing threshold keep exact vectors (`StoreStatus.state` ``exact``).
        Raises `StoreUnavailable` when it takes longer than ``patience`` seconds; the server goes on.
        """
        if kind == "none":
            raise StoreError("choose a quantization to enable: pq, turbo or scalar.")
        change = m.VectorParamsDiff(quantization_config=quantization_config(kind))
        self._call(
            "change the quantization", "update_collection", vectors_config={self._spec.vector_name: change}
        )
        info = self._info()
        self._spec = describe(info, self._spec.name, self._spec.vector_name)
        if self._spec.quantization != kind:
            raise StoreError(
                f"{self._connection.shown} took the change but shows {self._spec.quantization!r} for "
                f"{self._spec.name!r}: its version may not know {kind!r}."
            )
        return self.wait_until_built(patience)

    def wait_until_built(self, patience: float = 3_600.0) -> StoreStatus:
        """Wait until nothing is being indexed or quantized: green twice in a row, and as many as can be coded."""
        deadline = time.monotonic() + patience
        greens = 0
        while True:
            info = self._info()
            status = self._status(info)
            done = status.state == "green" or (status.state == "exact" and _too_few(info, self._spec))
            greens = greens + 1 if done else 0
            if greens == 2:
                return status
            if status.state == "red":
                raise StoreError(f"{self._connection.shown} fails to build {self._spec.name!r}: see its log.")
            if time.monotonic() > deadline:
                raise StoreUnavailable(
                    f"{self._spec.name!r} at {self._connection.shown} is still {status.state} after "
                    f"{patience:.0f} seconds ({status.coded_points} of {status.points} points built): it goes on "
                    "by itself; look again with `gmv-qdrant status`."
                )
            time.sleep(POLL)

    def status(self) -> StoreStatus:
        return self._status(self._info())

    def close(self) -> None:
        self._connection.close()

    # -- the server ------------------------------------------------------------------------------------

    def _call(self, action: str, method: str, **kwargs: Any) -> Any:
        try:
            return self._connection.call(action, method, collection_name=self._spec.name, **kwargs)
        except Missing:
            raise _absent(self._connection, self._spec.name, gone=True) from None

    def _info(self) -> m.CollectionInfo:
        return _describe(self._connection, self._spec.name, gone=True)

    def _status(self, info: m.CollectionInfo) -> StoreStatus:
        """From the server's own counts; several vectors share one count of indexed ones, so it is split evenly."""
        vectors = dense_vectors(info)
        if self._spec.vector_name not in vectors:
            describe(info, self._spec.name, self._spec.vector_name)  # says which are there
        kind, bits = quantization_of(info, self._spec.vector_name)
        points = info.points_count or 0
        indexed = min(points, (info.indexed_vectors_count or 0) // max(1, len(vectors)))
        coded = indexed if kind != "none" else 0
        state = str(info.status.value)
        if state == "green":
            if kind != "none" and not coded:
                state = "exact"
            elif not _complete(info, points, indexed, self._spec):
                state = "pending"
        return StoreStatus(
            engine="server",
            version=self.version,
            points=points,
            quantization=kind if coded else "none",
            coded_points=coded,
            tail_points=points - coded if kind != "none" else 0,
            code_bytes=round(coded * self._spec.dim * bits / 8),
            vector_bytes=points * self._spec.dim * 4,
            state=state,
        )

    def _filter(self, conditions: Sequence[Condition]) -> m.Filter | None:
        return conditions_filter([*self._base, *conditions])

    def _page(self, with_vectors: bool) -> int:
        return max(1, min(BATCH, BATCH_BYTES // (self._spec.dim * NUMBER_BYTES))) if with_vectors else BATCH

    def _wanted(self, with_vectors: bool) -> bool | list[str]:
        return [self._spec.vector_name] if with_vectors and self._spec.vector_name else with_vectors

    def _point(self, record: m.Record) -> Point:
        vector: Any = record.vector
        if isinstance(vector, dict):
            vector = vector.get(self._spec.vector_name)
        row = None if vector is None else np.asarray(vector, dtype=np.float32)
        return Point(our_id(record.id), dict(record.payload or {}), row)


def _some(only: m.Filter | None) -> m.Filter:
    assert only is not None
    return only


def _create(connection: Connection, spec: CollectionSpec) -> None:
    params = vector_params(spec)
    config: Any = params if spec.vector_name else params[""]
    try:
        connection.call("create the collection", "create_collection", spec.name, vectors_config=config)
    except StoreError:
        # A first try whose answer got lost has made it; the caller compares what is there.
        if not connection.call("look for the collection", "collection_exists", spec.name):
            raise


def _describe(
    connection: Connection, name: str, *, patience: float | None = None, gone: bool = False
) -> m.CollectionInfo:
    try:
        info: m.CollectionInfo = connection.call(
            "describe the collection", "get_collection", name, patience=patience
        )
    except Missing:
        raise _absent(connection, name, gone=gone) from None
    return info


def _absent(connection: Connection, name: str, *, gone: bool) -> StoreError:
    try:
        found = connection.call("list the collections", "get_collections", patience=PREFLIGHT)
        names = ", ".join(sorted(c.name for c in found.collections)) or "none"
        others = f"it has: {names}"
    except StoreError:
        others = "its collections can't be listed"
    if gone:
        return StoreError(
            f"the collection {name!r} has disappeared from {connection.shown} ({others}): it was deleted or "
            "renamed while it was in use."
        )
    return StoreError(f"{connection.shown} has no collection {name!r} ({others}).")


def _slices(sizes: Sequence[int]) -> Iterator[slice]:
    """Consecutive batches, none above the limits by points or bytes (one huge point goes alone)."""
    start, total = 0, 0
    for i, size in enumerate(sizes):
        if i > start and (i - start >= BATCH or total + size > BATCH_BYTES):
            yield slice(start, i)
            start, total = i, 0
        total += size
    if start < len(sizes):
        yield slice(start, len(sizes))


def _payload_bytes(payload: Mapping[str, Any]) -> int:
    try:
        return len(json.dumps(payload)) + 64
    except (TypeError, ValueError) as e:
        raise StoreError(
            f"a payload can't be written as JSON ({e}): use text, numbers, lists and objects."
        ) from None


def _threshold_points(info: m.CollectionInfo, spec: CollectionSpec) -> int:
    """Points of one segment below which the server neither indexes nor quantizes."""
    kilobytes = info.config.optimizer_config.indexing_threshold
    return int((10_000 if kilobytes is None else kilobytes) * 1024 / (spec.dim * 4))


def _too_few(info: m.CollectionInfo, spec: CollectionSpec) -> bool:
    return (info.points_count or 0) <= _threshold_points(info, spec) * max(1, info.segments_count)


def _complete(info: m.CollectionInfo, points: int, indexed: int, spec: CollectionSpec) -> bool:
    """Whether what isn't indexed fits in segments that the server leaves alone."""
    return points - indexed <= _threshold_points(info, spec) * max(1, info.segments_count)
