"""A payout: a budget shared by credit, exact to the smallest unit, and everything that it follows from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gmv_qdrant.accounting.claims import Claim, Hold, find_claims, in_question, merged, settle, with_amounts
from gmv_qdrant.accounting.evidence import NOBODY, UNIT, Evidence
from gmv_qdrant.accounting.money import Currency, allocate
from gmv_qdrant.accounting.names import alike, spelt_out
from gmv_qdrant.errors import SettingsError, did_you_mean
from gmv_qdrant.ledger.queries import ValueFunction

NAMED, UNNAMED, NOBODY_AT_ALL = "named", "unnamed", "nobody"
"""Kinds of lines: a name; images whose sources name nobody; no image at all (a value function with a null distance)."""
_AMOUNTS = ("amount", "low", "high", "brought", "released", "held", "paid", "balance")
COLUMNS = ("kind", *_AMOUNTS, "value", "share")
"""Of a line as people see it, beside the name."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What was decided: everything of a payout that doesn't follow from the evidence. Amounts are minor units.

    by: what is paid: ``owner``, ``label``, ``licence`` or an attribute. rule, function: how credit is counted.
    batches: None for all.
    exclusions: names that are paid nothing, with the reason; None is those whose sources name nobody.
    minimum: what is less is carried forward. hold: keep back what several names claim. release: give back what was
    held before to those it was kept from, settled or not.
    """

    by: str
    budget: int
    currency: Currency = field(default_factory=Currency)
    rule: str = "owner-shapley"
    function: ValueFunction = field(default_factory=lambda: ValueFunction(k=None))
    batches: Sequence[str] | None = None
    exclusions: Mapping[str | None, str] = field(default_factory=dict)
    minimum: int = 0
    hold: bool = False
    release: bool = False

    def value_function(self) -> dict[str, Any]:
        """How evidence becomes credit, as records keep it."""
        names = ("k", "temperature", "quality_weighted", "null_distance", "relative", "calibration")
        return {"rule": self.rule, **{name: getattr(self.function, name) for name in names}}


@dataclass(frozen=True, slots=True)
class Line:
    """One payee. ``brought + released + amount - held == paid + balance``, all in minor units.

    units: credit, 2^-60 of a generated image. amount: its share of the budget, between low and high by the bootstrap.
    brought: balance of the payout before. released: of what was held before and is settled now. held: of the amount,
    kept back while it is in question. paid: to be transferred now. balance: carried forward.
    What earned nobody or no name is never paid: an unnamed balance is held in trust, and nobody's stays yours.
    """

    kind: str
    name: str | None
    units: int
    amount: int = 0
    low: int = 0
    high: int = 0
    brought: int = 0
    released: int = 0
    held: int = 0
    paid: int = 0
    balance: int = 0


@dataclass(frozen=True, slots=True)
class Payout:
    """Terms, evidence and lines. ``document`` is its one text, and ``fingerprint`` that text's SHA-256."""

    terms: Terms
    batches: tuple[str, ...]
    generated_images: int
    training_version: int
    evidence: Mapping[str, str]
    lines: tuple[Line, ...]
    claims: tuple[Claim, ...] = ()
    holds: tuple[Hold, ...] = ()
    notes: tuple[str, ...] = ()
    previous: str | None = None
    payout_id: str = ""
    period: str = ""
    first_day: str = ""
    last_day: str = ""

    def document(self) -> bytes:
        """JSON of everything above: the same bytes wherever the same evidence is paid by on the same terms."""
        return (json.dumps(self.as_dict(), indent=1, sort_keys=True) + "\n").encode("ascii")

    def as_dict(self) -> dict[str, Any]:
        """Everything above, with amounts in minor units."""
        terms = self.terms
        return {
            "payout": self.payout_id,
            "period": self.period,
            "first_day": self.first_day,
            "last_day": self.last_day,
            "by": terms.by,
            "batches": list(self.batches),
            "generated_images": self.generated_images,
            "currency": terms.currency.code,
            "decimals": terms.currency.decimals,
            "budget": terms.budget,
            "minimum": terms.minimum,
            "value_function": terms.value_function(),
            "training_version": self.training_version,
            "evidence": dict(self.evidence),
            "exclusions": [{"name": name, "reason": why} for name, why in terms.exclusions.items()],
            "hold": terms.hold,
            "release": terms.release,
            "claims": [claim.as_dict() for claim in self.claims],
            "holds": [hold.as_dict() for hold in self.holds],
            "notes": list(self.notes),
            "previous": self.previous,
            "lines": [line_as_dict(line) for line in self.lines],
        }

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.document()).hexdigest()

    def rows(self) -> list[dict[str, Any]]:
        """The lines with amounts as text: ``{"owner": "Ada", "kind": "named", "amount": "12.34", ...}``.

        The name stands under what is paid by; under ``name`` where that is called like another column.
        value: credit, in generated images of quality 1. share: of all the credit that is listed.
        """
        text, total = self.terms.currency.text, sum(line.units for line in self.lines)
        key = "name" if self.terms.by in COLUMNS else self.terms.by
        return [
            {
                key: line.name,
                "kind": line.kind,
                **{name: text(getattr(line, name)) for name in _AMOUNTS},
                "value": line.units / UNIT,
                "share": line.units / total if total else 0.0,
            }
            for line in self.lines
        ]

    def line_of(self, name: str | None) -> Line | None:
        """The line of a name; None is the unnamed one."""
        kind = UNNAMED if name is None else NAMED
        return next((line for line in self.lines if (line.kind, line.name) == (kind, name)), None)


