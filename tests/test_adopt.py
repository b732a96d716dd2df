"""Adopting a collection that others fill: as it is, proven, and untouched."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_workspace
from click.testing import CliRunner, Result
from qdrant_client.http import models as m
from store.loopback import Fault, Loopback, is_write
from store.relay import Server

from gmv_qdrant import Workspace
from gmv_qdrant.cli.main import cli
from gmv_qdrant.errors import CollectionMismatch, GmvError, SettingsError, SourceError, StoreError

pytestmark = pytest.mark.usefixtures("impatient")
TRAINING, GENERATED = range(40), range(100, 105)
SETTINGS = {name: value for name, value in tiny_workspace.SETTINGS.items() if name != "quantization"}
OWNERS = ("ada", "bo", "chi")


class ReadOnly(Server):  # type: ignore[misc, valid-type]
    """Counts and rejects every write, but for those that a test does itself."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.rejected: list[str] = []

    def handle(self, method: str, path: str, body: bytes) -> Any:
        if is_write(method, path) and threading.current_thread() is not threading.main_thread():
            self.rejected.append(f"{method} {path}")
            raise AssertionError("nothing of theirs may be written")
        return super().handle(method, path, body)


def theirs(server: Loopback, method: str, path: str, body: Any) -> Any:
    """What their own programs do."""
    sent = body if isinstance(body, bytes) else body.model_dump_json(exclude_none=True).encode()
    return server.handle(method, path, sent)


@pytest.fixture
def server(folder: Path) -> Iterator[ReadOnly]:
    with ReadOnly(folder / "server") as loopback:
        yield loopback
        assert loopback.rejected == []
    assert loopback.invalid == []


@pytest.fixture
def stand_in(folder: Path) -> Iterator[Loopback]:
    """Builds codes of a few hundred points at once, where that is asked for."""
    with Loopback(folder / "server") as loopback:
        yield loopback
    assert loopback.invalid == []


def vector(seed: int) -> np.ndarray:
    row = tiny_workspace.pixels(seed).transpose(2, 0, 1).ravel().astype(np.float64)
    return np.asarray(row / np.linalg.norm(row))


def create(
    server: Loopback, *, distance: str = "Cosine", name: str = "", dim: int = 192, collection: str = "theirs"
) -> None:
    params = m.VectorParams(size=dim, distance=m.Distance(distance))
    vectors: Any = {name: params} if name else params
    theirs(server, "PUT", f"/collections/{collection}", m.CreateCollection(vectors=vectors, shard_number=2))


def put(
    server: Loopback,
    folder: Path,
    seeds: Sequence[int],
    *,
    name: str = "",
    lengths: float = 1.0,
    **payload: Any,
) -> None:
    """Points as their own programs write them: integer ids, other names of fields, a path below some root."""
    tiny_workspace.write(folder / "theirs", seeds)
    rows = [(vector(seed) * lengths).tolist() for seed in seeds]
    batch = m.Batch(
        ids=list(seeds),
        vectors={name: rows} if name else rows,
        payloads=[
            {
                "file": {"path": f"theirs/{seed}.png"},
                "photographer": OWNERS[seed % 3],
                "kind": seed % 2,
                "year": 2000 + seed % 4,
                "customer": 7,
                **payload,
            }
            for seed in seeds
        ],
    )
    theirs(server, "PUT", "/collections/theirs/points", m.PointsBatch(batch=batch))


def delete(server: Loopback, seeds: Sequence[int]) -> None:
    theirs(server, "POST", "/collections/theirs/points/delete", m.PointIdsList(points=list(seeds)))


def adopt(server: Loopback, folder: Path, **options: Any) -> dict[str, Any]:
    fields = {"uri": "file.path", "owner": "photographer", "label": "kind", "uri_prefix": f"{folder}/"}
    given = {"qdrant_url": server.url, "collection": "theirs", **SETTINGS, **options}
    given["fields"] = {**fields, **options.get("fields", {})}
    return Workspace.adopt(folder / "ws", **given)


@pytest.fixture
def generated(folder: Path) -> Path:
    tiny_workspace.write(folder / "generated", GENERATED)
    return folder / "generated"


def run(*arguments: object, code: int = 0) -> Result:
    done = CliRunner().invoke(cli, [str(one) for one in arguments])
    assert done.exit_code == code, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done


