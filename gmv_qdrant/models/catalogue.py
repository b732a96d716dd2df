"""The models behind the names: what each needs on disk, where that is looked for, and fetching it beforehand."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from gmv_qdrant.errors import ModelError, did_you_mean
from gmv_qdrant.models import quality
from gmv_qdrant.models.devices import Runtime
from gmv_qdrant.models.encoders.dreamsim import TYPES
from gmv_qdrant.models.encoders.lpips import BACKBONES
from gmv_qdrant.models.registry import NONE, Kind, canonical_name, known_families, load_quality, model_files
from gmv_qdrant.models.weights import WeightFile, is_offline, missing, require_all, what_is_missing

if TYPE_CHECKING:
    from gmv_qdrant.settings import Settings

T = TypeVar("T")
KINDS: tuple[Kind, ...] = get_args(Kind)
WEIGHTLESS_METRICS = (NONE, "piqe", "entropy")
"""Quality metrics that need nothing on disk. Most others of pyiqa only say what they need while they load."""

ABOUT: dict[Kind, dict[str, str]] = {
    "encoder": {
        "clip:ViT-B-32-quickgelu/openai": "CLIP ViT-B/32 (the default)",
        "clip:MODEL/PRETRAINED": "any model and weights of open_clip",
        "timm:MODEL": "any classifier of timm, features before the classifier",
        "torchvision:MODEL": "any classifier of torchvision, such as alexnet and densenet121 (Table 9)",
        "torchvision:MODEL@features": "its last feature maps, averaged, such as alexnet@features",
        "pixels:32": "the pixels at 32x32; no weights",
        "ENCODER+thumb:16*0.5": "an encoder and a thumbnail, side by side in one vector",
    },
    "distance": {
        "dreamsim": "DreamSim, ensemble of three networks (the default)",
        **{f"dreamsim:{kind}": "DreamSim, one network" for kind in TYPES if kind != "ensemble"},
        **{f"lpips:{net}@64": f"LPIPS on torchvision's {net}" for net in BACKBONES},
        "l2@64": "root-mean-square difference of the pixels; no weights",
        "l2-norm@64": "plain 2-norm of the pixels, the paper's l2; no weights",
        "DISTANCE+thumb:16*0.2": "a distance, and how much thumbnails differ",
        "ENCODER": "the cosine of another encoder's vectors, such as timm:vit_small_patch14_dinov2",
        NONE: "the distance of the recall vectors; no weights",
    },
    "quality": {NONE: "every generated image alike, q = 1; no weights"},
}


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """ready: whether it can be loaded without a network; None where only loading it can tell (most of pyiqa)."""

    name: str
    kind: Kind
    files: tuple[WeightFile, ...]
    ready: bool | None

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``: sizes in bytes; ``sha256`` is the published one, null where nobody publishes any."""
        files = [
            {
                "origin": file.origin,
                "where": str(file.where),
                "revision": file.pin.revision,
                "size": file.pin.size,
                "sha256": file.pin.sha256,
                "licence": file.pin.licence,
                "path": str(path) if (path := file.find()) else None,
            }
            for file in self.files
        ]
        return {"name": self.name, "kind": self.kind, "ready": self.ready, "files": files}


def list_models() -> list[dict[str, str]]:
    """kind, name and what it is, of this package and of installed plug-ins; ``MODEL`` stands for any of that library.

    Fast: imports no network, opens no file of weights.
    """
    about = {kind: dict(names) for kind, names in ABOUT.items()}
    about["quality"] |= {name: f"pyiqa; {how}, clipped to [0,1]" for name, how in quality.mappings().items()}
    for kind in KINDS:
        families = {name.partition(":")[0].partition("@")[0] for name in about[kind]}
        about[kind] |= {
            name: "a plug-in" for name in known_families(kind) if name not in families | {"thumb"}
        }
    return [
        {"kind": kind, "name": name, "about": text} for kind in KINDS for name, text in about[kind].items()
    ]


