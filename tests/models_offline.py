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
