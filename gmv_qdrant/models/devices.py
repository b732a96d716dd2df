"""Where and how networks run: what encoders and quality metrics share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gmv_qdrant.errors import SettingsError

if TYPE_CHECKING:
    from gmv_qdrant.settings import Settings

Precision = Literal["fp32", "bf16"]
Progress = Callable[[str, int, int | None], None]
"""Called with a file's name, the bytes downloaded, and the bytes in all when they are known."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``. precision: ``bf16`` casts whole networks.

    offline: never touch the network (``HF_HUB_OFFLINE`` says the same). cache_dir: where all weights are
    kept; None means where each package keeps its own (``HF_HOME``, ``TORCH_HOME``, ``XDG_CACHE_HOME``).
    trust: download files whose hash nobody publishes, and run code of model repositories. weights: a file that the
    (first) recall encoder loads in place of the published weights. progress: told of downloads.
    """

    device: str = "auto"
    precision: Precision = "fp32"
    offline: bool = False
    cache_dir: Path | None = None
    trust: bool = False
    weights: Path | None = None
    progress: Progress | None = field(default=None, compare=False)

    @classmethod
    def of(cls, settings: Settings, progress: Progress | None = None) -> Runtime:
        """What a workspace's settings, flags and environment say."""
        return cls(
            settings.device,
            settings.precision,
            settings.offline,
            settings.cache_dir,
            settings.trust,
            Path(settings.encoder_weights) if settings.encoder_weights else None,
            progress,
        )


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
