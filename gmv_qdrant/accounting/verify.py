"""Whether every recorded payout still is what was recorded, follows from its evidence, and whether that has changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from gmv_qdrant.accounting.bundle import DOCUMENT, read_evidence, read_manifest
from gmv_qdrant.accounting.evidence import Evidence
from gmv_qdrant.accounting.payout import Line, Payout, compute
from gmv_qdrant.accounting.records import Record, read_records, rows_of
from gmv_qdrant.accounting.seal import seal, seal_fixed
from gmv_qdrant.errors import GmvError, LedgerError
from gmv_qdrant.files import PAYOUTS
from gmv_qdrant.ledger.database import Readable
from gmv_qdrant.ledger.queries import LOSS, calibrations

UNREADABLE = (duckdb.Error, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, GmvError)
"""What rows that somebody has changed may make of reading them."""

_LEAVE_EVIDENCE = ("calibrate", "copy", "evaluate", "import-scores")
"""Runs that change nothing of what a payout follows from."""


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """Something to know about a payout: ``wrong`` where nothing that this tool does explains it."""

    payout: str
    what: str
    wrong: bool = True

    def as_dict(self) -> dict[str, Any]:
        return {"payout": self.payout, "what": self.what, "wrong": self.wrong}

    def __str__(self) -> str:
        return f"payout {self.payout}: {self.what}" if self.payout else self.what


def verify(root: Path, source: Readable, only: str | None = None) -> list[Discrepancy]:
    """All that is wrong, or has changed, about the recorded payouts, or about one of them.

    For each: its rows against its fingerprint and its kept document; kept evidence against its manifest; amounts
    computed anew from it; today's evidence against it. And, where no run was made since the last payout was recorded,
    every row of every table against what it was then.
    """
    try:
        records = read_records(source)
    except UNREADABLE as error:
        return [Discrepancy("", f"the recorded payouts can't be read, so they were changed by hand: {error}")]
    found: list[Discrepancy] = []
    known: dict[str, Record] = {}
    for record in records:
        if only is None or only == record.payout.payout_id:
            try:
                found += _verify_one(root, source, record, known)
            except UNREADABLE as error:
                found.append(Discrepancy(record.payout.payout_id, f"its rows were changed by hand: {error}"))
        known[record.fingerprint] = record
    return found if only else [*found, *_strays(root, source, records), *_seals(root, source, records)]


def _verify_one(
    root: Path, source: Readable, record: Record, known: dict[str, Record]
) -> Iterator[Discrepancy]:
    name = record.payout.payout_id

    def wrong(what: str) -> Discrepancy:
        return Discrepancy(name, what)

    if record.payout.fingerprint != record.fingerprint:
        yield wrong("its rows in the ledger were changed by hand: they have another fingerprint")
    yield from map(wrong, rows_of(source, record))
    previous = known.get(record.payout.previous or "")
    if record.payout.previous and previous is None:
        yield wrong("the payout whose balances it brings forward isn't there, or was changed")
    folder = root / PAYOUTS / Path(name).name
    try:
        manifest = read_manifest(folder, record.manifest)
        for fact, said in (("recorded_at", record.recorded_at.isoformat()), ("versions", record.versions)):
            if manifest[fact] != said:
                yield wrong(f"{fact} is {said} in the ledger, and {manifest[fact]} in its manifest")
        document = (folder / DOCUMENT).read_bytes()
        if document != record.payout.document():
            yield wrong(_first_difference(json.loads(document), json.loads(record.payout.document())))
        kept = read_evidence(folder)
    except (LedgerError, KeyError, ValueError) as error:
        yield wrong(str(error))
        return
    yield from map(wrong, _recomputed(kept, record.payout, previous.payout if previous else None))
    yield from _today(source, record, manifest)


def _recomputed(evidence: Evidence, payout: Payout, previous: Payout | None) -> Iterator[str]:
    """What differs when the payout is computed anew from its kept evidence."""
    try:
        again = compute(
            evidence,
            payout.terms,
            training_version=payout.training_version,
            previous=previous,
        )
    except GmvError as error:
        yield f"it can't be computed anew: {error}"
        return
    for table, digest in payout.evidence.items():
        if again.evidence.get(table) != digest:
            yield f"the kept table {table} isn't the one that was recorded"
    for one, other in zip(payout.lines, again.lines, strict=False):
        if one != other:
            yield _differing_line(one, other)
            return
    if len(payout.lines) != len(again.lines):
        yield f"{len(payout.lines)} lines were recorded, and its evidence gives {len(again.lines)}"
    if payout.holds != again.holds:
        yield "what it keeps back isn't what its evidence and the payout before give"


def _differing_line(recorded: Line, computed: Line) -> str:
    name = next(n for n in Line.__slots__ if getattr(recorded, n) != getattr(computed, n))
    return (
        f"{name} of {recorded.name or recorded.kind!r} is {getattr(recorded, name)} in the record, and "
        f"{getattr(computed, name)} by its evidence"
    )


def _first_difference(kept: Any, said: Any, at: str = "") -> str:
    """Where two documents differ first, in a sentence."""
    if isinstance(kept, dict) and isinstance(said, dict):
        for name in sorted(kept.keys() | said.keys()):
            if kept.get(name) != said.get(name):
                return _first_difference(kept.get(name), said.get(name), f"{at}.{name}".lstrip("."))
    if isinstance(kept, list) and isinstance(said, list):
        for number, (one, other) in enumerate(zip(kept, said, strict=False)):
            if one != other:
                return _first_difference(one, other, f"{at}[{number}]")
    return f"{at} is {said!r:.80} in the ledger, and {kept!r:.80} in its kept document"


def _today(source: Readable, record: Record, manifest: dict[str, Any]) -> Iterator[Discrepancy]:
    """Whether the ledger still has the evidence, and whether a run explains where it hasn't."""
    payout = record.payout
    try:
        now = Evidence.of(source, payout.terms.by, payout.batches).fingerprints()
    except GmvError as error:
        now = {"generated": str(error)}
    now.pop("copies", None)  # follows from vectors, which have checksums of their own
    changed = [name for name in now if now[name] != payout.evidence.get(name)]
    runs = [verb for verb in _runs_since(source, manifest) if verb not in _LEAVE_EVIDENCE]
    if changed and runs:
        yield Discrepancy(
            payout.payout_id,
            f"its evidence has changed since in the ledger ({', '.join(changed)}), where {', '.join(runs)} "
            "came after it; the payout stands by the evidence that is kept",
            wrong=False,
        )
    elif changed:
        yield Discrepancy(
            payout.payout_id,
            f"its evidence was changed in the ledger ({', '.join(changed)}), and no run since explains it: by hand",
        )
    yield from _calibration(source, payout)


