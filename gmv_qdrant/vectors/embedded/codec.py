"""Our specs as Qdrant Edge's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import qdrant_edge as q

from gmv_qdrant.vectors.protocol import (
    CollectionSpec,
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
