"""One connection to a Qdrant server: what is retried, for how long, and what people are told when it fails."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import tenacity

from gmv_qdrant.errors import CollectionMismatch, StoreError, StoreUnavailable
from gmv_qdrant.settings import Secret

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

T = TypeVar("T")
R = TypeVar("R")

PREFLIGHT = 5.0
"""Seconds of retrying while a store is opened: a wrong URL should be said at once."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Where a Qdrant server is and how to talk to it."""

    url: str = field(repr=False)
    api_key: Secret | None = None
    timeout: float = 60.0
    """Seconds that one request may take (rounded up to whole seconds)."""
    prefer_grpc: bool = False
    grpc_port: int = 6334
    patience: float = 120.0
    """Seconds of retrying after which a request that only meets overload or silence is given up."""
    parallel: int = 4
    """Requests in flight at once."""


class Missing(StoreError):
    """The server answered 404: the collection (or the endpoint, on old servers) is not there."""


class Connection:
    """Runs qdrant-client's methods with retries; the client's exceptions become `StoreError`.

    Retried, with exponential backoff and ``Retry-After``, are 429, 5xx, timeouts and dropped connections:
    writes carry stable ids, so sending one twice changes nothing. All else fails at once.
    """

    def __init__(self, config: ServerConfig) -> None:
        from qdrant_client import QdrantClient

        self.config = config
        self.shown = self._clean(_without_secrets(config.url))
        if "@" in config.url.partition("?")[0]:
            raise StoreError(
                f"the URL of {self.shown} carries a user or a password, which Qdrant has no use for: "
                "give the API key as QDRANT_API_KEY."
            )
        key = config.api_key.get_secret_value() if config.api_key else None
        try:
            with warnings.catch_warnings():
                # A key over plain http is the user's choice (localhost, a private network).
                warnings.filterwarnings("ignore", message="Api key is used with an insecure connection")
                self.client: QdrantClient = QdrantClient(
                    url=config.url,
                    api_key=key,
                    timeout=max(1, round(config.timeout + 0.499)),
                    prefer_grpc=config.prefer_grpc,
                    grpc_port=config.grpc_port,
                    check_compatibility=False,
                )
        except ValueError as e:
            raise StoreError(
                f"{self.shown!r} is not the URL of a Qdrant server ({self._clean(str(e))}): "
                "give one like http://localhost:6333."
            ) from None
        self._closed = threading.Event()

    def call(self, action: str, method: str, *args: Any, patience: float | None = None, **kwargs: Any) -> Any:
        """``client.method(*args, **kwargs)``; ``action`` is the verb for the sentence when it fails."""
        if self._closed.is_set():
            raise StoreError(f"the connection to {self.shown} is closed: open the workspace again.")
        patience = self.config.patience if patience is None else patience
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_transient),
            wait=_wait,
            stop=tenacity.stop_before_delay(patience),
            reraise=True,
        )
        try:
            return retrying(getattr(self.client, method), *args, **kwargs)
        except Exception as e:  # noqa: BLE001 - three libraries' trees; all become ours
            raise self._translated(e, action, patience) from None

    def each(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """``function`` of each item, a bounded number at a time, in order; the first failure stops the rest."""
        if len(items) <= 1:
            return [function(item) for item in items]
        with ThreadPoolExecutor(min(self.config.parallel, len(items))) as pool:
            futures = [pool.submit(function, item) for item in items]
            try:
                return [future.result() for future in futures]
            finally:
                for future in futures:
                    future.cancel()

    def close(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self.client.close()

    # -- failures --------------------------------------------------------------------------------------

    def _translated(self, e: Exception, action: str, patience: float) -> StoreError:
        status, words = _answer(e)
        words = self._clean(words)
        if status == 401:
            given = "refused the API key" if self.config.api_key else "wants an API key"
            return StoreError(f"{self.shown} {given}: set QDRANT_API_KEY to one that is valid there.")
        if status == 403:
            return StoreError(f"the API key may not {action} at {self.shown}: use a key with that right.")
        if status == 404:
            return Missing(f"{self.shown} has nothing to {action}: {words}.")
        if status == 413:
            return StoreError(f"{self.shown} finds a request to {action} too large: {words}.")
        if status == 429 or (status is not None and status >= 500):
            return StoreUnavailable(
                f"{self.shown} could not {action}: {patience:.0f} seconds of trying were answered with "
                f"{status} ({words}). Run the command again later; it goes on where it stopped."
            )
        if status is not None:
            lower = words.lower()
            if "dimension" in lower or "vector name" in lower:
                return CollectionMismatch(
                    f"{self.shown} could not {action}, its collection has other vectors than before: {words}."
                )
            return StoreError(f"{self.shown} refused to {action} ({status}): {words}.")
        if _is_transient(e):
            return StoreUnavailable(
                f"no answer from {self.shown} within {patience:.0f} seconds of trying to {action} ({words}): "
                "is the server running, and is the URL right?"
            )
        return StoreError(f"{self.shown} gave no answer of a Qdrant server when asked to {action}: {words}.")

    def _clean(self, text: str) -> str:
        """One line, without the key (a proxy may echo it)."""
        line = " ".join(text.split())[:400].rstrip(".")
        key = self.config.api_key.get_secret_value() if self.config.api_key else ""
        return line.replace(key, "***") if key else line


def _without_secrets(url: str) -> str:
    """The URL as it may be shown: without user, password and query."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "the given URL"
    return f"{parts.scheme}://{host}{port}{parts.path}" if host else url.split("@")[-1]


def _answer(e: Exception) -> tuple[int | None, str]:
    """(HTTP status, or None when there was no usable answer; what was said)."""
    import grpc  # type: ignore[import-untyped]
    from qdrant_client.common.client_exceptions import QdrantException
    from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

    if isinstance(e, UnexpectedResponse):
        try:
            words = json.loads(e.content)["status"]["error"]
        except (ValueError, KeyError, TypeError):
            words = e.content.decode("utf-8", "replace") or e.reason_phrase
        return e.status_code, str(words)
    if isinstance(e, QdrantException):  # 429 with Retry-After
        return 429, str(e)
    if isinstance(e, grpc.RpcError):
        code = e.code()
        return _GRPC.get(code.name), str(e.details())
    if isinstance(e, ResponseHandlingException):
        e = e.source if isinstance(e.source, Exception) else e
    return None, str(e) or type(e).__name__


_GRPC = {
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "UNIMPLEMENTED": 404,
    "ALREADY_EXISTS": 409,
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "RESOURCE_EXHAUSTED": 429,
    "INTERNAL": 500,
    "UNKNOWN": 500,
}
"""UNAVAILABLE, DEADLINE_EXCEEDED and CANCELLED are silence, not queries."""


def _is_transient(e: BaseException) -> bool:
    """Worth another try: overload, a server's own failure, silence, a dropped connection."""
    import grpc
    import httpx
    from qdrant_client.http.exceptions import ResponseHandlingException

    if not isinstance(e, Exception):
        return False
    status, words = _answer(e)
    if status is not None:
        return status == 429 or (status >= 500 and status != 501)
    if isinstance(e, grpc.RpcError):
        return True
    source = e.source if isinstance(e, ResponseHandlingException) else e
    unsupported = isinstance(source, httpx.UnsupportedProtocol | httpx.InvalidURL)
    unknown_host = "Name or service not known" in words or "nodename nor servname" in words
    return isinstance(source, httpx.TransportError) and not unsupported and not unknown_host


_backoff = tenacity.wait_exponential(multiplier=0.2, max=10.0) + tenacity.wait_random(0.0, 0.2)


def _wait(state: tenacity.RetryCallState) -> float:
    """Exponential, and never sooner than the server's ``Retry-After``."""
    error = state.outcome.exception() if state.outcome else None
    return max(_backoff(state), float(getattr(error, "retry_after_s", 0)))
