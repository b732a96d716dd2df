"""Workspace: a folder, and one method for each verb of the command line.

Tables come back as DuckDB relations (``.df()``, ``.pl()``, ``.arrow()``, ``.fetchall()``) that hold no lock on
the ledger.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
from filelock import FileLock, Timeout

from gmv_qdrant.errors import FingerprintMismatch, LedgerLocked, SettingsError, SourceError, StoreError
from gmv_qdrant.ledger import answers
from gmv_qdrant.ledger.answers import ValueFunction
from gmv_qdrant.ledger.ledger import Ledger
from gmv_qdrant.ledger.runs import Run, recorded
from gmv_qdrant.payout import Money, payout
from gmv_qdrant.settings import EVIDENCE, FILE, Settings

if TYPE_CHECKING:
    from gmv_qdrant.images.records import Record, Unusable
    from gmv_qdrant.pipeline.checking import Finding
    from gmv_qdrant.pipeline.context import Context
    from gmv_qdrant.pipeline.streams import Progress

Relation = duckdb.DuckDBPyRelation


class Workspace:
    """An existing workspace; `Workspace.init` makes one.

    overrides: settings of this process that beat the environment and ``gmv.toml`` (``device="cpu"``, ...).
    Raises `SettingsError` when there is no workspace at ``path``, and `FingerprintMismatch` when a setting that
    the evidence depends on isn't the one that the workspace was made with.
    """

    def __init__(self, path: str | Path = ".", *, progress: Progress | None = None, **overrides: Any) -> None:
        self.path = Path(path).absolute()
        if not (self.path / FILE).is_file():
            raise SettingsError(f"{self.path} is not a workspace: make one with 'gmv-qdrant init {path}'")
        self.ledger = Ledger.open(self.path / "ledger.duckdb")
        if self.ledger.meta().get("switching") == "true":
            from gmv_qdrant.pipeline.moving import finish_switch

            finish_switch(self.path, self.ledger)
        self.settings = self._settings(overrides)
        self._progress = progress
        self._memory = duckdb.connect(":memory:")

    @classmethod
    def init(cls, path: str | Path, **settings: Any) -> Workspace:
        """Make a workspace: settings, an empty ledger. Making it again with the same settings changes nothing."""
        root = Path(path).absolute()
        if not (root / FILE).exists():
            wanted = Settings.resolve(**settings)
            if wanted.tenant:  # ids come from contents, so tenants would overwrite each other's points
                raise SettingsError(
                    f"tenant = {wanted.tenant} is for collections that others fill ('gmv-qdrant adopt'): the "
                    "collection of a workspace is its own, so give each tenant a workspace and a collection"
                )
            cls._make(root, wanted)
            settings = {name: value for name, value in settings.items() if name not in EVIDENCE}
        return cls(root, **settings)

    @staticmethod
    def _make(root: Path, wanted: Settings, **facts: Any) -> None:
        """facts: of the ledger's ``meta``, from its first moment."""
        from gmv_qdrant.encoders import canonical_distance_name, canonical_encoder_name
        from gmv_qdrant.quality import canonical_quality_name

        wanted.encoder = canonical_encoder_name(wanted.encoder)
        wanted.distance = canonical_distance_name(wanted.distance)
        wanted.quality = canonical_quality_name(wanted.quality)
        if wanted.encoder_weights:
            weights = Path(wanted.encoder_weights).absolute()
            if not weights.is_file():
                raise SettingsError(f"encoder_weights = {str(weights)!r} is not a file")
            wanted.encoder_weights = str(weights)
        try:
            root.mkdir(parents=True, exist_ok=True)
            (root / "ledger.duckdb").unlink(
                missing_ok=True
            )  # of an init that was killed: gmv.toml comes last
            ledger = Ledger.create(root / "ledger.duckdb")
            with ledger.write() as con:
                ledger.set_meta(con, settings=wanted.evidence(), **facts)
            wanted.write(root)
        except OSError as error:
            raise SettingsError(f"a workspace can't be made at {root}: {error.strerror}") from error

    @classmethod
    def adopt(
        cls,
        path: str | Path = ".",
        *,
        fields: Mapping[str, Any] | None = None,
        sample: int = 16,
        enable_quantization: bool = False,
        write_rerank_vectors: bool = False,
        progress: Progress | None = None,
        **settings: Any,
    ) -> dict[str, Any]:
        """Use a server's collection, which others fill, as the training set; returns counts and timings.

        Makes the workspace when there is none at ``path``; an adopted one is brought to what the collection is now.
        settings: as for `init`; ``vector_name`` None is the only vector, ``tenant`` payload fields that every point
        must have. fields: payload fields by what they say (`gmv_qdrant.pipeline.payload_fields.Fields`).
        sample: images that the encoder is proven with. The two flags are all that is ever written to the collection.
        Raises `CollectionMismatch` when the collection was made with another encoder; nothing is left behind then.
        """
        from gmv_qdrant.pipeline.adopting import Wishes, adopt, adopted_fields, describe_foreign

        root = Path(path).absolute()
        fresh = not (root / FILE).is_file()
        if fresh:
            wanted = Settings.resolve(**settings)
            spec = describe_foreign(wanted, settings.get("vector_name"))
            mapping = adopted_fields({}, fields or {})
            cls._make(root, wanted, adopted={"dim": spec.dim, "fields": dataclasses.asdict(mapping)})
            settings = {name: value for name, value in settings.items() if name not in EVIDENCE}
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
        wishes = Wishes(sample, enable_quantization, write_rerank_vectors)
        try:
            with workspace._run("adopt", fields=dataclasses.asdict(mapping)) as (context, run):
                adopt(context, run, mapping, wishes)
        except BaseException:
            if fresh and not workspace._believed():
                shutil.rmtree(root / "features", ignore_errors=True)
                for name in (FILE, "ledger.duckdb", "ledger.duckdb.wal", ".writing.lock"):
                    (root / name).unlink(missing_ok=True)
            raise
        return run.summary()

    def _believed(self) -> bool:
        """Whether the encoder of an adopted collection has been proven."""
        return "cosine" in json.loads(self.ledger.meta()["adopted"])

    def _settings(self, overrides: dict[str, Any]) -> Settings:
        kept: dict[str, Any] = json.loads(self.ledger.meta()["settings"])
        given = {name: value for name, value in overrides.items() if value is not None}
        if kept["qdrant_url"] is None and "qdrant_url" not in given:
            given["qdrant_url"] = ""  # an embedded workspace stays so, whatever QDRANT_URL says
        settings = Settings.resolve(self.path, **given)
        settings.qdrant_url = settings.qdrant_url or None
        if kept["qdrant_url"] and settings.qdrant_url:
            kept["qdrant_url"] = settings.qdrant_url  # the same deployment may move to another address
        mine = settings.evidence()
        if mine != kept:  # names may be spelt shorter than the workspace keeps them
            mine = _canonical(settings)
        for name, value in kept.items():
            if mine[name] != value:
                raise FingerprintMismatch(
                    f"the workspace {self.path} was made with {name} = {value!r}, not {mine[name]!r}: evidence of "
                    "two kinds can't be added up, so make another workspace with 'gmv-qdrant init'"
                )
        return settings

    # -- runs ----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _run(self, verb: str, *, networks: bool = True, **request: Any) -> Iterator[tuple[Context, Run]]:
        """`_alone`, with a row in ``runs``, and what the run before left behind tidied up.

        networks: load and check them first; a run that only moves vectors doesn't need them.
        """
        from gmv_qdrant.evaluation.importing import refuse_if_imported
        from gmv_qdrant.pipeline.recovery import recover

        refuse_if_imported(self.ledger, verb)
        with self._alone() as context:
            if networks:
                context.claim()
            with recorded(self.ledger, verb, self.settings.evidence(), request) as run:
                recover(context, run)
                yield context, run

    @contextlib.contextmanager
    def _alone(self) -> Iterator[Context]:
        """The only writer of this workspace. Raises `LedgerLocked` when there is another."""
        from gmv_qdrant.pipeline.context import Context
        from gmv_qdrant.pipeline.streams import Silent

        lock = FileLock(self.path / ".writing.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise LedgerLocked(
                f"another process is working on the workspace {self.path}: wait for it, or stop it; "
                "reading (credits, sql, status, export) goes on meanwhile"
            ) from None
        except OSError as error:
            raise SettingsError(f"the workspace {self.path} can't be written to: {error.strerror}") from error
        context = Context(self.path, self.settings, self.ledger, self._progress or Silent())
        try:
            yield context
        finally:
            try:
                context.close()
            finally:
                lock.release()

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
        from gmv_qdrant.pipeline.ingest import ingest

        if "adopted" in self.ledger.meta():
            raise SettingsError(
                f"the collection {self.settings.collection!r} was adopted: add images where it is filled, and then run "
                "'gmv-qdrant adopt' again"
            )

        def run_once(names: list[str], owner: str | None, only: frozenset[str] | None) -> dict[str, Any]:
            total, records = self._records(names, owner, only)
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
        from gmv_qdrant.pipeline.rerank_vectors import missing_rerank_vectors
        from gmv_qdrant.pipeline.valuation import value

        def run_once(names: list[str], batch: str, only: frozenset[str] | None) -> dict[str, Any]:
            total, records = self._records(names, None, only)
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

    def _records(
        self, names: list[str], owner: str | None, only: frozenset[str] | None
    ) -> tuple[int | None, Iterator[Record | Unusable]]:
        """How many images are to come, when that is known, and the stream of them."""
        from gmv_qdrant.images.sources import count_images, open_sources

        records = open_sources(names, owner=owner)
        if only is None:
            return count_images(names), records
        return len(only), (record for record in records if record.uri in only)

    def _retry(
        self, verb: str, again: Callable[[dict[str, Any], frozenset[str]], dict[str, Any]]
    ) -> dict[str, Any]:
        """Ask again for what is in quarantine, request by request; the counts are those of all together."""
        summary: dict[str, Any] = {"verb": verb, "seconds": {}}
        for request, uris in answers.quarantined_requests(self.ledger, verb):
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
        from gmv_qdrant.pipeline.maintenance import update

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
        from gmv_qdrant.pipeline.withdrawal import Selection, preview_withdrawal, withdraw

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
        from gmv_qdrant.pipeline.moving import move

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
        no_contributor: bool = False,
    ) -> dict[str, Any]:
        """Fit the temperature on probes, training images transformed, whose parents are known; keep it as ``name``.

        k: for the figures only. no_contributor: also fit a mass of credit that goes to nobody.
        Returns the fit, with share of credit on the true parents, rank and effective contributors before and after.
        """
        from gmv_qdrant.pipeline.calibrating import calibrate

        with self._run("calibrate") as (context, run):
            return calibrate(
                context, run, name=name, probes=probes, seed=seed, k=k, no_contributor=no_contributor
            )

    def check(self, *, read_images: bool = False, repair: bool = False) -> list[Finding]:
        """Whether ledger, store and feature files agree and the sums hold; each thing wrong is a `Finding`.

        read_images: also whether every source can be read and is what it was.
        repair: mend what can be mended; each finding says what was done about it.
        """
        from gmv_qdrant.pipeline.checking import check
        from gmv_qdrant.pipeline.repairing import repair_all

        with self._alone() as context:
            context.remake_store = repair
            findings = check(context, read_images=read_images)
            return repair_all(context, findings) if repair and findings else findings

    # -- questions -----------------------------------------------------------------------------------

    def _function(self, fields: dict[str, Any]) -> ValueFunction:
        return answers.value_function(self.ledger, **fields)

    def _relation(self, table: pa.Table) -> Relation:
        return self._memory.from_arrow(table)

    def credits(
        self,
        by: str = "owner",
        *,
        top: int | None = None,
        rule: str = "shares",
        interval: float | None = None,
        **function: Any,
    ) -> Relation:
        """Credit by ``image`` (zeros included), ``owner``, ``label``, ``licence`` or any attribute, largest first.

        rule: ``shares`` (the paper), ``owner-shapley`` (groups) or ``knn-shapley`` (images).
        interval: percent; adds ``low`` and ``high``, a bootstrap over the generated images.
        function: fields of `ValueFunction` (``k``, ``temperature``, ``calibrated``, ``batch``, ``no_contributor``), or
        ``calibration``, a name that `calibrate` kept.
        """
        return self._relation(answers.credits(self.ledger, by, self._function(function), top, rule, interval))

    def payout(
        self,
        budget: Money,
        by: str = "owner",
        *,
        floor: Money = 0,
        exclude: Collection[str | None] = (),
        rule: str = "shares",
        **function: Any,
    ) -> list[dict[str, Any]]:
        """Share a budget by credit, to the cent: rows ``{by: name, "amount": "12.34", "value": ..., "share": ...}``.

        The amounts add up to the budget exactly. floor: who would get less is paid nothing, and the others share it.
        exclude: names that get nothing and aren't listed; None is those without a name.
        rule, function: as in `credits`.
        """
        if by == "image":
            raise SettingsError(
                "a payout goes to owners or other groups, not to images: see 'credits --by image'"
            )
        table = answers.credits(self.ledger, by, self._function(function), None, rule)
        found = zip(table.column(0).to_pylist(), table["value"].to_pylist(), strict=True)
        return payout(by, list(found), budget, floor=floor, exclude=exclude)

    def effective_contributors(self, **function: Any) -> float | None:
        """Mean effective number of contributors of a generated image; None when none was valued."""
        return answers.effective_contributors(self.ledger, self._function(function))

    def stale(self) -> int:
        """Generated images whose evidence is from another training set than today's; `update` mends them."""
        return answers.stale(self.ledger)

    def status(self) -> dict[str, Any]:
        """What the workspace holds, the proof of quantization, what is stale, the latest runs.

        Without a server it opens no network.
        """
        return {
            "workspace": {"path": str(self.path), **self.settings.evidence()},
            **answers.counts(self.ledger),
            "store": self._store_status(),
            "search": json.loads(self.ledger.meta().get("search", "{}")),
            "runs": answers.last_runs(self.ledger),
        }

    def _store_status(self) -> dict[str, Any]:
        """Read off the disk, so that it also answers while a run writes."""
        from gmv_qdrant.store.base import CollectionSpec
        from gmv_qdrant.store.segments import read_status

        shape = self.ledger.meta().get("recall_shape")
        if shape is None:
            return {"state": "nothing was ingested yet"}
        kept = self.settings
        if kept.qdrant_url is not None:
            return self._server_status()
        spec = CollectionSpec(
            kept.collection,
            json.loads(shape)["dim"],
            vector_name=kept.vector_name,
            quantization=kept.quantization,
        )
        return dataclasses.asdict(read_status(self.path / "qdrant", spec))

    def _server_status(self) -> dict[str, Any]:
        """As the server says it; where it doesn't answer, the sentence that says why."""
        from gmv_qdrant.store import open_existing

        try:
            with open_existing(self.settings, self.settings.vector_name) as store:
                found = dataclasses.asdict(store.status())
                return {
                    **found,
                    "points_without_vector": store.lacking(),
                    "adopted": "adopted" in self.ledger.meta(),
                }
        except StoreError as error:
            return {"engine": "server", "state": "unavailable", "error": str(error)}

    def explain(self, image: str, **function: Any) -> tuple[str, Relation]:
        """A generated image's contributors, or a training image's beneficiaries."""
        kind, table = answers.explain(self.ledger, image, self._function(function))
        return kind, self._relation(table)

    def sql(self, query: str) -> Relation:
        """Any SELECT over the ledger and its macros; it can't write, and can't touch files or the network."""
        return self._relation(answers.sql(self.ledger, query))

    def export(self, directory: str | Path, *, file_format: str = "parquet", **function: Any) -> list[Path]:
        """Write values, contributions, sources and generated images as Parquet or CSV; returns the files."""
        return answers.export(self.ledger, Path(directory), self._function(function), file_format)

    # -- evidence that it is true --------------------------------------------------------------------

    def evaluate(
        self, criterion: str, *, options: dict[str, Any] | None = None, **function: Any
    ) -> dict[str, Any]:
        """Figures of a criterion of the paper, or of known parents, with standard errors.

        criterion: a name of `gmv_qdrant.evaluation.evaluate.CRITERIA`, whose functions say what ``options`` they take.
        function: as for `credits`.
        """
        from gmv_qdrant.evaluation.evaluate import evaluate

        return evaluate(self.ledger, criterion, self._function(function), **(options or {}))

    def import_scores(
        self,
        file: str | Path,
        into: str | Path,
        *,
        method: str = "external",
        batch: str = "default",
        scores_are: str = "share",
        most: int = 1000,
    ) -> dict[str, Any]:
        """Make a workspace with another method's scores of this one's images, to credit and evaluate beside ours.

        file: Parquet with generated, training and score. scores_are: ``share``, ``similarity`` or ``distance``, as
        `gmv_qdrant.evaluation.importing` says.
        """
        from gmv_qdrant.evaluation.importing import import_scores

        return import_scores(
            self.ledger, self.settings, Path(file), Path(into).absolute(),
            method=method, batch=batch, scores_are=scores_are, most=most,
        )  # fmt: skip

    # -- pages ---------------------------------------------------------------------------------------

    def report(self, target: str | Path, *, title: str | None = None, **function: Any) -> Path:
        """Write one self-contained HTML file: credits, intervals, plots, best and worst matches, provenance."""
        from gmv_qdrant.report.page import write_report

        value_function = self._function(function)
        return write_report(
            self.path, self.ledger, self.settings.evidence(), value_function, Path(target), title
        )

    def picture(self, image: str, target: str | Path, **function: Any) -> Path:
        """Write a contact sheet: the image beside its contributors or beneficiaries, as `explain` lists them."""
        from gmv_qdrant.report.sheet import write_sheet

        return write_sheet(self.path, self.ledger, image, self._function(function), Path(target))

    def serve(
        self,
        host: str = "127.0.0.1",
        port: int = 8377,
        *,
        sql_seconds: float = 10.0,
        tell: Callable[[str], None] = lambda address: None,
    ) -> None:
        """Serve the pages until interrupted: to this computer only, or, with another host, to who has the token.

        tell: gets the address to open, with the token in it.
        """
        from gmv_qdrant.report.server import serve

        serve(self.path, self.ledger, self.settings, host, port, sql_seconds=sql_seconds, tell=tell)


def _words(tenant: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value).lower() for name, value in tenant.items()}


def _whole_names(paths: Sequence[str | Path]) -> list[str]:
    """Paths that mean the same from any folder."""
    return [name if "://" in name else os.path.abspath(name) for name in map(str, paths)]


def _refuse(given: object, reason: str) -> None:
    if given:
        raise SettingsError(f"only what is in quarantine is tried again: {reason}, so give none")


def _canonical(settings: Settings) -> dict[str, Any]:
    """The evidence settings with names spelt out, comparable with those that `init` kept."""
    from gmv_qdrant.encoders import canonical_distance_name, canonical_encoder_name
    from gmv_qdrant.quality import canonical_quality_name

    weights = settings.encoder_weights
    return {
        **settings.evidence(),
        "encoder": canonical_encoder_name(settings.encoder),
        "distance": canonical_distance_name(settings.distance),
        "quality": canonical_quality_name(settings.quality),
        "encoder_weights": str(Path(weights).absolute()) if weights else None,
    }
