"""A workspace's address and collection are its own: others are refused, and nothing of others is deleted."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_workspace
from store.loopback import Loopback
from store.relay import Server

from gmv_qdrant import Workspace
from gmv_qdrant.errors import CollectionMismatch, GmvError, SettingsError, StoreError
from gmv_qdrant.pipeline import ingest as ingesting

pytestmark = pytest.mark.usefixtures("impatient")
TRAINING = range(20)


@pytest.fixture
def server(folder: Path) -> Iterator[Loopback]:
    with Server(folder / "server") as loopback:
        yield loopback
    assert loopback.invalid == []


@pytest.fixture
def other(folder: Path) -> Iterator[Loopback]:
    with Server(folder / "other_server") as loopback:
        yield loopback


@pytest.fixture
def images(folder: Path) -> Path:
    tiny_workspace.write(folder / "training", TRAINING)
    tiny_workspace.write(folder / "generated", [100])
    return folder / "training"


def make(path: Path, server: Loopback | None, **settings: Any) -> Workspace:
    url = server.url if server else None
    return Workspace.init(path, qdrant_url=url, **{**tiny_workspace.SETTINGS, **settings})


def points(server: Loopback, name: str = "training") -> int:
    return int(server.handle("POST", f"/collections/{name}/points/count", b"{}")["count"])


def test_an_exported_address_of_another_server_deletes_nothing_there(
    folder: Path, server: Loopback, other: Loopback, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(folder / "a", server).ingest([images], owner="Ada")
    make(folder / "b", other).ingest([images], owner="Ben")
    for name in (other.url, f"{other.url}/"):
        monkeypatch.setenv("QDRANT_URL", name)
        with pytest.raises(
            SettingsError, match=rf"keeps its vectors at {server.url}, and QDRANT_URL .*{other.url}"
        ):
            Workspace(folder / "a").withdraw(owner="Ada")
    monkeypatch.setenv("QDRANT_URL", f"{server.url}/")
    Workspace(folder / "a").withdraw(owner="Ada")
    monkeypatch.delenv("QDRANT_URL")
    with pytest.raises(SettingsError, match=f"--qdrant-url says {other.url}"):
        Workspace(folder / "a", qdrant_url=other.url)
    assert (points(server), points(other)) == (0, 20)


def test_an_embedded_workspace_stays_so(
    folder: Path, other: Loopback, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(folder / "a", None)
    monkeypatch.setenv("QDRANT_URL", other.url)
    Workspace(folder / "a").ingest([images])
    assert other.requests == []
    with pytest.raises(SettingsError, match="in its own folder"):
        Workspace(folder / "a", qdrant_url=other.url)


def test_a_server_that_has_moved_is_named_in_the_file(
    folder: Path, server: Loopback, other: Loopback, images: Path
) -> None:
    make(folder / "a", server).ingest([images])
    file = folder / "a" / "gmv.toml"
    file.write_text(file.read_text().replace(server.url, other.url))
    with pytest.raises(StoreError, match=r"has disappeared|has no collection"):
        Workspace(folder / "a").withdraw(uri="*")
    make(folder / "b", other).ingest([images])
    with pytest.raises(CollectionMismatch, match=r"belongs to another workspace .*/b"):
        Workspace(folder / "a").withdraw(uri="*")
    assert points(other) == 20


def test_a_copied_workspace_takes_nothing_from_the_original(
    folder: Path, server: Loopback, images: Path
) -> None:
    original = make(folder / "a", server)
    original.ingest([images], owner="Ada")
    shutil.copytree(folder / "a", folder / "copy")
    seen = len(server.writes())
    for verb in (
        lambda w: w.withdraw(owner="Ada"),
        lambda w: w.value([folder / "generated"]),
        lambda w: w.check(repair=True),
    ):
        with pytest.raises(
            CollectionMismatch, match=r"/copy is a copy: .*'gmv-qdrant copy'.*check --take-over"
        ):
            verb(Workspace(folder / "copy"))
    assert len(server.writes()) == seen
    assert original.check() == []

    Workspace(folder / "copy").check(take_over=True)
    Workspace(folder / "copy").value([folder / "generated"])
    with pytest.raises(
        CollectionMismatch, match=r"belongs to the workspace .*/copy, of which .*/a is a copy"
    ):
        original.withdraw(owner="Ada")
    assert points(server) == 20


def test_a_workspace_may_be_moved_and_restored_in_its_place(
    folder: Path, server: Loopback, images: Path
) -> None:
    make(folder / "a", server).ingest([images])
    (folder / "a").rename(folder / "moved")
    Workspace(folder / "moved").value([folder / "generated"])
    (folder / "moved").rename(folder / "a")
    shutil.copytree(folder / "a", folder / "backup")
    shutil.rmtree(folder / "a")
    shutil.copytree(folder / "backup", folder / "a")
    assert Workspace(folder / "a").check() == []


def test_two_that_start_together_share_nothing(
    folder: Path, server: Loopback, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both see that there is no collection, and then both make it."""
    both = threading.Barrier(2)
    original = ingesting.Keeper.keep
    monkeypatch.setattr(ingesting.Keeper, "keep", lambda self, some: (both.wait(60), original(self, some))[1])
    workspaces = [make(folder / name, server) for name in "ab"]
    failed: list[GmvError] = []

    def begin(workspace: Workspace) -> None:
        try:
            workspace.ingest([images])
        except GmvError as error:
            failed.append(error)

    threads = [threading.Thread(target=begin, args=(workspace,)) for workspace in workspaces]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failed) == 1
    assert "belongs to another workspace" in str(failed[0])
    assert points(server) == 20
    assert len([w for w in workspaces if w.status()["training"]["images"] == 20 and w.check() == []]) == 1


