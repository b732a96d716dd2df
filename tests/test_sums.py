"""Encoders and distances that add up: one vector per image, against the formulas in plain numpy."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models_offline import sample_images, save_alexnet, seed_small_dreamsim
from PIL import Image

from gmv_qdrant.errors import FingerprintMismatch, ModelError
from gmv_qdrant.method import distances
from gmv_qdrant.models.base import Encoder
from gmv_qdrant.models.devices import Runtime
from gmv_qdrant.models.registry import canonical_name, load_distance, load_encoder
from gmv_qdrant.models.verified import Models
from gmv_qdrant.settings import Settings
from gmv_qdrant.testing import check_distance, check_encoder

CPU = Runtime(device="cpu")


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [
        *sample_images(5, seed=3),
        Image.new("RGB", (50, 20), (80, 80, 80)),
        Image.new("RGB", (9, 9), "red"),
    ]


@pytest.fixture
def weights(tmp_path: Path) -> Runtime:
    save_alexnet(tmp_path / "torch/checkpoints/alexnet-owt-7be5be79.pth")
    return Runtime(device="cpu", cache_dir=tmp_path, offline=True)


def encode(encoder: Encoder, images: list[Image.Image]) -> np.ndarray:
    return encoder.encode(torch.stack([encoder.prepare(image) for image in images]))


def thumbnails(images: list[Image.Image], size: int = 16) -> np.ndarray:
    """p = u / |u|, u the small RGB image minus its mean; 0 for a blank image."""
    rows = []
    for image in images:
        u = (
            np.asarray(image.resize((size, size), Image.Resampling.BICUBIC), np.float64)
            .transpose(2, 0, 1)
            .ravel()
        )
        u = u - u.mean()
        rows.append(u / np.linalg.norm(u) if np.abs(u).max() > 1e-9 else u * 0)
    return np.array(rows)


@pytest.mark.parametrize("weight", [0.2, 0.5, 1.0, 7.0])
def test_recall_is_the_encoder_beside_a_thumbnail(
    images: list[Image.Image], weights: Runtime, weight: float, tmp_path: Path
) -> None:
    """[e; sqrt(w) p] / sqrt(1 + w), so cosines are weighted means; a blank image is its e alone."""
    file = tmp_path / "torch/checkpoints/alexnet-owt-7be5be79.pth"
    name = "torchvision:alexnet@features"
    e = encode(load_encoder(name, weights=file, runtime=weights), images).astype(np.float64)
    p = thumbnails(images)
    found = encode(load_encoder(f"{name}+thumb:16*{weight}", weights=file, runtime=weights), images)
    expected = np.concatenate([e, math.sqrt(weight) * p], axis=1) / math.sqrt(1 + weight)
    blank = ~p.any(axis=1)
    assert blank.sum() == 1
    expected[blank] *= math.sqrt(1 + weight)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.dtype == np.float32


@pytest.mark.parametrize("weight", [0.2, 3.0])
@pytest.mark.parametrize("base", ["lpips:alex@64", "dreamsim:clip_vitb32", "l2@16", "l2-norm@8", "thumb:4"])
def test_a_distance_is_the_sum_of_its_parts(
    base: str, weight: float, images: list[Image.Image], weights: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """d + a |p - p'|^2; where d is Euclidean, the root of d^2 + a |p - p'|^2. As stored, to the storage's error."""
    assert weights.cache_dir
    if base.startswith("dreamsim"):
        seed_small_dreamsim("clip_vitb32", weights.cache_dir / "dreamsim", monkeypatch)
    plain = load_distance(base, runtime=weights)
    whole = load_distance(f"{base}+thumb:16*{weight}", runtime=weights)
    alone, p = encode(plain, images), thumbnails(images)
    vectors = encode(whole, images)
    stored = whole.storage.unpack(whole.storage.pack(vectors))
    for i, row in enumerate(alone):
        d = distances(plain.metric, row, alone)
        thumb = weight * np.square(p - p[i]).sum(axis=1)
        expected = np.sqrt(d**2 + thumb) if plain.metric == "euclid" else d + thumb
        assert whole.metric == ("euclid" if plain.metric == "euclid" else "sqeuclid")
        np.testing.assert_allclose(distances(whole.metric, vectors[i], vectors), expected, atol=2e-6)
        np.testing.assert_allclose(distances(whole.metric, stored[i], stored), expected, atol=2e-4)


