"""Snapshots for pages: kept while the ledger stands still."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict

from gmv_qdrant.ledger.database import Ledger
from gmv_qdrant.ledger.queries import ValueFunction
from gmv_qdrant.report.queries import Snapshot


class Snapshots:
    """The latest few snapshots: taken anew when the ledger has changed, but not more often than is worth its time."""

    def __init__(self, ledger: Ledger, most: int = 4) -> None:
        self._ledger, self._most = ledger, most
        self._kept: OrderedDict[tuple[ValueFunction, str], tuple[object, float, float, Snapshot]] = (
            OrderedDict()
        )
        self._lock = threading.Lock()

    def get(self, function: ValueFunction, rule: str = "shares") -> Snapshot:
        asked = function, rule
        with self._lock:
            state = self._state()
            kept = self._kept.get(asked)
            if kept is not None:
                then, at, cost, snapshot = kept
                if then == state or time.monotonic() - at < 10 * cost:
                    self._kept.move_to_end(asked)
                    return snapshot
            started = time.monotonic()
            snapshot = Snapshot.take(self._ledger, function, rule)
            now = time.monotonic()
            self._kept[asked] = (state, now, now - started, snapshot)
            self._kept.move_to_end(asked)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
            return snapshot

    def _state(self) -> object:
        found: list[tuple[int, int]] = []
        for path in (self._ledger.path, self._ledger.path.with_name(self._ledger.path.name + ".wal")):
            with contextlib.suppress(OSError):
                stat = path.stat()
                found.append((stat.st_mtime_ns, stat.st_size))
        return found