def expected(training: Sequence[int]) -> dict[str, float]:
    """By plain numpy; the ids are theirs, and break no tie here."""
    totals = {str(seed): 0.0 for seed in training}
    for one in GENERATED:
        for seed, share in tiny_workspace.contributions(
            one, training, tiny_workspace.SETTINGS["candidates"], None
        ).items():
            totals[str(seed)] += share
    return totals


# -- as it is --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("distance", "name", "length"),
    [
        ("Cosine", "", 1.0),
        ("Dot", "clip", 1.0),
        ("Dot", "", 3.0),
        ("Euclid", "", 1.0),
        ("Euclid", "clip", 10.0),
    ],
)
def test_values_of_a_foreign_collection_and_nothing_written(
    folder: Path, server: Loopback, generated: Path, distance: str, name: str, length: float
) -> None:
    create(server, distance=distance, name=name)
    put(server, folder, TRAINING, name=name, lengths=length)
    summary = adopt(server, folder)
    assert (summary["new"], summary["cosine"]) == (40, pytest.approx(1, abs=1e-5))
    workspace = Workspace(folder / "ws")
    assert (workspace.settings.vector_name, workspace.settings.quantization) == (name, "none")
    valued = workspace.value([generated])
    assert 0 < valued["computed"] <= 20, "re-rank vectors of candidates only"
    assert tiny_workspace.values(workspace) == pytest.approx(expected(TRAINING), abs=1e-6)
    assert server.writes() == []


def test_all_that_can_be_asked_of_it_writes_nothing(folder: Path, server: Loopback, generated: Path) -> None:
    create(server)
    put(server, folder, TRAINING)
    server.api_key, server.read_only_key = "may-write", "may-read"
    adopt(server, folder, fields={"attributes": "all"}, qdrant_api_key="may-read")
    workspace = Workspace(folder / "ws", qdrant_api_key="may-read")
    workspace.value([generated])
    assert "computed" not in workspace.value([generated], batch="again")
    by_owner = dict.fromkeys(OWNERS, 0.0)
    for seed, value in expected(TRAINING).items():
        by_owner[OWNERS[int(seed) % 3]] += 2 * value
    assert tiny_workspace.owners(workspace) == pytest.approx(by_owner, abs=1e-6)
    for by, groups in (("label", 2), ("year", 4), ("customer", 1)):
        assert len(workspace.credits(by).fetchall()) == groups
    assert workspace.check(read_images=True) == []
    assert workspace.check(repair=True) == []
    assert workspace.update()["stale"] == 0
    store = workspace.status()["store"]
    assert (store["points"], store["adopted"], store["points_without_vector"]) == (40, True, {"": 0})
    assert server.writes() == []


def test_the_command_line_does_it_in_one_go(folder: Path, server: Loopback, generated: Path) -> None:
    create(server)
    put(server, folder, TRAINING)
    command = (
        "adopt", folder / "ws", "--qdrant-url", server.url, "--collection", "theirs", "--encoder", "pixels:8",
        "--distance", "l2@8", "--quality", "none", "--candidates", 4, "--uri-field", "file.path", "--owner-field",
        "photographer", "--attribute-fields", "year, kind", "--uri-prefix", f"{folder}/", "--where", "customer=7",
    )  # fmt: skip
    summary = json.loads(run(*command, "--json").stdout)
    assert (summary["new"], summary["verb"]) == (40, "adopt")
    assert "40 unchanged" in run(*command).output
    said = run("-w", folder / "ws", "value", generated).output
    assert "up to 20 re-rank vectors are computed from their images, each once" in said
    assert "up to" not in run("-w", folder / "ws", "check", "--json").output
    rows = json.loads(run("-w", folder / "ws", "credits", "--by", "year", "--json").stdout)
    assert {row["year"] for row in rows} == {"2000", "2001", "2002", "2003"}
    assert "was adopted" in run("-w", folder / "ws", "ingest", generated, code=1).output
    assert "was adopted" in run("-w", folder / "ws", "withdraw", "--owner", "ada", code=1).output
    run("adopt", folder / "ws", "--where", "customer", code=2)


