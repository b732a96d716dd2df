"""The networks of a workspace, to be had only after they were held against what its evidence was made with."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from PIL import Image

from gmv_qdrant.errors import FingerprintMismatch, ImageError
from gmv_qdrant.models.base import Encoder, QualityMetric
from gmv_qdrant.models.catalogue import files_of, names_of
from gmv_qdrant.models.devices import Progress, Runtime, resolve_device
from gmv_qdrant.models.registry import load_distance, load_encoder, load_quality
from gmv_qdrant.models.weights import require_all

if TYPE_CHECKING:
    from gmv_qdrant.settings import Settings

TOLERANCE = {"fp32": 0.002, "bf16": 0.03}
"""How far a probe's vector may lie from the one that the ledger keeps, as a share of its length, and its quality
score, as it is: another device stays well below, another way of resizing or of ordering colours doesn't."""
_SKETCH = 256
"""Numbers that a probe's vector is summed up in."""


@dataclass(frozen=True)
class Models:
    """Encoder, distance and quality metric of one workspace, on one device.

    There is no other way to a network in the pipeline. ``fingerprint`` is what the ledger is to keep: names, hashes
    of weights, preprocessing, precision, and what each network makes of a probe image.
    """

    recall: Encoder
    rerank: Encoder
    quality: QualityMetric | None
    device: str
    fingerprint: dict[str, Any]

    @classmethod
    def verified(
        cls,
        settings: Settings,
        fingerprint: dict[str, Any] | None,
        *,
        quality: bool = True,
        progress: Progress | None = None,
    ) -> Self:
        """Load what ``settings`` name and hold it against the ledger's ``fingerprint``; None: the first use.

        quality: False where no image is scored, which saves loading the metric; ``quality`` is then None, and the
        fingerprint lacks it. progress: told of downloads. Raises `ModelError` when weights are missing, for all models
        at once; `FingerprintMismatch` when a name, a weight, the precision or what comes out differs.
        """
        if fingerprint is not None:
            same_precision(settings, fingerprint)
        runtime = Runtime.of(settings, progress)
        names, files = names_of(settings), files_of(settings, runtime)
        require_all({names[kind]: files[kind] for kind in files if quality or kind != "quality"}, runtime)
        recall = load_encoder(names["encoder"], runtime=runtime)
        rerank = load_distance(names["distance"], runtime=runtime, recall=recall)
        metric = load_quality(names["quality"], runtime=runtime) if quality else None
        parts: dict[str, Any] = {
            "encoder": {**dataclasses.asdict(recall.identity), "probe": _vector(recall)},
            "distance": {**dataclasses.asdict(rerank.identity), "probe": _vector(rerank)},
        }
        if quality:
            identity = metric.identity if metric else "none"
            parts["quality"] = {"name": names["quality"], "identity": identity, "probe": _score(metric)}
        found = {"precision": settings.precision, **parts}
        if fingerprint is not None:
            for part, mine in parts.items():
                _compare(part, mine, fingerprint.get(part) or {}, TOLERANCE[settings.precision])
        return cls(recall, rerank, metric, resolve_device(runtime.device), fingerprint or found)


def same_precision(settings: Settings, fingerprint: dict[str, Any]) -> None:
    """Raises `FingerprintMismatch` when the ledger's evidence was made in another; no network is loaded for it."""
    if settings.precision != (kept := fingerprint["precision"]):
        raise FingerprintMismatch(
            f"this ledger's evidence was made in {kept}, not {settings.precision}: evidence of two kinds can't be "
            f"added up; run with --precision {kept}, or start another workspace with 'gmv-qdrant init'"
        )


def _compare(part: str, mine: dict[str, Any], theirs: dict[str, Any], tolerance: float) -> None:
    """Raises `FingerprintMismatch` for the first difference."""
    for name in mine:
        if name != "probe" and mine[name] != theirs.get(name):
            raise FingerprintMismatch(
                f"this ledger's evidence was made with the {part} {name} {theirs.get(name)!r}, not {mine[name]!r}: "
                "evidence of two kinds can't be added up; start another workspace with 'gmv-qdrant init'"
            )
    if not _same(mine["probe"], theirs["probe"], tolerance):
        raise FingerprintMismatch(
            f"the {part} {mine['name']} no longer gives what this ledger was made with on a probe image: a library "
            "has changed what it computes, so go back to the versions in 'gmv-qdrant sql \"SELECT versions FROM "
            "runs\"', or start another workspace"
        )


def _same(mine: list[float] | float | None, theirs: list[float] | float | None, tolerance: float) -> bool:
    """Whether two probes agree; what couldn't be scored then can't be now."""
    if mine is None or theirs is None:
        return mine is theirs
    a, b = np.array(mine, np.float64), np.array(theirs, np.float64)
    scale = np.linalg.norm(b) if b.ndim else 1.0
    return a.shape == b.shape and bool(np.linalg.norm(a - b) <= tolerance * scale)


def _probe() -> Image.Image:
    """RGB, 96x96: slopes along both sides, and a fine pattern."""
    ramp = np.arange(96, dtype=np.uint8)
    across, down = np.meshgrid(ramp, ramp)
    return Image.fromarray(np.stack([down * 2, across * 2, down ^ across], axis=2))


def _vector(encoder: Encoder) -> list[float]:
    """What an encoder makes of the probe, in up to 256 numbers: sums of entries with random signs, whose distances
    are nearly those of the vectors."""
    vector = np.asarray(encoder.encode(encoder.prepare(_probe())[None])[0], np.float64)
    signs = np.random.RandomState(0).choice([-1.0, 1.0], len(vector))
    padded = np.pad(vector * signs, (0, -len(vector) % min(_SKETCH, len(vector))))
    sketch = padded.reshape(-1, min(_SKETCH, len(vector))).sum(axis=0)
    return [float(f"{number:.7g}") for number in sketch]


def _score(metric: QualityMetric | None) -> float | None:
    """None where the metric can't take the probe image."""
    if metric is None:
        return None
    try:
        return float(f"{metric.score(_probe()):.7g}")
    except ImageError:
        return None
