"""What was proven stays proven: replaced vectors and older stores are noticed before a search, with the way out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_workspace
from store.loopback import Loopback

from gmv_qdrant import Workspace
from gmv_qdrant.errors import CollectionMismatch, StoreError

pytestmark = pytest.mark.usefixtures("impatient")
TRAINING = range(60)
SETTINGS = {name: value for name, value in tiny_workspace.SETTINGS.items() if name != "quantization"}


@pytest.fixture
def server(folder: Path) -> Iterator[Loopback]:
    with Loopback(folder / "server") as loopback:
        yield loopback
    assert loopback.invalid == []


@pytest.fixture
def images(folder: Path) -> Path:
    tiny_workspace.write(folder / "generated", [100, 101])
    tiny_workspace.write(folder / "training", TRAINING)
    return folder / "training"


def vector(seed: int) -> list[float]:
    row = tiny_workspace.pixels(seed).transpose(2, 0, 1).ravel().astype(np.float64)
    return (row / np.linalg.norm(row)).tolist()


def other(seed: int) -> list[float]:
    return np.random.default_rng(seed).standard_normal(192).tolist()


def put(server: Loopback, folder: Path, rows: dict[int, list[float]], collection: str = "theirs") -> None:
    if collection not in server.collections:
        server.handle(
            "PUT", f"/collections/{collection}", b'{"vectors": {"size": 192, "distance": "Cosine"}}'
        )
    points = [
        {"id": i, "vector": row, "payload": {"uri": f"{folder}/training/{i % 1000}.png"}}
        for i, row in rows.items()
    ]
    server.handle("PUT", f"/collections/{collection}/points", json.dumps({"points": points}).encode())


def adopt(server: Loopback, folder: Path) -> Workspace:
    Workspace.adopt(
        folder / "ws", qdrant_url=server.url, collection="theirs", allow=(str(folder),), **SETTINGS
    )
    return Workspace(folder / "ws")


def test_another_encoders_vectors_under_the_same_ids(folder: Path, server: Loopback, images: Path) -> None:
    put(server, folder, {seed: vector(seed) for seed in TRAINING})
    workspace = adopt(server, folder)
    workspace.value([folder / "generated"])
    put(server, folder, {seed: vector(seed) for seed in [*range(0, 60, 8)]})
    put(server, folder, {seed: other(seed) for seed in range(0, 60, 8)})
    workspace.value([folder / "generated"], batch="a few may change")
    put(server, folder, {seed: other(seed) for seed in TRAINING})
    with pytest.raises(
        CollectionMismatch, match=r"32 of 32 sampled images have other vectors .*'gmv-qdrant adopt'"
    ):
        workspace.value([folder / "generated"], batch="b")
    with pytest.raises(CollectionMismatch, match="was not embedded by pixels:8"):
        adopt(server, folder)


def test_the_same_images_under_new_ids(folder: Path, server: Loopback, images: Path) -> None:
    put(server, folder, {seed: vector(seed) for seed in TRAINING})
    workspace = adopt(server, folder)
    server.handle("DELETE", "/collections/theirs", b"")
    put(server, folder, {1_000 + seed: vector(seed) for seed in TRAINING})
    with pytest.raises(
        CollectionMismatch, match=r"32 of 32 sampled images are not there .*'gmv-qdrant adopt'"
    ):
        workspace.value([folder / "generated"])


@pytest.mark.parametrize("embedded", [True, False])
def test_an_older_store_beside_a_newer_ledger(
    folder: Path, server: Loopback, images: Path, embedded: bool
) -> None:
    workspace = Workspace.init(
        folder / "ws", qdrant_url=None if embedded else server.url, **tiny_workspace.SETTINGS
    )
    tiny_workspace.write(folder / "few", range(10))
    workspace.ingest([folder / "few"])
    if embedded:
        shutil.copytree(folder / "ws" / "qdrant", folder / "older")
    workspace.ingest([images])
    if embedded:
        shutil.rmtree(folder / "ws" / "qdrant")
        shutil.copytree(folder / "older", folder / "ws" / "qdrant")
    else:
        ids = [str(tiny_workspace.point(seed)) for seed in range(10, 60)]
        server.handle("POST", "/collections/training/points/delete", json.dumps({"points": ids}).encode())
    with pytest.raises(
        StoreError, match=r"lacks 50 of the ledger's training images .*'gmv-qdrant check --repair'"
    ):
        workspace.value([folder / "generated"])
    assert all(finding.repaired for finding in workspace.check(repair=True))
    workspace.value([folder / "generated"])


def test_one_replaced_vector_of_an_own_collection(folder: Path, server: Loopback, images: Path) -> None:
    workspace = Workspace.init(folder / "ws", qdrant_url=server.url, **tiny_workspace.SETTINGS)
    workspace.ingest([images])
    row = {"recall": other(1)}
    ids = [str(tiny_workspace.point(seed)) for seed in TRAINING]
    points: list[dict[str, Any]] = [{"id": i, "vector": row} for i in ids]
    server.handle("PUT", "/collections/training/points/vectors", json.dumps({"points": points}).encode())
    with pytest.raises(CollectionMismatch, match=r"32 of 32 sampled images have other vectors now"):
        workspace.value([folder / "generated"])
