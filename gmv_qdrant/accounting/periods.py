"""Periods of time, as payouts name them: from a first to a last day, without a zone."""

from __future__ import annotations

import calendar
import re
from dataclasses import dataclass
from datetime import date, timedelta

from gmv_qdrant.errors import SettingsError

_HOW = "write it as 2026, 2026-H1, 2026-Q1, 2026-03, 2026-W09, 2026-03-31 or 2026-01-01/2026-03-31"


@dataclass(frozen=True, slots=True)
class Period:
    """The days from ``first`` to ``last``, both included; ``name`` is its one spelling, and fit for a file's name."""

    name: str
    first: date
    last: date

    @classmethod
    def parse(cls, text: str) -> Period:
        """A period from ``2026``, ``2026-H1``, ``2026-Q1``, ``2026-03``, ``2026-W09``, a day, or ``FIRST/LAST``.

        Raises `SettingsError` for anything else, days that there aren't, and a last day before the first.
        """
        name = text.strip().upper().replace("/", "--")
        first, between, last = name.partition("--")
        try:
            start, end = _days(first), _days(last if between else first)
        except ValueError:
            raise SettingsError(f"the period {text!r:.60} can't be used: {_HOW}") from None
        if end[1] < start[0]:
            raise SettingsError(f"the period {text!r:.60} ends before it begins: {_HOW}")
        return cls(re.sub(r"(\d{4})([QHW])", r"\1-\2", name), start[0], end[1])

    def overlaps(self, first: date, last: date) -> bool:
        """Whether any day lies in both."""
        return self.first <= last and first <= self.last


def _days(text: str) -> tuple[date, date]:
    """First and last day of one word; raises ValueError for what is none."""
    found = re.fullmatch(r"(\d{4})(?:-?([QHW])(\d{1,2})|-(\d\d)(?:-(\d\d))?)?", text, re.ASCII)
    if not found:
        raise ValueError(text)
    year, kind, number, month, day = int(found[1]), found[2], int(found[3] or 0), found[4], found[5]
    if day:
        there = date(year, int(month), int(day))
        return there, there
    if kind == "W":
        monday = date.fromisocalendar(year, number, 1)
        return monday, monday + timedelta(days=6)
    months = {"Q": 3, "H": 6}.get(kind or "", 1 if month else 12)
    last_month = number * months if kind else int(month) if month else 12
    if not months <= last_month <= 12:
        raise ValueError(text)
    return (
        date(year, last_month - months + 1, 1),
        date(year, last_month, calendar.monthrange(year, last_month)[1]),
    )
