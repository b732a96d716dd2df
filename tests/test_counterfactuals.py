"""LDS against loops, its ceiling against simulation, and the command on models whose losses are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import oracle
import pytest
from scipy import stats

from gmv_qdrant import Workspace
from gmv_qdrant.errors import SettingsError, SourceError
from gmv_qdrant.evaluation.counterfactuals import agreement, ceiling, predicted
from gmv_qdrant.evaluation.plots import plot
from gmv_qdrant.evaluation.statistics import stratified_permutation


def test_lds_is_spearmans_correlation_for_each_image() -> None:
    random = np.random.default_rng(0)
    credit, halves = random.random((7, 40)), random.random((25, 40)) < 0.5
    losses = -(halves @ credit.T) + random.normal(0, 1.0, (25, 7))
    found = agreement(predicted(credit, halves), losses)
    by_hand = [stats.spearmanr((halves * credit[j]).sum(axis=1), -losses[:, j]).statistic for j in range(7)]
    np.testing.assert_allclose(found.per_image, by_hand)
    assert found.mean == pytest.approx(np.mean(by_hand))
    assert found.standard_error >= np.std(by_hand, ddof=1) / 7**0.5
    assert agreement(np.ones((25, 7)), losses).mean == 0
    with pytest.raises(SettingsError, match="at least 3"):
        agreement(predicted(credit, halves[:2]), losses[:2])
    with pytest.raises(SettingsError, match="finite"):
        agreement(predicted(credit, halves), losses * np.nan)


def test_the_standard_error_is_the_spread_over_other_images_and_subsets() -> None:
    random = np.random.default_rng(1)
    means, errors = [], []
    for _ in range(150):
        taste = random.normal(0, 1, 30)  # models differ in luck, which all images share in part
        truth = random.normal(0, 1, (30, 10))
        losses = -(truth + taste[:, None] + random.normal(0, 1.5, (30, 10)))
        found = agreement(truth + 0.7 * taste[:, None], losses)
        means.append(found.mean)
        errors.append(found.standard_error)
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.3)


@pytest.mark.parametrize("seeds", [2, 4])
def test_the_ceiling_is_what_the_truth_itself_would_reach(seeds: int) -> None:
    random = np.random.default_rng(2)
    truth = random.normal(0, 1, (200, 40))
    losses = -truth[:, None] + random.normal(0, 1.5, (200, seeds, 40))
    assert ceiling(losses) == pytest.approx(agreement(truth, losses.mean(axis=1)).mean, abs=0.02)
    assert ceiling(losses[:, :1]) is None


def test_membership_holds_when_groups_differ() -> None:
    """Groups differ by stratum only: the t-test rejects, the permutation within strata doesn't, at its rate."""
    random = np.random.default_rng(3)
    rejected, p_values = 0, []
    for _ in range(100):
        strata = random.integers(0, 5, 200)
        first = random.random(200) < 0.2 + 0.15 * strata
        values = strata + random.exponential(1, 200)
        rejected += stats.ttest_ind(values[first], values[~first], alternative="greater").pvalue < 0.05
        p_values.append(stratified_permutation(values, first, ~first, strata, draws=199)["permutation_p"])
    assert rejected > 90
    assert 0 <= np.mean(np.array(p_values) <= 0.05) <= 0.12
    more = stratified_permutation(values + first, first, ~first, strata, draws=199)
    assert more["permutation_p"] <= 0.02
    apart = stratified_permutation(values, strata < 2, strata >= 2, strata)
    assert apart == {"permutation_p": None, "compared": 0}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("counterfactual")
    random = np.random.default_rng(0)
    training = random.integers(0, 256, (40, 6, 6, 3), dtype=np.uint8)
    made = (training[:5].astype(int) + random.integers(-20, 21, (5, 6, 6, 3))).clip(0, 255).astype(np.uint8)
    oracle.write_png(training, root / "training", "t")
    oracle.write_png(made, root / "made", "g")
    rows = [f"t{i:05d}.png,owner {i % 8}" for i in range(40)]
    (root / "training/metadata.csv").write_text("\n".join(["file_name,owner", *rows]) + "\n")
    made_at = Workspace.init(
        root / "ws", encoder="pixels:6", distance="l2@6", quality="none", candidates=40, quantization="none"
    )
    made_at.ingest([root / "training"])
    made_at.value([root / "made"])
    return root / "ws"


