"""The demo: honest figures, and a folder of somebody else's is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from gmv_qdrant import SettingsError, Workspace
from gmv_qdrant.demo import GENERATED, OWNERS, run_demo
from gmv_qdrant.pipeline.streams import NullProgress


def test_the_demo_adds_up_and_goes_on(tmp_path: Path) -> None:
    said: list[str] = []
    figures = run_demo(tmp_path / "demo", seed=0, progress=NullProgress(), tell=said.append)
    workspace = Workspace(tmp_path / "demo" / "workspace")
    qualities = workspace.sql("SELECT sum(quality), count(*) FROM generated").fetchall()[0]
    assert qualities[1] == GENERATED == figures["generated_images"]
    assert sum(figures["credits"].values()) == pytest.approx(qualities[0], rel=1e-9)
    assert set(figures["credits"]) == set(OWNERS)
    assert figures["identical_class_ratio"] > 0.8
    assert 1 < figures["effective_contributors"] <= 30
    assert workspace.status()["store"]["coded_points"] == figures["training_images"]
    assert any("credits --by label" in line for line in said)
    again = run_demo(tmp_path / "demo", seed=0, progress=NullProgress(), tell=said.append)
    assert again["credits"] == figures["credits"]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(SettingsError, match="isn't empty"):
        run_demo(tmp_path, seed=0, progress=NullProgress(), tell=lambda _: None)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
