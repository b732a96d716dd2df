"""The one-vector form of each re-rank distance against the published packages' pairwise calls."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from models_offline import (
    hub_folder_kept,
    muted,
    sample_images,
    save_alexnet,
    seed_dreamsim,
    seed_small_dreamsim,
)
from PIL import Image

from gmv_qdrant.errors import ModelError
from gmv_qdrant.method import Metric, distances
from gmv_qdrant.models.base import Encoder, Storage
from gmv_qdrant.models.devices import Runtime
from gmv_qdrant.models.encoders.dreamsim import TYPES
from gmv_qdrant.models.registry import load_distance, load_encoder
from gmv_qdrant.models.wrappers import RecallDistance

CPU = Runtime(device="cpu")
FULL_SIZE = pytest.mark.skipif(
    not os.environ.get("GMV_TEST_FULL_SIZE"), reason="minutes and gigabytes: set GMV_TEST_FULL_SIZE=1"
)


def stored(encoder: Encoder, images: list[Image.Image]) -> np.ndarray:
    """Vectors as they come back from a feature file."""
    vectors = encoder.encode(torch.stack([encoder.prepare(image) for image in images]))
    assert vectors.shape == (len(images), encoder.dim)
    return encoder.storage.unpack(encoder.storage.pack(vectors))


def all_pairs(encoder: Encoder, images: list[Image.Image]) -> np.ndarray:
    rows = stored(encoder, images)
    return np.stack([distances(encoder.metric, row, rows) for row in rows])


def pairwise(distance: Callable[[Any, Any], float], items: Sequence[Any]) -> np.ndarray:
    """Each pair once: the packages' distances are symmetric, and 0 between equals."""
    table = np.zeros((len(items), len(items)))
    for i, j in combinations(range(len(items)), 2):
        table[i, j] = table[j, i] = distance(items[i], items[j])
    return table


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return sample_images(4, seed=1)


# --- the metrics --------------------------------------------------------------------------------------------

METRICS: tuple[Metric, ...] = ("cosine", "euclid", "sqeuclid")
rows = arrays.arrays(np.float32, (5, 7), elements=st.floats(-10, 10, width=32))


