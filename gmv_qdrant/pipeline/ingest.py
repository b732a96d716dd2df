"""Ingest: a stream of records becomes points of the collection, rows of the feature file, rows of the ledger.

Order of writes, for each chunk: feature shard (synced), points (flushed), ledger (one transaction). The ledger
comes last, so what it names is durable elsewhere. A crash in between leaves an unnamed shard, or points
that the ledger doesn't know; the same images ingested again replace them, and `recovery.recover` removes them.
One chunk is written while the next goes through the networks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from gmv_qdrant.images.records import Record, Unusable
from gmv_qdrant.ledger.database import Connection, insert
from gmv_qdrant.ledger.runs import Run
from gmv_qdrant.pipeline.collection import Sample
from gmv_qdrant.pipeline.context import Context
from gmv_qdrant.pipeline.context import insert_features as insert_features
from gmv_qdrant.pipeline.loading import Embedded, Embedder, Loaded, load, usable
from gmv_qdrant.pipeline.streams import BackgroundWriter, chunked
from gmv_qdrant.vectors.protocol import RUN

MAX_STORED_BYTES = 262_144
"""A re-rank vector larger than this is computed on demand instead of kept (LPIPS at 224 px: 658 KB)."""


def ingest(
    context: Context, run: Run, records: Iterable[Record | Unusable], *, readmit: bool = False
) -> None:
    """Take in what is new; skip what is known; add sources to contents that are known.

    readmit: take in images again that were withdrawn.
    """
    intake, book = Intake(context, run, readmit=readmit), LedgerWriter(context, run)
    with BackgroundWriter() as behind:
        for chunk in chunked(records, partial(weight, context)):
            if work := intake.work(usable(run, chunk)):
                behind.hand_over(partial(_finish, intake, book, work))
            context.progress.advance(len(chunk))
    quantize(context, run)


def _finish(intake: Intake, book: LedgerWriter, work: EmbeddedChunk) -> None:
    book.write(intake.keep(work))


def quantize(context: Context, run: Run) -> None:
    """What the new points need to be searched by their codes, where they are enough to warrant it.

    Without new points nothing is opened, and no collection is made.
    """
    if not run.counts["new"]:
        return
    with run.timed("optimize"):
        context.progress.phase("quantize", None)
        context.store.optimize()
    Sample(context.root, context.ledger, context.store).remember()


def stores_rerank(context: Context) -> bool:
    """Whether re-rank vectors are kept in a feature file: not when they are too large."""
    shape = context.rerank_shape
    return shape.dim * np.dtype(shape.storage.dtype).itemsize <= MAX_STORED_BYTES


def weight(context: Context, record: Record | Unusable) -> int:
    """Bytes that are held while a record's chunk is worked on: its image file, and its vectors of each view."""
    if isinstance(record, Unusable):
        return 0
    file = len(record.data) if record.data is not None else record.size or 0
    rerank = context.rerank_shape.dim if stores_rerank(context) else 0
    return file + 4 * len(context.views) * (context.recall_shape.dim + rerank)


@dataclass(slots=True)
class EmbeddedChunk:
    """A chunk that went through the networks: new images, and the content hash and record of every source."""

    embedded: list[Embedded]
    sources: list[tuple[str, Record]]


@dataclass(slots=True)
class StoredChunk:
    """A chunk whose vectors and points are safe: the rows that the ledger is to have of it."""

    images: pa.Table
    """`IMAGES`: what may be new."""
    sources: pa.Table
    """`SOURCES`: of these images, and of images that the ledger has."""

    @classmethod
    def together(cls, parts: Sequence[StoredChunk]) -> StoredChunk:
        return cls(
            pa.concat_tables([part.images for part in parts]),
            pa.concat_tables([part.sources for part in parts]),
        )


