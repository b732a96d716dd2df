"""Near-copies among the candidates of generated images: pairs of training images that are nearly the same.

Near-copies that compete for the same money stand among the candidates of one generated image, so these are compared,
by the re-rank vectors that the workspace keeps. Vectors are rounded to whole numbers first, whose products and sums are
exact in float64: the same pairs, at the same distances, on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gmv_qdrant.ledger.database import Readable

NEAR = 0.1
"""Images are near-copies up to this share of the distance of two that have nothing to do with each other."""
BITS = 17
"""Of a rounded number; with 2^18 of them in a vector, all sums stay below 2^53."""
SKETCH = 64
"""Numbers of a sketch of a long vector, which says which pairs are worth a look."""
ROWS, TOGETHER = 256, 1000
SCHEMA = pa.schema([("image", pa.int32()), ("other", pa.int32()), ("distance", pa.float64())])
Read = Callable[[np.ndarray], np.ndarray]


def near_copies(root: Path, source: Readable, batches: str) -> pa.Table | None:
    """Pairs of training keys, the smaller first, with distances as shares of an unrelated pair's: see `SCHEMA`.

    batches: SQL for the batches in question, or NULL. None where the workspace keeps no re-rank vectors of its training
    images, so that nobody can tell. Raises `StoreError` for a vector that isn't what was written.
    """
    from gmv_qdrant.pipeline.spaces import FOLDER, MAX_STORED_BYTES, Shape
    from gmv_qdrant.vectors.matrices import Matrix

    meta = source.meta()
    if "rerank_shape" not in meta:
        return None
    shape = Shape.parse(meta["rerank_shape"])
    if shape.bytes > MAX_STORED_BYTES:
        return None
    matrix = Matrix(
        root / FOLDER / "training-rerank", shape.dim, shape.storage, identity=meta["workspace_id"]
    )
    lists = source.query(
        f"""SELECT generated_key, training_key FROM matches JOIN generated USING (generated_key)
        JOIN training USING (training_key)
        WHERE NOT control AND version_withdrawn IS NULL AND ({batches} IS NULL OR list_contains({batches}, batch))
        ORDER BY generated_key"""
    )
    known = source.query("SELECT training_key FROM training ORDER BY md5(point_id)")[
        "training_key"
    ].to_numpy()
    generated, keys = (lists[name].to_numpy() for name in lists.column_names)
    known = known[np.isin(known, keys)]
    known = known[matrix.has(known)]
    there = np.isin(keys, known)
    return find(matrix.read, shape.metric, known, generated[there], keys[there])


def find(read: Read, metric: str, known: np.ndarray, generated: np.ndarray, keys: np.ndarray) -> pa.Table:
    """Near-copies among the keys that stand beside one another in one list, of which ``generated`` says which.

    read: keys -> vectors, float32 ``(n, dim)``. metric: as `method.distances`. known: all distinct keys, shuffled in an
    order of their own, so that neighbours in it are pairs of unrelated images.
    """
    if len(known) < 2:
        return SCHEMA.empty_table()
    rounded = _Rounded(read, metric, known)
    typical = np.sort(rounded.squares(known, np.roll(known, -1)))[(len(known) - 1) // 2]
    limit = typical * (NEAR**2 if metric == "euclid" else NEAR)
    ones, others = np.divmod(_worth_a_look(rounded, known, generated, keys, limit), 1 << 32)
    squares = rounded.squares(ones, others)
    near = squares <= limit
    ratios = squares[near] / (typical or 1)
    distances = np.sqrt(ratios) if metric == "euclid" else ratios
    return pa.table([ones[near].astype(np.int32), others[near].astype(np.int32), distances], schema=SCHEMA)


def _worth_a_look(
    rounded: _Rounded, known: np.ndarray, generated: np.ndarray, keys: np.ndarray, limit: float
) -> np.ndarray:
    """Pairs of one list whose sketches are near, ascending: int64, the smaller key times 2^32 plus the larger."""
    order = np.argsort(known)
    places = order[np.searchsorted(known, keys, sorter=order)]
    sketches, scale = rounded.sketches()
    pairs = [np.empty(0, np.int64)]
    for mine in np.split(places, np.flatnonzero(np.diff(generated)) + 1):
        sketch = sketches[mine]
        lengths = (sketch**2).sum(axis=1)
        near = lengths[:, None] + lengths - 2 * sketch @ sketch.T <= 2 * scale * limit
        found = known[mine[np.stack(np.nonzero(np.triu(near, 1)))]].astype(np.int64)
        pairs.append((found.min(axis=0) << 32) + found.max(axis=0))
        if len(pairs) > TOGETHER:
            pairs = [np.unique(np.concatenate(pairs))]
    return np.unique(np.concatenate(pairs))


class _Rounded:
    """Vectors as whole numbers in float64; those that are compared by their angle have one length."""

    def __init__(self, read: Read, metric: str, known: np.ndarray) -> None:
        self._read, self._metric, self._known = read, metric, known
        self._unit = 1.0
        if metric != "cosine":
            largest = max(float(np.abs(read(some)).max(initial=0)) for some in _parts(known))
            self._unit = 2.0 ** -np.frexp(largest)[1]
        dim = read(known[:1]).shape[1]
        self._signs = None
        if dim > 2 * SKETCH:
            bits = np.frombuffer(hashlib.shake_256(b"near-copies").digest(dim * SKETCH // 8), np.uint8)
            self._signs = np.unpackbits(bits).reshape(dim, SKETCH) * 2.0 - 1

    def of(self, keys: np.ndarray) -> np.ndarray:
        vectors = self._read(keys).astype(np.float64)
        if self._metric == "cosine":
            largest = np.abs(vectors).max(axis=1, initial=0)
            vectors = np.rint(vectors * (2.0 ** (BITS - np.frexp(largest)[1]))[:, None])
            lengths = np.sqrt((vectors**2).sum(axis=1))
            vectors = vectors / np.maximum(lengths, 1)[:, None]
        return np.asarray(np.rint(vectors * self._unit * 2**BITS))

    def sketches(self) -> tuple[np.ndarray, float]:
        """float64 ``(n, SKETCH)``, or the whole vectors where they are short; and how much larger their squared
        distances are, on average."""
        parts = (self.of(some) for some in _parts(self._known))
        if self._signs is None:
            return np.concatenate(list(parts)), 1.0
        found = np.concatenate([part @ self._signs for part in parts])
        shrunk = 2.0 ** (20 - np.frexp(np.abs(found).max(initial=0))[1])
        return np.rint(found * shrunk), SKETCH * shrunk**2

    def squares(self, ones: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Squared distances of pairs."""
        parts = [
            ((self.of(one) - self.of(other)) ** 2).sum(axis=1)
            for one, other in zip(_parts(ones), _parts(others), strict=True)
        ]
        return np.concatenate([np.empty(0), *parts])


def _parts(keys: np.ndarray) -> Iterator[Any]:
    for start in range(0, len(keys), ROWS):
        yield keys[start : start + ROWS]
