"""The embedded store: locks, crashes, and what is really on disk."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gmv_qdrant.errors import CollectionMismatch, StoreError, StoreUnavailable
from gmv_qdrant.vectors.embedded import store as edge
from gmv_qdrant.vectors.embedded.store import EdgeStore, read_status
from gmv_qdrant.vectors.protocol import CollectionSpec, PointId, SearchParams
from gmv_qdrant.vectors.search import default_oversampling, default_params

SPEC = CollectionSpec("training", 32)
EXACT = SearchParams(exact=True)


def rows_of(n: int, dim: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


def filled(path: Path, n: int, spec: CollectionSpec = SPEC) -> EdgeStore:
    store = EdgeStore.open(path, spec)
    store.upsert(list(range(n)), rows_of(n, spec.dim), [{"n": i} for i in range(n)])
    return store


def run(code: str, *args: object) -> subprocess.Popen[str]:
    """Another process."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


OPEN = """
import sys
from pathlib import Path
from gmv_qdrant.errors import GmvError
from gmv_qdrant.vectors.protocol import CollectionSpec
from gmv_qdrant.vectors.embedded.store import EdgeStore
try:
    EdgeStore.open(Path(sys.argv[1]), CollectionSpec("training", 32)).close()
    print("opened")
except GmvError as e:
    print(type(e).__name__, e)
"""


def said(child: subprocess.Popen[str]) -> str:
    return child.communicate(timeout=60)[0].strip()


def test_a_second_process_is_told_to_wait(tmp_path: Path) -> None:
    with EdgeStore.open(tmp_path, SPEC):
        answer = said(run(OPEN, tmp_path))
        assert answer.startswith("StoreUnavailable another gmv-qdrant is using the collection 'training'")
        with pytest.raises(StoreUnavailable, match="wait until it is done"):
            EdgeStore.open(tmp_path, SPEC)
        EdgeStore.open(tmp_path, replace(SPEC, name="other")).close()
    assert said(run(OPEN, tmp_path)) == "opened"