def write(folder: Path, subsets: list[str], losses: list[str]) -> dict[str, Path]:
    paths = {"subsets": folder / "subsets.csv", "losses": folder / "losses.csv"}
    paths["subsets"].write_text("\n".join(subsets) + "\n")
    paths["losses"].write_text("\n".join(losses) + "\n")
    return paths


def test_models_whose_losses_follow_credit_are_recognised(workspace: Path, tmp_path: Path) -> None:
    """Losses are made from the credit itself, once by subsets and once by owners left out."""
    tool = Workspace(workspace)
    contributions = {
        (Path(g).name, Path(t).name): c
        for g, t, c in tool.sql(
            """SELECT g.uri, s.uri, contribution FROM contributions(k := NULL, temperature := 0.25, relative := true)
            JOIN generated g USING (generated_key) JOIN sources s USING (training_key)"""
        ).fetchall()
    }
    random = np.random.default_rng(1)
    subsets, losses = ["model,training"], ["model,generated,loss"]
    for model in range(12):
        inside = [f"t{i:05d}.png" for i in np.flatnonzero(random.random(40) < 0.5)]
        subsets += [f"m{model},{name}" for name in inside]
        for j in range(5):
            credit = sum(contributions[f"g{j:05d}.png", name] for name in inside)
            losses += [f"m{model},g{j:05d}.png,{-credit + noise}" for noise in random.normal(0, 1e-4, 2)]
    found = tool.evaluate("counterfactual", options=write(tmp_path, subsets, losses))
    by_name = {row["values"]: row["LDS"] for row in found["rows"]}
    assert by_name["loss"] > 0.98
    assert by_name["loss"] >= by_name["paper"]
    assert (found["models"], found["seeds"], found["images"]) == (12, 2, 5)
    assert found["ceiling"] > 0.99
    assert plot(found, tmp_path / "lds.svg").read_text().rstrip().endswith("</svg>")

    subsets, losses = ["model,left_out_owner"], ["model,generated,loss"]
    for owner in range(8):
        subsets.append(f"without {owner},owner {owner}")
        for j in range(5):
            gone = sum(contributions[f"g{j:05d}.png", f"t{i:05d}.png"] for i in range(owner, 40, 8))
            losses.append(f"without {owner},g{j:05d}.png,{gone}")
    found = tool.evaluate("counterfactual", options=write(tmp_path, subsets, losses))
    assert found["rows"][-1]["LDS"] == pytest.approx(1)
    assert found["ceiling"] is None


def test_tables_that_dont_fit_are_refused_in_a_sentence(workspace: Path, tmp_path: Path) -> None:
    tool = Workspace(workspace)
    good = ["model,generated,loss", *(f"{m},g0000{j}.png,1" for m in "abc" for j in range(5))]
    some = ["model,training", "a,t00000.png", "b,t00001.png", "c,t00002.png"]
    for subsets, losses, error, words in (
        (["model", "a"], good, SourceError, "one of training"),
        (some, ["model,loss", "a,1"], SourceError, "columns model, generated and loss"),
        (some[:3], good, SettingsError, "model 'c' isn't in both"),
        (some, good[:-1], SettingsError, "each model's loss of each image"),
        (["model,left_out_owner", "a,Zed", "b,Zed", "c,Zed"], good, SettingsError, "there is no owner 'Zed'"),
        (["model,training", "a,no.png", "b,no.png", "c,no.png"], good, SettingsError, "called 'no.png'"),
    ):
        with pytest.raises(error, match=words):
            tool.evaluate("counterfactual", options=write(tmp_path, subsets, losses))
