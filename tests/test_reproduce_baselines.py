"""The scripts of scripts/reproduce about classes, corrupted images, growth and other methods, on a tiny kit.

The estimators beside ours are checked against what they estimate: influence against training again without an image,
TracIn against gradients taken one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_kit import write_kit
from PIL import Image
from torch import nn

from gmv_qdrant import Workspace

pytestmark = pytest.mark.scripts

PIXELS = ["--encoder", "pixels:16"]


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kit(tmp_path_factory.mktemp("kit"), generated=10)


@pytest.fixture
def exact_numbers() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def drawn(file: Path) -> None:
    with Image.open(file) as image:
        assert image.width > 300
        assert len(np.unique(np.asarray(image.convert("L")))) > 10


# -- influence of a training image on a GAN -----------------------------------------------------------------


def two_blobs(n: int, seed: int) -> torch.Tensor:
    centres = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])[torch.arange(n) % 2]
    return centres + 0.3 * torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))


def tiny_gan(influence: Any) -> Any:
    torch.manual_seed(0)

    def net(out: int) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, out))

    return influence.Gan(net(2), net(1), 2, (0.1, 0.1))


def likelihood(influence: Any, gan: Any) -> Callable[[list[torch.Tensor]], torch.Tensor]:
    real, z = two_blobs(100, 1), torch.randn(100, 2, generator=torch.Generator().manual_seed(2))
    return lambda state: influence.average_log_likelihood(real, gan.generate(state, z), 0.5)


@pytest.mark.usefixtures("exact_numbers")
def test_influence_is_the_derivative_by_an_images_weight(script: Callable[[str], Any]) -> None:
    """Cross terms of the two networks and all steps included: central differences agree to six digits."""
    influence = script("influence")
    gan, x = tiny_gan(influence), two_blobs(12, 0)
    metric = likelihood(influence, gan)
    whole = influence.train(gan, x, 4, 10, 3)
    for traced, j in [(whole, 0), (whole, 5), (whole, 11), (whole.last(3), 2), (whole.last(3), 8)]:
        effects = influence.removal_effects(gan, traced, x, metric)
        up, down = (
            float(metric(influence.replay(gan, x, traced, without=j, weight=w).states[-1]))
            for w in (1 + 1e-5, 1 - 1e-5)
        )
        assert effects[j] == pytest.approx(-(up - down) / 2e-5, rel=1e-6, abs=1e-9)


def test_influence_agrees_with_training_without_an_image(script: Callable[[str], Any]) -> None:
    """What Terashita et al. report: the estimate correlates with the change that leaving an image out makes."""
    influence = script("influence")
    gan, x = tiny_gan(influence), two_blobs(40, 0)
    metric = likelihood(influence, gan)
    trained = influence.train(gan, x, 8, 5, 1)
    effects = influence.removal_effects(gan, trained, x, metric)
    now = float(metric(trained.states[-1]))
    again = [influence.replay(gan, x, trained, without=j) for j in range(len(x))]
    true = [float(metric(one.states[-1])) - now for one in again]
    assert np.corrcoef(effects, true)[0, 1] > 0.98
    assert np.std(true) > 1e-3


def test_the_inception_score_of_known_predictions(script: Callable[[str], Any]) -> None:
    score = script("influence").log_inception_score
    sure = 50 * torch.eye(4)
    assert float(score(nn.Identity(), sure).exp()) == pytest.approx(4)  # each image another class
    assert float(score(nn.Identity(), sure[:1].repeat(4, 1)).exp()) == pytest.approx(1)  # one class only
    assert float(score(nn.Identity(), torch.zeros(4, 4)).exp()) == pytest.approx(1)  # no clear class


@pytest.mark.parametrize(("sign", "auroc"), [(1.0, 1.0), (-1.0, 0.0)])
def test_if4gan_is_judged_by_what_it_says(
    sign: float,
    auroc: float,
    kit: Path,
    run: Callable[..., Any],
    script: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Scores by which removing a corrupted image helps most put them all last, in the ledger, too."""
    influence = script("influence")
    estimate = influence.removal_effects

    def told(gan: Any, trajectory: Any, x: torch.Tensor, metric: Any) -> np.ndarray:
        assert len(estimate(gan, trajectory, x, metric)) == len(x)
        return sign * 1e-9 * np.arange(len(x))  # corrupted images stand last

    monkeypatch.setattr(influence, "removal_effects", told)
    small = [
        "--epochs",
        "2",
        "--batch",
        "20",
        "--width",
        "4",
        "--generated",
        "6",
        "--check",
        "2",
        "--ks",
        "5",
    ]
    found = run("if4gan", kit, *PIXELS, "--distances", "none", *small)
    for name in ("IF4GAN, last 1 of 2 epochs", "IF4GAN, all 2 epochs"):
        assert found[name][0]["auroc"] == pytest.approx(auroc)
        assert found[name][0]["tied_pairs"] == 0
        assert found["times faster"]["none"][name] > 0
    assert found["IF4GAN, last 1 of 2 epochs, against retraining"]["images"] == 2
    assert {"none, k = 5", "raw nearest neighbours, k = 5", "random, k = 5"} < found.keys()


