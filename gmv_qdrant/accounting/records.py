"""Payouts in the ledger: rows that are added and never changed, and that give back the payout to the byte."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from gmv_qdrant.accounting.claims import Claim, Hold
from gmv_qdrant.accounting.money import Currency
from gmv_qdrant.accounting.payout import Line, Payout, Terms
from gmv_qdrant.errors import SettingsError, did_you_mean
from gmv_qdrant.ledger.database import Connection, Readable, insert
from gmv_qdrant.ledger.queries import ValueFunction


@dataclass(frozen=True, slots=True)
class Record:
    """A payout as the ledger keeps it.

    fingerprint: SHA-256 of the payout's document when it was recorded. versions: of what it was computed with.
    manifest: SHA-256 of the manifest of the evidence that is kept beside the ledger.
    """

    payout: Payout
    recorded_at: datetime
    fingerprint: str
    versions: dict[str, str]
    manifest: str

    @property
    def days(self) -> tuple[date, date]:
        return date.fromisoformat(self.payout.first_day), date.fromisoformat(self.payout.last_day)

    def summary(self) -> dict[str, Any]:
        """What a list of payouts shows of it."""
        payout, terms = self.payout, self.payout.terms
        text = terms.currency.text
        return {
            "payout": payout.payout_id,
            "first_day": payout.first_day,
            "last_day": payout.last_day,
            "by": terms.by,
            "batches": list(payout.batches),
            "currency": terms.currency.code,
            "budget": text(terms.budget),
            "paid": text(sum(line.paid for line in payout.lines)),
            "balance": text(sum(line.balance for line in payout.lines)),
            "held": text(sum(hold.amount for hold in payout.holds)),
            "recorded_at": self.recorded_at.isoformat(),
            "fingerprint": self.fingerprint,
        }


def write_record(con: Connection, record: Record) -> None:
    """Add the rows of a payout."""
    insert(con, "payouts", {name: [value] for name, value in _row(record).items()})
    lines = _rows_of_lines(record.payout)
    insert(con, "payout_lines", {name: [line[name] for line in lines] for name in lines[0]})


def rows_of(source: Readable, record: Record) -> list[str]:
    """What the rows of a payout say that its record wouldn't have written, in sentences."""
    said = source.query("FROM payouts WHERE payout_id = $id", {"id": record.payout.payout_id}).to_pylist()
    if said != [_row(record)]:
        return ["its row in the ledger isn't as it was written"]
    columns = ", ".join(
        f'"{name}"' if name != "units" else "CAST(units AS VARCHAR) AS units" for name in _LINE
    )
    lines = source.query(
        f"SELECT {columns} FROM payout_lines WHERE payout_id = $id ORDER BY place",
        {"id": record.payout.payout_id},
    )
    return (
        []
        if lines.to_pylist() == _rows_of_lines(record.payout)
        else ["its lines in the ledger aren't as they were written"]
    )


_LINE = ("payout_id", "place", *Line.__slots__)


def _rows_of_lines(payout: Payout) -> list[dict[str, Any]]:
    return [
        {
            "payout_id": payout.payout_id,
            "place": place,
            **{name: getattr(line, name) for name in Line.__slots__},
            "units": str(line.units),  # Arrow has no integers of 128 bits
        }
        for place, line in enumerate(payout.lines, 1)
    ]


def _row(record: Record) -> dict[str, Any]:
    payout, terms = record.payout, record.payout.terms
    return {
        "payout_id": payout.payout_id,
        "period": payout.period,
        "first_day": date.fromisoformat(payout.first_day),
        "last_day": date.fromisoformat(payout.last_day),
        "recorded_at": record.recorded_at,
        "field": terms.by,
        "batches": list(payout.batches),
        "generated_images": payout.generated_images,
        "currency": terms.currency.code,
        "decimals": terms.currency.decimals,
        "budget": terms.budget,
        "minimum": terms.minimum,
        "value_function": json.dumps(terms.value_function()),
        "training_version": payout.training_version,
        "evidence": json.dumps(dict(payout.evidence)),
        "exclusions": json.dumps([{"name": name, "reason": why} for name, why in terms.exclusions.items()]),
        "hold": terms.hold,
        "release": terms.release,
        "claims": json.dumps([claim.as_dict() for claim in payout.claims]),
        "holds": json.dumps([hold.as_dict() for hold in payout.holds]),
        "notes": json.dumps(list(payout.notes)),
        "previous": payout.previous,
        "fingerprint": record.fingerprint,
        "versions": json.dumps(record.versions),
        "manifest": record.manifest,
    }


def read_records(source: Readable) -> list[Record]:
    """All payouts, the oldest first."""
    rows = source.query("FROM payouts ORDER BY recorded_at, payout_id").to_pylist()
    lines: dict[str, list[Line]] = {row["payout_id"]: [] for row in rows}
    named = ", ".join(f'"{name}"' for name in Line.__slots__ if name != "units")
    kept = source.query(
        f"SELECT payout_id, {named}, CAST(units AS VARCHAR) AS units FROM payout_lines ORDER BY payout_id, place"
    )
    for row in kept.to_pylist():
        lines.setdefault(row.pop("payout_id"), []).append(Line(**{**row, "units": int(row["units"])}))
    return [_record(row, lines[row["payout_id"]]) for row in rows]


def _record(row: dict[str, Any], lines: list[Line]) -> Record:
    function = json.loads(row["value_function"])
    terms = Terms(
        by=row["field"],
        budget=row["budget"],
        currency=Currency(row["currency"]),
        rule=function.pop("rule"),
        function=ValueFunction(**function),
        exclusions={one["name"]: one["reason"] for one in json.loads(row["exclusions"])},
        minimum=row["minimum"],
        hold=row["hold"],
        release=row["release"],
    )
    payout = Payout(
        terms=terms,
        batches=tuple(row["batches"]),
        generated_images=row["generated_images"],
        training_version=row["training_version"],
        evidence=json.loads(row["evidence"]),
        lines=tuple(lines),
        claims=tuple(
            Claim(tuple(one["images"]), tuple(one["names"]), one["amount"])
            for one in json.loads(row["claims"])
        ),
        holds=tuple(
            Hold(tuple(one["images"]), one["name"], one["amount"]) for one in json.loads(row["holds"])
        ),
        notes=tuple(json.loads(row["notes"])),
        previous=row["previous"],
        payout_id=row["payout_id"],
        period=row["period"],
        first_day=row["first_day"].isoformat(),
        last_day=row["last_day"].isoformat(),
    )
    return Record(
        payout, row["recorded_at"], row["fingerprint"], json.loads(row["versions"]), row["manifest"]
    )


def find_record(records: list[Record], payout_id: str) -> Record:
    """The record of this id. Raises `SettingsError`, with the ids there are."""
    known = [record.payout.payout_id for record in records]
    if payout_id not in known:
        there = ", ".join(known) or "none yet"
        raise SettingsError(
            f"there is no payout {payout_id!r}{did_you_mean(payout_id, known)} (recorded: {there})"
        )
    return records[known.index(payout_id)]
