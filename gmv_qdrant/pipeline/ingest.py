"""Ingest: a stream of records becomes points of the collection, rows of the feature file, rows of the ledger.

Order of writes, for each chunk: feature shard (synced), points (flushed), ledger (one transaction). The ledger
comes last, so what it names is durable elsewhere. A crash in between leaves an unnamed shard, or points
that the ledger doesn't know; the same images ingested again replace them, and `recovery.recover` removes them.
One chunk is written while the next goes through the networks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import pyarrow as pa

from gmv_qdrant.images.records import Record, Unusable
from gmv_qdrant.ledger.ledger import Connection, insert
from gmv_qdrant.ledger.runs import Run
from gmv_qdrant.pipeline.context import Context
from gmv_qdrant.pipeline.engine_rerank import EngineRerank
from gmv_qdrant.pipeline.loading import Embedded, Embedder, Loaded, load, usable
from gmv_qdrant.pipeline.streams import Behind, chunked

MAX_STORED_BYTES = 262_144
"""A re-rank vector larger than this is computed on demand instead of kept (LPIPS at 224 px: 658 KB)."""


def ingest(
    context: Context, run: Run, records: Iterable[Record | Unusable], *, readmit: bool = False
) -> None:
    """Take in what is new; skip what is known; add sources to contents that are known.

    readmit: take in images again that were withdrawn.
    """
    with Behind() as behind:
        ingestion = _Ingestion(context, run, readmit, behind)
        for chunk in chunked(records, partial(weight, context)):
            ingestion.take(usable(run, chunk))
            context.progress.advance(len(chunk))
    with run.timed("optimize"):
        context.progress.phase("quantize", None)
        context.store.optimize()


def stores_rerank(context: Context) -> bool:
    """Whether re-rank vectors are kept in a feature file: not when they are too large, or the engine has them."""
    shape = context.rerank_shape
    return (
        not context.reranks_in_engine
        and shape.dim * np.dtype(shape.storage.dtype).itemsize <= MAX_STORED_BYTES
    )


def weight(context: Context, record: Record | Unusable) -> int:
    """Bytes that are held while a record's chunk is worked on: its image file, and its vectors of each view."""
    if isinstance(record, Unusable):
        return 0
    file = len(record.data) if record.data is not None else record.size or 0
    rerank = context.rerank_shape.dim if stores_rerank(context) or context.reranks_in_engine else 0
    return file + 4 * len(context.views) * (context.recall_shape.dim + rerank)


