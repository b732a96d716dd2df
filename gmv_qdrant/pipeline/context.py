"""What a run works with: settings, ledger, store, networks and feature files, each opened when first needed."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from gmv_qdrant.errors import FingerprintMismatch
from gmv_qdrant.features import FeatureSpace
from gmv_qdrant.ledger.database import Connection, Ledger, insert
from gmv_qdrant.ledger.queries import allowed_places
from gmv_qdrant.method import Metric
from gmv_qdrant.models.base import Encoder, Storage
from gmv_qdrant.models.devices import Runtime, resolve_device
from gmv_qdrant.models.registry import load_distance, load_encoder, load_quality
from gmv_qdrant.models.wrappers import RecallDistance
from gmv_qdrant.pipeline.batches import Forward
from gmv_qdrant.pipeline.collection import open_collection
from gmv_qdrant.pipeline.streams import Progress
from gmv_qdrant.settings import Settings
from gmv_qdrant.vectors.protocol import VectorStore

if TYPE_CHECKING:
    from gmv_qdrant.models.base import QualityMetric

SAME_ENCODER = 0.999
"""Least cosine of a probe image's vector, now and when the ledger was made; devices and bf16 stay above it."""

VIEWS = {"none": ("",), "flip": ("", "@flip")}
"""Suffix of the feature spaces of each view of a generated image; the first is the image as it is."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What vectors of a kind look like: ``dim`` numbers, compared by ``metric``, kept as ``storage`` says."""

    dim: int
    metric: Metric
    storage: Storage

    @classmethod
    def parse(cls, text: str) -> Shape:
        kept = json.loads(text)
        return cls(kept["dim"], kept["metric"], Storage(**kept["storage"]))


