"""A real server behind the stand-in's face: the same tests count requests, queue faults and ask for keys on either.

With ``QDRANT_URL`` set, `Server` passes requests on to that server, whose other collections it neither shows nor
touches: each test's collections carry a prefix of their own, and are deleted in the end.
"""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

import httpx
from served import Refused
from store.loopback import Loopback, is_write

URL, KEY = os.environ.get("QDRANT_URL"), os.environ.get("QDRANT_API_KEY")


class Relay(Loopback):
    """`Loopback`, but for what it answers: that is the server's at ``URL``."""

    def __init__(self, path: Path, url: str = URL or "", key: str | None = KEY) -> None:
        self._mark = f"gmv-test-{uuid.uuid4().hex[:12]}-"
        self._client = httpx.Client(
            base_url=url.rstrip("/"), headers={"api-key": key} if key else {}, timeout=60
        )
        super().__init__(path, version=self._client.get("/").json()["version"])

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        for name in self.names():
            self.handle("DELETE", f"/collections/{name}", b"")
        self._client.close()

    def names(self) -> set[str]:
        return {one["name"] for one in self.handle("GET", "/collections", b"")["collections"]}

    def restart(self, seconds: float) -> None:
        """The way to the server is gone for a while; the server itself isn't ours to restart."""
        super().restart(seconds)

    def check_timeout(self, path: str, query: str) -> None:
        """The server's own business."""

    def handle(self, method: str, path: str, body: bytes) -> Any:
        parts = path.strip("/").split("/")
        if parts[0] == "collections" and len(parts) > 1 and parts[1] != "aliases":
            parts[1] = self._mark + parts[1]
        if parts == ["collections", "aliases"]:
            body = self._marked(body)
        answer = self._client.request(
            method,
            "/" + "/".join(parts),
            params={"wait": "true"} if is_write(method, path) and "points" in path else {},
            content=body,
            headers={"content-type": "application/json"},
        )
        text = answer.text.replace(self._mark, "")
        try:
            found = json.loads(text)
        except ValueError:
            found = text
        if answer.status_code >= 400:
            said = found["status"]["error"] if isinstance(found, dict) else text
            wait = {name: answer.headers[name] for name in ("Retry-After",) if name in answer.headers}
            raise Refused(answer.status_code, said, wait)
        if parts in (["collections"], ["aliases"]):
            return self._mine(answer.json()["result"])
        return found["result"] if isinstance(found, dict) and "result" in found else found

    def _mine(self, listed: dict[str, Any]) -> dict[str, Any]:
        """What of a list of collections or aliases this test has made."""
        (kind,) = listed
        name = "name" if kind == "collections" else "alias_name"
        mine = [one for one in listed[kind] if one[name].startswith(self._mark)]
        return {kind: [{n: v.removeprefix(self._mark) for n, v in one.items()} for one in mine]}

    def _marked(self, body: bytes) -> bytes:
        actions = json.loads(body)["actions"]
        for action in actions:
            for names in action.values():
                names.update({name: self._mark + value for name, value in names.items()})
        return json.dumps({"actions": actions}).encode()


Server: type[Loopback] = Relay if URL else Loopback
"""What the tests of adoption and of workspaces talk to."""
