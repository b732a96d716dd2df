"""`engine = ray`: what the local engine gives, whoever is killed; and who sees which error and which secret.

Real Ray, real worker processes, against a stand-in of a Qdrant server. Where processes don't matter, the same workers
run in this one.
"""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from click.testing import CliRunner
from pydantic import SecretStr
from store.loopback import Fault, Loopback

from gmv_qdrant import Workspace
from gmv_qdrant.cli.main import cli
from gmv_qdrant.cluster import jobs, wire
from gmv_qdrant.cluster.jobs import Sizes
from gmv_qdrant.cluster.reading import messages
from gmv_qdrant.cluster.snapshot import Snapshot
from gmv_qdrant.cluster.workers import Brief
from gmv_qdrant.errors import FingerprintMismatch, LedgerError, SettingsError, SourceError, StoreError
from gmv_qdrant.images.records import Record, Unusable
from gmv_qdrant.images.sources import open_sources
from gmv_qdrant.pipeline.matching import Candidates, Matches
from gmv_qdrant.settings import Settings
from gmv_qdrant.shards import NAMED_BY_CONTENT, RemoteShards

KEY = "sk-9f3e-very-secret"
GENERATED = range(100, 120)
CHUNKS = 8
"""Of eight images at most: four of the folder, three of the tar, and the single file."""

