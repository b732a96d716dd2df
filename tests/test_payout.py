"""Payouts: to the cent, the budget exactly, the same for everybody who computes it."""

from __future__ import annotations

import itertools
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmv_qdrant.errors import SettingsError
from gmv_qdrant.payout import allocate, cents, money, payout

values = st.lists(
    st.one_of(st.floats(0, 1e6), st.sampled_from([0.0, 1.0, 1 / 3, 2.0])), min_size=1, max_size=30
).filter(lambda v: sum(v) > 0)


@given(values, st.integers(0, 10**12), st.integers(0, 10**4))
def test_amounts_add_up_and_follow_the_values(values: list[float], budget: int, floor: int) -> None:
    try:
        amounts = allocate(values, budget, floor)
    except SettingsError:
        assert floor > 0  # nobody reaches it
        return
    assert sum(amounts) == budget
    paid = [i for i, amount in enumerate(amounts) if amount]
    assert all(amounts[i] >= floor for i in paid)
    assert all(amount == 0 for amount, value in zip(amounts, values, strict=True) if value == 0)
    order = sorted(range(len(values)), key=lambda i: values[i])
    assert all(amounts[a] <= amounts[b] + (values[a] == values[b]) for a, b in itertools.pairwise(order))
    if floor == 0:
        total = sum(map(Fraction, values))
        assert all(abs(a - Fraction(v) * budget / total) < 1 for a, v in zip(amounts, values, strict=True))


@given(values, st.integers(1, 10**8), st.integers(1, 10**6))
def test_the_floor_drops_as_few_as_it_can(values: list[float], budget: int, floor: int) -> None:
    """The definition, searched: the largest set of top values in which everybody reaches the floor."""
    exact = [Fraction(v) for v in values]
    best: list[int] = []
    for least in sorted({v for v in exact if v > 0}):
        members = [i for i, v in enumerate(exact) if v >= least]
        if least * budget >= floor * sum(exact[i] for i in members):
            best = members
            break
    try:
        amounts = allocate(values, budget, floor)
    except SettingsError:
        assert not best
        return
    assert {i for i, amount in enumerate(amounts) if amount} == set(best)


@given(values, st.integers(0, 10**9), st.randoms())
def test_the_order_of_rows_only_breaks_ties_of_equals(
    values: list[float], budget: int, random: object
) -> None:
    amounts = sorted(zip(values, allocate(values, budget), strict=True))
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert sorted(zip(shuffled, allocate(shuffled, budget), strict=True)) == amounts


def test_the_rest_goes_to_the_largest_remainders() -> None:
    assert allocate([1.0, 1.0, 1.0], 100) == [34, 33, 33]
    assert allocate([5.0, 3.0, 1.0], 10) == [6, 3, 1]  # 5.56, 3.33, 1.11
    assert allocate([1.0, 2.0, 3.0], 4) == [1, 1, 2]  # 0.67, 1.33, 2


def test_a_floor_shares_what_it_keeps_back() -> None:
    assert allocate([90.0, 9.0, 1.0], 10_000, 500) == [9091, 909, 0]
    assert allocate([4.0, 3.0, 3.0], 1000, 350) == [1000, 0, 0]  # equals stay or go together
    with pytest.raises(SettingsError, match="leaves nobody"):
        allocate([1.0, 1.0, 1.0], 1470, 500)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10000", 1_000_000),
        ("5.00", 500),
        ("0.01", 1),
        (12, 1200),
        (0.1, 10),
        (Decimal("1.5"), 150),
        ("1e3", 100_000),
    ],
)
def test_amounts_are_read_exactly(text: str | int | float | Decimal, expected: int) -> None:
    assert cents(text) == expected
    assert money(expected) == f"{Decimal(str(text)):.2f}"


@pytest.mark.parametrize(
    "text", ["-1", "-0.01", "0.001", "10.005", "ten", "", "nan", "inf", "1e15", "1e999999999", 0.1 + 0.2]
)
def test_other_amounts_are_refused(text: str | float) -> None:
    with pytest.raises(SettingsError, match="budget"):
        cents(text)


def test_excluded_names_leave_and_the_unnamed_stay_unless_excluded() -> None:
    credits = [("Ada", 5.0), (None, 3.0), ("Bay", 2.0), ("Cy", 0.0)]
    rows = payout("owner", credits, "100")
    assert [(row["owner"], row["amount"]) for row in rows] == [
        ("Ada", "50.00"), (None, "30.00"), ("Bay", "20.00"), ("Cy", "0.00"),
    ]  # fmt: skip
    rows = payout("owner", credits, "100", exclude=["Ada", None])
    assert [(row["owner"], row["amount"], row["share"]) for row in rows] == [
        ("Bay", "100.00", 1.0),
        ("Cy", "0.00", 0.0),
    ]
    with pytest.raises(SettingsError, match="'Adda'"):
        payout("owner", credits, "100", exclude=["Adda"])


def test_without_credit_there_is_nothing_to_pay_by() -> None:
    with pytest.raises(SettingsError, match="no credit"):
        payout("owner", [("Ada", 0.0)], "1")
    assert payout("owner", [("Ada", 0.0)], "0")[0]["amount"] == "0.00"
