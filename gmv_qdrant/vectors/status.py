"""What `status` says of a workspace's vectors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gmv_qdrant.errors import StoreError
from gmv_qdrant.settings import Settings
from gmv_qdrant.vectors.protocol import CollectionSpec


def store_status(root: Path, settings: Settings, meta: Mapping[str, str]) -> dict[str, Any]:
    """The state of the store. An embedded one is read off the disk, so that it answers while a run writes."""
    from gmv_qdrant.vectors import EDGE_FOLDER
    from gmv_qdrant.vectors.embedded.segments import read_status

    if "recall_shape" not in meta:
        return {"state": "nothing was ingested yet"}
    if settings.qdrant_url is not None:
        return _server_status(settings, meta)
    spec = CollectionSpec(
        settings.collection,
        json.loads(meta["recall_shape"])["dim"],
        vector_name=settings.vector_name,
        quantization=settings.quantization,
    )
    return dataclasses.asdict(read_status(root / EDGE_FOLDER, spec))


def _server_status(settings: Settings, meta: Mapping[str, str]) -> dict[str, Any]:
    """As the server says it; where it doesn't answer, the sentence that says why."""
    from gmv_qdrant.vectors import open_existing

    try:
        with open_existing(settings, settings.vector_name) as store:
            return {
                **dataclasses.asdict(store.status()),
                "points_without_vector": store.lacking(),
                "protocol": store.protocol,
                "adopted": "adopted" in meta,
                "encoder_proven": json.loads(meta.get("adopted", '{"cosine": 1}'))["cosine"] is not None,
            }
    except StoreError as error:
        return {"engine": "server", "state": "unavailable", "error": str(error)}
