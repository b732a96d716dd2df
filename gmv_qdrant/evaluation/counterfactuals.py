"""Causal truth: what models lose that were trained again without some of the images, beside what credit predicts.

The linear datamodeling score (LDS; Ilyas et al. 2022, Park et al. 2023): models are trained on subsets of the training
images; each generated image has a loss under each model; its credit, summed over a subset, should rank the models as
the losses do. Leaving one owner out at a time is the same question with other subsets.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from gmv_qdrant.errors import SettingsError

GROUPS = 16
"""Parts of the models that are left out in turn to see how much the score depends on which subsets were drawn."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Rank correlation of predicted and true losses over the models: the mean over the generated images.

    standard_error: with both sides of the sampling, generated images and subsets. per_image: float64 ``(m,)``.
    totals: the same correlation of what is summed over all generated images.
    """

    mean: float
    standard_error: float
    per_image: np.ndarray
    totals: float
    models: int

    def as_dict(self) -> dict[str, Any]:
        found = asdict(self)
        del found["per_image"]
        return {**found, "images": len(self.per_image)}


def agreement(predicted: np.ndarray, losses: np.ndarray) -> Agreement:
    """predicted: float ``(S, m)``, credit of each generated image that each model's training images have. losses:
    float ``(S, m)``; credit predicts minus the loss. An image whose credit is the same for all models scores 0.

    Raises `SettingsError` for fewer than 3 models, or losses that are not finite.
    """
    if len(losses) < 3:
        raise SettingsError(f"{len(losses)} models can't rank anything: at least 3 are needed")
    if not np.isfinite(losses).all():
        raise SettingsError("a loss is not a finite number")
    scores = rank_correlation(predicted, -losses)
    parts = np.array_split(np.random.default_rng(0).permutation(len(losses)), min(GROUPS, len(losses)))
    without = [np.setdiff1d(np.arange(len(losses)), part) for part in parts if len(losses) - len(part) > 2]
    means = np.array([rank_correlation(predicted[rows], -losses[rows]).mean() for rows in without])
    of_models = (len(means) - 1) / len(means) * ((means - means.mean()) ** 2).sum() if len(means) else np.nan
    of_images = scores.var(ddof=1) / len(scores) if len(scores) > 1 else 0.0
    totals = rank_correlation(predicted.sum(axis=1, keepdims=True), -losses.sum(axis=1, keepdims=True))
    return Agreement(
        mean=float(scores.mean()),
        standard_error=float(np.sqrt(of_images + of_models)),
        per_image=scores,
        totals=float(totals[0]),
        models=len(losses),
    )


def rank_correlation(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Spearman's over the rows, for each column: float64 ``(m,)``; 0 where a column doesn't vary."""
    a, b = (stats.rankdata(of, axis=0) for of in (one, other))
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    scale = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    found: np.ndarray = np.where(scale > 0, (a * b).sum(axis=0) / np.where(scale > 0, scale, 1.0), 0.0)
    return found


def ceiling(losses: np.ndarray) -> float | None:
    """The best score that anything could reach against these losses: float ``(S, seeds, m)``, the same subsets
    trained by several seeds. None with one seed.

    Two seeds agree at r; their mean over s seeds has the reliability s r / (1 + (s - 1) r) (Spearman and Brown), whose
    square root is how well a perfect prediction would correlate with it.
    """
    seeds = losses.shape[1]
    if seeds < 2:
        return None
    pairs = [
        float(rank_correlation(losses[:, a], losses[:, b]).mean()) for a in range(seeds) for b in range(a)
    ]
    r = max(0.0, float(np.mean(pairs)))
    return float(np.sqrt(seeds * r / (1 + (seeds - 1) * r)))


def predicted(contributions: np.ndarray, trained_on: np.ndarray) -> np.ndarray:
    """float64 ``(S, m)``: credit of each generated image within each subset.

    contributions: float ``(m, n)``. trained_on: bool ``(S, n)``.
    """
    found: np.ndarray = trained_on.astype(np.float64) @ contributions.T
    return found
