"""Looking an image up: its evidence, by the same functions that `value` uses, and nothing kept of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

from gmv_qdrant.errors import ImageError, LedgerLocked, StoreUnavailable
from gmv_qdrant.folder import alone
from gmv_qdrant.images.records import Record, Unusable, content_hash, read_file
from gmv_qdrant.ledger.candidates import Matches
from gmv_qdrant.ledger.database import Ledger
from gmv_qdrant.ledger.explain import Explanation, explain, explain_found
from gmv_qdrant.ledger.names import is_known
from gmv_qdrant.ledger.publish import Published
from gmv_qdrant.ledger.queries import ValueFunction
from gmv_qdrant.ledger.runs import Run
from gmv_qdrant.ledger.selection import Selection
from gmv_qdrant.models.verified import Models
from gmv_qdrant.pipeline.assembly import Assembly
from gmv_qdrant.pipeline.embedding import Embedded, Loaded
from gmv_qdrant.pipeline.spaces import open_spaces, verified_models
from gmv_qdrant.pipeline.streams import NullProgress
from gmv_qdrant.pipeline.value import find_evidence, require_training_images
from gmv_qdrant.settings import Settings


@dataclass(frozen=True, slots=True)
class Found:
    """The evidence of an image that isn't in the ledger: ``matches`` are its K candidates, nearest first."""

    matches: Matches
    quality: float | None


class Lookup:
    """Networks are loaded and verified at the first image, and stay; the store is opened for each image.

    So a run can start at any time between two images. Threads take turns.
    """

    def __init__(self, root: Path, settings: Settings, published: Published) -> None:
        self._root = root
        self._settings = settings
        self._ledger = cast(Ledger, published)  # it is only read
        self._one_at_a_time = threading.Lock()

    @cached_property
    def _models(self) -> Models:
        return verified_models(self._settings, self._ledger, quality=True)

    def find(self, data: bytes, name: str) -> Found:
        """The evidence of an image file; nothing is written.

        Raises `ImageError` for what is no image or can't be embedded, `ModelError` for missing weights,
        `StoreUnavailable` while a run works on the embedded store, `StoreError` when there are no training images.
        """
        with self._one_at_a_time:
            require_training_images(self._ledger)
            models = self._models
            with (
                self._alone_with_store(),
                open_spaces(self._root, self._settings, self._ledger) as spaces,
            ):
                parts = Assembly(
                    self._root, self._settings, self._ledger, spaces, Run("look up", 0), NullProgress()
                )
                parts.models = models
                embedded = next(parts.generated_embedder()([Loaded.of(Record(uri=name), data)]))
                if isinstance(embedded, Unusable):
                    raise ImageError(embedded.reason, kind=embedded.kind)
                assert isinstance(embedded, Embedded)
                (matches,) = find_evidence([embedded], parts.matcher(keep=False))
                return Found(matches, embedded.quality)

    def explain(
        self, file: Path, function: ValueFunction, kind: str | None, selection: Selection | None
    ) -> Explanation:
        """Explain an image file by its contents: as the ledger has it where it is known, or by looking it up.

        kind: of the known image that is meant. Raises what `find` does.
        """
        data = read_file(str(file))
        known = content_hash(data)
        if is_known(self._ledger, known, kind):
            training = kind == "training"
            return explain(self._ledger, known, function, training=training, selection=selection)
        found = self.find(data, str(file))
        return explain_found(self._ledger, str(file), found.matches, found.quality, function, selection)

    @contextmanager
    def _alone_with_store(self) -> Iterator[None]:
        """An embedded store lets only one process in, so a run has to wait for this, or this is refused."""
        if self._settings.qdrant_url is not None:
            yield
            return
        with ExitStack() as stack:
            try:
                stack.enter_context(alone(self._root))
            except LedgerLocked:
                raise StoreUnavailable(
                    "a run is working on this workspace, and the embedded store lets only one in: try again when it "
                    "has finished (everything else goes on meanwhile)"
                ) from None
            yield
