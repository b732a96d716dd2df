"""The loopback server's gRPC door: the same collections, reached by qdrant-client's own message conversions."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from loopback import Loopback
from qdrant_client import grpc as g
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc
from qdrant_client.http import models as m
from served import Refused

CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ALREADY_EXISTS,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
}


class GrpcLoopback:
    """``with Loopback(path) as server, GrpcLoopback(server) as door: ... door.port``."""

    def __init__(self, loopback: Loopback) -> None:
        self.loopback = loopback
        self.server = grpc.server(ThreadPoolExecutor(8))
        g.add_PointsServicer_to_server(self.servicer(g.PointsServicer, POINTS), self.server)
        g.add_CollectionsServicer_to_server(self.servicer(g.CollectionsServicer, COLLECTIONS), self.server)
        g.add_QdrantServicer_to_server(self.servicer(g.QdrantServicer, ROOT), self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()

    def __enter__(self) -> GrpcLoopback:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stop(None).wait()

    def servicer(self, base: type, calls: dict[str, Callable[..., Any]]) -> Any:
        def method(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
            return lambda _self, request, context: self.serve(name, call, request, context)

        return type("Servicer", (base,), {name: method(name, call) for name, call in calls.items()})()

    def serve(self, name: str, call: Callable[..., Any], request: Any, context: Any) -> Any:
        loopback = self.loopback
        with loopback._lock:
            loopback.requests.append(("GRPC", name, request.ByteSize()))
            due = [i for i, (on, _) in enumerate(loopback.faults) if on in f"GRPC {name}"]
            fault = loopback.faults.pop(due[0])[1] if due else None
        if fault and fault.effect == "answer":
            context.abort(CODES[fault.status], fault.text)
        if fault and fault.effect == "drop":
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        key = dict(context.invocation_metadata()).get("api-key")
        if loopback.api_key and key != loopback.api_key:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "Invalid API key or JWT")
        try:
            with loopback._lock:
                answer = call(loopback, request)
        except Refused as e:
            context.abort(CODES[e.status], str(e))
        except Exception as e:  # noqa: BLE001 - the engine's bare exceptions
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"Wrong input: {e}")
        if fault and fault.effect == "slow":
            time.sleep(fault.seconds)
        if fault and fault.effect in ("drop after", "half"):
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        return answer


def collection(loopback: Loopback, name: str) -> Any:
    return loopback.find(name)


def filter_of(request: Any, field: str = "filter") -> Any:
    return GrpcToRest.convert_filter(getattr(request, field)) if request.HasField(field) else None


def vectors_wanted(request: Any) -> Any:
    return GrpcToRest.convert_with_vectors_selector(request.with_vectors)


def payload_wanted(request: Any) -> Any:
    return GrpcToRest.convert_with_payload_interface(request.with_payload)


def applied(_: Any = None) -> Any:
    done = g.UpdateResult(operation_id=0, status=g.UpdateStatus.Completed)
    return g.PointsOperationResponse(result=done)


def retrieved(records: list[dict[str, Any]]) -> list[Any]:
    return [RestToGrpc.convert_record(m.Record(**{"payload": {}, **r})) for r in records]


def scored(answer: dict[str, Any]) -> list[Any]:
    return [RestToGrpc.convert_scored_point(m.ScoredPoint(**{"payload": {}, **p})) for p in answer["points"]]


def upsert(loopback: Loopback, r: Any) -> Any:
    points = m.PointsList(points=[GrpcToRest.convert_point_struct(p) for p in r.points])
    return applied(loopback.upsert(collection(loopback, r.collection_name), points))


def delete(loopback: Loopback, r: Any) -> Any:
    which = GrpcToRest.convert_points_selector(r.points)
    return applied(loopback.delete(collection(loopback, r.collection_name), which))


def get(loopback: Loopback, r: Any) -> Any:
    wanted = m.PointRequest(
        ids=[GrpcToRest.convert_point_id(i) for i in r.ids],
        with_payload=payload_wanted(r),
        with_vector=vectors_wanted(r),
    )
    return g.GetResponse(result=retrieved(loopback.retrieve(collection(loopback, r.collection_name), wanted)))


def scroll(loopback: Loopback, r: Any) -> Any:
    wanted = m.ScrollRequest(
        offset=GrpcToRest.convert_point_id(r.offset) if r.HasField("offset") else None,
        limit=r.limit,
        filter=filter_of(r),
        with_payload=payload_wanted(r),
        with_vector=vectors_wanted(r),
    )
    answer = loopback.scroll(collection(loopback, r.collection_name), wanted)
    offset = answer["next_page_offset"]
    more = {} if offset is None else {"next_page_offset": RestToGrpc.convert_extended_point_id(offset)}
    return g.ScrollResponse(result=retrieved(answer["points"]), **more)


def count(loopback: Loopback, r: Any) -> Any:
    wanted = m.CountRequest(filter=filter_of(r), exact=r.exact)
    return g.CountResponse(
        result=g.CountResult(**loopback.count(collection(loopback, r.collection_name), wanted))
    )


def query(loopback: Loopback, r: Any) -> Any:
    wanted = GrpcToRest.convert_query_points(r)
    return g.QueryResponse(result=scored(loopback.query(collection(loopback, r.collection_name), wanted)))


def query_batch(loopback: Loopback, r: Any) -> Any:
    batch = m.QueryRequestBatch(searches=[GrpcToRest.convert_query_points(each) for each in r.query_points])
    found = [scored(one) for one in loopback.query_batch(collection(loopback, r.collection_name), batch)]
    return g.QueryBatchResponse(result=[g.BatchResult(result=points) for points in found])


def update_vectors(loopback: Loopback, r: Any) -> Any:
    change = m.UpdateVectors(points=[GrpcToRest.convert_point_vectors(p) for p in r.points])
    return applied(loopback.update_vectors(collection(loopback, r.collection_name), change))


def add_vector(loopback: Loopback, r: Any) -> Any:
    dense = m.DenseVectorConfig(
        size=r.dense_config.size, distance=GrpcToRest.convert_distance(r.dense_config.distance)
    )
    config = m.DenseVectorNameConfig(dense=dense)
    return applied(loopback.add_vector(collection(loopback, r.collection_name), r.vector_name, config))


def create(loopback: Loopback, r: Any) -> Any:
    vectors = GrpcToRest.convert_vectors_config(r.vectors_config)
    return g.CollectionOperationResponse(
        result=loopback.create(
            r.collection_name,
            m.CreateCollection(vectors=vectors, metadata=GrpcToRest.convert_payload(r.metadata) or None),
        )
    )


def update(loopback: Loopback, r: Any) -> Any:
    change = m.UpdateCollection(
        vectors=GrpcToRest.convert_vectors_config_diff(r.vectors_config)
        if r.HasField("vectors_config")
        else None,
        metadata=GrpcToRest.convert_payload(r.metadata) or None,
    )
    return g.CollectionOperationResponse(
        result=loopback.update(collection(loopback, r.collection_name), change)
    )


def describe(loopback: Loopback, r: Any) -> Any:
    info = m.CollectionInfo(**collection(loopback, r.collection_name).info())
    return g.GetCollectionInfoResponse(result=RestToGrpc.convert_collection_info(info))


def create_index(loopback: Loopback, r: Any) -> Any:
    kinds = {g.FieldType.FieldTypeInteger: "integer", g.FieldType.FieldTypeBool: "bool"}
    kind = m.PayloadSchemaType(kinds.get(r.field_type, "keyword"))
    index = m.CreateFieldIndex(field_name=r.field_name, field_schema=kind)
    return applied(loopback.create_index(collection(loopback, r.collection_name), index))


def exists(loopback: Loopback, r: Any) -> Any:
    return g.CollectionExistsResponse(
        result=g.CollectionExists(exists=r.collection_name in {*loopback.collections, *loopback.aliases})
    )


def listed(loopback: Loopback, r: Any) -> Any:
    names = [g.CollectionDescription(name=n) for n in sorted(loopback.collections)]
    return g.ListCollectionsResponse(collections=names)


POINTS = {
    "Upsert": upsert,
    "Delete": delete,
    "Get": get,
    "Scroll": scroll,
    "Count": count,
    "Query": query,
    "QueryBatch": query_batch,
    "UpdateVectors": update_vectors,
    "CreateVectorName": add_vector,
    "CreateFieldIndex": create_index,
}
COLLECTIONS = {
    "Create": create,
    "Update": update,
    "Get": describe,
    "CollectionExists": exists,
    "List": listed,
}
ROOT = {"HealthCheck": lambda loopback, r: g.HealthCheckReply(title="qdrant", version=loopback.version)}