class PayoutRows(list[dict[str, Any]]):
    """What `Payout.rows` gives; ``payout`` is all of it, and ``said`` its value function in words."""

    def __init__(self, payout: Payout, said: str = "") -> None:
        super().__init__(payout.rows())
        self.payout, self.said = payout, said


def line_as_dict(line: Line) -> dict[str, Any]:
    return {name: getattr(line, name) for name in Line.__slots__}


def compute(
    evidence: Evidence,
    terms: Terms,
    *,
    training_version: int,
    previous: Payout | None = None,
) -> Payout:
    """Share the budget. previous: the payout whose balances and holds are brought forward.

    Raises `SettingsError` when there is no credit to share by, when everybody is excluded, for an exclusion that
    nobody is called, and for a minimum above the budget.
    """
    if terms.minimum > terms.budget > 0:
        raise SettingsError(
            f"a minimum of {terms.currency.text(terms.minimum)} is more than the whole budget of "
            f"{terms.currency.text(terms.budget)}, so nobody could be paid: lower it"
        )
    evidence.earn(terms.rule, terms.function)
    lines = _lines(evidence, terms)
    found = find_claims(evidence)
    doubtful = in_question(evidence, found, _amounts(lines))
    claims, held = with_amounts(found, doubtful), doubtful if terms.hold else []
    outstanding, released = settle(previous.holds if previous else (), evidence, release=terms.release)
    _bring_forward(lines, previous.lines if previous else (), released, held)
    return Payout(
        terms=terms,
        batches=tuple(evidence.batches()),
        generated_images=evidence.count(),
        training_version=training_version,
        evidence=evidence.fingerprints(),
        lines=tuple(sorted((_settled(line, terms) for line in lines.values()), key=_order)),
        claims=claims,
        holds=merged([*outstanding, *held]),
        notes=(*_notes(lines), *_said_of_claims(claims, terms, evidence.knows_copies)),
        previous=previous.fingerprint if previous else None,
    )


Lines = dict[tuple[str, str | None], Line]


def _lines(evidence: Evidence, terms: Terms) -> Lines:
    """By kind and name: units, amount and its interval, zeros included; nobody only where the rule knows nobody."""
    credited = _credited(evidence)
    _refuse_unknown(terms, [line.name for id, line in credited if id != NOBODY])
    evidence.exclude(terms.exclusions)
    found = [(line, id) for id, line in credited if id == NOBODY or line.name not in terms.exclusions]
    if terms.budget and not any(line.units for line, _ in found):
        why = "everybody who earned credit is excluded" if terms.exclusions else "there is no credit at all"
        raise SettingsError(f"{why}, so nobody could be paid: value generated images first, or exclude fewer")
    found.sort(key=lambda pair: _order(pair[0]))
    amounts = allocate([line.units for line, _ in found], terms.budget)
    bounds = evidence.intervals()
    return {
        (line.kind, line.name): _with_interval(
            replace(line, amount=amount), terms.budget, bounds.get(id, bounds[None])
        )
        for (line, id), amount in zip(found, amounts, strict=True)
    }


