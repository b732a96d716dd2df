"""One row for each run: what was done, with what, how long it took, and what could not be used."""

from __future__ import annotations

import contextlib
import json
import platform
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import duckdb

from gmv_qdrant.errors import GmvError
from gmv_qdrant.ledger.database import Connection, Ledger, insert, utc_now
from gmv_qdrant.ledger.sources import Change

_PACKAGES = (
    *(
        "gmv-qdrant",
        "qdrant-edge-py",
        "qdrant-client",
        "duckdb",
        "pyarrow",
        "numpy",
        "scipy",
        "Pillow",
        "tifffile",
    ),
    *("torch", "torchvision", "timm", "open_clip_torch", "dreamsim", "lpips", "pyiqa", "datasets", "ray"),
)


def versions() -> dict[str, str]:
    """Versions of this tool and of what it computes with, as far as it is installed; nothing is imported for it."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


class Run:
    """Counts, timings (seconds by phase) and quarantine of one run; all of it goes to the ledger.

    Two threads may tell it things: one computes while the other writes, so phases overlap.
    """

    def __init__(self, verb: str, training_version: int) -> None:
        self.run_id = uuid.uuid4().hex
        self.verb = verb
        self.training_version = training_version
        self.counts: Counter[str] = Counter()
        self.timings: defaultdict[str, float] = defaultdict(float)
        self.figures: dict[str, float] = {}
        self.unsettled = False
        """The run before didn't come to its end: what it left between its writes is still to be tidied up."""
        self.changes: Counter[tuple[str, str | None, str | None]] = Counter()
        """Sources by what would change of them: owner, licence or label; from what; to what."""
        self._quarantined: dict[str, tuple[str, str]] = {}
        self._healed: list[str] = []
        self._lock = threading.Lock()

    def resolve(self, uris: list[str]) -> None:
        """These inputs are fine, whatever quarantine says; written with the next batch."""
        with self._lock:
            self._healed += uris

    def quarantine(self, uri: str, reason: str, kind: str) -> None:
        """Keep an input that could not be used, with its reason and one word for it; written with the next batch."""
        with self._lock:
            self._quarantined[uri] = reason, kind
            self.counts["quarantined"] += 1

    def tell_changes(self, changes: Iterable[Change], *, kept: bool) -> None:
        """Sources that say something else than before; kept: they were believed."""
        with self._lock:
            for change in changes:
                self.changes[change.field, change.before, change.after] += change.sources
                self.counts["reassigned" if kept else "not_reassigned"] += change.sources

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.timings[phase] += time.perf_counter() - started

    def write_quarantine(self, con: Connection, resolved: list[str]) -> None:
        """Write new quarantine rows, and take out the URIs that were used after all."""
        with self._lock:
            gone = resolved + self._healed + list(self._quarantined)
            quarantined, self._quarantined, self._healed = self._quarantined, {}, []
        if gone:
            con.execute("DELETE FROM quarantine WHERE uri IN (SELECT unnest(?::VARCHAR[]))", [gone])
        if quarantined:
            n = len(quarantined)
            insert(
                con,
                "quarantine",
                {
                    "uri": list(quarantined),
                    "reason": [reason for reason, _ in quarantined.values()],
                    "kind": [kind for _, kind in quarantined.values()],
                    "run_id": [self.run_id] * n,
                    "at": [utc_now()] * n,
                },
            )

    def summary(self) -> dict[str, Any]:
        """What the run did, for people and for ``--json``."""
        timings = {name: round(seconds, 3) for name, seconds in self.timings.items()}
        changes = [
            {"field": field, "before": before, "after": after, "sources": count}
            for (field, before, after), count in self.changes.most_common()
        ]
        told = {"changes": changes} if changes else {}
        return {"verb": self.verb, **self.counts, **self.figures, **told, "seconds": timings}


@contextmanager
def recorded(
    ledger: Ledger, verb: str, settings: dict[str, Any], request: dict[str, Any] | None = None
) -> Iterator[Run]:
    """A run that is in the ledger from its first moment: ``running``, then ``done`` or ``failed``.

    request: what was asked for, so that it can be asked again for inputs that failed.
    Until a run is done, ``meta.settled`` is false; the next run finds that in `Run.unsettled`.
    """
    with ledger.held():
        run = Run(verb, ledger.training_version)
        run.unsettled = ledger.meta().get("settled") == "false"
        _begin(ledger, run, settings, request or {})
        started = time.perf_counter()
        try:
            yield run
        except BaseException:
            run.timings["total"] = time.perf_counter() - started
            with contextlib.suppress(
                GmvError, duckdb.Error
            ):  # the error that ended the run is the one to tell
                _finish(ledger, run, "failed")
            raise
        run.timings["total"] = time.perf_counter() - started
        _finish(ledger, run, "done")


def _begin(ledger: Ledger, run: Run, settings: dict[str, Any], request: dict[str, Any]) -> None:
    with ledger.write() as con:
        ledger.set_meta(con, settled=False)
        insert(
            con,
            "runs",
            {
                "run_id": [run.run_id],
                "verb": [run.verb],
                "started_at": [utc_now()],
                "training_version": [run.training_version],
                "settings": [json.dumps({**settings, "request": request})],
                "versions": [json.dumps(versions())],
                "status": ["running"],
            },
        )


def _finish(ledger: Ledger, run: Run, status: str) -> None:
    with ledger.write() as con:
        run.write_quarantine(con, [])
        con.execute(
            """UPDATE runs SET finished_at = ?, training_version = ?, counts = ?, timings = ?, status = ?
            WHERE run_id = ?""",
            [
                utc_now(),
                run.training_version,
                json.dumps({**run.counts, **run.figures}),
                json.dumps(run.timings),
                status,
                run.run_id,
            ],
        )
        if status == "done":
            ledger.set_meta(con, settled=True)
