"""A small HTTP server that speaks Qdrant's REST for the calls we make, on top of real Edge shards.

What it answers is held against a real server's answers (`test_answers.py`). Every request body is validated against
qdrant-client's own models (all of them forbid unknown fields), so a request that a real server would pass over in
silence is refused here. Faults are queued with `Loopback.fail` and met in order.
"""

from __future__ import annotations

import json
import math
import re
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import qdrant_edge as q
from killing import kill_asker
from pydantic import TypeAdapter, ValidationError
from qdrant_client.http import models as m
from served import Collection, Refused, plain, point_id

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


class Loopback:
    """``with Loopback(tmp_path) as server: ... server.url``."""

    def __init__(self, path: Path, *, api_key: str | None = None, version: str = "1.18.2") -> None:
        self.path, self.api_key, self.version = path, api_key, version
        self.read_only_key: str | None = None
        self.tokens: dict[str, dict[str, str]] = {}
        """Keys for single collections: key -> collection -> ``r`` or ``rw``; the collection ``!`` is: has expired."""
        self.prefix = ""
        """Below which path it answers, as behind a proxy."""
        self.max_body = 32 * 2**20
        self.lenient = False
        """Whether unknown fields of a request are passed over, as a real server does."""
        self.collections: dict[str, Collection] = {}
        self.aliases: dict[str, str] = {}
        self.faults: list[tuple[str, Fault]] = []
        self.requests: list[tuple[str, str, int]] = []
        """(method, path, bytes of the body), in order."""
        self.answered = 0
        """Bytes of all answers."""
        self.invalid: list[str] = []
        """Bodies that qdrant-client's models refuse: a test that ends with any has found a bug of ours."""
        self.most_at_once = 0
        self.seconds = 0.0
        """How long each request takes at least."""
        self._now = 0
        self._asker: str | None = None
        self._operations = 0
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
        return f"http://127.0.0.1:{self.port}{self.prefix}"

    def __enter__(self) -> Loopback:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        for collection in self.collections.values():
            collection.shard.close()

    def names(self) -> set[str]:
        """The collections that there are."""
        return set(self.collections)

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

    # -- who may ---------------------------------------------------------------------------------------

    def authorize(self, key: str | None, method: str, path: str) -> None:
        if path in ("/", "/readyz") or not (self.api_key or self.read_only_key or self.tokens):
            return
        if key is None:
            raise Refused(401, "Must provide an API key or an Authorization bearer token")
        if key == self.api_key:
            return
        name = unquote(path.strip("/").split("/")[1]) if path.count("/") > 1 else ""
        if key == self.read_only_key:
            if is_write(method, path):
                raise Refused(403, "Forbidden: Global manage access is required")
        elif key in self.tokens:
            may = self.tokens[key]
            if "!" in may:
                raise Refused(403, "ExpiredSignature")
            if name and name not in may:
                raise Refused(403, f"Forbidden: Access to collection {name} is required")
            if is_write(method, path) and not re.search(r"/points|/index", path):
                raise Refused(403, "Forbidden: Global access is required")
            if is_write(method, path) and may[name] != "rw":
                raise Refused(403, f"Forbidden: Write access to collection {name} is required")
        else:
            raise Refused(401, "Invalid API key or JWT")

    # -- the calls -------------------------------------------------------------------------------------

    def handle(self, method: str, path: str, body: bytes) -> Any:
        parts = [unquote(p) for p in path.strip("/").split("/")]
        if parts == [""]:
            return {"title": "qdrant - vector search engine", "version": self.version, "commit": "0"}
        if path == "/readyz":
            return "all shards are ready"
        if parts == ["aliases"]:
            return {
                "aliases": [{"alias_name": a, "collection_name": c} for a, c in self._visible(self.aliases)]
            }
        if parts[0] != "collections":
            raise Refused(404, "")
        if len(parts) == 1:
            return {"collections": [{"name": n} for n, _ in sorted(self._visible(self.collections))]}
        if parts[1:] == ["aliases"]:
            return self.change_aliases(self.valid(m.ChangeAliasesOperation, body))
        return self.handle_collection(method, parts[1], parts[2:], body)

    def check_timeout(self, path: str, query: str) -> None:
        parts = path.strip("/").split("/")
        if given := parse_qs(query).get("timeout"):
            collection = self.find(unquote(parts[1]))
            collection.within("timeout", float(given[0]), collection.strict.max_timeout)

    def _visible(self, named: dict[str, Any]) -> list[tuple[str, Any]]:
        mine = self.tokens.get(self._asker or "")
        return [(n, v) for n, v in named.items() if mine is None or n in mine]

    def handle_collection(self, method: str, name: str, parts: list[str], body: bytes) -> Any:
        rest = "/".join(parts)
        if (method, rest) == ("GET", "exists"):
            return {"exists": name in self.collections or name in self.aliases}
        if (method, rest) == ("PUT", ""):
            return self.create(name, self.valid(m.CreateCollection, body))
        if (method, rest) == ("DELETE", ""):
            if name in self.collections:
                self.collections.pop(name).shard.close()
                return True
            return False
        collection = self.find(name)
        if (method, rest) == ("GET", ""):
            return collection.info()
        if method == "PUT" and parts[:1] == ["vectors"]:
            return self.add_vector(collection, parts[1], self.valid(m.VectorNameConfig, body))
        known: dict[tuple[str, str], tuple[Any, Callable[[Collection, Any], Any]]] = {
            ("PATCH", ""): (m.UpdateCollection, self.update),
            ("PUT", "index"): (m.CreateFieldIndex, self.create_index),
            ("POST", "facet"): (m.FacetRequest, self.facet),
            ("PUT", "points"): (m.PointInsertOperations, self.upsert),
            ("POST", "points"): (m.PointRequest, self.retrieve),
            ("POST", "points/delete"): (m.PointsSelector, self.delete),
            ("POST", "points/payload"): (m.SetPayload, self.set_payload),
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

    def find(self, name: str) -> Collection:
        name = self.aliases.get(name, name)
        if name not in self.collections:
            raise Refused(404, f"Not found: Collection `{name}` doesn't exist!")
        return self.collections[name]

    def valid(self, model: Any, body: bytes) -> Any:
        try:
            given = json.loads(body, parse_constant=_refuse_constant)
            return TypeAdapter(model).validate_python(_known_fields(given) if self.lenient else given)
        except (ValidationError, ValueError) as e:
            self.invalid.append(str(e))
            raise Refused(400, f"Format error in JSON body: {e}") from None

    def done(self) -> dict[str, Any]:
        self._operations += 1
        return {"operation_id": self._operations, "status": "completed"}

    def create(self, name: str, create: m.CreateCollection) -> bool:
        if name in self.collections:
            raise Refused(409, f"Wrong input: Collection `{name}` already exists!")
        if name in self.aliases:
            said = f"Can't create collection with name {name}. Alias with the same name already exists"
            raise Refused(400, f"Wrong input: {said}")
        self.collections[name] = Collection(self.path / name, create)
        return True

    def change_aliases(self, change: m.ChangeAliasesOperation) -> bool:
        for action in change.actions:
            if isinstance(action, m.CreateAliasOperation):
                self.aliases[action.create_alias.alias_name] = action.create_alias.collection_name
            elif isinstance(action, m.DeleteAliasOperation):
                self.aliases.pop(action.delete_alias.alias_name)
        return True

    def update(self, collection: Collection, change: m.UpdateCollection) -> bool:
        for name, diff in (change.vectors or {}).items():
            if name not in collection.vectors:
                raise Refused(400, f"Wrong input: Not existing vector name error: {name}")
            collection.vectors[name].quantization_config = diff.quantization_config
            collection.threshold = min(collection.threshold, 1)
        if change.vectors:
            collection.build()
        if change.metadata:
            collection.metadata = {**(collection.metadata or {}), **change.metadata}
        if change.optimizers_config:
            given = change.optimizers_config.model_dump(mode="json", exclude_none=True)
            collection.threshold = given.pop("indexing_threshold", collection.threshold)
            collection.optimizer.update(given)
        if change.strict_mode_config:
            collection.limit(change.strict_mode_config)
        return True

    def create_index(self, collection: Collection, index: m.CreateFieldIndex) -> dict[str, Any]:
        collection.index(index)
        return self.done()

    def facet(self, collection: Collection, wanted: m.FacetRequest) -> dict[str, Any]:
        if wanted.key not in collection.payload_schema:
            page = "https://qdrant.tech/documentation/concepts/indexing/#payload-index"
            said = f"No appropriate index for faceting: `{wanted.key}`. Please create one to facet on this field. "
            said += f"Check {page} to see which payload schemas support Match conditions"
            raise Refused(400, f"Wrong input: {said}")
        records, _ = collection.shard.scroll(q.ScrollRequest(limit=10**7, with_payload=True))
        values = [r.payload[wanted.key] for r in records if wanted.key in r.payload]
        return {"hits": [{"value": v, "count": values.count(v)} for v in sorted(set(values))]}

    def add_vector(self, collection: Collection, name: str, config: Any) -> dict[str, Any]:
        dense = config.dense
        if name not in collection.vectors:
            distance = getattr(q.Distance, dense.distance.value)
            collection.shard.update(q.UpdateOperation.create_dense_vector(name, dense.size, distance))
            collection.vectors[name] = m.VectorParams(size=dense.size, distance=dense.distance)
        return self.done()

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
        for i in ids:
            if isinstance(i, int) and not 0 <= i < 2**64:
                word = f"value {i} is not a valid point ID, valid values are either an unsigned integer or a UUID"
                raise Refused(400, f"Format error in JSON body: {word}")
        collection.within("upsert limit", len(ids), collection.strict.upsert_max_batchsize)
        collection.spend("Write", len(ids))
        custom = collection.create.sharding_method == m.ShardingMethod.CUSTOM
        if custom and insert.shard_key is None:
            raise Refused(400, "Wrong input: Shard key not specified")
        for row in rows:
            for name, vector in row.items():
                collection.check(name, vector)
        points = [q.Point(point_id(i), r, p) for i, r, p in zip(ids, rows, payloads, strict=True)]
        collection.shard.update(q.UpdateOperation.upsert_points(points))
        if custom:
            for i in ids:
                collection.copies[i].add(str(insert.shard_key))
        return self.done()

    def update_vectors(self, collection: Collection, change: m.UpdateVectors) -> dict[str, Any]:
        ids = [point_id(p.id) for p in change.points]
        there = {r.id for r in collection.shard.retrieve(ids, with_payload=False, with_vector=False)}
        if lost := [i for i in ids if i not in there]:
            raise Refused(404, f"Not found: No point with id {lost[0]} found")
        points = [q.PointVectors(point_id(p.id), p.vector) for p in change.points]
        collection.shard.update(q.UpdateOperation.update_vectors(points))
        return self.done()

    def set_payload(self, collection: Collection, change: m.SetPayload) -> dict[str, Any]:
        ids = [point_id(i) for i in change.points or []]
        collection.shard.update(q.UpdateOperation.set_payload(ids, change.payload))
        return self.done()

    def retrieve(self, collection: Collection, wanted: m.PointRequest) -> list[Any]:
        collection.spend("Read", 1)
        ids = [point_id(i) for i in wanted.ids]
        found = collection.shard.retrieve(
            ids, with_payload=wanted.with_payload or False, with_vector=wanted.with_vector or False
        )
        return [record(r, wanted) for r in found]

    def delete(self, collection: Collection, which: Any) -> dict[str, Any]:
        if isinstance(which, m.PointIdsList):
            collection.spend("Write", len(which.points))
            collection.shard.update(q.UpdateOperation.delete_points([point_id(i) for i in which.points]))
        else:
            collection.allow_filter(which.filter, write=True)
            collection.spend("Write", 1)
            only = collection.having(which.filter)
            collection.shard.update(q.UpdateOperation.delete_points_by_filter(only))
        return self.done()

    def scroll(self, collection: Collection, wanted: m.ScrollRequest) -> dict[str, Any]:
        collection.within("limit", wanted.limit, collection.strict.max_query_limit)
        collection.allow_filter(wanted.filter)
        collection.spend("Read", 1)
        request = q.ScrollRequest(
            offset=None if wanted.offset is None else point_id(wanted.offset),
            limit=wanted.limit or 10,
            filter=collection.having(wanted.filter),
            with_payload=True if wanted.with_payload is None else wanted.with_payload,
            with_vector=wanted.with_vector or False,
        )
        records, offset = collection.shard.scroll(request)
        return {
            "points": [record(r, wanted, payload=True) for r in records],
            "next_page_offset": None if offset is None else plain(offset),
        }

    def count(self, collection: Collection, wanted: m.CountRequest) -> dict[str, int]:
        collection.allow_filter(wanted.filter)
        collection.allow_exact(wanted.exact is not False)
        collection.spend("Read", 1)
        only = collection.having(wanted.filter)
        count = collection.shard.count(q.CountRequest(exact=True, filter=only))
        return {"count": count + sum(len(keys) - 1 for keys in collection.copies.values())}

    def query_batch(self, collection: Collection, batch: m.QueryRequestBatch) -> list[Any]:
        collection.within("search batch size", len(batch.searches), collection.strict.search_max_batchsize)
        collection.spend("Read", len(batch.searches))
        return [self.best(collection, s) for s in batch.searches]

    def query(self, collection: Collection, wanted: m.QueryRequest) -> dict[str, Any]:
        collection.spend("Read", 1)
        return self.best(collection, wanted)

    def best(self, collection: Collection, wanted: m.QueryRequest) -> dict[str, Any]:
        strict, given, vector = collection.strict, wanted.params, nearest(wanted.query)
        collection.within("limit", wanted.limit, strict.max_query_limit)
        if given:
            collection.allow_exact(given.exact)
            collection.within("hnsw_ef", given.hnsw_ef, strict.search_max_hnsw_ef)
            codes = given.quantization
            collection.within("oversampling", codes and codes.oversampling, strict.search_max_oversampling)
        collection.allow_filter(wanted.filter)
        collection.check(wanted.using or "", vector)
        request = q.QueryRequest(
            limit=wanted.limit or 10,
            query=q.Query.Nearest(vector, using=wanted.using or ""),
            filter=collection.having(wanted.filter),
            params=params(given),
        )
        points = collection.shard.query(request)
        if collection.misses(given):
            points = points[::2]
        return {"points": [{"id": plain(p.id), "version": 0, "score": p.score} for p in points]}


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"expected value, not {name}")


