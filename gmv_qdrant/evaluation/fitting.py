"""Fitting a value function: maximum likelihood on probes whose parents are known.

The paper's exp(-d) has no scale. With distances d in units of each probe's 30th, the credit of candidate i is
p_i = exp(-d_i / T) / Z. A parent is drawn from (1 - lapse) p_i + lapse / candidates: some probes are beyond recognition
(a crop of a blank corner), their parents lie among strangers and say nothing about the scale that tells parents from
strangers, yet under plain maximum likelihood they would flatten it for all. The lapse rate is fitted along, reported,
and no part of the value function.

**Nobody** is one more candidate at the null distance d_0, the same for all images. At the T that tells parents from
strangers, d_0 is fitted on each probe twice: with its parents, when credit is theirs, and with them taken out of its
candidates, when it is nobody's. (Fitted together, a T that has to serve both would be too large to tell parents apart
wherever images without parents can't be told either.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, logsumexp

from gmv_qdrant import method
from gmv_qdrant.errors import SettingsError

WIDEST = 1e6
"""1 / T lies within the inverse spread of the distances times or divided by this."""
LEAST_LAPSE = 1e-4
"""The lapse rate lies between this and 1 minus this."""


@dataclass(frozen=True, slots=True)
class Fit:
    """temperature and null_distance (None: not asked for): in units of an image's 30th distance where ``relative``.

    lapse: share of parents that the temperature can't explain. log_likelihood: of the parents, mean over the probes.
    probes: those with a parent among their candidates; others say nothing.
    at_bound: the likelihood still grew at the end of the search range.
    """

    temperature: float
    null_distance: float | None
    relative: bool
    lapse: float
    log_likelihood: float
    probes: int
    at_bound: bool


def fit(
    distances: np.ndarray,
    parents: np.ndarray,
    *,
    null_distance: bool = True,
    relative: bool = True,
    lapse: bool = True,
) -> Fit:
    """The temperature that makes the true parents likeliest, and the null distance that makes nobody so without them.

    distances: float64 ``(p, K)``, as they are, inf where a probe has fewer candidates. parents: float64 ``(p, K)``, the
    weight of each candidate as a parent. lapse: False is plain maximum likelihood.
    Raises `SettingsError` when no parent is among the candidates, or all distances are equal.
    """
    recalled = parents.sum(axis=1) > 0
    if not recalled.any():
        raise SettingsError(
            "no probe's parent is among its candidates, so there is nothing to fit: raise --candidates, "
            "or use an encoder that keeps more of the image"
        )
    d, w = distances[recalled], parents[recalled]
    unit = method.relative if relative else np.asarray
    alone = _Likelihood(unit(d), w)
    if not alone.spread > 0:
        raise SettingsError("all distances are equal, so no temperature tells parents from others")
    bound, rarest = np.log(WIDEST), np.log(LEAST_LAPSE)
    found = min(
        (
            minimize(
                lambda at: alone(np.exp(at[0]) / alone.spread, expit(at[1]) if lapse else 0.0),
                np.array(start),
                bounds=[(-bound, bound), (rarest, -rarest) if lapse else (0.0, 0.0)],
                method="L-BFGS-B",
            )
            for start in product((0.0, 2.0, 5.0), (-5.0, -1.0) if lapse else (0.0,))
        ),
        key=lambda result: float(result.fun),
    )
    temperature = float(alone.spread / np.exp(found.x[0]))
    rate = float(expit(found.x[1])) if lapse else 0.0
    return Fit(
        temperature=temperature,
        null_distance=_null_distance(d, w, unit, temperature, rate) if null_distance else None,
        relative=relative,
        lapse=rate,
        log_likelihood=-float(found.fun),
        probes=int(recalled.sum()),
        at_bound=bool(abs(found.x[0]) > bound - 1e-3),
    )


def _null_distance(
    d: np.ndarray, w: np.ndarray, unit: Callable[[np.ndarray], np.ndarray], temperature: float, rate: float
) -> float:
    """The likeliest, for the probes and for their twins without parents."""
    without = unit(np.where(w > 0, np.inf, d))
    d = np.vstack([unit(d), without])
    w = np.column_stack([np.vstack([w, np.zeros_like(w)]), np.repeat([0.0, 1.0], len(w))])
    nearest = d.min(axis=1, initial=np.inf)
    nearest = np.sort(nearest[np.isfinite(nearest)])
    likelihood = _Likelihood(np.column_stack([d, np.zeros(len(d))]), w)

    def negative(null_distance: float) -> float:
        likelihood.d[:, -1] = null_distance
        return likelihood(1 / temperature, max(rate, LEAST_LAPSE))

    # it may have several maxima: the best of a grid first
    grid = np.unique(np.append(np.quantile(nearest, np.linspace(0, 1, 101)), nearest[-1] + 5 * temperature))
    best = int(np.argmin([negative(at) for at in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    found = minimize_scalar(negative, bounds=(low, high), method="bounded", options={"xatol": 1e-9 * high})
    return float(found.x)


class _Likelihood:
    """Of parents ``w`` ``(p, K)`` among candidates at distances ``d`` ``(p, K)``, inf where there is none."""

    def __init__(self, d: np.ndarray, w: np.ndarray) -> None:
        self.finite = np.isfinite(d)
        self.d, self.w = np.where(self.finite, d, 0.0), w
        self.spread = float(d[self.finite].std())
        self.outcomes = np.log(self.finite.sum(axis=1, keepdims=True).clip(min=1))

    def __call__(self, beta: float, lapse: float) -> float:
        """Minus the mean log likelihood at beta = 1 / T."""
        scores = np.where(self.finite, -beta * self.d, -np.inf)
        scores -= logsumexp(scores, axis=1, keepdims=True)
        if lapse:
            scores = np.logaddexp(np.log1p(-lapse) + scores, np.log(lapse) - self.outcomes)
        return -float((self.w * np.where(self.finite, scores, 0.0)).sum() / len(self.d))
