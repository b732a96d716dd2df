"""Amounts, currencies, periods and names: exact, strict, and the same in every locale."""

from __future__ import annotations

import itertools
from datetime import date
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gmv_qdrant.accounting.money import Currency, allocate
from gmv_qdrant.accounting.names import alike
from gmv_qdrant.accounting.periods import Period
from gmv_qdrant.accounting.sheets import csv_text
from gmv_qdrant.errors import SettingsError

EUR, JPY, KWD = Currency("EUR"), Currency("JPY"), Currency("KWD")
credit = st.lists(st.one_of(st.integers(0, 2**80), st.integers(0, 3)), min_size=1, max_size=30).filter(any)


@given(credit, st.integers(0, 10**15))
def test_amounts_add_up_and_are_within_a_unit_of_the_exact_share(units: list[int], budget: int) -> None:
    amounts = allocate(units, budget)
    assert sum(amounts) == budget
    assert all(abs(a - Fraction(u * budget, sum(units))) < 1 for a, u in zip(amounts, units, strict=True))
    order = sorted(range(len(units)), key=lambda i: units[i])
    assert all(amounts[a] <= amounts[b] + (units[a] == units[b]) for a, b in itertools.pairwise(order))


@given(credit, st.integers(0, 10**6), st.integers(0, 29), st.integers(1, 2**70))
def test_more_credit_never_gets_less(units: list[int], budget: int, who: int, more: int) -> None:
    who %= len(units)
    richer = [*units[:who], units[who] + more, *units[who + 1 :]]
    assert allocate(richer, budget)[who] >= allocate(units, budget)[who]


@given(credit, st.integers(0, 10**9), st.randoms())
def test_the_order_of_rows_only_breaks_ties_of_equals(units: list[int], budget: int, random: object) -> None:
    amounts = sorted(zip(units, allocate(units, budget), strict=True))
    shuffled = list(units)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert sorted(zip(shuffled, allocate(shuffled, budget), strict=True)) == amounts


def test_the_rest_goes_to_the_largest_remainders() -> None:
    assert allocate([1, 1, 1], 100) == [34, 33, 33]
    assert allocate([5, 3, 1], 10) == [6, 3, 1]  # 5.56, 3.33, 1.11
    assert allocate([1, 2, 3], 4) == [1, 1, 2]  # 0.67, 1.33, 2
    assert allocate([0, 0], 0) == [0, 0]
    with pytest.raises(SettingsError, match="no credit"):
        allocate([0, 0], 1)


@pytest.mark.parametrize(
    ("currency", "text", "expected"),
    [
        (EUR, "10000", 1_000_000),
        (EUR, "5.00", 500),
        (EUR, "10.5", 1050),
        (EUR, "0.01", 1),
        (EUR, 12, 1200),
        (EUR, 0.1, 10),
        (EUR, Decimal("1.5"), 150),
        (JPY, "10000", 10_000),
        (KWD, "10.000", 10_000),
        (KWD, "1.5", 1500),
        (Currency("CLF"), "0.0001", 1),
        (Currency(), "1.00", 100),
    ],
)
def test_amounts_are_read_exactly(currency: Currency, text: str | float | Decimal, expected: int) -> None:
    assert currency.parse(text) == expected
    assert Decimal(currency.text(expected)) == Decimal(str(text))
    assert currency.parse(currency.text(expected)) == expected


def words(text: str) -> list[str]:
    return text.split()


TWO_WAYS = words(
    """-1 +1 -0.01 0.001 10.005 10.000 10,000 10.000,00 1'000 1_000 ten nan inf 1e3 1E3 1e15 1e-99999999 1e999999999
    0x10 １０ ٣ 5. .5 1111111111111111 1/2 €5"""
)
NOT_AMOUNTS = [
    *("", " ", " 5", "5\n", "1 000", "5 EUR", "9" * 5000),
    *(True, None, 0.1 + 0.2, 1e22, float("nan"), Decimal("1E+3"), Decimal("1e-99999999")),
]


@pytest.mark.parametrize("currency", [EUR, JPY, Currency()])
@pytest.mark.parametrize("text", [*TWO_WAYS, *NOT_AMOUNTS])
def test_what_could_be_read_in_two_ways_is_refused(currency: Currency, text: str | float) -> None:
    with pytest.raises(SettingsError, match=r"^budget = ") as refused:
        currency.parse(text)
    assert len(str(refused.value)) < 300


def test_yen_have_no_decimals_and_unknown_currencies_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"JPY, which has no decimals: write it as 10000$"):
        JPY.parse("10.5")
    assert (JPY.text(1234), KWD.text(1234), EUR.text(1234), EUR.text(-5)) == (
        "1234",
        "1.234",
        "12.34",
        "-0.05",
    )
    for code in ("EURO", "eur", "BTC", "", "E"):
        with pytest.raises(SettingsError, match="ISO 4217"):
            Currency(code)


def test_periods_have_one_spelling_and_days() -> None:
    for text, name, first, last in [
        ("2026", "2026", date(2026, 1, 1), date(2026, 12, 31)),
        ("2024-02", "2024-02", date(2024, 2, 1), date(2024, 2, 29)),
        ("2026q4", "2026-Q4", date(2026, 10, 1), date(2026, 12, 31)),
        ("2026-H1", "2026-H1", date(2026, 1, 1), date(2026, 6, 30)),
        ("2026-W53", "2026-W53", date(2026, 12, 28), date(2027, 1, 3)),
        ("2026-03-31", "2026-03-31", date(2026, 3, 31), date(2026, 3, 31)),
        ("2026-Q1/2026-Q2", "2026-Q1--2026-Q2", date(2026, 1, 1), date(2026, 6, 30)),
    ]:
        assert Period.parse(text) == Period(name, first, last)
        assert Period.parse(name) == Period(name, first, last)
    quarter = Period.parse("2026-Q1")
    assert quarter.overlaps(date(2026, 3, 31), date(2026, 4, 1))
    assert not quarter.overlaps(date(2026, 4, 1), date(2026, 4, 2))
    wrong = words(
        "spring 2026-Q5 2026-13 2026-02-30 2026-W54 2026-Q2/2026-Q1 2026/ /2026 2026-1 0000 ../2026 1/2/3"
    )
    for text in ("", *wrong):
        with pytest.raises(SettingsError, match="period"):
            Period.parse(text)


def test_names_that_print_alike_are_found() -> None:
    nfc, nfd = "Jos\u00e9", "Jose\u0301"
    cyrillic, hidden = "\u0410da", "A\u200bda"
    names = [
        nfc,
        nfd,
        "Ada",
        "ADA",
        cyrillic,
        hidden,
        "Ada ",
        " Ada\tL",
        "Ada L",
        "Bob",
        "Jose",
        None,
        "Straße",
        "STRASSE",
    ]
    assert alike(names) == [
        [" Ada\tL", "Ada L"],
        ["ADA", "Ada", "Ada ", hidden, cyrillic],
        [nfd, nfc],
        ["STRASSE", "Straße"],
    ]
    assert alike(["Ada", "Ada", None]) == []


def test_cells_that_a_spreadsheet_would_compute_are_harmless() -> None:
    names = ("=cmd|' /C calc'!A0", "+1+1|x", "-x", "@x", " =1", "\t=1", "Ada", "-1.50", None)
    cells = [line.strip('"') for line in csv_text([{"owner": name} for name in names]).splitlines()[1:]]
    assert [cell[:2] for cell in cells] == ["'=", "'+", "'-", "'@", "' ", "'\t", "Ad", "-1", ""]
    assert '"a,""b"""' in csv_text([{"owner": 'a,"b"'}])