@dataclass
class Context:
    """Opened lazily, closed once. One context belongs to one run of one process."""

    root: Path
    settings: Settings
    ledger: Ledger
    progress: Progress
    remake_store: bool = False
    """Make the collection anew when it was lost: for `check --repair`, which fills it again."""
    take_over: bool = False
    """The collection of the workspace that this one is a copy of is this one's from now on."""

    @cached_property
    def allowed(self) -> tuple[str, ...]:
        """Where images may be read from."""
        return allowed_places(self.ledger)

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
    def recall_shape(self) -> Shape:
        """Of recall vectors; the ledger remembers it, so that no network is loaded to read vectors."""
        kept = self.ledger.meta().get("recall_shape")
        return Shape.parse(kept) if kept else Shape(self.encoder.dim, self.encoder.metric, Storage())

    @cached_property
    def rerank_shape(self) -> Shape:
        """Of re-rank vectors."""
        kept = self.ledger.meta().get("rerank_shape")
        return (
            Shape.parse(kept)
            if kept
            else Shape(self.distance.dim, self.distance.metric, self.distance.storage)
        )

    @cached_property
    def quality(self) -> QualityMetric | None:
        return load_quality(self.settings.quality, runtime=self.runtime)

    @cached_property
    def pool(self) -> ThreadPoolExecutor:
        """Decoding threads: Pillow lets go of the interpreter lock while it decodes and resizes."""
        return ThreadPoolExecutor(self.settings.workers or min(8, os.cpu_count() or 1))

    @cached_property
    def store(self) -> VectorStore:
        """The recall vectors: see `open_collection`."""
        return open_collection(
            self.root,
            self.settings,
            self.ledger,
            self.recall_shape.dim,
            remake=self.remake_store,
            take_over=self.take_over,
        )

    @cached_property
    def owns_collection(self) -> bool:
        """False for an adopted collection: nothing of it is ever removed."""
        return "adopted" not in self.ledger.meta()

    @cached_property
    def query_length(self) -> float:
        """Length of generated images' recall vectors: 1, but in adopted Euclidean collections that of theirs."""
        adopted = self.ledger.meta().get("adopted")
        return float(json.loads(adopted).get("length", 1.0)) if adopted else 1.0

    @cached_property
    def device(self) -> str:
        return resolve_device(self.runtime.device)

    @property
    def batch_size(self) -> int:
        """Images that are prepared together; networks take them in batches of up to this size."""
        return self.settings.batch_size or (64 if self.device == "cpu" else 256)

    @cached_property
    def embed_recall(self) -> Forward:
        return self._forward(self.encoder)

    @cached_property
    def embed_rerank(self) -> Forward:
        return self._forward(self.distance)

    def _forward(self, encoder: Encoder) -> Forward:
        # on a CPU the thread's own time is judged: other processes may be using the cores, too
        clock = time.thread_time if self.device == "cpu" else time.perf_counter
        return Forward(encoder, self.batch_size, clock=clock, fixed=bool(self.settings.batch_size))

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
            shape = self.recall_shape if recall else self.rerank_shape
            self._spaces[name] = FeatureSpace(self.root / "features" / name, shape.dim, shape.storage)
        return self._spaces[name]

    @cached_property
    def _spaces(self) -> dict[str, FeatureSpace]:
        return {}

    def fingerprint(self, *, quality: bool = True) -> dict[str, object]:
        """What the evidence depends on, weights included; without ``quality``, that network isn't loaded for it."""
        facts = {
            "encoder": dataclasses.asdict(self.encoder.identity),
            "distance": dataclasses.asdict(self.distance.identity),
            "candidates": self.settings.candidates,
            "views": self.settings.views,
            "collection": self.settings.collection,
        }
        if quality:
            facts["quality"] = self.quality.identity if self.quality else "none"
        plain: dict[str, object] = json.loads(json.dumps(facts))
        return plain

    def write_fingerprint(self) -> None:
        """Load the networks and hold the ledger to them: the first run writes the fingerprint, later ones must match.

        Raises `FingerprintMismatch`, and `ModelError` when weights are missing: before any work is done.
        """
        if "fingerprint" in self.ledger.meta():
            self.verify_fingerprint()
            return
        facts = {
            "fingerprint": self.fingerprint(),
            "recall_shape": dataclasses.asdict(self.recall_shape),
            "rerank_shape": dataclasses.asdict(self.rerank_shape),
            "probe": [round(float(x), 6) for x in self._probe_vector()],
        }
        with self.ledger.write() as con:
            self.ledger.set_meta(con, **facts)

    def verify_fingerprint(self, *, quality: bool = True) -> None:
        """Load the networks and compare them with those that the ledger was made with.

        Raises `FingerprintMismatch`, and `ModelError` when weights are missing.
        """
        meta = self.ledger.meta()
        theirs = json.loads(meta["fingerprint"])
        for name, value in self.fingerprint(quality=quality).items():
            if theirs.get(name) != value:
                raise FingerprintMismatch(
                    f"this ledger's evidence was made with {name} {theirs.get(name)}, not {value}: "
                    "evidence of two kinds can't be added up; start another workspace with 'gmv-qdrant init'"
                )
        likeness = float(np.dot(self._probe_vector(), np.array(json.loads(meta["probe"]))))
        if likeness < SAME_ENCODER:
            raise FingerprintMismatch(
                f"the encoder {self.settings.encoder} no longer gives the vectors that this ledger was made "
                f"with (cosine {likeness:.4f} on a probe image): a library has changed what it computes, so go back to "
                "the versions in 'gmv-qdrant sql \"SELECT versions FROM runs\"', or start another workspace"
            )

    def keep_features(self, space: str, keys: Sequence[int], locations: np.ndarray) -> None:
        """Name rows of a feature file: int64 ``(n, 2)`` locations of the images with these keys."""
        with self.ledger.write() as con:
            insert_features(con, space, keys, locations)

    def _probe_vector(self) -> np.ndarray:
        """float32 ``(dim,)``: what the recall encoder makes of a fixed image, so that a change shows."""
        ramp = np.arange(96, dtype=np.uint16)
        pixels = np.stack(
            [ramp[:, None] * 2 + ramp * 0, ramp[:, None] * 0 + ramp * 2, ramp[:, None] ^ ramp], axis=2
        )
        tensor = self.encoder.prepare(Image.fromarray(pixels.astype(np.uint8)))
        return np.asarray(self.encoder.encode(tensor[None])[0])

    def close(self) -> None:
        if "pool" in self.__dict__:
            self.pool.shutdown(wait=True, cancel_futures=True)
        if "store" in self.__dict__:
            self.store.close()


def insert_features(con: Connection, space: str, keys: Sequence[int], locations: np.ndarray) -> None:
    """Name rows of a feature file: int64 ``(n, 2)`` locations of the images with these keys."""
    insert(
        con,
        "features",
        {"space": [space] * len(keys), "key": list(keys), "shard": locations[:, 0], "row": locations[:, 1]},
    )
