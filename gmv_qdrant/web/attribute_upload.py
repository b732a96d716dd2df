"""Drop an image, see its contributors: one image through the networks, and nothing kept of it."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import cast

import duckdb
import pyarrow as pa
from filelock import FileLock, Timeout

from gmv_qdrant.errors import ImageError, StoreError, StoreUnavailable
from gmv_qdrant.images.decode import decode, thumbnail
from gmv_qdrant.images.records import Record, content_hash
from gmv_qdrant.ledger.database import Ledger, insert
from gmv_qdrant.ledger.publish import Published
from gmv_qdrant.ledger.queries import ValueFunction
from gmv_qdrant.ledger.runs import Run
from gmv_qdrant.pipeline.context import Context
from gmv_qdrant.pipeline.loading import Embedder, Loaded
from gmv_qdrant.pipeline.matching import Matcher, Matches, evidence_columns, require_training_images
from gmv_qdrant.pipeline.streams import NullProgress
from gmv_qdrant.report.queries import Row
from gmv_qdrant.report.thumbnails import LARGE, Picture
from gmv_qdrant.settings import Settings


@dataclass(frozen=True, slots=True)
class Found:
    """An image that isn't in the ledger, and its contributors: rows as `queries.contributors` gives them."""

    name: str
    picture: Picture
    quality: float | None
    effective: float | None
    contributors: list[Row]


class Lookup:
    """The networks are loaded at the first image and stay; the store is opened for each image and closed again.

    So a run can start at any time between two images.
    """

    def __init__(self, root: Path, settings: Settings, published: Published) -> None:
        self.context = Context(root, settings, cast(Ledger, published), NullProgress())  # it only reads
        self._one_at_a_time = threading.Lock()
        self._claimed = False

    def find(self, data: bytes, name: str, function: ValueFunction, most: int) -> Found:
        """Contributors of an image file.

        Raises `ImageError` for what is no image, `ModelError` for missing weights, `StoreUnavailable` while a run
        works on the embedded store, and `StoreError` when there are no training images.
        """
        picture = Picture(thumbnail(decode(data), LARGE))
        with self._one_at_a_time:
            require_training_images(self.context)
            if not self._claimed:
                self.context.write_fingerprint()  # only compares: the first ingest wrote the fingerprint
                self._claimed = True
            run = Run("look up", self.context.ledger.training_version)
            loaded = Loaded(Record(uri=name), data, content_hash(data))
            embedder = Embedder(self.context, views=self.context.views, quality=True)
            embedded = next(iter(list(embedder.embed(run, [loaded]))), None)
            if embedded is None or embedded.rerank is None:
                raise ImageError("the networks can make nothing of this image: it has no direction")
            with _StoreForNow(self.context):
                matches = Matcher(self.context, run).match(embedded.recall[None], embedded.rerank[None])[0]
        rows, effective = _valued(matches, embedded.quality, function)
        return Found(name, picture, embedded.quality, effective, rows[:most])


class _StoreForNow:
    """The store, opened and closed again, while no run works in this workspace."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.lock = FileLock(context.root / ".writing.lock")

    def __enter__(self) -> None:
        if self.context.settings.qdrant_url is not None:
            return
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            raise StoreUnavailable(
                "a run is working on this workspace, and the embedded store lets only one in: try again when it has "
                "finished (the other pages go on meanwhile)"
            ) from None
        except OSError as error:
            raise StoreError(
                f"this workspace can't be written to, so its store can't be opened: {error.strerror}"
            ) from error

    def __exit__(self, *_: object) -> None:
        try:
            store = self.context.__dict__.pop("store", None)
            if store is not None:
                store.close()
        finally:
            self.lock.release()


def _valued(
    matches: Matches, quality: float | None, function: ValueFunction
) -> tuple[list[Row], float | None]:
    """Eq. 6 by the very macros of the ledger, in a ledger of one image that is never written."""
    here = files("gmv_qdrant.ledger")
    with duckdb.connect(":memory:") as con:
        con.execute(here.joinpath("schema.sql").read_text())
        con.execute(here.joinpath("credits.sql").read_text())
        batch = function.batch or "looked up"
        insert(
            con,
            "generated",
            {
                "generated_key": [0],
                "point_id": [""],
                "content_hash": [""],
                "uri": [""],
                "batch": [batch],
                "quality": pa.array([quality], pa.float64()),
                "version_valued": [0],
                "attributes": [json.dumps({})],
            },
        )
        insert(con, "matches", evidence_columns([0], [matches]))
        arguments = function.sql()
        rows = con.sql(f"FROM contributions({arguments}) ORDER BY rank").to_arrow_table().to_pylist()
        effective = con.execute(f"SELECT effective FROM effective_contributors({arguments})").fetchall()
    return rows, effective[0][0] if effective else None
