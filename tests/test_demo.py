"""The demo: honest figures, and a folder of somebody else's is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from gmv_qdrant import SettingsError, Workspace
from gmv_qdrant.demo import CROPS, GENERATED, OWNERS, run_demo
from gmv_qdrant.pipeline.streams import NullProgress


def test_the_demo_makes_the_case_and_goes_on(tmp_path: Path) -> None:
    said: list[str] = []
    figures = run_demo(tmp_path / "demo", seed=0, progress=NullProgress(), tell=said.append)
    workspace = Workspace(tmp_path / "demo" / "workspace")
    assert figures["training_images"] == CROPS * len(OWNERS)
    assert sum(figures["truth"].values()) == pytest.approx(1)
    for shares in (figures["paper"], figures["calibrated"]):
        assert set(shares) <= set(OWNERS)
        assert sum(share for share, _, _ in shares.values()) == pytest.approx(1, rel=1e-9)
    off = {
        name: sum(abs(figures[name][owner][0] - share) for owner, share in figures["truth"].items())
        for name in ("paper", "calibrated")
    }
    assert off["calibrated"] < 0.6 * off["paper"]
    paper, *_, fitted = (row["parent_share"] for row in figures["parents"]["rows"])
    assert fitted > 5 * paper
    assert workspace.status()["store"]["coded_points"] == figures["training_images"]
    assert workspace.sql("SELECT count(*) FROM generated").fetchall() == [(GENERATED,)]
    with Image.open(tmp_path / "demo" / "contributors.png") as sheet:
        assert sheet.width > 500
    assert any("payout --budget" in line for line in said)
    again = run_demo(tmp_path / "demo", seed=0, progress=NullProgress(), tell=said.append)
    assert again["paper"] == figures["paper"]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(SettingsError, match="isn't empty"):
        run_demo(tmp_path, seed=0, progress=NullProgress(), tell=lambda _: None)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