# -- VAE-TracIn -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["small", "conv"])
def test_tracin_is_the_sum_of_gradient_products(
    kind: str, script: Callable[[str], Any], tmp_path: Path
) -> None:
    pytest.importorskip("captum", reason="pip install 'gmv-qdrant[reproduce]'")
    vae, baselines = script("vae"), script("baselines")
    torch.manual_seed(0)
    x, made = torch.rand(10, 64), torch.rand(2, 64)
    model, files = vae.train(kind, x, 4, 2, tmp_path)
    assert len(files) == 2
    seconds, (rows, scores) = baselines.tracin(model, files, x, made, 10, 4)
    assert seconds > 0

    def gradient(image: torch.Tensor) -> torch.Tensor:
        loss = vae.Elbo()(model(image[None]), image[None])
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])

    expected = torch.zeros(2, 10)
    for file in files:
        rate = vae.load_checkpoint(model, file)
        expected += (
            rate * torch.stack([gradient(one) for one in made]) @ torch.stack([gradient(i) for i in x]).T
        )
    for j in range(2):
        torch.testing.assert_close(scores[j], expected[j, rows[j]], rtol=1e-3, atol=1e-3)
        assert rows[j].tolist() == expected[j].argsort(descending=True).tolist()


def test_baselines(kit: Path, run: Callable[..., Any]) -> None:
    pytest.importorskip("captum", reason="pip install 'gmv-qdrant[reproduce]'")
    small = [
        "--epochs",
        "1",
        "--checkpoints",
        "1",
        "--generated",
        "6",
        "--vae",
        "small",
        "--sizes",
        "conv",
    ]
    found = run("baselines", kit, "--encoders", "pixels:16", "--distances", "none", "l2@16", *small)
    for method in ("none", "l2@16", "VAE-TracIn", "random", "raw-pixels", "raw-pixels-16"):
        assert [row["k"] for row in found[method]] == [30, 50], method
        assert all(0 <= row["rho"] <= 1 for row in found[method])
    assert found["none"] == found["raw-pixels-16"]  # exact search, the same vectors: the same contributors
    sizes = found["VAE-TracIn, seconds an image, one at a time"]
    assert len(sizes) == 2
    for distance, seconds in found["seconds an image"].items():
        for size, cost in sizes.items():
            assert found["times faster than VAE-TracIn"][distance][size] == pytest.approx(cost / seconds)


def test_samples_are_the_surest_there_are(script: Callable[[str], Any]) -> None:
    vae = script("vae")
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    x = random.random((40, 64)).astype(np.float32)
    labels = np.array(["a", "b"])[np.arange(40) % 2]
    for least in (0.0, 2.0):  # all are sure enough; none is
        images, said = vae.samples(vae.Vae("small", 8), x, labels, 5, least)
        assert images.shape == (5, 8, 8)
        assert set(said) <= {"a", "b"}


# -- scores of other methods ------------------------------------------------------------------------------


def test_nearest_is_brute_force(script: Callable[[str], Any]) -> None:
    random = np.random.default_rng(0)
    training, made = random.random((30, 5)), random.random((4, 5))
    rows, scores, score_type = script("others").nearest(training, made, 7)
    distances = np.linalg.norm(made[:, None] - training[None], axis=2)
    np.testing.assert_array_equal(rows, np.argsort(distances, axis=1)[:, :7])
    np.testing.assert_allclose(scores, np.sort(distances, axis=1)[:, :7])
    assert score_type == "distance"


def test_imported_scores_of_a_perfect_method_and_of_the_opposite(
    script: Callable[[str], Any], tmp_path: Path
) -> None:
    common, others = script("common"), script("others")
    images = np.random.default_rng(0).integers(0, 256, (24, 16, 16), dtype=np.uint8)
    labels = np.arange(24) % 2
    paths = common.write_set(images[:20], tmp_path / "t", label=labels[:20])
    made = common.write_set(images[20:], tmp_path / "g", label=labels[20:])
    workspace = common.workspace(
        tmp_path / "ws", [tmp_path / "t"], encoder="pixels:8", distance="none", candidates=20
    )
    workspace.value([tmp_path / "g"])
    rows = np.tile(np.arange(20), (4, 1))
    same = (labels[:20][None] == labels[20:][:, None]).astype(float)
    for scores, rho in ((same, 1.0), (-same, 0.0)):
        ranked = rows, scores, "similarity"
        other = others.imported(workspace, tmp_path / "other", made, paths, ranked)  # replaces the first
        figures = other.evaluate("identical-class", options={"ks": (10,)})
        assert figures["rows"][0]["rho"] == rho
    assert isinstance(other, Workspace)


# -- C1 -----------------------------------------------------------------------------------------------------


