"""A server's collections: found, made, described, and how much of one is really quantized."""

from __future__ import annotations

import time
from collections.abc import Callable

from qdrant_client import models as m

from gmv_qdrant.errors import StoreError, StoreUnavailable
from gmv_qdrant.vectors.checks import digest
from gmv_qdrant.vectors.ownership import Owner
from gmv_qdrant.vectors.protocol import CollectionSpec, StoreStatus
from gmv_qdrant.vectors.server.codec import dense_vectors, describe, quantization_of, vector_params
from gmv_qdrant.vectors.server.connection import PREFLIGHT, Connection, Missing

POLL = 0.5
"""Seconds between two looks at a collection that is being built."""


def exists(connection: Connection, name: str) -> bool:
    patience = min(PREFLIGHT, connection.config.patience)
    return bool(connection.call("look for the collection", "collection_exists", name, patience=patience))


def create_collection(connection: Connection, spec: CollectionSpec, owner: Owner) -> bool:
    """Make the collection, with its owner's id from its first moment; False where there is one of that name."""
    params = vector_params(spec)
    vectors = params if spec.vector_name else params[""]
    try:
        connection.call(
            "create the collection",
            "create_collection",
            spec.name,
            vectors_config=vectors,
            metadata=owner.metadata,
        )
    except StoreError:
        # There was one, or a first try whose answer got lost has made it.
        if not exists(connection, spec.name):
            raise
        return describe_collection(connection, spec.name).config.metadata == owner.metadata
    return True


def describe_collection(
    connection: Connection, name: str, *, patience: float | None = None, gone: bool = False
) -> m.CollectionInfo:
    """Raises `StoreError` that lists those there are; ``gone``: it was there when we began."""
    try:
        info: m.CollectionInfo = connection.call(
            "describe the collection", "get_collection", name, patience=patience
        )
    except Missing:
        raise absent(connection, name, gone=gone) from None
    return info


def absent(connection: Connection, name: str, *, gone: bool) -> StoreError:
    try:
        found = connection.call("list the collections", "get_collections", patience=PREFLIGHT)
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
    if state == "green" and points - indexed > _left_alone(info, spec):
        state = "pending"
    elif state == "green" and kind != "none" and not coded:
        state = "exact"
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
        approximate=indexed > 0 or kind != "none",
        searched=digest(
            info.model_dump(mode="json", exclude={"payload_schema": True, "config": {"metadata"}})
        ),
    )


def wait_until_built(look: Callable[[], StoreStatus], name: str, shown: str, patience: float) -> StoreStatus:
    """Look until nothing is being built, twice in a row: a server is green for a moment before it begins.

    Raises `StoreUnavailable` after ``patience`` seconds, `StoreError` when building fails.
    """
    deadline = time.monotonic() + patience
    finished = 0
    while True:
        status = look()
        finished = finished + 1 if status.state in ("green", "exact") else 0
        if finished == 2:
            return status
        if status.state == "red":
            raise StoreError(f"{shown} fails to build {name!r}: its log says why.")
        if time.monotonic() > deadline:
            raise StoreUnavailable(
                f"{name!r} at {shown} is still {status.state} after {patience:.0f} seconds "
                f"({status.coded_points} of {status.points} points coded): it goes on by itself; "
                "look again with `gmv-qdrant status`."
            )
        time.sleep(POLL)


def _left_alone(info: m.CollectionInfo, spec: CollectionSpec) -> int:
    """Points in segments too small for the server to index or quantize."""
    kilobytes = info.config.optimizer_config.indexing_threshold
    a_segment = (10_000 if kilobytes is None else kilobytes) * 1024 // (spec.dim * 4)
    return a_segment * max(1, info.segments_count)
