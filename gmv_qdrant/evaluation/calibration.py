"""Fitting the temperature: maximum likelihood on probes whose parents are known.

The paper's exp(-d) has no scale. With beta = 1/T, the credit of candidate i is p_i = exp(-beta d_i) / Z, an
exponential family: the log-likelihood of the true parents is concave in beta, so there is one best temperature. With
a "no contributor" mass the denominator gains exp(-beta d_0): credit that goes to nobody when an image resembles
nothing. The log-likelihood is concave in (beta, beta d_0), too.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

from gmv_qdrant.errors import SettingsError

WIDEST = 1e6
"""beta lies within the inverse spread of the distances times or divided by this."""


@dataclass(frozen=True, slots=True)
class Fit:
    """temperature: in the distance's unit. no_contributor: the distance d_0, or None when it wasn't asked for.

    log_likelihood: mean over the probes. at_bound: the likelihood still grew at the end of the search range.
    """

    temperature: float
    no_contributor: float | None
    log_likelihood: float
    probes: int
    at_bound: bool


def fit(distances: np.ndarray, parents: np.ndarray, *, no_contributor: bool = False) -> Fit:
    """The temperature that makes the true parents likeliest.

    distances: float64 ``(p, K)``, inf where a probe has fewer candidates. parents: float64 ``(p, K)``, the weight
    of each candidate as a parent; what is missing to 1 belongs to parents that weren't recalled: it counts as
    "no contributor" when that is fitted, and not at all otherwise.
    Raises `SettingsError` when no parent is among the candidates, or all distances are equal.
    """
    recalled = parents.sum(axis=1)
    use = recalled > 0 if not no_contributor else np.ones(len(parents), dtype=bool)
    if not (recalled > 0).any():
        raise SettingsError(
            "no probe's parent is among its candidates, so there is nothing to fit: raise --candidates, "
            "or use an encoder that keeps more of the image"
        )
    d, w = distances[use], parents[use]
    base = d.min(axis=1, keepdims=True)
    d = d - base  # exp(-d) is evaluated against the nearest, and the weights don't change
    finite = np.isfinite(d)
    spread = float(d[finite].std())
    if not spread > 0:
        raise SettingsError("all distances are equal, so no temperature tells parents from others")
    lost = 1.0 - w.sum(axis=1)
    attributed = np.where(finite, w * np.where(finite, d, 0.0), 0.0).sum(axis=1)

    def negative(parameters: np.ndarray) -> float:
        beta = np.exp(parameters[0]) / spread
        scores = np.where(finite, -beta * np.where(finite, d, 0.0), -np.inf)
        if no_contributor:
            none = -beta * (parameters[1] * spread - base[:, 0])
            total = logsumexp(np.column_stack([scores, none]), axis=1)
            gained = -beta * attributed + lost * none - total
        else:
            gained = -beta * attributed - w.sum(axis=1) * logsumexp(scores, axis=1)
        return -float(gained.mean())

    bound = np.log(WIDEST)
    start = [1.0, float(np.median(base + d.max(axis=1, where=finite, initial=0)[:, None])) / spread]
    bounds = [(-bound, bound), (None, None)]
    size = 2 if no_contributor else 1
    found = min(
        (
            minimize(negative, np.array([first, start[1]][:size]), bounds=bounds[:size], method="L-BFGS-B")
            for first in (0.0, 2.0, 5.0)
        ),
        key=lambda result: float(result.fun),
    )
    return Fit(
        temperature=float(spread / np.exp(found.x[0])),
        no_contributor=float(found.x[1] * spread) if no_contributor else None,
        log_likelihood=-float(found.fun),
        probes=int(use.sum()),
        at_bound=bool(abs(found.x[0]) > bound - 1e-3),
    )


@dataclass(frozen=True, slots=True)
class ParentFigures:
    """How credit falls on known parents; means over the images, ``*_se`` standard errors.

    parent_share: credit of the true parents. first_rate: how often the main parent is the nearest.
    recalled: how often the main parent is a candidate. rank: median rank of the main parent where it is one.
    correlation: of credit with the true weights, over all (image, candidate) pairs.
    effective_contributors: exp of the entropy of the credit of an image.
    """

    parent_share: float
    parent_share_se: float
    first_rate: float
    recalled: float
    rank: float
    correlation: float
    effective_contributors: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def parent_figures(
    distances: np.ndarray,
    parents: np.ndarray,
    *,
    k: int | None = 30,
    temperature: float = 1.0,
    no_contributor: float | None = None,
) -> ParentFigures:
    """Figures of Eq. 6 with this value function; ``distances`` ascending, both ``(p, K)`` as in `fit`."""
    d, w = distances[:, :k], parents[:, :k]
    best = d[:, :1]
    weight = np.exp(-(d - best) / temperature)
    total = weight.sum(axis=1, keepdims=True)
    if no_contributor is not None:
        total = total + np.exp((best - no_contributor) / temperature)
    credit = weight / total
    normal = weight / weight.sum(axis=1, keepdims=True)
    entropy = -np.sum(normal * np.log(np.where(normal > 0, normal, 1.0)), axis=1)
    share = (credit * (w > 0)).sum(axis=1)
    main = np.where(parents.max(axis=1) >= 0.5, parents.argmax(axis=1), -1)  # a parent of half or more
    truth, given = w.ravel(), credit.ravel()
    return ParentFigures(
        parent_share=float(share.mean()),
        parent_share_se=float(share.std(ddof=1) / np.sqrt(len(share))) if len(share) > 1 else float("nan"),
        first_rate=float((main == 0).mean()),
        recalled=float((main >= 0).mean()),
        rank=float(np.median(main[main >= 0]) + 1) if (main >= 0).any() else float("nan"),
        correlation=float(np.corrcoef(truth, given)[0, 1]) if truth.std() > 0 and given.std() > 0 else 0.0,
        effective_contributors=float(np.exp(entropy).mean()),
    )
