"""Bounded streams: work runs ahead in threads, but never further than it may."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Protocol, Self, TypeVar

CHUNK_BYTES = 256 << 20
"""Images and vectors that are held at once; two chunks are under way at a time."""

T = TypeVar("T")
R = TypeVar("R")


class Progress(Protocol):
    """What a long run tells while it runs; the command line draws bars with it."""

    def phase(self, name: str, total: int | None) -> None:
        """A new phase begins, of ``total`` items when that is known."""
        ...

    def advance(self, items: int = 1) -> None:
        """So many more items are done, and needed work."""
        ...

    def skip(self, items: int = 1) -> None:
        """So many more items are done that needed no work: they say nothing about how fast it goes."""
        ...

    def under_way(self, items: int) -> None:
        """So many more items of the chunk that `advance` is told of next have been through the networks."""
        ...

    def download(self, name: str, done: int, total: int | None) -> None:
        """Bytes of a file of weights so far, and in all when that is known."""
        ...

    def note(self, sentence: str) -> None:
        """Something that people should know before they wait for it."""
        ...


class NullProgress:
    """Tells nobody."""

    def phase(self, name: str, total: int | None) -> None:
        pass

    def advance(self, items: int = 1) -> None:
        pass

    def skip(self, items: int = 1) -> None:
        pass

    def under_way(self, items: int) -> None:
        pass

    def download(self, name: str, done: int, total: int | None) -> None:
        pass

    def note(self, sentence: str) -> None:
        pass


def default_threads() -> int:
    """Decoding threads: Pillow lets go of the interpreter lock while it decodes and resizes."""
    return min(8, os.cpu_count() or 1)


def mapped(
    work: Callable[[T], R], items: Iterable[T], *, threads: int | None = None, ahead: int = 64
) -> Iterator[R]:
    """``work`` of each item, in order, in as many threads, with at most ``ahead`` results waiting."""
    source = iter(items)
    with ThreadPoolExecutor(threads or default_threads()) as pool:
        waiting: deque[Future[R]] = deque(pool.submit(work, item) for item in itertools.islice(source, ahead))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(work, item) for item in itertools.islice(source, 1))
                yield result
        finally:
            for future in waiting:
                future.cancel()


class BackgroundWriter:
    """Does pieces of work in one other thread while this one goes on, in the order they were handed over.

    At most one piece is under way. Its error comes out where the next is handed over, or at the end of the block.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._under_way: Future[None] | None = None

    def hand_over(self, work: Callable[[], None]) -> None:
        """Wait for the piece before, and begin this one."""
        self.wait()
        self._under_way = self._thread.submit(work)

    def wait(self) -> None:
        future, self._under_way = self._under_way, None
        if future:
            future.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # what is under way is finished, but the error that ends the block is the one to tell
            with contextlib.nullcontext() if kind is None else contextlib.suppress(Exception):
                self.wait()
        finally:
            self._thread.shutdown(wait=True)


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    source = iter(items)
    while batch := list(itertools.islice(source, size)):
        yield batch


def chunked(
    items: Iterable[T],
    weight: Callable[[T], int],
    *,
    seconds: float = 20.0,
    smallest: int = 64,
    largest: int = 4096,
    heaviest: int = CHUNK_BYTES,
) -> Iterator[list[T]]:
    """Chunks that each take about ``seconds`` to work on, what a kill can lose, and weigh about ``heaviest`` bytes."""
    source = iter(items)
    size = smallest
    while chunk := _take(source, size, weight, heaviest):
        started = time.perf_counter()
        yield chunk
        rate = len(chunk) / max(time.perf_counter() - started, 1e-9)
        size = int(min(max(rate * seconds, smallest), largest, 2 * size))


def _take(source: Iterator[T], most: int, weight: Callable[[T], int], heaviest: int) -> list[T]:
    """The next items: ``most`` at most, and no more once they weigh ``heaviest``."""
    taken: list[T] = []
    total = 0
    while len(taken) < most and total < heaviest:
        for item in itertools.islice(source, 1):
            taken.append(item)
            total += weight(item)
            break
        else:
            break
    return taken
