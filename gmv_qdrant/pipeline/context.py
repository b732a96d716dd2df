"""What a run works with: settings, ledger, store, networks and feature files, each opened when first needed."""

from __future__ import annotations

import dataclasses
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from gmv_qdrant.encoders import RecallDistance, Runtime, load_distance, load_encoder, resolve_device
from gmv_qdrant.encoders.base import Encoder, Storage
from gmv_qdrant.errors import FingerprintMismatch
from gmv_qdrant.features import FeatureSpace
from gmv_qdrant.ledger.ledger import Ledger
from gmv_qdrant.pipeline.streams import Progress
from gmv_qdrant.quality import load_quality
from gmv_qdrant.settings import Settings
from gmv_qdrant.store import open_store
from gmv_qdrant.store.base import CollectionSpec, VectorStore

if TYPE_CHECKING:
    from gmv_qdrant.quality.base import QualityMetric

VIEWS = {"none": ("",), "flip": ("", "@flip")}
"""Suffix of the feature spaces of each view of a generated image; the first is the image as it is."""


@dataclass
class Context:
    """Opened lazily, closed once. One context belongs to one run of one process."""

    root: Path
    settings: Settings
    ledger: Ledger
    progress: Progress

    @cached_property
    def runtime(self) -> Runtime:
        return Runtime(
            device=self.settings.device,
            precision=self.settings.precision,
            offline=self.settings.offline,
            cache_dir=self.settings.cache_dir,
        )

    @cached_property
    def encoder(self) -> Encoder:
        """Recall."""
        return load_encoder(
            self.settings.encoder, weights=self.settings.encoder_weights, runtime=self.runtime
        )

    @cached_property
    def distance(self) -> Encoder:
        """Re-rank. Without re-ranking it is the recall encoder again, with the Euclidean metric."""
        if self.settings.distance == "none":
            return RecallDistance(self.encoder)
        return load_distance(self.settings.distance, runtime=self.runtime)

    @cached_property
    def quality(self) -> QualityMetric | None:
        return load_quality(self.settings.quality, runtime=self.runtime)

    @cached_property
    def pool(self) -> ThreadPoolExecutor:
        """Decoding threads: Pillow lets go of the interpreter lock while it decodes and resizes."""
        return ThreadPoolExecutor(self.settings.workers or min(8, os.cpu_count() or 1))

    @cached_property
    def store(self) -> VectorStore:
        """The recall vectors; made when it isn't there."""
        spec = CollectionSpec(
            name=self.settings.collection,
            dim=self.encoder.dim,
            vector_name=self.settings.vector_name,
            quantization=self.settings.quantization,
        )
        return open_store(self.root, self.settings, spec)

    @property
    def owns_collection(self) -> bool:
        """False for an adopted collection: nothing of it is ever removed."""
        return "adopted" not in self.ledger.meta()

    @property
    def batch_size(self) -> int:
        if self.settings.batch_size:
            return self.settings.batch_size
        return 256 if resolve_device(self.runtime.device).partition(":")[0] == "cuda" else 32

    @property
    def views(self) -> tuple[str, ...]:
        return VIEWS[self.settings.views]

    @property
    def generated_spaces(self) -> list[str]:
        """Feature spaces of a generated image: recall and re-rank vectors of each view."""
        return [f"generated/{kind}{view}" for kind in ("recall", "rerank") for view in self.views]

    def space(self, name: str) -> FeatureSpace:
        """A feature space by its ledger name, such as ``training/rerank``."""
        if name not in self._spaces:
            recall = name.partition("@")[0].endswith("/recall")
            encoder = self.encoder if recall else self.distance
            storage = Storage() if recall else encoder.storage
            self._spaces[name] = FeatureSpace(self.root / "features" / name, encoder.dim, storage)
        return self._spaces[name]

    @cached_property
    def _spaces(self) -> dict[str, FeatureSpace]:
        return {}

    def fingerprint(self) -> dict[str, object]:
        """What the evidence depends on, weights included."""
        quality = self.quality
        return {
            "encoder": dataclasses.asdict(self.encoder.identity),
            "distance": dataclasses.asdict(self.distance.identity),
            "quality": quality.identity if quality else "none",
            "candidates": self.settings.candidates,
            "views": self.settings.views,
            "collection": self.settings.collection,
        }

    def claim(self) -> None:
        """Load the networks and hold the ledger to them: the first run writes the fingerprint, later ones must match.

        Raises `FingerprintMismatch`, and `ModelError` when weights are missing: before any work is done.
        """
        mine = json.loads(json.dumps(self.fingerprint()))
        kept = self.ledger.meta().get("fingerprint")
        if kept is None:
            with self.ledger.write() as con:
                self.ledger.set_meta(con, fingerprint=mine, recall_dim=self.encoder.dim)
            return
        theirs = json.loads(kept)
        for name, value in mine.items():
            if theirs.get(name) != value:
                raise FingerprintMismatch(
                    f"this ledger's evidence was made with {name} {theirs.get(name)}, not {value}: "
                    "evidence of two kinds can't be added up; start another workspace with 'gmv-qdrant init'"
                )

    def close(self) -> None:
        if "store" in self.__dict__:
            self.store.close()
        if "pool" in self.__dict__:
            self.pool.shutdown(wait=True, cancel_futures=True)
