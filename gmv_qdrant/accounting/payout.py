"""Credits into money: exact to the cent, and the same to the byte wherever it is computed.

Values come from the ledger as sums of fixed-point integers, and everything after that is rational arithmetic; no
rounding depends on the order of rows or on threads.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Sequence
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path
from typing import Any

from gmv_qdrant.errors import SettingsError

Money = str | int | float | Decimal
"""An amount with at most two decimals: ``"10000"``, ``"5.00"``, ``Decimal("0.01")``."""

_MOST_DIGITS = 15


def cents(amount: Money, what: str = "budget") -> int:
    """An amount of money as whole cents.

    Raises `SettingsError` for what is no number, negative, finer than a cent, or 10^15 and more.
    """
    try:
        number = Decimal(str(amount))
    except InvalidOperation:
        raise SettingsError(
            f"{what} = {str(amount)!r} is not an amount: write it as 10000 or 10000.00"
        ) from None
    if not number.is_finite() or number < 0 or number.adjusted() >= _MOST_DIGITS:
        raise SettingsError(
            f"{what} = {amount} can't be used: it must be from 0 to less than 10^{_MOST_DIGITS}"
        )
    exact = Fraction(number) * 100
    if exact.denominator != 1:
        raise SettingsError(f"{what} = {amount} is finer than a cent: give at most two decimals")
    return int(exact)


def money(amount: int) -> str:
    """Whole cents as text: ``"12.34"``."""
    return f"{amount // 100}.{amount % 100:02d}"


def allocate(values: Sequence[float], budget: int, floor: int = 0) -> list[int]:
    """Share a budget, in cents, in proportion to values >= 0; the sum is the budget exactly.

    Whose exact share is below ``floor`` (cents) is paid nothing, and the others share it: the smallest values go first,
    equal ones together, until all that stay reach the floor. What rounding down leaves over goes, a cent each, to the
    largest remainders, on equal ones to the larger value, then to the earlier position.
    Raises `SettingsError` when nobody can be paid.
    """
    exact = [Fraction(value) for value in values]
    amounts = [0] * len(exact)
    if budget == 0:
        return amounts
    paid = sorted((i for i, value in enumerate(exact) if value > 0), key=lambda i: (-exact[i], i))
    if not paid:
        raise SettingsError(f"there is no credit to share {money(budget)} by: value generated images first")
    total = sum(exact[i] for i in paid)
    while paid and exact[paid[-1]] * budget < floor * total:
        smallest = exact[paid[-1]]
        while paid and exact[paid[-1]] == smallest:
            total -= exact[paid.pop()]
    if not paid:
        raise SettingsError(f"a floor of {money(floor)} leaves nobody to share {money(budget)}: lower it")
    remainders = {}
    for i in paid:
        amounts[i], remainders[i] = divmod(exact[i] * budget, total)
    left = budget - sum(amounts)
    for i in sorted(paid, key=lambda i: (-remainders[i], -exact[i], i))[:left]:
        amounts[i] += 1
    return amounts


def payout(
    by: str,
    credits: Sequence[tuple[str | None, float]],
    budget: Money,
    *,
    floor: Money = 0,
    exclude: Collection[str | None] = (),
) -> list[dict[str, Any]]:
    """Rows ``{by: name, "amount": "12.34", "value": float, "share": float}`` in the order of ``credits``.

    credits: names (None: not named) and values. exclude: names that aren't listed and get nothing; ``share`` is of
    those that are. Amounts add up to the budget exactly.
    Raises `SettingsError` for amounts that can't be used, names that nobody has, and when nobody can be paid.
    """
    if unknown := [name for name in exclude if name not in {name for name, _ in credits}]:
        raise SettingsError(f"nobody is called {unknown[0]!r}, so no {by} of that name can be excluded")
    listed = [(name, value) for name, value in credits if name not in exclude]
    amounts = allocate([value for _, value in listed], cents(budget), cents(floor, "floor"))
    total = sum(Fraction(value) for _, value in listed)
    return [
        {
            by: name,
            "amount": money(amount),
            "value": value,
            "share": float(Fraction(value) / total) if total else 0.0,
        }
        for (name, value), amount in zip(listed, amounts, strict=True)
    ]


def write_payout(rows: Sequence[dict[str, Any]], target: Path, columns: Sequence[str]) -> None:
    """Write rows as ``.csv`` or ``.json``, whole or not at all. Raises `SettingsError` for another suffix."""
    if target.suffix.lower() == ".json":
        text = json.dumps(list(rows), ensure_ascii=False, indent=2) + "\n"
    elif target.suffix.lower() == ".csv":
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        text = buffer.getvalue()
    else:
        raise SettingsError(f"a payout is written as .csv or .json, and {target.name!r} is neither")
    partial = target.with_name(target.name + ".partial")
    partial.write_text(text, encoding="utf-8", newline="")
    partial.replace(target)
