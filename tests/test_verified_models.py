"""Networks come verified or not at all: whatever changes what comes out is refused against a ledger's fingerprint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_workspace
import torch
from models_offline import save_alexnet
from PIL import Image

from gmv_qdrant import Workspace
from gmv_qdrant.errors import FingerprintMismatch
from gmv_qdrant.models import quality
from gmv_qdrant.models.encoders import network
from gmv_qdrant.models.verified import Models
from gmv_qdrant.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A recall network with random weights, LPIPS with a random backbone, and PIQE."""
    save_alexnet(tmp_path / "recall.pth", seed=5)
    save_alexnet(tmp_path / "cache/torch/checkpoints/alexnet-owt-7be5be79.pth")
    return Settings(
        encoder="torchvision:alexnet@features",
        encoder_weights=str(tmp_path / "recall.pth"),
        distance="lpips:alex@32",
        quality="piqe",
        device="cpu",
        cache_dir=tmp_path / "cache",
    )


def test_the_first_use_gives_what_the_ledger_keeps_and_the_next_agrees(settings: Settings) -> None:
    made = Models.verified(settings, None)
    kept = json.loads(json.dumps(made.fingerprint))
    assert kept == made.fingerprint
    assert kept["precision"] == "fp32"
    assert len(kept["encoder"]["probe"]) == made.recall.dim == 256
    assert len(kept["distance"]["probe"]) == 256 < made.rerank.dim
    assert 0 <= kept["quality"]["probe"] <= 1
    assert made.device == "cpu"
    again = Models.verified(settings, kept)
    assert (again.recall.dim, again.rerank.metric, again.fingerprint) == (made.recall.dim, "sqeuclid", kept)
    brief = Models.verified(settings, kept, quality=False)
    assert brief.quality is None
    assert brief.fingerprint == kept


def test_without_reranking_and_quality(settings: Settings) -> None:
    plain = settings.replaced(encoder="pixels:4", encoder_weights=None, distance="none", quality="none")
    kept = Models.verified(plain, None).fingerprint
    assert kept["quality"]["probe"] is None
    assert Models.verified(plain, kept).rerank.metric == "euclid"


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("precision", "bf16", "made in fp32, not bf16.*--precision fp32"),
        ("encoder", "pixels:32", "encoder name 'torchvision:alexnet@features', not 'pixels:32'"),
        ("distance", "lpips:alex@64", "distance name 'lpips:alex@32', not 'lpips:alex@64'"),
        ("distance", "none", "distance name 'lpips:alex@32'"),
        ("quality", "entropy", "quality name 'piqe', not 'entropy'"),
        ("quality", "none", "quality name 'piqe', not 'none'"),
    ],
)
def test_other_models_are_refused(settings: Settings, field: str, value: str, sentence: str) -> None:
    kept = Models.verified(settings, None).fingerprint
    own = {"encoder_weights": None} if field == "encoder" else {}
    other = settings.replaced(**{field: value}, **own)
    with pytest.raises(FingerprintMismatch, match=sentence):
        Models.verified(other, kept)


def test_other_weights_are_refused(settings: Settings, tmp_path: Path) -> None:
    kept = Models.verified(settings, None).fingerprint
    save_alexnet(tmp_path / "cache/torch/checkpoints/alexnet-owt-7be5be79.pth", seed=1)
    with pytest.raises(FingerprintMismatch, match="the distance weights '"):
        Models.verified(settings, kept)
    save_alexnet(tmp_path / "recall.pth", seed=6)
    with pytest.raises(FingerprintMismatch, match="the encoder weights '"):
        Models.verified(settings, kept)


def test_what_a_library_computes_otherwise_is_seen(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names and hashes stay the same; only the probe's vectors and score tell."""
    kept = Models.verified(settings, None).fingerprint

    def coarse(image: Image.Image, size: int) -> Image.Image:
        return image.resize((size, size), Image.Resampling.NEAREST)

    with monkeypatch.context() as patch:
        patch.setattr(network, "resize", coarse)
        with pytest.raises(FingerprintMismatch, match="the distance lpips:alex@32 no longer gives"):
            Models.verified(settings, kept)
    to_uint8 = network.to_uint8
    with monkeypatch.context() as patch:
        patch.setattr(network, "to_uint8", lambda image: to_uint8(image).flip(0))
        with pytest.raises(
            FingerprintMismatch, match="the encoder torchvision:alexnet@features no longer gives"
        ):
            Models.verified(settings, kept)
    with monkeypatch.context() as patch:
        patch.setattr(quality, "_to_unit", lambda image: torch.rand(1, 3, 64, 64))
        with pytest.raises(FingerprintMismatch, match="the quality piqe no longer gives"):
            Models.verified(settings, kept)


def test_a_device_s_rounding_is_not_seen(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Models.verified(settings, None).fingerprint
    encode = network.NetworkEncoder.encode

    def rounded(self: network.NetworkEncoder, batch: torch.Tensor) -> np.ndarray:
        vectors = encode(self, batch)
        noise = np.random.default_rng(1).standard_normal(vectors.shape).astype(np.float32)
        return vectors + 1e-4 * noise * np.abs(vectors).max()

    monkeypatch.setattr(network.NetworkEncoder, "encode", rounded)
    assert Models.verified(settings, kept).fingerprint == kept


@pytest.mark.parametrize("verb", ["ingest", "value", "update", "withdraw"])
def test_no_run_mixes_precisions(verb: str, folder: Path) -> None:
    """Not even one that loads no network, such as the update of a workspace that lacks nothing."""
    tiny_workspace.write(folder / "training", range(3))
    workspace = Workspace.init(folder / "ws", **tiny_workspace.SETTINGS)
    workspace.ingest([folder / "training"])
    words = {
        "ingest": lambda other: other.ingest([folder / "training"]),
        "value": lambda other: other.value([folder / "training"]),
        "update": lambda other: other.update(),
        "withdraw": lambda other: other.withdraw(uri="*"),
    }
    with pytest.raises(FingerprintMismatch, match="made in fp32, not bf16"):
        words[verb](Workspace(folder / "ws", precision="bf16"))
    words[verb](Workspace(folder / "ws", precision="fp32"))
