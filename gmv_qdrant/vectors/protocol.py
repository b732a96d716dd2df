"""What a vector store is: recall vectors in, nearest points out.

Two engines stand behind this one protocol: ``edge`` (Qdrant embedded in this process) and ``server``
(a Qdrant deployment). The same conformance tests run on both.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np

PointId = int | uuid.UUID
Payload = Mapping[str, Any]
Quantization = Literal["pq", "turbo", "scalar", "binary", "none"]
"""How vectors are coded. ``binary`` is only met in collections that others made."""
VectorDistance = Literal["cosine", "dot", "euclid"]
RUN = "run"
"""The payload field of an own collection's points that names the run which wrote them."""


def parse_point_id(text: str) -> PointId:
    """The inverse of ``str(point_id)``: the ledger keeps point ids as text."""
    return int(text) if text.isdigit() else uuid.UUID(text)


@dataclass(frozen=True, slots=True)
class CollectionSpec:
    """The collection that a workspace needs, or that was found."""

    name: str
    dim: int
    distance: VectorDistance = "cosine"
    vector_name: str = "recall"
    """``""`` is the unnamed vector of a foreign collection."""
    quantization: Quantization = "pq"


@dataclass(frozen=True, slots=True)
class SearchParams:
    """How a search trades time for recall; always sent in full, never left to an engine's default."""

    exact: bool = False
    rescore: bool = True
    oversampling: float = 8.0
    hnsw_ef: int | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What a search may ask for at most: a server's strict mode says so for each collection."""

    points: int = 2**31
    exact: bool = True
    oversampling: float = 2.0**31
    ef: int = 2**31


@dataclass(frozen=True, slots=True)
class Hits:
    """The nearest points of one query, nearest first; equal distances are ordered by ``str(id)``."""

    ids: list[PointId]
    distances: np.ndarray
    """float32 ``(len(ids),)``, ascending. cosine: 1 - cos; dot: minus the product; euclid: the 2-norm."""


@dataclass(frozen=True, slots=True)
class Point:
    id: PointId
    payload: dict[str, Any] = field(default_factory=dict)
    vector: np.ndarray | None = None
    """float32 ``(dim,)``, or None when it wasn't asked for."""


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """What is really there: the proof of quantization, not the wish for it."""

    engine: str
    version: str
    points: int
    quantization: Quantization
    coded_points: int
    """Points that quantized codes exist for."""
    tail_points: int
    """Points that are scanned exactly until the next ``optimize``."""
    code_bytes: int
    vector_bytes: int
    state: str
    """``green``: nothing worth building is left. ``exact``: no codes exist (too few points, or not optimized
    yet), every search is exact. ``pending``: the tail warrants an ``optimize``. ``optimizing``: it runs.
    A server adds its own words (``yellow``, ``grey``, ``red``)."""
    approximate: bool
    """Whether some points are found by codes or a graph: then a search may miss some."""
    searched: str
    """A digest of what a search looks through; another one when points, codes, graph or configuration change."""


class VectorStore(Protocol):
    """The recall vectors of one collection. Engines' own exceptions never leave it: `StoreError` does."""

    @property
    def spec(self) -> CollectionSpec: ...

    @property
    def limits(self) -> Limits: ...

    def upsert(self, ids: Sequence[PointId], vectors: np.ndarray, payloads: Sequence[Payload]) -> None:
        """Add or replace points: ``vectors`` float32 ``(n, dim)``.

        Raises `StoreError` for a wrong dimension, NaN, infinite or (under cosine) zero vectors, before
        anything is stored. Under cosine the engines keep unit vectors, so those are what comes back.
        """
        ...

    def delete(self, ids: Sequence[PointId]) -> None: ...

    def search(self, queries: np.ndarray, limit: int, params: SearchParams) -> list[Hits]:
        """The ``limit`` nearest points of each query: ``queries`` float32 ``(q, dim)``."""
        ...

    def retrieve(
        self, ids: Sequence[PointId], *, with_vectors: bool = False, fields: Sequence[str] | None = None
    ) -> list[Point]:
        """Those of ``ids`` that exist, in no fixed order. fields: of the payload; None is all of them."""
        ...

    def scroll(
        self, *, with_vectors: bool = False, fields: Sequence[str] | None = None
    ) -> Iterator[list[Point]]:
        """All points, in pages."""
        ...

    def ids(self) -> Iterator[list[PointId]]:
        """The ids of all points, in pages."""
        ...

    def count(self) -> int:
        """All points; about as many, where a server allows no exact count."""
        ...

    def flush(self) -> None:
        """Return only when everything upserted or deleted so far survives a crash."""
        ...

    def optimize(self, *, force: bool = False) -> bool:
        """Quantize and index the tail when it warrants it (or ``force``); True when something was built."""
        ...

    def purge(self) -> None:
        """Leave nothing of deleted points on this machine's disk; a server sees to that by itself.

        Codes may be gone afterwards, until `optimize`: searches are exact then.
        """
        ...

    def damaged(self) -> list[str]:
        """Files with vectors or codes that aren't what was written, by their checksums; a server sees to its own."""
        ...

    def status(self) -> StoreStatus: ...

    def close(self) -> None: ...
