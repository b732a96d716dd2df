"""``hf://NAME`` against a hub of our own on the loopback interface: the loaders of `datasets` run unmodified."""

from __future__ import annotations

import http.server
import io
import json
import os
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from gmv_qdrant.errors import SourceError
from gmv_qdrant.images.sources import open_sources

COMMIT = "0" * 40


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (4, 4), shade).save(buffer, "PNG")
    return buffer.getvalue()


def parquet() -> bytes:
    features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    table = pa.table(
        {
            "image": [{"bytes": png(i), "path": None} for i in range(30)],
            "label": [i % 2 for i in range(30)],
            "owner": [f"o{i}" for i in range(30)],
        }
    ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=10)
    return buffer.getvalue()


REPOSITORIES: dict[str, dict[str, bytes]] = {
    "me/table": {"data/train-00000-of-00001.parquet": parquet()},
    "me/folder": {
        "train/a.png": png(1),
        "train/b.png": png(2),
        "train/metadata.csv": b"file_name,owner,label\na.png,Ann,cat\nb.png,Bob,dog\n",
    },
    "me/text": {"data/train.csv": b"x,y\n1,2\n"},
}


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's interface as reading a public data set takes."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(b"")

    def do_GET(self) -> None:
        self.answer(b"")

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def answer(self, body: bytes) -> None:
        url = urllib.parse.urlsplit(self.path)
        parts = urllib.parse.unquote(url.path).removeprefix("/api").strip("/").split("/")
        files = REPOSITORIES.get("/".join(parts[1:3]))
        what, rest = (parts[3] if len(parts) > 3 else ""), "/".join(parts[5:])
        if parts[0] != "datasets" or files is None:
            self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif what == "resolve":
            self.send_file(files.get(rest))
        elif what == "tree":
            self.send_json(listing(files, rest, "recursive=true" in url.query.lower()))
        elif what == "paths-info":
            wanted = (
                json.loads(body)["paths"]
                if body[:1] == b"{"
                else urllib.parse.parse_qs(body.decode())["paths"]
            )
            self.send_json([entry for entry in listing(files, "", True) if entry["path"] in wanted])
        else:
            siblings = [{"rfilename": name} for name in files]
            self.send_json(
                {
                    "id": "/".join(parts[1:3]),
                    "sha": COMMIT,
                    "private": False,
                    "tags": [],
                    "siblings": siblings,
                }
            )

    def send_file(self, data: bytes | None) -> None:
        if data is None:
            self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"ETag": '"1"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if span := self.headers.get("Range"):
            first, last = span.removeprefix("bytes=").split("-")
            part = data[int(first) : int(last or len(data)) + 1]
            headers["Content-Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
            self.send(206, part, headers)
        else:
            self.send(200, data, headers)

    def send_json(self, value: object) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def listing(files: dict[str, bytes], under: str, recursive: bool) -> list[dict[str, object]]:
    folders = {str(parent) for name in files for parent in Path(name).parents} - {"."}
    entries: list[dict[str, object]] = [
        *({"type": "directory", "path": name, "size": 0, "oid": "2" * 40} for name in sorted(folders)),
        *({"type": "file", "path": name, "size": len(data), "oid": "1" * 40} for name, data in files.items()),
    ]
    inside = [
        entry
        for entry in entries
        if Path(str(entry["path"])).is_relative_to(under) and entry["path"] != under
    ]
    return (
        inside
        if recursive
        else [entry for entry in inside if str(Path(str(entry["path"])).parent) == (under or ".")]
    )


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


READ = """
import json, sys
from gmv_qdrant.errors import GmvError
from gmv_qdrant.images.sources import open_sources, read_uri
results = {}
for name in sys.argv[1:]:
    try:
        records = list(open_sources([name], owner="default"))
        last = records[-1]
        assert read_uri(last.uri, sys.argv[1:]) == last.read()
        results[name] = [(r.uri, *r.owners, r.label, r.read()[-40:].hex()) for r in records]
    except GmvError as error:
        results[name] = f"{type(error).__name__}: {error}"
print(json.dumps(results))
"""


def test_hub(hub: str, tmp_path: Path) -> None:
    # The endpoint is read when the hub's client is imported, so this needs a process of its own.
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    names = ["me/table", "me/table:train", "me/folder", "me/table:nope", "me/text", "me/none"]
    done = subprocess.run(
        [sys.executable, "-c", READ, *(f"hf://{name}" for name in names)],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = {name.removeprefix("hf://"): value for name, value in json.loads(done.stdout).items()}
    expected = [
        [f"hf://me/table:train#{i}", f"o{i}", ["cat", "dog"][i % 2], png(i)[-40:].hex()] for i in range(30)
    ]
    assert results["me/table"] == results["me/table:train"] == expected
    assert results["me/folder"] == [
        ["hf://me/folder:train#0", "Ann", "cat", png(1)[-40:].hex()],
        ["hf://me/folder:train#1", "Bob", "dog", png(2)[-40:].hex()],
    ]
    assert "SourceError" in results["me/table:nope"]
    assert "nope" in results["me/table:nope"]
    assert "no image column (it has x, y)" in results["me/text"]
    assert "SourceError: The data set hf://me/none cannot be had" in results["me/none"]


def test_without_a_network_it_is_said_at_once() -> None:
    with pytest.raises(SourceError, match=r"hf://nobody/nothing:train cannot be had .* HF_HUB_OFFLINE"):
        open_sources(["hf://nobody/nothing:train"])