def _calibration(source: Readable, payout: Payout) -> Iterator[Discrepancy]:
    """Whether the ledger still has the calibration that a payout went by."""
    function = payout.terms.function
    if function.calibration and function.calibration != LOSS:
        row = calibrations(source).get(function.calibration)
        names = ("temperature", "null_distance", "relative")
        if row is None or any(row[n] != getattr(function, n) for n in names):
            yield Discrepancy(payout.payout_id, f"the calibration {function.calibration} isn't what it was")


def _runs_since(source: Readable, manifest: dict[str, Any]) -> list[str]:
    """Verbs of the runs that weren't there when the payout was recorded."""
    rows = source.query(
        "SELECT DISTINCT verb FROM runs WHERE NOT list_contains($known::VARCHAR[], run_id) ORDER BY verb",
        {"known": manifest["runs"]},
    )
    return [str(verb) for verb in rows["verb"].to_pylist()]


def verify_published(ledger: Readable, published: Readable) -> list[Discrepancy]:
    """Whether the ledger and the file that answers questions say the same, row for row. Only while nobody writes."""
    try:
        one, other = seal(ledger, own=True), seal(published, own=True)
    except GmvError as error:
        return [Discrepancy("", str(error))]
    return [
        Discrepancy(
            "", f"the table {table} isn't the same in {ledger.path.name} and in {published.path.name}"
        )
        for table in sorted(one.keys() | other.keys())
        if one.get(table) != other.get(table)
    ]


def _strays(root: Path, source: Readable, records: list[Record]) -> Iterator[Discrepancy]:
    """Lines and folders of no payout."""
    known = [record.payout.payout_id for record in records]
    rows = source.query(
        "SELECT DISTINCT payout_id FROM payout_lines WHERE NOT list_contains($known::VARCHAR[], payout_id)",
        {"known": known},
    )
    for name in rows["payout_id"].to_pylist():
        yield Discrepancy(str(name), "there are lines of it, and no payout of that name was recorded")
    folder = root / PAYOUTS
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name not in known and not path.name.startswith("."):
            yield Discrepancy(
                path.name,
                "its evidence is kept, and the ledger has no such payout: either recording it was stopped, and "
                "it can be recorded again, or its rows were taken out",
            )


def _seals(root: Path, source: Readable, records: list[Record]) -> Iterator[Discrepancy]:
    """What was changed since the last payout: any row where no run was made, else those that runs leave alone."""
    if not records:
        return
    last = records[-1]
    try:
        then = read_manifest(root / PAYOUTS / Path(last.payout.payout_id).name, last.manifest)
        since = _runs_since(source, then)
    except (LedgerError, KeyError):  # said already
        return
    at = f"since {last.payout.payout_id} was recorded"
    if not since:
        now = seal(source)
        for table in sorted(then["ledger"].keys() | now.keys()):
            if then["ledger"].get(table) != now.get(table):
                yield Discrepancy("", f"the table {table} was changed {at}, and no run was made: by hand")
    elif "erase" not in since:
        fixed = seal_fixed(source)
        for table, sums in then["fixed"].items():
            if any(fixed[table].get(key) != said for key, said in sums.items()):
                yield Discrepancy("", f"rows of {table} were changed {at}, which no run does: by hand")
