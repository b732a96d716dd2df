"""How far a run is: a bar on a terminal, a line now and then where there is none."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from gmv_qdrant.cli import render
from gmv_qdrant.text import printable, shortened

REDRAWN = 0.2
"""Seconds between two pictures of a bar."""
FIRST, SAID = 0.7, 30.0
"""Seconds until the first line, and between two, where there is no terminal."""
_WINDOW = 30.0
"""Seconds that a rate is measured over."""


class Bars:
    """Phases of a run, drawn by a thread of its own, so that the time goes on while a chunk is under way."""

    def __init__(self, name: str, *, terminal: bool) -> None:
        self._lock = threading.RLock()
        self._terminal = terminal
        self._ended = threading.Event()
        self._drawn = 0
        self._begin(name, None)

    def _begin(self, name: str, total: int | None) -> None:
        self._name, self._total, self._done, self._under_way = name, total, 0, 0
        self._started = time.monotonic()
        self._due = self._started + FIRST
        self._worked: deque[tuple[float, int]] = deque([(self._started, 0)])
        """When how much was done, without what was skipped."""

    # -- what a run tells ----------------------------------------------------------------------------

    def phase(self, name: str, total: int | None) -> None:
        with self._lock:
            self._begin(name, total)

    def advance(self, items: int = 1) -> None:
        with self._lock:
            told, self._under_way = self._under_way, 0
            self._go_on(items, worked=max(items - told, 0))

    def under_way(self, items: int) -> None:
        """Items of the chunk that `advance` is told of next."""
        with self._lock:
            self._under_way += items
            self._go_on(0, worked=items)

    def skip(self, items: int = 1) -> None:
        """Items that needed no work: done, but no measure of how fast the others are."""
        self._go_on(items, worked=0)

    def _go_on(self, items: int, worked: int) -> None:
        with self._lock:
            self._done += items
            now, before = time.monotonic(), self._worked[-1][1]
            self._worked.append((now, before + worked))
            while len(self._worked) > 2 and now - self._worked[0][0] > _WINDOW:
                self._worked.popleft()

    def download(self, name: str, done: int, total: int | None) -> None:
        """Bytes of a file so far; a file of another name begins another bar."""
        with self._lock:
            if name != self._name:
                self.phase(name, total)
            self._total = total
            self._go_on(done - self._done, done - self._done)

    def note(self, sentence: str) -> None:
        with self._lock:
            self._wipe()
            render.note(sentence)

    # -- what is seen --------------------------------------------------------------------------------

    def line(self, columns: int) -> str:
        """The state in one line of at most so many columns."""
        name, text = printable(self._name), "  ".join(self._parts())
        space = columns - len(text) - 4
        if not self._total or space < len(name) + 12:
            return f"{shortened(name, max(space, 8), '~')}  {text}"[:columns]
        bar = min(space - len(name), 40)
        full = min(bar * self._shown() // self._total, bar)
        return f"{name}  {'#' * full}{'.' * (bar - full)}  {text}"

    def _parts(self) -> list[str]:
        """How much is done, how fast it goes, and what is left or, where that can't be said, was spent."""
        total = f"/{self._total:,}" if self._total else ""
        done = self._shown()
        parts = [f"{done:,}{total}"] if done or total else []
        rate = self._rate()
        if rate and self._total and done < self._total:
            return [
                *parts,
                f"{rate:,.{1 if rate < 100 else 0}f}/s",
                f"{_clock((self._total - done) / rate)} left",
            ]
        return [*parts, _clock(time.monotonic() - self._started)]

    def _shown(self) -> int:
        """What is done, and what of the chunk under way is: never more than all."""
        done = self._done + self._under_way
        return min(done, self._total) if self._total else done

    def _rate(self) -> float:
        (since, before), (until, after) = self._worked[0], self._worked[-1]
        return (after - before) / (until - since) if until - since > 0.5 and after > before else 0.0

    def _say(self) -> None:
        self._due = time.monotonic() + SAID
        render.note(f"{self._name}: {', '.join(self._parts())}")

    def _draw(self) -> None:
        text = self.line(render.columns_of_terminal() - 1)
        _put("\r" + text + " " * max(self._drawn - len(text), 0))
        self._drawn = len(text)

    def _wipe(self) -> None:
        if self._drawn:
            _put("\r" + " " * self._drawn + "\r")
            self._drawn = 0

    def run(self) -> None:
        """Draw, until it is ended."""
        while not self._ended.wait(REDRAWN):
            self.tick()

    def tick(self) -> None:
        with self._lock:
            if self._terminal:
                self._draw()
            elif time.monotonic() >= self._due:
                self._say()

    def end(self) -> None:
        self._ended.set()
        with self._lock:
            self._wipe()


def _put(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):
        pass


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@contextmanager
def bars(name: str = "") -> Iterator[Bars]:
    """Progress on stderr from the first moment on; none with ``--quiet``, or where stderr is closed."""
    silent = render.messages.quiet or sys.stderr is None
    shown = Bars(name or "starting", terminal=not silent and sys.stderr.isatty())
    thread = threading.Thread(target=shown.run, daemon=True)
    if not silent:
        thread.start()
    try:
        yield shown
    finally:
        shown.end()
        if not silent:
            thread.join(1.0)
