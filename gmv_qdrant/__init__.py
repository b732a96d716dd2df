"""Who earned the credit for a generated image? GMValuator (ICLR 2025) on Qdrant and DuckDB."""

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
