"""What models need, and fetching it: over real sockets, from a server on this machine that can fail on request."""

from __future__ import annotations

import hashlib
import io
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from models_offline import seed_hub

from gmv_qdrant.errors import ModelError
from gmv_qdrant.models.catalogue import fetch_model, list_models, model_status
from gmv_qdrant.models.encoders import Runtime
from gmv_qdrant.models.weights import HubFile, UrlArchive, UrlFile, require

CONTENT = bytes(range(256)) * 9000
COMMIT = "a" * 40


def archive(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as target:
        for name, content in files.items():
            target.writestr(name.replace("__", "/"), content)
    return buffer.getvalue()


FILES = {
    "/weights.pth": CONTENT,
    "/model.zip": archive(backbone=b"1", lora__adapter_config=b"{}"),
    "/repo.zip": archive(**{"owner-repo-1234__hubconf": b"code"}),
    "/ORG/NAME/resolve/main/model.safetensors": CONTENT,
}


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD as a hub and as a plain server; ``/torn/...`` breaks off half way."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        torn = self.path.startswith("/torn/")
        content = FILES.get(self.path.removeprefix("/torn"))
        found = content is not None
        content = content or b"nothing"
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if not found:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if body:
            self.wfile.write(content[: len(content) // 2] if torn else content)
        if torn:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()
        thread.join()


@pytest.fixture
def nobody() -> str:
    """An address where nothing listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    return Runtime(device="cpu")


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_file_is_fetched_verified_and_reported(server: str, tmp_path: Path) -> None:
    file = UrlFile(
        f"{server}/weights.pth", tmp_path, "kept.pth", sha256=hashlib.sha256(CONTENT).hexdigest()[:8]
    )
    assert file.find() is None
    seen: list[tuple[str, int, int | None]] = []
    path = file.fetch(lambda *report: seen.append(report))
    assert path == file.find()
    assert path.read_bytes() == CONTENT
    assert seen[-1] == ("kept.pth", len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert leftovers(tmp_path) == ["kept.pth"]


def test_nothing_is_left_of_a_failed_download(server: str, nobody: str, tmp_path: Path) -> None:
    for url, sha256, sentence in (
        (f"{server}/weights.pth", "0" * 64, r"has SHA-256 \w+, not 0000"),
        (f"{server}/torn/weights.pth", None, "broke off after|could not be saved"),
        (f"{server}/absent.pth", None, "the server answered 404"),
        (f"{nobody}/weights.pth", None, "cannot be reached"),
    ):
        with pytest.raises(ModelError, match=sentence):
            UrlFile(url, tmp_path, "kept.pth", sha256=sha256).fetch()
    assert leftovers(tmp_path) == []


def test_a_failed_download_keeps_what_was_there(server: str, tmp_path: Path) -> None:
    (tmp_path / "kept.pth").write_bytes(b"before")
    with pytest.raises(ModelError):
        UrlFile(f"{server}/weights.pth", tmp_path, "kept.pth", sha256="0" * 64).fetch()
    assert (tmp_path / "kept.pth").read_bytes() == b"before"


def test_an_archive_is_unpacked_beside_what_is_there(server: str, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"stays")
    members = ("backbone", "lora/adapter_config")
    assert UrlArchive(f"{server}/model.zip", tmp_path, members).fetch() == tmp_path
    top = UrlArchive(f"{server}/repo.zip", tmp_path, ("owner_repo_main/hubconf",), top="owner_repo_main")
    assert top.find() is None
    top.fetch()
    top.fetch()  # again, over itself
    assert leftovers(tmp_path) == ["adapter_config", "backbone", "hubconf", "other"]
    with pytest.raises(ModelError, match="is not a zip archive"):
        UrlArchive(f"{server}/weights.pth", tmp_path, ("x",)).fetch()
    with pytest.raises(ModelError, match="holds no lora2: is it another release"):
        UrlArchive(f"{server}/model.zip", tmp_path, ("lora2",)).fetch()


def test_an_archive_cannot_write_outside_its_folder(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FILES, "/evil.zip", archive(**{"..__..__evil": b"!"}))
    (tmp_path / "cache").mkdir()
    with pytest.raises(ModelError, match="holds no weights"):
        UrlArchive(f"{server}/evil.zip", tmp_path / "cache", ("weights",)).fetch()
    assert not list(tmp_path.glob("evil"))
    assert not list(tmp_path.parent.glob("evil"))


def test_the_real_hub_client_fetches_a_file(
    server: str, tmp_path: Path, online: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", server)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server + "/{repo_id}/resolve/{revision}/{filename}"
    )
    file = HubFile("ORG/NAME", ("absent.safetensors", "model.safetensors"), tmp_path)
    assert file.find() is None
    seen: list[tuple[str, int, int | None]] = []
    path = require("x", [file], online, lambda *report: seen.append(report))[0]
    assert path.read_bytes() == CONTENT
    assert file.find() == path
    assert seen[-1][1] == len(CONTENT)


def test_an_unreachable_hub_is_said_at_once(
    nobody: str, tmp_path: Path, online: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub's own client would retry for most of a minute."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", nobody)
    started = time.monotonic()
    with pytest.raises(
        ModelError, match=r"model\.safetensors of .*ORG/NAME.*cannot be reached.*models fetch x"
    ):
        require("x", [HubFile("ORG/NAME", ("model.safetensors",), tmp_path)], online)
    assert time.monotonic() - started < 20  # not a timing: the difference between one attempt and many


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", None])
def test_offline_never_opens_a_socket(
    variable: str | None, online: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "create_connection", refuse)
    if variable:
        monkeypatch.setenv(variable, "1")
    runtime = Runtime(offline=variable is None, cache_dir=tmp_path)
    for name in ("clip", "dreamsim", "lpips", "maniqa", "timm:resnet18", "torchvision:alexnet"):
        assert model_status(name, runtime).ready is False
        with pytest.raises(ModelError, match="this run is offline"):
            fetch_model(name, runtime=runtime)


def test_what_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    runtime = Runtime(offline=True, cache_dir=tmp_path)
    seed_hub(
        tmp_path / "huggingface",
        "timm/vit_base_patch32_clip_224.openai",
        "open_clip_model.safetensors",
        lambda path: path.write_bytes(b""),
    )
    status = fetch_model("clip", runtime=runtime)
    assert status.name == "clip:ViT-B-32-quickgelu/openai"
    assert status.ready
    assert status.files[0].path is not None
    document = status.as_dict()
    assert document["ready"] is True
    assert document["files"][0]["where"] == str(tmp_path / "huggingface")


def test_fetching_puts_files_where_loading_looks(
    server: str, tmp_path: Path, online: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gmv_qdrant.models.quality import iqa

    monkeypatch.setattr(iqa, "_PUBLISHED", server)
    monkeypatch.setitem(iqa.MANIQA_FILES, "maniqa", "weights.pth")
    runtime = Runtime(cache_dir=tmp_path)
    assert model_status("maniqa", runtime).ready is False
    assert fetch_model("maniqa", runtime=runtime).ready is True
    assert (tmp_path / "torch/pyiqa/weights.pth").read_bytes() == CONTENT


def test_the_list_names_every_default_and_every_kind() -> None:
    listed = {info.name: info for info in list_models()}
    assert {"clip:ViT-B-32-quickgelu/openai", "dreamsim", "maniqa", "none", "l2@64", "pixels:32"} <= set(
        listed
    )
    assert {info.kind for info in listed.values()} == {"encoder", "distance", "quality"}
    for name in ("pixels:32", "l2@64", "l2-norm@64", "none", "piqe", "entropy"):
        assert model_status(name).ready is True
    assert model_status("musiq").ready is None
    with pytest.raises(ModelError, match="unknown model 'nothing'"):
        model_status("nothing")


def test_default_folders_are_those_of_the_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """We compute torch's folder ourselves, because importing torch takes seconds."""
    import torch

    from gmv_qdrant.models.weights import own_cache, torch_cache

    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCH_HOME", raising=False)
    assert str(torch_cache(Runtime())) == torch.hub.get_dir()
    assert own_cache(Runtime()) == tmp_path / "gmv_qdrant"
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "elsewhere"))
    assert str(torch_cache(Runtime())) == torch.hub.get_dir()