IMAGES = pa.schema(
    [
        ("content_hash", pa.string()),
        ("point_id", pa.string()),
        ("label", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("attributes", pa.string()),
        ("shard", pa.int64()),  # of the re-rank vector; null where none is kept in a feature file
        ("row", pa.int64()),
    ]
)
SOURCES = pa.schema(
    [
        ("content_hash", pa.string()),
        ("uri", pa.string()),
        ("owner", pa.string()),
        ("label", pa.string()),
        ("licence", pa.string()),
        ("attributes", pa.string()),
        ("file_size", pa.int64()),
        ("file_time", pa.int64()),
    ]
)


class Intake:
    """From records to safe vectors and points. It only reads the ledger, and doing a chunk twice does no harm."""

    def __init__(self, context: Context, run: Run, *, readmit: bool) -> None:
        self.context = context
        self.run = run
        self.readmit = readmit
        self.in_flight: set[str] = set()
        """Content hashes of the chunk before, which the ledger may not have yet."""
        self.embedder = Embedder(context, rerank=stores_rerank(context))

    def work(self, records: Sequence[Record]) -> EmbeddedChunk | None:
        """Read, hash and embed what isn't known yet; None when nothing is left to keep."""
        unread = self._unseen_files(records)
        loaded = list(load(self.context, self.run, unread))
        known = self._known({item.hash for item in loaded})
        new: dict[str, Loaded] = {}
        sources: list[tuple[str, Record]] = []
        for item in loaded:
            withdrawn = known.get(item.hash)
            if withdrawn is not None and not self.readmit:
                self.run.quarantine(
                    item.record.uri,
                    f"this image was withdrawn on {withdrawn}; 'ingest --readmit' takes it in again",
                )
                continue
            if item.hash not in known or withdrawn is not None:
                new.setdefault(item.hash, item)
            sources.append((item.hash, item.record))
        embedded = list(self.embedder.embed(self.run, list(new.values())))
        failed = set(new) - {item.loaded.hash for item in embedded}
        for hash_, record in sources:
            if hash_ in failed and record is not new[hash_].record:
                self.run.quarantine(
                    record.uri, f"the same bytes as {new[hash_].record.uri}, which could not be used"
                )
        sources = [(hash_, record) for hash_, record in sources if hash_ not in failed]
        if not embedded and not sources:
            return None
        self.in_flight = {image.loaded.hash for image in embedded}
        return EmbeddedChunk(embedded, sources)

    def _unseen_files(self, records: Sequence[Record]) -> list[Record]:
        """All but the files whose path, size, time and metadata the ledger has already."""
        rows = pa.table(
            {
                "row": pa.array(range(len(records)), pa.int32()),
                "uri": pa.array([record.uri for record in records], pa.string()),
                "size": pa.array([record.size for record in records], pa.int64()),
                "time": pa.array([record.mtime_ns for record in records], pa.int64()),
                "facts": pa.array([_facts(record) for record in records], pa.string()),
            }
        )
        seen = self.context.ledger.query(
            """
            SELECT r.row, r.uri IN (SELECT uri FROM quarantine) AS resolved FROM records r
            JOIN sources s ON s.uri = r.uri AND s.file_size = r.size AND s.file_time = r.time
            JOIN training t USING (training_key)
            WHERE t.version_withdrawn IS NULL
            GROUP BY ALL
            HAVING any_value(r.facts) = to_json([
                to_json(list(s.owner ORDER BY s.owner) FILTER (s.owner IS NOT NULL))::VARCHAR,
                any_value(s.label), any_value(s.licence), any_value(s.attributes::VARCHAR)])::VARCHAR
            """,
            records=rows,
        )
        skip = set(seen["row"].to_pylist())
        self.run.resolve([records[row["row"]].uri for row in seen.to_pylist() if row["resolved"]])
        self.run.counts["unchanged"] += len(skip)
        return [record for row, record in enumerate(records) if row not in skip]

    def _known(self, hashes: set[str]) -> dict[str, str | None]:
        """Content hashes of training images -> the date it was withdrawn if it was."""
        rows = self.context.ledger.query(
            """
            SELECT content_hash, strftime(withdrawn_at, '%Y-%m-%d') AS withdrawn
            FROM training JOIN hashes USING (content_hash)
            """,
            hashes=pa.table({"content_hash": pa.array(sorted(hashes), pa.string())}),
        )
        known = {row["content_hash"]: row["withdrawn"] for row in rows.to_pylist()}
        return known | dict.fromkeys(self.in_flight & hashes)

    def keep(self, work: EmbeddedChunk) -> StoredChunk:
        """Feature shard first, then points: safe when this returns."""
        context, embedded = self.context, work.embedded
        locations: list[list[int | None]] = [[None, None]] * len(embedded)
        points = [item.loaded.point_id for item in embedded]
        with self.run.timed("write"):
            rerank = [item.rerank for item in embedded if item.rerank is not None]
            if rerank:
                locations = context.space("training/rerank").append(np.concatenate(rerank)).tolist()
            if embedded:
                context.store.upsert(
                    points,
                    np.concatenate([item.recall for item in embedded]),
                    [
                        {"uri": item.loaded.record.uri, "sha256": item.loaded.hash, RUN: self.run.run_id}
                        for item in embedded
                    ],
                )
                context.store.flush()
        images = [
            {
                "content_hash": item.loaded.hash,
                "point_id": str(item.loaded.point_id),
                "label": item.loaded.record.label,
                "width": item.width,
                "height": item.height,
                "attributes": json.dumps(item.loaded.record.attributes),
                "shard": shard,
                "row": row,
            }
            for item, (shard, row) in zip(embedded, locations, strict=True)
        ]
        sources = [
            {
                "content_hash": hash_,
                "uri": record.uri,
                "owner": owner,
                "label": record.label,
                "licence": record.licence,
                "attributes": json.dumps(record.attributes),
                "file_size": record.size,
                "file_time": record.mtime_ns,
            }
            for hash_, record in work.sources
            for owner in record.owners or (None,)
        ]
        return StoredChunk(pa.Table.from_pylist(images, IMAGES), pa.Table.from_pylist(sources, SOURCES))


class LedgerWriter:
    """Writes what was taken in to the ledger: one transaction for a chunk, and keys for new images."""

    def __init__(self, context: Context, run: Run) -> None:
        self.context = context
        self.run = run
        with context.ledger.read() as con:
            self.next_key: int = con.execute(
                "SELECT coalesce(max(training_key), 0) + 1 FROM training"
            ).fetchall()[0][0]

    def write(self, taken: StoredChunk) -> None:
        """An image that has come in meanwhile, from another chunk, only gets its sources."""
        known = self.context.ledger.query(
            """SELECT content_hash, training_key, version_withdrawn IS NULL AS there
            FROM training JOIN (SELECT DISTINCT content_hash FROM sources) USING (content_hash)""",
            sources=taken.sources.select(["content_hash"]),
        ).to_pylist()
        keys = {row["content_hash"]: row["training_key"] for row in known}
        there = {row["content_hash"] for row in known if row["there"]}
        first: dict[str, dict[str, Any]] = {}
        for image in taken.images.to_pylist():
            first.setdefault(image["content_hash"], image)
        images = [image for hash_, image in first.items() if hash_ not in there]
        for image in images:
            if image["content_hash"] not in keys:
                keys[image["content_hash"]] = self.next_key
                self.next_key += 1
        sources = taken.sources.to_pylist()
        with self.run.timed("write"), self.context.ledger.write() as con:
            if images:
                self._write_training(con, images, [keys[image["content_hash"]] for image in images])
            added = _write_sources(con, sources, keys)
            self.run.write_quarantine(con, resolved=[source["uri"] for source in sources])
        self.run.counts["new"] += len(images)
        self.run.counts["sources"] += added

    def _write_training(self, con: Connection, images: list[dict[str, Any]], keys: list[int]) -> None:
        if self.run.counts["new"] == 0:  # the first new image of a run begins an training_version
            self.run.training_version += 1
            self.context.ledger.set_meta(con, training_version=self.run.training_version)
        for table in ("training", "features"):
            where = "training_key IN" if table == "training" else "space = 'training/rerank' AND key IN"
            con.execute(f"DELETE FROM {table} WHERE {where} (SELECT unnest(?::INTEGER[]))", [keys])
        rows = pa.Table.from_pylist(images, IMAGES)
        insert(
            con,
            "training",
            {
                "training_key": keys,
                **{name: rows[name] for name in IMAGES.names if name not in ("shard", "row")},
                "version_added": [self.run.training_version] * len(keys),
            },
        )
        located = [
            (key, image) for key, image in zip(keys, images, strict=True) if image["shard"] is not None
        ]
        if located:
            locations = np.array([(image["shard"], image["row"]) for _, image in located], dtype=np.int64)
            insert_features(con, "training/rerank", [key for key, _ in located], locations)


def _write_sources(con: Connection, sources: list[dict[str, Any]], keys: dict[str, int]) -> int:
    """Add or refresh sources; returns how many are new."""
    if not sources:
        return 0
    unique = {(keys[source["content_hash"]], source["uri"], source["owner"]): source for source in sources}
    rows = pa.Table.from_pylist(list(unique.values()), SOURCES).drop_columns(["content_hash"])
    columns = {
        "training_key": pa.array([key for key, _, _ in unique], pa.int32()),
        **{name: rows[name] for name in rows.column_names},
    }
    con.register("incoming", pa.table(columns))
    known = con.execute(
        "DELETE FROM sources USING incoming i WHERE sources.training_key = i.training_key AND sources.uri = i.uri"
    ).fetchall()[0][0]
    con.unregister("incoming")
    insert(con, "sources", columns)
    return len(unique) - int(known)


def _facts(record: Record) -> str:
    """A record's metadata in one comparable line."""
    attributes = json.dumps(record.attributes)
    return json.dumps(
        [
            json.dumps(sorted(record.owners), separators=(",", ":"), ensure_ascii=False)
            if record.owners
            else None,
            record.label,
            record.licence,
            attributes,
        ],
        separators=(",", ":"),
        ensure_ascii=False,
    )