def test_an_optimizer_that_outlived_its_parent_keeps_the_store(tmp_path: Path) -> None:
    """The parent was killed: its lock is gone, but the shard is held by the process that goes on."""
    filled(tmp_path, 5).close()
    hold = (
        "import sys, qdrant_edge as q; s = q.EdgeShard.load(sys.argv[1]);"
        "print('held', flush=True); sys.stdin.readline()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / "training")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout
    assert child.stdout.readline() == "held\n"
    with pytest.raises(StoreUnavailable, match="another gmv-qdrant is using"):
        EdgeStore.open(tmp_path, SPEC)
    child.communicate("\n", timeout=30)
    EdgeStore.open(tmp_path, SPEC).close()


@pytest.mark.parametrize(
    ("other", "found"),
    [
        (replace(SPEC, dim=64), r"'recall' \(32 numbers, cosine\).*'recall' \(64 numbers, cosine\)"),
        (replace(SPEC, distance="dot"), r"\(32 numbers, dot\)"),
        (replace(SPEC, vector_name="clip"), r"has the vector 'recall'.*ask for 'clip'"),
    ],
)
def test_another_collection_than_asked_for(tmp_path: Path, other: CollectionSpec, found: str) -> None:
    filled(tmp_path, 5).close()
    with pytest.raises(CollectionMismatch, match=found):
        EdgeStore.open(tmp_path, other)
    with EdgeStore.open(tmp_path, SPEC) as store:  # a refusal leaves no lock behind
        assert store.count() == 5


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(StoreError, match="cannot write to the store's folder"):
        EdgeStore.open(file, SPEC)
    for name in ("", "..", "a/b"):
        with pytest.raises(StoreError, match="cannot name a collection"):
            EdgeStore.open(tmp_path, replace(SPEC, name=name))
    with pytest.raises(StoreError, match="no embedded collection 'training'"):
        read_status(tmp_path, SPEC)


def test_a_folder_that_disappears_is_noticed(tmp_path: Path) -> None:
    store = filled(tmp_path, 5)
    shutil.rmtree(tmp_path / "training")
    with pytest.raises(StoreError, match="has disappeared"):
        store.upsert([9], rows_of(1), [{}])
    with pytest.raises(StoreError, match="has disappeared"):
        store.flush()
    with pytest.raises(StoreError, match="has disappeared"):
        store.close()
    with EdgeStore.open(tmp_path, SPEC) as again:  # and the lock is free
        assert again.count() == 0


def test_a_nearly_full_disk_is_said_before_it_kills_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with filled(tmp_path, 300) as store:
        little = shutil._ntuple_diskusage(2**40, 2**40 - 2**20, 2**20)  # type: ignore[attr-defined]
        monkeypatch.setattr(shutil, "disk_usage", lambda _: little)
        with pytest.raises(
            StoreError, match="nearly full: to store these points takes 128 MB, 1 MB are free"
        ):
            store.upsert([900], rows_of(1), [{}])
        with pytest.raises(StoreError, match="nearly full: to quantize"):
            store.optimize(force=True)
        assert store.count() == 300


def test_a_broken_segment_is_a_sentence(tmp_path: Path) -> None:
    filled(tmp_path, 300).close()
    for segment in (tmp_path / "training" / "segments").glob("*/segment.json"):
        segment.write_text("{broken")
    with pytest.raises(StoreError, match="the embedded store could not open"):
        EdgeStore.open(tmp_path, SPEC)


@pytest.mark.parametrize("dim", [1, 3, 27, 192, 512, 3072])
def test_every_dimension_can_be_quantized(tmp_path: Path, dim: int) -> None:
    spec = CollectionSpec("training", dim)
    rows = rows_of(300, dim) + 2  # one-dimensional vectors would all be the same under cosine
    with EdgeStore.open(tmp_path, spec) as store:
        store.upsert(list(range(300)), rows, [{}] * 300)
        assert store.optimize(force=True)
        status = store.status()
        assert (status.quantization, status.coded_points, status.tail_points) == ("pq", 300, 0)
        assert status.code_bytes == 300 * -(-dim // 4)
        exact = store.search(rows[:5], 20, EXACT)
        coded = store.search(rows[:5], 20, default_params("pq", 20))
        assert [h.ids for h in coded] == [h.ids for h in exact]


@pytest.mark.parametrize(("kind", "bytes_a_point"), [("pq", 8), ("turbo", 16), ("scalar", 36), ("binary", 8)])
def test_the_proof_of_quantization_is_on_disk(tmp_path: Path, kind: Any, bytes_a_point: int) -> None:
    spec = replace(SPEC, quantization=kind)
    with filled(tmp_path, 2_000, spec) as store:
        before = store.status()
        assert (before.quantization, before.coded_points, before.tail_points) == ("none", 0, 2_000)
        assert (before.code_bytes, before.state) == (0, "pending")
        assert store.optimize(force=True)
        assert not store.optimize(force=True)
        status = store.status()
        assert (status.quantization, status.coded_points, status.tail_points) == (kind, 2_000, 0)
        assert status.vector_bytes == 2_000 * 32 * 4
        assert abs(status.code_bytes / 2_000 - bytes_a_point) <= 8
        assert status.state == "green"
        # Another process sees the same, while this one holds the store.
        code = f"""
            import sys
            from pathlib import Path
            from gmv_qdrant.vectors.protocol import CollectionSpec
            from gmv_qdrant.vectors.embedded.segments import read_status
            print(read_status(Path(sys.argv[1]), CollectionSpec("training", 32, quantization={kind!r})))
        """
        assert said(run(code, tmp_path)) == str(status)

        store.delete(list(range(100)))
        store.upsert([200, 5_000], rows_of(2, seed=1), [{}, {}])
        tail = store.status()
        assert (tail.points, tail.coded_points, tail.tail_points) == (1_901, 1_899, 2)


def test_without_quantization_there_is_nothing_to_build(tmp_path: Path) -> None:
    with filled(tmp_path, 1_000, replace(SPEC, quantization="none")) as store:
        assert not store.optimize(force=True)
        status = store.status()
        assert (status.quantization, status.tail_points, status.state) == ("none", 0, "green")


def test_quantization_can_be_changed(tmp_path: Path) -> None:
    filled(tmp_path, 600).close()
    for kind in ("scalar", "pq", "turbo"):
        with EdgeStore.open(tmp_path, replace(SPEC, quantization=kind)) as store:  # type: ignore[arg-type]
            assert store.status().tail_points == 600
            assert store.optimize(force=True)
            assert store.status().quantization == kind
            assert store.count() == 600


def test_only_a_tail_that_warrants_it_is_quantized(tmp_path: Path) -> None:
    spec = CollectionSpec("training", 4, quantization="scalar")
    with EdgeStore.open(tmp_path, spec) as store:
        store.upsert(list(range(255)), rows_of(255, 4), [{}] * 255)
        assert store.status().state == "exact"
        assert not store.optimize()
        store.upsert([255], rows_of(1, 4), [{}])
        assert store.status().state == "pending"
        assert store.optimize()
        assert store.status().state == "green"
        store.upsert(list(range(1_000, 6_000)), rows_of(5_000, 4), [{}] * 5_000)
        assert store.status().tail_points == 5_000
        assert not store.optimize()
        store.upsert([6_000], rows_of(1, 4), [{}])
        assert store.status().state == "pending"
        assert store.optimize()
        assert store.status().tail_points == 0


def test_a_small_collection_stays_exact(tmp_path: Path) -> None:
    with filled(tmp_path, 255) as store:
        assert not store.optimize(force=True)
        assert store.status().state == "exact"
        hits = store.search(rows_of(1), 10, default_params("pq", 10))[0]
        assert hits.ids == store.search(rows_of(1), 10, EXACT)[0].ids


def test_a_graph_is_built_from_a_size_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "HNSW_POINTS", 1_000)
    with filled(tmp_path, 999) as store:
        store.optimize(force=True)
        assert not graphs(tmp_path)
        store.upsert(list(range(5_000, 5_300)), rows_of(300, seed=2), [{}] * 300)
        store.optimize(force=True)
        assert graphs(tmp_path)
        queries = rows_of(20, seed=3)
        exact = store.search(queries, 20, EXACT)
        coded = store.search(queries, 20, default_params("pq", 20))
        shared = [len(set(a.ids) & set(b.ids)) / 20 for a, b in zip(exact, coded, strict=True)]
        assert np.mean(shared) > 0.98
    with EdgeStore.open(tmp_path, SPEC) as store:  # opening doesn't drop it
        assert graphs(tmp_path)
        assert not store.optimize(force=True)


def graphs(path: Path) -> bool:
    return any('"m":16' in f.read_text() for f in path.glob("training/segments/*/segment.json"))


def test_the_log_is_folded_in_as_points_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edge, "FLUSH_EVERY", 2_000)
    with EdgeStore.open(tmp_path, SPEC) as store:
        store.upsert(list(range(1_999)), rows_of(1_999), [{}] * 1_999)
        assert read_status(tmp_path, SPEC).points == 0
        store.upsert([1_999], rows_of(1), [{}])
        assert read_status(tmp_path, SPEC).points == 2_000


