"""Statements: what a name earned by a recorded payout, how sure that is, and by which pictures; made to be printed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from gmv_qdrant.accounting.bundle import read_evidence, read_manifest
from gmv_qdrant.accounting.evidence import Evidence
from gmv_qdrant.accounting.payout import NAMED, Line
from gmv_qdrant.accounting.records import Record, find_record, read_records
from gmv_qdrant.accounting.sheets import write_sheet
from gmv_qdrant.accounting.why import Earner, Use, earners, explained
from gmv_qdrant.errors import SettingsError
from gmv_qdrant.files import PAYOUTS
from gmv_qdrant.images.records import point_id
from gmv_qdrant.ledger.database import Readable
from gmv_qdrant.ledger.queries import allowed_places
from gmv_qdrant.report.page import Shown, environment, write_whole
from gmv_qdrant.report.thumbnails import LARGE, Thumbnails

EARNERS, USES = 8, 3
"""Training images on a statement, and generated images beside each."""

RULES = {
    "owner-shapley": "For each generated image, the nearest image of each {by} counts, and credit is the Shapley value "
    "of having the best match: what each {by} adds on average, over all orders in which they could arrive. A further "
    "copy of one's own image adds nothing, near-copies of it count as one picture, and a nearer image does add.",
    "shares": "For each generated image, the nearest training images share its credit, the nearer ones more; what "
    "several {by}s bring is shared equally between them.",
}
"""Each rule in a paragraph."""


@dataclass(frozen=True, slots=True)
class Statements:
    """Statements of one recorded payout, from the evidence that is kept of it."""

    root: Path
    record: Record
    records: Sequence[Record]
    evidence: Evidence
    thumbnails: Thumbnails
    withdrawn: frozenset[str]

    @classmethod
    def of(cls, root: Path, source: Readable, payout_id: str | None) -> Statements:
        """Of this payout, or (None) of the latest. Raises `SettingsError` when none is recorded."""
        records = read_records(source)
        if not records:
            raise SettingsError(
                "no payout is recorded, so there is no statement: 'gmv-qdrant payout --budget AMOUNT --record PERIOD'"
            )
        record = find_record(records, payout_id) if payout_id else records[-1]
        folder = root / PAYOUTS / record.payout.payout_id
        read_manifest(folder, record.manifest)
        gone = source.query("SELECT point_id FROM training WHERE version_withdrawn IS NOT NULL")["point_id"]
        thumbnails = Thumbnails(root, allowed_places(source))
        return cls(root, record, records, read_evidence(folder), thumbnails, frozenset(gone.to_pylist()))

    def write(self, name: str | None, target: Path) -> Path:
        """The statement of a name (None: the unnamed), as ``.html`` or ``.csv``, whole or not at all."""
        if target.suffix.lower() == ".csv":
            rows = explained(self.evidence, self.record.payout, name)
            money = self.record.payout.terms.currency.text
            amounts = [money(one.amount) for one in earners(self.evidence, self.record.payout, name, uses=1)]
            return write_sheet(
                rows.append_column("amount", pa.array(amounts, pa.string())).to_pylist(), target
            )
        if target.suffix.lower() not in (".html", ".htm"):
            raise SettingsError(f"a statement is written as .html or .csv, and {target.name!r} is neither")
        html = environment().get_template("statement.html").render(**self._facts(name))
        return write_whole(target, html.encode("utf-8", "backslashreplace"), "the statement")

    def write_all(self, directory: Path) -> list[Path]:
        """A statement and its CSV for every line that money goes to, and ``statements.csv`` that lists them."""
        written, rows = [], []
        for line in self.record.payout.lines:
            if line.kind == NAMED and any((line.units, line.paid, line.balance, line.held)):
                stem = file_name(line.name or "")
                written += [self.write(line.name, directory / f"{stem}{kind}") for kind in (".html", ".csv")]
                rows.append({"name": line.name, "statement": f"{stem}.html", **self._amounts(line)})
        return [*written, write_sheet(rows, directory / "statements.csv")]

    def _amounts(self, line: Line) -> dict[str, str]:
        text = self.record.payout.terms.currency.text
        names = ("amount", "low", "high", "brought", "released", "held", "paid", "balance")
        return {name: text(getattr(line, name)) for name in names}

    def _facts(self, name: str | None) -> dict[str, Any]:
        payout = self.record.payout
        shown = earners(self.evidence, payout, name, images=EARNERS, uses=USES)
        line = payout.line_of(name)
        assert line is not None  # earners has found it
        function = payout.terms.function
        return {
            "name": name or f"images that name no {payout.terms.by}",
            "payout": payout,
            "currency": "" if payout.terms.currency.code == "XXX" else payout.terms.currency.code,
            "amounts": self._amounts(line),
            "line": line,
            "share": line.units / max(sum(one.units for one in payout.lines), 1),
            "budget": payout.terms.currency.text(payout.terms.budget),
            "money": payout.terms.currency.text,
            "rule": RULES[payout.terms.rule].format(by=payout.terms.by),
            "function": function,
            "earners": [
                (one, self._picture(one), [(use, self._picture(use)) for use in one.uses]) for one in shown
            ],
            "effective": self.evidence.effective_names(),
            "claims": [claim for claim in payout.claims if name in claim.names],
            "holds": [hold for hold in payout.holds if hold.name == name],
            "history": self._history(name),
            "recorded_at": f"{self.record.recorded_at:%Y-%m-%d}",
            "fingerprint": self.record.fingerprint,
        }

    def _picture(self, image: Earner | Use) -> Shown:
        if isinstance(image, Earner):
            if image.image in self.withdrawn:
                return Shown("", "Withdrawn since.")
            found: Mapping[str, Any] = {"point_id": image.image, "hash": image.sha256, "uris": image.uris}
        else:
            found = {"point_id": str(point_id(image.sha256)), "hash": image.sha256, "uris": [image.uri]}
        picture = self.thumbnails.get(found, LARGE)
        return Shown(picture.data_uri if picture.jpeg else "", picture.reason)

    def _history(self, name: str | None) -> list[tuple[Record, dict[str, str]]]:
        """The payouts up to this one that have a line of the name, the latest first."""
        terms = self.record.payout.terms
        found = []
        for record in self.records[: list(self.records).index(self.record) + 1]:
            line = record.payout.line_of(name)
            if line and (record.payout.terms.by, record.payout.terms.currency) == (terms.by, terms.currency):
                found.append((record, self._amounts(line)))
        return found[::-1]


def file_name(name: str) -> str:
    """A file name that any system takes, which tells names that print alike apart."""
    safe = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()[:60] or "name"
    return f"{safe}-{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"
