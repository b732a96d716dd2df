"""The verbs that write: each is a run, with a row in ``runs``, by the only writer of the workspace."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmv_qdrant.errors import SettingsError, SourceError
from gmv_qdrant.ledger import queries
from gmv_qdrant.ledger.database import Ledger
from gmv_qdrant.settings import FILE, IMMUTABLE_SETTINGS, Settings
from gmv_qdrant.workspace.opening import Opened

if TYPE_CHECKING:
    from gmv_qdrant.pipeline.check import Finding
    from gmv_qdrant.pipeline.streams import Progress


class Writing(Opened):
    """Verbs that change the workspace: see `gmv_qdrant.Workspace`."""

    def ingest(
        self,
        paths: Sequence[str | Path] = (),
        *,
        owner: str | None = None,
        readmit: bool = False,
        retry_quarantined: bool = False,
    ) -> dict[str, Any]:
        """Take in training images from folders, files, Parquet, tars or ``hf://`` names; returns counts and timings.

        owner: for images whose metadata names none. readmit: also images that were withdrawn.
        retry_quarantined: in place of paths, the inputs in quarantine from earlier ingests, as they were asked for.
        Raises `SourceError` for a path that is missing or holds no image.
        """
        from gmv_qdrant.images.sources import open_sources
        from gmv_qdrant.pipeline.ingest import ingest

        if "adopted" in self.ledger.meta():
            raise SettingsError(
                f"the collection {self.settings.collection!r} was adopted: add images where it is filled, and then run "
                "'gmv-qdrant adopt' again"
            )

        def run_once(names: list[str], owner: str | None, only: frozenset[str] | None) -> dict[str, Any]:
            records = open_sources(names, owner=owner, only=only)
            total = records.count()
            with self._run("ingest", paths=names, owner=owner) as (context, run):
                context.progress.phase("ingest", total)
                ingest(context, run, records, readmit=readmit)
            return run.summary()

        if not retry_quarantined:
            return run_once(_whole_names(paths), owner, None)
        _refuse(paths or owner, "owner and paths are those of the ingests that failed")
        return self._retry("ingest", lambda request, only: run_once(request["paths"], request["owner"], only))

    def value(
        self,
        paths: Sequence[str | Path] = (),
        *,
        batch: str = "default",
        retry_quarantined: bool = False,
    ) -> dict[str, Any]:
        """Find the evidence of generated images; images valued before under the same ``batch`` are replaced.

        retry_quarantined: in place of paths, the inputs in quarantine from earlier runs, each under its batch.
        """
        from gmv_qdrant.images.sources import open_sources
        from gmv_qdrant.pipeline.reranking import missing_rerank_vectors
        from gmv_qdrant.pipeline.value import value

        def run_once(names: list[str], batch: str, only: frozenset[str] | None) -> dict[str, Any]:
            records = open_sources(names, only=only)
            total = records.count()
            with self._run("value", paths=names, batch=batch) as (context, run):
                if total and (most := missing_rerank_vectors(context, total)):
                    context.progress.note(
                        f"up to {most:,} re-rank vectors are computed from their images, each once"
                    )
                context.progress.phase("value", total)
                value(context, run, records, batch)
            return run.summary()

        if not retry_quarantined:
            return run_once(_whole_names(paths), batch, None)
        _refuse(paths, "paths are those of the runs that failed")
        return self._retry("value", lambda request, only: run_once(request["paths"], request["batch"], only))

    def _retry(
        self, verb: str, again: Callable[[dict[str, Any], frozenset[str]], dict[str, Any]]
    ) -> dict[str, Any]:
        """Ask again for what is in quarantine, request by request; the counts are those of all together."""
        summary: dict[str, Any] = {"verb": verb, "seconds": {}}
        for request, uris in queries.quarantined_requests(self.ledger, verb):
            try:
                part = again(request, uris)
            except SourceError:  # the whole path is gone by now: its inputs stay in quarantine
                part = {"quarantined": len(uris)}
            for name, count in part.pop("seconds", {}).items():
                summary["seconds"][name] = round(summary["seconds"].get(name, 0.0) + count, 3)
            for name, count in part.items():
                if name != "verb":
                    summary[name] = summary.get(name, 0) + count
        return summary

    def update(self) -> dict[str, Any]:
        """Bring all evidence to today's training set, touching only the generated images that it can have changed."""
        from gmv_qdrant.pipeline.update import update

        with self._run("update", networks=False) as (context, run):
            update(context, run)
        return run.summary()

    def withdraw(
        self,
        *,
        owner: str | None = None,
        uri: str | None = None,
        ids: Sequence[str] = (),
        dry_run: bool = False,
    ) -> dict[str, Any]:
        """Take training images out: by owner, by URI pattern (``*``, ``?``), or by ids, hashes or URIs.

        An image that other sources bring as well stays, and its credit is split among those.
        dry_run: only count. Raises `SettingsError` when nothing, or not exactly one selection, is given.
        """
        from gmv_qdrant.pipeline.withdraw import Selection, preview_withdrawal, withdraw

        selection = Selection(owner, uri, tuple(ids))
        if dry_run:
            return {"verb": "withdraw", "dry_run": True, **preview_withdrawal(self.ledger, selection)}
        with self._run("withdraw", networks=False) as (context, run):
            withdraw(context, run, selection)
        return run.summary()

    def migrate(
        self, *, to_server: str | None = None, collection: str | None = None, remove_source: bool = False
    ) -> dict[str, Any]:
        """Move the collection to the server at this URL, or (None) into the embedded store; returns counts.

        Copies what the target lacks, compares both sides, then switches the workspace over. The old copy stays unless
        ``remove_source``. Raises `StoreError` when the sides differ: the workspace then stays where it is.
        """
        from gmv_qdrant.deployments.moving import move

        if "adopted" in self.ledger.meta():
            raise SettingsError(
                f"the collection {self.settings.collection!r} was adopted and stays where it is: to have it elsewhere, "
                "ingest its images into another workspace"
            )
        checked = Settings.resolve(
            qdrant_url=to_server or "", collection=collection or self.settings.collection
        )
        there = self.settings.model_copy(
            update={"qdrant_url": checked.qdrant_url or None, "collection": checked.collection}
        )
        with self._run("migrate", networks=False, to=there.qdrant_url, collection=there.collection) as (
            context,
            run,
        ):
            move(context, run, there, remove_source=remove_source)
        self.settings = there
        return run.summary()

    def calibrate(
        self,
        *,
        name: str = "default",
        probes: int = 500,
        seed: int = 0,
        k: int = 30,
        null_distance: bool = False,
    ) -> dict[str, Any]:
        """Fit the temperature on probes, training images transformed, whose parents are known; keep it as ``name``.

        k: for the figures only. null_distance: also fit a mass of credit that goes to nobody.
        Returns the fit, with share of credit on the true parents, rank and effective contributors before and after.
        """
        from gmv_qdrant.evaluation.calibrate import calibrate

        with self._run("calibrate") as (context, run):
            return calibrate(
                context, run, name=name, probes=probes, seed=seed, k=k, null_distance=null_distance
            )

    def check(self, *, read_images: bool = False, repair: bool = False) -> list[Finding]:
        """Whether ledger, store and feature files agree and the sums hold; each thing wrong is a `Finding`.

        read_images: also whether every source can be read and is what it was.
        repair: repair what can be repaired; each finding says what was done about it.
        """
        from gmv_qdrant.pipeline.check import check
        from gmv_qdrant.pipeline.repair import repair_all

        with self._alone() as context:
            context.remake_store = repair
            findings = check(context, read_images=read_images)
            return repair_all(context, findings) if repair and findings else findings

    @classmethod
    def adopt(
        cls,
        path: str | Path = ".",
        *,
        fields: Mapping[str, Any] | None = None,
        sample: int = 16,
        enable_quantization: bool = False,
        progress: Progress | None = None,
        **settings: Any,
    ) -> dict[str, Any]:
        """Use a server's collection, which others fill, as the training set; returns counts and timings.

        Makes the workspace when there is none at ``path``; an adopted one is brought to what the collection is now.
        settings: as for `init`; ``vector_name`` None is the only vector, ``tenant`` payload fields that every point
        must have. fields: payload fields by what they say (`gmv_qdrant.deployments.payload_fields.Fields`).
        sample: images that the encoder is proven with. The flag is all that is ever written to the collection.
        Raises `CollectionMismatch` when the collection was made with another encoder; nothing is left behind then.
        """
        from gmv_qdrant.deployments.adopt import AdoptOptions, adopt, adopted_fields, describe_foreign
        from gmv_qdrant.shards import clear

        root = Path(path).absolute()
        fresh = not (root / FILE).is_file()
        if fresh:
            wanted = Settings.resolve(**settings)
            spec = describe_foreign(wanted, settings.get("vector_name"))
            mapping = adopted_fields({}, fields or {})
            cls._make(root, wanted, adopted={"dim": spec.dim, "fields": dataclasses.asdict(mapping)})
            settings = {name: value for name, value in settings.items() if name not in IMMUTABLE_SETTINGS}
        elif settings.get("tenant"):  # a value may be a number there and text here
            tenant = json.loads(Ledger.open(root / "ledger.duckdb").meta()["settings"])["tenant"]
            if _words(tenant) == _words(settings["tenant"]):
                settings["tenant"] = tenant
        workspace = cls(root, progress=progress, **settings)
        kept = workspace.ledger.meta()
        if "adopted" not in kept:
            raise SettingsError(
                f"the workspace {root} has a collection of its own: adopt into another folder"
            )
        mapping = adopted_fields(json.loads(kept["adopted"])["fields"], fields or {})
        options = AdoptOptions(sample, enable_quantization)
        try:
            with workspace._run("adopt", fields=dataclasses.asdict(mapping)) as (context, run):
                adopt(context, run, mapping, options)
        except BaseException:
            if fresh and not workspace._believed():
                clear(root / "features")
                for name in (FILE, "ledger.duckdb", "ledger.duckdb.wal", ".writing.lock"):
                    (root / name).unlink(missing_ok=True)
            raise
        return run.summary()

    def _believed(self) -> bool:
        """Whether the encoder of an adopted collection has been proven."""
        return "cosine" in json.loads(self.ledger.meta()["adopted"])


def _words(tenant: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value).lower() for name, value in tenant.items()}


def _whole_names(paths: Sequence[str | Path]) -> list[str]:
    """Paths that mean the same from any folder."""
    return [name if "://" in name else os.path.abspath(name) for name in map(str, paths)]


def _refuse(given: object, reason: str) -> None:
    if given:
        raise SettingsError(f"only what is in quarantine is tried again: {reason}, so give none")