def test_kill_during_upsert_loses_nothing_acknowledged(tmp_path: Path) -> None:
    code = """
        import sys
        import numpy as np
        from pathlib import Path
        from gmv_qdrant.vectors.protocol import CollectionSpec
        from gmv_qdrant.vectors.embedded.store import EdgeStore
        store = EdgeStore.open(Path(sys.argv[1]), CollectionSpec("training", 32))
        rows = np.random.default_rng(0).standard_normal((100_000, 32)).astype(np.float32)
        for i in range(0, 100_000, 100):
            store.upsert(list(range(i, i + 100)), rows[i:i + 100], [{"n": j} for j in range(i, i + 100)])
            print(i + 100, flush=True)
    """
    child = run(code, tmp_path)
    assert child.stdout
    lines = [child.stdout.readline() for _ in range(30)]
    time.sleep(float(np.random.default_rng().random()) / 5)
    child.send_signal(signal.SIGKILL)
    lines += child.communicate()[0].splitlines()
    acknowledged = max(int(line) for line in lines if line.strip().isdigit() and int(line) % 100 == 0)
    with EdgeStore.open(tmp_path, SPEC) as store:
        assert store.count() >= acknowledged
        found = {p.id: p.payload for page in store.scroll() for p in page}
        assert all(found[i] == {"n": i} for i in range(acknowledged))


