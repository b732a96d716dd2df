"""Who earned the credit for a generated image? GMValuator (ICLR 2025) on Qdrant and DuckDB."""

from typing import TYPE_CHECKING, Any

from gmv_qdrant.errors import (
    CollectionMismatch,
    FingerprintMismatch,
    GmvError,
    ImageError,
    LedgerError,
    LedgerLocked,
    ModelError,
    SettingsError,
    SourceError,
    StoreError,
    StoreUnavailable,
)

if TYPE_CHECKING:
    from gmv_qdrant.ledger.queries import ValueFunction
    from gmv_qdrant.workspace import Workspace

__all__ = [
    "CollectionMismatch",
    "FingerprintMismatch",
    "GmvError",
    "ImageError",
    "LedgerError",
    "LedgerLocked",
    "ModelError",
    "SettingsError",
    "SourceError",
    "StoreError",
    "StoreUnavailable",
    "ValueFunction",
    "Workspace",
]

_HOMES = {"ValueFunction": "gmv_qdrant.ledger.queries", "Workspace": "gmv_qdrant.workspace"}
"""Imported when they are asked for: ``gmv-qdrant --help`` needs none of it."""


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'gmv_qdrant' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
