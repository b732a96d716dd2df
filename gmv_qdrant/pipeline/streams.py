"""Bounded streams: work runs ahead in threads, but never further than it may."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Progress(Protocol):
    """What a long run tells while it runs; the command line draws bars with it."""

    def phase(self, name: str, total: int | None) -> None:
        """A new phase begins, of ``total`` items when that is known."""
        ...

    def advance(self, items: int = 1) -> None: ...


class Silent:
    """Tells nobody."""

    def phase(self, name: str, total: int | None) -> None:
        pass

    def advance(self, items: int = 1) -> None:
        pass


def mapped(pool: ThreadPoolExecutor, work: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """``work`` of each item, in order, with at most ``ahead`` results waiting."""
    source = iter(items)
    waiting: deque[Future[R]] = deque(pool.submit(work, item) for item in itertools.islice(source, ahead))
    try:
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(work, item) for item in itertools.islice(source, 1))
            yield result
    finally:
        for future in waiting:
            future.cancel()


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    source = iter(items)
    while batch := list(itertools.islice(source, size)):
        yield batch


def chunked(
    items: Iterable[T], seconds: float = 20.0, smallest: int = 64, largest: int = 4096
) -> Iterator[list[T]]:
    """Chunks that each take about ``seconds`` to work on: what a kill can lose, whatever the hardware."""
    source = iter(items)
    size = smallest
    while chunk := list(itertools.islice(source, size)):
        started = time.perf_counter()
        yield chunk
        rate = len(chunk) / max(time.perf_counter() - started, 1e-9)
        size = int(min(max(rate * seconds, smallest), largest, 2 * size))