def test_an_ingest_without_an_image_claims_nothing(folder: Path, server: Loopback, images: Path) -> None:
    (folder / "bad").mkdir()
    (folder / "bad" / "x.png").write_bytes(b"no image")
    make(folder / "a", server).ingest([folder / "bad"])
    assert server.names() == set()
    make(folder / "b", server).ingest([images])
    assert points(server) == 20


def test_a_collection_made_by_hand_is_taken_with_the_id_and_refused_without(
    folder: Path, server: Loopback, images: Path
) -> None:
    workspace = make(folder / "a", server)
    create = b'{"vectors": {"recall": {"size": 192, "distance": "Cosine"}}%s}'
    server.handle("PUT", "/collections/training", create % b"")
    with pytest.raises(
        CollectionMismatch, match=r"not made by this workspace: .* metadata {\"gmv_workspace\""
    ) as said:
        workspace.ingest([images])
    metadata = str(said.value).rpartition("metadata ")[2].encode()
    server.handle("DELETE", "/collections/training", b"")
    server.handle("PUT", "/collections/training", create % (b', "metadata": ' + metadata))
    workspace.ingest([images])
    assert points(server) == 20


def test_unknown_points_stay_and_left_over_ones_go(folder: Path, server: Loopback, images: Path) -> None:
    workspace = make(folder / "a", server)
    workspace.ingest([images], owner="Ada")
    run = workspace.sql("SELECT run_id FROM runs").fetchall()[0][0]
    payloads = [{"uri": "x"}, {"run": run}, {"run": "another"}]
    found = [{"id": i, "vector": {"recall": [1.0] * 192}, "payload": p} for i, p in enumerate(payloads, 1)]
    body = json.dumps({"points": found}).encode()
    server.handle("PUT", "/collections/training/points", body)
    kinds = {finding.kind: finding.count for finding in workspace.check()}
    assert kinds == {"left over": 1, "unknown points": 2}
    workspace.withdraw(ids=[str(tiny_workspace.point(0))])
    assert points(server) == 19 + 3, "nothing is deleted for being unknown"
    kinds = {finding.kind: bool(finding.repaired) for finding in workspace.check(repair=True)}
    assert kinds == {"left over": True, "unknown points": False}
    assert points(server) == 19 + 2, "the point of our own run is gone, those of nobody's stay"


def test_an_embedded_store_of_another_workspace_is_refused(folder: Path, images: Path) -> None:
    make(folder / "a", None).ingest([images])
    make(folder / "b", None)
    shutil.copytree(folder / "a" / "qdrant", folder / "b" / "qdrant")
    with pytest.raises(CollectionMismatch, match="belongs to another workspace: move it away"):
        Workspace(folder / "b").ingest([images])
    shutil.copytree(folder / "a", folder / "copy")
    assert Workspace(folder / "copy").check() == [], "an embedded workspace is copied whole"
    shutil.rmtree(folder / "a" / "qdrant")
    with pytest.raises(StoreError, match=r"has disappeared .*'gmv-qdrant check --repair'"):
        Workspace(folder / "a").value([folder / "generated"])
    assert all(finding.repaired for finding in Workspace(folder / "a").check(repair=True))
