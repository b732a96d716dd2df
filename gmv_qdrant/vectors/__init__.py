"""Where the recall vectors of the training images live."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gmv_qdrant.vectors.protocol import CollectionSpec, Condition, VectorStore

if TYPE_CHECKING:
    from gmv_qdrant.settings import Settings
    from gmv_qdrant.vectors.server.store import ServerConfig, ServerStore

__all__ = ["EDGE_FOLDER", "open_existing", "open_store"]

EDGE_FOLDER = "qdrant"
"""The embedded store's folder in a workspace."""


def open_store(root: Path, settings: Settings, spec: CollectionSpec) -> VectorStore:
    """The store that ``settings`` name, with the collection ``spec``; an absent collection is made.

    Without ``qdrant_url`` it is embedded, in ``root / "qdrant"``. Raises `StoreError`,
    `CollectionMismatch` when the collection has other vectors, `StoreUnavailable` when it can't be had now.
    """
    if settings.qdrant_url is None:
        from gmv_qdrant.vectors.embedded.store import EdgeStore

        return EdgeStore.open(root / EDGE_FOLDER, spec)
    from gmv_qdrant.vectors.server.store import ServerStore

    return ServerStore.open_or_create(_config(settings), spec, _tenant(settings))


def open_existing(settings: Settings, vector_name: str | None) -> ServerStore:
    """The server's collection as it is: nothing is made or changed. ``vector_name`` None: its only vector.

    Raises `StoreError` when it isn't there, `CollectionMismatch` when it has no such vector, `StoreUnavailable`.
    """
    from gmv_qdrant.vectors.server.store import ServerStore

    return ServerStore.open(_config(settings), settings.collection, vector_name, _tenant(settings))


def _config(settings: Settings) -> ServerConfig:
    from gmv_qdrant.vectors.server.store import ServerConfig

    return ServerConfig(
        url=settings.qdrant_url or "",
        api_key=settings.api_key,
        timeout=settings.qdrant_timeout,
        prefer_grpc=settings.qdrant_grpc,
    )


def _tenant(settings: Settings) -> tuple[Condition, ...]:
    return tuple(Condition(name, (value,)) for name, value in settings.tenant.items())
