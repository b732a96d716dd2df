"""Ctrl-C ends a run within two seconds, whatever native code is under way.

Python's own handler waits for the call that is under way, and a forward pass or a query can take long. The evidence
is kept so that a process may end at any moment; so a watcher, woken by the signal itself, ends it when the tidy way
takes too long.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

INTERRUPTED = 130
"""Exit code of a run that was stopped from the keyboard."""
_PATIENCE = 1.0
"""Seconds that a run gets to end by itself."""


@contextmanager
def watched(farewell: Callable[[], str], heard: threading.Event) -> Iterator[None]:
    """Within the block, Ctrl-C raises KeyboardInterrupt, and ends the process when that isn't heard in time.

    farewell: the sentence that is said then. heard: set at Ctrl-C, because libraries turn it into errors of their own.
    """
    if threading.current_thread() is not threading.main_thread():  # signals are for the main thread alone
        yield
        return
    ear, told = os.pipe()
    os.set_blocking(told, False)
    ended = threading.Event()

    def watch() -> None:
        while (number := os.read(ear, 1)) not in (b"", b"\x00"):
            if number[0] == signal.SIGINT:
                heard.set()
                _end_unless(ended, farewell)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    before = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(before)
        os.write(told, b"\x00")
        watcher.join()
        os.close(ear)
        os.close(told)


def _end_unless(ended: threading.Event, farewell: Callable[[], str]) -> None:
    def end() -> None:
        if not ended.wait(_PATIENCE):
            sys.stderr.write(f"\n{farewell()}\n")
            sys.stderr.flush()
            os._exit(INTERRUPTED)

    threading.Thread(target=end, daemon=True).start()
