"""The server store: a collection of any Qdrant deployment behind the same protocol as the embedded one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from qdrant_client import models as m

from gmv_qdrant.errors import CollectionMismatch, StoreError
from gmv_qdrant.vectors.checks import check_batch, check_ids
from gmv_qdrant.vectors.ownership import Owner
from gmv_qdrant.vectors.protocol import RUN, CollectionSpec, Payload, PointId, Quantization, StoreStatus
from gmv_qdrant.vectors.server.codec import among, describe, plain_id, quantization_config
from gmv_qdrant.vectors.server.collections import (
    create_collection,
    describe_collection,
    exists,
    refuse_where_nothing_is_built,
    wait_until_built,
)
from gmv_qdrant.vectors.server.connection import Connection, ServerConfig, halving
from gmv_qdrant.vectors.server.reader import NUMBER_BYTES, ServerReader

__all__ = ["ServerConfig", "ServerStore"]

BATCH_BYTES = 16 * 2**20
"""Half of the size of a request that a server accepts by default."""


class ServerStore(ServerReader):
    """`VectorStore` over one collection of a server. Thread-safe; requests run in parallel, bounded.

    Nothing is written but by the methods whose names say so. A read filter is ANDed into deletions, too.
    """

    @classmethod
    def create(cls, config: ServerConfig, spec: CollectionSpec, owner: Owner | None = None) -> ServerStore:
        """A new collection. Raises `StoreError` when there is one of that name."""
        connection = Connection(config, spec.name)
        try:
            if not create_collection(connection, spec, owner or Owner.nobody()):
                raise StoreError(
                    f"{connection.shown} already has a collection {spec.name!r}: choose another name."
                )
            return cls(connection, describe_collection(connection, spec.name), spec)
        except BaseException:
            connection.close()
            raise

    @classmethod
    def open_own(
        cls, config: ServerConfig, spec: CollectionSpec, owner: Owner, *, make: bool, take_over: bool = False
    ) -> ServerStore:
        """The collection of ``owner``; see `gmv_qdrant.vectors.open_own`."""
        connection = Connection(config, spec.name)
        try:
            made = make and not exists(connection, spec.name) and create_collection(connection, spec, owner)
            info = describe_collection(connection, spec.name)
            if made and not info.config.metadata:
                raise StoreError(
                    f"{connection.shown} can't keep whose collection {spec.name!r} is: use Qdrant 1.16 or newer."
                )
            if take_over:
                owner.check_id(info.config.metadata, spec.name, connection.shown)
                connection.call(
                    "take over the collection", "update_collection", spec.name, metadata=owner.metadata
                )
            else:
                owner.check(info.config.metadata, spec.name, connection.shown)
            found = describe(info, spec.name, spec.vector_name)
            if (found.dim, found.distance) != (spec.dim, spec.distance):
                raise CollectionMismatch(
                    f"the collection {spec.name!r} at {connection.shown} has vectors of {found.dim} numbers "
                    f"({found.distance}), but the settings ask for {spec.dim} ({spec.distance}): use the encoder "
                    "it was made with, or another collection name."
                )
            if RUN not in info.payload_schema:
                keyword = m.PayloadSchemaType.KEYWORD
                connection.call("index the payload", "create_payload_index", spec.name, RUN, keyword)
            return cls(connection, info, found)
        except BaseException:
            connection.close()
            raise

    def upsert(self, ids: Sequence[PointId], vectors: np.ndarray, payloads: Sequence[Payload]) -> None:
        """See `VectorStore.upsert`. When it fails midway, some batches are stored: doing it again is safe."""
        ids, rows = check_batch(ids, vectors, payloads, self._spec)
        last = list(
            {i: n for n, i in enumerate(ids)}.values()
        )  # batches run side by side: the last of equal ids
        sizes = [rows.shape[1] * NUMBER_BYTES + _payload_bytes(payloads[n]) for n in last]
        name = self._spec.vector_name

        def send(part: Sequence[int]) -> None:
            lines = rows[list(part)].tolist()
            batch = m.Batch(
                ids=[plain_id(ids[n]) for n in part],
                vectors={name: lines} if name else lines,
                payloads=[dict(payloads[n]) for n in part],
            )
            self._call("store points", "upsert", points=batch, wait=True)

        def work() -> None:
            parts = [last[some] for some in _slices(sizes, self._strict.upsert)]
            self._connection.each(lambda part: halving(send, part), parts)

        self._within_limits(work)

    def delete(self, ids: Sequence[PointId]) -> None:
        """See `VectorStore.delete`. Points outside of the store's own filter stay."""
        ids = check_ids(ids)

        def send(part: Sequence[PointId]) -> None:
            chosen: Any = m.PointIdsList(points=[plain_id(i) for i in part])
            if self._only:
                chosen = m.FilterSelector(filter=m.Filter(must=[self._only, among(part)]))
            self._call("delete points", "delete", points_selector=chosen, wait=True)

        self._in_parts(send, ids, lambda: self._strict.ids if self._only else self._strict.upsert)

    def flush(self) -> None:
        """Nothing is left to do: every write waited until the server had applied it."""

    def optimize(self, *, force: bool = False) -> bool:
        """A server optimizes on its own. ``force`` waits until it is done; True when there was anything to do."""
        if not force or self.status().state in ("green", "exact"):
            return False
        self.wait_until_built()
        return True

    def purge(self) -> None:
        """Nothing to do here: the server vacuums its segments by itself, when a fifth of one was deleted."""

    def damaged(self) -> list[str]:
        """Nothing to say: a server's files are its own."""
        return []

    def enable_quantization(self, kind: Quantization = "pq", patience: float = 3_600.0) -> StoreStatus:
        """Quantize the collection in place, and return when it is really done. The one change we make to it.

        Collections below the server's indexing threshold keep exact vectors (`StoreStatus.state` ``exact``).
        Raises `StoreError` where its optimizer is off, `StoreUnavailable` when it takes longer than ``patience``
        seconds; the server goes on.
        """
        if kind == "none":
            raise StoreError("choose a quantization to enable: pq, turbo or scalar.")
        refuse_where_nothing_is_built(self._info(), self._spec.name, self._connection.shown)
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
        """Wait until the server has indexed and quantized what it is going to. Raises `StoreUnavailable`."""
        return wait_until_built(self.status, self._spec.name, self._connection, patience)


def create_indexes(config: ServerConfig, name: str, kinds: Mapping[str, str]) -> None:
    """Index payload fields, each as the kind that it is given here."""
    connection = Connection(config, name)
    try:
        for key, kind in kinds.items():
            connection.call(
                f"index the payload field {key!r}",
                "create_payload_index",
                name,
                key,
                m.PayloadSchemaType(kind),
            )
    finally:
        connection.close()


def _slices(sizes: Sequence[int], most: int) -> Iterator[slice]:
    """Consecutive batches, none above the limits by points or bytes (one huge point goes alone)."""
    start, total = 0, 0
    for i, size in enumerate(sizes):
        if i > start and (i - start >= most or total + size > BATCH_BYTES):
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
