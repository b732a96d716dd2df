"""A small HTTP server that speaks Qdrant's REST for the calls we make, on top of real Edge shards.

Every request body is validated against qdrant-client's own models (all of them forbid unknown fields), so a request
that a real server would refuse is refused here. Faults are queued with `Loopback.fail` and met in order.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import qdrant_edge as q
from pydantic import TypeAdapter, ValidationError
from qdrant_client.http import models as m

Effect = Literal["answer", "slow", "half", "drop", "drop after", "restart", "kill", "kill after"]


@dataclass
class Fault:
    """What befalls one request. ``drop after``: carried out, but the answer is lost. ``kill``: the process that asks
    is killed, if it descends from this one."""

    effect: Effect
    status: int = 500
    seconds: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)
    text: str = "made to fail"


class Refused(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Collection:
    """One Edge shard and the description that a server would give of it."""

    def __init__(self, path: Path, create: m.CreateCollection) -> None:
        self.path = path
        self.unnamed = isinstance(create.vectors, m.VectorParams)
        self.vectors: dict[str, m.VectorParams] = (
            {"": create.vectors} if isinstance(create.vectors, m.VectorParams) else dict(create.vectors or {})
        )
        self.quantization = create.quantization_config
        self.metadata = create.metadata
        self.payload_schema: dict[str, Any] = {}
        self.threshold = 1
        self.yellow = 0
        self.builds = True
        self.ef_needed = 0
        """A graph that loses every other neighbour of a search that is narrower, once there is an index."""
        shutil.rmtree(path, ignore_errors=True)
        self.shard = q.EdgeShard.create(str(path), self.config())

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
            optimizers=q.EdgeOptimizersConfig(default_segment_number=2, indexing_threshold=self.threshold),
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
        self.shard.optimize()
        self.reload()

    def misses(self, params: m.SearchParams | None) -> bool:
        exact, ef = bool(params and params.exact), (params and params.hnsw_ef) or 0
        return not exact and ef < self.ef_needed and bool(self.shard.info().indexed_vectors_count)

    def unbuilt(self, info: Any) -> int:
        """Bytes of vectors that have no index yet."""
        numbers = sum(v.size for v in self.vectors.values())
        return max(0, info.points_count - info.indexed_vectors_count) * numbers * 4

    def info(self) -> dict[str, Any]:
        info = self.shard.info()
        status = "green"
        if self.yellow > 0:
            self.yellow -= 1
            status = "yellow"
        elif self.builds and self.unbuilt(info) > self.threshold * 1_024:  # a server's background work
            self.build()
            status = "yellow"
        vectors: Any = {n: v.model_dump(mode="json", exclude_none=True) for n, v in self.vectors.items()}
        return {
            "status": status,
            "optimizer_status": "ok",
            "indexed_vectors_count": 0 if status == "yellow" else info.indexed_vectors_count,
            "points_count": info.points_count,
            "segments_count": info.segments_count,
            "config": {
                "params": {"vectors": vectors[""] if self.unnamed else vectors, "shard_number": 1},
                "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000},
                "optimizer_config": {
                    "deleted_threshold": 0.2,
                    "vacuum_min_vector_number": 1_000,
                    "default_segment_number": 0,
                    "flush_interval_sec": 5,
                    "indexing_threshold": self.threshold,
                },
                "wal_config": {"wal_capacity_mb": 32, "wal_segments_ahead": 0},
                "quantization_config": self.quantization.model_dump(mode="json")
                if self.quantization
                else None,
                **({"metadata": self.metadata} if self.metadata else {}),
            },
            "payload_schema": self.payload_schema,
        }


def point_id(value: Any) -> int | uuid.UUID:
    return value if isinstance(value, int) else uuid.UUID(str(value))


def plain(value: Any) -> Any:
    return value if isinstance(value, int) else str(value)


class Loopback:
    """``with Loopback(tmp_path) as server: ... server.url``."""

    def __init__(self, path: Path, *, api_key: str | None = None, version: str = "1.18.2") -> None:
        self.path, self.api_key, self.version = path, api_key, version
        self.read_only_key: str | None = None
        self.collections: dict[str, Collection] = {}
        self.faults: list[tuple[str, Fault]] = []
        self.requests: list[tuple[str, str, int]] = []
        """(method, path, bytes of the body), in order."""
        self.invalid: list[str] = []
        """Bodies that qdrant-client's models refuse: a test that ends with any has found a bug of ours."""
        self.most_at_once = 0
        self.seconds = 0.0
        """How long each request takes at least."""
        self._now = 0
        self._lock = threading.RLock()
        self._serve(0)

    def _serve(self, port: int) -> None:
        handler = type("Handler", (_Handler,), {"loopback": self})
        self._http = _Server(("127.0.0.1", port), handler)
        self.port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Loopback:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        for collection in self.collections.values():
            collection.shard.close()

    def fail(self, *faults: Fault, on: str = "") -> None:
        """Queue faults for the next requests whose ``METHOD path`` contains ``on``."""
        self.faults += [(on, f) for f in faults]

    def restart(self, seconds: float) -> None:
        """Refuse connections for a while, then come back with what the shards have on disk."""

        def again() -> None:
            self._http.shutdown()
            self._http.server_close()
            time.sleep(seconds)
            with self._lock:
                for collection in self.collections.values():
                    collection.reload()
            self._serve(self.port)

        threading.Thread(target=again, daemon=True).start()

    def writes(self) -> list[tuple[str, str, int]]:
        """Requests that change something."""
        return [r for r in self.requests if is_write(r[0], r[1])]

    # -- the calls -------------------------------------------------------------------------------------

    def handle(self, method: str, path: str, body: bytes) -> Any:
        parts = [unquote(p) for p in path.strip("/").split("/")]
        if parts == [""]:
            return {"title": "qdrant", "version": self.version}
        if parts[0] != "collections":
            raise Refused(404, "")
        if len(parts) == 1:
            return {"collections": [{"name": n} for n in sorted(self.collections)]}
        name, rest = parts[1], "/".join(parts[2:])
        if (method, rest) == ("GET", "exists"):
            return {"exists": name in self.collections}
        if (method, rest) == ("PUT", ""):
            return self.create(name, self.valid(m.CreateCollection, body))
        if name not in self.collections:
            raise Refused(404, f"Not found: Collection `{name}` doesn't exist!")
        collection = self.collections[name]
        if (method, rest) == ("DELETE", ""):
            self.collections.pop(name).shard.close()
            return True
        if (method, rest) == ("GET", ""):
            return collection.info()
        if method == "PUT" and parts[2:3] == ["vectors"]:
            return self.add_vector(collection, parts[3], self.valid(m.VectorNameConfig, body))
        known: dict[tuple[str, str], tuple[Any, Callable[[Collection, Any], Any]]] = {
            ("PATCH", ""): (m.UpdateCollection, self.update),
            ("PUT", "index"): (m.CreateFieldIndex, self.create_index),
            ("PUT", "points"): (m.PointInsertOperations, self.upsert),
            ("POST", "points"): (m.PointRequest, self.retrieve),
            ("POST", "points/delete"): (m.PointsSelector, self.delete),
            ("POST", "points/scroll"): (m.ScrollRequest, self.scroll),
            ("POST", "points/count"): (m.CountRequest, self.count),
            ("POST", "points/query"): (m.QueryRequest, self.query),
            ("POST", "points/query/batch"): (m.QueryRequestBatch, self.query_batch),
            ("PUT", "points/vectors"): (m.UpdateVectors, self.update_vectors),
        }
        if (method, rest) not in known:
            raise Refused(404, "")
        model, call = known[method, rest]
        return call(collection, self.valid(model, body))

    def valid(self, model: Any, body: bytes) -> Any:
        try:
            return TypeAdapter(model).validate_python(json.loads(body))
        except (ValidationError, ValueError) as e:
            self.invalid.append(str(e))
            raise Refused(400, f"Format error in JSON body: {e}") from None

    def create(self, name: str, create: m.CreateCollection) -> bool:
        if name in self.collections:
            raise Refused(409, f"Wrong input: Collection `{name}` already exists!")
        self.collections[name] = Collection(self.path / name, create)
        return True

    def update(self, collection: Collection, change: m.UpdateCollection) -> bool:
        for name, diff in (change.vectors or {}).items():
            if name not in collection.vectors:
                raise Refused(400, f"Wrong input: Not existing vector name error: {name}")
            collection.vectors[name].quantization_config = diff.quantization_config
        if change.vectors:
            collection.build()
        if change.metadata:
            collection.metadata = {**(collection.metadata or {}), **change.metadata}
        return True

    def create_index(self, collection: Collection, index: m.CreateFieldIndex) -> dict[str, Any]:
        schema = index.field_schema
        kind = schema if isinstance(schema, m.PayloadSchemaType) else schema.type  # type: ignore[union-attr]
        collection.payload_schema[index.field_name] = {"data_type": kind.value, "points": 0}
        return done()

    def add_vector(self, collection: Collection, name: str, config: Any) -> dict[str, Any]:
        if tuple(map(int, self.version.split(".")[:2])) < (1, 18):
            raise Refused(404, "")
        dense = config.dense
        edge = q.UpdateOperation.create_dense_vector(
            name, dense.size, getattr(q.Distance, dense.distance.value)
        )
        collection.shard.update(edge)
        collection.vectors[name] = m.VectorParams(size=dense.size, distance=dense.distance)
        return done()

    def upsert(self, collection: Collection, insert: Any) -> dict[str, Any]:
        if isinstance(insert, m.PointsBatch):
            batch = insert.batch
            ids, payloads = batch.ids, batch.payloads or [{}] * len(batch.ids)
            named = batch.vectors if isinstance(batch.vectors, dict) else {"": batch.vectors}
            rows = [{n: v[i] for n, v in named.items()} for i in range(len(ids))]
        else:
            ids = [p.id for p in insert.points]
            payloads = [p.payload or {} for p in insert.points]
            rows = [p.vector if isinstance(p.vector, dict) else {"": p.vector} for p in insert.points]
        points = [q.Point(point_id(i), r, p) for i, r, p in zip(ids, rows, payloads, strict=True)]
        collection.shard.update(q.UpdateOperation.upsert_points(points))
        return done()

    def update_vectors(self, collection: Collection, change: m.UpdateVectors) -> dict[str, Any]:
        points = [q.PointVectors(point_id(p.id), p.vector) for p in change.points]
        collection.shard.update(q.UpdateOperation.update_vectors(points))
        return done()

    def retrieve(self, collection: Collection, wanted: m.PointRequest) -> list[Any]:
        ids = [point_id(i) for i in wanted.ids]
        found = collection.shard.retrieve(
            ids, with_payload=wanted.with_payload, with_vector=wanted.with_vector
        )
        return [record(r) for r in found]

    def delete(self, collection: Collection, which: Any) -> dict[str, Any]:
        if isinstance(which, m.PointIdsList):
            collection.shard.update(q.UpdateOperation.delete_points([point_id(i) for i in which.points]))
        else:
            only = self.filter(collection, which.filter)
            collection.shard.update(q.UpdateOperation.delete_points_by_filter(only))
        return done()

    def scroll(self, collection: Collection, wanted: m.ScrollRequest) -> dict[str, Any]:
        request = q.ScrollRequest(
            offset=None if wanted.offset is None else point_id(wanted.offset),
            limit=wanted.limit,
            filter=self.filter(collection, wanted.filter),
            with_payload=wanted.with_payload,
            with_vector=wanted.with_vector,
        )
        records, offset = collection.shard.scroll(request)
        return {
            "points": [record(r) for r in records],
            "next_page_offset": None if offset is None else plain(offset),
        }

    def count(self, collection: Collection, wanted: m.CountRequest) -> dict[str, int]:
        request = q.CountRequest(exact=True, filter=self.filter(collection, wanted.filter))
        return {"count": collection.shard.count(request)}

    def query_batch(self, collection: Collection, batch: m.QueryRequestBatch) -> list[Any]:
        return [self.query(collection, s) for s in batch.searches]

    def query(self, collection: Collection, wanted: m.QueryRequest) -> dict[str, Any]:
        prefetches = wanted.prefetch if isinstance(wanted.prefetch, list) else [wanted.prefetch]
        request = q.QueryRequest(
            limit=wanted.limit,
            query=q.Query.Nearest(nearest(wanted.query), using=wanted.using or ""),
            prefetches=[
                q.Prefetch(
                    limit=p.limit,
                    query=q.Query.Nearest(nearest(p.query), using=p.using or ""),
                    params=params(p.params),
                    filter=self.filter(collection, p.filter),
                )
                for p in prefetches
                if p is not None
            ],
            filter=self.filter(collection, wanted.filter),
            params=params(wanted.params),
        )
        points = collection.shard.query(request)
        if collection.misses(wanted.params):
            points = points[::2]
        return {"points": [{"id": plain(p.id), "version": 0, "score": p.score} for p in points]}

    def filter(self, collection: Collection, given: m.Filter | None) -> q.Filter | None:
        if given is None:
            return None
        parts = {}
        for clause in ("must", "should", "must_not"):
            items = getattr(given, clause)
            items = items if isinstance(items, list) else [items] if items else []
            parts[clause] = [self.condition(collection, c) for c in items] or None
        return q.Filter(**parts)

    def condition(self, collection: Collection, given: Any) -> Any:
        if isinstance(given, m.Filter):
            return self.filter(collection, given)
        if isinstance(given, m.HasIdCondition):
            return q.HasIdCondition({point_id(i) for i in given.has_id})
        if isinstance(given, m.HasVectorCondition):
            return q.HasVectorCondition(given.has_vector)
        assert isinstance(given, m.FieldCondition), given
        if isinstance(given.match, m.MatchAny):
            return q.FieldCondition(given.key, match=q.MatchAny(given.match.any))
        assert isinstance(given.match, m.MatchValue), given
        if isinstance(given.match.value, bool):  # Edge's binding would match 1 instead
            records, _ = collection.shard.scroll(q.ScrollRequest(limit=1_000_000, with_payload=True))
            return q.HasIdCondition({r.id for r in records if r.payload.get(given.key) is given.match.value})
        return q.FieldCondition(given.key, match=q.MatchValue(given.match.value))


