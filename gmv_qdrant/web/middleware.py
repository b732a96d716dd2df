"""Who may ask the local pages: this computer, or whoever holds the token; never another site's page.

A pure ASGI layer around the application: Host header (DNS rebinding), Sec-Fetch-Site (other sites' pages), token (when
bound wider than loopback), size of what is sent, and headers that keep a browser from running any but our one script.
"""

from __future__ import annotations

import ipaddress
import secrets
import socket
from collections.abc import Sequence
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "gmv_token"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "private, no-store",
}


def is_loopback(host: str) -> bool:
    """Whether only this computer can reach a server that listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _TooLarge(Exception):
    pass


class Guard:
    """host: where the server listens. most_bytes: of one request's body.

    root_path: what stands before every path where a proxy hands the pages on; whether the proxy strips it or not.
    allowed_hosts: names that the proxy goes by; others than this computer can then ask, so a token is needed.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        most_bytes: int,
        *,
        root_path: str = "",
        allowed_hosts: Sequence[str] = (),
    ) -> None:
        self.app = app
        self.most_bytes = most_bytes
        self.root_path = "/" + root_path.strip("/") if root_path.strip("/") else ""
        self.token = None if is_loopback(host) and not allowed_hosts else secrets.token_urlsafe(24)
        self.names = {"localhost", "127.0.0.1", "::1", host.lower(), *map(str.lower, allowed_hosts)}
        if self.token:
            self.names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope = self._below_root(scope)
        headers = Headers(scope=scope)
        guarded = _with_headers(send)
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, guarded)
            return
        await self._bounded(scope, receive, guarded)

    def _below_root(self, scope: Scope) -> Scope:
        path = scope["path"]
        if self.root_path and path != self.root_path and not path.startswith(self.root_path + "/"):
            path = self.root_path + path
        return {**scope, "root_path": self.root_path, "path": path}

    def _refusal(self, scope: Scope, headers: Headers) -> PlainTextResponse | RedirectResponse | None:
        if not self._our_name(headers.get("host", "")):
            return PlainTextResponse("This server doesn't go by that name.", 421)
        if headers.get("sec-fetch-site") in ("cross-site", "same-site") and (
            scope["method"] != "GET" or scope["path"] not in (self.root_path, self.root_path + "/")
        ):
            return PlainTextResponse("Another site's page can't ask this one.", 403)
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return PlainTextResponse("Only GET and POST are answered.", 405)
        return None if self.token is None else self._token_refusal(scope, headers, self.token)

    def _token_refusal(
        self, scope: Scope, headers: Headers, token: str
    ) -> PlainTextResponse | RedirectResponse | None:
        """None for who has the token's cookie; who brings the token in the address gets the cookie."""
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = dict(query).get("token")
        if given is not None and self._is_token(given):
            rest = urlencode([(name, value) for name, value in query if name != "token"])
            path = "/" + scope["path"].lstrip("/")  # "//elsewhere" would lead to another site
            response = RedirectResponse(path + ("?" + rest if rest else ""), 303)
            response.set_cookie(COOKIE, token, httponly=True, samesite="strict", path=self.root_path + "/")
            return response
        if self._is_token(cookie_parser(headers.get("cookie", "")).get(COOKIE, "")):
            return None
        return PlainTextResponse(
            "Open the address that the server printed when it started: it has the token.", 401
        )

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), (self.token or "").encode())

    def _our_name(self, host: str) -> bool:
        """An address can't be rebound; a name must be ours."""
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if name.lower() in self.names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.token is not None

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application, with a body that ends in a refusal when it is too large."""
        taken, started = 0, False

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.most_bytes:
                raise _TooLarge
            return message

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            declared = Headers(scope=scope).get("content-length", "0")
            if declared.isdecimal() and int(declared) > self.most_bytes:
                raise _TooLarge
            await self.app(scope, counted, watched)
        except _TooLarge:
            if not started:
                text = f"That is larger than {self.most_bytes >> 20} MB."
                await PlainTextResponse(text, 413, {"Connection": "close"})(scope, receive, send)


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sending