def test_identical_class(kit: Path, run: Callable[..., Any], tmp_path: Path) -> None:
    """The kit's samples are noisy copies, its classes have patterns: contributors are of the class, random ones not."""
    found = run(
        "identical_class", kit, "--encoders", "pixels:16", "--distances", "none", "l2@16", "--plots", tmp_path / "plots"
    )  # fmt: skip
    for name in ("none", "l2@16", "raw nearest neighbours"):
        assert found[f"mnist-gan, pixels:16, {name}"]["rho"][0]["rho"] > 0.9, name
    random = found["mnist-gan, random"]["rho"][0]
    assert random["rho"] == pytest.approx(random["chance"], abs=0.15)
    spread = found["mnist-gan, pixels:16, none"]["spread_of_rho_over_m"]
    assert [row["m"] for row in spread["all classes"]] == [1, 10]
    assert found["mnist-gan"] == {"training_images": 60, "generated_images": 10}
    for file in (tmp_path / "plots").iterdir():
        drawn(file)


# -- C3, quality --------------------------------------------------------------------------------------------


def test_spoiled_images(script: Callable[[str], Any]) -> None:
    images = np.full((10, 8, 8), 100, dtype=np.uint8)
    same, poor = script("ood").spoiled(images, 0.0, 0)
    assert not poor.any()
    assert (same == images).all()
    some, poor = script("ood").spoiled(images, 0.2, 0)
    assert poor.sum() == 2
    assert (some[~poor] == 100).all()
    assert some[poor].std() > 50


def test_ood(kit: Path, run: Callable[..., Any], tmp_path: Path) -> None:
    found = run(
        "ood", kit, *PIXELS, "--distances", "none", "--ks", "5", "40", "--quality", "piqe", "--poor", "0.3",
        "--plots", tmp_path / "plots",
    )  # fmt: skip
    assert (found["clean"], found["generated_images"], found["of_low_quality"]) == (60, 10, 3)
    for k in (5, 40):
        ours, raw = found[f"noisy05, none, k = {k}"], found[f"noisy05, raw nearest neighbours, k = {k}"]
        assert ours[0]["score"] == raw[0]["score"] == "value"
        assert ours[0]["auroc"] == pytest.approx(raw[0]["auroc"], abs=0.1)  # k of 60 candidates, or of 40
        assert 0.2 < found[f"noisy05, random, k = {k}"][0]["auroc"] < 0.8
    assert found["noisy05, none, k = 5"][0]["corrupted"] == 10
    q = found["noisy05, none, q"]
    assert q["poor"] < q["good"]
    both = found["noisy05, none, with and without q"]
    assert {row["values"] for row in both if "values" in row} == {"with q", "without q"}
    assert len(list((tmp_path / "plots").iterdir())) == 3


def test_quality_that_sees_poor_images_keeps_corrupted_ones_down(kit: Path, run: Callable[..., Any]) -> None:
    """Fig. 9 as the paper means it: noisy samples lift noisy training images, less so when they weigh less."""
    found = run(
        "ood", kit, *PIXELS, "--distances", "none", "--ks", "5", "--quality", "known", "--poor", "0.3",
    )  # fmt: skip
    assert found["noisy05, none, q"] == {"good": 1.0, "poor": pytest.approx(0.1)}
    auroc = {r["values"]: r["auroc"] for r in found["noisy05, none, with and without q"] if "values" in r}
    assert auroc["with q"] >= auroc["without q"]


# -- growth ---------------------------------------------------------------------------------------------------


def test_growth(kit: Path, run: Callable[..., Any], script: Callable[[str], Any], tmp_path: Path,
                monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    growth = script("growth")
    monkeypatch.setattr(growth, "DISTANCE", "l2@16")
    monkeypatch.setattr(growth, "WARM", 2)
    found = run(
        "growth", kit, *PIXELS, "--distances", "none", "--sizes", "40", "60", "--many", "1", "3", "--recalled", "20",
        "40", "--generated", "4", "--plots", tmp_path / "plots",
    )  # fmt: skip
    assert [row["n"] for row in found["by_n"]["none"]] == [row["n"] for row in found["matmul"]] == [40, 60]
    assert [row["m"] for row in found["by_m"]["none"]] == [1, 3]
    assert all("recall embedding" in row["seconds"] for row in found["by_m"]["none"])
    assert [row["K"] for row in found["by_K"]] == [20, 40]
    for row in found["by_K"]:  # too few images for codes, so both sides are exact
        assert row["codes"] == row["exact"]
        assert row["seconds"]["recall"] > 0
    drawn(tmp_path / "plots/growth.png")


def test_processor_time_leaves_out_what_is_done_once_a_run(
    script: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fake:
        """5 s for a run, and 1 s an image that is new."""

        now, new = 0.0, 4

        def value(self, paths: object, batch: str) -> dict[str, Any]:
            Fake.now += 5 + self.new
            self.new = 0
            return {"seconds": {"recall": 2.0, "total": 9.0}}

    growth = script("growth")
    monkeypatch.setattr(growth.time, "process_time", lambda: Fake.now)
    found = growth.timed(Fake(), Path("made"), "made", 4)
    assert found == {"seconds": {"recall": 0.5, "total": 2.25}, "processor": 1.0}
