"""The formulas on arrays, against loops over definitions: all subsets of the players, all rows, all pairs."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gmv_qdrant import Workspace, method
from gmv_qdrant.errors import SettingsError

Value = Callable[[tuple[int, ...]], float]


def shapley(players: int, value: Value) -> np.ndarray:
    """The definition: the mean over all orders of what each player adds, by subsets."""
    found = np.zeros(players)
    for i in range(players):
        others = [j for j in range(players) if j != i]
        for size in range(players):
            weight = math.factorial(size) * math.factorial(players - size - 1) / math.factorial(players)
            for subset in combinations(others, size):
                found[i] += weight * (value((*subset, i)) - value(subset))
    return found


distance = st.one_of(st.floats(1e-6, 50), st.sampled_from([0.0, 0.5, 1.0, 700.0, math.inf]))
rows = st.lists(distance, min_size=1, max_size=6)
temperatures = st.sampled_from([0.01, 0.3, 1.0, 20.0])
nulls = st.sampled_from([None, 0.0, 0.7, 3.0])
ks = st.sampled_from([None, 1, 2, 5, 30])


def in_range(d: list[float], temperature: float, null: float | None) -> np.ndarray:
    """Weights exp(-d/T) against the nearest of all players, nobody last."""
    players = np.array(d if null is None else [*d, null])
    best = players[np.isfinite(players)].min(initial=math.inf)
    return np.exp(-(players - best) / temperature) if math.isfinite(best) else np.zeros(len(players))


@given(rows, ks, temperatures, nulls)
@settings(max_examples=200, deadline=None)
def test_shares_are_eq_6(d: list[float], k: int | None, temperature: float, null: float | None) -> None:
    order = sorted(range(len(d)), key=lambda i: (d[i], i))[:k]
    weight = in_range([d[i] for i in order], temperature, null)
    expected = np.zeros(len(d))
    if weight.sum() > 0:
        expected[order] = (weight / weight.sum())[: len(order)]
    found = method.shares([d], k=k, temperature=temperature, null_distance=null)[0]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    if null is None and np.isfinite(d).any():
        assert found.sum() == pytest.approx(1, abs=1e-12)


@given(rows, ks, temperatures, nulls)
@settings(max_examples=100, deadline=None)
def test_knn_shapley_is_the_shapley_value(
    d: list[float], k: int | None, temperature: float, null: float | None
) -> None:
    weight = in_range(d, temperature, null)

    def worth(subset: tuple[int, ...]) -> float:
        return float(sum(sorted((weight[i] for i in subset), reverse=True)[:k]))

    total = worth(tuple(range(len(weight))))
    expected = shapley(len(weight), worth)[: len(d)] / (total or 1.0)
    found = method.knn_shapley([d], k=k, temperature=temperature, null_distance=null)[0]
    np.testing.assert_allclose(found, expected, atol=1e-9)


@given(st.lists(st.tuples(distance, st.integers(0, 3)), min_size=1, max_size=9), ks, temperatures, nulls)
@settings(max_examples=100, deadline=None)
def test_owner_shapley_is_the_shapley_value(
    held: list[tuple[float, int]], k: int | None, temperature: float, null: float | None
) -> None:
    d, owners = [one for one, _ in held], [owner for _, owner in held]
    order = sorted(range(len(d)), key=lambda i: (d[i], i))[:k]
    nearest = [min((d[i] for i in order if owners[i] == owner), default=math.inf) for owner in range(4)]
    weight = in_range(nearest, temperature, null)
    expected = shapley(len(weight), lambda subset: max((weight[i] for i in subset), default=0.0))[:4]
    found = method.owner_shapley([d], [owners], k=k, temperature=temperature, null_distance=null, count=4)[0]
    np.testing.assert_allclose(found, expected, atol=1e-9)


@given(st.lists(rows, min_size=1, max_size=5), st.floats(1e-3, 1e3))
@settings(max_examples=50, deadline=None)
def test_relative_distances_have_no_unit(lists: list[list[float]], unit: float) -> None:
    width = max(map(len, lists))
    d = np.array([one + [math.inf] * (width - len(one)) for one in lists])
    one, other = method.relative(d, rank=3), method.relative(unit * d, rank=3)
    np.testing.assert_allclose(one, other, rtol=1e-9)
    for row, scaled in zip(np.sort(d, axis=1), np.sort(one, axis=1), strict=True):
        finite = row[np.isfinite(row)]
        if len(finite) and (scale := finite[min(2, len(finite) - 1)]) > 0:
            np.testing.assert_allclose(
                scaled[: len(finite)], np.minimum(finite / scale, method.FARTHEST), rtol=1e-9
            )
    assert (np.isfinite(one) == np.isfinite(d)).all()


def test_thirty_exact_copies_leave_nothing_for_others() -> None:
    d = np.array([[0.0] * 30 + [0.1, 0.2]])
    found = method.shares(method.relative(d), k=None, temperature=1.0)
    np.testing.assert_allclose(found[0], [1 / 30] * 30 + [0, 0])


@given(st.lists(rows, min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_effective_contributors_are_the_exponential_of_the_entropy(lists: list[list[float]]) -> None:
    for one in lists:
        given_ = method.shares([one], k=None, temperature=2.0)
        p = given_[0][given_[0] > 0]
        expected = math.exp(-sum(x * math.log(x) for x in p)) if len(p) else 0.0
        assert method.effective_contributors(given_)[0] == pytest.approx(expected)


# -- from embeddings to values ------------------------------------------------------------------------


def pairwise(metric: str, one: np.ndarray, other: np.ndarray) -> float:
    if metric == "cosine":
        return 1 - float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
    return float(np.linalg.norm(one - other) ** (2 if metric == "sqeuclid" else 1))


@pytest.mark.parametrize("metric", ["cosine", "euclid", "sqeuclid"])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_values_equal_a_loop_over_all_pairs(metric: method.Metric, kind: str) -> None:
    random = np.random.default_rng(0)
    training, generated = random.normal(size=(90, 5)) * 3, random.normal(size=(17, 5))
    quality = random.random(17)
    as_given = torch.from_numpy if kind == "torch" else np.asarray
    found = method.value_embeddings(
        as_given(training),
        as_given(generated),
        k=7,
        candidates=25,
        metric=metric,
        temperature=0.4,
        quality=quality,
    )
    expected = np.zeros(90)
    for j, image in enumerate(generated):
        d = np.array([pairwise(metric, image, other) for other in training])
        order = np.argsort(d, kind="stable")
        np.testing.assert_array_equal(found.candidates[j], order[:25])
        np.testing.assert_allclose(found.distances[j], d[order[:25]], rtol=1e-4, atol=1e-6)
        weight = np.exp(-d[order[:7]] / 0.4)
        expected[order[:7]] += quality[j] * weight / weight.sum()
    np.testing.assert_allclose(found.values, expected, rtol=1e-4, atol=1e-9)
    assert found.values.sum() == pytest.approx(quality.sum(), rel=1e-12)
    np.testing.assert_allclose(found.nobody, 0, atol=1e-12)


def test_candidates_come_from_one_space_and_their_order_from_another() -> None:
    random = np.random.default_rng(1)
    training, generated = random.normal(size=(60, 4)), random.normal(size=(9, 4))
    fine, fine_generated = random.normal(size=(60, 3)), random.normal(size=(9, 3))
    found = method.value_embeddings(
        training, generated, k=4, candidates=10, rerank=(fine, fine_generated), null_distance=1.0
    )
    for j in range(9):
        recalled = np.argsort(np.linalg.norm(training - generated[j], axis=1), kind="stable")[:10]
        assert set(recalled) == set(found.candidates[j])
        d = ((fine[found.candidates[j]] - fine_generated[j]) ** 2).sum(axis=1)
        np.testing.assert_allclose(found.distances[j], d, rtol=1e-5)
        assert (np.diff(found.distances[j]) >= 0).all()
        assert found.nobody[j] == pytest.approx(
            math.exp(-1) / (math.exp(-1) + np.exp(-d[:4]).sum()), rel=1e-5
        )


def test_ties_go_to_the_first_row() -> None:
    training = np.repeat([[0.0, 1.0], [3.0, 4.0]], 20, axis=0)
    found = method.value_embeddings(training, [[0.0, 1.0]], k=3, candidates=30)
    assert found.candidates[0].tolist() == list(range(30))
    np.testing.assert_allclose(found.values, [1 / 3] * 3 + [0] * 37)


def test_fewer_training_images_than_k_or_k_candidates() -> None:
    found = method.value_embeddings([[0.0, 1.0], [1.0, 0.0]], [[0.0, 1.0]], rule="knn-shapley")
    assert found.candidates.shape == (1, 2)
    assert found.values.sum() == pytest.approx(1)


def test_a_workspace_gives_the_same_values(tmp_path: Path) -> None:
    """The paper's No-Rerank: Euclidean distance of unit embeddings."""
    random = np.random.default_rng(2)
    small = random.integers(0, 256, (80, 4, 4, 3), dtype=np.uint8)
    paths = [
        oracle.write_png(small[:60], tmp_path / "t", "t"),
        oracle.write_png(small[60:], tmp_path / "g", "g"),
    ]
    workspace = Workspace.init(
        tmp_path / "ws",
        encoder="pixels:4",
        distance="none",
        quality="none",
        candidates=20,
        quantization="none",
    )
    workspace.ingest([tmp_path / "t"])
    workspace.value([tmp_path / "g"])
    training, generated = (oracle.pixel_embeddings(of, 4) for of in paths)
    found = method.value_embeddings(training, generated, k=5, candidates=20)
    by_uri = dict(workspace.credits("image", k=5).project("uri, value").fetchall())
    np.testing.assert_allclose([by_uri[str(path)] for path in paths[0]], found.values, atol=1e-6)


