"""The fit against brute force, the figures against whole matrices, the probes against their documentation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
from PIL import Image, ImageOps

from gmv_qdrant import Workspace, method
from gmv_qdrant.errors import SettingsError
from gmv_qdrant.evaluation.fitting import Fit
from gmv_qdrant.evaluation.fitting import fit as fit_any
from gmv_qdrant.evaluation.parents import orphans_of_nobody, parent_figures
from gmv_qdrant.evaluation.probes import LIGHTEST_PARENT, Recipe, make_probe, recipes
from gmv_qdrant.ledger.queries import LOSS_TEMPERATURE


def drawn(
    temperature: float, probes: int = 4000, candidates: int = 20, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Distances, and one parent each drawn with the probability that Eq. 6 gives at this temperature."""
    random = np.random.default_rng(seed)
    d = np.sort(random.uniform(0.2, 0.8, size=(probes, candidates)), axis=1)
    p = np.exp(-d / temperature)
    p /= p.sum(axis=1, keepdims=True)
    chosen = (p.cumsum(axis=1) < random.random((probes, 1))).sum(axis=1)
    return d, np.eye(candidates)[chosen.clip(max=candidates - 1)]


def fit(d: np.ndarray, w: np.ndarray, **options: Any) -> Fit:
    """The temperature alone, in the distances' own unit."""
    return fit_any(d, w, null_distance=False, relative=False, **options)


def likelihood(d: np.ndarray, w: np.ndarray, temperature: float, lapse: float) -> float:
    p = np.exp(-d / temperature)
    p /= p.sum(axis=1, keepdims=True)
    mixed = (1 - lapse) * p + lapse / d.shape[1]
    return float((w * np.log(mixed)).sum(axis=1).mean())


@pytest.mark.parametrize("temperature", [0.02, 0.1, 1.0])
@pytest.mark.parametrize("lapse", [0.0, 0.2])
def test_the_fit_finds_what_made_the_data(temperature: float, lapse: float) -> None:
    """Also when a fifth of the parents stands anywhere: without the lapse rate these would flatten the scale."""
    d, w = drawn(temperature)
    random = np.random.default_rng(9)
    lost = random.random(len(w)) < lapse
    w[lost] = np.eye(w.shape[1])[random.integers(w.shape[1], size=int(lost.sum()))]
    found = fit(d, w)
    assert found.temperature == pytest.approx(temperature, rel=0.2 if temperature < 1 else 0.5)
    assert not found.at_bound
    if temperature < 0.1:
        assert found.lapse == pytest.approx(lapse, abs=0.05)
    assert found.log_likelihood == pytest.approx(likelihood(d, w, found.temperature, found.lapse))
    grid = [
        likelihood(d, w, t, each)
        for t in temperature * np.geomspace(0.5, 2, 31)
        for each in (1e-4, 0.02, 0.2, 0.4)
    ]
    assert found.log_likelihood >= max(grid) - 1e-6


def test_the_fit_doesnt_mind_the_unit_of_the_distance() -> None:
    d, w = drawn(0.1)
    one, thousand = fit(d, w), fit(1000 * d, w)
    assert thousand.temperature == pytest.approx(1000 * one.temperature, rel=1e-2)


def test_missing_candidates_weigh_nothing() -> None:
    d, w = drawn(0.1)
    wider = np.hstack([d, np.full((len(d), 5), np.inf)])
    found = fit(wider, np.hstack([w, np.zeros((len(w), 5))]))
    assert found.temperature == pytest.approx(fit(d, w).temperature, rel=0.02)


def likelihood_with_twins(
    d: np.ndarray, w: np.ndarray, temperature: float, null_distance: float, lapse: float
) -> float:
    """Written out, probe by probe: its parents, and without them nobody."""
    total = 0.0
    for row, weights in zip(d, w, strict=True):
        if not weights.sum():
            continue
        for kept, of in ((np.isfinite(row), weights), (np.isfinite(row) & (weights == 0), None)):
            mine = np.sort(row[kept])
            p = np.exp(-np.append(row[kept] / mine[min(29, len(mine) - 1)], null_distance) / temperature)
            p = (1 - lapse) * p / p.sum() + lapse / len(p)
            total += np.log(p[-1]) if of is None else float((of[kept] * np.log(p[:-1])).sum())
    return total


