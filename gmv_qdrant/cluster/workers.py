"""What runs in a worker process: the networks, loaded once, and the pipelines' own work on one chunk at a time.

A chunk can be done twice: points and shards are named by content, and the ledger is written by the driver alone. An
error that people should read goes back as part of the answer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from gmv_qdrant.cluster import wire
from gmv_qdrant.cluster.snapshot import Snapshot, Tables, WorkerContext
from gmv_qdrant.errors import GmvError
from gmv_qdrant.images.records import Record
from gmv_qdrant.ledger.runs import Run
from gmv_qdrant.pipeline.ingest import Intake
from gmv_qdrant.pipeline.loading import usable
from gmv_qdrant.pipeline.streams import Silent
from gmv_qdrant.pipeline.valuation import Valuation
from gmv_qdrant.settings import Settings
from gmv_qdrant.shards import RemoteShards
from gmv_qdrant.store.base import SearchParams


@dataclass(frozen=True)
class Brief:
    """What a worker must know. ``settings`` may hold the API key, which shows in no repr, log or dashboard."""

    root: Path
    settings: Settings
    ledger: Path
    epoch: int
    readmit: bool = False
    batch: str = ""
    params: SearchParams | None = None
    threads: int = 1
    """Of decoding, unless the settings say."""


class Worker(ABC):
    """One process of the cluster. Ray Data makes it, and calls it with one message after the other."""

    verb: ClassVar[str]

    def __init__(self, brief: Any, tables: Any) -> None:
        import ray

        self._error: GmvError | None = None
        try:
            self._begin(*ray.get([brief, tables]))
        except GmvError as error:
            self._error = error

    def _begin(self, brief: Brief, tables: Tables) -> None:
        settings = brief.settings.model_copy(update={"workers": brief.settings.workers or brief.threads})
        ledger = Snapshot(brief.ledger, tables, brief.threads)
        self.context = WorkerContext(brief.root, settings, ledger, Silent(), one_of_many=True)
        self.run = Run(self.verb, brief.epoch)
        self.context.prove(quality=self.verb == "value")
        _forget_copies(self.context, tables)
        self._prepare(brief)

    def __call__(self, block: pa.Table) -> pa.Table:
        (message,) = wire.unpacked(block)
        error = message.get("error") or self._error
        if error is None:
            try:
                return wire.packed(self._answer(wire.records_of(message["records"])))
            except GmvError as found:
                error = found
        return wire.packed({"error": error})

    def _answer(self, chunk: list[Any]) -> wire.Message:
        records = usable(self.run, chunk)
        parts = self._work(records) if records else {}
        return {"images_seen": len(chunk), **parts, "told": self.run.drain()}

    @abstractmethod
    def _prepare(self, brief: Brief) -> None: ...

    @abstractmethod
    def _work(self, records: list[Record]) -> wire.Message: ...


class IngestWorker(Worker):
    """Decode, encode, write the feature shard, upsert: what is left is the ledger's part."""

    verb = "ingest"

    def _prepare(self, brief: Brief) -> None:
        self.intake = Intake(self.context, self.run, readmit=brief.readmit)

    def _work(self, records: list[Record]) -> wire.Message:
        work = self.intake.work(records)
        return {"taken": self.intake.keep(work)} if work else {}


class ValueWorker(Worker):
    """Decode, encode, quality, recall, re-rank: evidence."""

    verb = "value"

    def _prepare(self, brief: Brief) -> None:
        self.batch = brief.batch
        self.valuation = Valuation(self.context, self.run)
        if brief.params:
            self.valuation.matcher.params.hold(brief.params)

    def _work(self, records: list[Record]) -> wire.Message:
        work = self.valuation.work(records, self.batch)
        if work is None:
            return {}
        evidence = self.valuation.match(work.spaces)
        return {
            "work": work,
            "evidence": wire.table_of(evidence),
            "features": self.context.kept_features(),
            "strangers": sorted(self.valuation.matcher.strangers),
        }


def _forget_copies(context: WorkerContext, tables: Tables) -> None:
    """Local copies of remote shards that the ledger no longer names."""
    features = tables.get("features")
    files = context.space("training/rerank").files
    if features is not None and isinstance(files, RemoteShards):
        files.forget(np.unique(features["shard"].to_numpy()).tolist())
