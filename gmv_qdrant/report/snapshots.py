"""Snapshots for pages: kept while the ledger stands still."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict

from gmv_qdrant.ledger.publish import Published
from gmv_qdrant.ledger.queries import ValueFunction
from gmv_qdrant.report.queries import Snapshot


class Snapshots:
    """The latest few snapshots: taken anew when the ledger has changed, but not more often than is worth its time."""

    def __init__(self, published: Published, most: int = 4) -> None:
        self._published, self._most = published, most
        self._kept: OrderedDict[tuple[ValueFunction, str], tuple[object, float, float, Snapshot]] = (
            OrderedDict()
        )
        self._lock = threading.Lock()

    def get(self, function: ValueFunction, rule: str = "shares") -> Snapshot:
        asked = function, rule
        with self._lock:
            state = self._published.state
            kept = self._kept.get(asked)
            if kept is not None:
                then, at, cost, snapshot = kept
                if then == state or time.monotonic() - at < 10 * cost:
                    self._kept.move_to_end(asked)
                    return snapshot
            started = time.monotonic()
            snapshot = Snapshot.take(self._published, function, rule)
            now = time.monotonic()
            self._kept[asked] = (state, now, now - started, snapshot)
            self._kept.move_to_end(asked)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
            return snapshot