def test_nobody_is_fitted_on_probes_without_their_parents() -> None:
    """Parents at .35 among strangers at .6: without them, credit is nobody's; with them, it is theirs. Each image has a
    scale of its own, which relative distances don't mind."""
    random = np.random.default_rng(5)
    d = random.normal(0.6, 0.06, (400, 40))
    d[:, 0] = random.normal(0.35, 0.06, 400)
    w = np.zeros_like(d)
    w[:, 0] = 1.0
    w[350:] = 0.0  # parents that recall missed say nothing
    d *= random.uniform(0.5, 2.0, (400, 1))
    found, alone = fit_any(d, w), fit_any(d, w, null_distance=False)
    assert found.temperature == alone.temperature  # nobody doesn't change how parents are told apart
    assert (found.relative, found.probes) == (True, 350)
    assert found.null_distance is not None
    assert 0.4 < found.null_distance < 0.95
    best = likelihood_with_twins(d, w, found.temperature, found.null_distance, found.lapse)
    for other in np.linspace(0.3, 1.2, 40):
        assert likelihood_with_twins(d, w, found.temperature, other, found.lapse) <= best + 1e-6
    function = {"temperature": found.temperature, "null_distance": found.null_distance, "relative": True}
    order = np.argsort(d, axis=1)
    d, w = (np.take_along_axis(of, order, axis=1) for of in (d, w))
    assert orphans_of_nobody(d, w, k=30, **function) > 0.75
    assert parent_figures(d[:350], w[:350], training=1000, **function).parent_share > 0.75


def test_images_without_any_candidate_dont_spoil_the_figures() -> None:
    d, w = drawn(0.1, probes=400)
    wider, parents = np.vstack([d, np.full((100, 20), np.inf)]), np.vstack([w, np.zeros((100, 20))])
    found = fit_any(wider, parents)
    assert found == fit_any(d, w)
    figures = parent_figures(wider, parents, training=1000, temperature=0.1, null_distance=0.5)
    assert np.isfinite(list(figures.as_dict().values())).all()
    alone = parent_figures(d, w, training=1000, temperature=0.1, null_distance=0.5)
    assert figures.parent_share == pytest.approx(0.8 * alone.parent_share)
    assert figures.overlap == pytest.approx(0.8 * alone.overlap)
    assert figures.effective_contributors == pytest.approx(alone.effective_contributors)


def test_plain_maximum_likelihood_against_a_grid() -> None:
    d, w = drawn(0.05)
    d = np.hstack([d, np.full((len(d), 3), np.inf)])
    w = np.hstack([w, np.zeros((len(w), 3))])
    found = fit(d, w, lapse=False)
    assert found.lapse == 0
    assert found.log_likelihood == pytest.approx(likelihood(d[:, :20], w[:, :20], found.temperature, 0.0))
    assert found.log_likelihood >= max(
        likelihood(d[:, :20], w[:, :20], t, 0.0) for t in np.geomspace(0.02, 0.2, 41)
    )


def test_nothing_to_fit_is_a_sentence() -> None:
    d, w = drawn(0.1)
    with pytest.raises(SettingsError, match="nothing to fit"):
        fit(d, np.zeros_like(w))
    with pytest.raises(SettingsError, match="all distances are equal"):
        fit(np.ones_like(d), w)


def test_figures_equal_those_of_the_whole_matrix() -> None:
    random = np.random.default_rng(2)
    images, candidates, training, k = 40, 12, 50, 6
    d = np.sort(random.uniform(0.1, 0.5, (images, candidates)), axis=1)
    who = np.stack([random.permutation(training)[:candidates] for _ in range(images)])
    truth = np.zeros((images, training))
    for row in truth:
        row[random.permutation(training)[:2]] = (0.7, 0.3)
    w = np.take_along_axis(truth, who, axis=1)
    weights = np.tile([0.7, 0.3], (images, 1))
    given = oracle.contributions(d, who, training, k, 0.05, np.ones(images))
    found = parent_figures(d, w, training=training, weights=weights, k=k, temperature=0.05)
    share = (given * (truth > 0)).sum(axis=1)
    assert found.parent_share == pytest.approx(share.mean())
    assert found.parent_share_se == pytest.approx(share.std(ddof=1) / np.sqrt(images))
    assert found.correlation == pytest.approx(np.corrcoef(truth.ravel(), given.ravel())[0, 1])
    overlap = np.minimum(given, truth).sum(axis=1)
    assert found.overlap == pytest.approx(overlap.mean())
    assert found.overlap_se == pytest.approx(overlap.std(ddof=1) / np.sqrt(images))
    assert found.nobody == pytest.approx(0)
    assert found.recalled == pytest.approx((w == 0.7).any(axis=1).mean())
    assert found.first_rate == pytest.approx((w[:, 0] == 0.7).mean())
    assert found.rank == np.median(np.flatnonzero((w == 0.7).ravel()) % candidates) + 1