def _known_fields(given: Any) -> Any:
    """Without the one unknown field that the recorded answers have."""
    return {n: v for n, v in given.items() if n != "paramz"} if isinstance(given, dict) else given


def is_write(method: str, path: str) -> bool:
    reads = ("/points", "/scroll", "/count", "/query", "/query/batch", "/facet")
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


def record(r: Any, wanted: Any, *, payload: bool = False) -> dict[str, Any]:
    """With payload and vector where they were asked for; a scroll gives the payload by itself."""
    found: dict[str, Any] = {"id": plain(r.id)}
    if wanted.with_payload or (payload and wanted.with_payload is None):
        found["payload"] = r.payload or {}
    if wanted.with_vector:
        names = wanted.with_vector if isinstance(wanted.with_vector, list) else None
        vector = {} if r.vector is None else r.vector
        found["vector"] = {n: v for n, v in vector.items() if n in names} if names is not None else vector
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
        if loopback.prefix:
            path = path.removeprefix(loopback.prefix) if path.startswith(loopback.prefix) else "/elsewhere"
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
        status, answer, headers = self._carry_out(path, body)
        if fault and fault.effect == "kill after":
            kill_asker(self.client_address[1])
            return
        if fault and fault.effect == "slow":
            time.sleep(fault.seconds)
        if fault and fault.effect == "drop after":
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self._answer(status, answer, headers, half=bool(fault and fault.effect == "half"))

    def _carry_out(self, path: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        loopback, key = self.loopback, self.headers.get("api-key")
        try:
            loopback.authorize(key, self.command, path)
        except Refused as e:  # a real server says this without JSON, but for what a key may not do
            plain_text = e.status == 401 or not str(e).startswith("Forbidden")
            return e.status, str(e) if plain_text else {"status": {"error": str(e)}, "time": 0.0}, {}
        if len(body) > loopback.max_body:
            said = (
                f"JSON payload ({len(body)} bytes) is larger than allowed (limit: {loopback.max_body} bytes)."
            )
            return 400, {"status": {"error": said}, "time": 0.0}, {}
        try:
            with loopback._lock:
                loopback.check_timeout(path, urlsplit(self.path).query)
                loopback._asker = key
                result = loopback.handle(self.command, path, body)
            if path in ("/", "/readyz"):
                return 200, result, {}
            return 200, {"result": result, "status": "ok", "time": 0.0}, {}
        except Refused as e:
            return e.status, {"status": {"error": str(e)}, "time": 0.0} if str(e) else None, e.headers
        except Exception as e:  # noqa: BLE001 - the engine's bare exceptions
            return 400, {"status": {"error": f"Wrong input: {e}"}, "time": 0.0}, {}

    def _answer(self, status: int, answer: Any, headers: dict[str, str], *, half: bool = False) -> None:
        data = answer.encode() if isinstance(answer, str) else b"" if answer is None else _json(answer)
        self._leave()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(answer, str) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.loopback.answered += len(data)
        self.wfile.write(data[: len(data) // 2] if half else data)
        self.wfile.flush()
        if half:
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815


def _json(answer: Any) -> bytes:
    try:
        return json.dumps(answer, allow_nan=False).encode()
    except ValueError:
        return json.dumps(_finite(answer)).encode()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
