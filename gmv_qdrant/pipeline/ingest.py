"""Ingest: a stream of records becomes points of the collection, rows of the re-rank matrix, rows of the ledger.

Order of writes, for each chunk: matrix rows (synced), points (flushed), ledger (one transaction). The ledger comes
last, so what it names is durable elsewhere. A crash in between leaves rows that the next images overwrite, and points
that carry the mark of a run which didn't end; `recovery.recover` removes them. One chunk is written while the next goes
through the networks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from gmv_qdrant.images.records import Record, Unusable
from gmv_qdrant.ledger.database import Connection, Ledger, insert
from gmv_qdrant.ledger.runs import Run
from gmv_qdrant.ledger.sources import SOURCES, write_sources
from gmv_qdrant.pipeline.embedding import Content, Embedded, KnownContents
from gmv_qdrant.pipeline.spaces import Spaces
from gmv_qdrant.pipeline.streams import BackgroundWriter, Progress, chunked
from gmv_qdrant.vectors.protocol import RUN

Items = list[Record | Unusable]
Engine = Callable[[Iterable[Items], KnownContents], Iterator[list[Content | Unusable]]]
"""Reads and embeds chunks of records, here or elsewhere; answers in the order of the records."""


def ingest(
    records: Iterable[Record | Unusable],
    run: Run,
    ledger: Ledger,
    spaces: Spaces,
    embed: Engine,
    progress: Progress,
    *,
    readmit: bool = False,
    reassign: bool = False,
) -> None:
    """Take in what is new; skip what is known; add sources to contents that are known.

    readmit: take in images again that were withdrawn. reassign: a source that names another owner, licence or label
    than before is believed; otherwise it stays as it was, and is counted.
    """
    known = KnownImages(ledger, readmit=readmit)
    keeper = Keeper(run, ledger, spaces, known, reassign=reassign)

    def unseen() -> Iterator[Items]:
        for chunk in chunked(records, partial(weight, spaces)):
            run.counts["seen"] += len(chunk)
            rest = known.skip_files(chunk, run)
            progress.skip(len(chunk) - len(rest))
            if rest:
                yield rest

    with BackgroundWriter() as behind:
        for contents in embed(unseen(), known.contents):
            behind.hand_over(partial(keeper.keep, contents))
            progress.advance(len(contents))
    if run.counts["new"]:
        with run.timed("optimize"):
            progress.phase("quantize", None)
            spaces.store.optimize()
        spaces.sample(ledger).remember()


def weight(spaces: Spaces, record: Record | Unusable) -> int:
    """Bytes that are held while a record's chunk is worked on: its image file, and its vectors."""
    if isinstance(record, Unusable):
        return 0
    file = len(record.data) if record.data is not None else record.size or 0
    return file + spaces.weight