def test_figures_perfect_and_all_ties() -> None:
    d, w = np.tile([0.0, 5.0, 6.0], (4, 1)), np.tile([1.0, 0.0, 0.0], (4, 1))
    perfect = parent_figures(d, w, training=10, temperature=0.01)
    assert (perfect.parent_share, perfect.overlap, perfect.first_rate, perfect.rank) == (1.0, 1.0, 1.0, 1.0)
    assert perfect.correlation == pytest.approx(1.0)
    assert perfect.effective_contributors == pytest.approx(1.0)
    flat = parent_figures(np.ones((4, 3)), w, training=10)
    assert flat.parent_share == pytest.approx(1 / 3)
    assert flat.effective_contributors == pytest.approx(3.0)
    unseen = parent_figures(d, np.zeros_like(w), training=10, weights=np.ones((4, 1)))
    assert (unseen.recalled, unseen.parent_share, unseen.first_rate) == (0.0, 0.0, 0.0)
    assert np.isnan(unseen.rank)
    assert unseen.correlation < 0


def test_recipes_repeat_and_stay_within_a_label() -> None:
    labels = [str(i % 4) for i in range(100)]
    one = recipes(60, labels, seed=3)
    assert one == recipes(60, labels, seed=3)
    assert one != recipes(60, labels, seed=4)
    assert len({recipe.parents[0] for recipe in one}) == 60  # nobody twice, while there are enough
    assert 0.3 < np.mean([len(recipe.parents) == 2 for recipe in one]) < 0.7
    for recipe in one:
        assert sum(recipe.weights) == pytest.approx(1.0)
        assert recipe.weights[0] >= 0.5
        assert min(recipe.weights) >= LIGHTEST_PARENT - 1e-9
        assert len({labels[row] for row in recipe.parents}) == 1
    assert len(recipes(250, labels, seed=0)) == 250  # more probes than images


