"""The reading half of the server store: nothing in this file changes anything on the server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self, TypeVar

import numpy as np
from pydantic import ValidationError
from qdrant_client import models as m

from gmv_qdrant.errors import SettingsError, StoreError
from gmv_qdrant.vectors.checks import (
    asked_payload,
    asked_vectors,
    check_ids,
    check_limit,
    check_vectors,
    point_of,
    settled,
)
from gmv_qdrant.vectors.protocol import (
    CollectionSpec,
    Hits,
    Limits,
    Point,
    PointId,
    SearchParams,
    StoreStatus,
)
from gmv_qdrant.vectors.server.codec import (
    among,
    both,
    dense_vectors,
    describe,
    our_id,
    plain_id,
    search_params,
)
from gmv_qdrant.vectors.server.collections import absent, describe_collection, status_of
from gmv_qdrant.vectors.server.connection import (
    Connection,
    LimitExceeded,
    Missing,
    ServerConfig,
    halving,
)
from gmv_qdrant.vectors.server.limits import IDS, StrictMode, lacking_indexes, require_indexes

T = TypeVar("T")
R = TypeVar("R")

PAGE_BYTES = 8 * 2**20
"""Of an answer: pages of large payloads are smaller."""
FIRST_PAGE = 32
"""Points of the first page, from which the size of the next ones follows."""
NUMBER_BYTES = 22
"""Of one float32 in JSON, at most."""
HIT_BYTES = 96
"""Of one found point in JSON."""
SCANNED_BYTES = 2**36
"""Vectors that one request may have the server look through."""


class ServerReader:
    """One collection of a server, read. Thread-safe; requests run in parallel, bounded.

    ``only``, a filter in Qdrant's own form, is ANDed into every call.
    """

    def __init__(
        self,
        connection: Connection,
        info: m.CollectionInfo,
        spec: CollectionSpec,
        only: m.Filter | None = None,
    ) -> None:
        """Use `open`, `create` or `open_own`."""
        self._connection, self._spec, self._only = connection, spec, only
        self._strict = StrictMode.of(info)
        self._points = info.points_count or 0
        self.custom_shards = info.config.params.sharding_method == m.ShardingMethod.CUSTOM
        """Whether one id may be there several times, under several shard keys."""
        connection.begin()

    @classmethod
    def open(
        cls,
        config: ServerConfig,
        name: str,
        vector_name: str | None = None,
        only: Mapping[str, Any] | None = None,
    ) -> Self:
        """The existing collection ``name``, as it is: nothing is changed.

        ``vector_name`` None takes its only vector. Raises `StoreError` (no such collection, key refused, no index for
        the filter), `CollectionMismatch` (no such vector), `SettingsError` (no filter), `StoreUnavailable`.
        """
        given = parse_filter(only)
        connection = Connection(config, name)
        try:
            info = describe_collection(connection, name)
            require_indexes(info, given, name, connection.shown)
            return cls(connection, info, describe(info, name, vector_name), given)
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
        return self._strict.search

    @property
    def version(self) -> str:
        """The server's version, such as ``1.18.2``."""
        return str(self._call_plain("tell its version", "info").version)

    @property
    def protocol(self) -> str:
        """REST, or gRPC and its port."""
        return self._connection.protocol

    def search(self, queries: np.ndarray, limit: int, params: SearchParams) -> list[Hits]:
        """See `VectorStore.search`. Many queries in a request; several requests in parallel."""
        check_limit(limit)
        rows = check_vectors(queries, self._spec)

        def request(index: int, fetch: int) -> m.QueryRequest:
            return m.QueryRequest(
                query=rows[index].tolist(),
                using=self._spec.vector_name or None,
                filter=self._only,
                params=search_params(params, fetch),
                limit=fetch,
                with_payload=False,
                with_vector=False,
            )

        def ask(indices: Sequence[int], fetch: int) -> list[Sequence[Any]]:
            def send(part: Sequence[int]) -> list[Sequence[Any]]:
                answers = self._call(
                    "search",
                    "query_batch_points",
                    requests=[request(index, min(fetch, self.limits.points)) for index in part],
                )
                return [answer.points for answer in answers]

            def size() -> int:
                self._require_points(limit)
                return self._queries(fetch, exact=params.exact)

            found = self._in_parts(send, indices, size)
            return [points for part in found for points in part]

        return settled(ask, len(rows), limit, self._spec.distance, our_id, most=self.limits.points)

    def _require_points(self, limit: int) -> None:
        if limit > self.limits.points:
            raise StoreError(
                f"the collection {self._spec.name!r} gives at most {self.limits.points} points a query "
                f"(max_query_limit of its strict mode), and {limit} are needed: make the workspace with fewer "
                "--candidates, or have that limit raised."
            )

    def _queries(self, fetch: int, *, exact: bool) -> int:
        """How many searches go into one request."""
        sent = self._spec.dim * NUMBER_BYTES
        scanned = max(1, self._points * self._spec.dim * 4) if exact else 1
        most = min(PAGE_BYTES // sent, PAGE_BYTES // (fetch * HIT_BYTES), SCANNED_BYTES // scanned)
        return max(1, min(self._strict.queries, most))

    def retrieve(
        self, ids: Sequence[PointId], *, with_vectors: bool = False, fields: Sequence[str] | None = None
    ) -> list[Point]:
        wanted = list(dict.fromkeys(check_ids(ids)))
        what: dict[str, Any] = {
            "with_payload": asked_payload(fields),
            "with_vectors": asked_vectors(self._spec, with_vectors),
        }

        def read(part: Sequence[PointId]) -> list[Point]:
            if self._only:  # retrieval by id takes no filter
                records, _ = self._call(
                    "read points",
                    "scroll",
                    scroll_filter=both(self._only, among(part)),
                    limit=len(part),
                    **what,
                )
            else:
                records = self._call("read points", "retrieve", ids=[plain_id(i) for i in part], **what)
            return [self._point(r) for r in records]

        found = self._in_parts(
            read,
            wanted,
            lambda: min(self._page(with_vectors), self._strict.ids if self._only else self._strict.page),
        )
        return [point for part in found for point in part]

    def scroll(
        self,
        *,
        with_vectors: bool = False,
        fields: Sequence[str] | None = None,
        having_vector: bool = False,
    ) -> Iterator[list[Point]]:
        """See `VectorStore.scroll`. In order of ids, so a retried page neither repeats nor skips a point.

        having_vector: only points that have the vector, for a search sees no others.
        """
        only = both(self._only, self._with_vector()) if having_vector else self._only
        bare = fields is not None and not fields
        page, offset = IDS if bare else FIRST_PAGE, None

        def most() -> int:
            return self._strict.ids_page if bare and not with_vectors else self._page(with_vectors)

        def read() -> Any:
            return self._call(
                "read points",
                "scroll",
                scroll_filter=only,
                limit=min(page, most()),
                offset=offset,
                with_payload=asked_payload(fields),
                with_vectors=asked_vectors(self._spec, with_vectors),
            )

        while True:
            records, offset = self._within_limits(read)
            if records:
                yield [self._point(r) for r in records]
                some = records[:: max(1, len(records) // 8)]
                heavy = max(len(json.dumps(r.payload or {}, default=str)) for r in some)
                page = max(1, min(IDS, PAGE_BYTES // max(1, heavy)))
            if offset is None:
                return

    def ids(self) -> Iterator[list[PointId]]:
        for page in self.scroll(fields=()):
            yield [point.id for point in page]

    def count(self) -> int:
        return self._count(self._only)

    def lacking(self) -> dict[str, int]:
        """How many points lack each vector of the collection, by its name; searches don't see those."""
        return {name: self._count(self._without(name)) for name in sorted(dense_vectors(self._info()))}

    def _count(self, only: m.Filter | None) -> int:
        found = self._within_limits(
            lambda: self._call("count points", "count", count_filter=only, exact=self.limits.exact)
        )
        return int(found.count)

    def _without(self, name: str) -> m.Filter | None:
        return both(m.Filter(must_not=[m.HasVectorCondition(has_vector=name)]), self._only)

    def _with_vector(self) -> m.Filter:
        return m.Filter(must=[m.HasVectorCondition(has_vector=self._spec.vector_name)])

    def payload_types(self) -> dict[str, str]:
        """The kinds of the payload fields that are indexed."""
        return {name: str(index.data_type.value) for name, index in self._info().payload_schema.items()}

    def lacking_indexes(self, only: m.Filter | None) -> dict[str, str]:
        """Payload fields of a filter that lack an index, with the kind that they need."""
        return lacking_indexes(self._info(), only)

    def status(self) -> StoreStatus:
        return status_of(self._info(), self._spec, self._version())

    def _version(self) -> str:
        if not hasattr(self, "_known_version"):
            self._known_version = self.version
        return self._known_version

    def close(self) -> None:
        self._connection.close()

    # -- the server ------------------------------------------------------------------------------------

    def _within_limits(self, work: Callable[[], R]) -> R:
        """``work``, and again where strict mode has other limits than when they were read: they may be set any time."""
        while True:
            try:
                return work()
            except LimitExceeded:
                now = StrictMode.of(self._info())
                if now == self._strict:
                    raise
                self._strict = now

    def _in_parts(
        self, send: Callable[[Sequence[T]], R], items: Sequence[T], size: Callable[[], int]
    ) -> list[R]:
        """``send`` of all items, at most ``size()`` in a request, or fewer where the server finds that too many."""

        def work() -> list[R]:
            most = size()
            parts = [items[i : i + most] for i in range(0, len(items), most)]
            return [
                one
                for halves in self._connection.each(lambda part: halving(send, part), parts)
                for one in halves
            ]

        return self._within_limits(work)

    def _call(self, action: str, method: str, **kwargs: Any) -> Any:
        try:
            return self._call_plain(action, method, collection_name=self._spec.name, **kwargs)
        except Missing:
            raise absent(self._connection, self._spec.name, gone=True) from None

    def _call_plain(self, action: str, method: str, **kwargs: Any) -> Any:
        return self._connection.call(action, method, **kwargs)

    def _info(self) -> m.CollectionInfo:
        return describe_collection(self._connection, self._spec.name, gone=True)

    def _page(self, with_vectors: bool) -> int:
        """Points that are read at once, as far as their vectors go."""
        if not with_vectors:
            return self._strict.page
        return max(1, min(self._strict.page, PAGE_BYTES // (self._spec.dim * NUMBER_BYTES)))

    def _point(self, record: m.Record) -> Point:
        return point_of(our_id(record.id), record.payload, record.vector, self._spec)


def parse_filter(given: Mapping[str, Any] | None) -> m.Filter | None:
    """A filter as Qdrant's own API takes it; raises `SettingsError` for what isn't one."""
    if not given:
        return None
    try:
        return m.Filter.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part in given)
        raise SettingsError(
            f"the filter isn't one that Qdrant takes ({where or 'filter'}: {first['msg']}): give an object such as "
            '{"must": [{"key": "customer", "match": {"value": "a"}}]}'
        ) from None
