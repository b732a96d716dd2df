"""Our specs as qdrant-client models, and a collection's description as a spec."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

from qdrant_client import models as m

from gmv_qdrant.errors import CollectionMismatch
from gmv_qdrant.vectors.protocol import (
    CollectionSpec,
    PointId,
    Quantization,
    SearchParams,
    VectorDistance,
)

DISTANCES: dict[VectorDistance, m.Distance] = {
    "cosine": m.Distance.COSINE,
    "dot": m.Distance.DOT,
    "euclid": m.Distance.EUCLID,
}
_COMPRESSION = {"x4": 4, "x8": 8, "x16": 16, "x32": 32, "x64": 64}
_TURBO_BITS = {"bits1": 1.0, "bits1_5": 1.5, "bits2": 2.0, "bits4": 4.0, "bits8": 8.0}


def quantization_config(kind: Quantization) -> Any:
    """Codes kept in memory; the same kinds and ratios as the embedded store."""
    if kind == "pq":
        product = m.ProductQuantizationConfig(compression=m.CompressionRatio.X16, always_ram=True)
        return m.ProductQuantization(product=product)
    if kind == "turbo":
        turbo = m.TurboQuantQuantizationConfig(bits=m.TurboQuantBitSize.BITS2, always_ram=True)
        return m.TurboQuantization(turbo=turbo)
    if kind == "scalar":
        scalar = m.ScalarQuantizationConfig(type=m.ScalarType.INT8, always_ram=True)
        return m.ScalarQuantization(scalar=scalar)
    return None


def vectors_config(spec: CollectionSpec) -> Any:
    params = m.VectorParams(
        size=spec.dim,
        distance=DISTANCES[spec.distance],
        on_disk=True,
        quantization_config=quantization_config(spec.quantization),
    )
    return {spec.vector_name: params} if spec.vector_name else params


def both(*filters: m.Filter | None) -> m.Filter | None:
    """What meets all of them; None when there are none."""
    given: list[Any] = [one for one in filters if one is not None]
    return given[0] if len(given) == 1 else m.Filter(must=given) if given else None


def among(ids: Iterable[PointId]) -> m.Filter:
    return m.Filter(must=[m.HasIdCondition(has_id=[plain_id(i) for i in ids])])


def search_params(params: SearchParams, limit: int) -> m.SearchParams:
    """Every parameter that matters, in full: a server's defaults differ by version and by collection."""
    if params.exact:
        return m.SearchParams(exact=True, quantization=m.QuantizationSearchParams(ignore=True))
    codes = m.QuantizationSearchParams(
        ignore=False, rescore=params.rescore, oversampling=max(1.0, params.oversampling)
    )
    ef = params.hnsw_ef or max(256, round(limit * params.oversampling))
    return m.SearchParams(hnsw_ef=ef, exact=False, quantization=codes)


def plain_id(point: PointId) -> int | str:
    return point if isinstance(point, int) else str(point)


def our_id(point: Any) -> PointId:
    return point if isinstance(point, int | uuid.UUID) else uuid.UUID(str(point))


def dense_vectors(info: m.CollectionInfo) -> dict[str, m.VectorParams]:
    """name -> parameters; the unnamed vector has the name ``""``."""
    vectors = info.config.params.vectors
    if isinstance(vectors, m.VectorParams):
        return {"": vectors}
    return dict(vectors or {})


def quantization_of(info: m.CollectionInfo, vector_name: str) -> tuple[Quantization, float]:
    """(kind, bits a number) that the collection asks for; whether codes exist is another question."""
    config: Any = dense_vectors(info)[vector_name].quantization_config or info.config.quantization_config
    if isinstance(config, m.ProductQuantization):
        return "pq", 32 / _COMPRESSION[str(config.product.compression.value)]
    if isinstance(config, m.ScalarQuantization):
        return "scalar", 8
    if isinstance(config, m.TurboQuantization):
        bits = config.turbo.bits
        return "turbo", _TURBO_BITS.get(str(bits.value), 2.0) if bits else 2.0
    if isinstance(config, m.BinaryQuantization):
        return "binary", 1
    return "none", 32


def describe(info: m.CollectionInfo, name: str, vector_name: str | None) -> CollectionSpec:
    """The spec of a collection that may be anybody's.

    ``vector_name`` None takes the only dense vector. Raises `CollectionMismatch` when there are several,
    none of that name, or one that an image's embedding can't be compared with.
    """
    vectors = dense_vectors(info)
    have = ", ".join(repr(v) if v else "the unnamed one" for v in sorted(vectors)) or "none"
    if vector_name is None:
        if len(vectors) != 1:
            raise CollectionMismatch(
                f"the collection {name!r} has these vectors: {have}; name the one to use with --vector."
            )
        vector_name = next(iter(vectors))
    if vector_name not in vectors:
        wanted = f"vector {vector_name!r}" if vector_name else "unnamed vector"
        raise CollectionMismatch(f"the collection {name!r} has no {wanted}; it has {have}.")
    params = vectors[vector_name]
    distance = _comparable(params, vector_name, name)
    kind, _ = quantization_of(info, vector_name)
    return CollectionSpec(name, params.size, distance, vector_name, kind)


def _comparable(params: m.VectorParams, vector_name: str, name: str) -> VectorDistance:
    """The distance of a vector; raises `CollectionMismatch` where an embedding can't be compared with it."""
    which = f"the vector {vector_name!r} of {name!r}" if vector_name else f"the vector of {name!r}"
    if params.multivector_config is not None:
        raise CollectionMismatch(f"{which} holds several rows a point: use one with a single row.")
    if params.datatype == m.Datatype.UINT8:
        raise CollectionMismatch(
            f"{which} is kept as whole numbers from 0 to 255 (datatype uint8), which an encoder's numbers can't be "
            "compared with: use one with the datatype float32 or float16."
        )
    distance = next((ours for ours, theirs in DISTANCES.items() if theirs == params.distance), None)
    if distance is None:
        raise CollectionMismatch(
            f"{which} uses the distance {params.distance.value}: Cosine, Dot and Euclid can be valued."
        )
    return distance
