"""Fitting a value function: maximum likelihood on probes whose parents are known.

The paper's exp(-d) has no scale. With distances d in units of each probe's 30th, the credit of candidate i is
p_i = exp(-d_i / T) / Z. Two things are fitted along:

- **Nobody.** Each probe is used twice, with its parents and with them taken out of its candidates. The second time the
  right answer is that nobody made it: one more candidate at the null distance d_0, the same for all images.
- **The lapse rate.** Some probes are beyond recognition (a crop of a blank corner): their parents lie among
  strangers and say nothing about the scale that tells parents from strangers, yet under plain maximum likelihood they
  would flatten it for all. So a parent is drawn from (1 - lapse) p_i + lapse / candidates. The rate is reported, and
  is no part of the value function.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
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

    lapse: share of parents that the temperature can't explain. log_likelihood: mean over the probes, and their twins
    without parents. probes: those with a parent among their candidates; others say nothing.
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
    if null_distance:
        d = np.vstack([d, np.where(w > 0, np.inf, d)])
        w = np.column_stack([np.vstack([w, np.zeros_like(w)]), np.repeat([0.0, 1.0], len(w))])
    if relative:
        d = method.relative(d)
    finite = np.isfinite(d)
    spread = float(d[finite].std())
    if not spread > 0:
        raise SettingsError("all distances are equal, so no temperature tells parents from others")
    likelihood = _Likelihood(np.where(finite, d, 0.0), finite, w, spread, null_distance, lapse)
    found = likelihood.largest()
    return Fit(
        temperature=float(spread / np.exp(found.x[0])),
        null_distance=float(found.x[2] * spread) if null_distance else None,
        relative=relative,
        lapse=float(expit(found.x[1])) if lapse else 0.0,
        log_likelihood=-float(found.fun),
        probes=int(recalled.sum()),
        at_bound=bool(abs(found.x[0]) > np.log(WIDEST) - 1e-3),
    )


class _Likelihood:
    """Of log(spread / T), the lapse rate's logit and the null distance over the spread."""

    def __init__(
        self, d: np.ndarray, finite: np.ndarray, w: np.ndarray, spread: float, nobody: bool, lapse: bool
    ) -> None:
        self.d, self.w, self.spread, self.nobody, self.lapse = d, w, spread, nobody, lapse
        self.finite = np.column_stack([finite, np.ones(len(d), bool)]) if nobody else finite
        self.outcomes = np.log(self.finite.sum(axis=1, keepdims=True))
        self.start = float(np.median(d.max(axis=1, where=finite, initial=0.0))) / spread

    def __call__(self, parameters: np.ndarray) -> float:
        """Minus the mean log likelihood."""
        beta = np.exp(parameters[0]) / self.spread
        d = self.d
        if self.nobody:
            d = np.column_stack([d, np.full(len(d), parameters[2] * self.spread)])
        scores = np.where(self.finite, -beta * d, -np.inf)
        scores -= logsumexp(scores, axis=1, keepdims=True)
        if self.lapse:
            rate = expit(parameters[1])
            scores = np.logaddexp(np.log1p(-rate) + scores, np.log(rate) - self.outcomes)
        return -float((self.w * np.where(self.finite, scores, 0.0)).sum() / len(d))

    def largest(self) -> Any:
        bound, rarest = np.log(WIDEST), np.log(LEAST_LAPSE)
        rates = (-5.0, -1.0) if self.lapse else (0.0,)
        bounds = [(-bound, bound), (rarest, -rarest) if self.lapse else (0.0, 0.0), (None, None)]
        size = 3 if self.nobody else 2
        starts = [np.array([beta, rate, self.start])[:size] for beta in (0.0, 2.0, 5.0) for rate in rates]
        return min(
            (minimize(self, start, bounds=bounds[:size], method="L-BFGS-B") for start in starts),
            key=lambda result: float(result.fun),
        )
