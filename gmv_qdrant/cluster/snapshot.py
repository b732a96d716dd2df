"""The ledger as workers see it: the tables that a run reads, as they were when it began.

Only the driver opens the ledger's file. Nothing that a worker asks for changes during a run, but for the vectors that
it computes itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from gmv_qdrant.errors import LedgerError
from gmv_qdrant.ledger.ledger import Connection, Ledger
from gmv_qdrant.pipeline.context import Context

Tables = dict[str, pa.Table]


class Snapshot(Ledger):
    """Answers the pipelines' queries from tables in memory; nothing can be written."""

    def __init__(self, path: Path, tables: Tables, threads: int) -> None:
        super().__init__(path)
        self._tables = tables
        self._threads = threads

    def add(self, table: str, rows: pa.Table) -> None:
        """Let later queries find these rows, too."""
        there = self._tables[table]
        self._tables = {**self._tables, table: pa.concat_tables([there, rows.cast(there.schema)])}

    def _connect(self, patience: float, *, read_only: bool, locked: bool = False) -> Connection:
        con = duckdb.connect(":memory:", config={"threads": self._threads})
        for name, rows in self._tables.items():
            con.register(name, rows)
        return con

    @contextmanager
    def write(self) -> Iterator[Connection]:
        raise LedgerError(f"a worker tried to write to the ledger {self.path}: only the driver does")
        yield


def of_ingest(ledger: Ledger, paths: Sequence[str]) -> Tables:
    """What `Intake` reads; of the sources, those below ``paths``."""
    folders = [os.path.join(path, "") for path in paths if os.path.isdir(path)]
    wanted = {
        "folders": pa.table({"path": pa.array(folders, pa.string())}),
        "files": pa.table({"path": pa.array(sorted(set(paths) - set(folders)), pa.string())}),
    }
    return {
        "meta": ledger.query("FROM meta"),
        "training": ledger.query(
            "SELECT training_key, content_hash, epoch_withdrawn, withdrawn_at FROM training"
        ),
        "sources": ledger.query(
            """SELECT training_key, uri, owner, label, licence, attributes, file_size, file_time FROM sources
            WHERE file_size IS NOT NULL AND (uri IN (SELECT path FROM files)
                OR EXISTS (FROM folders WHERE starts_with(sources.uri, folders.path)))""",
            **wanted,
        ),
        "quarantine": ledger.query("SELECT uri FROM quarantine"),
    }


def of_value(ledger: Ledger, *, images: bool) -> Tables:
    """What `Valuation` reads. images: also where training images are, for those whose re-rank vector isn't kept."""
    few = "" if images else "LIMIT 0"
    return {
        "meta": ledger.query("FROM meta"),
        "training": ledger.query(
            f"""SELECT training_key, point_id, {"content_hash" if images else "NULL::VARCHAR AS content_hash"},
            epoch_withdrawn FROM training WHERE epoch_withdrawn IS NULL"""
        ),
        "features": ledger.query("FROM features"),
        "sources": ledger.query(f"SELECT training_key, uri FROM sources {few}"),
        "generated": ledger.query(
            """SELECT generated_key, content_hash, uri, batch, label, quality, epoch_valued, attributes
            FROM generated"""
        ),
    }


class WorkerContext(Context):
    """The context of one worker: its ledger is a snapshot, and feature rows that it names go to the driver."""

    @cached_property
    def _kept(self) -> list[pa.Table]:
        return []

    def keep_features(self, space: str, keys: Sequence[int], locations: np.ndarray) -> None:
        rows = pa.table(
            {
                "space": [space] * len(keys),
                "key": pa.array(keys, pa.int32()),
                "shard": locations[:, 0],
                "row": locations[:, 1],
            }
        )
        assert isinstance(self.ledger, Snapshot)
        self.ledger.add("features", rows)
        self._kept.append(rows)

    def kept_features(self) -> list[pa.Table]:
        """What was kept since the last call."""
        kept = list(self._kept)
        self._kept.clear()
        return kept
