"""The statistics that the criteria need. Ties are ties: nothing here depends on the order of equal values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from gmv_qdrant.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over ``count`` units with its standard error: None for fewer than two units."""

    mean: float
    standard_error: float | None
    count: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def mean(values: np.ndarray | Sequence[float]) -> Mean:
    """The mean of one number for each unit. Raises `SettingsError` for no units."""
    x = np.asarray(values, dtype=np.float64)
    if not len(x):
        raise SettingsError("there is nothing to average: no image has what this figure is made of")
    error = float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else None
    return Mean(float(x.mean()), error, len(x))


def average_ranks(values: np.ndarray, *, descending: bool = True) -> np.ndarray:
    """float64 ranks from 1; equal values share the mean of their places. Descending: rank 1 is the largest."""
    x = np.asarray(values, dtype=np.float64)
    ranks: np.ndarray = stats.rankdata(-x if descending else x, method="average")
    return ranks


@dataclass(frozen=True, slots=True)
class Detection:
    """How well a score separates one group from another.

    auroc: chance that a member of the group scores higher than a non-member, half for ties; 1 is perfect, .5 is chance.
    standard_error: of the AUROC (DeLong, DeLong, Clarke-Pearson 1988), ties included; None with fewer than two a side.
    mean_percentile: mean place of the group among everyone, (average rank - 1/2) / n: near 0 at the lowest score,
    near 1 at the highest.
    tied: share of (member, non-member) pairs with equal scores: what the score can't tell apart.
    """

    auroc: float
    standard_error: float | None
    mean_percentile: float
    tied: float
    members: int
    others: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def detection(scores: np.ndarray, member: np.ndarray) -> Detection:
    """scores: float ``(n,)``, higher for what is suspected; infinite is allowed. member: bool ``(n,)``.

    Raises `SettingsError` when one side is empty, or a score is not a number.
    """
    x, group = np.asarray(scores, dtype=np.float64), np.asarray(member, dtype=bool)
    inside, outside = x[group], x[~group]
    if not len(inside) or not len(outside):
        raise SettingsError(
            f"two groups are needed to tell them apart: {len(inside)} images are in one, {len(outside)} in the other"
        )
    if np.isnan(x).any():
        raise SettingsError("a score is not a number")
    above, other = _placements(inside, outside), 1 - _placements(outside, inside)
    auroc = float(above.mean())
    error = None
    if len(inside) > 1 and len(outside) > 1:
        error = math.sqrt(above.var(ddof=1) / len(inside) + other.var(ddof=1) / len(outside))
    ordered = np.sort(outside)
    equal = np.searchsorted(ordered, inside, "right") - np.searchsorted(ordered, inside, "left")
    percentile = (average_ranks(x, descending=False) - 0.5) / len(x)
    return Detection(
        auroc=auroc,
        standard_error=error,
        mean_percentile=float(percentile[group].mean()),
        tied=float(equal.sum() / (len(inside) * len(outside))),
        members=len(inside),
        others=len(outside),
    )


def _placements(of: np.ndarray, among: np.ndarray) -> np.ndarray:
    """float64: for each of ``of``, the share of ``among`` that is smaller, half of those equal."""
    ordered = np.sort(among)
    smaller = np.searchsorted(ordered, of, "left")
    placed: np.ndarray = (smaller + np.searchsorted(ordered, of, "right")) / (2 * len(among))
    return placed


@dataclass(frozen=True, slots=True)
class Welch:
    """One-sided Welch t-test that the first group's mean is the greater one.

    difference: first minus second mean. t, df and p: None when neither group varies. rank_p: one-sided
    Mann-Whitney p of the same question, which doesn't assume that means of skewed, mostly zero values are normal.
    """

    first: Mean
    second: Mean
    difference: float
    t: float | None
    df: float | None
    p: float | None
    rank_p: float | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def welch(first: np.ndarray, second: np.ndarray) -> Welch:
    """App. D, Table 6: H0 "the first group's values are not larger". Raises `SettingsError` below two a group."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if min(len(a), len(b)) < 2:
        raise SettingsError(f"a t-test needs two images a group: there are {len(a)} and {len(b)}")
    one, two = mean(a), mean(b)
    t = df = p = rank_p = None
    if a.var() > 0 or b.var() > 0:
        found = stats.ttest_ind(a, b, equal_var=False, alternative="greater")
        t, df, p = float(found.statistic), float(found.df), float(found.pvalue)
        rank_p = float(stats.mannwhitneyu(a, b, alternative="greater", method="asymptotic").pvalue)
    return Welch(one, two, one.mean - two.mean, t, df, p, rank_p)


def spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    """Rank correlation with average ranks; None when one of them doesn't vary."""
    return pearson(average_ranks(first), average_ranks(second))


def pearson(first: np.ndarray, second: np.ndarray) -> float | None:
    """Correlation; None when one of them doesn't vary."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if len(a) < 2 or not (a.std() > 0 and b.std() > 0):
        return None
    return float(np.corrcoef(a, b)[0, 1])


def bootstrap(
    values: np.ndarray,
    statistic: Callable[[np.ndarray], float] = lambda x: float(np.mean(x)),
    *,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of a statistic over the rows of ``values``, drawn with replacement."""
    x = np.asarray(values)
    if not len(x):
        raise SettingsError("there is nothing to draw from: no image has what this figure is made of")
    random = np.random.default_rng(seed)
    drawn = [statistic(x[random.integers(len(x), size=len(x))]) for _ in range(replicates)]
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def empirical_p_values(distances: np.ndarray, controls: np.ndarray) -> np.ndarray:
    """float64 ``(m,)``: (1 + number of controls at least as near) / (1 + number of controls), for each distance."""
    ordered = np.sort(np.asarray(controls, dtype=np.float64))
    nearer = np.searchsorted(ordered, np.asarray(distances, dtype=np.float64), "right")
    found: np.ndarray = (1 + nearer) / (1 + len(ordered))
    return found


def benjamini_hochberg(p_values: np.ndarray) -> np.ndarray:
    """float64 ``(m,)``: the false discovery rate at which each is just found (Benjamini and Hochberg 1995)."""
    found: np.ndarray = stats.false_discovery_control(np.asarray(p_values, dtype=np.float64))
    return found


def stratified_permutation(
    values: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    strata: np.ndarray,
    *,
    draws: int = 4999,
    seed: int = 0,
) -> dict[str, float | int | None]:
    """One-sided p that the first group's values are no larger, by drawing membership anew within strata.

    values: float64 ``(n,)``. first, second: bool ``(n,)``, disjoint. strata: int ``(n,)``. Exact where membership was a
    matter of chance within each stratum, however the strata differ. ``compared``: images in strata with both groups.
    """
    random = np.random.default_rng(seed)
    observed, drawn, compared = 0.0, np.zeros(draws), 0
    for stratum in np.unique(strata[first | second]):
        mine = np.flatnonzero((first | second) & (strata == stratum))
        size = int(first[mine].sum())
        if size in (0, len(mine)):
            continue
        x = values[mine] - values[mine].mean()
        compared += len(mine)
        observed += float(x[first[mine]].sum())
        for start in range(0, draws, 500):
            order = random.random((min(500, draws - start), len(mine))).argpartition(size - 1, axis=1)
            drawn[start : start + 500] += x[order[:, :size]].sum(axis=1)
    as_large = int((drawn >= observed - 1e-12 * max(1.0, abs(observed))).sum())
    return {"permutation_p": (1 + as_large) / (1 + draws) if compared else None, "compared": compared}
