"""`ingest` and `value` as they are asked for: paths in, a summary out; and again for what is in quarantine."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gmv_qdrant.errors import SettingsError, SourceError
from gmv_qdrant.ledger.queries import quarantined_requests
from gmv_qdrant.pipeline.ingest import ingest
from gmv_qdrant.pipeline.runs import Runs
from gmv_qdrant.pipeline.training_vectors import missing_rows
from gmv_qdrant.pipeline.value import require_training_images, value

Paths = str | Path | Sequence[str | Path]
Summary = dict[str, Any]
Only = frozenset[str] | None


def take_in(
    runs: Runs, paths: Paths, *, owner: str | None, readmit: bool, reassign: bool, retry: bool, update: bool
) -> Summary:
    """Take in training images; `Workspace.ingest` says what each option means."""
    runs.refuse_adopted("add images where it is filled, and then run 'gmv-qdrant adopt' again")

    def run_once(names: list[str], owner: str | None, only: Only) -> Summary:
        with runs.over("ingest", names, only=only, owner=owner, then_update=update) as (
            parts,
            sources,
            total,
        ):
            parts.progress.phase("ingest", total)
            ingest(
                sources,
                parts.run,
                parts.ledger,
                parts.spaces,
                parts.training_engine(),
                parts.progress,
                readmit=readmit,
                reassign=reassign,
            )
            parts.run.counts["without_owner"] = sources.census.without_owner
        return parts.run.summary() | sources.census.summary(parts.run.counts["quarantined"])

    if not retry:
        return run_once(whole_names(paths), owner, None)
    _refuse(paths or owner, "owner and paths are those of the ingests that failed")
    return _again(runs, "ingest", lambda asked, only: run_once(asked["paths"], asked["owner"], only))


def find_all_evidence(runs: Runs, paths: Paths, *, batch: str | None, control: bool, retry: bool) -> Summary:
    """Find the evidence of generated images; `Workspace.value` says what each option means."""

    def run_once(names: list[str], batch: str, control: bool, only: Only) -> Summary:
        require_training_images(runs.published)
        with runs.over("value", names, only=only, batch=batch, control=control) as (parts, sources, total):
            progress, candidates = parts.progress, runs.settings.candidates
            if total and (most := missing_rows(parts.ledger, parts.spaces, total, candidates)):
                progress.note(f"up to {most:,} re-rank vectors are computed from their images, each once")
            progress.phase("value", total)
            value(
                sources,
                batch,
                parts.run,
                parts.ledger,
                parts.spaces,
                parts.generated_engine(),
                parts.matcher(),
                progress,
                control=control,
            )
        summary = sources.census.summary(parts.run.counts["quarantined"])
        del summary["without_owner"]  # nobody owns generated images
        return parts.run.summary() | summary

    if not retry:
        usual = "control" if control else "default"
        return run_once(whole_names(paths), batch or usual, control, None)
    _refuse(paths, "paths are those of the runs that failed")
    return _again(
        runs,
        "value",
        lambda asked, only: run_once(asked["paths"], asked["batch"], asked.get("control", False), only),
    )


def whole_names(paths: Paths) -> list[str]:
    """Paths that mean the same from any folder."""
    several = [paths] if isinstance(paths, str | Path) else paths
    return [name if "://" in name else os.path.abspath(name) for name in map(str, several)]


def _again(runs: Runs, verb: str, again: Callable[[Summary, frozenset[str]], Summary]) -> Summary:
    """Ask again for what is in quarantine, request by request; the counts are those of all together."""
    summary: Summary = {"verb": verb, "seconds": {}}
    for request, uris in quarantined_requests(runs.published, verb):
        try:
            part = again(request, uris)
        except SourceError:  # the whole path is gone by now: its inputs stay in quarantine
            part = {"quarantined": len(uris)}
        for name, count in part.pop("seconds", {}).items():
            summary["seconds"][name] = round(summary["seconds"].get(name, 0.0) + count, 3)
        for name, found in part.items():
            if isinstance(found, float):  # a figure: the worst of all
                worst = max if name == "conservation_error" else min
                summary[name] = worst(found, summary.get(name, found))
            elif isinstance(found, int):
                summary[name] = summary.get(name, 0) + found
    return summary


def _refuse(given: object, reason: str) -> None:
    if given:
        raise SettingsError(f"only what is in quarantine is tried again: {reason}, so give none")
