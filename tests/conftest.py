"""Shared by all tests: one thread per process, no network, and where the real data is when it is there."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import pytest

sys.path.append(str(Path(__file__).parent / "store"))
SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not SHARED.is_dir():
        absent = pytest.mark.skip(reason="needs the real images beside the checkout; CI runs it")
        for item in items:
            if "shared" in item.keywords:
                item.add_marker(absent)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real images (``data/images/*.npz``) and weights (``data/weights``)."""
    return SHARED


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder, in memory where there is room."""
    import tiny_workspace

    with tiny_workspace.scratch() as path:
        yield path


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers are given up on in seconds, and none is found in the environment."""
    import gmv_qdrant.vectors as stores
    from gmv_qdrant.vectors.server import collections, connection

    config = stores.server_config
    monkeypatch.setattr(
        stores, "server_config", lambda *given: replace(config(*given), timeout=2, patience=1.5)
    )
    monkeypatch.setattr(connection, "_backoff", lambda _: 0.02)
    monkeypatch.setattr(collections, "POLL", 0.02)
    for name in ("QDRANT_URL", "QDRANT_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Any]:
    """A script as a module; what scripts change in this process is undone."""
    from gmv_qdrant.models import registry, verified

    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "scripts" / "reproduce")
    monkeypatch.setattr(verified, "load_encoder", verified.load_encoder)
    monkeypatch.setitem(registry.FAMILIES, "quality", {})
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return importlib.import_module


@pytest.fixture
def run(script: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Runs a script of ``scripts/reproduce`` with these arguments; returns the JSON that it left."""

    def run(name: str, *arguments: str | Path) -> Any:
        out = tmp_path / f"{name}.json"
        words = [str(word) for word in arguments]
        monkeypatch.setattr(sys, "argv", [name, *words, "--work", str(tmp_path / "work"), "--out", str(out)])
        script(name).main()
        return json.loads(out.read_text())

    return run