def test_what_cant_be_valued_is_refused_in_a_sentence() -> None:
    good = np.ones((3, 2))
    with pytest.raises(SettingsError, match="one encoder"):
        method.value_embeddings(good, np.ones((3, 4)))
    with pytest.raises(SettingsError, match="shape"):
        method.value_embeddings(np.ones(3), good)
    with pytest.raises(SettingsError, match="shape"):
        method.value_embeddings(good, np.ones((0, 2)))
    with pytest.raises(SettingsError, match="not finite"):
        method.value_embeddings(good * np.nan, good)
    with pytest.raises(SettingsError, match="quality"):
        method.value_embeddings(good, good, quality=[1.0])
    with pytest.raises(SettingsError, match="re-rank"):
        method.value_embeddings(good, good, rerank=(good[:2], good))
    with pytest.raises(SettingsError, match="temperature"):
        method.value_embeddings(good, good, temperature=0)
    with pytest.raises(SettingsError, match="k = 0"):
        method.value_embeddings(good, good, k=0)


@pytest.mark.parametrize("metric", ["cosine", "euclid", "sqeuclid"])
@pytest.mark.parametrize("dim", [7, 1_792, 40_000])
def test_pairs_are_the_same_to_the_bit_on_any_number_of_threads(metric: method.Metric, dim: int) -> None:
    """One by one, all together, and by the formula; torch splits a long row that is alone among its threads."""
    random = torch.Generator().manual_seed(dim)
    rows, queries = torch.rand(30, dim, generator=random), torch.rand(4, dim, generator=random)
    of_rows, of_queries = torch.arange(120) % 30, torch.arange(120) % 4
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        found = method.pair_distances(metric, queries, rows, of_queries, of_rows)
        alone = np.concatenate(
            [
                method.distances(metric, queries[q], rows[r][None])
                for r, q in zip(of_rows, of_queries, strict=True)
            ]
        )
        whole = np.stack([method.distances(metric, query, rows) for query in queries])
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(found, alone)
    np.testing.assert_array_equal(found, whole[of_queries, of_rows])
    r, q = rows[of_rows], queries[of_queries]
    if metric == "cosine":
        lengths = torch.linalg.vector_norm(r, dim=1).double() * torch.linalg.vector_norm(q, dim=1).double()
        plain = (1 - (r * q).sum(dim=1, dtype=torch.float64) / lengths).clamp(min=0)
    else:
        squares = (r - q).square().sum(dim=1).double()
        plain = squares if metric == "sqeuclid" else squares.sqrt()
    np.testing.assert_array_equal(found, plain.numpy())
    assert method.distances(metric, rows[0], rows[:1])[0] <= (1e-7 if metric == "cosine" else 0)
