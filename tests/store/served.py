"""One collection of the stand-in server: an Edge shard, the description that a server gives of it, and its limits."""

from __future__ import annotations

import shutil
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import qdrant_edge as q
from qdrant_client.http import models as m
from qdrant_client.local.payload_filters import check_filter

ALL = q.ScrollRequest(limit=10_000_000, with_payload=True, with_vector=True)


class Refused(Exception):
    """An answer that isn't 200. ``headers`` go with it."""

    def __init__(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(text)
        self.status, self.headers = status, headers or {}


class Bucket:
    """Tokens a minute, as a rate limit counts them."""

    now = staticmethod(time.monotonic)

    def __init__(self, kind: str, capacity: int, tokens: float) -> None:
        self.kind, self.capacity, self.tokens, self.at = kind, capacity, tokens, self.now()

    def spend(self, price: int) -> None:
        now = self.now()
        self.tokens = min(self.capacity, self.tokens + (now - self.at) * self.capacity / 60)
        self.at = now
        said = f"Rate limiting exceeded: {self.kind} rate limit exceeded: Operation requires {price} tokens"
        if price > self.capacity:
            raise Refused(
                429, f"{said}, request larger than rate limiter capacity, please try to split your request"
            )
        if price > self.tokens + 1e-9:
            wait = max(1, round((price - int(self.tokens)) * 60 / self.capacity))
            available = f"but only {int(self.tokens):.1f} were available. Retry after {wait}s"
            raise Refused(429, f"{said} {available}", {"Retry-After": str(wait)})
        self.tokens -= price


class Collection:
    def __init__(self, path: Path, create: m.CreateCollection) -> None:
        self.path, self.create = path, create
        self.unnamed = isinstance(create.vectors, m.VectorParams)
        self.vectors: dict[str, m.VectorParams] = (
            {"": create.vectors} if isinstance(create.vectors, m.VectorParams) else dict(create.vectors or {})
        )
        self.quantization = create.quantization_config
        self.metadata = create.metadata
        self.payload_schema: dict[str, Any] = {}
        self.copies: defaultdict[Any, set[Any]] = defaultdict(set)
        """Under which shard keys a point is, where sharding is custom: one id may be there several times."""
        coded = self.quantization or any(v.quantization_config for v in self.vectors.values())
        self.threshold = 1 if coded else 10_000
        """KB below which nothing is built: a server's own for plain vectors, and codes of few points at once."""
        self.optimizer: dict[str, Any] = {}
        self.yellow = 0
        self.builds = True
        self.ef_needed = 0
        """A graph that loses every other neighbour of a search that is narrower, once there is an index."""
        self.limit(create.strict_mode_config)
        shutil.rmtree(path, ignore_errors=True)
        self.shard = q.EdgeShard.create(str(path), self.config())

    # -- strict mode -----------------------------------------------------------------------------------

    def limit(self, strict: m.StrictModeConfig | None) -> None:
        self.strict = strict if strict and strict.enabled else m.StrictModeConfig()
        given = [("Read", self.strict.read_rate_limit, 0), ("Write", self.strict.write_rate_limit, 2)]
        self.buckets = {kind: Bucket(kind, n, max(1, n - used)) for kind, n, used in given if n}

    def spend(self, kind: str, price: int) -> None:
        if kind in self.buckets:
            self.buckets[kind].spend(price)

    def within(self, name: str, value: float | None, most: float | None) -> None:
        if value is not None and most is not None and value > most:
            text = f'Limit exceeded {value:g} > {most:g} for "{name}"'
            raise Refused(
                400, f'Bad request: {text}. Help: Reduce the "{name}" parameter to or below {most:g}.'
            )

    def allow_exact(self, exact: bool | None) -> None:
        if exact and self.strict.search_allow_exact is False:
            raise Refused(400, "Bad request: Exact search disabled!. Help: Set exact=false.")

    def allow_filter(self, given: m.Filter | None, *, write: bool = False) -> None:
        free = self.strict.unindexed_filtering_update if write else self.strict.unindexed_filtering_retrieve
        conditions = list(leaves(given))
        self.within("filter limit", len(conditions), self.strict.filter_max_conditions)
        for condition in conditions:
            if isinstance(condition, m.HasIdCondition):
                self.within("condition limit", len(condition.has_id), self.strict.condition_max_size)
            if isinstance(condition, m.FieldCondition):
                match = condition.match
                if isinstance(match, m.MatchAny):
                    self.within("condition limit", len(match.any), self.strict.condition_max_size)
                if free is False and condition.key not in self.payload_schema:
                    value = match.value if isinstance(match, m.MatchValue) else None
                    kind = {int: "integer", bool: "bool"}.get(type(value), "keyword")
                    need = f'Index required but not found for "{condition.key}" of one of the following types: [{kind}]'
                    raise Refused(
                        400,
                        f"Bad request: {need}. Help: Create an index for this key or use a different filter.",
                    )

    # -- the shard -------------------------------------------------------------------------------------

    def config(self) -> q.EdgeConfig:
        return q.EdgeConfig(
            vectors={
                name: q.EdgeVectorParams(
                    v.size,
                    getattr(q.Distance, v.distance.value),
                    quantization_config=self._codes(v.quantization_config or self.quantization),
                    memory=q.Memory.Cold,
                )
                for name, v in self.vectors.items()
            },
            hnsw_config=q.HnswIndexConfig(m=0, ef_construct=100, full_scan_threshold=10_000),
            optimizers=q.EdgeOptimizersConfig(
                default_segment_number=2, indexing_threshold=max(1, self.threshold)
            ),
        )

    @staticmethod
    def _codes(config: Any) -> Any:
        if isinstance(config, m.ProductQuantization):
            return q.ProductQuantizationConfig(compression=q.CompressionRatio.X16)
        if isinstance(config, m.ScalarQuantization):
            return q.ScalarQuantizationConfig(type=q.ScalarType.Int8)
        if isinstance(config, m.TurboQuantization):
            return q.TurboQuantQuantizationConfig(bits=q.TurboQuantBitSize.Bits2)
        return None

    def reload(self) -> None:
        self.shard.close()
        self.shard = q.EdgeShard.load(str(self.path), self.config())

    def build(self) -> None:
        self.reload()
        if (
            self.shard.info().points_count > 100
        ):  # an engine's own limit: codebooks of fewer points make no sense
            self.shard.optimize()
            self.reload()

    def misses(self, params: m.SearchParams | None) -> bool:
        exact, ef = bool(params and params.exact), (params and params.hnsw_ef) or 0
        return not exact and ef < self.ef_needed and bool(self.shard.info().indexed_vectors_count)

    def unbuilt(self, info: Any) -> int:
        """Bytes of vectors that have no index yet."""
        numbers = sum(v.size for v in self.vectors.values())
        return max(0, info.points_count - info.indexed_vectors_count) * numbers * 4

    @property
    def builds_now(self) -> bool:
        off = self.optimizer.get("max_optimization_threads") == 0
        return self.builds and self.threshold > 0 and not off

    def info(self) -> dict[str, Any]:
        info = self.shard.info()
        status = "green"
        if self.yellow > 0:
            self.yellow -= 1
            status = "yellow"
        elif self.builds_now and self.unbuilt(info) > self.threshold * 1_024:
            self.build()  # a server's background work
            status = "yellow"
        vectors: Any = {n: v.model_dump(mode="json", exclude_none=True) for n, v in self.vectors.items()}
        plain_vectors = vectors[""] if self.unnamed and len(vectors) == 1 else vectors
        create = self.create
        params = {
            "vectors": plain_vectors,
            "shard_number": create.shard_number or 1,
            "replication_factor": 1,
            "write_consistency_factor": 1,
            "on_disk_payload": True,
            **({"sharding_method": create.sharding_method.value} if create.sharding_method else {}),
            **({"sparse_vectors": {n: {} for n in create.sparse_vectors}} if create.sparse_vectors else {}),
        }
        optimizer = {
            "deleted_threshold": 0.2,
            "vacuum_min_vector_number": 1_000,
            "default_segment_number": 2,
            "max_segment_size": None,
            "memmap_threshold": None,
            "indexing_threshold": self.threshold,
            "flush_interval_sec": 5,
            "max_optimization_threads": None,
            "prevent_unoptimized": None,
            **self.optimizer,
        }
        config = {
            "params": params,
            "hnsw_config": {
                "m": 16, "ef_construct": 100, "full_scan_threshold": 10_000, "max_indexing_threads": 0,
                "on_disk": False,
            },
            "optimizer_config": optimizer,
            "wal_config": {"wal_capacity_mb": 32, "wal_segments_ahead": 0, "wal_retain_closed": 1},
            "quantization_config": self.quantization.model_dump(mode="json") if self.quantization else None,
            **({"metadata": self.metadata} if self.metadata else {}),
            **(
                {"strict_mode_config": self.strict.model_dump(mode="json", exclude_none=True)}
                if self.strict.enabled
                else {}
            ),
        }  # fmt: skip
        return {
            "status": status,
            "optimizer_status": "ok",
            "indexed_vectors_count": 0 if status == "yellow" else info.indexed_vectors_count,
            "points_count": info.points_count,
            "segments_count": info.segments_count,
            "config": config,
            "payload_schema": self.payload_schema,
            "update_queue": {"length": 0},
        }

    # -- points ----------------------------------------------------------------------------------------

    def check(self, name: str, vector: Any) -> None:
        if name not in self.vectors and name not in (self.create.sparse_vectors or {}):
            raise Refused(400, f"Wrong input: Not existing vector name error: {name}")
        if isinstance(vector, list) and vector and not isinstance(vector[0], list):
            size = self.vectors[name].size
            if len(vector) != size:
                raise Refused(
                    400, f"Wrong input: Vector dimension error: expected dim: {size}, got {len(vector)}"
                )

    def having(self, given: m.Filter | None) -> q.Filter | None:
        """A filter as the engine's: the ids that the client library's own reading of it lets through."""
        if given is None:
            return None
        plain_ids = given.must if isinstance(given.must, list) else []
        only_ids = len(plain_ids) == 1 and isinstance(plain_ids[0], m.HasIdCondition)
        if only_ids and not (given.should or given.must_not):
            return q.Filter(must=[q.HasIdCondition({point_id(i) for i in plain_ids[0].has_id})])
        records, _ = self.shard.scroll(ALL)
        found = {
            r.id
            for r in records
            if check_filter(given, r.payload or {}, plain(r.id), dict.fromkeys(vector_names(r.vector), True))
        }
        return q.Filter(must=[q.HasIdCondition(found)])

    def index(self, index: m.CreateFieldIndex) -> None:
        schema = index.field_schema
        kind = schema.value if isinstance(schema, m.PayloadSchemaType) else schema.type.value  # type: ignore[union-attr]
        more = {} if isinstance(schema, m.PayloadSchemaType) else {"params": schema.model_dump(mode="json", exclude_none=True)}  # type: ignore[union-attr] # fmt: skip # noqa: E501
        records, _ = self.shard.scroll(ALL)
        count = sum(index.field_name in (r.payload or {}) for r in records)
        self.payload_schema[index.field_name] = {"data_type": kind, **more, "points": count}


def leaves(given: Any) -> Iterable[Any]:
    if isinstance(given, m.Filter):
        for clause in (given.must, given.should, given.must_not):
            for one in clause if isinstance(clause, list) else [clause] if clause else []:
                yield from leaves(one)
    elif given is not None:
        yield given


def vector_names(vector: Any) -> list[str]:
    return list(vector) if isinstance(vector, dict) else [""]


def point_id(value: Any) -> int | uuid.UUID:
    return value if isinstance(value, int) else uuid.UUID(str(value))


def plain(value: Any) -> Any:
    return value if isinstance(value, int) else str(value)
