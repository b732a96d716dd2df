"""The socket under the local pages."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn

from gmv_qdrant.errors import SettingsError
from gmv_qdrant.ledger.database import Ledger
from gmv_qdrant.settings import Settings
from gmv_qdrant.web.app import application


def serve(
    root: Path,
    ledger: Ledger,
    settings: Settings,
    host: str,
    port: int,
    *,
    tell: Callable[[str], None],
) -> None:
    """Serve until interrupted. ``tell`` gets the address to open, with the token when there is one.

    Raises `SettingsError` when the address can't be listened on.
    """
    app = application(root, ledger, settings, host)
    listening = _listen(host, port)
    port = listening.getsockname()[1]
    shown = host
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        shown = (
            socket.gethostname() if address.is_unspecified else f"[{host}]" if address.version == 6 else host
        )
    tell(f"http://{shown}:{port}/" + (f"?token={app.token}" if app.token else ""))
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, lifespan="off")
    with listening:
        uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(64)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        raise SettingsError(
            f"{host}:{port} can't be listened on: {error.strerror}; choose another with --port (0 picks a free one)"
        ) from error
    return listening
