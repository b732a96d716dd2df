"""The collection of a workspace: its own, or the adopted one; opened only where it is what the ledger says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np

from gmv_qdrant.errors import CollectionMismatch
from gmv_qdrant.ledger.database import Ledger
from gmv_qdrant.settings import Settings
from gmv_qdrant.vectors import Owner, open_existing, open_own
from gmv_qdrant.vectors.matrices import Matrix
from gmv_qdrant.vectors.protocol import CollectionSpec, PointId, VectorStore, parse_point_id

SAMPLE = 32
"""Images whose vectors are compared before a run that searches."""
SAME = 0.99
"""Least likeness of a stored vector now and then; other versions of a decoder stay above it."""
MAY_CHANGE = 0.25
"""Share of the sample that may have gone, or changed, in a collection that others fill."""


def open_collection(
    root: Path,
    settings: Settings,
    ledger: Ledger,
    dim: int,
    *,
    remake: bool = False,
    take_over: bool = False,
    tell: Callable[[str], None] = lambda sentence: None,
) -> VectorStore:
    """The collection with recall vectors of ``dim`` numbers; ``tell`` is told what is waited for.

    It is made when there has been none yet, and never where one was adopted, or was lost (but for ``remake``, which is
    for `check --repair`). Raises `StoreError`, and `CollectionMismatch` where it is another's or another.
    """
    meta = ledger.meta()
    if "adopted" in meta:
        store = open_existing(settings, settings.vector_name, tell)
        if store.spec.dim != dim:
            store.close()
            raise CollectionMismatch(
                f"the collection {settings.collection!r} now has vectors of {store.spec.dim} numbers, not {dim} as "
                "when it was adopted: adopt it in another workspace"
            )
        return store
    spec = CollectionSpec(
        settings.collection, dim, vector_name=settings.vector_name, quantization=settings.quantization
    )
    known = meta.get("collection_made") == "true"
    owner = Owner.at(root, meta["workspace_id"])
    made = open_own(root, settings, spec, owner, make=remake or not known, take_over=take_over, tell=tell)
    if not known:
        with ledger.write() as con:
            ledger.set_meta(con, collection_made=True)
    return made


class Sample:
    """A few training images with their recall vectors as they were when the encoder was proven.

    They are held against the store before every run that searches, so that vectors which were replaced since (by an
    alias switched to another encoder's collection, by an older snapshot) are noticed without reading an image. The
    images with the smallest hashes of their ids: which those are changes little while images come and go.
    """

    def __init__(self, ledger: Ledger, store: VectorStore, kept: Matrix, *, owned: bool) -> None:
        """kept: their vectors, by training key. owned: not by others, who may change what is theirs."""
        self._ledger, self._store, self._kept, self._owned = ledger, store, kept, owned

    def remember(self, *, anew: bool = False) -> None:
        """Keep the vectors of images that have come into the sample; ``anew``: of all of it, which was proven again."""
        points = self._points()
        keys = np.array(sorted(points), dtype=np.int64)
        lacking = keys if anew else keys[~self._kept.has(keys)]
        there = self._read({key: points[key] for key in lacking.tolist()})
        if there:
            self._kept.write(list(there), np.stack(list(there.values())))

    def verify(self) -> None:
        """Raises `CollectionMismatch` or `StoreError`, with the way out, where the store isn't what it was."""
        points = self._points()
        keys = np.array(sorted(points), dtype=np.int64)
        keys = keys[self._kept.has(keys)]
        if not len(keys):
            return
        there = self._read({key: points[key] for key in keys.tolist()})
        gone = [key for key in keys.tolist() if key not in there]
        if len(gone) > (0 if self._owned else len(keys) * MAY_CHANGE):
            self._refuse(f"{len(gone)} of {len(keys)} sampled images are not there any more")
        likeness = _likeness(self._kept.read(list(there)), np.stack(list(there.values())))
        differing = int((likeness < SAME).sum())
        if differing > (0 if self._owned else len(there) * MAY_CHANGE):
            self._refuse(
                f"{differing} of {len(there)} sampled images have other vectors now (the least cosine is "
                f"{likeness.min():.3f}), as when an alias is switched"
            )

    def _refuse(self, what: str) -> NoReturn:
        way = (
            "'gmv-qdrant check --repair' computes the vectors again"
            if self._owned
            else "'gmv-qdrant adopt' proves the encoder again, and brings the ledger to what is there"
        )
        raise CollectionMismatch(
            f"the collection {self._store.spec.name!r} isn't what the evidence was made with: {what}; {way}"
        )

    def _points(self) -> dict[int, PointId]:
        rows = self._ledger.query(
            """SELECT training_key AS key, point_id FROM training WHERE version_withdrawn IS NULL
            ORDER BY hash(point_id), point_id LIMIT $n""",
            {"n": SAMPLE},
        ).to_pylist()
        return {row["key"]: parse_point_id(row["point_id"]) for row in rows}

    def _read(self, points: dict[int, PointId]) -> dict[int, np.ndarray]:
        """Vectors by key, of the points that the store has."""
        found = {p.id: p.vector for p in self._store.retrieve(list(points.values()), with_vectors=True)}
        vectors = {key: found.get(point) for key, point in points.items()}
        return {key: vector for key, vector in vectors.items() if vector is not None}


def _likeness(kept: np.ndarray, there: np.ndarray) -> np.ndarray:
    """float64 ``(n,)``: 1 for equal vectors; the cosine for vectors of one length, less where the lengths differ."""
    a, b = kept.astype(np.float64), there.astype(np.float64)
    longer = np.maximum((a * a).sum(axis=1), (b * b).sum(axis=1))
    return np.asarray((a * b).sum(axis=1) / np.where(longer > 0, longer, 1.0))
