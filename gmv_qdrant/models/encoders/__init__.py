"""Networks and other functions that turn an image into one vector."""

from gmv_qdrant.method import Metric
from gmv_qdrant.models.devices import Runtime, resolve_device
from gmv_qdrant.models.encoders.base import Encoder, Identity, Storage
from gmv_qdrant.models.encoders.registry import (
    DEFAULT_DISTANCE,
    DEFAULT_ENCODER,
    RecallDistance,
    canonical_distance_name,
    canonical_encoder_name,
    is_no_rerank,
    load_distance,
    load_encoder,
)

__all__ = [
    "DEFAULT_DISTANCE",
    "DEFAULT_ENCODER",
    "Encoder",
    "Identity",
    "Metric",
    "RecallDistance",
    "Runtime",
    "Storage",
    "canonical_distance_name",
    "canonical_encoder_name",
    "is_no_rerank",
    "load_distance",
    "load_encoder",
    "resolve_device",
]
