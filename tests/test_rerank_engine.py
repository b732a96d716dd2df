"""Re-ranking inside the engine gives the evidence of local re-ranking; recall is measured and kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from gmv_qdrant import Workspace
from gmv_qdrant.encoders import distances
from gmv_qdrant.errors import SettingsError


def evidence(workspace: Workspace) -> dict[tuple[str, str], float]:
    rows = workspace.sql(
        """SELECT uri, t.point_id, distance FROM matches JOIN generated USING (generated_key)
        JOIN training t USING (training_key)"""
    ).fetchall()
    return {(uri, point): distance for uri, point, distance in rows}


def made(root: Path, training: Path, generated: Path, **settings: Any) -> Workspace:
    workspace = Workspace.init(root, **{**tiny.SETTINGS, "candidates": 20, **settings})
    workspace.ingest([training])
    workspace.value([generated])
    return workspace


@pytest.mark.parametrize("distance", ["l2@8", "l2-norm@8", "none"])
def test_the_engine_finds_what_local_reranking_finds(tmp_path: Path, distance: str) -> None:
    for name, seeds in (("training", range(80)), ("generated", [3, *range(500, 512)])):  # 3 is in both
        tiny.write(tmp_path / name, seeds)
    folders = tmp_path / "training", tmp_path / "generated"
    local = made(tmp_path / "local", *folders, distance=distance)
    engine = made(tmp_path / "engine", *folders, distance=distance, rerank="engine")
    assert not (engine.path / "features/training").exists()
    mine, theirs = evidence(engine), evidence(local)
    assert mine.keys() == theirs.keys()
    for pair, value in theirs.items():
        assert mine[pair] == pytest.approx(value, rel=1e-5, abs=1e-4)
    radius = "SELECT uri, recall_radius FROM generated ORDER BY uri"
    assert [r for _, r in engine.sql(radius).fetchall()] == pytest.approx(
        [r for _, r in local.sql(radius).fetchall()]
    )
    assert engine.check() == []

    # what is new and what goes changes both alike
    tiny.write(tmp_path / "training", range(80, 100))
    for workspace in (local, engine):
        workspace.ingest([tmp_path / "training"])
        workspace.withdraw(ids=[str(tiny.point(seed)) for seed in range(0, 100, 7)])
        workspace.update()
    mine, theirs = evidence(engine), evidence(local)
    assert mine.keys() == theirs.keys()
    np.testing.assert_allclose([mine[p] for p in theirs], list(theirs.values()), rtol=1e-5, atol=1e-4)


@pytest.mark.shared
def test_the_engine_finds_what_local_reranking_finds_with_lpips(
    tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A squared distance, on real weights: the engine has its root."""
    monkeypatch.setenv("TORCH_HOME", str(shared / "data/weights/torch_home"))
    tiny.write(tmp_path / "training", range(40))
    tiny.write(tmp_path / "generated", [3, *range(500, 506)])
    folders = tmp_path / "training", tmp_path / "generated"
    local = made(tmp_path / "local", *folders, distance="lpips:alex@64")
    engine = made(tmp_path / "engine", *folders, distance="lpips:alex@64", rerank="engine")
    mine, theirs = evidence(engine), evidence(local)
    assert mine.keys() == theirs.keys()
    np.testing.assert_allclose([mine[p] for p in theirs], list(theirs.values()), atol=1e-4)


def test_a_vector_that_the_engine_lacks_is_computed_from_the_image(tmp_path: Path) -> None:
    tiny.write(tmp_path / "training", range(30))
    tiny.write(tmp_path / "generated", range(500, 505))
    workspace = Workspace.init(tmp_path / "w", **{**tiny.SETTINGS, "candidates": 20, "rerank": "engine"})
    workspace.ingest([tmp_path / "training"])
    with workspace._alone() as context:  # storing a point again drops its other vectors
        found = context.store.retrieve([tiny.point(seed) for seed in range(10)], with_vectors=True)
        context.store.upsert(
            [p.id for p in found], np.stack([p.vector for p in found]), [p.payload for p in found]
        )
    assert workspace.value([tmp_path / "generated"])["computed"] > 0
    local = made(tmp_path / "local", tmp_path / "training", tmp_path / "generated")
    assert evidence(workspace) == pytest.approx(evidence(local), abs=1e-4)


def test_views_need_local_reranking(tmp_path: Path) -> None:
    tiny.write(tmp_path / "training", range(5))
    workspace = Workspace.init(tmp_path / "w", **tiny.SETTINGS, rerank="engine", views="flip")
    with pytest.raises(SettingsError, match="one view"):
        workspace.ingest([tmp_path / "training"])


def test_recall_is_measured_kept_and_shown(tmp_path: Path) -> None:
    tiny.write(tmp_path / "training", range(400))
    tiny.write(tmp_path / "generated", range(500, 520))
    workspace = made(tmp_path / "w", tmp_path / "training", tmp_path / "generated", quantization="pq")
    status = workspace.status()["search"]
    assert status["recall"] >= 0.99
    assert status["queries"] == 20
    assert status["params"]["oversampling"] >= 4
    figures = json.loads(workspace.sql("SELECT counts FROM runs WHERE verb = 'value'").fetchall()[0][0])
    assert figures["recall"] == status["recall"]
    again = workspace.value(tiny.write(tmp_path / "more", range(600, 603)))
    assert again["recall"] == status["recall"]
    assert "calibrate recall" not in again["seconds"]  # nothing has changed
    workspace.ingest(tiny.write(tmp_path / "more training", range(1000, 1100)))
    changed = workspace.value(tiny.write(tmp_path / "most", range(700, 703)))
    assert ("calibrate recall" in changed["seconds"]) == (
        workspace.status()["store"]["coded_points"] > 1.1 * status["coded_points"]
    )


@pytest.mark.parametrize("metric", ["cosine", "euclid", "sqeuclid"])
def test_distances_on_another_device_are_the_same(metric: Any) -> None:
    """``cpu:0`` is a device by another name: it takes the path of a GPU."""
    random = np.random.default_rng(0)
    query, rows = random.normal(size=64).astype(np.float32), random.normal(size=(70, 64)).astype(np.float32)
    rows[5] = query
    there = distances(metric, query, rows, "cpu:0")
    np.testing.assert_allclose(there, distances(metric, query, rows), rtol=1e-6, atol=1e-7)
    assert there[5] == pytest.approx(0, abs=1e-7)