class _Ingestion:
    def __init__(self, context: Context, run: Run, readmit: bool, behind: Behind) -> None:
        self.context = context
        self.run = run
        self.readmit = readmit
        self.behind = behind
        self.in_flight: dict[str, int] = {}
        """Content hash -> training key, of the chunk that is being written."""
        self.embedder = Embedder(context, rerank=stores_rerank(context) or context.reranks_in_engine)
        self.engine = EngineRerank(context) if context.reranks_in_engine else None
        with context.ledger.read() as con:
            self.next_key: int = con.execute(
                "SELECT coalesce(max(training_key), 0) + 1 FROM training"
            ).fetchall()[0][0]

    def take(self, records: Sequence[Record]) -> None:
        """One chunk: all of it durable when ``behind`` has done what it is given."""
        unread = self._unseen_files(records)
        loaded = list(load(self.context, self.run, unread))
        known = self._known({item.hash for item in loaded})
        new: dict[str, Loaded] = {}
        sources: list[tuple[str, Record]] = []
        for item in loaded:
            key, withdrawn = known.get(item.hash, (None, None))
            if withdrawn is not None and not self.readmit:
                self.run.quarantine(
                    item.record.uri,
                    f"this image was withdrawn on {withdrawn}; 'ingest --readmit' takes it in again",
                )
                continue
            if key is None or withdrawn is not None:
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
            return
        keys = {hash_: key for hash_, (key, _) in known.items()}
        for image in embedded:
            if image.loaded.hash not in keys:
                keys[image.loaded.hash] = self.next_key
                self.next_key += 1
        self.behind.hand_over(partial(self._commit, embedded, sources, keys))
        self.in_flight = {image.loaded.hash: keys[image.loaded.hash] for image in embedded}

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
            SELECT r.row, r.uri IN (SELECT uri FROM quarantine) AS healed FROM records r
            JOIN sources s ON s.uri = r.uri AND s.file_size = r.size AND s.file_time = r.time
            JOIN training t USING (training_key)
            WHERE t.epoch_withdrawn IS NULL
              AND r.facts = to_json([s.owner, s.label, s.licence, s.attributes::VARCHAR])::VARCHAR
            """,
            records=rows,
        )
        skip = set(seen["row"].to_pylist())
        self.run.heal([records[row["row"]].uri for row in seen.to_pylist() if row["healed"]])
        self.run.counts["unchanged"] += len(skip)
        return [record for row, record in enumerate(records) if row not in skip]

    def _known(self, hashes: set[str]) -> dict[str, tuple[int, str | None]]:
        """Content hash -> training key, and the date it was withdrawn if it was."""
        rows = self.context.ledger.query(
            """
            SELECT content_hash, training_key, strftime(withdrawn_at, '%Y-%m-%d') AS withdrawn
            FROM training JOIN hashes USING (content_hash)
            """,
            hashes=pa.table({"content_hash": pa.array(sorted(hashes), pa.string())}),
        )
        known = {row["content_hash"]: (row["training_key"], row["withdrawn"]) for row in rows.to_pylist()}
        return known | {hash_: (key, None) for hash_, key in self.in_flight.items() if hash_ in hashes}

    def _commit(
        self, embedded: list[Embedded], sources: list[tuple[str, Record]], keys: dict[str, int]
    ) -> None:
        context, run = self.context, self.run
        locations = None
        with run.timed("write"):
            rerank = [item.rerank for item in embedded if item.rerank is not None]
            if rerank and not self.engine:
                locations = context.space("training/rerank").append(np.concatenate(rerank))
            if embedded:
                context.store.upsert(
                    [item.loaded.point_id for item in embedded],
                    np.concatenate([item.recall for item in embedded]),
                    [{"uri": item.loaded.record.uri, "sha256": item.loaded.hash} for item in embedded],
                )
                if self.engine:
                    self.engine.keep([item.loaded.point_id for item in embedded], np.concatenate(rerank))
                context.store.flush()
            with context.ledger.write() as con:
                if embedded:
                    self._write_training(con, embedded, keys, locations)
                added = _write_sources(con, sources, keys)
                run.write_quarantine(con, healed=[record.uri for _, record in sources])
        run.counts["new"] += len(embedded)
        run.counts["sources"] += added

    def _write_training(
        self, con: Connection, embedded: list[Embedded], keys: dict[str, int], locations: np.ndarray | None
    ) -> None:
        if self.run.counts["new"] == 0:  # the first new image of a run begins an epoch
            self.run.epoch += 1
            self.context.ledger.set_meta(con, epoch=self.run.epoch)
        mine = [keys[item.loaded.hash] for item in embedded]
        for table in ("training", "features"):
            where = "training_key IN" if table == "training" else "space = 'training/rerank' AND key IN"
            con.execute(f"DELETE FROM {table} WHERE {where} (SELECT unnest(?::INTEGER[]))", [mine])
        insert(
            con,
            "training",
            {
                "training_key": mine,
                "point_id": [str(item.loaded.point_id) for item in embedded],
                "content_hash": [item.loaded.hash for item in embedded],
                "label": [item.loaded.record.label for item in embedded],
                "width": [item.width for item in embedded],
                "height": [item.height for item in embedded],
                "epoch_added": [self.run.epoch] * len(mine),
                "attributes": [json.dumps(item.loaded.record.attributes) for item in embedded],
            },
        )
        if locations is not None:
            insert_features(con, "training/rerank", mine, locations)


def insert_features(con: Connection, space: str, keys: Sequence[int], locations: np.ndarray) -> None:
    """Name rows of a feature file: int64 ``(n, 2)`` locations of the images with these keys."""
    insert(
        con,
        "features",
        {"space": [space] * len(keys), "key": list(keys), "shard": locations[:, 0], "row": locations[:, 1]},
    )


def _write_sources(con: Connection, sources: list[tuple[str, Record]], keys: dict[str, int]) -> int:
    """Add or refresh sources; returns how many are new."""
    if not sources:
        return 0
    unique = {(keys[hash_], record.uri): record for hash_, record in sources}
    columns = {
        "training_key": [key for key, _ in unique],
        "uri": [uri for _, uri in unique],
        "owner": pa.array([record.owner for record in unique.values()], pa.string()),
        "label": pa.array([record.label for record in unique.values()], pa.string()),
        "licence": pa.array([record.licence for record in unique.values()], pa.string()),
        "attributes": [json.dumps(record.attributes) for record in unique.values()],
        "file_size": pa.array([record.size for record in unique.values()], pa.int64()),
        "file_time": pa.array([record.mtime_ns for record in unique.values()], pa.int64()),
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
        [record.owner, record.label, record.licence, attributes], separators=(",", ":"), ensure_ascii=False
    )
