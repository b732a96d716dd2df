"""Each statistic against scipy or brute force; ties everywhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gmv_qdrant.errors import SettingsError
from gmv_qdrant.evaluation import statistics

FEW_VALUES = st.integers(-3, 3).map(float)  # so that most are tied


@given(st.lists(FEW_VALUES, min_size=1, max_size=30))
def test_average_ranks_are_places_averaged_over_every_order_of_the_ties(values: list[float]) -> None:
    ranks = statistics.average_ranks(np.array(values))
    for value, rank in zip(values, ranks, strict=True):
        larger, equal = sum(v > value for v in values), sum(v == value for v in values)
        assert rank == larger + (equal + 1) / 2
    assert ranks.sum() == len(values) * (len(values) + 1) / 2


@given(st.lists(FEW_VALUES, min_size=1, max_size=20), st.lists(FEW_VALUES, min_size=1, max_size=20))
def test_detection_is_the_share_of_pairs_that_are_in_order(inside: list[float], outside: list[float]) -> None:
    scores = np.array(inside + outside)
    member = np.array([True] * len(inside) + [False] * len(outside))
    found = statistics.detection(scores, member)
    pairs = [(a > b) + 0.5 * (a == b) for a in inside for b in outside]
    assert found.auroc == pytest.approx(np.mean(pairs))
    assert found.tied == pytest.approx(np.mean([a == b for a in inside for b in outside]))
    u = stats.mannwhitneyu(inside, outside).statistic
    assert found.auroc == pytest.approx(u / len(pairs))
    ranks = stats.rankdata(scores)
    assert found.mean_percentile == pytest.approx(((ranks[: len(inside)] - 0.5) / len(scores)).mean())


def test_detection_perfect_random_and_all_ties() -> None:
    member = np.arange(200) < 100
    perfect = statistics.detection(member.astype(float), member)
    assert (perfect.auroc, perfect.standard_error, perfect.tied) == (1.0, 0.0, 0.0)
    same = statistics.detection(np.zeros(200), member)
    assert (same.auroc, same.standard_error, same.tied, same.mean_percentile) == (0.5, 0.0, 1.0, 0.5)
    chance = statistics.detection(np.random.default_rng(0).normal(size=200), member)
    assert chance.standard_error is not None
    assert abs(chance.auroc - 0.5) < 3 * chance.standard_error


def test_the_error_of_auroc_is_its_spread_over_repeated_samples() -> None:
    random = np.random.default_rng(1)
    member = np.arange(120) < 40
    found = []
    for _ in range(400):
        scores = np.round(random.normal(size=120) + member, 1)
        found.append(statistics.detection(scores, member))
    spread = np.std([each.auroc for each in found])
    said = np.mean([each.standard_error or 0.0 for each in found])
    assert said == pytest.approx(spread, rel=0.1)


def test_infinite_scores_are_scores_and_nan_is_not() -> None:
    member = np.array([True, True, False, False])
    assert statistics.detection(np.array([np.inf, 2.0, 1.0, np.inf]), member).auroc == pytest.approx(0.625)
    with pytest.raises(SettingsError, match="not a number"):
        statistics.detection(np.array([np.nan, 2.0, 1.0, 0.0]), member)
    with pytest.raises(SettingsError, match="0 images are in one"):
        statistics.detection(np.ones(3), np.zeros(3, dtype=bool))


@given(st.integers(0, 2**31))
def test_welch_is_scipys(seed: int) -> None:
    random = np.random.default_rng(seed)
    a, b = random.exponential(size=random.integers(2, 30)) + 0.2, random.normal(size=random.integers(2, 30))
    found = statistics.welch(a, b)
    expected = stats.ttest_ind(a, b, equal_var=False, alternative="greater")
    assert found.t == pytest.approx(expected.statistic)
    assert found.p == pytest.approx(expected.pvalue)
    by_hand = (a.mean() - b.mean()) / math.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
    assert found.t == pytest.approx(by_hand)
    assert found.p == pytest.approx(stats.t.sf(by_hand, found.df))


def test_welch_of_what_never_varies_has_no_p() -> None:
    found = statistics.welch(np.zeros(5), np.zeros(7))
    assert (found.t, found.p, found.rank_p, found.difference) == (None, None, None, 0.0)
    with pytest.raises(SettingsError, match="two images a group"):
        statistics.welch(np.zeros(1), np.zeros(7))


@given(st.lists(st.tuples(FEW_VALUES, FEW_VALUES), min_size=2, max_size=30))
def test_spearman_is_scipys_with_ties(pairs: list[tuple[float, float]]) -> None:
    a, b = np.array(pairs).T
    found = statistics.spearman(a, b)
    if a.std() == 0 or b.std() == 0:
        assert found is None
    else:
        assert found == pytest.approx(stats.spearmanr(a, b).statistic)


def test_mean_and_its_error() -> None:
    values = np.array([1.0, 2.0, 4.0])
    found = statistics.mean(values)
    assert (found.mean, found.count) == (pytest.approx(7 / 3), 3)
    assert found.standard_error == pytest.approx(stats.sem(values))
    assert statistics.mean([5.0]).standard_error is None
    with pytest.raises(SettingsError, match="nothing to average"):
        statistics.mean([])


def test_bootstrap_agrees_with_scipys_and_repeats() -> None:
    values = np.random.default_rng(3).exponential(size=80)
    found = statistics.bootstrap(values, replicates=4000)
    assert found == statistics.bootstrap(values, replicates=4000)
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert found == pytest.approx((expected.low, expected.high), abs=0.02)
    assert found[0] < values.mean() < found[1]
