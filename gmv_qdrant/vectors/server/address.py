"""Where a server answers: REST without a port in the URL, behind proxies, and gRPC on whatever port it has."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httpx

from gmv_qdrant.errors import StoreError, StoreUnavailable

REST_PORT, GRPC_PORT = 6333, 6334
SCHEME_PORTS = {"http": 80, "https": 443}
HEAD_START = 1.0
"""Seconds that Qdrant's own port is waited for once the scheme's port has answered."""


def parse(url: str) -> SplitResult:
    """The parts of a server's URL; raises `StoreError` for what isn't one, or holds secrets."""
    full = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(full)
        _ = parts.port
    except ValueError as error:
        raise StoreError(f"{shown(url)!r} is not the URL of a Qdrant server ({error}): {_LIKE}") from None
    if "@" in parts.netloc:
        raise StoreError(
            f"the URL of {shown(url)} carries a user or a password, which Qdrant has no use for: "
            "give the API key as QDRANT_API_KEY."
        )
    if parts.scheme not in SCHEME_PORTS or not parts.hostname:
        raise StoreError(f"{shown(url)!r} is not the URL of a Qdrant server: {_LIKE}")
    return parts


_LIKE = "give one like http://localhost:6333."


def shown(url: str) -> str:
    """The URL as it may be shown: without user, password and query."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", f":{parts.port}" if parts.port else ""
    except ValueError:
        return "the given URL"
    return f"{parts.scheme}://{host}{port}{parts.path}" if host else url.split("@")[-1]


def find_rest(url: str, collection: str, key: str | None, patience: float, timeout: float) -> str:
    """The address with a port: the one that is given, else where a Qdrant server answers.

    Qdrant's own port is tried first, and then, for ingresses and proxies, the scheme's. Raises `StoreUnavailable`
    that names both.
    """
    parts = parse(url)
    if parts.port:
        return url
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    tried = [
        f"{parts.scheme}://{host}:{port}{parts.path}" for port in (REST_PORT, SCHEME_PORTS[parts.scheme])
    ]
    end = time.monotonic() + patience
    pool = ThreadPoolExecutor(2)
    try:
        while True:
            own, other = (pool.submit(_answers, one, collection, key, timeout) for one in tried)
            if other.result() is None:
                try:
                    own.result(HEAD_START)
                except TimeoutError:
                    return tried[1]
            said = own.result()
            if said is None:
                return tried[0]
            if other.result() is None:
                return tried[1]
            if time.monotonic() + timeout > end:
                raise StoreUnavailable(
                    f"no answer from {tried[0]} ({said}), nor from {tried[1]} ({other.result()}): "
                    "is the server running, and is the URL right?"
                )
            time.sleep(0.2)
    finally:
        pool.shutdown(wait=False)


def _answers(url: str, collection: str, key: str | None, timeout: float) -> str | None:
    """None where a Qdrant server answers, else what is there instead."""
    headers = {"api-key": key} if key else {}
    try:
        answer = httpx.get(
            f"{url.rstrip('/')}/collections/{collection}/exists", headers=headers, timeout=timeout
        )
        found: Any = answer.json() if answer.status_code not in (401, 403) else {"status": "keyed"}
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return str(error) or type(error).__name__
    except ValueError:
        return "not a Qdrant server"
    return None if isinstance(found, dict) and "status" in found else "not a Qdrant server"


def find_grpc(url: str, port: int | None, key: str | None, timeout: float) -> int:
    """The port on which gRPC answers: ``port``, or Qdrant's usual one, the one after REST's, or REST's own."""
    parts = parse(url)
    rest = parts.port or REST_PORT
    ports = [port] if port else list(dict.fromkeys((rest + 1, GRPC_PORT, rest)))
    for one in ports:
        if _speaks_grpc(f"{parts.hostname}:{one}", parts.scheme == "https", key, timeout):
            return one
    raise StoreUnavailable(
        f"{shown(url)} doesn't answer to gRPC on {' or '.join(map(str, ports))}: name its port with "
        "GMV_QDRANT_GRPC_PORT (or qdrant_grpc_port in gmv.toml), or leave qdrant_grpc out"
    )


def _speaks_grpc(target: str, secure: bool, key: str | None, timeout: float) -> bool:
    import grpc  # type: ignore[import-untyped]
    from qdrant_client import grpc as g

    channel = (
        grpc.secure_channel(target, grpc.ssl_channel_credentials())
        if secure
        else grpc.insecure_channel(target)
    )
    try:
        metadata = [("api-key", key)] if key else []
        stub = g.QdrantStub(channel)  # type: ignore[no-untyped-call]
        stub.HealthCheck(g.HealthCheckRequest(), timeout=timeout, metadata=metadata)
    except grpc.RpcError as error:
        return error.code().name in ("UNAUTHENTICATED", "PERMISSION_DENIED")
    finally:
        channel.close()
    return True
