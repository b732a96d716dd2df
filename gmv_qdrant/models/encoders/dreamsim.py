"""DreamSim as one vector per image (the paper's default re-rank distance, section 3.1).

Fu et al., NeurIPS 2023. The package's ``model(a, b)`` is ``1 - cos(embed(a), embed(b))``, so the embedding is
the vector and ``cosine`` the metric. The vector of the patch types is the class token beside the mean patch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmv_qdrant.errors import ModelError, did_you_mean, first_line
from gmv_qdrant.models.base import Encoder, Storage
from gmv_qdrant.models.checkpoints import LOAD_ERRORS, load_state, quiet, state_hash, swapped
from gmv_qdrant.models.devices import Runtime, resolve_device
from gmv_qdrant.models.weights import UrlArchive, UrlFile, WeightFile, own_cache, require

if TYPE_CHECKING:
    import torch

_RELEASES = "https://github.com/ssundaram21/dreamsim/releases/download"
_DINO = "dino_vitb16_pretrain.pth"
_DINOV2 = "dinov2_vitb14_pretrain.pth"
_BACKBONES = "https://dl.fbaipublicfiles.com"
_REVISION = "7764ea0f912e53c92e82eb78a2a1631e92725fc8"
_DINOV2_CODE = f"https://codeload.github.com/facebookresearch/dinov2/zip/{_REVISION}"
_DINOV2_FOLDER = f"dinov2-{_REVISION}"
"""What that archive unpacks into."""

TYPES: dict[str, tuple[str, tuple[str, ...]]] = {
    "ensemble": (
        "v0.2.0",
        (_DINO, "open_clip_vitb16_pretrain.pth.tar", "clip_vitb16_pretrain.pth.tar", "ensemble_lora"),
    ),
    "dino_vitb16": ("v0.2.0", (_DINO, "dino_vitb16_single_lora")),
    "clip_vitb32": ("v0.2.0", ("clip_vitb32_pretrain.pth.tar", "clip_vitb32_single_lora")),
    "open_clip_vitb32": ("v0.2.0", ("open_clip_vitb32_pretrain.pth.tar", "open_clip_vitb32_single_lora")),
    "dinov2_vitb14": ("v0.2.1", (_DINOV2, "dinov2_vitb14_single_lora")),
    "synclr_vitb16": ("v0.2.1", ("synclr_vit_b_16.pth", "synclr_vitb16_single_lora")),
    "dino_vitb16_patch": ("v0.2.1", (_DINO, "dino_vitb16_patch_lora")),
    "dinov2_vitb14_patch": ("v0.2.1", (_DINOV2, "dinov2_vitb14_patch_lora")),
}
"""Published types: the release that they came with, and what their archive holds."""


def canonical(argument: str) -> str:
    """``ensemble`` is the default and goes without saying. Raises `ModelError` for an unknown type."""
    kind = argument or "ensemble"
    if kind not in TYPES:
        raise ModelError(f"DreamSim has no type {kind!r}{did_you_mean(kind, TYPES)}: {', '.join(TYPES)}")
    return "" if kind == "ensemble" else kind


def folder(runtime: Runtime) -> Path:
    """Where DreamSim's files are kept: the package's own default is the current directory."""
    return own_cache(runtime) / "dreamsim"


def files(argument: str, runtime: Runtime) -> list[WeightFile]:
    """The release archive; for the DINO types also their backbone, and for DINOv2 its code."""
    kind, where = argument or "ensemble", folder(runtime)
    release, members = TYPES[kind]
    url = f"{_RELEASES}/{release}-checkpoints/dreamsim_{kind}_checkpoint.zip"
    members = tuple(f"{m}/adapter_config.json" if m.endswith("_lora") else m for m in members)
    needed: list[WeightFile] = [UrlArchive(url, where, members=members)]
    backbones = where / "checkpoints"
    if _DINO in members:
        needed.append(
            UrlFile(f"{_BACKBONES}/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth", backbones)
        )
    elif _DINOV2 in members:
        needed.append(UrlFile(f"{_BACKBONES}/dinov2/dinov2_vitb14/{_DINOV2}", backbones))
        needed.append(UrlArchive(_DINOV2_CODE, where, members=(f"{_DINOV2_FOLDER}/hubconf.py",)))
    return needed


def load(argument: str, runtime: Runtime) -> Encoder:
    """``dreamsim[:TYPE]``: [0,1] at 224x224 (a squash), LoRA merged; float16 rows; metric ``cosine``."""
    from gmv_qdrant.models.encoders.network import NetworkEncoder, Preprocessing

    kind, name = argument or "ensemble", f"dreamsim:{argument}" if argument else "dreamsim"
    require(name, files(argument, runtime), runtime)
    if kind.startswith("dinov2") and not runtime.trust:
        raise ModelError(
            f"{name} runs the code of {_DINOV2_CODE.partition('//')[2]}, which nobody publishes a hash of: allow it "
            "with --trust"
        )
    tuned = _package_model(kind, name, runtime)
    device = resolve_device(runtime.device)
    for extractor in tuned.base_model.model.extractor_list:
        extractor.device = device
        _settle_projection(extractor)
    digest = state_hash(tuned.state_dict())  # before merging, whose rounding may differ between machines
    model = tuned.merge_and_unload()
    return NetworkEncoder(
        name,
        model,
        Preprocessing.squash(224, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "in [0,1]"),
        runtime,
        weights=digest,
        forward=lambda pixels: _vectors(model, pixels),
        storage=Storage("float16", 2.0**-15),  # entries are at most 1; small ones stay normal numbers
    )


def _package_model(kind: str, name: str, runtime: Runtime) -> Any:
    """The package's own loader, on the CPU, kept from the network, stdout and torch.hub's folder."""
    import torch

    def backbone(_: str, model: str) -> Any:
        if model != "dino_vitb16":
            return hub_load(str(where / _DINOV2_FOLDER), model, source="local", verbose=False)  # type: ignore[no-untyped-call]
        # the package has a copy of DINO's network, so no code of its repository is run
        from dreamsim.feature_extraction.vision_transformer import vit_base

        network = vit_base(patch_size=16, num_classes=0)
        network.load_state_dict(load_state(where / "checkpoints" / "dino_vitbase16_pretrain.pth"))
        return network

    where, hub_load = folder(runtime), torch.hub.load
    hub_folder = getattr(torch.hub, "_hub_dir", None)
    try:
        with quiet() as said, swapped(torch.hub, "load", backbone):
            from dreamsim import dreamsim

            model, _ = dreamsim(
                device="cpu",
                cache_dir=str(where),
                dreamsim_type=kind.removesuffix("_patch"),
                use_patch_model=kind.endswith("_patch"),
            )
    except (*LOAD_ERRORS, ImportError) as error:
        raise ModelError(f"{name} cannot be loaded from {where}: {first_line(error)}") from error
    finally:
        torch.hub._hub_dir = hub_folder  # the DINO types move it for everyone
    for warning in said:
        if "missing adapter keys" in str(warning.message):
            raise ModelError(f"{name} cannot be loaded from {where}: {first_line(warning.message)}")
    return model


def _settle_projection(extractor: Any) -> None:
    """CLIP's projection is a bare tensor, which would neither be hashed nor follow the model. DINO's is never used, and
    the package leaves a part of it random: each load would have another hash."""
    import torch

    projection = getattr(extractor, "proj", None)
    if isinstance(projection, torch.nn.Module):
        extractor.proj = None
    elif isinstance(projection, torch.Tensor):
        del extractor.proj
        extractor.proj = torch.nn.Parameter(projection.detach(), requires_grad=False)


def _vectors(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    """[0,1] ``(n, 3, 224, 224)`` -> ``(n, dim)``: what the package's ``forward`` compares by cosine."""
    import torch

    embedded: torch.Tensor = model.embed(pixels)
    if model.is_patch:
        return torch.cat((embedded[:, 0], embedded[:, 1:].mean(dim=1)), dim=-1)
    return embedded
