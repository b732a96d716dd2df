"""Where and how networks run, and how their names are resolved: what encoders and quality metrics share."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gmv_qdrant.errors import ModelError, SettingsError

if TYPE_CHECKING:
    from gmv_qdrant.settings import Settings

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True)
class Runtime:
    """device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``. precision: ``bf16`` casts whole networks.

    offline: never touch the network (``HF_HUB_OFFLINE`` says the same). cache_dir: where all weights are
    kept; None means where each package keeps its own (``HF_HOME``, ``TORCH_HOME``, ``XDG_CACHE_HOME``).
    """

    device: str = "auto"
    precision: Precision = "fp32"
    offline: bool = False
    cache_dir: Path | None = None

    @classmethod
    def of(cls, settings: Settings) -> Runtime:
        """What a workspace's settings, flags and environment say."""
        return cls(settings.device, settings.precision, settings.offline, settings.cache_dir)


def resolve_device(device: str) -> str:
    """``auto`` -> ``cuda``, else ``mps``, else ``cpu``; any other name is checked and given back.

    Raises `SettingsError` for a device that this machine, or this build of torch, doesn't have.
    """
    import torch

    kind, _, index = device.partition(":")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    if kind not in there or (index and not (kind == "cuda" and index.isdecimal())):
        raise SettingsError(f"unknown device {device!r}: use auto, cpu, cuda, cuda:N or mps")
    if not there[kind] or (index and int(index) >= torch.cuda.device_count()):
        raise SettingsError(f"device {device!r} is not available here: use --device auto or --device cpu")
    return device


@contextlib.contextmanager
def exact_inference() -> Iterator[None]:
    """Inference whose float32 is float32 on a GPU, too: convolutions would use TF32 there, wrong by 1e-3."""
    import torch

    with (
        torch.inference_mode(),
        torch.backends.cudnn.flags(
            enabled=torch.backends.cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False
        ),
    ):
        yield


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence: ``; did you mean a or b?``, or the known names when none is near."""
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"; known: {shown}" if names else ""


def plugin(group: str, name: str) -> Any:
    """The object that a third-party package registered under ``name`` in the entry-point ``group``."""
    for entry in entry_points(group=group, name=name):
        try:
            return entry.load()
        except ImportError as error:
            raise ModelError(f"the plug-in {name!r} ({entry.value}) cannot be imported: {error}") from error
    return None


def plugin_names(group: str) -> list[str]:
    return sorted(entry.name for entry in entry_points(group=group))
