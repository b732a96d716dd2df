"""Candidate lists stay what a search would find, without a search: training images come, go, and tie."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import tiny_workspace
from PIL import Image

from gmv_qdrant import Workspace
from gmv_qdrant.ledger.database import SCHEMA_VERSION, Ledger
from gmv_qdrant.vectors.embedded.store import EdgeStore

K = 20
SPARE = 2
SETTINGS = {**tiny_workspace.SETTINGS, "candidates": K}
GENERATED = range(500, 512)


@contextmanager
def no_search() -> Iterator[None]:
    def refuse(*_: Any) -> None:
        raise AssertionError("searched")

    with patch.object(EdgeStore, "search", refuse):
        yield


@contextmanager
def counted_searches() -> Iterator[list[int]]:
    original, queries = EdgeStore.search, []

    def search(self: EdgeStore, rows: np.ndarray, *rest: Any) -> Any:
        queries.append(len(rows))
        return original(self, rows, *rest)

    with patch.object(EdgeStore, "search", search):
        yield queries


def start(folder: Path, training: range, **settings: Any) -> Workspace:
    workspace = Workspace.init(folder / "workspace", **{**SETTINGS, **settings})
    workspace.ingest(tiny_workspace.write(folder / "training", training), owner="ada")
    workspace.value(tiny_workspace.write(folder / "generated", GENERATED))
    return workspace


def lists(workspace: Workspace, table: str) -> dict[str, list[str]]:
    """Ids of the training images of each generated image's list, in order of recall."""
    found: dict[str, list[str]] = {}
    for uri, point in workspace.sql(
        f"""SELECT g.uri, t.point_id FROM {table} JOIN generated g USING (generated_key)
        JOIN training t USING (training_key) ORDER BY g.uri, recall_distance, t.point_id"""
    ).fetchall():
        found.setdefault(uri, []).append(point)
    return found


def assert_exact(workspace: Workspace, training: set[int]) -> None:
    """Candidates, spare, distances and radius are those of plain numpy over these images."""
    assert workspace.stale() == 0
    candidates, spare = lists(workspace, "matches"), lists(workspace, "spare_candidates")
    for seed in GENERATED:
        uri = next(uri for uri in candidates if uri.endswith(f"/{seed}.png"))
        order = sorted(
            training, key=lambda one: (tiny_workspace._pair(seed, one)[0], str(tiny_workspace.point(one)))
        )
        expected = [str(tiny_workspace.point(one)) for one in order]
        found = candidates[uri] + spare.get(uri, [])
        assert found == expected[: len(found)]
        assert len(candidates[uri]) == min(K, len(training))
        assert len(found) <= K + SPARE
        if len(training) >= K:
            sql = f"SELECT recall_radius FROM generated WHERE uri = '{uri}'"
            assert workspace.sql(sql).fetchall()[0][0] == pytest.approx(
                tiny_workspace._pair(seed, order[K - 1])[0], abs=1e-6
            )
    assert_credits(workspace, training)


def assert_credits(workspace: Workspace, training: set[int]) -> None:
    totals = dict.fromkeys(training, 0.0)
    for seed in GENERATED:
        for one, share in tiny_workspace.contributions(seed, training, K, 5).items():
            totals[one] += share
    expected_values = {str(tiny_workspace.point(one)): value for one, value in totals.items()}
    assert tiny_workspace.values(workspace, 5) == pytest.approx(expected_values, abs=tiny_workspace.CLOSE)
    assert workspace.check() == []


def test_what_comes_is_put_in_its_place_without_a_search(folder: Path) -> None:
    workspace = start(folder, range(60))
    workspace.ingest(tiny_workspace.write(folder / "new", range(60, 66)), owner="bo", update=False)
    assert workspace.stale() == len(GENERATED)
    with no_search():
        summary = workspace.update()
    assert summary["affected"] > 0
    assert summary["searched"] == 0
    assert_exact(workspace, set(range(66)))


def test_what_goes_is_replaced_from_the_reserve_at_once(folder: Path) -> None:
    workspace = start(folder, range(60))
    before = lists(workspace, "matches")
    gone = 7
    with no_search():
        workspace.withdraw(ids=[str(tiny_workspace.point(gone))])
    assert any(str(tiny_workspace.point(gone)) in mine for mine in before.values())
    assert_exact(workspace, set(range(60)) - {gone})


