"""A server's collections: found, made, described, and how much of one is really quantized."""

from __future__ import annotations

import time
from collections.abc import Callable

from qdrant_client import models as m

from gmv_qdrant.errors import StoreError, StoreUnavailable
from gmv_qdrant.text import digest
from gmv_qdrant.vectors.ownership import Owner
from gmv_qdrant.vectors.protocol import CollectionSpec, StoreStatus
from gmv_qdrant.vectors.server.codec import dense_vectors, describe, quantization_of, vectors_config
from gmv_qdrant.vectors.server.connection import Connection, Missing

POLL = 0.5
"""Seconds between two looks at a collection that is being built."""


def exists(connection: Connection, name: str) -> bool:
    return bool(connection.call("look for the collection", "collection_exists", name))


def create_collection(connection: Connection, spec: CollectionSpec, owner: Owner) -> bool:
    """Make the collection, with its owner's id from its first moment; False where there is one of that name."""
    config = vectors_config(spec)
    try:
        connection.call(
            "create the collection",
            "create_collection",
            spec.name,
            vectors_config=config,
            metadata=owner.metadata,
        )
    except StoreError:
        # There was one, or a first try whose answer got lost has made it.
        if not exists(connection, spec.name):
            raise
        return describe_collection(connection, spec.name).config.metadata == owner.metadata
    return True


def describe_collection(connection: Connection, name: str, *, gone: bool = False) -> m.CollectionInfo:
    """Raises `StoreError` that lists those there are; ``gone``: it was there when we began."""
    try:
        info: m.CollectionInfo = connection.call("describe the collection", "get_collection", name)
    except Missing:
        raise absent(connection, name, gone=gone) from None
    return info


def absent(connection: Connection, name: str, *, gone: bool) -> StoreError:
    try:
        found = connection.call("list the collections", "get_collections")
        names = ", ".join(sorted(c.name for c in found.collections)) or "none"
        others = f"it has: {names}"
    except StoreError:
        others = "its collections can't be listed"
    if gone:
        return StoreError(
            f"the collection {name!r} has disappeared from {connection.shown} ({others}): it was deleted or "
            "renamed while it was in use."
        )
    return StoreError(f"{connection.shown} has no collection {name!r} ({others}).")


def status_of(info: m.CollectionInfo, spec: CollectionSpec, version: str) -> StoreStatus:
    """From the server's own counts; several vectors share one count of indexed ones, so it is split evenly."""
    vectors = dense_vectors(info)
    if spec.vector_name not in vectors:
        describe(info, spec.name, spec.vector_name)  # raises, and says which are there
    kind, bits = quantization_of(info, spec.vector_name)
    points = info.points_count or 0
    indexed = min(points, (info.indexed_vectors_count or 0) // max(1, len(vectors)))
    coded = indexed if kind != "none" else 0
    state = str(info.status.value)
    if state == "green":
        state = _green(points - indexed > _left_alone(info, spec), kind != "none" and not coded)
    facts = info.model_dump(mode="json", exclude={"payload_schema": True, "config": {"metadata"}})
    return StoreStatus(
        engine="server",
        version=version,
        points=points,
        quantization=kind if coded else "none",
        coded_points=coded,
        tail_points=points - coded if kind != "none" else 0,
        code_bytes=round(coded * spec.dim * bits / 8),
        vector_bytes=points * spec.dim * 4,
        state=state,
        approximate=(info.indexed_vectors_count or 0) > 0 or kind != "none",
        searched=digest(facts),
    )


def _green(unbuilt: bool, uncoded: bool) -> str:
    """What a server's ``green`` means: it says so also before it begins, and where it leaves a collection as it is."""
    return "pending" if unbuilt else "exact" if uncoded else "green"


def wait_until_built(
    look: Callable[[], StoreStatus], name: str, connection: Connection, patience: float
) -> StoreStatus:
    """Look until nothing is being built, twice in a row: a server is green for a moment before it begins.

    Raises `StoreUnavailable` after ``patience`` seconds, `StoreError` when building fails.
    """
    deadline, shown = time.monotonic() + patience, connection.shown
    finished, said = 0, 0.0
    while True:
        status = look()
        finished = finished + 1 if status.state in ("green", "exact") else 0
        if finished == 2:
            return status
        if status.state == "red":
            raise StoreError(f"{shown} fails to build {name!r}: its log says why.")
        progress = f"{status.coded_points:,} of {status.points:,} points coded"
        if time.monotonic() > deadline:
            raise StoreUnavailable(
                f"{name!r} at {shown} is still {status.state} after {patience:.0f} seconds ({progress}): it goes on "
                "by itself; look again with `gmv-qdrant status`."
            )
        if not finished and time.monotonic() - said > SAY_EVERY:
            said = time.monotonic()
            connection.config.tell(f"{shown} is building {name!r} ({status.state}): {progress}")
        time.sleep(POLL)


SAY_EVERY = 15.0
"""Seconds between two words about what is being built."""


def refuse_where_nothing_is_built(info: m.CollectionInfo, name: str, shown: str) -> None:
    """Raises `StoreError` where the server's optimizer is off: codes would be waited for without an end."""
    optimizer = info.config.optimizer_config
    ways = {
        "indexing_threshold": (optimizer.indexing_threshold, "10000"),
        "max_optimization_threads": (optimizer.max_optimization_threads, '"auto"'),
    }
    for setting, (value, way) in ways.items():
        if value == 0:
            raise StoreError(
                f"nothing would ever be quantized: the optimizer of {name!r} at {shown} is off ({setting} = 0); turn "
                f'it on with PATCH /collections/{name} {{"optimizers_config": {{"{setting}": {way}}}}}, or leave the '
                "quantization out."
            )


def _left_alone(info: m.CollectionInfo, spec: CollectionSpec) -> int:
    """Points in segments too small for the server to index or quantize."""
    kilobytes = info.config.optimizer_config.indexing_threshold
    if kilobytes == 0:
        return info.points_count or 0
    a_segment = (10_000 if kilobytes is None else kilobytes) * 1024 // (spec.dim * 4)
    return a_segment * max(1, info.segments_count)