@pytest.mark.parametrize("after", [0.0, 0.3])
def test_killing_the_optimizer_leaves_the_store_whole(
    tmp_path: Path, after: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = CollectionSpec("training", 192)
    store = filled(tmp_path, 3_000, spec)
    popen, states = subprocess.Popen, []

    def killed(*args: Any, **kwargs: Any) -> Any:
        child = popen(*args, **kwargs)
        states.append(child)
        time.sleep(after)
        os.kill(child.pid, signal.SIGKILL)
        return child

    with monkeypatch.context() as patch:
        patch.setattr(edge.subprocess, "Popen", killed)
        with pytest.raises(StoreError, match=r"quantizing 'training' stopped.*run it again"):
            store.optimize(force=True)
    assert states
    assert store.count() == 3_000
    assert not list((tmp_path / "training").glob("temp_segments/*"))
    assert store.optimize(force=True)
    assert store.status().coded_points == 3_000
    store.close()


def test_status_says_that_an_optimizer_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    popen = subprocess.Popen

    class Watched(popen[str]):
        def communicate(self, *args: Any, **kwargs: Any) -> Any:
            seen.append(read_status(tmp_path, SPEC))
            return super().communicate(*args, **kwargs)

    with filled(tmp_path, 600) as store:
        monkeypatch.setattr(edge.subprocess, "Popen", Watched)
        store.optimize(force=True)
        assert seen[0].state == "optimizing"
        assert seen[0].coded_points <= seen[0].points == 600
        assert store.status().state == "green"


def test_a_note_left_by_a_dead_optimizer_is_not_believed(tmp_path: Path) -> None:
    filled(tmp_path, 300).close()
    with run("pass") as child:
        pass
    edge.write_note(tmp_path, "training", 300, child.pid)
    assert read_status(tmp_path, SPEC).state == "pending"


def test_purging_leaves_nothing_of_deleted_points_on_disk(tmp_path: Path) -> None:
    marks = [f"secret-{i}-name".encode() for i in range(3)]
    with EdgeStore.open(tmp_path, SPEC) as store:
        rows = rows_of(600)
        payloads = [{"owner": f"secret-{i % 3}-name"} for i in range(600)]
        store.upsert(list(range(600)), rows, payloads)
        store.optimize()
        store.delete([i for i in range(600) if i % 3 == 1])
        store.flush()
        before = b"".join(f.read_bytes() for f in (tmp_path / "training").rglob("*") if f.is_file())
        assert marks[1] in before  # the engine alone keeps it
        store.purge()
        after = b"".join(f.read_bytes() for f in (tmp_path / "training").rglob("*") if f.is_file())
        assert [mark in after for mark in marks] == [True, False, True]
        unit = (rows[1] / np.linalg.norm(rows[1])).astype(np.float32)
        assert unit[:4].tobytes() not in after
        assert (store.count(), store.status().coded_points) == (400, 0)
        assert store.optimize()
        assert store.count() == store.status().coded_points == 400


def test_ids_of_all_forms_survive_reopening(tmp_path: Path) -> None:
    ids: list[PointId] = [0, 2**64 - 1, uuid.UUID(int=3), uuid.uuid4()]
    with EdgeStore.open(tmp_path, SPEC) as store:
        store.upsert(ids, rows_of(4), [{}] * 4)
    with EdgeStore.open(tmp_path, SPEC) as store:
        assert {p.id for page in store.scroll() for p in page} == set(ids)
        assert all(type(i) in (int, uuid.UUID) for i in store.search(rows_of(1), 4, EXACT)[0].ids)


def test_oversampling_names_enough_candidates() -> None:
    for limit in (1, 100, 200, 400, 700):
        assert default_oversampling("pq", limit) * limit >= max(1_600, 4 * limit)
    assert default_oversampling("none", 200) == 1
