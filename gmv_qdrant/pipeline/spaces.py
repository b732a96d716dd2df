"""Where a workspace's vectors are: the store of recall vectors, and three matrices; and what they look like.

Shapes stand in the ledger from the first run on, so a workspace is opened without loading a network.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from gmv_qdrant.ledger.database import Ledger
from gmv_qdrant.method import Metric
from gmv_qdrant.models.base import Encoder, Storage
from gmv_qdrant.models.verified import Models
from gmv_qdrant.pipeline.collection import Sample, open_collection
from gmv_qdrant.pipeline.embedding import VIEWS
from gmv_qdrant.pipeline.streams import Progress
from gmv_qdrant.settings import Settings
from gmv_qdrant.vectors import open_existing
from gmv_qdrant.vectors.matrices import Matrix
from gmv_qdrant.vectors.protocol import VectorStore

FOLDER = "vectors"
"""Of the matrices, in a workspace."""
MAX_STORED_BYTES = 262_144
"""A re-rank vector larger than this is computed when it is needed instead of kept (LPIPS at 224 px: 658 KB)."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What vectors of a kind look like: ``dim`` numbers, compared by ``metric``, kept as ``storage`` says."""

    dim: int
    metric: Metric
    storage: Storage

    @classmethod
    def of(cls, encoder: Encoder) -> Shape:
        return cls(encoder.dim, encoder.metric, encoder.storage)

    @classmethod
    def parse(cls, text: str) -> Shape:
        kept = json.loads(text)
        return cls(kept["dim"], kept["metric"], Storage(**kept["storage"]))

    @property
    def bytes(self) -> int:
        return self.dim * np.dtype(self.storage.dtype).itemsize


@dataclass
class Spaces:
    """The vectors of one workspace.

    training: re-rank vectors of training images; None where they are too large to be kept. generated_recall,
    generated_rerank: a row holds the views of a generated image. recall_sample: of a few training images.
    open_stored_rerank: the re-rank vectors that an adopted collection holds. owned: False for a collection that was
    adopted, of which nothing is ever removed. length: of generated images' recall vectors.
    """

    open_store: Callable[[], VectorStore]
    recall: Shape
    rerank: Shape
    training: Matrix | None
    generated_recall: Matrix
    generated_rerank: Matrix
    recall_sample: Matrix
    views: int
    open_stored_rerank: Callable[[], VectorStore] | None = None
    owned: bool = True
    length: float = 1.0

    @cached_property
    def store(self) -> VectorStore:
        """The recall vectors of training images; opened at the first use."""
        return self.open_store()

    @cached_property
    def stored_rerank(self) -> VectorStore | None:
        """Where re-rank vectors are stored already: a second vector of an adopted collection."""
        return self.open_stored_rerank() if self.open_stored_rerank else None

    def sample(self, ledger: Ledger) -> Sample:
        return Sample(ledger, self.store, self.recall_sample, owned=self.owned)

    def close(self) -> None:
        for name in ("store", "stored_rerank"):
            if (opened := self.__dict__.get(name)) is not None:
                opened.close()

    @property
    def weight(self) -> int:
        """Bytes of an image's vectors while they are worked on."""
        kept = self.rerank.dim if self.training else 0
        return 4 * self.views * (self.recall.dim + kept)

    def generated(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Recall and re-rank vectors of generated images, each float32 ``(n, views, dim)``."""
        return self.read_recall(keys), self.read_rerank(keys)

    def read_recall(self, keys: np.ndarray) -> np.ndarray:
        return self.generated_recall.read(keys).reshape(len(keys), self.views, self.recall.dim)

    def read_rerank(self, keys: np.ndarray) -> np.ndarray:
        return self.generated_rerank.read(keys).reshape(len(keys), self.views, self.rerank.dim)

    def write_generated(self, keys: list[int], recall: np.ndarray, rerank: np.ndarray) -> None:
        """Keep float32 ``(n, views, dim)`` vectors of generated images; safe when this returns."""
        self.generated_recall.write(keys, recall.reshape(len(keys), -1))
        self.generated_rerank.write(keys, rerank.reshape(len(keys), -1))

    def zero_generated(self, keys: list[int]) -> None:
        self.generated_recall.zero(keys)
        self.generated_rerank.zero(keys)


def verified_models(
    settings: Settings, ledger: Ledger, *, quality: bool = False, progress: Progress | None = None
) -> Models:
    """The networks, held against what the ledger's evidence was made with; the first use writes that down.

    quality: images are scored. progress: told of downloads. Raises `FingerprintMismatch`, and `ModelError` when weights
    are missing.
    """
    kept = ledger.meta().get("fingerprint")
    models = Models.verified(
        settings,
        json.loads(kept) if kept else None,
        quality=quality or kept is None,
        progress=progress.download if progress else None,
    )
    if kept is None:
        with ledger.write() as con:
            ledger.set_meta(
                con,
                fingerprint=models.fingerprint,
                recall_shape=dataclasses.asdict(Shape.of(models.recall)),
                rerank_shape=dataclasses.asdict(Shape.of(models.rerank)),
            )
    return models


@dataclass(frozen=True, slots=True)
class Matrices:
    """The matrix files of a workspace: see `Spaces`."""

    training: Matrix | None
    generated_recall: Matrix
    generated_rerank: Matrix
    recall_sample: Matrix


def matrices(root: Path, settings: Settings, meta: Mapping[str, str], workspace_id: str) -> Matrices:
    """Of the workspace in the folder ``root``, whose vectors have the shapes that ``meta`` says."""
    recall, rerank = Shape.parse(meta["recall_shape"]), Shape.parse(meta["rerank_shape"])
    views = len(VIEWS[settings.views])

    def matrix(name: str, dim: int, storage: Storage) -> Matrix:
        return Matrix(root / FOLDER / name, dim, storage, identity=workspace_id)

    return Matrices(
        matrix("training-rerank", rerank.dim, rerank.storage) if rerank.bytes <= MAX_STORED_BYTES else None,
        matrix("generated-recall", views * recall.dim, recall.storage),
        matrix("generated-rerank", views * rerank.dim, rerank.storage),
        matrix("recall-sample", recall.dim, recall.storage),
    )


@contextmanager
def open_spaces(
    root: Path,
    settings: Settings,
    ledger: Ledger,
    *,
    remake: bool = False,
    take_over: bool = False,
    tell: Callable[[str], None] = lambda sentence: None,
) -> Iterator[Spaces]:
    """The vectors of the workspace in this folder, while the block lasts; a `verified_models` has been before.

    remake, take_over, tell: as `open_collection` says.
    """
    meta = ledger.meta()
    recall, rerank = Shape.parse(meta["recall_shape"]), Shape.parse(meta["rerank_shape"])
    adopted = json.loads(meta["adopted"]) if "adopted" in meta else None
    kept = matrices(root, settings, meta, meta["workspace_id"])
    spaces = Spaces(
        partial(
            open_collection, root, settings, ledger, recall.dim, remake=remake, take_over=take_over, tell=tell
        ),
        recall,
        rerank,
        kept.training,
        kept.generated_recall,
        kept.generated_rerank,
        kept.recall_sample,
        len(VIEWS[settings.views]),
        partial(open_existing, settings, settings.distance_vector, tell)
        if settings.distance_vector is not None
        else None,
        owned=adopted is None,
        length=float(adopted.get("length", 1.0)) if adopted else 1.0,
    )
    try:
        yield spaces
    finally:
        spaces.close()