def names_of(settings: Settings) -> dict[Kind, str]:
    """The models of these settings, in canonical names. Raises `ModelError` that names all that are unknown."""
    return _of_each_kind(lambda kind: canonical_name(kind, getattr(settings, kind)))


def files_of(settings: Settings, runtime: Runtime) -> dict[Kind, list[WeightFile]]:
    """What the models of these settings need on disk, but for a file of one's own.

    Raises `ModelError` that names all that can't be had at all: unknown to their library, or without their package.
    """
    return _of_each_kind(lambda kind: model_files(kind, getattr(settings, kind), runtime))


def _of_each_kind(ask: Callable[[Kind], T]) -> dict[Kind, T]:
    """The answers for encoder, distance and quality, or one `ModelError` of all that went wrong."""
    found: dict[Kind, T] = {}
    wrong = []
    for kind in KINDS:
        try:
            found[kind] = ask(kind)
        except ModelError as error:
            wrong.append(str(error))
    if wrong:
        raise ModelError("; ".join(wrong))
    return found


def kind_of(name: str) -> Kind:
    """A name belongs to one kind: they have no family in common but ``none`` and ``thumb``, which need nothing."""
    errors = {}
    for kind in KINDS:
        try:
            canonical_name(kind, name)
        except ModelError as error:
            errors[kind] = error
        else:
            return kind
    known = [kind for kind in KINDS if name.partition(":")[0].partition("@")[0] in known_families(kind)]
    if known:
        raise errors[known[0]]
    names = [model["name"] for model in list_models()]
    raise ModelError(
        f"unknown model {name!r}{did_you_mean(name, names)}: 'gmv-qdrant models list' shows encoders, distances "
        "and quality metrics"
    )


def model_status(name: str, runtime: Runtime | None = None, kind: Kind | None = None) -> ModelStatus:
    """What ``name`` needs, and whether it is there. Never touches the network. Raises `ModelError`."""
    kind = kind or kind_of(name)
    canonical = canonical_name(kind, name)
    files = tuple(model_files(kind, canonical, runtime or Runtime()))
    ready: bool | None = all(file.find() for file in files)
    own = kind != "quality" or canonical.partition(":")[0] in known_families("quality")
    if not files and not own and canonical not in WEIGHTLESS_METRICS:
        ready = None
    return ModelStatus(canonical, kind, files, ready)


def fetch_models(names: Mapping[Kind, str] | list[str], runtime: Runtime) -> list[ModelStatus]:
    """Download what these models lack, verified, each put in place by a rename; what was fetched before stays.

    Raises `ModelError` when the run is offline, a server doesn't answer, or a file has no published hash and isn't
    trusted.
    """
    kinds = (
        [(kind, names[kind]) for kind in names]
        if isinstance(names, Mapping)
        else [(kind_of(name), name) for name in names]
    )
    found = [model_status(name, runtime, kind) for kind, name in kinds]
    require_all({one.name: one.files for one in found}, runtime)
    for one in found:
        if one.ready is None:
            load_quality(one.name, runtime=runtime)
    return [ModelStatus(one.name, one.kind, one.files, True) for one in found]


def preflight(settings: Settings) -> str | None:
    """What the models of these settings lack on this machine, in one sentence for all three; None when nothing.

    Raises `ModelError` for names that don't exist. Never touches the network.
    """
    runtime = Runtime.of(settings)
    needed = files_of(settings, runtime)
    names = names_of(settings)
    lacking = missing({names[kind]: files for kind, files in needed.items()})
    if not lacking:
        return None
    files = [file for each in lacking.values() for file in each]
    size, free = sum(file.pin.size or 0 for file in files), _free(files[0].where)
    room = f", and only {free / 1e6:,.0f} MB are free in {files[0].where}" if free < 2 * size else ""
    when = "this machine is offline" if is_offline(runtime) else "the first run downloads them"
    return what_is_missing(lacking, when + room)


def _free(folder: Path) -> int:
    """Bytes that are free where ``folder`` is or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
