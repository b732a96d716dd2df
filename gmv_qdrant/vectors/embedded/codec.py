"""The embedded engine's words: our specs and conditions as Qdrant Edge's configuration and filters."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import qdrant_edge as q

from gmv_qdrant.vectors.protocol import (
    CollectionSpec,
    Condition,
    PointId,
    Quantization,
    SearchParams,
    VectorDistance,
)

DISTANCES: dict[VectorDistance, q.Distance] = {
    "cosine": q.Distance.Cosine,
    "dot": q.Distance.Dot,
    "euclid": q.Distance.Euclid,
}


def quantization_config(kind: Quantization) -> Any:
    if kind == "pq":
        return q.ProductQuantizationConfig(compression=q.CompressionRatio.X16, memory=q.Memory.Pinned)
    if kind == "turbo":  # two bits a number: the same sixteenth as PQ
        return q.TurboQuantQuantizationConfig(bits=q.TurboQuantBitSize.Bits2, memory=q.Memory.Pinned)
    if kind == "scalar":
        return q.ScalarQuantizationConfig(type=q.ScalarType.Int8, memory=q.Memory.Pinned)
    if kind == "binary":
        return q.BinaryQuantizationConfig(memory=q.Memory.Pinned)
    return None


def shard_config(spec: CollectionSpec, others: Mapping[str, Any], *, graph: bool) -> q.EdgeConfig:
    """Codes pinned in memory, vectors and payload on disk; the write-ahead log on."""
    recall = q.EdgeVectorParams(
        spec.dim,
        DISTANCES[spec.distance],
        quantization_config=quantization_config(spec.quantization),
        memory=q.Memory.Cold,
    )
    more = {
        name: q.EdgeVectorParams(v["size"], getattr(q.Distance, v["distance"]), memory=q.Memory.Cold)
        for name, v in others.items()
        if name != spec.vector_name
    }
    return q.EdgeConfig(
        vectors={spec.vector_name: recall, **more},
        hnsw_config=q.HnswIndexConfig(m=16 if graph else 0, ef_construct=128, full_scan_threshold=10_000),
        optimizers=q.EdgeOptimizersConfig(default_segment_number=2, indexing_threshold=1),
    )


def search_params(params: SearchParams, limit: int) -> q.SearchParams:
    """Every parameter in full: left to itself, the engine doesn't rescore codes."""
    codes = q.QuantizationSearchParams(
        ignore=params.exact, rescore=params.rescore, oversampling=max(1.0, params.oversampling)
    )
    ef = params.hnsw_ef or max(256, round(limit * params.oversampling))
    return q.SearchParams(hnsw_ef=ef, exact=params.exact, quantization=codes)


def json_path(field: str) -> str:
    """A payload path as the engine parses it: anything but plain keys and brackets is quoted."""
    return field if re.fullmatch(r'[\w.\-\[\]"]+', field) else f'"{field}"'


def shard_filter(
    conditions: Sequence[Condition], ids_with_flag: Callable[[str, set[bool]], set[PointId]]
) -> q.Filter | None:
    """All ``conditions`` as one filter, None when there are none.

    ``ids_with_flag(field, values)`` finds the points with those true/false values: the engine's Python
    binding turns True into 1, so its own match finds nothing.
    """

    def one(condition: Condition) -> Any:
        key = json_path(condition.field)
        flags = {v for v in condition.values if isinstance(v, bool)}
        texts = [v for v in condition.values if isinstance(v, str)]
        numbers = [v for v in condition.values if isinstance(v, int) and not isinstance(v, bool)]
        ways: list[Any] = [q.FieldCondition(key, match=q.MatchAny(v)) for v in (texts, numbers) if v]
        if flags or not ways:
            ways.append(q.HasIdCondition(set(ids_with_flag(condition.field, flags)) if flags else set()))
        return ways[0] if len(ways) == 1 else q.Filter(should=ways)

    return q.Filter(must=[one(c) for c in conditions]) if conditions else None


def flags_at(value: Any, path: Sequence[str]) -> list[bool]:
    """The true/false values at a payload path; lists count for each of their items, as in the engine."""
    if isinstance(value, list):
        return [flag for item in value for flag in flags_at(item, path)]
    if path:
        return flags_at(value.get(path[0]), path[1:]) if isinstance(value, dict) else []
    return [value] if isinstance(value, bool) else []