def test_networks_add_up_too(images: list[Image.Image]) -> None:
    parts = [encode(load_encoder(name, runtime=CPU), images) for name in ("pixels:8", "pixels:4", "thumb:4")]
    whole = encode(load_encoder("pixels:8+pixels:4*2+thumb:4*.25", runtime=CPU), images)
    bright = thumbnails(images, 4).any(axis=1)
    cosines = sum(w * part @ part.T for w, part in zip((1, 2, 0.25), parts, strict=True)) / 3.25
    np.testing.assert_allclose((whole @ whole.T)[bright][:, bright], cosines[bright][:, bright], atol=1e-6)


@given(order=st.permutations(range(7)), cut=st.integers(1, 6))
@settings(max_examples=8, deadline=None)
def test_a_row_does_not_depend_on_batch_or_order(order: list[int], cut: int) -> None:
    pictures = [*sample_images(6), Image.new("RGB", (5, 5), "white")]
    for encoder in (load_encoder("pixels:8+thumb", runtime=CPU), load_distance("l2@8+thumb", runtime=CPU)):
        alone = np.concatenate([encode(encoder, [image]) for image in pictures])
        mixed = [pictures[index] for index in order]
        together = np.concatenate([encode(encoder, mixed[:cut]), encode(encoder, mixed[cut:])])
        np.testing.assert_allclose(together, alone[order], atol=1e-6)


@pytest.mark.parametrize("name", ["pixels:8+thumb:16*0.5", "thumb:16", "thumb:4+pixels:3*0.1"])
def test_sums_conform(name: str) -> None:
    check_encoder(name, CPU)


@pytest.mark.parametrize("name", ["l2@8+thumb:16*0.2", "thumb:16", "thumb:8+l2@4*9"])
def test_sums_of_distances_conform(name: str) -> None:
    check_distance(name, CPU)


def test_names_of_sums_have_one_form() -> None:
    for kind, spelt, canonical in (
        ("encoder", "clip+thumb", "clip:ViT-B-32-quickgelu/openai+thumb:16*0.5"),
        ("encoder", "pixels+thumb:16*.5", "pixels:32+thumb:16*0.5"),
        ("encoder", "pixels+thumb*1e-1", "pixels:32+thumb:16*0.1"),
        ("distance", "lpips+thumb", "lpips:alex@64+thumb:16*0.2"),
        ("distance", "lpips@32+thumb:8*1", "lpips:alex@32+thumb:8*1"),
        ("distance", "dreamsim:ensemble+l2*0.3333333", "dreamsim+l2@64*0.3333333"),
    ):
        assert canonical_name(kind, spelt) == canonical  # type: ignore[arg-type]
        assert canonical_name(kind, canonical) == canonical  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("pixels:8*0.5", "stands first and counts 1"),
        ("pixels:8+thumb:16*0", "the weight '0' .*can't be used"),
        ("pixels:8+thumb:16*-1", "can't be used"),
        ("pixels:8+thumb:16*nan", "can't be used"),
        ("pixels:8+thumb:16*1e99", "can't be used"),
        ("pixels:8+thumb:16*many", "can't be used"),
        ("pixels:8+", "unknown encoder ''"),
        ("+thumb:16", "unknown encoder ''"),
        ("pixels:8+thum:16", "did you mean 'thumb'"),
        ("pixels:8+thumb:0", "not a resolution"),
        ("pixels:8+thumb:16*0.5*0.5", "can't be used"),
    ],
)
def test_a_sum_that_makes_no_sense_is_refused(name: str, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        load_encoder(name, runtime=CPU)


def test_the_recall_distance_is_no_part_of_a_sum() -> None:
    with pytest.raises(ModelError, match="unknown distance 'none'"):
        load_distance("none+thumb:16", runtime=CPU)


def test_weights_belong_to_the_fingerprint() -> None:
    made = Settings(encoder="pixels:8+thumb", distance="l2@8+thumb", quality="none", device="cpu")
    kept = Models.verified(made, None).fingerprint
    assert kept["encoder"]["name"] == "pixels:8+thumb:16*0.5"
    assert Models.verified(made.replaced(encoder="pixels:8+thumb:16*0.5"), kept).recall.dim == 192 + 768
    for other in (
        {"encoder": "pixels:8+thumb:16*0.4"},
        {"distance": "l2@8+thumb:16*0.3"},
        {"distance": "l2@8"},
    ):
        with pytest.raises(FingerprintMismatch, match="this ledger's evidence was made with the"):
            Models.verified(made.replaced(**other), kept)
