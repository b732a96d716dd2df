"""One connection to a Qdrant server: what is retried, for how long, and what people are told while they wait."""

from __future__ import annotations

import random
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from gmv_qdrant.errors import StoreError
from gmv_qdrant.vectors.server import address
from gmv_qdrant.vectors.server.answers import Failure, LimitExceeded, Missing, TooLarge

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

    from gmv_qdrant.setting_values import Secret

__all__ = ["Connection", "LimitExceeded", "Missing", "ServerConfig", "TooLarge"]
T = TypeVar("T")
R = TypeVar("R")

START, START_TIMEOUT = 9.0, 4.0
"""Seconds of trying, and of one request, until a store is open: a wrong URL or a dead server is said soon."""
ASKED_TO_WAIT = 600.0
"""Seconds that a server may ask to wait in all, before one request is given up."""
SAY_AFTER, SAY_EVERY = 2.0, 15.0
"""Seconds of waiting after which people are told what for, and told again."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Where a Qdrant server is and how to talk to it."""

    url: str = field(repr=False)
    api_key: Secret | None = None
    timeout: float = 60.0
    """Seconds that one request may take (rounded up to whole seconds)."""
    prefer_grpc: bool = False
    grpc_port: int | None = None
    """None: found by asking."""
    patience: float = 120.0
    """Seconds of retrying after which a request that only meets overload or silence is given up."""
    parallel: int = 4
    """Requests in flight at once."""
    tell: Callable[[str], None] = field(default=lambda sentence: None, repr=False)
    """Told what is waited for."""

    @property
    def key(self) -> str | None:
        return self.api_key.get_secret_value() if self.api_key else None


class Connection:
    """Runs qdrant-client's methods with retries; the client's exceptions become `StoreError`.

    Retried, with exponential backoff, are 429, 5xx, timeouts and dropped connections: writes carry stable ids, so
    sending one twice changes nothing. ``Retry-After`` is honoured. All else fails at once. Until `begin` it is
    impatient.
    """

    def __init__(self, config: ServerConfig, collection: str = "") -> None:
        self.config = config
        self.shown = self._clean(address.shown(config.url))
        self._patience = min(START, config.patience)
        timeout = min(START_TIMEOUT, config.timeout)
        try:
            self._url = address.find_rest(config.url, collection, config.key, self._patience, timeout)
            self._grpc_port = (
                address.find_grpc(self._url, config.grpc_port, config.key, timeout)
                if config.prefer_grpc
                else None
            )
        except StoreError as error:
            raise type(error)(self._without_key(str(error))) from None
        self._client = self._connect(timeout)
        self._closed, self._local, self._said = threading.Event(), threading.local(), 0.0

    @property
    def protocol(self) -> str:
        """How the server is talked to, for people."""
        return f"gRPC on port {self._grpc_port}" if self._grpc_port else "REST"

    def begin(self) -> None:
        """The store is open, and the work begins: from now on restarts and overload are waited for."""
        config = self.config
        self._patience = config.patience
        old, self._client = (
            self._client,
            self._connect(max(1.0, min(config.timeout, config.patience / 2 - 1))),
        )
        old.close()

    def _connect(self, timeout: float) -> QdrantClient:
        from qdrant_client import QdrantClient

        with warnings.catch_warnings():
            # A key over plain http is the user's choice (localhost, a private network).
            warnings.filterwarnings("ignore", message="Api key is used with an insecure connection")
            return QdrantClient(
                url=self._url,
                api_key=self.config.key,
                timeout=max(1, round(timeout + 0.499)),
                prefer_grpc=self._grpc_port is not None,
                grpc_port=self._grpc_port or address.GRPC_PORT,
                check_compatibility=False,
            )

    def call(self, action: str, method: str, *args: Any, **kwargs: Any) -> Any:
        """``client.method(*args, **kwargs)``; ``action`` is the verb for the sentence when it fails."""
        began, asked_to_wait, tries = time.monotonic(), 0.0, 0
        while True:
            if self._closed.is_set():
                raise StoreError(f"the connection to {self.shown} is closed: open the workspace again.")
            tried = time.monotonic()
            try:
                return getattr(self._client, method)(*args, **kwargs)
            except Exception as e:  # noqa: BLE001 - three libraries' trees; all become ours
                failure = Failure.of(e)
            now, tries = time.monotonic(), tries + 1
            failure = Failure(failure.status, self._clean(failure.words), failure.wait, failure.silent)
            delay = failure.wait if failure.wait is not None else _backoff(tries)
            spent = now - began - asked_to_wait
            asked_to_wait += failure.wait or 0.0
            over = spent + (0.0 if failure.wait else delay) + (now - tried) > self._patience
            if not failure.passing or over or asked_to_wait > ASKED_TO_WAIT:
                raise failure.error(action, self.shown, self._patience, keyed=self.config.key is not None)
            self._say(action, failure, now - began + delay, delay)
            if self._stopping.wait(delay):
                raise failure.error(action, self.shown, spent, keyed=self.config.key is not None)

    def _say(self, action: str, failure: Failure, waited: float, delay: float) -> None:
        now = time.monotonic()
        if max(waited, delay) >= SAY_AFTER and now - self._said >= (SAY_EVERY if self._said else 0):
            self._said = now
            until = f", for {delay:.0f} s as it asks" if failure.wait else ""
            self.config.tell(f"waiting for {self.shown} to {action}{until}: {failure.words or 'no answer'}")

    @property
    def _stopping(self) -> threading.Event:
        """Set when the requests beside this one were given up."""
        found: threading.Event = getattr(self._local, "stopping", self._closed)
        return found

    def each(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """``function`` of each item, a bounded number at a time, in order; the first failure stops the rest."""
        if len(items) <= 1:
            return [function(item) for item in items]
        stopping = threading.Event()

        def one(item: T) -> R:
            self._local.stopping = stopping
            return function(item)

        with ThreadPoolExecutor(min(self.config.parallel, len(items))) as pool:
            futures = [pool.submit(one, item) for item in items]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                return [future.result() for future in futures]
            finally:
                stopping.set()
                for future in futures:
                    future.cancel()

    def close(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self._client.close()

    def _clean(self, text: str) -> str:
        """One line, without the key (a proxy may echo it)."""
        return self._without_key(" ".join(text.split())[:400].rstrip("."))

    def _without_key(self, text: str) -> str:
        return text.replace(self.config.key, "***") if self.config.key else text


def halving(function: Callable[[Sequence[T]], R], items: Sequence[T]) -> list[R]:
    """``function`` of all items, or of halves of them, and halves of those, where the server finds them too large."""
    try:
        return [function(items)]
    except TooLarge:
        if len(items) <= 1:
            raise
        middle = len(items) // 2
        return halving(function, items[:middle]) + halving(function, items[middle:])


def _backoff(tries: int) -> float:
    """Seconds, longer with each try."""
    return min(10.0, 0.1 * 2.0**tries) + random.uniform(0.0, 0.2)
