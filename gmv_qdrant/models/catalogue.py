"""The models behind the names: what each needs on disk, where that is looked for, and fetching it beforehand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gmv_qdrant.errors import ModelError
from gmv_qdrant.models.devices import Runtime, plugin, plugin_names
from gmv_qdrant.models.encoders import registry
from gmv_qdrant.models.encoders.dreamsim import TYPES
from gmv_qdrant.models.encoders.lpips import BACKBONES
from gmv_qdrant.models.quality import NO_QUALITY, canonical_quality_name, quality_files
from gmv_qdrant.models.weights import Progress, WeightFile, is_offline, require

Kind = Literal["encoder", "distance", "quality"]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A name that settings may hold. ``MODEL`` in it stands for any model of that library."""

    name: str
    kind: Kind
    about: str


@dataclass(frozen=True, slots=True)
class FileStatus:
    origin: str
    where: Path
    size: int | None
    """About how many bytes, when it is known beforehand."""
    sha256: str | None
    """The published hash, or its first digits; verified on download."""
    path: Path | None
    """None: it isn't there."""


@dataclass(frozen=True, slots=True)
class ModelStatus:
    name: str
    kind: Kind
    files: tuple[FileStatus, ...]
    ready: bool | None
    """Whether it can be loaded without a network; None where only loading it can tell (most of pyiqa)."""

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        files = [
            {
                "origin": file.origin,
                "where": str(file.where),
                "size": file.size,
                "sha256": file.sha256,
                "path": str(file.path) if file.path else None,
            }
            for file in self.files
        ]
        return {"name": self.name, "kind": self.kind, "ready": self.ready, "files": files}


def list_models() -> list[ModelInfo]:
    """The names of this package and of installed plug-ins. Fast: imports no network, opens no file."""
    encoders = {
        registry.DEFAULT_ENCODER: "CLIP ViT-B/32 (the default)",
        "clip:MODEL/PRETRAINED": "any model and weights of open_clip",
        "timm:MODEL": "any classifier of timm, features before the classifier",
        "torchvision:MODEL": "any classifier of torchvision, such as alexnet and densenet121 (Table 9)",
        "torchvision:MODEL@features": "its last feature maps, averaged, such as alexnet@features",
        "pixels:32": "the pixels at 32x32; no weights",
    }
    distances = {"dreamsim": "DreamSim, ensemble of three networks (the default)"}
    distances |= {f"dreamsim:{kind}": "DreamSim, one network" for kind in TYPES if kind != "ensemble"}
    distances |= {f"lpips:{net}@64": f"LPIPS on {backbone}" for net, backbone in BACKBONES.items()}
    distances |= {
        "l2@64": "root-mean-square difference of the pixels; no weights",
        "l2-norm@64": "plain 2-norm of the pixels, the paper's l2; no weights",
        "none": "the distance of the recall vectors; no weights",
    }
    from gmv_qdrant.models.quality import iqa

    quality = {name: f"pyiqa; {how}, clipped to [0,1]" for name, how in iqa.mappings().items()}
    quality[NO_QUALITY] = "every generated image alike, q = 1; no weights"
    for group, names in (
        (registry.ENCODERS, encoders),
        (registry.DISTANCES, distances),
        ("gmv_qdrant.quality", quality),
    ):
        names |= dict.fromkeys(plugin_names(group), "a plug-in")
    tables: list[tuple[Kind, dict[str, str]]] = [
        ("encoder", encoders),
        ("distance", distances),
        ("quality", quality),
    ]
    return [ModelInfo(name, kind, about) for kind, table in tables for name, about in table.items()]


def model_status(name: str, runtime: Runtime | None = None) -> ModelStatus:
    """What ``name`` needs, and whether it is there. Never touches the network. Raises `ModelError`."""
    runtime = runtime or Runtime()
    kind, canonical, files = _resolve(name, runtime)
    found = tuple(FileStatus(file.origin, file.where, file.size, file.sha256, file.find()) for file in files)
    ready: bool | None = all(file.path is not None for file in found)
    if kind == "quality" and not files and canonical not in (NO_QUALITY, "piqe", "entropy"):
        ready = None
    return ModelStatus(canonical, kind, found, ready)


def fetch_model(
    name: str, *, runtime: Runtime | None = None, progress: Progress | None = None
) -> ModelStatus:
    """Download what ``name`` lacks: verified where a hash is published, and put in place by a rename.

    Raises `ModelError` when the run is offline or a server doesn't answer; what was fetched before stays.
    """
    runtime = runtime or Runtime()
    status = model_status(name, runtime)
    if status.ready:
        return status
    if is_offline(runtime):
        raise ModelError(f"cannot fetch {name}: this run is offline (HF_HUB_OFFLINE or --offline)")
    if status.ready is None:
        from gmv_qdrant.models.quality import iqa

        iqa.load(status.name, runtime, progress)
        return ModelStatus(status.name, status.kind, status.files, True)
    require(status.name, _resolve(name, runtime)[2], runtime, progress)
    return model_status(name, runtime)


def _resolve(name: str, runtime: Runtime) -> tuple[Kind, str, list[WeightFile]]:
    """A name belongs to one kind: the three have no family in common but ``none``, which needs nothing."""
    family = name.partition(":")[0].partition("@")[0]
    if family in registry.RECALL_FAMILIES or plugin(registry.ENCODERS, family) is not None:
        return "encoder", registry.canonical_encoder_name(name), registry.encoder_files(name, runtime)
    if family in registry.DISTANCE_FAMILIES or plugin(registry.DISTANCES, family) is not None:
        return "distance", registry.canonical_distance_name(name), registry.distance_files(name, runtime)
    try:
        return "quality", canonical_quality_name(name), quality_files(name, runtime)
    except ModelError as error:
        raise ModelError(
            f"unknown model {name!r}: 'gmv-qdrant models list' shows encoders, distances and quality metrics"
        ) from error
