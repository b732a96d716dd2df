"""Collections as people have them: payloads of any shape, lengths, shards and ids that would mislead, vectors alone."""

from __future__ import annotations

import base64
import importlib
import json
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_workspace
from store.loopback import Loopback
from store.relay import Server
from store.served import Refused

from gmv_qdrant import Workspace
from gmv_qdrant.deployments.payload_fields import Fields, pick
from gmv_qdrant.errors import CollectionMismatch, GmvError, SettingsError

pytestmark = pytest.mark.usefixtures("impatient")
SEEDS = range(40)
SETTINGS = {name: value for name, value in tiny_workspace.SETTINGS.items() if name != "quantization"}


@pytest.fixture
def server(folder: Path) -> Iterator[Loopback]:
    tiny_workspace.write(folder / "images", SEEDS)
    tiny_workspace.write(folder / "generated", [100, 101])
    with Server(folder / "server") as loopback:
        yield loopback
    assert loopback.invalid == []


@pytest.fixture
def stand_in(folder: Path) -> Iterator[Loopback]:
    """For what a single real server doesn't do when it is asked: custom sharding, answers that break off."""
    tiny_workspace.write(folder / "images", SEEDS)
    tiny_workspace.write(folder / "generated", [100, 101])
    with Loopback(folder / "server") as loopback:
        yield loopback


def vector(seed: int, length: float = 1.0) -> list[float]:
    row = tiny_workspace.pixels(seed).transpose(2, 0, 1).ravel().astype(np.float64)
    return (row / np.linalg.norm(row) * length).tolist()


def create(server: Loopback, **more: Any) -> None:
    body = {"vectors": {"size": 192, "distance": "Cosine"}, **more}
    server.handle("PUT", "/collections/theirs", json.dumps(body).encode())


def put(server: Loopback, points: list[dict[str, Any]], **more: Any) -> None:
    body = json.dumps({"points": points, **more}).encode()
    server.handle("PUT", "/collections/theirs/points", body)


def adopt(server: Loopback, folder: Path, **options: Any) -> dict[str, Any]:
    given = {"qdrant_url": server.url, "collection": "theirs", "allow": (str(folder),), **SETTINGS, **options}
    return Workspace.adopt(folder / "ws", **given)


def expected(seeds: Any, folder: Path) -> dict[str, float]:
    totals = {str(seed): 0.0 for seed in seeds}
    for one in (100, 101):
        for seed, share in tiny_workspace.contributions(one, seeds, SETTINGS["candidates"], None).items():
            totals[str(seed)] += share
    return totals


