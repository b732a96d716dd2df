"""Shared by all tests: one thread per process, no network, and where the real data is when it is there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import pytest

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
    import tiny

    with tiny.scratch() as path:
        yield path


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers are given up on in seconds, and none is found in the environment."""
    import gmv_qdrant.store as stores
    from gmv_qdrant.store import connection, server_collections

    config = stores._config
    monkeypatch.setattr(
        stores, "_config", lambda settings: replace(config(settings), timeout=2, patience=1.5)
    )
    monkeypatch.setattr(connection, "_backoff", lambda _: 0.02)
    monkeypatch.setattr(server_collections, "POLL", 0.02)
    for name in ("QDRANT_URL", "QDRANT_API_KEY"):
        monkeypatch.delenv(name, raising=False)
