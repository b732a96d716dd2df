"""A workspace whose store is a server: the same results as embedded, whatever the network does; and moving house."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_workspace
from click.testing import CliRunner, Result
from store.loopback import Fault, Loopback
from store.relay import Server

from gmv_qdrant import Workspace
from gmv_qdrant.cli.main import cli
from gmv_qdrant.errors import CollectionMismatch, SettingsError, StoreError

pytestmark = pytest.mark.usefixtures("impatient")
TRAINING, GENERATED = range(40), range(100, 106)
KEY = "sk-7d1c-very-secret"


@pytest.fixture
def server(folder: Path) -> Iterator[Loopback]:
    with Server(folder / "server") as loopback:
        yield loopback
    assert loopback.invalid == []


@pytest.fixture
def stand_in(folder: Path) -> Iterator[Loopback]:
    """Builds codes of a few hundred points at once, and is busy when it is told to be."""
    with Loopback(folder / "server") as loopback:
        yield loopback


@pytest.fixture
def images(folder: Path) -> tuple[Path, Path]:
    tiny_workspace.write(folder / "training", TRAINING)
    tiny_workspace.write(folder / "generated", GENERATED)
    return folder / "training", folder / "generated"


def run(*arguments: object, code: int = 0) -> Result:
    done = CliRunner().invoke(cli, [str(one) for one in arguments])
    assert done.exit_code == code, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done


def evidence(workspace: Workspace) -> dict[tuple[str, int], tuple[str, float]]:
    rows = workspace.sql(
        """SELECT g.uri, m.rank, t.point_id, m.distance FROM matches m
        JOIN generated g USING (generated_key) JOIN training t USING (training_key)"""
    ).fetchall()
    return {(uri, rank): (point, distance) for uri, rank, point, distance in rows}


def expected(training: Any, generated: Any = GENERATED) -> dict[str, float]:
    totals = {str(tiny_workspace.point(seed)): 0.0 for seed in training}
    for one in generated:
        for seed, share in tiny_workspace.contributions(
            one, training, tiny_workspace.SETTINGS["candidates"], None
        ).items():
            totals[str(tiny_workspace.point(seed))] += share
    return totals


def points(server: Loopback, name: str = "training") -> int:
    return int(server.handle("POST", f"/collections/{name}/points/count", b"{}")["count"])


# -- the main job ----------------------------------------------------------------------------------------------------


def test_edge_and_server_give_the_same_matches_and_values(folder: Path, server: Loopback) -> None:
    same_as_embedded(folder, server, "none", 40)


def test_edge_and_server_give_the_same_with_codes(folder: Path, stand_in: Loopback) -> None:
    same_as_embedded(folder, stand_in, "pq", 300)


def same_as_embedded(folder: Path, server: Loopback, quantization: str, count: int) -> None:
    tiny_workspace.write(folder / "training", range(count))
    tiny_workspace.write(folder / "generated", range(1_000, 1_006))
    given = {**tiny_workspace.SETTINGS, "candidates": 20, "quantization": quantization}
    made = {}
    for name, url in (("edge", None), ("server", server.url)):
        workspace = Workspace.init(folder / name, qdrant_url=url, **given)
        workspace.ingest([folder / "training"])
        workspace.value([folder / "generated"])
        made[name] = workspace
    assert made["server"].status()["store"]["quantization"] == quantization
    assert made["edge"].status()["store"]["quantization"] == quantization
    edge, remote = evidence(made["edge"]), evidence(made["server"])
    assert {place: point for place, (point, _) in edge.items()} == {
        place: point for place, (point, _) in remote.items()
    }
    np.testing.assert_allclose([edge[p][1] for p in edge], [remote[p][1] for p in edge], atol=1e-6)
    ours, theirs = tiny_workspace.values(made["edge"]), tiny_workspace.values(made["server"])
    assert ours == pytest.approx(theirs, abs=1e-6)


def test_every_verb_works_on_a_server(folder: Path, server: Loopback, images: tuple[Path, Path]) -> None:
    training, generated = images
    workspace = Workspace.init(folder / "ws", qdrant_url=server.url, **tiny_workspace.SETTINGS)
    assert workspace.status()["store"] == {"state": "nothing was ingested yet"}
    workspace.ingest([training], owner="ada")
    workspace.value([generated])
    assert tiny_workspace.values(workspace) == pytest.approx(expected(TRAINING), abs=1e-6)

    tiny_workspace.write(folder / "more", range(40, 50))
    workspace.ingest([folder / "more"], owner="bo")
    workspace.update()
    assert tiny_workspace.values(workspace) == pytest.approx(expected(range(50)), abs=1e-6)

    workspace.withdraw(owner="ada")
    workspace.update()
    assert tiny_workspace.values(workspace) == pytest.approx(expected(range(40, 50)), abs=1e-6)
    assert points(server) == 10
    assert workspace.check(read_images=True) == []

    store = workspace.status()["store"]
    assert store["engine"] == "server"
    assert store["version"] == server.version
    assert store["points"] == 10
    assert store["state"] == "green", (
        "a server leaves small collections without an index, and has nothing left to do"
    )
    assert store["points_without_vector"] == {"recall": 0}


def test_status_says_when_the_server_is_busy_or_away(
    folder: Path, stand_in: Loopback, images: tuple[Path, Path]
) -> None:
    workspace = Workspace.init(
        folder / "ws", qdrant_url=stand_in.url, **{**tiny_workspace.SETTINGS, "quantization": "pq"}
    )
    workspace.ingest([images[0]])
    stand_in.collections["training"].yellow = 1
    store = workspace.status()["store"]
    assert (store["state"], store["quantization"]) == ("yellow", "none")
    stand_in.fail(*[Fault("drop")] * 200)
    found = workspace.status()
    assert found["store"]["state"] == "unavailable"
    assert "no answer" in found["store"]["error"]
    assert found["training"]["images"] == 40
    stand_in.faults.clear()
    assert "unavailable" not in run("-w", folder / "ws", "status").output


# -- a network that fails --------------------------------------------------------------------------------------------

PASSING: dict[str, Callable[[], list[Fault]]] = {
    "503, then well": lambda: [Fault("answer", 503), Fault("answer", 503)],
    "dropped, and done but dropped": lambda: [Fault("drop"), Fault("drop after")],
    "restart": lambda: [Fault("restart", seconds=0.2)],
}


@pytest.mark.parametrize("name", PASSING)
def test_passing_faults_lose_and_double_nothing(
    folder: Path, server: Loopback, images: tuple[Path, Path], name: str
) -> None:
    workspace = Workspace.init(folder / "ws", qdrant_url=server.url, **tiny_workspace.SETTINGS)
    server.fail(*PASSING[name](), on="PUT /collections/training/points")
    workspace.ingest([images[0]])
    server.fail(*PASSING[name](), on="/points/query")
    workspace.value([images[1]])
    assert server.faults == []
    assert points(server) == len(TRAINING)
    assert tiny_workspace.values(workspace) == pytest.approx(expected(TRAINING), abs=1e-6)


def test_after_a_lasting_fault_the_same_commands_go_on(
    folder: Path, server: Loopback, images: tuple[Path, Path]
) -> None:
    run("init", folder / "ws", "--qdrant-url", server.url, "--encoder", "pixels:8", "--distance", "l2@8",
        "--quality", "none", "--quantization", "none", "--candidates", 4)  # fmt: skip
    server.fail(*[Fault("answer", 503)] * 300, on="PUT /collections/training/points")
    said = run("-w", folder / "ws", "ingest", images[0], code=1).output
    assert "could not store points" in said
    assert "goes on where it stopped" in said
    server.faults.clear()
    run("-w", folder / "ws", "ingest", images[0])
    server.fail(*[Fault("drop")] * 300, on="/points/query")
    assert "no answer from" in run("-w", folder / "ws", "value", images[1], code=1).output
    server.faults.clear()
    run("-w", folder / "ws", "value", images[1])
    workspace = Workspace(folder / "ws")
    assert tiny_workspace.values(workspace) == pytest.approx(expected(TRAINING), abs=1e-6)
    assert points(server) == len(TRAINING)


def test_wrong_key_and_a_lost_collection(folder: Path, server: Loopback, images: tuple[Path, Path]) -> None:
    server.api_key = KEY
    workspace = Workspace.init(folder / "ws", qdrant_url=server.url, **tiny_workspace.SETTINGS)
    with pytest.raises(StoreError, match="wants an API key: set QDRANT_API_KEY"):
        workspace.ingest([images[0]])
    (folder / "key").write_text(KEY + "\n")
    workspace = Workspace(folder / "ws", qdrant_api_key_file=folder / "key")
    workspace.ingest([images[0]])
    server.handle("DELETE", "/collections/training", b"")
    with pytest.raises(StoreError, match="has no collection 'training'"):
        workspace.value([images[1]])
    assert "training" not in server.names(), "an empty one would have been worse than none"
    assert all(finding.repaired for finding in workspace.check(repair=True))
    workspace.value([images[1]])
    assert tiny_workspace.values(workspace) == pytest.approx(expected(TRAINING), abs=1e-6)


# -- whose collection ------------------------------------------------------------------------------------------------


def test_somebody_elses_collection_is_refused_untouched(
    folder: Path, server: Loopback, images: tuple[Path, Path]
) -> None:
    first = Workspace.init(folder / "first", qdrant_url=server.url, **tiny_workspace.SETTINGS)
    first.ingest([images[0]])
    second = Workspace.init(folder / "second", qdrant_url=server.url, **tiny_workspace.SETTINGS)
    seen = len(server.writes())
    for _ in range(2):  # the second time a failed run is to be tidied up after
        with pytest.raises(CollectionMismatch, match=r"belongs to another workspace .*first"):
            second.ingest([images[1]])
    assert len(server.writes()) == seen
    assert first.check() == []


def test_a_collection_of_ones_own_has_no_tenants(folder: Path, server: Loopback) -> None:
    """Ids come from contents: two tenants with the same image would take it from each other."""
    with pytest.raises(SettingsError, match="give each tenant a workspace and a collection"):
        Workspace.init(
            folder / "ws",
            qdrant_url=server.url,
            filter={"must": [{"key": "customer", "match": {"value": "a"}}]},
            **tiny_workspace.SETTINGS,
        )
    assert not (folder / "ws").exists()


@pytest.mark.parametrize("url", ["http://user:sesame@127.0.0.1:6333", "http://127.0.0.1:6333?api-key=sesame"])
def test_secrets_in_a_url_are_refused_before_anything_is_kept(folder: Path, url: str) -> None:
    said = run("init", folder / "ws", "--qdrant-url", url, code=1).output
    assert "QDRANT_API_KEY" in said
    assert "sesame" not in said
    assert not (folder / "ws").exists()


def test_the_key_is_written_nowhere(
    folder: Path,
    server: Loopback,
    images: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    server.api_key = KEY
    monkeypatch.setenv("QDRANT_API_KEY", KEY)
    ws = folder / "ws"
    said = [
        run("init", ws, "--qdrant-url", server.url, "--encoder", "pixels:8", "--distance", "l2@8", "--quality", "none",
            "--quantization", "none", "--candidates", 4).output,
        run("-w", ws, "ingest", images[0], "--owner", "ada").output,
        run("-w", ws, "value", images[1]).output,
        run("-w", ws, "credits", "--by", "image", "--json").output,
        run("-w", ws, "sql", "FROM runs", "--json").output,
        run("-w", ws, "sql", "FROM meta", "--json").output,
        run("-w", ws, "status", "--json").output,
        run("-w", ws, "export", ws / "out").output,
        run("-w", ws, "report", ws / "report.html").output,
        run("-w", ws, "check", "--json").output,
    ]  # fmt: skip
    server.fail(*[Fault("answer", 400, text=f"bad key {KEY}")] * 20)
    said.append(run("-w", ws, "update", code=0).output)
    said.append(run("-w", ws, "check", code=1).output)
    server.faults.clear()
    monkeypatch.setenv("QDRANT_API_KEY", KEY + "-old")
    said.append(run("-w", ws, "value", images[1], "--batch", "again", code=1).output)
    said.append(
        run(
            "-w",
            ws,
            "adopt",
            folder / "other",
            "--qdrant-url",
            server.url,
            "--collection",
            "training",
            code=1,
        ).output
    )
    assert "refused the API key" in said[-1]
    for text in (*said, caplog.text):
        assert KEY not in text
    files = [path for path in ws.rglob("*") if path.is_file()]
    assert len(files) > 8
    for path in files:
        assert KEY.encode() not in path.read_bytes(), path
