"""The socket under the pages: bounded in connections and in patience, so that half-open ones stop nobody."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
from collections.abc import Callable
from typing import Any, ClassVar

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from gmv_qdrant.errors import SettingsError
from gmv_qdrant.web.middleware import Guard

REQUEST_SECONDS = 20.0
"""A connection that hasn't asked for anything within this time is closed."""
WAITING = 128
"""Connections that may wait without having asked: one more, and the one that waited longest is closed."""


class _PatientProtocol(H11Protocol):
    """HTTP of uvicorn, which never ends a connection that sends nothing."""

    waiting: ClassVar[dict[_PatientProtocol, asyncio.TimerHandle]] = {}

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.waiting) >= WAITING:
            next(iter(self.waiting)).close_unasked()
        self.waiting[self] = self.loop.call_later(REQUEST_SECONDS, self.close_unasked)

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is not None:  # it has asked
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def close_unasked(self) -> None:
        self._stop_waiting()
        self.transport.abort()

    def _stop_waiting(self) -> None:
        if timer := self.waiting.pop(self, None):
            timer.cancel()


class Served:
    """Pages that are being served in the background, in a notebook for instance. ``stop()`` ends it."""

    def __init__(self, address: str, server: uvicorn.Server, listening: socket.socket) -> None:
        self.address = address
        self._server = server
        self._thread = threading.Thread(target=self._run, args=(listening,), daemon=True)
        self._thread.start()

    def _run(self, listening: socket.socket) -> None:
        with listening:
            self._server.run(sockets=[listening])

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)

    def __repr__(self) -> str:
        return f"pages at {self.address}"

    def _repr_html_(self) -> str:
        return f'pages at <a href="{self.address}">{self.address}</a>'


def serve(app: Guard, host: str, port: int, *, tell: Callable[[str], None]) -> Served | None:
    """Serve until interrupted; where an event loop runs already (a notebook), in the background.

    ``tell`` gets the address to open, with the token when there is one. Raises `SettingsError` when the address
    can't be listened on.
    """
    listening = _listen(host, port)
    address = f"http://{_shown(host)}:{listening.getsockname()[1]}{app.root_path}/"
    address += f"?token={app.token}" if app.token else ""
    config = uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        server_header=False,
        lifespan="off",
        http=_PatientProtocol,
        ws="none",
        timeout_graceful_shutdown=2,
    )
    server = uvicorn.Server(config)
    tell(address)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        with listening, contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listening])
        return None
    return Served(address, server, listening)


def _shown(host: str) -> str:
    """The host as people write it in an address."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.is_unspecified:
        return socket.gethostname()
    return f"[{host}]" if address.version == 6 else host


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(128)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        raise SettingsError(
            f"{host}:{port} can't be listened on: {error.strerror}; choose another with --port (0 picks a free one)"
        ) from error
    return listening
