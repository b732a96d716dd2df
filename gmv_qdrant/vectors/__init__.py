"""Where the recall vectors of the training images live."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gmv_qdrant.vectors.ownership import Owner
from gmv_qdrant.vectors.protocol import CollectionSpec, VectorStore

if TYPE_CHECKING:
    from gmv_qdrant.settings import Settings
    from gmv_qdrant.vectors.server.store import ServerConfig, ServerStore

__all__ = ["EDGE_FOLDER", "Owner", "open_existing", "open_own", "server_config"]

EDGE_FOLDER = "qdrant"
"""The embedded store's folder in a workspace."""


def open_own(
    root: Path,
    settings: Settings,
    spec: CollectionSpec,
    owner: Owner,
    *,
    make: bool,
    take_over: bool = False,
    tell: Callable[[str], None] = lambda sentence: None,
) -> VectorStore:
    """The collection of the workspace ``owner``, where ``settings`` say; embedded without ``qdrant_url``.

    make: it may be absent, and is made. take_over: it is this copy's from now on. tell: is told what is waited for.
    Raises `StoreError` where it is absent, `CollectionMismatch` when it is somebody else's or has other vectors,
    `StoreUnavailable` when it can't be had now.
    """
    if settings.qdrant_url is None:
        from gmv_qdrant.vectors.embedded.store import EdgeStore

        return EdgeStore.open(root / EDGE_FOLDER, spec, owner, make=make)
    from gmv_qdrant.vectors.server.store import ServerStore

    return ServerStore.open_own(server_config(settings, tell), spec, owner, make=make, take_over=take_over)


def open_existing(
    settings: Settings, vector_name: str | None, tell: Callable[[str], None] = lambda sentence: None
) -> ServerStore:
    """The server's collection as it is: nothing is made or changed. ``vector_name`` None: its only vector.

    Raises `StoreError` when it isn't there, `CollectionMismatch` when it has no such vector, `StoreUnavailable`.
    """
    from gmv_qdrant.vectors.server.store import ServerStore

    return ServerStore.open(server_config(settings, tell), settings.collection, vector_name, settings.filter)


def server_config(settings: Settings, tell: Callable[[str], None] = lambda sentence: None) -> ServerConfig:
    """How the server that ``settings`` name is talked to; ``tell`` is told what is waited for."""
    from gmv_qdrant.vectors.server.store import ServerConfig

    return ServerConfig(
        url=settings.qdrant_url or "",
        api_key=settings.api_key,
        timeout=settings.qdrant_timeout,
        prefer_grpc=settings.qdrant_grpc,
        grpc_port=settings.qdrant_grpc_port,
        patience=settings.qdrant_patience,
        tell=tell,
    )