def test_a_probe_resembles_its_parent_and_repeats() -> None:
    y, x = np.mgrid[:48, :64]
    parent = Image.fromarray(np.stack([4 * x, 5 * y, 2 * (x + y)], axis=2).clip(0, 255).astype(np.uint8))
    for seed in range(20):
        recipe = Recipe((0,), (1.0,), seed)
        probe = make_probe(recipe, [parent])
        assert probe.size == parent.size
        assert probe.tobytes() == make_probe(recipe, [parent]).tobytes()
        gaps = [
            np.sqrt(((np.asarray(probe, float) - np.asarray(view, float)) ** 2).mean())
            for view in (parent, ImageOps.mirror(parent))
        ]
        assert min(gaps) < 45  # of 255: cropped, jittered, blurred, but the same picture


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 smooth random pictures of 6 labels."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    small = random.integers(0, 256, size=(240, 5, 5, 3), dtype=np.uint8)
    images = [np.asarray(Image.fromarray(s).resize((32, 32), Image.Resampling.BICUBIC)) for s in small]
    oracle.write_png(np.stack(images), folder, "picture-")
    lines = [f"picture-{i:05d}.png,{i % 6}" for i in range(240)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,label", *lines]) + "\n")
    return folder


@pytest.mark.parametrize("views", ["none", "flip"])
def test_calibrate_moves_credit_to_the_parents_of_images_it_never_saw(
    pictures: Path, tmp_path: Path, views: str
) -> None:
    made = tmp_path / "made"
    with_truth = recipes(60, [str(i % 6) for i in range(240)], seed=77)
    paths = sorted(pictures.glob("*.png"))
    images = [make_probe(r, [oracle.rgb(paths[row]) for row in r.parents]) for r in with_truth]
    oracle.write_png(np.stack([np.asarray(image) for image in images]), made, "made-")
    lines = ["file_name,parents,weights"]
    for i, recipe in enumerate(with_truth):
        names = json.dumps([paths[row].name for row in recipe.parents]).replace('"', '""')
        lines.append(f'made-{i:05d}.png,"{names}","{json.dumps(list(recipe.weights))}"')
    (made / "metadata.csv").write_text("\n".join(lines) + "\n")

    workspace = Workspace.init(
        tmp_path / "ws", encoder="pixels:16", distance="l2@16", quality="none", candidates=60, quantization="none",
        views=views,
    )  # fmt: skip
    workspace.ingest([pictures])
    workspace.value([made])
    fitted = workspace.calibrate(name="mine", probes=150, seed=1, null_distance=True)
    again = workspace.calibrate(name="mine", probes=150, seed=1, null_distance=True)
    assert (fitted.pop("calibration"), again.pop("calibration")) == ("mine@1", "mine@2")
    assert again == fitted
    versions = {
        name: workspace.credits("image", calibration=name).fetchall() for name in ("mine", "mine@1", "mine@2")
    }
    assert versions["mine"] == versions["mine@2"] == versions["mine@1"]
    with pytest.raises(SettingsError, match=r"no calibration 'mine@3' .*'mine@2'.*mine@1, mine@2"):
        workspace.credits("image", calibration="mine@3")
    assert fitted["after"]["parent_share"] > 5 * fitted["before"]["parent_share"]
    assert fitted["before"]["effective_contributors"] > 29
    rows = workspace.evaluate("known-parents", options={"calibrations": ("mine",)})["rows"]
    paper, with_nobody, calibrated = rows
    assert [row["values"] for row in rows] == ["paper", "calibration mine", "mine, without nobody"]
    assert fitted["nobody_without_parents"] > 0.7
    assert workspace.sql("SELECT count(*) FROM quarantine").fetchall() == [(0,)]
    if views == "flip":  # otherwise no parent of the mirrored half is found
        assert 0 < with_nobody["nobody"] < 0.3
    assert calibrated["parent_share"] > 5 * paper["parent_share"]
    if views == "flip":
        assert calibrated["parent_share"] > 0.8
        assert calibrated["first_rate"] > 0.9
    credits = workspace.credits("image", calibration="mine").project("uri, value").fetchall()
    assert sum(value for uri, value in credits if uri != "(nobody)") == pytest.approx(
        60 * (1 - with_nobody["nobody"])
    )


def test_what_would_be_lost_is_another_question_with_a_function_of_its_own(
    pictures: Path, tmp_path: Path
) -> None:
    workspace = Workspace.init(
        tmp_path / "ws",
        encoder="pixels:16",
        distance="l2@16",
        quality="none",
        candidates=60,
        quantization="none",
    )
    workspace.ingest([pictures])
    made = tmp_path / "made"
    oracle.write_png(
        np.stack([np.asarray(oracle.rgb(p)) for p in sorted(pictures.glob("*.png"))[:5]]) // 2, made, "m"
    )
    workspace.value([made])
    rows = workspace.sql("SELECT generated_key, training_key, distance FROM matches ORDER BY ALL").fetchall()
    expected = dict.fromkeys(range(1, 241), 0.0)
    for j in range(1, 6):
        mine = [(key, distance) for generated, key, distance in rows if generated == j]
        share = method.shares(method.relative([[d for _, d in mine]]), k=None, temperature=LOSS_TEMPERATURE)[
            0
        ]
        for (key, _), value in zip(mine, share, strict=True):
            expected[key] += value
    found = workspace.sql("SELECT training_key, value FROM image_values(k := NULL, relative := true, "
                          f"temperature := {LOSS_TEMPERATURE})").fetchall()  # fmt: skip
    assert dict(found) == pytest.approx(expected)
    credits = [row[0] for row in workspace.credits("image", calibration="loss").project("value").fetchall()]
    assert sorted(credits) == pytest.approx(sorted(expected.values()))
    questions = [workspace.value_function(calibration=name).question for name in ("loss", None)]
    assert questions == ["what would a model lose without them?", "who resembles it?"]
    with pytest.raises(SettingsError, match="built in"):
        workspace.calibrate(name="loss")
    with pytest.raises(SettingsError, match="temperature of its own"):
        workspace.credits(calibration="loss", temperature=0.1)
