"""How hard to search: defaults by kind of code, the recall they reach, and parameters that reach a target."""

from __future__ import annotations

from .base import Quantization, SearchParams

_LEAST: dict[Quantization, tuple[float, int]] = {
    "pq": (4.0, 1_600),
    "turbo": (4.0, 1_600),
    "scalar": (2.0, 400),
    "binary": (8.0, 3_200),
    "none": (1.0, 1),
}
"""Oversampling at least, and the number of candidates that the codes should name."""


def default_oversampling(quantization: Quantization, limit: int) -> float:
    """How many times ``limit`` candidates to fetch by codes before the exact vectors order them.

    What counts is the number of candidates: about 1,600 give product quantization x16 a recall@200 of 0.999
    at 100,000 and 1,000,000 points (four times the limit at least); finer codes need fewer.
    """
    factor, candidates = _LEAST[quantization]
    return max(factor, candidates / max(1, limit))


def default_params(quantization: Quantization, limit: int) -> SearchParams:
    """The parameters that a search for ``limit`` points starts from, before any calibration."""
    return SearchParams(oversampling=default_oversampling(quantization, limit))