@pytest.mark.parametrize("where", [{"customer": "b"}, {"paid": "true", "customer": "7"}])
def test_a_tenant_sees_nothing_of_the_others(
    folder: Path, server: Loopback, generated: Path, where: dict[str, str]
) -> None:
    create(server)
    mine, others = TRAINING[:20], TRAINING[20:]
    value = where["customer"]
    put(server, folder, mine, customer=int(value) if value.isdigit() else value, paid=True)
    put(server, folder, others, customer="a", paid=True)
    put(server, folder, [60, 61], customer=8, paid=False)
    summary = adopt(server, folder, where=where)
    assert summary["new"] == 20
    assert adopt(server, folder, where=where)["unchanged"] == 20, (
        "the same words again, whatever kind they are of"
    )
    workspace = Workspace(folder / "ws")
    workspace.value([generated])
    assert tiny_workspace.values(workspace) == pytest.approx(expected(mine), abs=1e-6)
    assert workspace.check() == []
    assert workspace.status()["store"]["points_without_vector"] == {"": 0}


# -- the proof -------------------------------------------------------------------------------------------------------


def refused(server: Loopback, folder: Path, kind: type[GmvError], sentence: str, **options: Any) -> None:
    with pytest.raises(kind, match=sentence):
        adopt(server, folder, **options)
    assert not (folder / "ws" / "gmv.toml").exists()
    assert not (folder / "ws" / "ledger.duckdb").exists()


def test_another_encoder_is_refused_with_the_one_that_fits(folder: Path, server: Loopback) -> None:
    create(server, dim=12)
    tiny_workspace.write(folder / "theirs", TRAINING)
    small = [np.random.default_rng(seed).random(12).tolist() for seed in TRAINING]
    payloads = [{"uri": str(folder / "theirs" / f"{seed}.png")} for seed in TRAINING]
    batch = m.Batch(ids=list(TRAINING), vectors=small, payloads=payloads)
    theirs(server, "PUT", "/collections/theirs/points", m.PointsBatch(batch=batch))
    plain = {"uri": "uri", "owner": "owner", "label": "label", "uri_prefix": ""}
    refused(server, folder, CollectionMismatch, r"have 12 numbers, and the encoder pixels:8 gives 192; encoders of 12 "
            "numbers: pixels:2", fields=plain)  # fmt: skip
    refused(server, folder, CollectionMismatch, r"not embedded by pixels:2: 16 of its images, embedded again, have a "
            r"cosine of 0\.\d+ with .* 0.99 is needed; this program knows no other", encoder="pixels:2",
            fields=plain, allow=[str(folder)])  # fmt: skip


