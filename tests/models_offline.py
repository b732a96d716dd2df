"""Caches seeded with small or hollow weights, so that unmodified loaders run without a network."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image


@contextlib.contextmanager
def muted() -> Iterator[None]:
    """The oracles are other people's packages: their warnings and prints are not ours to fix."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


@contextlib.contextmanager
def hub_folder_kept() -> Iterator[None]:
    """DreamSim's DINO types move the folder of torch.hub, for everyone."""
    before = getattr(torch.hub, "_hub_dir", None)
    try:
        yield
    finally:
        torch.hub._hub_dir = before


def sample_images(count: int, seed: int = 0) -> list[Image.Image]:
    """Real photographs (scikit-learn's two, in random crops of different sizes and shapes)."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(seed)
    photographs = [Image.fromarray(array) for array in load_sample_images().images]
    crops = []
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        width, height = (int(size) for size in rng.integers(28, 200, 2))
        left = int(rng.integers(0, photograph.width - width))
        top = int(rng.integers(0, photograph.height - height))
        crops.append(photograph.crop((left, top, left + width, top + height)))
    return crops


def seed_hub(cache: Path, repo: str, name: str, write: Callable[[Path], None]) -> Path:
    """One file in a Hugging Face cache, in the layout that its library expects."""
    entry, revision = cache / f"models--{repo.replace('/', '--')}", "0" * 40
    (entry / "refs").mkdir(parents=True, exist_ok=True)
    (entry / "refs" / "main").write_text(revision)
    path = entry / "snapshots" / revision / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path)
    return path


def save_alexnet(path: Path, seed: int = 0) -> None:
    """A torchvision AlexNet: random convolutions, and a classifier of zeros that takes no room on disk."""
    from torchvision.models import alexnet

    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in alexnet().state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: torch.zeros(1).expand(shape)
        if name.startswith("classifier")
        else torch.randn(shape, generator=generator) * (0.1 if len(shape) == 1 else shape[1:].numel() ** -0.5)
        for name, shape in shapes.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)


def add_tiny_clip(folder: Path) -> str:
    """Register a CLIP of 3.7 MB with open_clip; gives its name."""
    import open_clip

    config = {
        "embed_dim": 32,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny-test-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "tiny-test-clip.json")
    return "tiny-test-clip"


def save_random(model: torch.nn.Module, path: Path, seed: int = 0) -> None:
    """The model's state dict with seeded random numbers, so that no two tensors are alike."""
    generator = torch.Generator().manual_seed(seed)
    state = model.state_dict()
    for name, tensor in state.items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            positive = "running_var" in name or "norm" in name.lower() or "bn" in name
            state[name] = (noise * 0.05 + 1.0 if positive else noise * 0.1).to(tensor.dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    else:
        torch.save(state, path)


_HUBCONF = """
from functools import partial
from torch import nn
from dreamsim.feature_extraction.vision_transformer import VisionTransformer


def dino_vitb16(pretrained=True):
    model = VisionTransformer(
        patch_size=16, embed_dim={width}, depth=12, num_heads=12, qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )
    import torch
    address = "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth"
    model.load_state_dict(torch.hub.load_state_dict_from_url(address, map_location="cpu"))
    return model
"""
"""What the hub repository facebookresearch/dino does, with DreamSim's copy of the same network."""

_LORA = {"r": 4, "lora_alpha": 1, "lora_dropout": 0.3, "bias": "none", "target_modules": ["qkv"]}


def seed_dreamsim(kind: str, folder: Path, width: int = 768) -> None:
    """The files of a DreamSim type with random weights: the package's loader finds all that it asks for."""
    with muted():
        import dreamsim.model as package
        from dreamsim.config import dreamsim_args
        from dreamsim.feature_extraction import vision_transformer
        from peft import LoraConfig, get_peft_model

    folder.mkdir(parents=True, exist_ok=True)

    def backbone(patch: int, seed: int) -> dict[str, torch.Tensor]:
        model = vision_transformer.VisionTransformer(
            patch_size=patch, embed_dim=width, depth=12, num_heads=12, qkv_bias=True
        )
        save_random(model, folder / "scratch.pth", seed)
        state = torch.load(folder / "scratch.pth", weights_only=True)
        (folder / "scratch.pth").unlink()
        return dict(state)

    for seed, model_type in enumerate(dreamsim_args["model_config"][kind]["model_type"].split(",")):
        if model_type == "dino_vitb16":
            hub = folder / "facebookresearch_dino_main"
            hub.mkdir(exist_ok=True)
            (hub / "hubconf.py").write_text(_HUBCONF.replace("{width}", str(width)))
            (folder / "checkpoints").mkdir(exist_ok=True)
            torch.save(backbone(16, seed), folder / "checkpoints" / "dino_vitbase16_pretrain.pth")
            head = {
                f"mlp.{layer}.{part}": torch.zeros(1) for layer in (0, 2, 4) for part in ("weight", "bias")
            }
            head["last_layer.weight"] = torch.zeros(1)
            student = {f"module.head.{name}": tensor for name, tensor in head.items()}
            torch.save({"student": student}, folder / "dino_vitb16_pretrain.pth")
        elif model_type == "synclr_vitb16":
            named = {f"module.visual.{name}": tensor for name, tensor in backbone(16, seed).items()}
            torch.save({"model": named}, folder / "synclr_vit_b_16.pth")
        else:
            patch = int(model_type[-2:])
            state = backbone(patch, seed)
            state["pos_drop.weight"], state["pos_drop.bias"] = torch.ones(width), torch.zeros(width)
            generator = torch.Generator().manual_seed(seed)
            state["proj"] = torch.randn(width, 512 * width // 768, generator=generator)
            torch.save({"state_dict": state}, folder / f"{model_type}_pretrain.pth.tar")

    options = dreamsim_args["model_config"][kind]
    first = options["model_type"].split(",")[0]
    name = {"ensemble": "ensemble_lora"}.get(
        kind, f"{first}_patch_lora" if kind.endswith("_patch") else f"{first}_single_lora"
    )
    with muted(), hub_folder_kept():
        base = package.PerceptualModel(**options, device="cpu", load_dir=str(folder), normalize_embeds=True)
        tuned = get_peft_model(base, LoraConfig(**_LORA))
        generator = torch.Generator().manual_seed(99)
        with torch.no_grad():
            for parameter_name, parameter in tuned.named_parameters():
                if "lora_" in parameter_name:  # a fresh LoRA is zero and would prove nothing
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        tuned.save_pretrained(str(folder / name))


def seed_small_dreamsim(kind: str, folder: Path, monkeypatch: object) -> None:
    """The same with backbones of width 48: the package builds them by ``vit_base``, which is shrunk here."""
    from functools import partial

    with muted():
        from dreamsim.feature_extraction import (
            load_clip_as_dino,
            load_open_clip_as_dino,
            load_synclr_as_dino,
            vision_transformer,
        )
        from dreamsim.feature_extraction.vision_transformer import VisionTransformer

    def vit_base(patch_size: int = 16, **_: object) -> torch.nn.Module:
        return VisionTransformer(
            patch_size=patch_size,
            embed_dim=48,
            depth=12,
            num_heads=12,
            qkv_bias=True,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        )

    for module in (load_clip_as_dino, load_open_clip_as_dino, load_synclr_as_dino, vision_transformer):
        monkeypatch.setattr(module, "vit_base", vit_base)  # type: ignore[attr-defined]
    seed_dreamsim(kind, folder, width=48)
