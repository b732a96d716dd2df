"""Fitting the temperature: maximum likelihood on probes whose parents are known.

The paper's exp(-d) has no scale. With beta = 1/T, the credit of candidate i is p_i = exp(-beta d_i) / Z. Some probes
are beyond recognition (a mirrored one where views aren't matched, a crop of a blank corner): their parents lie
among strangers and say nothing about the scale that tells parents from strangers, yet under plain maximum likelihood
they would flatten it for all. So a parent is drawn from (1 - lapse) p_i + lapse / K, and the lapse rate is fitted
along. It is reported and isn't part of the value function. With a "no contributor" mass, Z gains exp(-beta d_0), credit
that goes to nobody when an image resembles nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logsumexp

from gmv_qdrant.errors import SettingsError

WIDEST = 1e6
"""beta lies within the inverse spread of the distances times or divided by this."""
LEAST_LAPSE = 1e-4
"""The lapse rate lies between this and 1 minus this."""


@dataclass(frozen=True, slots=True)
class Fit:
    """temperature: in the distance's unit. null_distance: the distance d_0, or None when it wasn't asked for.

    lapse: share of parents that the temperature can't explain. log_likelihood: mean over the probes.
    at_bound: the likelihood still grew at the end of the search range.
    """

    temperature: float
    null_distance: float | None
    lapse: float
    log_likelihood: float
    probes: int
    at_bound: bool


def fit(
    distances: np.ndarray, parents: np.ndarray, *, null_distance: bool = False, lapse: bool = True
) -> Fit:
    """The temperature that makes the true parents likeliest.

    distances: float64 ``(p, K)``, inf where a probe has fewer candidates. parents: float64 ``(p, K)``, the weight
    of each candidate as a parent; what is missing to 1 belongs to parents that weren't recalled: it counts as
    "no contributor" when that is fitted, and not at all otherwise. lapse: False is plain maximum likelihood.
    Raises `SettingsError` when no parent is among the candidates, or all distances are equal.
    """
    recalled = parents.sum(axis=1)
    use = recalled > 0 if not null_distance else np.ones(len(parents), dtype=bool)
    if not (recalled > 0).any():
        raise SettingsError(
            "no probe's parent is among its candidates, so there is nothing to fit: raise --candidates, "
            "or use an encoder that keeps more of the image"
        )
    d, w = distances[use], parents[use]
    base = _nearest(d)
    d = d - base  # exp(-d) is evaluated against the nearest, and the weights don't change
    finite = np.isfinite(d)
    spread = float(d[finite].std())
    if not spread > 0:
        raise SettingsError("all distances are equal, so no temperature tells parents from others")
    if null_distance:  # one more candidate, "nobody", whose distance is fitted
        w = np.column_stack([w, (1.0 - w.sum(axis=1)).clip(min=0)])
        finite = np.column_stack([finite, np.ones(len(d), dtype=bool)])
    outcomes = np.log(finite.sum(axis=1, keepdims=True))
    d = np.where(finite[:, : d.shape[1]], d, 0.0)

    def negative(parameters: np.ndarray) -> float:
        beta, rate = np.exp(parameters[0]) / spread, expit(parameters[1]) if lapse else 0.0
        all_d = np.column_stack([d, parameters[2] * spread - base]) if null_distance else d
        scores = np.where(finite, -beta * all_d, -np.inf)
        scores -= logsumexp(scores, axis=1, keepdims=True)
        if lapse:
            scores = np.logaddexp(np.log1p(-rate) + scores, np.log(rate) - outcomes)
        return -float((w * np.where(finite, scores, 0.0)).sum() / len(w))

    bound, rarest = np.log(WIDEST), np.log(LEAST_LAPSE)
    some = finite[:, : d.shape[1]].any(axis=1)
    nobody = float(np.median((base[:, 0] + d.max(axis=1))[some])) / spread
    starts = [
        (beta, rate, nobody) for beta in (0.0, 2.0, 5.0) for rate in ((-5.0, -1.0) if lapse else (0.0,))
    ]
    bounds = [(-bound, bound), (rarest, -rarest) if lapse else (0.0, 0.0), (None, None)]
    size = 3 if null_distance else 2
    found = min(
        (minimize(negative, np.array(one[:size]), bounds=bounds[:size], method="L-BFGS-B") for one in starts),
        key=lambda result: float(result.fun),
    )
    return Fit(
        temperature=float(spread / np.exp(found.x[0])),
        null_distance=float(found.x[2] * spread) if null_distance else None,
        lapse=float(expit(found.x[1])) if lapse else 0.0,
        log_likelihood=-float(found.fun),
        probes=int(use.sum()),
        at_bound=bool(abs(found.x[0]) > bound - 1e-3),
    )


@dataclass(frozen=True, slots=True)
class ParentFigures:
    """How credit falls on known parents; means over the images, ``*_se`` standard errors.

    parent_share: credit of the true parents. first_rate: how often the main parent (the heaviest) is the nearest.
    recalled: how often the main parent is a candidate. rank: median rank of the main parent where it is one.
    correlation: of credit with the true weights, over all pairs of an image and a training image: parents that
    were missed count, and so do the pairs where both are 0. correlation_within: over the pairs within the first k only.
    effective_contributors: exp of the entropy of the credit of an image.
    """

    parent_share: float
    parent_share_se: float
    first_rate: float
    first_rate_se: float
    recalled: float
    rank: float
    correlation: float
    correlation_within: float
    effective_contributors: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def parent_figures(
    distances: np.ndarray,
    parents: np.ndarray,
    *,
    training: int,
    weights: np.ndarray | None = None,
    k: int | None = 30,
    temperature: float = 1.0,
    null_distance: float | None = None,
) -> ParentFigures:
    """Figures of Eq. 6 with this value function; ``distances`` ascending, both ``(p, K)`` as in `fit`.

    training: number of training images. weights: float64 ``(p, most)``, the weights of all parents, recalled or
    not; None when every parent is a candidate.
    """
    weights = parents if weights is None else weights
    d, w = distances[:, :k], parents[:, :k]
    credit, normal = credit_of(d, temperature, null_distance)
    entropy = -np.sum(normal * np.log(np.where(normal > 0, normal, 1.0)), axis=1)
    share = (credit * (w > 0)).sum(axis=1)
    is_main = (parents > 0) & (parents >= weights.max(axis=1, keepdims=True) * (1 - 1e-9))
    main = np.where(is_main.any(axis=1), is_main.argmax(axis=1), -1)
    first = (main == 0).astype(np.float64)
    pairs = len(d) * training
    return ParentFigures(
        parent_share=float(share.mean()),
        parent_share_se=_standard_error(share),
        first_rate=float(first.mean()),
        first_rate_se=_standard_error(first),
        recalled=float((main >= 0).mean()),
        rank=float(np.median(main[main >= 0]) + 1) if (main >= 0).any() else float("nan"),
        correlation=_correlation(
            float((w * credit).sum()),
            (float(weights.sum()), float((weights**2).sum())),
            (float(credit.sum()), float((credit**2).sum())),
            pairs,
        ),
        correlation_within=_correlation(
            float((w * credit).sum()),
            (float(w.sum()), float((w**2).sum())),
            (float(credit.sum()), float((credit**2).sum())),
            int(np.isfinite(d).sum()),
        ),
        effective_contributors=float(np.exp(entropy)[np.isfinite(d[:, 0])].mean()),
    )


def credit_of(
    distances: np.ndarray, temperature: float, null_distance: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Eq. 6 for rows of distances, both ``(p, k)``: the credit, and the credit normalised to sum 1.

    An image without candidates (a row of inf) gives no credit.
    """
    best = _nearest(distances)
    weight = np.exp(-(distances - best) / temperature)
    images = weight.sum(axis=1, keepdims=True)
    nobody = 0.0 if null_distance is None else np.exp((best - null_distance) / temperature)
    per_image = np.where(images > 0, images, 1.0)
    return weight / (per_image + nobody), weight / per_image


def _nearest(distances: np.ndarray) -> np.ndarray:
    """float64 ``(p, 1)``: the smallest distance of each row, 0 where all are inf."""
    best: np.ndarray = distances.min(axis=1, keepdims=True)
    return np.where(np.isfinite(best), best, 0.0)


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def _correlation(product: float, one: tuple[float, float], other: tuple[float, float], pairs: int) -> float:
    """Pearson's, from sums over ``pairs``: of the products, and of each side's values and squares; 0 without
    variation."""
    deviations = [squares - total**2 / pairs for total, squares in (one, other)]
    if min(deviations) <= 1e-12 * pairs:
        return 0.0
    return float((product - one[0] * other[0] / pairs) / np.sqrt(deviations[0] * deviations[1]))