def is_write(method: str, path: str) -> bool:
    reads = ("/points", "/scroll", "/count", "/query", "/query/batch")
    return method != "GET" and not (method == "POST" and path.endswith(reads))


def nearest(query: Any) -> list[float]:
    return list(query.nearest if isinstance(query, m.NearestQuery) else query)


def params(given: m.SearchParams | None) -> Any:
    if given is None:
        return None
    codes = given.quantization
    edge = codes and q.QuantizationSearchParams(
        ignore=bool(codes.ignore), rescore=codes.rescore, oversampling=codes.oversampling
    )
    return q.SearchParams(hnsw_ef=given.hnsw_ef, exact=bool(given.exact), quantization=edge)


def record(r: Any) -> dict[str, Any]:
    return {"id": plain(r.id), "payload": r.payload, "vector": r.vector}


def done() -> dict[str, Any]:
    return {"operation_id": 0, "status": "completed"}


def kill_asker(port: int) -> None:
    """SIGKILL to the descendant of this process whose connection comes from this port."""
    connections = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    (inode,) = {parts[9] for parts in connections if int(parts[1].split(":")[1], 16) == port}
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            if any(os.readlink(link) == f"socket:[{inode}]" for link in Path(f"/proc/{pid}/fd").iterdir()):
                os.kill(pid, signal.SIGKILL)
                return
    raise AssertionError(f"nobody of ours asks from port {port}")


def descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            children.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(
                int(stat.parent.name)
            )
    found, left = [], [pid]
    while left:
        mine = children.get(left.pop(), [])
        found += mine
        left += mine
    return found


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is none of our business."""


class _Handler(BaseHTTPRequestHandler):
    loopback: Loopback
    _counted = False

    def log_message(self, *_: Any) -> None:
        pass

    def _serve(self) -> None:
        loopback = self.loopback
        path = urlsplit(self.path).path
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with loopback._lock:
            loopback.requests.append((self.command, path, len(body)))
            loopback._now += 1
            self._counted = True
            loopback.most_at_once = max(loopback.most_at_once, loopback._now)
            fault = self._next_fault(f"{self.command} {path}")
        try:
            time.sleep(loopback.seconds)
            self._meet(fault, path, body)
        finally:
            self._leave()

    def _leave(self) -> None:
        """This request isn't worked on any more: before its answer goes out, for then the next may come in."""
        with self.loopback._lock:
            self.loopback._now -= self._counted
            self._counted = False

    def _next_fault(self, call: str) -> Fault | None:
        for i, (on, fault) in enumerate(self.loopback.faults):
            if on in call:
                del self.loopback.faults[i]
                return fault
        return None

    def _meet(self, fault: Fault | None, path: str, body: bytes) -> None:
        if fault and fault.effect == "kill":
            kill_asker(self.client_address[1])
            return
        if fault and fault.effect == "restart":
            self.loopback.restart(fault.seconds)
        if fault and fault.effect in ("drop", "restart"):
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if fault and fault.effect == "answer":
            error = {"status": {"error": fault.text}, "time": 0.0}
            self._answer(fault.status, error, fault.headers)
            return
        status, answer = self._carry_out(path, body)
        if fault and fault.effect == "kill after":
            kill_asker(self.client_address[1])
            return
        if fault and fault.effect == "slow":
            time.sleep(fault.seconds)
        if fault and fault.effect == "drop after":
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self._answer(status, answer, {}, half=bool(fault and fault.effect == "half"))

    def _carry_out(self, path: str, body: bytes) -> tuple[int, Any]:
        loopback = self.loopback
        key = self.headers.get("api-key")
        keys = {loopback.api_key, loopback.read_only_key} - {None}
        if keys and key not in keys:
            return 401, "Must provide an API key or an Authorization bearer token"
        try:
            with loopback._lock:
                if key and key == loopback.read_only_key and is_write(self.command, path):
                    raise Refused(403, "Forbidden: Global manage access is required")
                result = loopback.handle(self.command, path, body)
            if path == "/":
                return 200, result
            return 200, {"result": result, "status": "ok", "time": 0.0}
        except Refused as e:
            return e.status, {"status": {"error": str(e)}, "time": 0.0} if str(e) else None
        except Exception as e:  # noqa: BLE001 - the engine's bare exceptions
            return 400, {"status": {"error": f"Wrong input: {e}"}, "time": 0.0}

    def _answer(self, status: int, answer: Any, headers: dict[str, str], *, half: bool = False) -> None:
        data = b"" if answer is None else json.dumps(answer).encode()
        self._leave()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if half else data)
        self.wfile.flush()
        if half:
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815
