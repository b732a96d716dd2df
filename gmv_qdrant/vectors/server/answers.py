"""What a server's failure means: whether to try again, and the sentence that people are told."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Self

from gmv_qdrant.errors import CollectionMismatch, StoreError, StoreUnavailable


class Missing(StoreError):
    """The server answered 404: the collection (or the endpoint, on old servers) is not there."""


class TooLarge(StoreError):
    """The request is larger than the server takes: half of it may pass."""


class LimitExceeded(StoreError):
    """Strict mode refuses the request, as it does once it was switched on: its limits are to be read again."""


@dataclass(frozen=True, slots=True)
class Failure:
    """status: of HTTP, None when there was no usable answer. wait: seconds that the server asks to wait."""

    status: int | None
    words: str
    wait: float | None = None
    silent: bool = False
    """Nobody answered: the server may be down, restarting, or not be there."""

    @classmethod
    def of(cls, e: Exception) -> Self:
        """From the exceptions of qdrant-client, httpx and gRPC."""
        import grpc  # type: ignore[import-untyped]
        from qdrant_client.common.client_exceptions import QdrantException
        from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

        if isinstance(e, UnexpectedResponse):
            return cls(e.status_code, _said(e.content) or e.reason_phrase, _asked_to_wait(_said(e.content)))
        if isinstance(e, QdrantException):  # 429 with Retry-After
            words = str(e)
            return cls(429, words, float(getattr(e, "retry_after_s", 0)) or _asked_to_wait(words))
        if isinstance(e, grpc.RpcError):
            status, words = _GRPC.get(e.code().name), str(e.details())
            return cls(status, words, _asked_to_wait(words), silent=status is None)
        if isinstance(e, ResponseHandlingException):
            e = e.source if isinstance(e.source, Exception) else e
        return cls(None, str(e) or type(e).__name__, silent=_is_silence(e))

    @property
    def too_large(self) -> bool:
        lower = self.words.lower()
        phrases = ("larger than allowed", "rate limiter capacity", "length too large", "larger than max")
        return self.status == 413 or any(phrase in lower for phrase in phrases)

    @property
    def passing(self) -> bool:
        """Worth another try: overload, a server's own failure, silence, a dropped connection."""
        if self.status is None or self.too_large:
            return self.silent
        return self.status == 429 or (self.status >= 500 and self.status != 501)

    def error(self, action: str, shown: str, seconds: float, *, keyed: bool) -> StoreError:
        """The sentence: ``action`` is what was tried at ``shown`` for ``seconds``; ``keyed``: with an API key."""
        words = self.words
        if self.too_large:
            return TooLarge(f"{shown} finds a request to {action} too large: {words}.")
        if self.status in (401, 403):
            return self._forbidden(action, shown, keyed=keyed)
        if self.status == 404:
            return Missing(f"{shown} has nothing to {action}: {words}.")
        if self.passing:
            return self._unavailable(action, shown, seconds)
        if self.status is None:
            return StoreError(f"{shown} gave no answer of a Qdrant server when asked to {action}: {words}.")
        if "limit exceeded" in words.lower() or "exact search disabled" in words.lower():
            return LimitExceeded(f"{shown} refused to {action} ({self.status}): {words}.")
        if "dimension" in words.lower() or "vector name" in words.lower():
            return CollectionMismatch(
                f"{shown} could not {action}, its collection has other vectors than before: {words}."
            )
        return StoreError(f"{shown} refused to {action} ({self.status}): {words}.")

    def _forbidden(self, action: str, shown: str, *, keyed: bool) -> StoreError:
        if self.status == 403 and "expired" not in self.words.lower():
            return StoreError(
                f"the API key may not {action} at {shown} ({self.words}): use a key with that right."
            )
        given = f"refused the API key ({self.words})" if keyed else "wants an API key"
        return StoreError(f"{shown} {given}: set QDRANT_API_KEY to one that is valid there.")

    def _unavailable(self, action: str, shown: str, seconds: float) -> StoreUnavailable:
        if self.status is not None:
            return StoreUnavailable(
                f"{shown} could not {action}: {seconds:.0f} seconds of trying were answered with "
                f"{self.status} ({self.words}). Run the command again later; it goes on where it stopped."
            )
        return StoreUnavailable(
            f"no answer from {shown} within {seconds:.0f} seconds of trying to {action} ({self.words}): "
            "is the server running, and is the URL right?"
        )


def _said(content: bytes) -> str:
    try:
        return str(json.loads(content)["status"]["error"])
    except (ValueError, KeyError, TypeError):
        return content.decode("utf-8", "replace")


def _asked_to_wait(words: str) -> float | None:
    found = re.search(r"[Rr]etry after (\d+) ?s", words)
    return float(found[1]) if found else None


def _is_silence(e: Exception) -> bool:
    import httpx

    text = str(e)
    unsupported = isinstance(e, httpx.UnsupportedProtocol | httpx.InvalidURL)
    unknown_host = "Name or service not known" in text or "nodename nor servname" in text
    refused = "CERTIFICATE_VERIFY_FAILED" in text
    return isinstance(e, httpx.TransportError) and not (unsupported or unknown_host or refused)


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
"""UNAVAILABLE, DEADLINE_EXCEEDED and CANCELLED are silence, not answers."""
