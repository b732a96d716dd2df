"""Steps of the pipeline by themselves: matching on arrays, and what one process sees of another's withdrawals."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_workspace

from gmv_qdrant import Workspace
from gmv_qdrant.errors import StoreError, StoreUnavailable
from gmv_qdrant.method import distances
from gmv_qdrant.pipeline.lookup import Lookup
from gmv_qdrant.pipeline.matching import Matcher
from gmv_qdrant.vectors.protocol import Hits


@pytest.fixture
def root() -> Iterator[Path]:
    with tiny_workspace.scratch() as folder:
        yield folder


def fill(root: Path, **settings: str) -> Workspace:
    made = Workspace.init(root / "ws", **{**tiny_workspace.SETTINGS, **settings})
    made.ingest(tiny_workspace.write(root / "a", range(10)), owner="ada")
    made.ingest(tiny_workspace.write(root / "b", range(10, 20)), owner="bo")
    made.value(tiny_workspace.write(root / "g", range(50, 56)))
    return made


def elsewhere(workspace: Workspace, *words: str) -> None:
    command = [sys.executable, "-m", "gmv_qdrant", "-w", str(workspace.path), *words]
    subprocess.run(command, check=True, capture_output=True)


class Arrays:
    """A collection and its re-rank vectors as two arrays; the key of a point is its row, plus one."""

    def __init__(self, recall: np.ndarray, rerank: np.ndarray) -> None:
        self.recall, self.rerank = recall, rerank

    def search(self, queries: np.ndarray, limit: int) -> list[Hits]:
        found = []
        for query in queries:
            away = (1 - self.recall @ query).astype(np.float32)
            order = np.argsort(away, kind="stable")[:limit]
            found.append(Hits([int(row) for row in order], away[order]))
        return found

    def keys(self, points: set[str]) -> dict[str, int]:
        return {point: int(point) + 1 for point in points}

    def require(self, keys: set[int]) -> set[int]:
        return keys

    def read(self, keys: np.ndarray) -> np.ndarray:
        return self.rerank[keys - 1]


@pytest.mark.parametrize("views", [1, 2])
def test_matching_needs_arrays_and_nothing_else(views: int) -> None:
    random = np.random.default_rng(views)
    recall = random.normal(size=(60, 8)).astype(np.float32)
    recall /= np.linalg.norm(recall, axis=1, keepdims=True)
    rerank = random.normal(size=(60, 5)).astype(np.float32)
    arrays = Arrays(recall, rerank)
    matcher = Matcher(arrays.search, arrays, "sqeuclid", candidates=6, spare=lambda: 2 if views == 1 else 0)  # type: ignore[arg-type]
    queries = recall[: 3 * views].reshape(3, views, 8)
    generated = random.normal(size=(3, views, 5)).astype(np.float32)
    for number, matches in enumerate(matcher.match(queries, generated)):
        near = {row for view in queries[number] for row in np.argsort(1 - recall @ view, kind="stable")[:6]}
        away = {
            row: min(distances("sqeuclid", one, rerank[row][None])[0] for one in generated[number])
            for row in near
        }
        expected = sorted(near, key=lambda row: (away[row], str(row)))[:6]
        assert (matches.keys - 1).tolist() == expected
        assert matches.distances.tolist() == [away[row] for row in expected]
        assert len(matches.spare.keys) == (2 if views == 1 else 0)


def test_a_lookup_never_sees_what_another_process_withdrew(root: Path) -> None:
    workspace = fill(root)
    lookup = Lookup(workspace.path, workspace.settings, workspace.published)
    before = lookup.find(tiny_workspace.png(3), "3.png").matches
    assert before.distances[0] == 0
    elsewhere(workspace, "withdraw", "--owner", "ada")
    elsewhere(workspace, "ingest", str(root / "g"), "--owner", "chi")
    after = lookup.find(tiny_workspace.png(3), "3.png").matches
    names = workspace.sql("SELECT training_key FROM sources WHERE owner IN ('bo', 'chi')").fetchall()
    assert set(after.keys.tolist()) <= {key for (key,) in names}
    fresh = Lookup(workspace.path, workspace.settings, workspace.published)
    np.testing.assert_array_equal(fresh.find(tiny_workspace.png(3), "3").matches.distances, after.distances)


def test_a_lookup_is_what_value_finds_and_writes_nothing(root: Path) -> None:
    workspace = fill(root)
    kept = {path: path.read_bytes() for path in (workspace.path / "vectors").iterdir()}
    ledger = (workspace.path / "ledger.duckdb").read_bytes()
    lookup = Lookup(workspace.path, workspace.settings, workspace.published)
    found = lookup.find(tiny_workspace.png(52), "x").matches
    rows = workspace.sql(
        """SELECT training_key, distance FROM matches JOIN generated USING (generated_key)
        WHERE uri LIKE '%52.png' ORDER BY rank"""
    ).fetchall()
    assert list(zip(found.keys.tolist(), found.distances.tolist(), strict=True)) == rows
    assert {path: path.read_bytes() for path in (workspace.path / "vectors").iterdir()} == kept
    assert (workspace.path / "ledger.duckdb").read_bytes() == ledger
    with workspace._runs.alone(), pytest.raises(StoreUnavailable, match="a run is working"):
        lookup.find(tiny_workspace.png(52), "x")


def test_an_older_store_beside_a_newer_ledger_is_refused_and_repaired(root: Path) -> None:
    workspace = Workspace.init(root / "ws", **tiny_workspace.SETTINGS)
    workspace.ingest(tiny_workspace.write(root / "a", range(10)), owner="ada")
    shutil.copytree(workspace.path / "qdrant", root / "older")
    workspace.withdraw(ids=[str(tiny_workspace.point(1))])
    workspace.ingest(tiny_workspace.write(root / "b", range(10, 11)), owner="bo")  # as many as before
    tiny_workspace.write(root / "g", [50])
    shutil.rmtree(workspace.path / "qdrant")
    shutil.copytree(root / "older", workspace.path / "qdrant")
    with pytest.raises(
        StoreError, match=r"lacks 1 of the ledger's training images .*older copy.*check --repair"
    ):
        workspace.value([root / "g"])
    assert {finding.kind for finding in workspace.check()} >= {"points", "withdrawn points"}
    assert all(finding.repaired for finding in workspace.check(repair=True))
    assert workspace.value([root / "g"])["valued"] == 1
    assert workspace.check(read_images=True) == []


@pytest.mark.parametrize("views", ["none", "flip"])
def test_a_lost_point_whose_source_is_gone_can_be_withdrawn(root: Path, views: str) -> None:
    workspace = fill(root, views=views)
    (root / "a" / "3.png").unlink()
    with tiny_workspace.spaces(workspace) as spaces:
        spaces.store.delete([tiny_workspace.point(3)])
        spaces.store.flush()
    findings = workspace.check(repair=True)
    assert any("withdraw those" in str(finding) or not finding.repaired for finding in findings)
    workspace.withdraw(ids=[str(tiny_workspace.point(3))])
    assert workspace.stale() == 0
    assert workspace.check() == []
    fresh = Workspace.init(root / "fresh", **{**tiny_workspace.SETTINGS, "views": views})
    fresh.ingest(tiny_workspace.write(root / "all", sorted({*range(20)} - {3})))
    fresh.value([root / "g"])
    assert tiny_workspace.values(workspace) == pytest.approx(tiny_workspace.values(fresh), abs=1e-12)
