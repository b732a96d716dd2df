"""What a quality metric is: q in [0,1] of one generated image (section 3.2), higher is better."""

from __future__ import annotations

from typing import Protocol

from PIL import Image


class QualityMetric(Protocol):
    """One score per image, the same for the same image whatever the batch or order it comes in."""

    @property
    def identity(self) -> str:
        """Name, mapping to [0,1] and weights hash, in one line."""
        ...

    def score(self, image: Image.Image) -> float:
        """RGB image -> quality in [0,1]."""
        ...