SHAPES: dict[str, tuple[Any, str]] = {
    "a list": (lambda uri: {"files": [uri, "/elsewhere.png"]}, "files"),
    "the first of objects": (
        lambda uri: {"files": [{"url": uri}, {"url": "/elsewhere.png"}]},
        "files[0].url",
    ),
    "all of objects": (lambda uri: {"files": [{"url": uri}, {"url": "/elsewhere.png"}]}, "files[].url"),
    "JSON in text": (
        lambda uri: {"_node_content": json.dumps({"metadata": {"path": uri}})},
        "_node_content.metadata.path",
    ),
    "a dot in a name": (lambda uri: {"a.b": uri}, "a.b"),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_payloads_of_any_shape(folder: Path, server: Loopback, shape: str) -> None:
    payload, field = SHAPES[shape]
    owners = {"owner": ["Ada", "Bo"]}
    create(server)
    put(server, [
        {"id": seed, "vector": vector(seed), "payload": {**payload(f"{folder}/images/{seed}.png"), **owners}}
        for seed in SEEDS
    ])  # fmt: skip
    assert adopt(server, folder, fields={"uri": field})["new"] == 40
    workspace = Workspace(folder / "ws")
    workspace.value([folder / "generated"])
    assert tiny_workspace.values(workspace) == pytest.approx(expected(SEEDS, folder), abs=1e-6)
    assert set(tiny_workspace.owners(workspace)) == {"Ada", "Bo"}


def test_paths_into_payloads() -> None:
    payload = {"a": [{"b": 1}, {"b": [2, 3]}], "t": '{"x": [{"y": "z"}]}', "n": None}
    cases = {
        "a[0].b": 1,
        "a[].b": [1, [2, 3]],
        "a[1].b[1]": 3,
        "t.x[0].y": "z",
        "a[7].b": None,
        "t.q": None,
        "n.x": None,
    }
    assert {name: pick(payload, name) for name in cases} == cases
    assert Fields(uri="t.x[0].y", owner="a[].b").payload == (
        "t",
        "a",
        "label",
        "licence",
        '"t.x[0].y"',
        '"a[].b"',
    )


def as_base64(seed: int, kind: str) -> Any:
    data = tiny_workspace.png(seed)
    text = base64.b64encode(data).decode()
    return {
        "data: URI": f"data:image/png;base64,{text}",
        "base64": text,
        "base64 in lines": "\n".join(text[i : i + 76] for i in range(0, len(text), 76)),
        "url-safe": base64.urlsafe_b64encode(data).decode().rstrip("="),
        "percent": "data:image/png," + urllib.parse.quote_from_bytes(data),
        "in a list": [text],
        "in an object": {"bytes": text, "name": "x.png"},
    }[kind]


@pytest.mark.parametrize(
    "kind", ["data: URI", "base64", "base64 in lines", "url-safe", "percent", "in a list", "in an object"]
)
def test_images_in_the_payload(folder: Path, server: Loopback, kind: str) -> None:
    create(server)
    put(server, [
        {"id": s, "vector": vector(s), "payload": {"image": as_base64(s, kind), "owner": f"o{s % 3}"}} for s in SEEDS
    ])  # fmt: skip
    field = "image.bytes" if kind == "in an object" else "image"
    summary = adopt(server, folder, fields={"uri": field, "attributes": "all"}, allow=())
    assert (summary["new"], summary["cosine"]) == (40, pytest.approx(1, abs=1e-5))
    server.requests.clear()
    moved = (folder / "ws").rename(folder / "moved")
    workspace = Workspace(moved)
    workspace.value([folder / "generated"])
    assert tiny_workspace.values(workspace) == pytest.approx(expected(SEEDS, folder), abs=1e-6)
    assert workspace.check(read_images=True) == []
    assert len(list((moved / "payload-images").glob("*/*"))) == 40
    workspace.report(folder / "report.html")
    assert (folder / "report.html").read_text().count("data:image/") > 4


def test_one_image_in_two_payloads_is_one(folder: Path, server: Loopback) -> None:
    create(server)
    rows = [{"id": s, "vector": vector(s), "payload": {"uri": as_base64(s, "base64")}} for s in SEEDS]
    put(server, [*rows, *({**row, "id": row["id"] + 1_000} for row in rows[:9])])
    summary = adopt(server, folder)
    assert (summary["new"], summary["same_image"]) == (40, 9)
    server.handle(
        "POST", "/collections/theirs/points/delete", json.dumps({"points": list(range(30, 40))}).encode()
    )
    assert adopt(server, folder)["vanished"] == 10
    assert len(list((folder / "ws" / "payload-images").glob("*/*"))) == 30


def test_what_is_no_image_in_a_payload(
    folder: Path, server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged one, one that is too large, a long name: quarantined or left out, and the others come in."""
    monkeypatch.setattr("gmv_qdrant.images.embedded.MOST_BYTES", 1_000)
    create(server)
    odd = ["data:image/png;base64,@@@@", "A" * 100_000, "Zm9v" * 30, "data:image/png;base64,Zm9v"]
    put(server, [
        *({"id": s, "vector": vector(s), "payload": {"uri": as_base64(s, "base64")}} for s in SEEDS),
        *({"id": 100 + n, "vector": vector(n), "payload": {"uri": text}} for n, text in enumerate(odd)),
    ])  # fmt: skip
    summary = adopt(server, folder)
    assert summary["quarantined"] == 2
    assert summary["new"] + summary.get("without_uri", 0) == 42
    reasons = {row[0] for row in Workspace(folder / "ws").sql("SELECT kind FROM quarantine").fetchall()}
    assert reasons == {"damaged", "too-large"}


def test_a_refused_adopt_leaves_no_payload_images(folder: Path, server: Loopback) -> None:
    create(server)
    put(
        server,
        [{"id": s, "vector": vector(s + 50), "payload": {"uri": as_base64(s, "base64")}} for s in SEEDS],
    )
    with pytest.raises(CollectionMismatch, match="was not embedded by"):
        adopt(server, folder)
    assert not (folder / "ws").exists()


def test_vectors_alone(folder: Path, server: Loopback) -> None:
    create(server)
    put(
        server, [{"id": seed, "vector": vector(seed), "payload": {"owner": f"o{seed % 3}"}} for seed in SEEDS]
    )
    with pytest.raises(SettingsError, match=r"needs images: give --distance none"):
        adopt(server, folder, trust_encoder=True)
    summary = adopt(server, folder, trust_encoder=True, distance="none")
    assert summary["new"] == 40
    assert "cosine" not in summary
    workspace = Workspace(folder / "ws")
    workspace.value([folder / "generated"])
    assert sum(tiny_workspace.owners(workspace).values()) == pytest.approx(2)
    assert workspace.status()["store"]["encoder_proven"] is False
    assert sum(v > 0 for v in tiny_workspace.values(workspace).values()) <= 2 * SETTINGS["candidates"]


# -- a second vector that is there already ----------------------------------------------------------------------------


def half(seed: int) -> list[float]:
    """What ``pixels:4`` makes of the image."""
    from PIL import Image

    from gmv_qdrant.models.registry import load_encoder

    encoder = load_encoder("pixels:4")
    image = Image.fromarray(tiny_workspace.pixels(seed), "RGB")
    return np.asarray(encoder.encode(encoder.prepare(image)[None])[0], np.float64).tolist()


def two_vectors(server: Loopback, folder: Path, made: Any = half, **more: Any) -> None:
    create(
        server,
        vectors={
            "clip": {"size": 192, "distance": "Cosine"},
            "small": {"size": 48, "distance": "Dot", **more},
        },
    )
    put(server, [
        {"id": s, "vector": {"clip": vector(s), "small": made(s)}, "payload": {"uri": f"{folder}/images/{s}.png"}}
        for s in SEEDS
    ])  # fmt: skip


SECOND = {"vector_name": "clip", "distance": "pixels:4", "distance_vector": "small"}


def test_a_second_vector_is_the_rerank_space(
    folder: Path, server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_vectors(server, folder)
    (folder / "without").mkdir()
    computed = Workspace.adopt(
        folder / "without" / "ws",
        qdrant_url=server.url,
        collection="theirs",
        allow=(str(folder),),
        **{**SETTINGS, "vector_name": "clip", "distance": "pixels:4"},
    )
    assert computed["new"] == 40
    wanted = Workspace(folder / "without" / "ws")
    wanted.value([folder / "generated"])

    summary = adopt(server, folder, **SECOND)
    assert (summary["new"], summary["read"]) == (40, 40)
    for seed in SEEDS:
        (folder / "images" / f"{seed}.png").unlink()
    server.requests.clear()
    workspace = Workspace(folder / "ws")
    valued = workspace.value([folder / "generated"])
    assert not {"computed", "read", "quarantined"} & valued.keys(), "nothing is computed, or read, twice"
    assert tiny_workspace.values(workspace) == pytest.approx(tiny_workspace.values(wanted), abs=1e-6)
    assert "read" not in adopt(server, folder, trust_encoder=True, **SECOND)
    assert workspace.check() == []


def test_reading_a_second_vector_goes_on_where_it_stopped(
    folder: Path, stand_in: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_vectors(stand_in, folder)
    monkeypatch.setattr("gmv_qdrant.deployments.adopt.ROWS", 8)
    original = Loopback.retrieve
    reads = 0

    def cut(self: Loopback, collection: Any, wanted: Any) -> Any:
        nonlocal reads
        reads += wanted.with_vector == ["small"]
        if reads == 5:
            raise Refused(400, "cut off")
        return original(self, collection, wanted)

    monkeypatch.setattr(Loopback, "retrieve", cut)
    with pytest.raises(GmvError):
        adopt(stand_in, folder, **SECOND)
    monkeypatch.setattr(Loopback, "retrieve", original)
    assert adopt(stand_in, folder, **SECOND)["read"] == 24


def test_a_second_vector_alone_with_trust(folder: Path, server: Loopback) -> None:
    two_vectors(server, folder)
    for seed in SEEDS:
        (folder / "images" / f"{seed}.png").unlink()
    assert adopt(server, folder, trust_encoder=True, **SECOND)["read"] == 40
    workspace = Workspace(folder / "ws")
    workspace.value([folder / "generated"])
    assert sum(tiny_workspace.values(workspace).values()) == pytest.approx(2)


def test_points_that_lack_the_second_vector_are_computed(folder: Path, server: Loopback) -> None:
    two_vectors(server, folder)
    put(server, [
        {"id": s, "vector": {"clip": vector(s)}, "payload": {"uri": f"{folder}/images/{s}.png"}} for s in range(30)
    ])  # fmt: skip
    assert adopt(server, folder, **SECOND)["read"] == 10
    workspace = Workspace(folder / "ws")
    assert workspace.value([folder / "generated"])["computed"] > 0
    assert sum(tiny_workspace.values(workspace).values()) == pytest.approx(2)


def test_a_second_vector_that_is_not_the_distances_is_refused(folder: Path, server: Loopback) -> None:
    two_vectors(server, folder, made=lambda seed: np.random.default_rng(seed).normal(size=48).tolist())
    for sentence, options in (
        (r"not embedded by pixels:4: 16 of its images.*encoder of 48 numbers by name", SECOND),
        (r"'clip' of 'theirs' have 192 numbers, and the distance pixels:4 gives 48", {"distance_vector": "clip"}),
        (r"compares embeddings by their cosine, which l2@8 doesn't", {"distance": "l2@8"}),
        (r"has no vector 'dino'", {"distance_vector": "dino"}),
    ):  # fmt: skip
        with pytest.raises(GmvError, match=sentence):
            adopt(server, folder, **{**SECOND, **options})
        assert not (folder / "ws" / "ledger.duckdb").exists()
    with pytest.raises(SettingsError, match=r"distance_vector = 'x' is for collections that others fill"):
        Workspace.init(folder / "own", distance_vector="x", **SETTINGS)


# -- check -------------------------------------------------------------------------------------------------------------


def test_check_compares_vectors_with_what_the_encoder_gives(folder: Path, server: Loopback) -> None:
    create(server)
    rows = [{"id": s, "vector": vector(s), "payload": {"uri": f"{folder}/images/{s}.png"}} for s in SEEDS]
    put(server, rows)
    adopt(server, folder)
    workspace = Workspace(folder / "ws")
    put(server, [{**rows[seed], "vector": vector(500 + seed)} for seed in (3, 4, 5)])
    assert workspace.check() == []
    (found,) = workspace.check(read_images=True)
    assert (found.kind, found.count) == ("changed vectors", 3)
    put(server, [{**row, "vector": vector(500 + row["id"])} for row in rows])
    assert [finding.kind for finding in workspace.check()] == ["changed vectors"]


def test_check_repairs_vectors_of_its_own_that_were_replaced(folder: Path, server: Loopback) -> None:
    workspace = Workspace.init(
        folder / "own", qdrant_url=server.url, **{**tiny_workspace.SETTINGS, "collection": "mine"}
    )
    workspace.ingest([folder / "images"])
    stored = server.handle("POST", "/collections/mine/points/scroll", b'{"limit": 2}')["points"]
    body = {"points": [{**point, "vector": {"recall": vector(900)}} for point in stored]}
    server.handle("PUT", "/collections/mine/points", json.dumps(body).encode())
    (found,) = [f for f in workspace.check(read_images=True) if f.kind == "point vectors"]
    assert found.count == 2
    assert all(finding.repaired for finding in workspace.check(read_images=True, repair=True))
    assert workspace.check(read_images=True) == []


def test_dot_with_lengths_that_differ(folder: Path, server: Loopback) -> None:
    create(server, vectors={"size": 192, "distance": "Dot"})
    rows = [
        {"id": s, "vector": vector(s, 1 + s / 10), "payload": {"uri": f"{folder}/images/{s}.png"}}
        for s in SEEDS
    ]
    put(server, rows)
    with pytest.raises(CollectionMismatch, match=r"compared by Dot and have lengths from 1 to 4\.9"):
        adopt(server, folder)


def test_one_id_under_two_shard_keys(folder: Path, stand_in: Loopback) -> None:
    create(stand_in, sharding_method="custom", shard_number=1)
    rows = [{"id": s, "vector": vector(s), "payload": {"uri": f"{folder}/images/{s}.png"}} for s in SEEDS]
    put(stand_in, rows, shard_key="a")
    put(stand_in, rows[:10], shard_key="b")
    with pytest.raises(CollectionMismatch, match=r"holds 10 of its ids under several shard keys"):
        adopt(stand_in, folder)


def test_points_without_the_vector_are_counted(folder: Path, server: Loopback) -> None:
    vectors: dict[int, Any] = {s: {"clip": vector(s)} if s % 4 else {"dino": [1, 2]} for s in SEEDS}
    create(
        server,
        vectors={"clip": {"size": 192, "distance": "Cosine"}, "dino": {"size": 2, "distance": "Cosine"}},
    )
    put(server, [
        {"id": s, "vector": vectors[s], "payload": {"uri": f"{folder}/images/{s}.png"}}
        for s in SEEDS
    ])  # fmt: skip
    summary = adopt(server, folder, vector_name="clip")
    assert (summary["new"], summary["without_vector"]) == (30, 10)
    workspace = Workspace(folder / "ws")
    assert workspace.check() == []
    assert workspace.status()["store"]["points_without_vector"]["clip"] == 10


def test_one_image_under_two_ids(folder: Path, server: Loopback) -> None:
    create(server)
    rows = [{"id": s, "vector": vector(s), "payload": {"uri": f"{folder}/images/{s}.png"}} for s in SEEDS]
    again = [{**row, "id": row["id"] + 1_000} for row in rows[:9]]
    again[4]["payload"] = {**again[4]["payload"], "owner": "somebody else"}
    put(server, [*rows, *again])
    summary = adopt(server, folder)
    assert (summary["new"], summary["same_image"], summary["other_owner"]) == (40, 9, 1)
    workspace = Workspace(folder / "ws")
    workspace.value([folder / "generated"])
    assert tiny_workspace.values(workspace) == pytest.approx(expected(SEEDS, folder), abs=1e-6)


def test_copies_under_other_names_are_said(folder: Path, server: Loopback) -> None:
    create(server)
    rows = [{"id": s, "vector": vector(s), "payload": {"uri": f"{folder}/images/{s}.png"}} for s in SEEDS]
    put(server, rows)
    assert not adopt(server, folder).get("sample_twins")
    for seed in SEEDS:
        (folder / "images" / f"copy-{seed}.png").write_bytes((folder / "images" / f"{seed}.png").read_bytes())
    copies = [
        {**row, "id": 1_000 + row["id"], "payload": {"uri": f"{folder}/images/copy-{row['id']}.png"}}
        for row in rows
    ]
    put(server, copies)
    assert adopt(server, folder)["sample_twins"] == 32


def test_the_same_images_under_new_ids_keep_their_credits(folder: Path, server: Loopback) -> None:
    create(server)
    rows = [{"id": s, "vector": vector(s), "payload": {"uri": f"{folder}/images/{s}.png"}} for s in SEEDS]
    put(server, rows)
    adopt(server, folder)
    workspace = Workspace(folder / "ws")
    workspace.value([folder / "generated"])
    before = tiny_workspace.values(workspace)
    server.handle("DELETE", "/collections/theirs", b"")
    create(server)
    put(server, [{**row, "id": row["id"] + 1_000} for row in rows])
    with pytest.raises(CollectionMismatch, match="'gmv-qdrant adopt'"):
        workspace.value([folder / "generated"], batch="b")
    assert adopt(server, folder)["new_ids"] == 40
    after = tiny_workspace.values(Workspace(folder / "ws"))
    assert after == {str(int(key) + 1_000): value for key, value in before.items()}
    Workspace(folder / "ws").value([folder / "generated"], batch="b")
    assert Workspace(folder / "ws").check() == []


def test_requests_and_bytes_are_few(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than they are today: a search of many images is one request, and payloads aren't read twice."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "scripts/bench")
    counted = importlib.import_module("requests_counted").counted
    found = {one.command: one for one in counted(300, 200, folder)}
    most = {"`adopt`": 21, "`value`": 12, "`adopt` again, 30 images more": 15, "`update`": 7}
    assert {name: one.requests for name, one in found.items() if one.requests > most[name]} == {}
    adopted, valued = found["`adopt`"], found["`value`"]
    assert adopted.received < 300 * 507 * 22 * 3, "vectors of the samples, and of nothing else"
    assert valued.sent < 200 * 507 * 22 * 4, "each query once, and what recall is measured on"


def test_requests_are_few_and_only_what_is_mapped_is_asked_for(folder: Path, server: Loopback) -> None:
    create(server)
    rows = [
        {"id": s, "vector": vector(s), "payload": {"uri": f"{folder}/images/{s}.png", "text": "x" * 100_000}}
        for s in SEEDS
    ]
    put(server, rows)
    workspace = None
    server.requests.clear()
    server.answered = 0
    adopt(server, folder)
    workspace = Workspace(folder / "ws")
    asked, read = len(server.requests), server.answered
    workspace.value([folder / "generated"])
    assert asked <= 24
    assert len(server.requests) - asked <= 12
    assert server.writes() == []
    assert read > 0