def test_a_reserve_that_is_used_up_is_searched_anew(folder: Path) -> None:
    workspace = start(folder, range(60))
    nearest = sorted(range(60), key=lambda one: tiny_workspace._pair(GENERATED[0], one)[0])[: SPARE + 2]
    workspace.withdraw(ids=[str(tiny_workspace.point(one)) for one in nearest], update=False)
    stale = workspace.stale()
    assert 0 < stale < len(GENERATED) or stale == len(GENERATED)
    with counted_searches() as queries:
        workspace.update()
    assert sum(queries) == stale
    assert_exact(workspace, set(range(60)) - set(nearest))


def test_many_comings_and_goings(folder: Path) -> None:
    random = np.random.default_rng(3)
    training = set(range(50))
    workspace = start(folder, range(50))
    unseen = list(range(50, 110))
    for turn in range(3):
        come = [unseen.pop() for _ in range(int(random.integers(1, 5)))]
        workspace.ingest(tiny_workspace.write(folder / f"new-{turn}", come), owner="bo", update=turn == 2)
        training |= set(come)
        gone = set(random.choice(sorted(training), 2, replace=False).tolist())
        # while images are stale, too
        workspace.withdraw(ids=[str(tiny_workspace.point(one)) for one in gone], update=turn == 1)
        training -= gone
        workspace.update()
        assert_exact(workspace, training)


def test_more_than_half_of_the_candidates_new_is_searched(folder: Path) -> None:
    workspace = start(folder, range(30))
    workspace.ingest(tiny_workspace.write(folder / "new", range(100, 200)), owner="bo", update=False)
    with counted_searches() as queries:
        summary = workspace.update()
    assert summary["searched"] == sum(queries) == len(GENERATED)
    assert_exact(workspace, {*range(30), *range(100, 200)})


def test_what_rounding_could_decide_is_searched(folder: Path) -> None:
    """Copies of the K-th candidate under another hash: equal vectors, so that ids decide who is a candidate."""
    workspace = start(folder, range(60))
    seed = GENERATED[0]
    order = sorted(range(60), key=lambda one: tiny_workspace._pair(seed, one)[0])
    copies = folder / "copies"
    copies.mkdir()
    for level in range(4):  # the same pixels in other bytes
        Image.fromarray(tiny_workspace.pixels(order[K - 1])).save(
            copies / f"{level}.png", compress_level=level
        )
    workspace.ingest([copies], owner="bo", update=False)
    summary = workspace.update()
    assert summary["searched"] >= 1
    again = Workspace.init(folder / "again", **SETTINGS)
    again.ingest([folder / "training", copies])
    again.value([folder / "generated"])
    for table in ("matches", "spare_candidates"):
        mine, fresh = lists(workspace, table), lists(again, table)
        assert {uri: set(points) for uri, points in mine.items()} == {uri: set(p) for uri, p in fresh.items()}
    assert workspace.check() == []


@pytest.mark.parametrize("views", ["none", "flip"])
def test_two_views_are_searched(folder: Path, views: str) -> None:
    workspace = start(folder, range(60), views=views)
    spare = sum(map(len, lists(workspace, "spare_candidates").values()))
    assert spare == (SPARE * len(GENERATED) if views == "none" else 0)
    workspace.ingest(tiny_workspace.write(folder / "new", range(60, 64)), owner="bo", update=False)
    summary = workspace.update()
    assert (summary["searched"] == summary["affected"]) == (views == "flip")


def test_two_views_stay_exact(folder: Path) -> None:
    """Candidates of two views are cut to K together, so one that leaves may make room for one that no row names."""
    workspace = start(folder, range(60), views="flip")
    workspace.withdraw(ids=[str(tiny_workspace.point(one)) for one in (3, 11, 40)])
    workspace.ingest(tiny_workspace.write(folder / "new", range(60, 64)), owner="bo")
    workspace.update()
    fresh = Workspace.init(folder / "fresh", **{**SETTINGS, "views": "flip"})
    fresh.ingest(tiny_workspace.write(folder / "all", {*range(64)} - {3, 11, 40}))
    fresh.value([folder / "generated"])
    assert tiny_workspace.values(workspace) == pytest.approx(tiny_workspace.values(fresh), abs=1e-12)
    assert lists(workspace, "matches") == lists(fresh, "matches")
    assert workspace.check() == []


def test_a_fresh_ledger_needs_no_upgrade(folder: Path) -> None:
    Ledger.create(folder / "ledger.duckdb")
    assert Ledger(folder / "ledger.duckdb").meta()["schema_version"] == SCHEMA_VERSION
