"""Threads of one process that read and write the same DuckDB file: one writes, or many read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """Waiting here ends at once when the other side is done; being refused by DuckDB means asking again and again.

    Who has waited for ``patience`` seconds goes on, and hears from DuckDB what is wrong.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers = 0
        self._writers = 0
        self._writing = threading.RLock()

    @contextmanager
    def reading(self, patience: float) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._writers == 0, patience)
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextmanager
    def writing(self, patience: float) -> Iterator[None]:
        with self._writing:
            with self._changed:
                self._changed.wait_for(lambda: self._readers == 0, patience)
                self._writers += 1
            try:
                yield
            finally:
                with self._changed:
                    self._writers -= 1
                    self._changed.notify_all()
