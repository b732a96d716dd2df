"""The reading half of the server store: nothing in this file changes anything on the server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
from qdrant_client import models as m

from gmv_qdrant.vectors.checks import TIES, check_ids, check_limit, check_vectors, settle
from gmv_qdrant.vectors.protocol import (
    CollectionSpec,
    Condition,
    Hits,
    Limits,
    Point,
    PointId,
    SearchParams,
    StoreStatus,
)
from gmv_qdrant.vectors.server.codec import (
    conditions_filter,
    dense_vectors,
    describe,
    ids_filter,
    our_id,
    plain_id,
    search_params,
)
from gmv_qdrant.vectors.server.collections import absent, describe_collection, status_of
from gmv_qdrant.vectors.server.connection import PREFLIGHT, Connection, Missing, ServerConfig

BATCH = 1_000
IDS_PAGE = 10_000
BATCH_BYTES = 16 * 2**20
"""Half of the size of a request that a server accepts by default."""
NUMBER_BYTES = 22
"""Of one float32 in JSON, at most."""
EXACT_BATCH = 16


class ServerReader:
    """One collection of a server, read. Thread-safe; requests run in parallel, bounded.

    ``conditions`` (a tenant's filter) are ANDed into every call.
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
    ) -> Self:
        """The existing collection ``name``, as it is: nothing is changed.

        ``vector_name`` None takes its only vector. Raises `StoreError` (no such collection, key refused),
        `CollectionMismatch` (no such vector), `StoreUnavailable`.
        """
        connection = Connection(config)
        try:
            info = describe_collection(connection, name, patience=min(PREFLIGHT, config.patience))
            return cls(connection, describe(info, name, vector_name), conditions)
        except BaseException:
            connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def spec(self) -> CollectionSpec:
        return self._spec

    @property
    def limits(self) -> Limits:
        return Limits()

    @property
    def version(self) -> str:
        """The server's version, such as ``1.18.2``."""
        return str(self._connection.call("tell its version", "info").version)

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
                    scroll_filter=ids_filter(part, self._base),
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
        page, vectors = self._page(with_vectors), self._wanted(with_vectors)
        for records in self._pages(self._filter(conditions), page, payload=True, vectors=vectors):
            yield [self._point(r) for r in records]

    def ids(self) -> Iterator[list[PointId]]:
        for records in self._pages(self._filter([]), IDS_PAGE, payload=False, vectors=False):
            yield [our_id(r.id) for r in records]

    def count(self, conditions: Sequence[Condition] = ()) -> int:
        found = self._call("count points", "count", count_filter=self._filter(conditions), exact=True)
        return int(found.count)

    def lacking(self) -> dict[str, int]:
        """How many points lack each vector of the collection, by its name; searches don't see those."""
        names = dense_vectors(self._info())
        return {
            name: int(self._call("count points", "count", count_filter=self._without(name), exact=True).count)
            for name in sorted(names)
        }

    def _without(self, name: str) -> m.Filter:
        return m.Filter(must_not=[m.HasVectorCondition(has_vector=name)], must=self._filter([]))

    def status(self) -> StoreStatus:
        return status_of(self._info(), self._spec, self.version)

    def close(self) -> None:
        self._connection.close()

    # -- the server ------------------------------------------------------------------------------------

    def _call(self, action: str, method: str, **kwargs: Any) -> Any:
        try:
            return self._connection.call(action, method, collection_name=self._spec.name, **kwargs)
        except Missing:
            raise absent(self._connection, self._spec.name, gone=True) from None

    def _info(self) -> m.CollectionInfo:
        return describe_collection(self._connection, self._spec.name, gone=True)

    def _pages(
        self, only: m.Filter | None, page: int, *, payload: bool, vectors: Any
    ) -> Iterator[list[m.Record]]:
        offset = None
        while True:
            records, offset = self._call(
                "read points",
                "scroll",
                scroll_filter=only,
                limit=page,
                offset=offset,
                with_payload=payload,
                with_vectors=vectors,
            )
            if records:
                yield records
            if offset is None:
                return

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