# Ray Data warns of settings of its own whenever its context is made.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "ROWS", {"cpu": 8, "gpu": 8})
    for name in ("QDRANT_URL", "QDRANT_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tiny.scratch() as path:
        yield path


@pytest.fixture(scope="module")
def cache(folder: Path) -> Iterator[Path]:
    """Where copies of remote shards go, in this process and in workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder / "cache"


@pytest.fixture(scope="module")
def ray_logs(cache: Path) -> Iterator[Path]:
    """A small cluster of this machine, and the folder of its logs."""
    import ray

    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        yield Path(ray._private.worker._global_node.get_logs_dir_path())
    finally:
        ray.shutdown()


@pytest.fixture(scope="module")
def images(folder: Path) -> list[Path]:
    """A folder with metadata and a damaged file, a tar that brings some contents again, a single file."""
    training = folder / "training"
    tiny.write(training, range(30))
    rows = [f"{seed}.png,{'ada' if seed % 2 else 'bo'},{seed % 3}" for seed in range(30)]
    (training / "metadata.csv").write_text("\n".join(["file_name,owner,label", *rows]) + "\n")
    (training / "broken.png").write_bytes(tiny.png(1)[:60])
    with tarfile.open(folder / "more.tar", "w") as tar:
        for seed in range(25, 45):
            member = tarfile.TarInfo(f"class/{seed}.png")
            member.size = len(tiny.png(seed))
            tar.addfile(member, io.BytesIO(tiny.png(seed)))
    tiny.write(folder / "single", [50])
    tiny.write(folder / "generated", GENERATED)
    return [training, folder / "more.tar", folder / "single" / "50.png"]


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Loopback]:
    with Loopback(folder / "server") as loopback:
        yield loopback
    assert loopback.invalid == []


def make(folder: Path, server: Loopback, name: str, engine: str, **settings: Any) -> Workspace:
    given = {**tiny.SETTINGS, "collection": name, "qdrant_url": server.url, **settings}
    return Workspace.init(folder / name, engine=engine, **given)


EVERYTHING = {
    "training": """SELECT point_id, content_hash, label, width, height, attributes, epoch_withdrawn IS NULL AS there
        FROM training""",
    "sources": """SELECT point_id, s.uri, s.owner, s.label, s.licence, s.attributes, s.file_size, s.file_time
        FROM sources s JOIN training USING (training_key)""",
    "generated": "SELECT point_id, uri, batch, label, quality, recall_radius, attributes FROM generated",
    "matches": """SELECT g.uri, g.batch, t.point_id, m.* EXCLUDE (generated_key, training_key) FROM matches m
        JOIN generated g USING (generated_key) JOIN training t USING (training_key)""",
    "reserve": """SELECT g.uri, g.batch, t.point_id, r.* EXCLUDE (generated_key, training_key) FROM reserve r
        JOIN generated g USING (generated_key) JOIN training t USING (training_key)""",
    "quarantine": "SELECT uri, reason FROM quarantine",
    "named vectors": "SELECT space, key FROM features",
    "keys": "SELECT training_key, point_id FROM training UNION ALL SELECT generated_key, uri FROM generated",
}


def everything(workspace: Workspace) -> dict[str, Any]:
    """All that a ledger says, and what it is worth; not where vectors stand, nor when it was written."""
    found: dict[str, Any] = {
        name: sorted(map(repr, workspace.sql(query).fetchall())) for name, query in EVERYTHING.items()
    }
    return {**found, "image": tiny.values(workspace), "owner": tiny.owners(workspace)}


@pytest.fixture(scope="module")
def undisturbed(folder: Path, server: Loopback, images: list[Path]) -> dict[str, Any]:
    """What the local engine makes of these images."""
    workspace = make(folder, server, "undisturbed", "local")
    workspace.ingest(images)
    workspace.value([folder / "generated"])
    found = everything(workspace)
    assert len(found["training"]) == 46
    assert len(found["sources"]) == 51
    assert len(found["matches"]) == len(GENERATED) * tiny.SETTINGS["candidates"]
    return found


def upserts(server: Loopback, collection: str) -> int:
    return sum(request[:2] == ("PUT", f"/collections/{collection}/points") for request in server.requests)


# -- on a cluster ----------------------------------------------------------------------------------------------------


def test_a_cluster_gives_what_the_local_engine_gives(
    folder: Path,
    server: Loopback,
    images: list[Path],
    undisturbed: dict[str, Any],
    ray_logs: Path,
    cache: Path,
) -> None:
    """Feature files behind a URL, a key that the server wants, two workers."""
    key_file = folder / "key"
    key_file.write_text(KEY)
    bucket = folder / "bucket"
    workspace = make(
        folder,
        server,
        "spread",
        "ray",
        ray_workers=2,
        qdrant_api_key=SecretStr(KEY),
        features=f"file://{bucket}",
    )
    server.api_key = KEY
    try:
        counts = workspace.ingest(images)
        assert (counts["new"], counts["sources"], counts["quarantined"]) == (46, 51, 1)
        workspace = Workspace(workspace.path, engine="ray", ray_workers=1, qdrant_api_key_file=key_file)
        assert workspace.value([folder / "generated"])["valued"] == len(GENERATED)
        assert workspace.check() == []
    finally:
        server.api_key = None
    assert everything(workspace) == undisturbed
    assert upserts(server, "spread") == CHUNKS

    shards = [path for path in bucket.rglob("*.npy") if int(path.stem) >= NAMED_BY_CONTENT]
    named = workspace.sql("SELECT count(DISTINCT (space, shard)) FROM features").fetchall()[0][0]
    assert len(shards) == len(list(bucket.rglob("*.npy"))) == named > 3
    assert not (workspace.path / "features").exists()
    assert list(cache.rglob("*.npy"))
    for log in ray_logs.rglob("*"):
        assert log.is_dir() or KEY.encode() not in log.read_bytes(), f"{log} shows the key"
    assert KEY.encode() not in (workspace.path / "ledger.duckdb").read_bytes()


def test_killed_workers_cost_time_and_nothing_else(
    folder: Path, server: Loopback, images: list[Path], undisturbed: dict[str, Any], ray_logs: Path
) -> None:
    """One is killed between its feature shard and its points, one after its points, one while it searches."""
    workspace = make(folder, server, "killed", "ray", ray_workers=2)
    server.fail(Fault("kill"), on="PUT /collections/killed/points")
    server.fail(Fault("kill after"), on="PUT /collections/killed/points")
    workspace.ingest(images)
    assert upserts(server, "killed") == CHUNKS + 2, "only what a killed worker had is done again"
    server.fail(Fault("kill"), on="/points/query")
    workspace = Workspace(workspace.path, engine="ray", ray_workers=1)
    workspace.value([folder / "generated"])
    assert server.faults == []
    assert everything(workspace) == undisturbed
    assert workspace.check(read_images=True) == [], "not even a shard that nobody names is left"


# -- the same workers, in this process -------------------------------------------------------------------------------


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the cluster; every message still goes through its bytes."""

    def answers(
        context: Any, run: Any, records: Any, worker: Any, brief: Brief, tables: Any
    ) -> Iterator[Any]:
        class Here(worker):  # type: ignore[misc]
            def __init__(self) -> None:
                self._error = None
                self._begin(*pickle.loads(pickle.dumps((brief, tables))))

        mine = Here()
        try:
            for part in records.parts():
                for block in messages(part, jobs.ROWS["cpu"]):
                    (answer,) = wire.unpacked(mine(block))
                    if "error" in answer:
                        raise answer["error"]
                    run.absorb(answer["told"])
                    yield answer
        finally:
            mine.context.close()

    monkeypatch.setattr(jobs, "_answers", answers)


@pytest.mark.usefixtures("inline")
@pytest.mark.parametrize(
    "settings",
    [{"views": "flip"}, {"rerank": "engine"}, {"distance": "none"}, {"quantization": "pq", "candidates": 20}],
    ids=str,
)
def test_every_kind_of_evidence(
    folder: Path,
    server: Loopback,
    images: list[Path],
    settings: dict[str, Any],
    request: pytest.FixtureRequest,
) -> None:
    name = f"kind {next(iter(settings.values()))}"
    made = []
    for engine in ("local", "ray"):
        workspace = make(folder, server, f"{name} {engine}", engine, **settings)
        workspace.ingest(images)
        workspace.value([folder / "generated"])
        made.append(everything(workspace))
    assert made[0] == made[1]


@pytest.mark.usefixtures("inline")
def test_life_goes_on(folder: Path, server: Loopback, images: list[Path]) -> None:
    """New images, withdrawn ones that come back, another batch with the same contents, an update."""
    made = []
    tiny.write(folder / "later", [*range(60, 66), *range(100, 110)])
    for engine in ("local", "ray"):
        workspace = make(folder, server, f"life {engine}", engine)
        workspace.ingest(images, owner="cy")
        workspace.value([folder / "generated"])
        workspace.withdraw(owner="ada")
        again = workspace.ingest([images[0]])  # of Ada's 15, the tar brings 3, too; and one is broken
        assert (again["unchanged"], again["sources"], again["quarantined"]) == (15, 3, 13)
        workspace.ingest([images[0]], readmit=True)
        workspace.ingest([folder / "later"], owner="di")
        workspace.update()
        counts = workspace.value([folder / "generated"], batch="second")
        assert "re-rank embedding" not in counts["seconds"], "these contents have vectors already"
        counts = workspace.value([folder / "generated"], batch="second")
        assert (counts.get("valued", 0), counts["unchanged"]) == (0, len(GENERATED))
        assert workspace.check() == []
        made.append(everything(workspace))
    assert made[0] == made[1]


@pytest.mark.usefixtures("inline")
def test_missing_vectors_of_an_adopted_collection(folder: Path, server: Loopback, images: list[Path]) -> None:
    """Workers compute them from the sources, and the driver names them, each once."""
    make(folder, server, "foreign", "local").ingest(images)
    made = []
    for engine in ("local", "ray"):
        path = folder / f"adopted {engine}"
        given = {**tiny.SETTINGS, "qdrant_url": server.url, "collection": "foreign", "vector_name": "recall"}
        Workspace.adopt(path, fields={"uri": "uri"}, **given)
        workspace = Workspace(path, engine=engine)
        workspace.value([folder / "generated"])
        assert workspace.check() == []
        made.append(everything(workspace))
    assert made[0] == made[1]
    assert any("training/rerank" in name for name in made[0]["named vectors"])


@pytest.mark.usefixtures("inline")
def test_workers_refuse_what_they_would_spoil(
    folder: Path, server: Loopback, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = make(folder, server, "spoilt", "ray")
    (folder / "empty.tar").write_bytes(b"\0" * 10240)
    with pytest.raises(SourceError, match="holds no images"):
        workspace.ingest([folder / "empty.tar"])
    server.fail(*[Fault("answer", 403)] * 3, on="PUT /collections/spoilt/points")
    with pytest.raises(StoreError, match="may not store points"):
        workspace.ingest(images)
    server.faults.clear()
    workspace.ingest(images)
    begin = jobs.IngestWorker._begin

    def elsewhere(self: Any, brief: Brief, tables: Any) -> None:
        meta = tables["meta"].to_pylist()
        for row in meta:
            row["value"] = row["value"].replace("pixels", "pixies")
        begin(self, brief, {**tables, "meta": tables["meta"].from_pylist(meta)})

    monkeypatch.setattr(jobs.IngestWorker, "_begin", elsewhere)
    with pytest.raises(FingerprintMismatch, match="pixies"):
        workspace.ingest(images)


# -- parts -----------------------------------------------------------------------------------------------------------


def test_ray_needs_a_server_and_the_package(
    folder: Path, server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    Workspace.init(folder / "embedded", **tiny.SETTINGS)
    done = CliRunner().invoke(cli, ["-w", str(folder / "embedded"), "ingest", str(folder), "--engine", "ray"])
    assert done.exit_code == 1
    assert "needs a Qdrant server" in done.output
    assert "migrate --to-server" in done.output
    workspace = make(folder, server, "no ray", "ray")
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(SettingsError, match=r"pip install 'gmv-qdrant\[ray\]'"):
        workspace.value([folder])


@pytest.mark.parametrize(
    ("given", "cluster", "expected"),
    [
        ({}, {"CPU": 2.0}, Sizes(1, 2.0, 0.0, 8)),
        ({}, {"CPU": 64.0}, Sizes(16, 4, 0.0, 8)),
        ({"ray_workers": 3}, {"CPU": 2.0}, Sizes(3, 2 / 3, 0.0, 8)),
        ({}, {"CPU": 96.0, "GPU": 8.0}, Sizes(8, 8, 1.0, 8)),
        ({"ray_workers": 4, "workers": 6}, {"CPU": 16.0, "GPU": 2.0}, Sizes(4, 4.0, 0.5, 8)),
        ({"device": "cpu"}, {"CPU": 8.0, "GPU": 2.0}, Sizes(2, 4, 0.0, 8)),
    ],
)
def test_sizes_never_ask_for_more_than_there_is(
    given: dict[str, Any], cluster: dict[str, float], expected: Sizes
) -> None:
    sizes = Sizes.of(Settings(**given), cluster)
    assert sizes == expected
    assert sizes.workers * sizes.cpus <= cluster["CPU"]
    assert sizes.workers * sizes.gpus <= cluster.get("GPU", 0)


def test_records_and_evidence_travel_unchanged() -> None:
    rng = np.random.default_rng(0)

    def candidates(n: int) -> list[np.ndarray]:
        return [
            rng.integers(0, 99, n, dtype=np.int32), rng.random(n), rng.integers(0, 2, n, dtype=np.int8),
            rng.random(n, dtype=np.float32),
        ]  # fmt: skip

    evidence = [
        Matches(*candidates(4), radius=0.5, reserve=Candidates(*candidates(2))),
        Matches(*candidates(0), radius=float("inf"), reserve=Candidates(*candidates(0))),
        Matches(*candidates(3), radius=0.25, reserve=Candidates(*candidates(0))),
    ]
    (message,) = wire.unpacked(wire.packed({"evidence": wire.table_of(evidence)}))
    for sent, got in zip(evidence, wire.items_of(message["evidence"], Matches), strict=True):
        assert sent.radius == got.radius
        for a, b in ((sent, got), (sent.reserve, got.reserve)):
            for name in ("keys", "distances", "views", "recall"):
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
                assert getattr(a, name).dtype == getattr(b, name).dtype

    records: list[Record | Unusable] = [
        Record("/a.png", owner="Ada", attributes={"year": 7, "tags": ["x", None]}, size=3, mtime_ns=2**60),
        Record("/a.tar#b.png", data=b"\x00bytes"),
        Unusable("/c.png", "is gone"),
    ]
    assert wire.records_of(wire.records_table(records)) == records


def test_parts_of_sources_are_the_whole(folder: Path, images: list[Path]) -> None:
    paths = [images[2], images[2], images[0], images[1], images[2]]
    whole = open_sources([str(path) for path in paths])
    parts = whole.parts()
    assert [len(part.paths) for part in parts] == [2, 1, 1, 1]
    assert [item for part in parts for item in part] == list(whole)
    only = open_sources([str(path) for path in paths], only=frozenset({str(images[2])}))
    assert len(list(only)) == 3


def test_a_snapshot_cannot_be_written_and_a_brief_shows_no_key(tmp_path: Path) -> None:
    snapshot = Snapshot(tmp_path / "ledger.duckdb", {}, 1)
    with pytest.raises(LedgerError, match="only the driver does"), snapshot.write():
        pass
    brief = Brief(tmp_path, Settings(qdrant_api_key=SecretStr(KEY)), tmp_path, 0)
    assert KEY not in repr(brief) + str(brief) + repr(vars(brief))
    back = pickle.loads(pickle.dumps(brief))
    assert back.settings.api_key.get_secret_value() == KEY


def test_remote_shards_are_named_by_content_and_copied_once(folder: Path, cache: Path) -> None:
    url = f"file://{folder}/elsewhere/space"
    rows = np.arange(12, dtype=np.float16).reshape(4, 3)
    shards = RemoteShards(url)
    assert shards.numbers() == []
    number = shards.write(rows)
    assert shards.write(rows) == number, "work done twice writes the same file"
    other = shards.write(rows + 1)
    assert shards.numbers() == sorted([number, other])
    assert min(number, other) >= NAMED_BY_CONTENT

    shards.forget([other])
    assert shards.copies.numbers() == [other]
    np.testing.assert_array_equal(RemoteShards(url).open(number), rows)
    assert shards.copies.numbers() == sorted([number, other])
    shards.remove([number])
    assert shards.numbers() == shards.copies.numbers() == [other]
    with pytest.raises(StoreError, match="check --repair"):
        shards.open(number)


def test_a_place_for_feature_files_is_ones_own(folder: Path) -> None:
    (folder / "taken").mkdir()
    (folder / "taken" / "file").touch()
    for place in (str(folder / "taken"), f"file://{folder}/taken"):
        with pytest.raises(SettingsError, match="a place of its own"):
            Workspace.init(folder / "nowhere", features=place, **tiny.SETTINGS)
    with pytest.raises(SettingsError, match="carries a password"):
        Workspace.init(folder / "nowhere", features="s3://me:sesame@bucket/x", **tiny.SETTINGS)
    assert not (folder / "nowhere").exists()
    kept = Workspace.init(folder / "local place", features=str(folder / "ssd"), **tiny.SETTINGS)
    kept.ingest([folder / "single" / "50.png"])
    assert list((folder / "ssd").rglob("*.npy"))
    assert Workspace(folder / "local place").settings.features == str(folder / "ssd")
    with pytest.raises(FingerprintMismatch, match="features"):
        Workspace(folder / "local place", features=str(folder / "other"))
