"""Amounts of money: ISO 4217 currencies, whole minor units inside, strict text outside."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from gmv_qdrant.errors import SettingsError, did_you_mean

Money = str | int | float | Decimal
"""An amount as people write it: ``"10000"``, ``"5.00"``, ``Decimal("0.01")``."""

_MOST_DIGITS = 15

# ISO 4217: the active codes by the decimals of their minor unit. XXX is its code for "no currency named".
_CODES = {
    0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF",
    2: "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CNY COP "
    "CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS INR IRR "
    "JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN "
    "NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP "
    "SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD UYU UZS VED VES WST XCD XCG XXX YER ZAR ZMW ZWG",
    3: "BHD IQD JOD KWD LYD OMR TND",
    4: "CLF UYW",
}
_DECIMALS = {code: decimals for decimals, codes in _CODES.items() for code in codes.split()}


@dataclass(frozen=True, slots=True)
class Currency:
    """A currency of ISO 4217, such as ``EUR``; ``XXX`` where none is named, with two decimals.

    Raises `SettingsError` for a code that ISO 4217 doesn't list.
    """

    code: str = "XXX"

    def __post_init__(self) -> None:
        if self.code not in _DECIMALS:
            raise SettingsError(
                f"currency = {self.code!r} is no code of ISO 4217{did_you_mean(self.code, _DECIMALS)}: "
                "write it as EUR, USD, JPY, ..."
            )

    @property
    def decimals(self) -> int:
        """Decimals of the minor unit: 2 for EUR, 0 for JPY, 3 for KWD."""
        return _DECIMALS[self.code]

    def parse(self, amount: Money, what: str = "budget") -> int:
        """An amount in whole minor units.

        Raises `SettingsError` for anything but digits and at most as many decimals as the currency has: what could be
        read in two ways (``10.000``, ``10,000``), exponents, signs, and amounts of more than 15 digits.
        """
        text = str(amount)
        found = re.fullmatch(r"(\d+)(?:\.(\d+))?", text, re.ASCII)
        example = f"10000.{'0' * self.decimals}".rstrip(".")
        if not found or isinstance(amount, bool):
            raise SettingsError(
                f"{what} = {text!r:.60} is not an amount: write it as {example}, with a point before decimals and "
                "nothing between thousands"
            )
        whole, decimals = found[1], found[2] or ""
        if len(decimals) > self.decimals:
            raise SettingsError(
                f"{what} = {text:.60} is not a whole number of the smallest unit of {self}, which has "
                f"{self.decimals or 'no'} decimals: write it as {example}"
            )
        if len(whole.lstrip("0")) > _MOST_DIGITS:
            raise SettingsError(f"{what} = {text:.60} can't be used: it must be less than 10^{_MOST_DIGITS}")
        return int(whole + decimals.ljust(self.decimals, "0"))

    def text(self, units: int) -> str:
        """Minor units as text with all decimals: ``"12.34"``, ``"12"`` in JPY, ``"12.340"`` in KWD."""
        sign, digits = "-" * (units < 0), str(abs(units)).rjust(self.decimals + 1, "0")
        cut = len(digits) - self.decimals
        return f"{sign}{digits[:cut]}.{digits[cut:]}" if self.decimals else sign + digits

    def __str__(self) -> str:
        return "a budget without a currency" if self.code == "XXX" else self.code


def allocate(credit: Sequence[int], budget: int) -> list[int]:
    """Share a budget, in minor units, in proportion to credit >= 0; the sum is the budget exactly.

    Every share is rounded down; the units left over go, one each, to the largest remainders, of equal ones to the
    larger credit, then to the earlier position. So nobody with more credit gets less, and more credit never gets less.
    Raises `SettingsError` when there is a budget and no credit.
    """
    total = sum(credit)
    if budget == 0:
        return [0] * len(credit)
    if total == 0:
        raise SettingsError("there is no credit to share the budget by: value generated images first")
    amounts, remainders = [], []
    for units in credit:
        amount, remainder = divmod(units * budget, total)
        amounts.append(amount)
        remainders.append(remainder)
    order = sorted(range(len(credit)), key=lambda i: (-remainders[i], -credit[i], i))
    for i in order[: budget - sum(amounts)]:
        amounts[i] += 1
    return amounts


def share(part: int, total: int) -> float:
    """A quotient as the nearest float; 0 of nothing."""
    return float(Fraction(part, total)) if total else 0.0
