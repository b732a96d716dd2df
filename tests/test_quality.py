"""Quality metrics against pyiqa itself: the mapping to [0,1], distinct crops, and what cannot be scored."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models_offline import muted, sample_images, save_random
from PIL import Image

from gmv_qdrant.errors import ImageError, ModelError
from gmv_qdrant.models import quality
from gmv_qdrant.models.devices import Runtime
from gmv_qdrant.models.registry import canonical_name, load_quality
from gmv_qdrant.models.wrappers import CheckedMetric

CPU = Runtime(device="cpu")
FULL_SIZE = pytest.mark.skipif(
    not os.environ.get("GMV_TEST_FULL_SIZE"), reason="minutes and gigabytes: set GMV_TEST_FULL_SIZE=1"
)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return sample_images(6, seed=4)


def pyiqa_scores(name: str, images: list[Image.Image]) -> list[float]:
    with muted():
        import pyiqa

        metric = pyiqa.create_metric(name, device="cpu")
        tensors = [torch.from_numpy(np.array(i)).permute(2, 0, 1)[None] / 255 for i in images]
        return [metric(tensor).item() for tensor in tensors]


def test_none_is_no_metric() -> None:
    assert load_quality("none") is None


def test_piqe_is_pyiqa_s_turned_round(images: list[Image.Image]) -> None:
    metric = load_quality("piqe", runtime=CPU)
    assert metric is not None
    scores = [metric.score(image) for image in images]
    expected = [1 - score / 100 for score in pyiqa_scores("piqe", images)]
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert 0 < min(scores) < max(scores) < 1
    assert metric.identity == "piqe: q = 1 - s / 100, clipped; weights none"


def test_a_flat_image_has_quality_0_whatever_its_colour() -> None:
    metric = load_quality("piqe", runtime=CPU)
    assert metric is not None
    for colour in (
        "black",
        "#010101",
        "white",
    ):  # pyiqa divides by the brightest pixel, so black alone gave NaN
        assert metric.score(Image.new("RGB", (32, 32), colour)) == 0.0


def test_entropy_has_its_own_range(images: list[Image.Image]) -> None:
    metric = load_quality("entropy", runtime=CPU)
    assert metric is not None
    np.testing.assert_allclose(
        [metric.score(image) for image in images],
        [score / 8 for score in pyiqa_scores("entropy", images)],
        atol=1e-6,
    )


def test_every_metric_is_mapped_or_refused_with_a_reason() -> None:
    with muted():
        from pyiqa.default_model_configs import DEFAULT_CONFIGS
    mappings = quality.mappings()
    assert {"maniqa", "piqe", "niqe", "brisque", "musiq", "topiq_nr", "clipiqa"} <= set(mappings)
    for name, config in DEFAULT_CONFIGS.items():
        if name in mappings:
            low, high = mappings[name].low, mappings[name].high
            best, worst = (low, high) if config.get("lower_better") else (high, low)
            assert mappings[name](best) == 1.0
            assert mappings[name](worst) == 0.0
            assert mappings[name](best + (best - worst)) == 1.0
        else:
            with pytest.raises(ModelError, match=r"unknown quality|gives no quality|no finite range"):
                canonical_name("quality", name)


@given(st.floats(-1000, 1000), st.floats(-1000, 1000))
@settings(max_examples=100, deadline=None)
def test_mappings_are_monotone_and_stay_in_the_unit_interval(first: float, second: float) -> None:
    lower, higher = sorted((first, second))
    for mapping in (quality.Mapping(0, 100, True), quality.Mapping(-1, 2, False)):
        a, b = mapping(lower), mapping(higher)
        assert 0 <= min(a, b) <= max(a, b) <= 1
        assert a >= b if mapping.lower_better else a <= b


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("maniqua", "unknown quality metric 'maniqua' .did you mean 'maniqa'"),
        ("lpips", "unknown quality metric"),
        ("clipscore", "compares an image with a caption"),
        ("fid", "compares sets of images"),
        ("maniqa", r"missing of maniqa .543 MB, Apache-2.0; pyiqa.*offline.*models fetch maniqa"),
        ("musiq", r"missing of musiq.*models fetch --trust musiq"),
    ],
)
def test_what_cannot_be_had_is_said_at_once(
    name: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ModelError, match=sentence):
        load_quality(name, runtime=Runtime(device="cpu", offline=True))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import pyiqa

    def fail(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError("No module named 'pkg_resources'", name="pkg_resources")

    monkeypatch.setattr(pyiqa, "create_metric", fail)
    with pytest.raises(ModelError, match="clipiqa needs the package setuptools<81"):
        load_quality("clipiqa", runtime=CPU)


def test_a_score_that_is_no_number_is_an_image_error() -> None:
    class Failing(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            assert pixels.shape[2] > 16, "too small"
            return pixels.mean() / 0 * 0

    metric = CheckedMetric(
        "made-up", quality.PyiqaMetric("made-up", quality.Mapping(0, 1, False), Failing(), "cpu")
    )
    with pytest.raises(ImageError, match="made-up gives nan for an image of 20x20"):
        metric.score(Image.new("RGB", (20, 20), "white"))
    with pytest.raises(ImageError, match="made-up cannot score an image of 9x9: AssertionError: too small"):
        metric.score(Image.new("RGB", (9, 9)))


def test_random_crops_are_the_same_every_time() -> None:
    class Random(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return torch.rand(()) * np.random.rand()

    metric = quality.PyiqaMetric("made-up", quality.Mapping(0, 1, False), Random(), "cpu")
    image = Image.new("RGB", (20, 20))
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    assert metric.score(image) == metric.score(image)
    assert torch.equal(torch.get_rng_state(), before[0])  # and the caller's generators are left alone
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # type: ignore[index]


# --- MANIQA -------------------------------------------------------------------------------------------------


@given(st.integers(8, 320), st.integers(8, 320))
@settings(max_examples=40, deadline=None)
def test_distinct_crops_are_pyiqa_s_each_equally_often(height: int, width: int) -> None:
    with muted():
        from pyiqa.archs.arch_util import uniform_crop
    generator = torch.Generator().manual_seed(height * 1000 + width)
    image = torch.rand(1, 1, height, width, generator=generator)
    theirs = [crop.numpy().tobytes() for crop in uniform_crop(image, crop_size=64, crop_num=20)]
    ours = [crop.numpy().tobytes() for crop in quality.distinct_crops(image, 64, 20)]
    assert list(dict.fromkeys(theirs)) == ours
    assert {theirs.count(crop) for crop in ours} == {20 // len(ours)}


def test_crops_that_only_look_alike_are_all_kept() -> None:
    """A half-flat image has equal crops at different places; dropping those would shift the weighted mean."""
    image = torch.zeros(1, 1, 300, 300)
    image[..., 270:] = 1.0
    assert len(quality.distinct_crops(image, 224, 20)) == 20


SMALL = {"embed_dim": 48, "dim_mlp": 48, "num_heads": [4, 4], "scale": 0.8, "type": "MANIQA"}


@pytest.fixture
def small_maniqa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """pyiqa's own MANIQA of width 48, its checkpoint in the cache; gives the unmodified network."""
    with muted():
        import timm
        from pyiqa.archs import maniqa_arch
        from timm.models.vision_transformer import VisionTransformer

    def create(name: str, pretrained: bool) -> torch.nn.Module:
        assert name == "vit_base_patch8_224"
        assert not pretrained  # the download would be wasted: the checkpoint holds those weights, too
        return VisionTransformer(patch_size=8, embed_dim=48, depth=12, num_heads=1)

    config = {**quality._configs(), "maniqa": {**quality._configs()["maniqa"], "metric_opts": SMALL}}
    monkeypatch.setattr(quality, "_configs", lambda: config)
    options = {key: value for key, value in SMALL.items() if key != "type"}
    with monkeypatch.context() as patch, muted():
        patch.setattr(timm, "create_model", lambda name, pretrained: create(name, False))
        network = maniqa_arch.MANIQA(**options, pretrained=False).eval()
    monkeypatch.setattr(timm, "create_model", create)
    path = tmp_path / "torch/pyiqa/ckpt_koniq10k.pt"
    save_random(network, path)
    state = torch.load(path, weights_only=True)
    state["fc_score.3.weight"] *= 0.002
    state["fc_score.3.bias"].fill_(0.1)  # scores within [0,1], so that nothing is clipped
    torch.save(state, path)
    network.load_state_dict(torch.load(path, weights_only=True))
    return network