def test_the_encoder_that_fits_is_measured(
    folder: Path, server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another of the same dimension, whose weights are here, is tried on the sample."""
    from gmv_qdrant.models import registry
    from gmv_qdrant.models.encoders.pixels import PixelEncoder

    class Upside(PixelEncoder):
        def prepare(self, image: Any) -> Any:
            return super().prepare(image).flip(0)

    def load(argument: str, runtime: Any) -> Any:
        plain = registry.FAMILIES["encoder"]["pixels"].load("8", runtime)
        return Upside("upside:8", 8, "cosine", plain.storage, "upside down")

    monkeypatch.setitem(registry.FAMILIES["encoder"], "upside", registry.Family(load))
    create(server)
    put(server, folder, TRAINING)
    refused(server, folder, CollectionMismatch, r"pixels:8 fits \(cosine 1\.0000\): adopt it with --encoder pixels:8",
            encoder="upside:8")  # fmt: skip


def test_a_few_images_may_have_changed_but_not_many(folder: Path, server: Loopback) -> None:
    create(server)
    put(server, folder, TRAINING)
    for seed in range(0, 40, 8):
        (folder / "theirs" / f"{seed}.png").write_bytes(tiny_workspace.png(900 + seed))
    (folder / "theirs" / "1.png").unlink()
    (folder / "theirs" / "2.png").write_bytes(b"no image")
    assert adopt(server, folder, sample=40)["sample_differing"] == 5
    for seed in range(0, 40, 2):
        (folder / "theirs" / f"{seed}.png").write_bytes(tiny_workspace.png(900 + seed))
    with pytest.raises(CollectionMismatch, match="was not embedded by pixels:8"):
        adopt(server, folder, sample=40)
    assert (folder / "ws" / "gmv.toml").exists(), "what was adopted before stays"


def test_euclid_with_lengths_that_differ_is_refused(folder: Path, server: Loopback) -> None:
    create(server, distance="Euclid")
    put(server, folder, TRAINING[:20], lengths=1.0)
    put(server, folder, TRAINING[20:], lengths=9.0)
    refused(server, folder, CollectionMismatch, "lengths from 1 to 9.*distance Cosine")


# -- bad input -------------------------------------------------------------------------------------------------------


def test_each_wrong_name_has_its_sentence(folder: Path, server: Loopback) -> None:
    create(server, name="clip")
    put(server, folder, TRAINING, name="clip")
    create(server, collection="empty")
    cases: list[tuple[type[GmvError], str, dict[str, Any]]] = [
        (SettingsError, "which server", {"qdrant_url": None}),
        (StoreError, "no answer from http://127.0.0.1:9 ", {"qdrant_url": "http://127.0.0.1:9"}),
        (StoreError, r"has no collection 'photos' \(it has: empty, theirs\)", {"collection": "photos"}),
        (StoreError, "'empty' has no points: there is nothing to adopt", {"collection": "empty"}),
        (CollectionMismatch, "has no vector 'dino'; it has 'clip'", {"vector_name": "dino"}),
        (StoreError, "has no points with customer = '9': check the field", {"where": {"customer": "9"}}),
        (SettingsError, "field 'uri', they have customer, file, .*with --uri-field", {"fields": {"uri": "uri"}}),
        (SettingsError, "a payload field 'artist', they have", {"fields": {"owner": "artist"}}),
        (SettingsError, "a payload field 'colour'", {"fields": {"attributes": ("year", "colour")}}),
        (SettingsError, "not to 'creator'", {"fields": {"creator": "x"}}),
        (SourceError, "none of 40 images .*nowhere/theirs.*--uri-prefix", {"fields": {"uri_prefix": "/nowhere/"}}),
    ]  # fmt: skip
    for kind, sentence, options in cases:
        refused(server, folder, kind, sentence, **options)
    server.api_key = "secret"
    refused(server, folder, StoreError, "wants an API key: set QDRANT_API_KEY")
    assert not (folder / "ws").exists() or not any((folder / "ws").iterdir())


def test_points_without_a_path_are_left_out_and_counted(
    folder: Path, server: Loopback, generated: Path
) -> None:
    create(server)
    put(server, folder, TRAINING)
    put(server, folder, range(60, 65), file={})
    assert adopt(server, folder)["without_uri"] == 5
    workspace = Workspace(folder / "ws")
    summary = workspace.value([generated])
    assert summary.get("unknown_points", 0) <= 5
    assert tiny_workspace.values(workspace) == pytest.approx(expected(TRAINING), abs=1e-6)


def test_images_that_went_are_quarantined(folder: Path, server: Loopback, generated: Path) -> None:
    create(server)
    put(server, folder, TRAINING)
    adopt(server, folder)
    best = max(expected(TRAINING), key=lambda seed: expected(TRAINING)[seed])
    (folder / "theirs" / f"{best}.png").unlink()
    workspace = Workspace(folder / "ws")
    assert workspace.value([generated])["quarantined"] >= 1
    rows = workspace.sql("SELECT uri, reason FROM quarantine").fetchall()
    assert [(Path(uri).name, "re-rank vector" in reason) for uri, reason in rows] == [(f"{best}.png", True)]
    assert tiny_workspace.values(workspace)[best] == 0
    tiny_workspace.write(folder / "theirs", [int(best)])
    with workspace.ledger.write() as con:
        con.execute("UPDATE generated SET version_valued = 0")
    workspace.update()
    assert tiny_workspace.values(workspace) == pytest.approx(expected(TRAINING), abs=1e-6)


# -- a collection that changes ---------------------------------------------------------------------------------------


def test_points_that_come_and_go_while_it_is_valued(folder: Path, server: Loopback, generated: Path) -> None:
    create(server)
    put(server, folder, TRAINING)
    adopt(server, folder)
    workspace = Workspace(folder / "ws")
    # exact copies of what is valued: whoever looks at the collection alone finds them first
    put(server, folder, [*GENERATED, *range(200, 205)])
    delete(server, [0, 1])
    summary = workspace.value([generated])
    assert summary["unknown_points"] >= len(GENERATED)
    there = [seed for seed in TRAINING if seed > 1]
    found = tiny_workspace.values(workspace)
    assert {found.pop("0"), found.pop("1")} == {0.0}
    assert found == pytest.approx(expected(there), abs=1e-6), "nobody's place was taken by a stranger"

    again = adopt(server, folder)
    assert (again["new"], again["vanished"], again["unchanged"]) == (10, 2, 38)
    assert workspace.stale() == len(GENERATED)
    workspace.update()
    now = [*there, *GENERATED, *range(200, 205)]
    assert tiny_workspace.values(workspace) == pytest.approx(expected(now), abs=1e-6)
    assert workspace.check() == []

    put(server, folder, [0], photographer="dee")  # back again
    put(server, folder, [5], photographer="dee", kind="other")  # described otherwise
    third = adopt(server, folder)
    assert (third["new"], third["changed"], third["unchanged"]) == (1, 1, 47)
    workspace.update()
    assert tiny_workspace.values(workspace) == pytest.approx(expected([0, *now]), abs=1e-6)
    rows = workspace.sql("SELECT owner, count(*) FROM sources WHERE owner = 'dee' GROUP BY ALL").fetchall()
    assert rows == [("dee", 2)]
    assert workspace.check() == []
    assert server.writes() == []


def test_update_says_that_the_collection_has_changed(folder: Path, server: Loopback, generated: Path) -> None:
    create(server)
    put(server, folder, TRAINING)
    adopt(server, folder)
    workspace = Workspace(folder / "ws")
    workspace.value([generated])
    put(server, folder, [70, 71])
    adopt(server, folder)
    delete(server, [70])
    with pytest.raises(StoreError, match=r"lacks 1 training images .*'gmv-qdrant adopt' brings"):
        workspace.update()
    findings = workspace.check()
    assert [finding.kind for finding in findings] == ["unfinished", "points"]
    with pytest.raises(StoreError, match="'gmv-qdrant adopt' brings"):
        workspace.check(repair=True)
    adopt(server, folder)
    workspace.update()
    assert tiny_workspace.values(workspace) == pytest.approx(expected([*TRAINING, 71]), abs=1e-6)
    assert workspace.check() == []


def test_a_collection_that_is_deleted_or_emptied_changes_nothing_here(
    folder: Path, server: Loopback, generated: Path
) -> None:
    create(server)
    put(server, folder, TRAINING)
    adopt(server, folder)
    workspace = Workspace(folder / "ws")
    workspace.value([generated])
    before = tiny_workspace.values(workspace)
    delete(server, TRAINING)
    with pytest.raises(GmvError, match="'theirs' has no points any more"):
        adopt(server, folder)
    theirs(server, "DELETE", "/collections/theirs", b"")
    for call in (lambda: workspace.value([generated], batch="b"), lambda: adopt(server, folder)):
        with pytest.raises(StoreError, match="has no collection 'theirs'"):
            call()
    create(server, dim=12)
    with pytest.raises(CollectionMismatch, match="now has vectors of 12 numbers, not 192"):
        workspace.value([generated], batch="b")
    assert tiny_workspace.values(workspace) == before
    assert workspace.status()["store"]["engine"] == "server"


def test_a_scroll_that_is_cut_off_goes_on(
    folder: Path, server: Loopback, generated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gmv_qdrant.vectors.server.limits.BATCH", 8)
    create(server)
    put(server, folder, TRAINING)
    passing = [Fault("drop"), Fault("answer", 503), Fault("half"), *[Fault("slow")] * 7]
    server.fail(*passing, *[Fault("drop")] * 200, on="/points/scroll")
    with pytest.raises(StoreError, match="no answer"):
        adopt(server, folder)
    server.faults.clear()
    assert 0 < Workspace(folder / "ws").status()["training"]["images"] < 40
    summary = adopt(server, folder)
    assert summary["new"] + summary["unchanged"] == 40
    workspace = Workspace(folder / "ws")
    workspace.value([generated])
    assert tiny_workspace.values(workspace) == pytest.approx(expected(TRAINING), abs=1e-6)
    assert workspace.check() == []


# -- what two flags ask for ------------------------------------------------------------------------------------------


def test_quantization_when_asked_for(folder: Path, stand_in: Loopback, generated: Path) -> None:
    create(stand_in, name="clip")
    seeds = range(300)
    put(stand_in, folder, seeds, name="clip")
    assert adopt(stand_in, folder, enable_quantization=True)["quantized"] == 300
    kinds = {(method, path.removeprefix("/collections/theirs")) for method, path, _ in stand_in.writes()}
    assert kinds == {("PATCH", "")}
    assert Workspace(folder / "ws").status()["store"]["quantization"] == "pq"
    seen = len(stand_in.writes())
    assert adopt(stand_in, folder, enable_quantization=True).get("new", 0) == 0
    assert stand_in.writes()[seen:] == []
    workspace = Workspace(folder / "ws")
    workspace.value([generated])
    assert tiny_workspace.values(workspace) == pytest.approx(expected(seeds), abs=1e-6)
