"""What models need, and fetching it: over real sockets, from a server on this machine that can fail on request."""

from __future__ import annotations

import hashlib
import io
import json
import re
import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from models_offline import save_alexnet, seed_hub

from gmv_qdrant.cli.main import cli
from gmv_qdrant.errors import ModelError
from gmv_qdrant.models import quality, weights
from gmv_qdrant.models.catalogue import fetch_models, list_models, model_status, preflight
from gmv_qdrant.models.devices import Runtime
from gmv_qdrant.models.verified import Models
from gmv_qdrant.models.weights import HubFile, UrlArchive, UrlFile, require
from gmv_qdrant.settings import PRESETS, Settings

CONTENT = bytes(range(256)) * 9000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
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
    f"/ORG/NAME/resolve/{COMMIT}/model.safetensors": CONTENT,
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
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runtime:
    from huggingface_hub import constants

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    return Runtime(device="cpu", cache_dir=tmp_path)


@pytest.fixture
def pins(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """A table of pins for this test alone."""
    table: dict[str, dict[str, Any]] = {}
    monkeypatch.setattr(weights, "_table", lambda: table)
    return table


@pytest.fixture
def hub(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", server)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server + "/{repo_id}/resolve/{revision}/{filename}"
    )


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# --- the table ----------------------------------------------------------------------------------------------


def test_what_is_pinned_is_pinned_whole() -> None:
    """A full hash, size and licence; or no hash at all, and then ``--trust`` is needed."""
    table = weights._table()
    for key, pin in table.items():
        assert key.startswith(("https://", "hub:"))
        assert pin["size"] > 0
        assert pin["licence"]
        if "sha256" in pin:
            assert re.fullmatch("[0-9a-f]{64}", pin["sha256"])
        if key.startswith("hub:") or "codeload" in key:
            assert re.fullmatch("[0-9a-f]{40}", pin["revision"])
    assert {key for key, pin in table.items() if "sha256" not in pin} == {
        "https://github.com/ssundaram21/dreamsim/releases/download/v0.2.0-checkpoints/dreamsim_ensemble_checkpoint.zip",
        "https://codeload.github.com/facebookresearch/dinov2/zip/7764ea0f912e53c92e82eb78a2a1631e92725fc8",
    }


@pytest.mark.parametrize("name", [*PRESETS["paper"].values(), "lpips", "lpips:vgg", "lpips:squeeze"])
def test_the_names_of_presets_and_docs_are_in_the_table(name: str) -> None:
    for file in model_status(name, Runtime()).files:
        assert file.origin in weights._table()


def test_torchvision_s_hashes_are_the_first_digits_that_it_names() -> None:
    [resnet] = model_status("torchvision:resnet50", Runtime()).files
    assert resnet.origin.endswith(f"-{resnet.pin.sha256}.pth")
    [alexnet] = model_status("torchvision:alexnet", Runtime()).files
    assert len(alexnet.pin.sha256 or "") == 64


# --- downloading --------------------------------------------------------------------------------------------


def test_a_file_is_fetched_verified_and_reported(server: str, tmp_path: Path, pins: Any) -> None:
    pins[f"{server}/weights.pth"] = {"sha256": SHA256}
    file = UrlFile(f"{server}/weights.pth", tmp_path, "kept.pth")
    assert file.find() is None
    seen: list[tuple[str, int, int | None]] = []
    path = file.fetch(lambda *report: seen.append(report))
    assert path == file.find()
    assert path.read_bytes() == CONTENT
    assert seen[-1] == ("kept.pth", len(CONTENT), len(CONTENT))
    assert leftovers(tmp_path) == ["kept.pth"]


def test_nothing_is_left_of_a_failed_download(server: str, nobody: str, tmp_path: Path, pins: Any) -> None:
    for url, sha256, sentence in (
        (f"{server}/weights.pth", "0" * 64, r"has the SHA-256 \w+, not 0000"),
        (f"{server}/weights.pth", "0" * 8, r"has the SHA-256 \w+, not 00000000"),
        (f"{server}/torn/weights.pth", SHA256, "broke off"),
        (f"{server}/absent.pth", SHA256, "the server answered 404"),
        (f"{nobody}/weights.pth", SHA256, "cannot be reached"),
    ):
        pins[url] = {"sha256": sha256}
        with pytest.raises(ModelError, match=sentence):
            UrlFile(url, tmp_path, "kept.pth").fetch()
        assert leftovers(tmp_path) == []


def test_an_archive_is_unpacked_beside_what_is_there(server: str, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"stays")
    members = ("backbone", "lora/adapter_config")
    assert UrlArchive(f"{server}/model.zip", tmp_path, members=members).fetch() == tmp_path
    code = UrlArchive(f"{server}/repo.zip", tmp_path, members=("owner-repo-1234/hubconf",))
    assert code.find() is None
    code.fetch()
    code.fetch()  # again, over itself
    assert leftovers(tmp_path) == ["adapter_config", "backbone", "hubconf", "other"]
    with pytest.raises(ModelError, match="is not a zip archive"):
        UrlArchive(f"{server}/weights.pth", tmp_path, members=("x",)).fetch()
    with pytest.raises(ModelError, match="holds no lora2: is it another release"):
        UrlArchive(f"{server}/model.zip", tmp_path, members=("lora2",)).fetch()
    assert leftovers(tmp_path) == ["adapter_config", "backbone", "hubconf", "other"]


def test_an_archive_cannot_write_outside_its_folder(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FILES, "/evil.zip", archive(**{"..__..__evil": b"!"}))
    (tmp_path / "cache").mkdir()
    with pytest.raises(ModelError, match="holds no weights"):
        UrlArchive(f"{server}/evil.zip", tmp_path / "cache", members=("weights",)).fetch()
    assert not list(tmp_path.glob("evil"))
    assert not list(tmp_path.parent.glob("evil"))


def test_the_hub_is_asked_for_the_pinned_revision_and_verified(
    hub: None, tmp_path: Path, online: Runtime, pins: Any
) -> None:
    pin = pins["hub:ORG/NAME/model.safetensors"] = {"sha256": "0" * 64, "revision": COMMIT}
    file = HubFile.of("ORG/NAME", ["model.safetensors"], online)
    with pytest.raises(ModelError, match=r"model\.safetensors has the SHA-256 \w+, not 0000"):
        require("x", [file], online)
    assert file.find() is None
    pin["sha256"] = SHA256
    [path] = require("x", [file], online)
    assert path.read_bytes() == CONTENT
    assert COMMIT in str(path)
    assert file.find() == path


def test_the_hub_client_tries_other_names(hub: None, online: Runtime) -> None:
    file = HubFile.of("ORG/NAME", ["absent.safetensors", "model.safetensors"], online)
    assert file.find() is None
    seen: list[tuple[str, int, int | None]] = []
    path = file.fetch(lambda *report: seen.append(report))
    assert path.read_bytes() == CONTENT
    assert file.find() == path
    assert seen[-1][1] == len(CONTENT)


def test_an_unreachable_hub_is_said_at_once(
    nobody: str, online: Runtime, monkeypatch: pytest.MonkeyPatch, pins: Any
) -> None:
    """The hub's own client would retry for most of a minute."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", nobody)
    pins["hub:ORG/NAME/model.safetensors"] = {"sha256": SHA256, "size": 605_000_000, "licence": "MIT"}
    started = time.monotonic()
    with pytest.raises(
        ModelError, match=r"missing of x \(605 MB, MIT\); .*cannot be reached.*models fetch x"
    ):
        require("x", [HubFile.of("ORG/NAME", ["model.safetensors"], online)], online)
    assert time.monotonic() - started < 20  # not a timing: the difference between one attempt and many


# --- trust --------------------------------------------------------------------------------------------------


def test_what_nobody_publishes_a_hash_of_needs_trust(server: str, tmp_path: Path, online: Runtime) -> None:
    file = UrlFile(f"{server}/weights.pth", tmp_path / "there")
    with pytest.raises(ModelError, match=r"nobody publishes a SHA-256 of .*weights\.pth.*--trust"):
        require("x", [file], online)
    assert leftovers(tmp_path) == []
    assert require("x", [file], Runtime(trust=True)) == [tmp_path / "there" / "weights.pth"]
    assert require("x", [file], online)  # it lies here now, and the fingerprint holds what it is


def test_nothing_is_downloaded_before_all_may_be(
    server: str, tmp_path: Path, online: Runtime, pins: Any
) -> None:
    pins[f"{server}/weights.pth"] = {"sha256": SHA256}
    known, unknown = UrlFile(f"{server}/weights.pth", tmp_path), UrlFile(f"{server}/model.zip", tmp_path)
    with pytest.raises(ModelError, match=r"missing of a .*, b .*nobody publishes a SHA-256 of .*model\.zip"):
        weights.require_all({"a": [known], "b": [unknown]}, online)
    assert leftovers(tmp_path) == []


def test_code_of_a_repository_needs_trust_even_when_it_is_here(tmp_path: Path) -> None:
    from gmv_qdrant.models.encoders import dreamsim
    from gmv_qdrant.models.registry import load_distance

    runtime = Runtime(device="cpu", cache_dir=tmp_path, offline=True)
    for file in dreamsim.files("dinov2_vitb14", runtime):
        for member in getattr(file, "members", ()) or (file.path.name,):
            (file.where / member).parent.mkdir(parents=True, exist_ok=True)
            (file.where / member).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelError, match=r"dreamsim:dinov2_vitb14 runs the code of .*allow it with --trust"):
        load_distance("dreamsim:dinov2_vitb14", runtime=runtime)
    assert not (tmp_path / "ran").exists()


# --- all models of a workspace at once ----------------------------------------------------------------------

ALL_THREE = (
    r"clip:ViT-B-32-quickgelu/openai \(605 MB, MIT\), dreamsim \(1,604 MB, MIT, Apache-2\.0\), "
    r"maniqa \(543 MB, Apache-2\.0; pyiqa, which runs it, is for non-commercial use\)"
)


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
            fetch_models([name], runtime)


def test_offline_one_sentence_names_all_that_is_missing(tmp_path: Path) -> None:
    settings = Settings(cache_dir=tmp_path, offline=True)
    with pytest.raises(ModelError, match=f"missing of {ALL_THREE}; this run is offline; .*--preset light"):
        Models.verified(settings, None)


def test_before_the_first_run_all_that_is_missing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert preflight(Settings(**PRESETS["light"])) is None
    sentence = preflight(Settings(cache_dir=tmp_path / "not" / "yet"))
    assert sentence
    assert re.search(f"{ALL_THREE}; this machine is offline; .*fetch --trust.*--preset light", sentence)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert "the first run downloads them" in (preflight(Settings(cache_dir=tmp_path)) or "")
    save_alexnet(tmp_path / "torch/checkpoints/alexnet-owt-7be5be79.pth")
    own = Settings(cache_dir=tmp_path, encoder_weights=__file__, distance="lpips", quality="piqe")
    assert preflight(own) is None


def test_too_little_room_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)._replace(free=10_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    sentence = preflight(Settings(cache_dir=tmp_path))
    assert sentence
    assert "only 10 MB are free in" in sentence


def test_all_unknown_names_are_said_at_once() -> None:
    with pytest.raises(ModelError) as caught:
        preflight(Settings(encoder="clip:ViT-B-32/openai", distance="l3@64", quality="maniqua"))
    for near in ("use clip:ViT-B-32-quickgelu/openai", "unknown distance 'l3@64'", "did you mean 'maniqa'"):
        assert near in str(caught.value)


# --- the catalogue and its commands -------------------------------------------------------------------------


def test_the_status_of_a_hub_file_is_its_place(tmp_path: Path) -> None:
    runtime = Runtime(cache_dir=tmp_path, offline=True)
    name = "clip:ViT-B-32-quickgelu/openai"
    assert model_status(name, runtime).ready is False
    repo = "timm/vit_base_patch32_clip_224.openai"
    seed_hub(
        tmp_path / "huggingface", repo, "open_clip_model.safetensors", lambda path: path.write_bytes(b"x")
    )
    status = model_status(name, runtime)
    assert (status.ready, status.kind) == (True, "encoder")
    assert fetch_models([name], runtime) == [status]
    [file] = json.loads(json.dumps(status.as_dict()))["files"]
    assert file["path"].endswith("open_clip_model.safetensors")
    assert (file["size"], file["licence"]) == (605_143_284, "MIT")


def test_fetching_puts_everything_in_place(
    server: str, online: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pins: Any
) -> None:
    monkeypatch.setitem(quality.MANIQA_FILES, "maniqa", f"{server}/weights.pth")
    pins[f"{server}/weights.pth"] = {"sha256": SHA256}
    assert model_status("maniqa", online).ready is False
    assert fetch_models(["maniqa"], online)[0].ready is True
    assert (tmp_path / "torch/pyiqa/weights.pth").read_bytes() == CONTENT


def test_the_list_names_every_default_and_every_kind() -> None:
    listed = {model["name"]: model["kind"] for model in list_models()}
    assert {*PRESETS["paper"].values(), *PRESETS["light"].values(), "none", "l2@64"} - {"l2@32"} <= set(
        listed
    )
    assert set(listed.values()) == {"encoder", "distance", "quality"}
    for name in ("pixels:32", "l2@64", "l2-norm@64", "none", "piqe", "entropy", "thumb:8"):
        assert model_status(name).ready is True
    assert model_status("musiq").ready is None
    with pytest.raises(ModelError, match="unknown model 'nothing'"):
        model_status("nothing")
    with pytest.raises(ModelError, match="did you mean 'piqe'"):
        model_status("piqa")
    with pytest.raises(ModelError, match=r"LPIPS has no network 'alexa' .did you mean 'alex'"):
        model_status("lpips:alexa")


def test_the_commands_look_where_the_workspace_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The models of ``-w``, before or after the verb, of ``GMV_WORKSPACE`` or of a preset; gmv.toml's ``cache_dir``."""
    workspace = tmp_path / "ws"
    run = CliRunner()
    made = run.invoke(
        cli,
        ["init", str(workspace), "--encoder", "timm:resnet18", "--distance", "lpips", "--quality", "none"],
    )
    assert made.exit_code == 0, made.output
    assert "weights are missing of timm:resnet18 (of unknown size" in made.stderr
    with (workspace / "gmv.toml").open("a") as file:
        file.write(f'\ncache_dir = "{tmp_path / "cache"}"\n')
    status = ["models", "status", "--json"]
    for words, environment in (
        (["-w", str(workspace), *status], {}),
        ([*status, "-w", str(workspace)], {}),
        (status, {"GMV_WORKSPACE": str(workspace)}),
    ):
        found = run.invoke(cli, words, env=environment)
        assert found.exit_code == 0, found.output
        models = {one["name"]: one for one in json.loads(found.stdout)}
        assert list(models) == ["timm:resnet18", "lpips:alex@64", "none"]
        assert models["lpips:alex@64"]["files"][0]["where"] == str(tmp_path / "cache/torch/checkpoints")
    monkeypatch.chdir(tmp_path)
    paper = json.loads(run.invoke(cli, status).stdout)
    assert [one["name"] for one in paper] == list(PRESETS["paper"].values())
    light = json.loads(run.invoke(cli, [*status, "--preset", "light"]).stdout)
    assert [one["ready"] for one in light] == [True, True, True]
    other = json.loads(run.invoke(cli, [*status, "lpips", "--cache-dir", str(tmp_path / "other")]).stdout)
    assert other[0]["files"][0]["where"] == str(tmp_path / "other/torch/checkpoints")
    fetched = run.invoke(cli, ["models", "fetch", "-w", str(workspace)])
    assert fetched.exit_code == 1
    assert "missing of timm:resnet18" in fetched.stderr
    assert "lpips:alex@64 (244 MB, BSD-3-Clause)" in fetched.stderr
    assert run.invoke(cli, ["models", "fetch", "--preset", "light"]).exit_code == 0
    assert run.invoke(cli, ["models", "status", "-w", str(tmp_path / "none")]).exit_code == 1


def test_a_preset_is_three_names_that_single_options_override(tmp_path: Path) -> None:
    run = CliRunner()
    made = run.invoke(cli, ["init", str(tmp_path / "ws"), "--preset", "light", "--quality", "piqe"])
    assert made.exit_code == 0, made.output
    assert "encoder pixels:32, distance l2@32, quality piqe" in made.stderr
    assert "weights" not in made.stderr


def test_names_that_don_t_exist_make_no_workspace(tmp_path: Path) -> None:
    names = ["--encoder", "clip:ViT-B-32/openai", "--quality", "fid"]
    made = CliRunner().invoke(cli, ["init", str(tmp_path / "ws"), *names])
    assert made.exit_code == 1
    assert "use clip:ViT-B-32-quickgelu/openai" in made.stderr
    assert "compares sets of images" in made.stderr
    assert not (tmp_path / "ws").exists()


def test_a_package_that_isn_t_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match="timm:resnet18 needs the package timm: pip install timm"):
        preflight(Settings(encoder="timm:resnet18", distance="l2", quality="none"))


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
