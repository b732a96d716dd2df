"""How the steps of a run are put together: what each of them needs is made here, once, and handed to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gmv_qdrant.images.records import Unusable
from gmv_qdrant.ledger.database import Ledger
from gmv_qdrant.ledger.queries import allowed_places
from gmv_qdrant.ledger.runs import Run
from gmv_qdrant.models.devices import resolve_device
from gmv_qdrant.models.verified import Models
from gmv_qdrant.pipeline.embedding import Content, Embedder, KnownContents, embed_records
from gmv_qdrant.pipeline.ingest import Engine, Items
from gmv_qdrant.pipeline.matching import FEW, GROUP, Matcher, spare_count
from gmv_qdrant.pipeline.ray_engine import RayEngine
from gmv_qdrant.pipeline.searching import Search
from gmv_qdrant.pipeline.spaces import Spaces, verified_models
from gmv_qdrant.pipeline.streams import Progress
from gmv_qdrant.pipeline.training_vectors import KeptVectors, Make, maker, may_lack_rows
from gmv_qdrant.pipeline.update import update
from gmv_qdrant.settings import Settings


@dataclass
class Assembly:
    """Makes the steps of one run. No network is loaded before a step that needs one is made, or needs one."""

    root: Path
    settings: Settings
    ledger: Ledger
    spaces: Spaces
    run: Run
    progress: Progress

    @cached_property
    def models(self) -> Models:
        """Verified against the ledger, quality included."""
        return verified_models(self.settings, self.ledger, quality=True, progress=self.progress)

    @cached_property
    def allowed(self) -> Sequence[str]:
        """Where images may be read from."""
        return allowed_places(self.ledger)

    @property
    def spare(self) -> int:
        """How many candidates beyond K are kept."""
        wanted = spare_count(self.settings.candidates, self.spaces.views, self.spaces.training is not None)
        return max(0, min(wanted, self._most() - self.settings.candidates)) if wanted else 0

    def _most(self) -> int:
        """Points that a search may ask for; the store is opened to know it."""
        return self.spaces.store.limits.points

    def training_embedder(self) -> Embedder:
        return self._embedder(**self._training_options)

    def generated_embedder(self, *, quality: bool = True) -> Embedder:
        return self._embedder(**{**self._generated_options, "quality": quality})

    def training_engine(self) -> Engine:
        """Reads and embeds training images, as the settings say."""
        return self._engine(self._training_options)

    def generated_engine(self) -> Engine:
        """Reads, embeds and scores generated images, as the settings say."""
        return self._engine(self._generated_options)

    @property
    def _training_options(self) -> dict[str, Any]:
        return {"rerank": self.spaces.training is not None}

    @property
    def _generated_options(self) -> dict[str, Any]:
        return {"views": self.settings.views, "quality": True, "length": self.spaces.length}

    def _embedder(self, **options: Any) -> Embedder:
        size, threads = self.settings.batch_size, self.settings.workers
        return Embedder(self.models, batch_size=size, threads=threads, timed=self.run.timed, **options)

    def _engine(self, options: dict[str, Any]) -> Engine:
        if self.settings.engine == "ray":
            return RayEngine(self.settings, self.models.fingerprint, options)
        embedder = self._embedder(**options)
        embedder.under_way = self.progress.under_way

        def embed(chunks: Iterable[Items], known: KnownContents) -> Iterator[list[Content | Unusable]]:
            for chunk in chunks:
                yield embed_records(chunk, embedder, known, self.settings.workers)

        return embed

    def maker(self) -> Make:
        """Makes re-rank vectors of training images that have no row."""
        return maker(
            self.ledger,
            self.spaces,
            self.settings,
            lambda: self.models,
            self.allowed,
            self.run,
            self.progress,
        )

    def training_vectors(self, *, keep: bool = True) -> KeptVectors:
        """keep: write down what is computed."""
        make = self.maker() if may_lack_rows(self.spaces) else None
        return KeptVectors(
            self.ledger, self.spaces, make, keep=keep, device=resolve_device(self.settings.device)
        )

    def matcher(self, *, keep: bool = True) -> Matcher:
        """keep: write down what is computed and measured on the way."""
        spaces = self.spaces
        return Matcher(
            self.search(keep=keep),
            self.training_vectors(keep=keep),
            spaces.rerank.metric,
            candidates=self.settings.candidates,
            spare=lambda: self.spare,
            most=self._most,
            device=resolve_device(self.settings.device),
            group=GROUP if spaces.training is not None else FEW,
            timed=self.run.timed,
        )

    def update(self) -> None:
        """Bring all evidence to today's training set."""
        update(self.run, self.ledger, self.spaces, self.matcher(), self.progress)

    def search(self, *, keep: bool = True) -> Search:
        return Search(self.spaces, self.ledger, self.settings, self.run, keep=keep)
