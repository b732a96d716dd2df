"""Only what was given, or allowed, is ever read; and no credential is kept."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from gmv_qdrant.errors import ImageError, SourceError
from gmv_qdrant.images.allowed import check_allowed, without_credentials
from gmv_qdrant.images.descriptions import describe
from gmv_qdrant.images.sources import open_sources, read_uri

ALLOWED = ["/data", "s3://bucket/ours/", "https://host/pictures", "hf://me/set"]


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/ours/1.png",
        "S3://bucket/ours/1.png",
        "https://host/pictures/1.png?v=2",
        "hf://me/set:train#3",
    ],
)
def test_allowed(uri: str) -> None:
    check_allowed(uri, ALLOWED)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/theirs/1.png",
        "s3://bucket/ours/../theirs/1.png",
        "s3://bucket/ours/%2e%2e/theirs/1.png",
        "s3://bucket-of-others/ours/1.png",
        "https://host.evil/pictures/1.png",
        "https://host/pictures-of-others/1.png",
        "http://host/pictures/1.png",
        "ftp://host/pictures/1.png",
        "hf://me/settings:train#3",
        "zip://1.png::s3://bucket/ours/a.zip",
        "s3://bucket/ours/1.png::ftp://host",
        "https://me:hunter2@host/pictures/1.png",
        "https://host/pictures/1.png?token=hunter2",
        "memory://x",
    ],
)
def test_not_allowed(uri: str) -> None:
    with pytest.raises(ImageError) as caught:
        read_uri(uri, ALLOWED)
    assert caught.value.kind == "foreign"
    assert "hunter2" not in str(caught.value)


def test_paths(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "given-to-others").mkdir()
    for place in ("given/1.png", "given-to-others/1.png", "1.png"):
        (tmp_path / place).write_bytes(place.encode())
    os.symlink("../1.png", tmp_path / "given/out.png")
    os.symlink("1.png", tmp_path / "given/in.png")
    allowed = [str(tmp_path / "given")]
    for name in ("1.png", "in.png", "../given/1.png"):
        assert read_uri(f"{tmp_path}/given/{name}", allowed) == b"given/1.png"
    assert read_uri(f"file://{tmp_path}/given/1.png", allowed) == b"given/1.png"
    for name in ("given/out.png", "given/../1.png", "given-to-others/1.png", "1.png"):
        for uri in (f"{tmp_path}/{name}", f"file://{tmp_path}/{name}"):
            with pytest.raises(ImageError, match="isn't in a folder that was given"):
                read_uri(uri, allowed)
    for uri in ("/dev/zero", "/etc/passwd#0", f"{tmp_path}/given/none.png", "a\0b"):
        with pytest.raises(ImageError):
            read_uri(uri, ["/"])


class Server(http.server.BaseHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/ours/moved.png":
            self.send_response(302)
            self.send_header("Location", "/theirs/1.png")
        else:
            self.send_response(200)
            self.send_header("Content-Length", "3")
        self.end_headers()
        if self.path != "/ours/moved.png":
            self.wfile.write(b"png")


@pytest.fixture
def server() -> Iterator[str]:
    Server.asked.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


def test_a_server_leads_nowhere_else(server: str) -> None:
    allowed = [f"{server}/ours/"]
    assert read_uri(f"{server}/ours/1.png", allowed) == b"png"
    with pytest.raises(ImageError, match="isn't among the places"):
        read_uri(f"{server}/ours/moved.png", allowed)
    with pytest.raises(ImageError):
        read_uri(f"{server}/theirs/1.png", allowed)
    assert Server.asked == ["/ours/1.png", "/ours/moved.png"]


def test_credentials_are_never_kept() -> None:
    text = "https://me:hunter2@host/x.png?X-Amz-Signature=hunter2&w=3&sig=hunter2#a and s3://key:hunter2@b/c"
    kept = describe([("url", text), ("nested", {"list": [text]})])
    assert "hunter2" not in str(kept.attributes)
    assert "w=3" in str(kept.attributes["url"])
    assert without_credentials("hf://datasets/me/set@main/1.png") == "hf://datasets/me/set@main/1.png"
    assert without_credentials("mail me@host") == "mail me@host"
    with pytest.raises(SourceError, match="credentials") as caught:
        open_sources(["hf://me:hunter2@host/x"])
    assert "hunter2" not in str(caught.value)