class KnownImages:
    """What the ledger has already, so that it needs no reading or no network."""

    def __init__(self, ledger: Ledger, *, readmit: bool) -> None:
        self._ledger = ledger
        self.readmit = readmit

    def skip_files(self, chunk: Items, run: Run) -> Items:
        """All but the files whose path, size, time and metadata the ledger has already."""
        records = [item for item in chunk if isinstance(item, Record)]
        rows = pa.table(
            {
                "row": pa.array(range(len(records)), pa.int32()),
                "uri": pa.array([record.uri for record in records], pa.string()),
                "size": pa.array([record.size for record in records], pa.int64()),
                "time": pa.array([record.mtime_ns for record in records], pa.int64()),
                "facts": pa.array([_facts(record) for record in records], pa.string()),
            }
        )
        seen = self._ledger.query(
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
        skip = {id(records[row]) for row in seen["row"].to_pylist()}
        run.resolve([records[row["row"]].uri for row in seen.to_pylist() if row["resolved"]])
        run.counts["known"] += len(skip)
        return [item for item in chunk if id(item) not in skip]

    def contents(self, hashes: set[str]) -> set[str]:
        """Content hashes of training images; those that were withdrawn only when they aren't taken in again."""
        withdrawn = self.withdrawn(hashes)
        return {hash_ for hash_, when in withdrawn.items() if when is None or not self.readmit}

    def withdrawn(self, hashes: set[str]) -> dict[str, str | None]:
        """Content hashes that the ledger knows -> the day the image was withdrawn, or None."""
        rows = self._ledger.query(
            """SELECT content_hash, strftime(withdrawn_at, '%Y-%m-%d') AS withdrawn
            FROM training JOIN hashes USING (content_hash)""",
            hashes=pa.table({"content_hash": pa.array(sorted(hashes), pa.string())}),
        )
        return dict(zip(rows["content_hash"].to_pylist(), rows["withdrawn"].to_pylist(), strict=True))


class Keeper:
    """Keeps chunks that went through the networks: what is new gets a key, and stays when `keep` returns."""

    def __init__(
        self, run: Run, ledger: Ledger, spaces: Spaces, known: KnownImages, *, reassign: bool
    ) -> None:
        self._run = run
        self._ledger = ledger
        self._spaces = spaces
        self._known = known
        self._reassign = reassign
        last = ledger.query("SELECT coalesce(max(training_key), 0) AS last FROM training")["last"]
        self._next_key = int(last[0].as_py()) + 1

    def keep(self, contents: Sequence[Content | Unusable]) -> None:
        """Quarantine what can't be used, write vectors and points of what is new, then all of it to the ledger."""
        admitted = list(self._admitted(contents))
        keys = self._keys(admitted)
        fresh: dict[str, Embedded] = {}
        for item in admitted:
            if item.image and item.hash not in keys.there:
                fresh.setdefault(item.hash, item.image)
        images = list(fresh.values())
        of_image = [keys.of[image.hash] for image in images]
        with self._run.timed("write"):
            if images:
                self._write_vectors(of_image, images)
            with self._ledger.write() as con:
                if images:
                    self._write_training(con, of_image, images)
                told = write_sources(
                    con, self._run.run_id, _sources(admitted, keys.of), reassign=self._reassign
                )
                self._run.write_quarantine(con, resolved=[item.record.uri for item in admitted])
        self._run.counts["new"] += len(images)
        self._run.counts["known"] += len(admitted) - len(images)
        self._run.counts["sources"] += told.new
        self._run.tell_changes(told.changes, kept=self._reassign)

    def _admitted(self, contents: Sequence[Content | Unusable]) -> Iterator[Content]:
        withdrawn = self._known.withdrawn({item.hash for item in contents if isinstance(item, Content)})
        for item in contents:
            if isinstance(item, Unusable):
                self._run.quarantine(item.uri, item.reason, item.kind)
            elif (when := withdrawn.get(item.hash)) is not None and not self._known.readmit:
                reason = f"this image was withdrawn on {when}; 'ingest --readmit' takes it in again"
                self._run.quarantine(item.record.uri, reason, "withdrawn")
            else:
                yield item

    def _keys(self, admitted: Sequence[Content]) -> _Keys:
        rows = self._ledger.query(
            """SELECT content_hash, training_key, version_withdrawn IS NULL AS there
            FROM training JOIN hashes USING (content_hash)""",
            hashes=pa.table(
                {"content_hash": pa.array(sorted({item.hash for item in admitted}), pa.string())}
            ),
        ).to_pylist()
        of = {row["content_hash"]: row["training_key"] for row in rows}
        for item in admitted:
            if item.hash not in of:
                of[item.hash] = self._next_key
                self._next_key += 1
        return _Keys(of, {row["content_hash"] for row in rows if row["there"]})

    def _write_vectors(self, keys: list[int], images: Sequence[Embedded]) -> None:
        rerank = [image.rerank for image in images if image.rerank is not None]
        if self._spaces.training is not None:
            self._spaces.training.write(keys, np.concatenate(rerank))
        self._spaces.store.upsert(
            [image.point_id for image in images],
            np.concatenate([image.recall for image in images]),
            [{"uri": image.record.uri, "sha256": image.hash, RUN: self._run.run_id} for image in images],
        )
        self._spaces.store.flush()

    def _write_training(self, con: Connection, keys: list[int], images: Sequence[Embedded]) -> None:
        if self._run.counts["new"] == 0:  # the first new image of a run begins a version of the training set
            self._run.training_version += 1
            self._ledger.set_meta(con, training_version=self._run.training_version)
        con.execute("DELETE FROM training WHERE training_key IN (SELECT unnest(?::INTEGER[]))", [keys])
        insert(
            con,
            "training",
            {
                "training_key": pa.array(keys, pa.int32()),
                "content_hash": [image.hash for image in images],
                "point_id": [str(image.point_id) for image in images],
                "width": [image.width for image in images],
                "height": [image.height for image in images],
                "version_added": [self._run.training_version] * len(keys),
            },
        )


class _Keys:
    def __init__(self, of: dict[str, int], there: set[str]) -> None:
        self.of = of
        """Training key of each content hash."""
        self.there = there
        """Content hashes of images that are in the training set already."""


def _sources(contents: Sequence[Content], keys: dict[str, int]) -> pa.Table:
    """As `SOURCES`: of a file that was given twice, what was said last."""
    last = {(keys[item.hash], item.record.uri): item.record for item in contents}
    rows = [
        {
            "training_key": key,
            "uri": uri,
            "owner": owner,
            "label": record.label,
            "licence": record.licence,
            "attributes": json.dumps(record.attributes),
            "file_size": record.size,
            "file_time": record.mtime_ns,
        }
        for (key, uri), record in last.items()
        for owner in record.owners or (None,)
    ]
    return pa.Table.from_pylist(rows, SOURCES)


def _facts(record: Record) -> str:
    """A record's metadata in one comparable line."""

    def line(values: list[Any]) -> str:
        return json.dumps(values, separators=(",", ":"), ensure_ascii=False)

    owners = line(sorted(record.owners)) if record.owners else None
    return line([owners, record.label, record.licence, json.dumps(record.attributes)])
