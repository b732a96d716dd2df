"""Advice on pictures whose parents only a thumbnail, or only the distance, can tell."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from gmv_qdrant import Workspace
from gmv_qdrant.cli.main import cli
from gmv_qdrant.errors import SettingsError
from gmv_qdrant.evaluation.advise import Vectors
from gmv_qdrant.models.registry import load_distance, load_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("advise")
    small = np.random.default_rng(0).integers(0, 256, (80, 5, 5, 3), dtype=np.uint8)
    images = [np.asarray(Image.fromarray(one).resize((32, 32), Image.Resampling.BICUBIC)) for one in small]
    oracle.write_png(np.stack(images), folder / "training", "t")
    return folder


@pytest.mark.parametrize("kind", ["encoder", "distance"])
def test_compositions_are_those_that_the_names_mean(folder: Path, kind: str) -> None:
    images = [oracle.rgb(path) for path in sorted((folder / "training").glob("*.png"))[:4]]
    load = load_encoder if kind == "encoder" else load_distance
    first = "pixels:8" if kind == "encoder" else "l2@8"

    def vectors(name: str) -> np.ndarray:
        encoder = load(name)
        return encoder.encode(torch.stack([encoder.prepare(image) for image in images]))

    parts = [Vectors(vectors(name), vectors(name)[None], load(name).metric) for name in (first, "thumb:16")]
    composed = parts[0].plus(parts[1], 0.3, unit=kind == "encoder")
    np.testing.assert_allclose(composed.training, vectors(f"{first}+thumb:16*0.3"), atol=1e-6)
    assert composed.metric == load(f"{first}+thumb:16*0.3").metric


def test_advice_is_the_pair_that_finds_parents_best(folder: Path, tmp_path: Path) -> None:
    """Two colours can't tell the pictures apart; 16 x 16 pixels can."""
    workspace = Workspace.init(
        tmp_path / "ws", encoder="pixels:1", distance="l2@1", quality="none", candidates=30, views="flip"
    )
    rows = workspace.advise([folder / "training"], encoders=["pixels:16"], distances=["l2@16"], probes=60)
    found = [dict(zip(rows.columns, row, strict=True)) for row in rows.fetchall()]
    assert len(found) == 2 * 2 * 2 * 3
    best, worst = found[0], found[-1]
    assert best["distance"] != "l2@1"
    assert best["overlap"] > 0.7
    assert (worst["encoder"], worst["distance"]) == ("pixels:1", "l2@1")
    assert worst["overlap"] < best["overlap"] - 0.3
    assert [row["log_likelihood"] for row in found] == sorted(
        (row["log_likelihood"] for row in found), reverse=True
    )
    done = CliRunner().invoke(
        cli, ["-w", str(tmp_path / "ws"), "advise", str(folder / "training"), "--probes", "20", "--json"]
    )
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)) == 1 * 2 * 1 * 3
    with pytest.raises(SettingsError, match="at least 40"):
        workspace.advise([folder / "training" / "t00000.png"])