def _credited(evidence: Evidence) -> list[tuple[int, Line]]:
    """The id of everybody, with kind, name and units, zeros included; `NOBODY` only where the rule knows nobody."""
    rows = evidence.rows(
        """SELECT n.id, n.name, CAST(coalesce(e.units, 0) AS HUGEINT) AS units
        FROM names n LEFT JOIN (SELECT id, sum(units) AS units FROM earned GROUP BY id) e USING (id)
        UNION ALL SELECT id, NULL, sum(units) FROM earned WHERE id = $nobody GROUP BY id""",
        {"nobody": NOBODY},
    )
    kinds = [
        NOBODY_AT_ALL if row["id"] == NOBODY else UNNAMED if row["name"] is None else NAMED for row in rows
    ]
    return [
        (row["id"], Line(kind, row["name"], int(row["units"]))) for row, kind in zip(rows, kinds, strict=True)
    ]


def _refuse_unknown(terms: Terms, names: Sequence[str | None]) -> None:
    """Raises `SettingsError` for an exclusion of a name that there isn't."""
    for name in terms.exclusions:
        if name not in names:
            known = [other for other in names if other is not None]
            called = "without a name" if name is None else f"called {name!r}{did_you_mean(name, known)}"
            raise SettingsError(f"no {terms.by} is {called}, so none can be excluded")


def _with_interval(line: Line, budget: int, share: tuple[int, int]) -> Line:
    """share: low and high of the share of the credit, in 2^-40."""
    low, high = budget * share[0] >> 40, -(-budget * share[1] >> 40)
    return replace(line, low=min(low, line.amount), high=max(min(high, budget), line.amount))


def _amounts(lines: Lines) -> dict[str, int]:
    return {name: line.amount for (_, name), line in lines.items() if name is not None}


def _bring_forward(
    lines: Lines, previous: Sequence[Line], released: Mapping[str, int], held: Sequence[Hold]
) -> None:
    """Add balances of the payout before and what was released, take off what is held."""

    def change(kind: str, name: str | None, **amounts: int) -> None:
        there = lines.get((kind, name), Line(kind, name, 0))
        lines[kind, name] = replace(there, **{what: getattr(there, what) + n for what, n in amounts.items()})

    for line in previous:
        if line.balance:
            change(line.kind, line.name, brought=line.balance)
    for name, amount in released.items():
        change(NAMED, name, released=amount)
    for hold in held:
        change(NAMED, hold.name, held=hold.amount)


def _order(line: Line) -> tuple[int, int, str]:
    """The largest credit first, then by code points; the unnamed and nobody last."""
    return (NAMED, UNNAMED, NOBODY_AT_ALL).index(line.kind), -line.units, line.name or ""


def _settled(line: Line, terms: Terms) -> Line:
    """What is paid of a line, and what is carried forward."""
    due = line.brought + line.released + line.amount - line.held
    if line.kind == NOBODY_AT_ALL:
        return line
    payable = line.kind == NAMED and line.name not in terms.exclusions and due >= terms.minimum
    return replace(line, paid=due, balance=0) if payable else replace(line, paid=0, balance=due)


def _notes(lines: Lines) -> list[str]:
    """Names that print alike, said in a sentence each."""
    found = alike(name for kind, name in lines if kind == NAMED)
    return [
        f"these names print alike and are paid apart: {', '.join(map(spelt_out, group))}; if they are one, give them "
        "one name in the metadata and run 'gmv-qdrant ingest --reassign'"
        for group in found
    ]


def _said_of_claims(claims: Sequence[Claim], terms: Terms, knows_copies: bool) -> list[str]:
    """What is in question and paid all the same, and whether near-copies could be looked for."""
    said = []
    amount = sum(claim.amount for claim in claims)
    if amount and not terms.hold:
        pictures = "a picture" if len(claims) == 1 else f"{len(claims):,} pictures"
        said.append(
            f"{terms.currency.text(amount)} was earned by {pictures} that several {terms.by}s claim (equal contents, "
            "or near-copies): 'payout --hold' keeps it back until their sources say whose they are"
        )
    if not knows_copies:
        said.append(
            "near-copies weren't looked for, because this workspace keeps no re-rank vectors: only equal contents "
            "are known to be claimed"
        )
    return said
