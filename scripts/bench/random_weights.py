"""The paper's networks in full size with random weights: as slow as the real ones, offline, and worth nothing else.

    python scripts/bench/random_weights.py FOLDER

FOLDER (2.1 GB) then serves as ``cache_dir``: unmodified loaders find CLIP B/32, DreamSim's ensemble and MANIQA there.
For speed only: what such networks see in an image means nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from gmv_qdrant.models import quality
from gmv_qdrant.models.devices import Runtime
from gmv_qdrant.models.encoders import clip
from gmv_qdrant.models.weights import HubFile

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from models_offline import muted, seed_dreamsim, seed_hub


def seed(folder: Path) -> Path:
    """Write what isn't there yet; gives ``folder``."""
    runtime = Runtime(device="cpu", cache_dir=folder, offline=True)
    _clip(runtime)
    if not (folder / "dreamsim").exists():
        draft = folder / "dreamsim.new"
        seed_dreamsim("ensemble", draft)
        draft.rename(folder / "dreamsim")
    _maniqa(runtime)
    return folder


def _clip(runtime: Runtime) -> None:
    import open_clip

    model, _ = clip.DEFAULT.split("/")
    [file] = clip.files(clip.DEFAULT, runtime)
    assert isinstance(file, HubFile)
    if file.find() is None:
        with muted():
            network = open_clip.create_model(model)
        seed_hub(file.where, file.repo, file.names[0], lambda path: _random(network, path))


def _random(network: torch.nn.Module, path: Path) -> None:
    """As initialised: seeded noise in every tensor would make CLIP see all images alike."""
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)


def _maniqa(runtime: Runtime) -> None:
    [file] = quality.files("maniqa", runtime)
    if file.find() is not None:
        return
    with muted():
        import timm
        from pyiqa.archs import maniqa_arch

        options = {k: v for k, v in quality._configs()["maniqa"]["metric_opts"].items() if k != "type"}
        create = timm.create_model
        timm.create_model = lambda name, pretrained: create(name, pretrained=False)
        try:
            network = maniqa_arch.MANIQA(**options, pretrained=False)
        finally:
            timm.create_model = create
    file.where.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), file.where / "ckpt_koniq10k.pt")


if __name__ == "__main__":
    seed(Path(sys.argv[1]))
