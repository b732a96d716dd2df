"""The accounts of a workspace: previews, recorded payouts, and what a new one has to say about those before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gmv_qdrant.accounting.bundle import copy_bundle, read_evidence, read_manifest, write_bundle
from gmv_qdrant.accounting.evidence import RULES, Evidence
from gmv_qdrant.accounting.payout import Payout, Terms, compute
from gmv_qdrant.accounting.periods import Period
from gmv_qdrant.accounting.records import Record, find_record, read_records, write_record
from gmv_qdrant.accounting.seal import seal, seal_fixed
from gmv_qdrant.accounting.why import explained
from gmv_qdrant.errors import LedgerError, SettingsError, did_you_mean
from gmv_qdrant.files import PAYOUTS
from gmv_qdrant.ledger.database import Ledger, Readable, utc_now
from gmv_qdrant.ledger.queries import ValueFunction, attribute_names, calibrations, value_function
from gmv_qdrant.ledger.runs import versions
from gmv_qdrant.settings import Settings, StandingValue

GROUPS = ("owner", "label", "licence")
"""What can be paid by, beside attributes."""


def standing_function(
    source: Readable,
    standing: StandingValue,
    *,
    rule: str | None = None,
    k: int | None = None,
    temperature: float | None = None,
    calibration: str | None = None,
    quality_weighted: bool | None = None,
) -> tuple[str, ValueFunction]:
    """Rule and value function for money: the workspace's own, but for what is given; None is not given.

    By default owner Shapley over all candidates (shares: over 30), by the latest calibration ``default``, or of the
    only name there is.
    """
    rule = rule or standing.rule
    if rule not in RULES:
        raise SettingsError(f"a payout can't go by the rule {rule!r}: choose one of {', '.join(RULES)}")
    if temperature is None and calibration is None:
        temperature, calibration = standing.temperature, standing.calibration
    if temperature is None and calibration is None:
        calibration = _usual_calibration(source)
    return rule, value_function(
        source,
        calibration=calibration,
        k=k or standing.k or (30 if rule == "shares" else None),
        temperature=temperature,
        quality_weighted=standing.quality if quality_weighted is None else quality_weighted,
    )


def _usual_calibration(source: Readable) -> str | None:
    """``default``, or the only name there is."""
    names = {version.partition("@")[0] for version in calibrations(source)}
    return "default" if "default" in names else names.pop() if len(names) == 1 else None


def said(payout: Payout, evidence: Evidence) -> str:
    """The value function in a sentence, as answers, pages and statements give it."""
    function, rule = payout.terms.function, payout.terms.rule
    k = f"the {function.k} nearest" if function.k else "all candidates"
    if function.calibration:
        temperature = f"temperature {function.temperature:.4g} (calibration {function.calibration})"
    elif function.temperature == 1:
        temperature = "temperature 1 (the paper's; 'gmv-qdrant calibrate' fits one to these images)"
    else:
        temperature = f"temperature {function.temperature:.4g}"
    quality = "weighted by quality" if function.quality_weighted else "not weighted by quality"
    return (
        f"rule {rule} over {k}, {temperature}, {quality}: the credit of a generated image is spread among "
        f'{evidence.effective_names():.2f} {payout.terms.by}s, effectively; it answers "{function.question}"'
    )


def preview(root: Path, source: Readable, terms: Terms) -> tuple[Payout, str]:
    """A payout of today's evidence that nothing keeps, and its value function in words.

    Its notes say what a reader should know first.
    """
    payout, evidence = _compute(root, source, terms, None)
    return payout, said(payout, evidence)


def _compute(root: Path, source: Readable, terms: Terms, period: Period | None) -> tuple[Payout, Evidence]:
    if terms.by == "image":
        raise SettingsError(
            "a payout goes to owners or other groups, not to images: see 'credits --by image'"
        )
    if terms.by not in GROUPS and terms.by not in (known := attribute_names(source)):
        raise SettingsError(
            f"no training image has the attribute {terms.by!r}{did_you_mean(terms.by, [*GROUPS, *known])}: a payout "
            f"goes by {', '.join([*GROUPS, *known])}"
        )
    evidence = Evidence.of(source, terms.by, terms.batches, root)
    records = read_records(source)
    before = [
        r for r in records if (r.payout.terms.by, r.payout.terms.currency) == (terms.by, terms.currency)
    ]
    payout = compute(
        evidence,
        terms,
        training_version=source.training_version,
        previous=before[-1].payout if before else None,
    )
    notes = [*payout.notes, *_stale(source, payout)]
    for record in records:
        notes += _about(record, payout, evidence, root / PAYOUTS, period)
    return replace(payout, notes=tuple(notes)), evidence


def record(root: Path, ledger: Ledger, terms: Terms, days: str, *, allow_overlap: bool) -> tuple[Payout, str]:
    """Keep a payout: its evidence in a folder, its rows in the ledger. The caller is the only writer.

    days: the period, as `Period.parse` takes it.
    Raises `SettingsError` when a recorded payout of overlapping days was paid by some of the same generated images,
    unless ``allow_overlap``, and `LedgerError` when evidence waits for 'update'.
    """
    period = Period.parse(days)
    for name, why in terms.exclusions.items():
        if not why:
            raise SettingsError(
                f"nothing was recorded: say why {name or 'those without a name'!r} is excluded (--reason)"
            )
    payout, evidence = _compute(root, ledger, terms, period)
    if stale := _stale(ledger, payout):
        raise LedgerError(f"nothing was recorded: {stale[0]}")
    records = read_records(ledger)
    if not allow_overlap:
        _refuse_overlap(root / PAYOUTS, records, payout, evidence, period)
    taken = {other.payout.payout_id for other in records}
    names = [period.name, *(f"{period.name}.{n}" for n in range(2, len(taken) + 3))]
    payout = replace(
        payout,
        payout_id=next(name for name in names if name not in taken),
        period=period.name,
        first_day=period.first.isoformat(),
        last_day=period.last.isoformat(),
    )
    at, made_with = utc_now(), versions()
    facts: dict[str, Any] = {
        "recorded_at": at.isoformat(),
        "versions": made_with,
        "ledger": seal(ledger),
        "fixed": seal_fixed(ledger),
    }
    facts["runs"] = ledger.query("SELECT run_id FROM runs ORDER BY run_id")["run_id"].to_pylist()
    manifest = write_bundle(root / PAYOUTS / payout.payout_id, payout.document(), evidence, facts)
    kept = Record(payout, at, payout.fingerprint, made_with, manifest)
    with ledger.write() as con:
        write_record(con, kept)
    return payout, said(payout, evidence)


def _refuse_overlap(
    folder: Path, records: Sequence[Record], payout: Payout, evidence: Evidence, period: Period
) -> None:
    """Raises `SettingsError` for recorded days that overlap the period, paid by some of the same generated images."""
    for other in records:
        if period.overlaps(*other.days) and _common(other, evidence, folder):
            raise SettingsError(
                f"nothing was recorded: {_overlap(other, payout, evidence, folder)}, in days of {period.name}; "
                "name another period or other batches, or add --allow-overlap where both are meant"
            )


def export(root: Path, source: Readable, payout_id: str, target: Path) -> list[Path]:
    """Copy the evidence of a recorded payout; returns the files.

    Raises `LedgerError` when what is kept isn't what was recorded.
    """
    found = find_record(read_records(source), payout_id)
    folder = root / PAYOUTS / payout_id
    read_manifest(folder, found.manifest)
    return copy_bundle(folder, target)


def explain_name(
    root: Path,
    source: Readable,
    settings: Settings,
    name: str,
    *,
    by: str,
    payout_id: str | None,
    most: int | None,
) -> pa.Table:
    """What earned a name its part: by the evidence of a recorded payout, or by today's and the standing function."""
    if payout_id:
        found = find_record(read_records(source), payout_id)
        folder = root / PAYOUTS / payout_id
        read_manifest(folder, found.manifest)
        return explained(read_evidence(folder), found.payout, name, most)
    rule, function = standing_function(source, settings.value)
    payout, evidence = _compute(root, source, Terms(by, 10**6, rule=rule, function=function), None)
    return explained(evidence, payout, name, most)


