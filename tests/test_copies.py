"""Near-copies, control sets and claims: the macros against arrays, and the commands on pictures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import oracle
import pytest
from click.testing import CliRunner
from test_credits_sql import Small

from gmv_qdrant import Workspace
from gmv_qdrant.cli.main import cli
from gmv_qdrant.errors import SettingsError
from gmv_qdrant.evaluation.statistics import benjamini_hochberg, empirical_p_values


def test_p_values_and_false_discoveries_are_those_of_the_definition() -> None:
    random = np.random.default_rng(0)
    made, controls = random.integers(0, 20, 60) / 10, random.integers(5, 30, 40) / 10  # with ties
    rows = [[(0, float(d))] for d in (*made, *controls)]
    ledger = Small([["Ada"]], rows, [None] * 100, ["a"] * 60 + ["c"] * 40)
    with ledger.connect() as con:
        con.execute("UPDATE generated SET control = batch = 'c'")
        found = con.execute("SELECT generated_key, p_value, q_value FROM nearness() ORDER BY ALL").fetchall()
        assert con.execute("SELECT count(*) FROM nearness(batch := 'c')").fetchall() == [(0,)]
    p = empirical_p_values(made, controls)
    expected = [(1 + sum(c <= d for c in controls)) / 41 for d in made]
    np.testing.assert_allclose(p, expected)
    assert [row[0] for row in found] == list(range(60))
    np.testing.assert_allclose([row[1] for row in found], expected)
    ordered = sorted(expected)
    by_hand = [
        min(min(1.0, 60 * ordered[i] / (i + 1)) for i in range(60) if ordered[i] >= mine) for mine in expected
    ]
    np.testing.assert_allclose(benjamini_hochberg(p), by_hand)
    np.testing.assert_allclose([row[2] for row in found], by_hand)


def test_without_controls_nothing_is_claimed() -> None:
    with Small([["Ada"]], [[(0, 0.1)], [(0, 0.2)]], [None] * 2, ["a"] * 2).connect() as con:
        rows = con.execute("SELECT p_value, q_value, among_training FROM nearness()").fetchall()
        assert rows == [(None, None, None)] * 2


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 training pictures of two owners, the last a near-copy of the first; 6 generated ones, two of them nearly
    copies; 20 strangers as controls."""
    root = tmp_path_factory.mktemp("copies")
    random = np.random.default_rng(3)

    def noisy(image: np.ndarray) -> np.ndarray:
        return (image.astype(int) + random.integers(-3, 4, image.shape)).clip(0, 255).astype(np.uint8)

    pictures = random.integers(0, 256, (85, 8, 8, 3), dtype=np.uint8)
    pictures[59] = noisy(pictures[0])
    oracle.write_png(pictures[:60], root / "training", "t")
    rows = [f"t{i:05d}.png,{'Ada' if i < 30 else 'Bay'}" for i in range(60)]
    (root / "training/metadata.csv").write_text("\n".join(["file_name,owner", *rows]) + "\n")
    made = np.stack([noisy(pictures[5]), noisy(pictures[40]), *pictures[61:65]])
    oracle.write_png(made, root / "made", "g")
    oracle.write_png(pictures[65:], root / "strangers", "s")
    made_at = Workspace.init(
        root / "ws", encoder="pixels:8", distance="l2@8", quality="none", candidates=40, quantization="none"
    )
    made_at.ingest([root / "training"])
    made_at.value([root / "made"])
    made_at.value([root / "strangers"], control=True)
    return root / "ws"


def test_near_copies_beat_strangers_and_others_dont(workspace: Path) -> None:
    found = Workspace(workspace).copies(level=0.2).project("generated, training, owners, p_value").fetchall()
    assert {(Path(g).name, Path(t).name, o) for g, t, o, _ in found} == {
        ("g00000.png", "t00005.png", "Ada"),
        ("g00001.png", "t00040.png", "Bay"),
    }
    assert [p for *_, p in found] == pytest.approx([1 / 21, 1 / 21])
    assert len(Workspace(workspace).copies().fetchall()) == 6


def test_claims_are_pairs_of_different_owners(workspace: Path) -> None:
    done = CliRunner().invoke(cli, ["-w", str(workspace), "copies", "--training", "--top", "1", "--json"])
    assert done.exit_code == 0, done.output
    (first,) = json.loads(done.stdout)
    assert {Path(first["one"]).name, Path(first["other"]).name} == {"t00000.png", "t00059.png"}
    assert {first["owners"], first["other_owners"]} == {"Ada", "Bay"}
    nearest = Workspace(workspace).copies(top=1).project("among_training").fetchall()[0][0]
    assert 0 <= nearest <= 2 / 60


def test_withdrawn_images_are_nobodys_neighbours(workspace: Path, tmp_path: Path) -> None:
    copy = Workspace(shutil.copytree(workspace, tmp_path / "copy"))
    copy.copies(training=True)
    copy.withdraw(owner="Bay")
    gone = "(SELECT training_key FROM training WHERE version_withdrawn IS NOT NULL)"
    for column in ("training_key", "neighbour_key"):
        assert copy.sql(f"SELECT count(*) FROM neighbours WHERE {column} IN {gone}").fetchall() == [(0,)]
    assert copy.sql("SELECT count(*) > 0 FROM neighbours").fetchall() == [(True,)]


def test_a_batch_is_a_control_set_or_not(workspace: Path) -> None:
    made = workspace.parent / "made"
    with pytest.raises(SettingsError, match="give a control set another name"):
        Workspace(workspace).value([made], batch="default", control=True)
    with pytest.raises(SettingsError, match="give generated images another name"):
        Workspace(workspace).value([made], batch="control")
