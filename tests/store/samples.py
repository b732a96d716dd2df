"""What the store tests fill stores with."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import numpy as np

from gmv_qdrant.vectors.protocol import CollectionSpec, VectorStore

MakeStore = Callable[[CollectionSpec], VectorStore]


def clustered(n: int, dim: int, seed: int = 0) -> np.ndarray:
    """float32 ``(n, dim)``: clusters, as embeddings of images have them."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(2, n // 50), dim))
    rows = centres[rng.integers(0, len(centres), n)] + 0.5 * rng.standard_normal((n, dim))
    return rows.astype(np.float32)


def ids_of(n: int, seed: int = 0) -> list[uuid.UUID]:
    rng = np.random.default_rng(seed)
    return [uuid.UUID(bytes=rng.bytes(16)) for _ in range(n)]
