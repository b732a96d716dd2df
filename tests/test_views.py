"""Views: a generated image is matched as it is and mirrored, and the smaller distance counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import oracle
import pytest
from PIL import Image, ImageOps

from gmv_qdrant import Workspace

N, M, SIZE = 40, 6, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random colour images; the generated ones are mirrored training images, a little brighter."""
    random = np.random.default_rng(1)
    training = random.integers(0, 200, (N, SIZE, SIZE, 3), dtype=np.uint8)
    folder = tmp_path_factory.mktemp("views")
    oracle.write_png(training, folder / "training", "t")
    oracle.write_png(training[:M, :, ::-1] + np.uint8(9), folder / "generated", "g")
    return folder


def distances(folder: Path, *, mirrored: bool) -> np.ndarray:
    """RMS distance of every pair, float64 ``(M, N)``."""

    def pixels(path: Path, flip: bool) -> np.ndarray:
        image = Image.open(path).convert("RGB")
        return np.asarray(ImageOps.mirror(image) if flip else image, dtype=np.float64) / 255

    training = [pixels(path, False) for path in sorted((folder / "training").glob("*.png"))]
    generated = [pixels(path, mirrored) for path in sorted((folder / "generated").glob("*.png"))]
    return np.array([[np.sqrt(((g - t) ** 2).mean()) for t in training] for g in generated])


@pytest.mark.parametrize("candidates", [N, 10])
def test_the_smaller_distance_of_the_views_counts(folder: Path, tmp_path: Path, candidates: int) -> None:
    workspace = Workspace.init(
        tmp_path / "ws", encoder=f"pixels:{SIZE}", distance=f"l2@{SIZE}", quality="none",
        quantization="none", candidates=candidates, views="flip",
    )  # fmt: skip
    workspace.ingest([folder / "training"])
    workspace.value([folder / "generated"])
    as_is, mirrored = distances(folder, mirrored=False), distances(folder, mirrored=True)
    nearest = np.minimum(as_is, mirrored)
    rows = workspace.sql(
        """SELECT g.uri, s.uri, m.distance, m.view, m.rank FROM matches m JOIN generated g USING (generated_key)
        JOIN sources s USING (training_key) ORDER BY g.uri, m.rank"""
    ).fetchall()
    assert len(rows) == M * candidates
    for g, t, distance, view, rank in rows:
        j, i = int(Path(g).stem[1:]), int(Path(t).stem[1:])
        assert distance == pytest.approx(nearest[j, i], rel=1e-5)
        assert view == int(mirrored[j, i] < as_is[j, i])
        if rank == 1:
            assert i == j  # the parent, found in the mirror
            assert view == 1
    for j in range(M if candidates == N else 0):
        mine = [distance for g, _, distance, _, _ in rows if int(Path(g).stem[1:]) == j]
        np.testing.assert_allclose(mine, np.sort(nearest[j]), rtol=1e-5)


def test_without_views_the_mirror_is_not_looked_at(folder: Path, tmp_path: Path) -> None:
    workspace = Workspace.init(
        tmp_path / "ws", encoder=f"pixels:{SIZE}", distance=f"l2@{SIZE}", quality="none", quantization="none"
    )
    workspace.ingest([folder / "training"])
    workspace.value([folder / "generated"])
    best = workspace.sql(
        "SELECT g.uri, m.distance FROM matches m JOIN generated g USING (generated_key) WHERE rank = 1 ORDER BY g.uri"
    ).fetchall()
    np.testing.assert_allclose(
        [distance for _, distance in best], distances(folder, mirrored=False).min(axis=1), rtol=1e-5
    )