def _stale(source: Readable, payout: Payout) -> list[str]:
    count = source.query(
        """SELECT count(*) AS n FROM generated
        WHERE version_valued < $version AND NOT control AND list_contains($batches, batch)""",
        {"version": payout.training_version, "batches": list(payout.batches)},
    )["n"][0].as_py()
    return (
        [
            f"{count:,} generated images were valued against another training set than today's: run 'gmv-qdrant update'"
        ]
        if count
        else []
    )


def _about(
    record: Record, payout: Payout, evidence: Evidence, folder: Path, period: Period | None
) -> list[str]:
    """What a payout has to say about one that is recorded."""
    found = []
    if _common(record, evidence, folder):
        found.append(_overlap(record, payout, evidence, folder))
    elif period and period.overlaps(*record.days):
        found.append(
            f"the payout {record.payout.payout_id} has days of {period.name}, too, by other generated images"
        )
    same = (record.payout.terms.by, record.payout.batches) == (payout.terms.by, payout.batches)
    changed = [name for name, digest in payout.evidence.items() if record.payout.evidence.get(name) != digest]
    if same and changed:
        found.append(
            f"the evidence of the payout {record.payout.payout_id} has changed since it was recorded "
            f"({', '.join(changed)}): it stands as it was, and 'gmv-qdrant verify' says more"
        )
    return found


def _overlap(record: Record, payout: Payout, evidence: Evidence, folder: Path) -> str:
    return (
        f"{_common(record, evidence, folder):,} of these {payout.generated_images:,} generated images were paid by "
        f"before, in {record.payout.payout_id}"
    )


def _common(record: Record, evidence: Evidence, folder: Path) -> int:
    """Generated images that both are about."""
    try:
        theirs = pq.read_table(
            folder / record.payout.payout_id / "generated.parquet", columns=["batch", "sha256"]
        )
    except OSError:  # 'verify' says that it is missing; its batches are in the ledger
        batches: Sequence[str] = record.payout.batches
        return len(evidence.rows("FROM generated WHERE list_contains(?, batch)", [list(batches)]))
    sql = "SELECT count(*) AS n FROM generated SEMI JOIN theirs USING (batch, sha256)"
    return int(evidence.query(sql, theirs=theirs)["n"][0].as_py())