def test_maniqa_scores_distinct_crops_only(small_maniqa: Any, tmp_path: Path) -> None:
    metric = load_quality("maniqa", runtime=Runtime(device="cpu", cache_dir=tmp_path, offline=True))
    assert metric is not None
    photograph = sample_images(1, seed=6)[0]
    scores = []
    for size in ((28, 28), (190, 28), (240, 230)):
        image = photograph.resize(size)
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
        with torch.inference_mode():
            expected = float(small_maniqa(tensor))
        scores.append(metric.score(image))
        assert scores[-1] == pytest.approx(min(1, max(0, expected)), abs=1e-5)
    assert len({round(score, 4) for score in scores}) > 1
    assert 0 < min(scores) < max(scores) < 1  # nothing was clipped, so the comparison means something


def test_a_checkpoint_that_does_not_fit_is_refused(small_maniqa: Any, tmp_path: Path) -> None:
    path = tmp_path / "torch/pyiqa/ckpt_koniq10k.pt"
    runtime = Runtime(device="cpu", cache_dir=tmp_path, offline=True)
    state = torch.load(path, weights_only=True)
    torch.save({"params": {f"module.{name}": tensor for name, tensor in state.items()}}, path)
    assert load_quality("maniqa", runtime=runtime) is not None
    del state["conv1.weight"]
    torch.save(state, path)
    with pytest.raises(ModelError, match=r"ckpt_koniq10k\.pt does not fit maniqa"):
        load_quality("maniqa", runtime=runtime)
    path.write_bytes(b"torn")
    with pytest.raises(ModelError, match=r"ckpt_koniq10k\.pt is not a file of plain weights"):
        load_quality("maniqa", runtime=runtime)