@given(rows)
@settings(max_examples=50, deadline=None)
def test_metrics_agree_with_numpy(matrix: np.ndarray) -> None:
    exact = matrix.astype(np.float64)
    squares = ((exact - exact[0]) ** 2).sum(axis=1)
    np.testing.assert_allclose(distances("sqeuclid", matrix[0], matrix), squares, rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(
        distances("euclid", matrix[0], matrix), np.sqrt(squares), rtol=1e-5, atol=1e-15
    )
    for metric in ("euclid", "sqeuclid"):
        assert distances(metric, matrix[0], matrix)[0] == 0.0
    matrix = matrix + np.float32(11)
    exact = matrix.astype(np.float64)
    norms = np.linalg.norm(exact, axis=1)
    cosines = exact @ exact[0] / (norms * norms[0])
    got = distances("cosine", matrix[0], matrix)
    np.testing.assert_allclose(got, np.maximum(0, 1 - cosines), atol=1e-6)
    assert (got >= 0).all()


@given(st.lists(st.integers(0, 39), min_size=1, max_size=12), st.sampled_from([7, 512, 1792, 5000]))
@settings(max_examples=30, deadline=None)
def test_a_distance_is_the_same_to_the_bit_in_any_company(picked: list[int], dim: int) -> None:
    matrix = np.random.default_rng(dim).normal(size=(40, dim)).astype(np.float32)
    for metric in METRICS:
        np.testing.assert_array_equal(
            distances(metric, matrix[0], matrix[picked]), distances(metric, matrix[0], matrix)[picked]
        )


def test_rows_may_be_read_only_and_stay_as_they_are() -> None:
    """Feature files are memory-mapped: torch warns of such arrays, and scaling must not write to them."""
    for dtype in ("float32", "float16", "uint8"):
        kept = np.arange(12).reshape(3, 4).astype(dtype)
        kept.flags.writeable = False
        vectors = Storage(dtype, 0.5).unpack(kept)
        np.testing.assert_array_equal(vectors, np.arange(12).reshape(3, 4) * 0.5)
        vectors.flags.writeable = False
        assert distances("sqeuclid", vectors[0], vectors).tolist() == [0.0, 16.0, 64.0]
        np.testing.assert_array_equal(kept, np.arange(12).reshape(3, 4))


# --- pixels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "size"), [("l2", 64), ("l2@16", 16), ("l2-norm", 64), ("l2-norm@8", 8)])
def test_pixel_distances_agree_with_numpy(name: str, size: int, images: list[Image.Image]) -> None:
    pixels = np.stack(
        [
            np.asarray(image.resize((size, size), Image.Resampling.BICUBIC), np.float64) / 255
            for image in images
        ]
    )
    squares = (pixels[:, None] - pixels[None]) ** 2
    expected = np.sqrt(
        squares.mean((2, 3, 4)) if name.startswith("l2@") or name == "l2" else squares.sum((2, 3, 4))
    )
    np.testing.assert_allclose(all_pairs(load_distance(name, runtime=CPU), images), expected, atol=1e-5)


@given(pixels=arrays.arrays(np.uint8, (3, 4, 4, 3)))
@settings(max_examples=50, deadline=None)
def test_stored_pixels_are_exact(pixels: np.ndarray) -> None:
    images = [Image.fromarray(array) for array in pixels]
    for name in ("l2@4", "l2-norm@4"):
        encoder = load_distance(name, runtime=CPU)
        vectors = encoder.encode(torch.stack([encoder.prepare(image) for image in images]))
        packed = encoder.storage.pack(vectors)
        assert packed.dtype == np.uint8
        np.testing.assert_array_equal(packed, pixels.transpose(0, 3, 1, 2).reshape(3, -1))
        np.testing.assert_array_equal(encoder.storage.unpack(packed), vectors)


def test_none_is_the_euclidean_distance_of_the_recall_vectors(images: list[Image.Image]) -> None:
    recall = load_encoder("pixels:8", runtime=CPU)
    none = load_distance("none", recall=recall)
    assert isinstance(none, RecallDistance)
    assert none.identity == recall.identity
    vectors = recall.encode(torch.stack([recall.prepare(image) for image in images])).astype(np.float64)
    expected = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    np.testing.assert_allclose(all_pairs(none, images), expected, atol=1e-6)
    with pytest.raises(ModelError, match="load that one first"):
        load_distance("none")


# --- LPIPS --------------------------------------------------------------------------------------------------


def package_lpips(net: str, size: int, images: list[Image.Image]) -> np.ndarray:
    """The unmodified package, image pair by image pair."""
    with muted():
        import lpips

        model = lpips.LPIPS(net=net, verbose=False)
    squares = [image.resize((size, size), Image.Resampling.BICUBIC) for image in images]
    tensors = [torch.from_numpy(np.asarray(s).copy()).permute(2, 0, 1)[None] / 127.5 - 1.0 for s in squares]
    with torch.inference_mode():
        return pairwise(lambda a, b: model(a, b).item(), tensors)


@pytest.fixture(scope="module")
def seeded_torch_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("torch_home")
    save_alexnet(home / "hub/checkpoints/alexnet-owt-7be5be79.pth")
    return home


@pytest.mark.parametrize("size", [32, 64])
def test_lpips_agrees_with_the_package_on_random_weights(
    size: int, seeded_torch_home: Path, monkeypatch: pytest.MonkeyPatch, images: list[Image.Image]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(seeded_torch_home))
    encoder = load_distance(f"lpips:alex@{size}", runtime=CPU)
    assert encoder.metric == "sqeuclid"
    assert encoder.storage.dtype == "float16"
    assert encoder.dim == {32: 3490, 64: 20762}[size]
    expected = package_lpips("alex", size, images)
    assert expected.max() > 0.05
    np.testing.assert_allclose(all_pairs(encoder, images), expected, atol=1e-4)


@pytest.mark.shared
@pytest.mark.parametrize("size", [32, 64, 224])
def test_real_lpips_agrees_with_the_package(
    size: int, shared: Path, monkeypatch: pytest.MonkeyPatch, images: list[Image.Image]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(shared / "data/weights/torch_home"))
    encoder = load_distance(f"lpips:alex@{size}", runtime=CPU)
    digits = np.load(shared / "data/images/mnist_gen_gan.npz")["images"][:2]
    mixed = [*images[:2], *(Image.fromarray(digit).convert("RGB") for digit in digits)]
    np.testing.assert_allclose(all_pairs(encoder, mixed), package_lpips("alex", size, mixed), atol=1e-4)


def test_half_precision_rows_lose_less_than_one_in_ten_thousand(
    seeded_torch_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(seeded_torch_home))
    encoder = load_distance("lpips:alex@64", runtime=CPU)
    assert np.log2(encoder.storage.scale).is_integer()
    flat = [Image.new("RGB", (64, 64), colour) for colour in ("black", "white", "red", "#010101")]
    noise = [Image.effect_noise((64, 64), sigma).convert("RGB") for sigma in (1, 30, 120)]
    batch = torch.stack([encoder.prepare(image) for image in [*flat, *noise, *sample_images(5, seed=2)]])
    exact = encoder.encode(batch)
    packed = encoder.storage.pack(exact)
    assert np.isfinite(packed).all()
    kept = encoder.storage.unpack(packed)
    for row, brief in zip(exact, kept, strict=True):
        error = np.abs(distances("sqeuclid", row, exact) - distances("sqeuclid", brief, kept))
        assert error.max() < 1e-4
    # and by arithmetic: half an ulp of float16 is 2**-11, so |d' - d| <= 2 sqrt(d) e + e**2 with e = 2**-10 |v|
    norm = np.linalg.norm(exact.astype(np.float64), axis=1).max()
    assert np.linalg.norm((kept - exact).astype(np.float64), axis=1).max() <= norm * 2.0**-11


def test_lpips_refuses_what_it_cannot_use(seeded_torch_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(seeded_torch_home))
    with pytest.raises(ModelError, match="cannot take images of 8x8"):
        load_distance("lpips:alex@8", runtime=CPU)
    for name in ("lpips:alexnet", "lpips:alex@big", "lpips:alex@99999", "l2@-1"):
        with pytest.raises(ModelError):
            load_distance(name, runtime=CPU)
    with pytest.raises(ModelError, match=r"missing of lpips:vgg@64 .553 MB.*models fetch lpips:vgg@64"):
        load_distance("lpips:vgg", runtime=CPU)


@given(order=st.permutations(range(5)), cut=st.integers(1, 4))
@settings(max_examples=4, deadline=None)
def test_rows_of_lpips_do_not_depend_on_the_batch(
    seeded_torch_home: Path, order: list[int], cut: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(seeded_torch_home))
        encoder = load_distance("lpips:alex@32", runtime=CPU)
    pictures = sample_images(5, seed=3)
    batch = torch.stack([encoder.prepare(picture) for picture in pictures])
    alone = np.concatenate([encoder.encode(batch[i : i + 1]) for i in range(5)])
    mixed = batch[list(order)]
    together = np.concatenate([encoder.encode(mixed[:cut]), encoder.encode(mixed[cut:])])
    np.testing.assert_allclose(together, alone[list(order)], atol=1e-6)


# --- DreamSim -----------------------------------------------------------------------------------------------


def package_dreamsim(kind: str, folder: Path, images: list[Image.Image]) -> np.ndarray:
    """The unmodified package, image pair by image pair."""
    with muted(), hub_folder_kept():
        from dreamsim import dreamsim

        model, preprocess = dreamsim(
            device="cpu",
            cache_dir=str(folder),
            dreamsim_type=kind.removesuffix("_patch"),
            use_patch_model=kind.endswith("_patch"),
        )
    tensors = [preprocess(image) for image in images]
    with torch.inference_mode():
        return pairwise(lambda a, b: model(a, b).item(), tensors)


@pytest.mark.parametrize("kind", ["ensemble", "synclr_vitb16", "dino_vitb16_patch"])
def test_small_dreamsim_agrees_with_the_package(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: list[Image.Image]
) -> None:
    """The package's loader, LoRA and forward as they are; only the backbones are shrunk."""
    seed_small_dreamsim(kind, tmp_path / "dreamsim", monkeypatch)
    before = torch.hub.get_dir()
    runtime = Runtime(device="cpu", cache_dir=tmp_path, offline=True)
    encoder = load_distance(f"dreamsim:{kind}", runtime=runtime)
    assert torch.hub.get_dir() == before
    assert encoder.metric == "cosine"
    again = load_distance(f"dreamsim:{kind}", runtime=runtime)  # the package draws DINO's unused head anew
    assert again.identity == encoder.identity
    expected = package_dreamsim(kind, tmp_path / "dreamsim", images)
    assert expected.max() > 1e-3
    np.testing.assert_allclose(all_pairs(encoder, images), expected, atol=1e-4)
    batch = torch.stack([encoder.prepare(image) for image in images])
    exact = encoder.encode(batch)
    np.testing.assert_allclose(exact[:1], encoder.encode(batch[:1]), atol=1e-6)
    ours = np.stack([distances("cosine", row, exact) for row in exact])
    np.testing.assert_allclose(ours, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["dreamsim:clip_vitb32", "lpips:alex@32"])
def test_bf16_distances_are_close(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: list[Image.Image]
) -> None:
    seed_small_dreamsim("clip_vitb32", tmp_path / "dreamsim", monkeypatch)
    save_alexnet(tmp_path / "torch/checkpoints/alexnet-owt-7be5be79.pth")
    full, brief = (
        load_distance(name, runtime=Runtime(device="cpu", precision=precision, cache_dir=tmp_path))
        for precision in ("fp32", "bf16")
    )
    assert full.identity.weights == brief.identity.weights
    assert full.identity != brief.identity
    np.testing.assert_allclose(all_pairs(brief, images), all_pairs(full, images), atol=0.02)


def test_dreamsim_prints_nothing_and_prefers_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    seed_small_dreamsim("dino_vitb16", tmp_path / "dreamsim", monkeypatch)
    load_distance("dreamsim:dino_vitb16", runtime=Runtime(device="cpu", cache_dir=tmp_path))
    assert capfd.readouterr().out == ""


def test_the_hash_of_dreamsim_covers_every_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CLIP's projection is no parameter of the package's model; it changes vectors, so it must change the hash."""
    folder = tmp_path / "dreamsim"
    seed_small_dreamsim("clip_vitb32", folder, monkeypatch)
    load = partial(load_distance, "dreamsim:clip_vitb32", runtime=Runtime(device="cpu", cache_dir=tmp_path))
    first = load().identity
    assert load().identity == first
    checkpoint = folder / "clip_vitb32_pretrain.pth.tar"
    content: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["proj"] = content["state_dict"]["proj"] * 1.5
    torch.save(content, checkpoint)
    assert load().identity.weights != first.weights


def test_a_damaged_dreamsim_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "dreamsim"
    seed_small_dreamsim("clip_vitb32", folder, monkeypatch)
    runtime = Runtime(device="cpu", cache_dir=tmp_path, offline=True)
    (folder / "clip_vitb32_pretrain.pth.tar").write_bytes(b"torn")
    with pytest.raises(ModelError, match="dreamsim:clip_vitb32 cannot be loaded"):
        load_distance("dreamsim:clip_vitb32", runtime=runtime)
    (folder / "clip_vitb32_pretrain.pth.tar").unlink()
    with pytest.raises(
        ModelError, match=r"missing of dreamsim:clip_vitb32.*models fetch --trust dreamsim:clip_vitb32"
    ):
        load_distance("dreamsim:clip_vitb32", runtime=runtime)


def test_our_table_of_dreamsim_is_the_package_s() -> None:
    import inspect

    with muted():
        from dreamsim import model
        from dreamsim.config import dreamsim_args, dreamsim_weights

    from gmv_qdrant.models.encoders.dreamsim import files

    assert set(TYPES) == set(dreamsim_args["model_config"])
    source = inspect.getsource(model.download_weights)
    for kind, (_, members) in TYPES.items():
        assert files(kind, CPU)[0].origin == dreamsim_weights[kind]
        assert all(f'"{member}"' in source for member in members)


@FULL_SIZE
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ensemble", "dino_vitb16"])
def test_full_size_dreamsim_agrees_with_the_package(
    kind: str, tmp_path: Path, images: list[Image.Image]
) -> None:
    seed_dreamsim(kind, tmp_path / "dreamsim")
    encoder = load_distance(
        f"dreamsim:{kind}", runtime=Runtime(device="cpu", cache_dir=tmp_path, offline=True)
    )
    assert encoder.dim == {"ensemble": 1792, "dino_vitb16": 768}[kind]
    expected = package_dreamsim(kind, tmp_path / "dreamsim", images[:3])
    np.testing.assert_allclose(all_pairs(encoder, images[:3]), expected, atol=1e-4)
