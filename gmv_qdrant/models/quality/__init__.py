"""Quality of one generated image, in [0,1].

Another package adds a metric by an entry point in the group ``gmv_qdrant.quality``: a callable ``(argument,
runtime) -> QualityMetric``, where a name is ``ENTRY`` or ``ENTRY:ARGUMENT``.
"""

from __future__ import annotations

from gmv_qdrant.models.devices import Runtime, plugin
from gmv_qdrant.models.quality.base import QualityMetric
from gmv_qdrant.models.weights import WeightFile

QUALITY = "gmv_qdrant.quality"
DEFAULT_QUALITY = "maniqa"
NO_QUALITY = "none"

__all__ = ["DEFAULT_QUALITY", "QualityMetric", "canonical_quality_name", "load_quality", "quality_files"]


def canonical_quality_name(name: str) -> str:
    """The name as it is kept in the fingerprint. Raises `ModelError` for an unknown metric."""
    if name != NO_QUALITY and plugin(QUALITY, name.partition(":")[0]) is None:
        from gmv_qdrant.models.quality import iqa

        iqa.mapping(name)
    return name


def load_quality(name: str, *, runtime: Runtime | None = None) -> QualityMetric | None:
    """The metric ``name``; None for ``none``, which values every generated image alike (q = 1).

    Raises `ModelError` at once when the name is unknown or its weights cannot be had.
    """
    runtime = runtime or Runtime()
    if name == NO_QUALITY:
        return None
    family, _, argument = name.partition(":")
    if (load := plugin(QUALITY, family)) is not None:
        metric: QualityMetric = load(argument, runtime)
        return metric
    from gmv_qdrant.models.quality import iqa

    return iqa.load(name, runtime)


def quality_files(name: str, runtime: Runtime) -> list[WeightFile]:
    """What `load_quality` is known to need on disk."""
    if name == NO_QUALITY or plugin(QUALITY, name.partition(":")[0]) is not None:
        return []
    from gmv_qdrant.models.quality import iqa

    iqa.mapping(name)
    return iqa.files(name, runtime)