def test_pyiqa_unpickles_weights_only(tmp_path: Path) -> None:
    """pyiqa asks for unsafe unpickling; a checkpoint that would run code must not."""

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return (Path.touch, (tmp_path / "ran",))

    cache = tmp_path / "torch/pyiqa"
    cache.mkdir(parents=True)
    torch.save({"model": Evil()}, cache / "musiq_koniq_ckpt-e95806b9.pth")
    with pytest.raises(ModelError, match="pyiqa cannot load musiq"):
        load_quality("musiq", runtime=Runtime(device="cpu", cache_dir=tmp_path, offline=True))
    assert not (tmp_path / "ran").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_a_plug_in_adds_a_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ownmetric.py").write_text(
        "class Brightness:\n"
        "    identity = 'brightness'\n"
        "    def score(self, image): return sum(image.resize((1, 1)).getpixel((0, 0))) / 765\n"
        "def load(argument, runtime): return Brightness()\n"
    )
    info = tmp_path / "ownmetric-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ownmetric\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[gmv_qdrant.quality]\nbrightness = ownmetric:load\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    metric = load_quality("brightness", runtime=CPU)
    assert metric is not None
    assert metric.score(Image.new("RGB", (4, 4), "white")) == 1.0
    assert canonical_name("quality", "brightness") == "brightness"


@pytest.mark.parametrize("name", ["piqe", "entropy", "maniqa"])
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 20_000), (20_000, 1), (2, 300)], ids=str)
def test_an_extreme_image_is_scored_or_refused(
    name: str, size: tuple[int, int], small_maniqa: Any, tmp_path: Path
) -> None:
    metric = load_quality(name, runtime=Runtime(device="cpu", cache_dir=tmp_path, offline=True))
    assert metric is not None
    with contextlib.suppress(ImageError):
        assert 0 <= metric.score(Image.new("RGB", size, "teal")) <= 1
    assert metric.score(sample_images(1)[0]) > 0  # and the next image is none the worse


@FULL_SIZE
@pytest.mark.slow
def test_full_size_maniqa_agrees_with_pyiqa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with muted():
        import timm
        from pyiqa.archs import maniqa_arch

    options = {
        key: value for key, value in quality._configs()["maniqa"]["metric_opts"].items() if key != "type"
    }
    original = timm.create_model
    with monkeypatch.context() as patch, muted():
        patch.setattr(timm, "create_model", lambda name, pretrained: original(name, pretrained=False))
        network = maniqa_arch.MANIQA(**options, pretrained=False).eval()
    path = tmp_path / "torch/pyiqa/ckpt_koniq10k.pt"
    path.parent.mkdir(parents=True)
    torch.save(network.state_dict(), path)
    metric = load_quality("maniqa", runtime=Runtime(device="cpu", cache_dir=tmp_path, offline=True))
    assert metric is not None
    network.test_sample = 1  # of 20 equal crops
    for image in sample_images(2, seed=7):
        square = image.resize((64, 64))
        tensor = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None] / 255
        with torch.inference_mode():
            expected = float(network(tensor))
        assert metric.score(square) == pytest.approx(min(1.0, max(0.0, expected)), abs=1e-4)
