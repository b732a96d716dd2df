"""Recall encoders against the packages' own plain code, and the names that lead to them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models_offline import add_tiny_clip, muted, sample_images, save_alexnet, save_random, seed_hub
from PIL import Image

from gmv_qdrant.errors import ModelError, SettingsError
from gmv_qdrant.models.base import Encoder
from gmv_qdrant.models.devices import Runtime, resolve_device
from gmv_qdrant.models.registry import canonical_name, load_distance, load_encoder

CPU = Runtime(device="cpu")


def encode(encoder: Encoder, images: list[Image.Image]) -> np.ndarray:
    return encoder.encode(torch.stack([encoder.prepare(image) for image in images]))


@pytest.fixture(scope="session")
def images() -> list[Image.Image]:
    return sample_images(6)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="session")
def timm_file(cache: Path) -> Path:
    import timm

    path = cache / "test_resnet.pth"
    save_random(timm.create_model("test_resnet"), path)
    return path


@pytest.fixture(scope="session")
def clip_name(cache: Path) -> str:
    """A tiny CLIP with a tag of its own, whose weights wait in a Hugging Face cache."""
    import open_clip
    from open_clip import pretrained

    name = add_tiny_clip(cache)
    pretrained._PRETRAINED[name] = {"seeded": pretrained._slpcfg(hf_hub="nobody/tiny/", quick_gelu=True)}
    with muted():
        model = open_clip.create_model(name)
    seed_hub(
        cache / "huggingface",
        "nobody/tiny",
        "open_clip_model.safetensors",
        lambda path: save_random(model, path),
    )
    return name


@pytest.fixture(scope="session")
def encoders(timm_file: Path, clip_name: str, cache: Path) -> dict[str, Encoder]:
    runtime = Runtime(device="cpu", cache_dir=cache)
    return {
        "timm": load_encoder("timm:test_resnet", weights=str(timm_file), runtime=runtime),
        "clip": load_encoder(f"clip:{clip_name}/seeded", runtime=runtime),
        "pixels": load_encoder("pixels:16", runtime=runtime),
    }


def test_unit_vectors_of_the_stated_shape(encoders: dict[str, Encoder], images: list[Image.Image]) -> None:
    for encoder in encoders.values():
        vectors = encode(encoder, images)
        assert vectors.shape == (len(images), encoder.dim)
        assert vectors.dtype == np.float32
        assert encoder.metric == "cosine"
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)


@pytest.mark.parametrize("name", ["timm", "clip", "pixels"])
@given(order=st.permutations(range(6)), cut=st.integers(1, 5))
@settings(max_examples=8, deadline=None)
def test_a_row_does_not_depend_on_batch_or_order(
    name: str, encoders: dict[str, Encoder], images: list[Image.Image], order: list[int], cut: int
) -> None:
    encoder = encoders[name]
    alone = np.concatenate([encode(encoder, [image]) for image in images])
    mixed = [images[index] for index in order]
    batched = np.concatenate([encode(encoder, mixed[:cut]), encode(encoder, mixed[cut:])])
    np.testing.assert_allclose(batched, alone[order], atol=1e-5)


# --- pixels -------------------------------------------------------------------------------------------------


def test_pixels_are_what_pil_gives(images: list[Image.Image]) -> None:
    got = encode(load_encoder("pixels:8", runtime=CPU), images)
    for image, row in zip(images, got, strict=True):
        small = np.asarray(image.resize((8, 8), Image.Resampling.BICUBIC), dtype=np.float64) / 255
        flat = small.transpose(2, 0, 1).ravel()
        np.testing.assert_allclose(row, flat / np.linalg.norm(flat), atol=1e-6)


def test_a_black_image_gives_the_zero_vector() -> None:
    encoder = load_encoder("pixels:4", runtime=CPU)
    assert not encode(encoder, [Image.new("RGB", (9, 9))]).any()


# --- timm ---------------------------------------------------------------------------------------------------


def plain_timm(name: str, path: Path, images: list[Image.Image]) -> np.ndarray:
    import timm

    overlay = {"file": str(path)}
    model = timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)
    config = timm.data.resolve_data_config({}, model=model)
    transform = timm.data.create_transform(**config, is_training=False)
    with torch.inference_mode():
        features = model.eval().float()(torch.stack([transform(image) for image in images]))
        return torch.nn.functional.normalize(features).numpy()


def test_timm_agrees_with_plain_timm(
    encoders: dict[str, Encoder], timm_file: Path, images: list[Image.Image]
) -> None:
    np.testing.assert_allclose(
        encode(encoders["timm"], images), plain_timm("test_resnet", timm_file, images), atol=1e-6
    )


@pytest.mark.shared
def test_real_efficientnet_agrees_with_plain_timm(shared: Path) -> None:
    weights = shared / "data/weights/tf_efficientnet_lite0-fp16.pth"
    name = "tf_efficientnet_lite0"
    digits = np.load(shared / "data/images/mnist_train_10k_A.npz")
    images = [*sample_images(4), *(Image.fromarray(d).convert("RGB") for d in _images(shared, digits)[:4])]
    encoder = load_encoder(f"timm:{name}", weights=str(weights), runtime=CPU)
    assert encoder.dim == 1280
    np.testing.assert_allclose(encode(encoder, images), plain_timm(name, weights, images), atol=1e-6)


def _images(shared: Path, archive: np.lib.npyio.NpzFile) -> np.ndarray:
    sys.path.insert(0, str(shared / "data"))
    from load import load

    archive.close()
    return load(shared / "data/images/mnist_train_10k_A.npz")["images"]


def test_timm_weights_from_the_hub_cache(cache: Path, timm_file: Path, images: list[Image.Image]) -> None:
    from safetensors.torch import save_file

    def write(path: Path) -> None:
        save_file(torch.load(timm_file, weights_only=True), path)

    seed_hub(cache / "huggingface", "timm/test_resnet.r160_in1k", "model.safetensors", write)
    runtime = Runtime(device="cpu", cache_dir=cache, offline=True)
    from_hub = load_encoder("timm:test_resnet", runtime=runtime)
    from_file = load_encoder("timm:test_resnet", weights=str(timm_file), runtime=runtime)
    assert from_hub.identity == from_file.identity
    np.testing.assert_array_equal(encode(from_hub, images), encode(from_file, images))


def test_half_precision_files_are_the_same_encoder(tmp_path: Path, timm_file: Path) -> None:
    state = torch.load(timm_file, weights_only=True)
    half = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
    torch.save(half, tmp_path / "half.pth")
    torch.save(
        {name: t.float() if t.is_floating_point() else t for name, t in half.items()}, tmp_path / "full.pth"
    )
    identities = [
        load_encoder("timm:test_resnet", weights=str(tmp_path / file), runtime=CPU).identity
        for file in ("half.pth", "full.pth")
    ]
    assert identities[0] == identities[1]


def test_weights_of_another_architecture_are_refused(tmp_path: Path, timm_file: Path) -> None:
    with pytest.raises(ModelError, match="does not fit timm:test_vit"):
        load_encoder("timm:test_vit", weights=str(timm_file), runtime=CPU)
    state = torch.load(timm_file, weights_only=True)
    del state["layer2.0.conv1.weight"]  # timm would keep that layer random, and only log it
    torch.save(state, tmp_path / "holed.pth")
    with pytest.raises(ModelError, match=r"Missing keys \(layer2.0.conv1.weight"):
        load_encoder("timm:test_resnet", weights=str(tmp_path / "holed.pth"), runtime=CPU)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "ran",))  # type: ignore[return-value]

    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    for name in ("torchvision:squeezenet1_1", "timm:test_resnet", "clip:RN50-quickgelu/openai"):
        with pytest.raises(ModelError, match=r"evil\.pth"):
            load_encoder(name, weights=str(tmp_path / "evil.pth"), runtime=CPU)
    assert not (tmp_path / "ran").exists()


def test_a_missing_weights_file_is_named() -> None:
    with pytest.raises(ModelError, match=r"no/such\.pth does not exist"):
        load_encoder("timm:test_resnet", weights="no/such.pth", runtime=CPU)


# --- torchvision --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["squeezenet1_1", "shufflenet_v2_x0_5", "densenet121"])
def test_torchvision_gives_the_input_of_the_classifier(
    name: str, tmp_path: Path, images: list[Image.Image]
) -> None:
    from torchvision import models

    model = models.get_model(name).eval()
    save_random(model, tmp_path / "weights.pth")
    state = torch.load(tmp_path / "weights.pth", weights_only=True)
    model.load_state_dict(state)
    if name == "densenet121":  # the published files name their layers in the old way
        old = {key.replace("norm1.", "norm.1.").replace("conv1.", "conv.1."): t for key, t in state.items()}
        torch.save(old, tmp_path / "weights.pth")
    transform = models.get_model_weights(name).DEFAULT.transforms()
    head = {"squeezenet1_1": "classifier.1", "shufflenet_v2_x0_5": "fc", "densenet121": "classifier"}[name]
    seen: list[torch.Tensor] = []
    model.get_submodule(head).register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    with torch.inference_mode():
        model(torch.stack([transform(image) for image in images[:3]]))
    features = seen[0]
    if features.ndim == 4:  # SqueezeNet classifies by a convolution, which is followed by ReLU and pooling
        features = features.relu().mean(dim=(2, 3))
    encoder = load_encoder(f"torchvision:{name}", weights=str(tmp_path / "weights.pth"), runtime=CPU)
    expected = torch.nn.functional.normalize(features).numpy()
    np.testing.assert_allclose(encode(encoder, images[:3]), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["alexnet", "squeezenet1_1"])
def test_torchvision_features_are_the_averaged_maps(
    name: str, tmp_path: Path, images: list[Image.Image]
) -> None:
    """With a classifier of zeros, which LPIPS doesn't mind, AlexNet's penultimate features would be zero."""
    from torchvision import models

    if name == "alexnet":
        save_alexnet(tmp_path / "weights.pth")
    else:
        save_random(models.get_model(name), tmp_path / "weights.pth")
    model = models.get_model(name).eval()
    model.load_state_dict(torch.load(tmp_path / "weights.pth", weights_only=True))
    transform = models.get_model_weights(name).DEFAULT.transforms()
    with torch.inference_mode():
        maps = model.features(torch.stack([transform(image) for image in images[:3]]))
    expected = torch.nn.functional.normalize(maps.mean(dim=(2, 3))).numpy()
    encoder = load_encoder(
        f"torchvision:{name}/IMAGENET1K_V1@features", weights=str(tmp_path / "weights.pth"), runtime=CPU
    )
    found = encode(encoder, images[:3])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_a_model_without_feature_maps_says_so(tmp_path: Path) -> None:
    from torchvision import models

    save_random(models.get_model("resnet18"), tmp_path / "weights.pth")
    with pytest.raises(ModelError, match="resnet18 has no part called features"):
        load_encoder("torchvision:resnet18@features", weights=str(tmp_path / "weights.pth"), runtime=CPU)


# --- open_clip ----------------------------------------------------------------------------------------------


def test_clip_agrees_with_plain_open_clip(
    encoders: dict[str, Encoder], clip_name: str, cache: Path, images: list[Image.Image]
) -> None:
    import open_clip

    with muted():
        model, _, transform = open_clip.create_model_and_transforms(
            clip_name, pretrained="seeded", cache_dir=str(cache / "huggingface")
        )
    with torch.inference_mode():
        expected = model.eval().encode_image(
            torch.stack([transform(image) for image in images]), normalize=True
        )
    np.testing.assert_allclose(encode(encoders["clip"], images), expected.numpy(), atol=1e-6)
    assert "squash" in encoders["clip"].identity.preprocessing  # the tag's own, not the default


def test_every_published_clip_is_usable_or_names_its_twin() -> None:
    import re

    import open_clip

    from gmv_qdrant.models.encoders import clip

    refusals = []
    for model, tag in open_clip.list_pretrained():
        try:
            assert clip.files(f"{model}/{tag}", CPU)
        except ModelError as error:
            refusals.append(str(error))
    assert 0 < len(refusals) < 40
    for sentence in refusals:
        twin = re.search(r"use (?:other weights, such as )?clip:(\S+)$", sentence)
        assert twin, sentence
        assert clip.files(twin.group(1), CPU)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("clip:ViT-B-32/openai", "trained with QuickGELU.*use clip:ViT-B-32-quickgelu/openai"),
        ("clip:ViT-B-32-quickgelu/laion2b_s34b_b79k", "use clip:ViT-B-32/laion2b_s34b_b79k"),
        ("clip:ViT-B-33/openai", "did you mean 'ViT-B-"),
        ("clip:ViT-B-32-quickgelu/open", "no weights 'open'.*did you mean 'openai'"),
        ("clip:ViT-B-32", "names no weights"),
        ("timm:resnet-50", "did you mean 'resnet50'"),
        ("timm:resnet50.nonsense", "no weights 'resnet50.nonsense'"),
        ("timm", "which model"),
        ("torchvision:alexnt", "did you mean 'alexnet'"),
        ("torchvision:resnet50/V3", "no weights 'V3'"),
        ("pixel:8", "unknown encoder 'pixel:8' .did you mean 'pixels'"),
        ("pixels:0", "not a resolution"),
        ("", "unknown encoder ''"),
    ],
)
def test_names_that_cannot_be_used_say_what_is_near(name: str, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        load_encoder(name, runtime=CPU)


def test_names_have_one_canonical_form() -> None:
    assert canonical_name("encoder", "clip") == "clip:ViT-B-32-quickgelu/openai"
    assert canonical_name("encoder", "pixels") == "pixels:32"
    assert canonical_name("encoder", "timm:resnet50") == "timm:resnet50"
    forms = {
        "dreamsim": ["dreamsim", "dreamsim:ensemble"],
        "dreamsim:dino_vitb16": ["dreamsim:dino_vitb16"],
        "lpips:alex@64": ["lpips", "lpips:alex", "lpips@64", "lpips:alex@64"],
        "lpips:vgg@32": ["lpips:vgg@32"],
        "l2@64": ["l2", "l2@64", "l2:64"],
        "l2-norm@16": ["l2-norm@16"],
        "none": ["none"],
    }
    for canonical, names in forms.items():
        assert {canonical_name("distance", name) for name in [canonical, *names]} == {canonical}


# --- runtime ------------------------------------------------------------------------------------------------


def test_devices() -> None:
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") in ("cuda", "mps", "cpu")
    for device in ("gpu", "cpu:1", "cuda:x"):
        with pytest.raises(SettingsError, match=device):
            resolve_device(device)
    if not torch.cuda.is_available():
        with pytest.raises(SettingsError, match="'cuda' is not available"):
            load_encoder("timm:test_resnet", weights=__file__, runtime=Runtime(device="cuda"))


def test_bf16_is_another_identity_and_close(timm_file: Path, images: list[Image.Image]) -> None:
    full, brief = (
        load_encoder(
            "timm:test_resnet", weights=str(timm_file), runtime=Runtime(device="cpu", precision=precision)
        )
        for precision in ("fp32", "bf16")
    )
    assert full.identity.weights == brief.identity.weights
    assert full.identity != brief.identity
    assert encode(brief, images).dtype == np.float32
    cosines = (encode(full, images) * encode(brief, images)).sum(axis=1)
    assert (cosines > 0.995).all()


def test_a_plug_in_adds_an_encoder_and_a_distance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "thirdparty.py").write_text(
        "from gmv_qdrant.models.encoders.pixels import load_recall, load_rms\n"
        "def encoder(argument, runtime): return load_recall(argument, runtime)\n"
        "def distance(argument, runtime): return load_rms(argument, runtime)\n"
    )
    info = tmp_path / "thirdparty-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thirdparty\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[gmv_qdrant.encoders]\nmine = thirdparty:encoder\nbroken = nowhere:load\n"
        "[gmv_qdrant.distances]\nours = thirdparty:distance\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_encoder("mine:5", runtime=CPU).dim == 75
    assert load_distance("ours:5", runtime=CPU).metric == "euclid"
    assert canonical_name("distance", "ours:5") == "ours:5"
    with pytest.raises(ModelError, match=r"nowhere:load.* cannot be imported"):
        load_encoder("broken", runtime=CPU)
    with pytest.raises(ModelError, match="did you mean 'mine'"):
        load_encoder("mien", runtime=CPU)


# --- extreme images -----------------------------------------------------------------------------------------

EXTREME = [(1, 1), (2, 2), (1, 20_000), (20_000, 1), (3, 5_000)]


@pytest.mark.parametrize("size", EXTREME, ids=str)
def test_extreme_images_take_little_memory(size: tuple[int, int], encoders: dict[str, Encoder]) -> None:
    """A crop's resize by the shorter side would make 1x20000 into gigabytes."""
    from unittest import mock

    resized = []
    resize = Image.Image.resize

    def watched(image: Image.Image, to: tuple[int, int], *words: Any, **options: Any) -> Image.Image:
        resized.append(to[0] * to[1])
        return resize(image, to, *words, **options)

    for colour in ("black", "white", "teal"):
        picture = Image.new("RGB", size, colour)
        picture.putpixel((0, 0), (1, 2, 3))
        with mock.patch.object(Image.Image, "resize", watched):
            for encoder in encoders.values():
                assert np.isfinite(encode(encoder, [picture])).all()
    assert max(resized) < 2_000_000


def test_the_middle_of_a_long_image_is_what_a_centre_crop_sees(timm_file: Path) -> None:
    from gmv_qdrant.models.encoders.network import middle

    photograph = sample_images(1, seed=9)[0].resize((4000, 60))
    assert middle(photograph).size == (960, 60)
    assert middle(photograph.resize((900, 60))).size == (900, 60)
    encoder = load_encoder("timm:test_resnet", weights=timm_file, runtime=CPU)
    shorter = photograph.crop((1400, 0, 2600, 60))  # around the same centre, beyond 16:1, too
    np.testing.assert_allclose(encode(encoder, [photograph]), encode(encoder, [shorter]), atol=1e-6)
