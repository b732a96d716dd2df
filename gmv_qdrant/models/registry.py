"""Names of encoders, distances and quality metrics, and what they load.

A name is ``FAMILY``, ``FAMILY:ARGUMENT`` or ``FAMILY@SIZE``. Encoders, and distances, add up with weights:
``clip+thumb:16*0.5``, ``lpips:alex@64+thumb:16*0.2``. The families of this package stand in `FAMILIES`; another
package adds its own by an entry point in one of `GROUPS`: a callable ``(argument, runtime) -> Encoder``, or
``-> QualityMetric``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

from gmv_qdrant.errors import GmvError, ModelError, did_you_mean, first_line
from gmv_qdrant.models import quality
from gmv_qdrant.models.base import Encoder, QualityMetric
from gmv_qdrant.models.devices import Runtime, resolve_device
from gmv_qdrant.models.encoders import backbones, clip, dreamsim, lpips, pixels
from gmv_qdrant.models.weights import WeightFile
from gmv_qdrant.models.wrappers import CheckedEncoder, CheckedMetric, RecallDistance, WeightedSum

Kind = Literal["encoder", "distance", "quality"]
NONE = "none"
"""As a distance: that of the recall vectors (the paper's No-Rerank). As a quality: every image counts alike."""

GROUPS: dict[Kind, str] = {
    "encoder": "gmv_qdrant.encoders",
    "distance": "gmv_qdrant.distances",
    "quality": "gmv_qdrant.quality",
}
"""Entry-point groups."""
WEIGHTS: dict[Kind, float] = {"encoder": 0.5, "distance": 0.2}
"""Of a part of a sum whose weight isn't written: those that thumbnails were measured best with."""


def _no_files(_: str, __: Runtime) -> list[WeightFile]:
    return []


@dataclass(frozen=True, slots=True)
class Family:
    """load: from the canonical argument. canonical: checks an argument and spells it out, or raises `ModelError`.

    files: what loading needs on disk. joint: what stands between family and argument in the canonical name.
    """

    load: Callable[[str, Runtime], Any]
    canonical: Callable[[str], str] = str
    files: Callable[[str, Runtime], list[WeightFile]] = _no_files
    joint: str = ":"


_PYIQA = Family(quality.load, files=quality.files, joint="")
FAMILIES: dict[Kind, dict[str, Family]] = {
    "encoder": {
        "clip": Family(clip.load, clip.canonical, clip.files),
        "timm": Family(backbones.load_timm, backbones.model_name, backbones.timm_files),
        "torchvision": Family(backbones.load_torchvision, backbones.model_name, backbones.torchvision_files),
        "pixels": Family(pixels.load_recall, partial(pixels.canonical_size, default=32)),
        "thumb": Family(pixels.load_thumb, partial(pixels.canonical_size, default=16)),
    },
    "distance": {
        "dreamsim": Family(dreamsim.load, dreamsim.canonical, dreamsim.files),
        "lpips": Family(lpips.load, lpips.canonical, lpips.files),
        "l2": Family(pixels.load_rms, pixels.canonical_size, joint="@"),
        "l2-norm": Family(pixels.load_norm, pixels.canonical_size, joint="@"),
        "thumb": Family(pixels.load_thumb_distance, partial(pixels.canonical_size, default=16)),
    },
    "quality": {},  # all others are pyiqa's
}


@dataclass(frozen=True, slots=True)
class Part:
    """One summand of a name. weight: of its distances against those of the first part, which has 1."""

    family: Family
    name: str
    argument: str
    weight: float

    def load(self, runtime: Runtime) -> Any:
        """Raises `ModelError`, whatever the loader raised."""
        with self.our_errors():
            return self.family.load(self.argument, runtime)

    def files(self, runtime: Runtime) -> list[WeightFile]:
        """Raises `ModelError`, too: for a model that its library doesn't know, or a library that isn't there."""
        with self.our_errors():
            return self.family.files(self.argument, runtime)

    @contextmanager
    def our_errors(self) -> Iterator[None]:
        """Whatever others' code raises inside is a `ModelError`."""
        try:
            yield
        except GmvError:
            raise
        except ModuleNotFoundError as error:
            raise ModelError(
                f"{self.name} needs the package {error.name}: pip install {error.name}"
            ) from error
        except Exception as error:  # a plug-in may raise anything
            raise ModelError(
                f"{self.name} cannot be loaded: {type(error).__name__}: {first_line(error)}"
            ) from error


def canonical_name(kind: Kind, name: str) -> str:
    """``clip`` -> ``clip:ViT-B-32-quickgelu/openai``, ``l2`` -> ``l2@64``. Raises `ModelError` for unknown names."""
    if _is_none(kind, name):
        return NONE
    first, *others = _parts(kind, name)
    return "+".join([first.name, *(f"{part.name}*{part.weight:.12g}" for part in others)])


def model_files(kind: Kind, name: str, runtime: Runtime) -> list[WeightFile]:
    """What loading needs on disk, as far as it is known beforehand: most of pyiqa only says so while it loads."""
    if _is_none(kind, name):
        return []
    parts = _parts(kind, name)
    if kind == "encoder" and runtime.weights:
        parts = parts[1:]
    return [file for part in parts for file in part.files(runtime)]


def load_encoder(name: str, *, weights: str | Path | None = None, runtime: Runtime | None = None) -> Encoder:
    """The recall encoder ``name``: float32 unit vectors, metric ``cosine``.

    weights: a file to load instead of the published weights; None: what ``runtime`` says. Raises `ModelError` at once
    when the name is unknown or its weights cannot be had.
    """
    runtime = runtime or Runtime()
    return _load("encoder", name, dataclasses.replace(runtime, weights=_file(weights or runtime.weights)))


def load_distance(name: str, *, runtime: Runtime | None = None, recall: Encoder | None = None) -> Encoder:
    """The encoder behind the re-rank distance ``name``; ``none`` is `RecallDistance` over ``recall``."""
    if not _is_none("distance", name):
        return _load("distance", name, dataclasses.replace(runtime or Runtime(), weights=None))
    if recall is None:
        raise ModelError("the distance 'none' is the recall encoder's: load that one first")
    return RecallDistance(recall)


def load_quality(name: str, *, runtime: Runtime | None = None) -> QualityMetric | None:
    """The quality metric ``name``; None for ``none``, which values every generated image alike (q = 1)."""
    if _is_none("quality", name):
        return None
    runtime = runtime or Runtime()
    resolve_device(runtime.device)
    (part,) = _parts("quality", name)
    with part.our_errors():
        return CheckedMetric(part.name, part.load(runtime))


def _load(kind: Kind, name: str, runtime: Runtime) -> Encoder:
    resolve_device(runtime.device)
    first, *others = _parts(kind, name)
    if runtime.weights and first.family.files is _no_files and first.family in FAMILIES[kind].values():
        raise ModelError(
            f"{first.name} has no weights, so --encoder-weights {runtime.weights} cannot be used"
        )
    encoder: Encoder = CheckedEncoder(first.name, first.load(runtime))
    if not others:
        return encoder
    rest = dataclasses.replace(runtime, weights=None)
    summands = [(CheckedEncoder(part.name, part.load(rest)), part.weight) for part in others]
    return WeightedSum(canonical_name(kind, name), [(encoder, 1.0), *summands], unit=kind == "encoder")


def known_families(kind: Kind) -> list[str]:
    """Of this package, then of plug-ins."""
    return [*FAMILIES[kind], *sorted(entry.name for entry in entry_points(group=GROUPS[kind]))]


def _is_none(kind: Kind, name: str) -> bool:
    return kind != "encoder" and name == NONE


def _parts(kind: Kind, name: str) -> list[Part]:
    if kind == "quality":  # its names may hold any character
        family, _, argument = name.partition(":")
        own = FAMILIES[kind].get(family) or _plugin(kind, family)
        if own is None:
            quality.mapping(name)
        return [Part(own or _PYIQA, name, argument if own else name, 1.0)]
    return [_part(kind, text, first=index == 0) for index, text in enumerate(name.split("+"))]


def _part(kind: Kind, text: str, *, first: bool) -> Part:
    """``lpips@32`` -> family lpips, ``@32``; ``l2@32`` and ``l2:32`` -> family l2, ``32``."""
    found = re.fullmatch(r"([^:@*]*)(?::([^*]*)|(@[^*]*))?(?:\*(.*))?", text, flags=re.DOTALL)
    if found is None:
        raise ModelError(
            f"{text!r} is no {kind}: write FAMILY:ARGUMENT, or FAMILY:ARGUMENT*WEIGHT after a '+'"
        )
    name, argument, size, weight = found.groups()
    family = FAMILIES[kind].get(name) or _plugin(kind, name)
    if family is None and kind == "distance":  # any encoder is one: 1 - the cosine of its vectors
        family = FAMILIES["encoder"].get(name) or _plugin("encoder", name)
    if family is None:
        near = did_you_mean(name, [*known_families(kind), NONE][: None if kind == "distance" else -1])
        raise ModelError(f"unknown {kind} {text!r}{near}: 'gmv-qdrant models list' names those there are")
    if size is not None:
        argument = size if name == "lpips" else size[1:]
    argument = family.canonical(argument or "")
    spelt = f"{name}{family.joint}{argument}" if argument else name
    return Part(family, spelt, argument, _weight(kind, weight, text, first=first))


def _weight(kind: Kind, weight: str | None, text: str, *, first: bool) -> float:
    if first and weight is not None:
        raise ModelError(f"{text!r} stands first and counts 1: give weights to the parts after it")
    if weight is None:
        return 1.0 if first else WEIGHTS[kind]
    try:
        number = float(weight)
    except ValueError:
        number = 0.0
    if not 1e-6 <= number <= 1e6:
        raise ModelError(
            f"the weight {weight!r} of {text!r} can't be used: write a number above 0, such as 0.5"
        )
    return number


def _plugin(kind: Kind, name: str) -> Family | None:
    """What a third-party package registered under this name."""
    for entry in entry_points(group=GROUPS[kind], name=name):
        try:
            return Family(entry.load())
        except Exception as error:  # whatever importing it runs into
            raise ModelError(
                f"the plug-in {name!r} ({entry.value}) cannot be imported: {first_line(error)}"
            ) from error
    return None


def _file(weights: str | Path | None) -> Path | None:
    if weights is None:
        return None
    path = Path(weights).expanduser()
    if not path.is_file():
        raise ModelError(f"the weights file {weights} does not exist")
    return path
