"""How a run begins and ends: alone, verified networks, a row in ``runs``, and what the one before left tidied up."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gmv_qdrant import folder
from gmv_qdrant.errors import FingerprintMismatch, SettingsError
from gmv_qdrant.images.census import Census
from gmv_qdrant.images.sources import Sources, open_sources
from gmv_qdrant.ledger.database import Ledger
from gmv_qdrant.ledger.publish import Published
from gmv_qdrant.ledger.runs import Run, recorded
from gmv_qdrant.models.verified import same_precision
from gmv_qdrant.pipeline.assembly import Assembly
from gmv_qdrant.pipeline.recovery import recover
from gmv_qdrant.pipeline.spaces import open_spaces, verified_models
from gmv_qdrant.pipeline.streams import NullProgress, Progress
from gmv_qdrant.settings import Settings


@dataclass(frozen=True)
class Runs:
    """Opens a workspace for work. progress: is told how far a run is."""

    root: Path
    settings: Settings
    ledger: Ledger
    published: Published
    progress: Progress = field(default_factory=NullProgress)

    @contextmanager
    def open(
        self, verb: str, request: Mapping[str, object] | None = None, *, networks: bool = True
    ) -> Iterator[Assembly]:
        """What a run works with.

        networks: load and verify them first; a run that only moves vectors doesn't need them, but it, too, is refused
        where the evidence was made in another precision. request: kept in ``runs``.
        Raises `LedgerLocked` while another run is at work, `FingerprintMismatch` where evidence would be mixed.
        """
        self._refuse_imported(verb)
        with self.alone():
            models = None
            if networks:
                models = verified_models(
                    self.settings, self.ledger, quality=verb != "ingest", progress=self.progress
                )
            elif kept := self.ledger.meta().get("fingerprint"):
                same_precision(self.settings, json.loads(kept))
            with (
                recorded(self.ledger, verb, self.settings.evidence(), dict(request or {})) as run,
                self.assembled(run) as parts,
            ):
                if models is not None:
                    parts.models = models
                recover(run, self.ledger, parts.spaces, self.root)
                yield parts

    @contextmanager
    def over(
        self,
        verb: str,
        paths: list[str],
        *,
        only: frozenset[str] | None = None,
        owner: str | None = None,
        then_update: bool = False,
        **request: object,
    ) -> Iterator[tuple[Assembly, Sources, int | None]]:
        """A run over the images of these paths, and how many inputs there are, if that can be known.

        What metadata lacks is told before a network is loaded, what came of all inputs at the end.
        only: URIs to look at. owner: of images whose metadata names none.
        """
        allow = list(self.settings.allow)
        sources = open_sources(paths, owner=owner, only=only, allowed=allow)
        plan = sources.plan()
        for warning in plan.warnings:
            self.progress.note(warning)
        with self.open(verb, {"paths": paths, "owner": owner, "allow": allow, **request}) as parts:
            yield parts, sources, plan.total
            parts.run.resolve(sources.census.whole)
            _tell(sources.census, parts, plan.warnings)
            if then_update:
                parts.update()

    @contextmanager
    def assembled(self, run: Run, **opening: bool) -> Iterator[Assembly]:
        """What a run works with, by someone who is `alone` already."""
        with open_spaces(self.root, self.settings, self.ledger, tell=self.progress.note, **opening) as spaces:
            yield Assembly(self.root, self.settings, self.ledger, spaces, run, self.progress)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """The only writer of this workspace. Raises `LedgerLocked` when there is another."""
        with folder.alone(self.root):
            folder.restore_settings(self.root, self.settings)
            with self.ledger.held():
                yield

    @property
    def begun(self) -> bool:
        """Whether anything was ever taken in."""
        return "recall_shape" in self.published.meta()

    def refuse_adopted(self, way_out: str) -> None:
        if "adopted" in self.published.meta():
            raise SettingsError(f"the collection {self.settings.collection!r} was adopted: {way_out}")

    def _refuse_imported(self, verb: str) -> None:
        """Imported evidence is of another kind than ours, and they can't be added up."""
        if kept := self.published.meta().get("imported"):
            raise FingerprintMismatch(
                f"this workspace has scores imported from {json.loads(kept)['method']!r}, and {verb} would mix them "
                "with evidence of another kind: use the workspace that they were imported from, or another one"
            )


def _tell(census: Census, parts: Assembly, told: Collection[str]) -> None:
    """What came of all inputs, and what a person should know of them and wasn't told before."""
    failed = parts.run.counts["quarantined"] - sum(census.unusable.values())
    owners = census.owners_sentence() if parts.run.verb == "ingest" else ""
    for sentence in (census.sentence(failed), owners, *census.notes):
        if sentence and sentence not in told:
            parts.progress.note(sentence)
