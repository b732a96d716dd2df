"""Workspace: a folder, and one method for each verb of the command line, in the order of a user's day.

Tables come back as DuckDB relations (``.df()``, ``.pl()``, ``.arrow()``, ``.fetchall()``) that hold no lock on
the ledger.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, Unpack

import duckdb

from gmv_qdrant import folder, notebook
from gmv_qdrant.errors import LedgerLocked, SettingsError
from gmv_qdrant.keywords import ValueOptions, checked_keywords
from gmv_qdrant.ledger import queries
from gmv_qdrant.ledger.database import PUBLISHED, Ledger, Readable
from gmv_qdrant.ledger.names import Image
from gmv_qdrant.ledger.publish import Published
from gmv_qdrant.ledger.queries import ValueFunction
from gmv_qdrant.ledger.selection import Selection
from gmv_qdrant.settings import IMMUTABLE_SETTINGS, SettingOptions, Settings, with_preset

if TYPE_CHECKING:
    from gmv_qdrant.accounting.money import Money
    from gmv_qdrant.accounting.payout import PayoutRows
    from gmv_qdrant.accounting.verify import Discrepancy
    from gmv_qdrant.pipeline.check import Finding
    from gmv_qdrant.pipeline.lookup import Lookup
    from gmv_qdrant.pipeline.runs import Runs
    from gmv_qdrant.pipeline.streams import Progress
    from gmv_qdrant.report.figures import Figure
    from gmv_qdrant.web.server import Served

Relation = duckdb.DuckDBPyRelation


class Explained(NamedTuple):
    """What `Workspace.explain` found: the image that was meant, its matches, and their credit by owner."""

    image: Image
    matches: Relation
    owners: Relation


@checked_keywords
class Workspace:
    """An existing workspace; `Workspace.init` makes one.

    settings: settings of this process that beat the environment and ``gmv.toml`` (``device="cpu"``, ...).
    Raises `SettingsError` when there is no workspace at ``path``, and `FingerprintMismatch` when a setting that
    the evidence depends on isn't the one that the workspace was made with.
    """

    def __init__(
        self,
        path: str | Path = ".",
        *,
        progress: "Progress | None" = None,
        **settings: Unpack[SettingOptions],
    ) -> None:
        self.path = Path(path).absolute()
        folder.require_workspace(self.path)
        self.ledger = Ledger(self.path / folder.LEDGER)
        self.published = Published(self.path / PUBLISHED)
        known: Readable = self.published if self.published.path.is_file() else self.ledger
        self.settings = folder.settings_of(self.path, known, {**settings})
        self._progress = progress
        notebook.register()

    def __repr__(self) -> str:
        held = queries.counts(self.published)
        training, generated = held["training"], held["generated"]
        return (
            f"<Workspace {self.path}: {training['images']:,} training images of {training['owners']:,} owners, "
            f"{generated['images']:,} generated images in {generated['batches']:,} batches>"
        )

    def _repr_html_(self) -> str:
        return notebook.workspace(str(self.path), queries.counts(self.published))

    # -- a workspace ---------------------------------------------------------------------------------

    @classmethod
    def init(cls, path: str | Path, *, preset: str | None = None, **settings: Unpack[SettingOptions]) -> Self:
        """Make a workspace: settings, an empty ledger. Making it again with the same settings changes nothing.

        preset: ``paper`` or ``light``, the models that settings don't name (`PRESETS`).
        """
        from gmv_qdrant.models.catalogue import preflight

        root, given = Path(path).absolute(), with_preset(preset, settings)
        if not folder.is_workspace(root):
            wanted = Settings.resolve(root, **given)
            preflight(wanted)
            wanted = folder.canonical(wanted)
            if wanted.filter:  # ids come from contents, so tenants would overwrite each other's points
                raise SettingsError(
                    f"filter = {wanted.filter} is for collections that others fill ('gmv-qdrant adopt'): the "
                    "collection of a workspace is its own, so give each tenant a workspace and a collection"
                )
            if wanted.distance_vector is not None:
                raise SettingsError(
                    f"distance_vector = {wanted.distance_vector!r} is for collections that others fill ('gmv-qdrant "
                    "adopt'): here the distance is computed from the images"
                )
            folder.make(root, wanted)
        made = cls(root, **given)
        folder.restore_settings(root, made.settings)
        return made

    def status(self) -> dict[str, Any]:
        """What the workspace holds, the proof of quantization, what is stale, the latest runs.

        Without a server it opens no network.
        """
        from gmv_qdrant.vectors.status import store_status

        return {
            "workspace": {"path": str(self.path), **self.settings.evidence()},
            **queries.counts(self.published),
            "store": store_status(self.path, self.settings, self.published.meta()),
            "search": self._search(),
            "runs": queries.last_runs(self.published),
        }

    def recall(self) -> float | None:
        """Share of the exact K nearest that the search finds, as measured on generated images; None before any."""
        found = self._search().get("recall")
        return None if found is None else float(found)

    def stale(self) -> int:
        """Generated images whose evidence is from another training set than today's; `update` repairs them."""
        return queries.stale(self.published)

    # -- the main job --------------------------------------------------------------------------------

    def ingest(
        self,
        paths: str | Path | Sequence[str | Path] = (),
        *,
        owner: str | None = None,
        readmit: bool = False,
        reassign: bool = False,
        retry_quarantined: bool = False,
        update: bool = True,
    ) -> dict[str, Any]:
        """Take in training images from folders, files, Parquet, tars or ``hf://`` names; returns counts and timings.

        owner: for images whose metadata names none. readmit: also images that were withdrawn.
        reassign: believe sources that name another owner, licence or label than before; otherwise they stay as they
        were, and the summary's ``changes`` say how many would change, from what to what.
        retry_quarantined: in place of paths, the inputs in quarantine from earlier ingests, as they were asked for.
        update: bring all evidence to the new training set at the end, so that credits are exact.
        Raises `SourceError` for a path that is missing or holds no image.
        """
        from gmv_qdrant.pipeline.intake import take_in

        return take_in(
            self._runs,
            paths,
            owner=owner,
            readmit=readmit,
            reassign=reassign,
            retry=retry_quarantined,
            update=update,
        )

    def value(
        self,
        paths: str | Path | Sequence[str | Path] = (),
        *,
        batch: str | None = None,
        control: bool = False,
        retry_quarantined: bool = False,
    ) -> dict[str, Any]:
        """Find the evidence of generated images; images valued before under the same ``batch`` are replaced.

        batch: ``default``, or ``control`` for a control set. control: images that are known to resemble no training
        image (held out, or of another collection); they earn no credit, and say how near strangers come.
        retry_quarantined: in place of paths, the inputs in quarantine from earlier runs, each under its batch.
        """
        from gmv_qdrant.pipeline.intake import find_all_evidence

        return find_all_evidence(self._runs, paths, batch=batch, control=control, retry=retry_quarantined)

    def update(self) -> dict[str, Any]:
        """Bring all evidence to today's training set, touching only the generated images that it can have changed."""
        if not self._runs.begun:
            return {"verb": "update", "stale": 0, "seconds": {"total": 0.0}}
        with self._runs.open("update", networks=False) as parts:
            parts.update()
        return parts.run.summary()

    def withdraw(
        self,
        *,
        owner: str | None = None,
        uri: str | None = None,
        ids: Sequence[str] = (),
        attribute: str | None = None,
        dry_run: bool = False,
        update: bool = True,
    ) -> dict[str, Any]:
        """Take training images out: by owner, URI pattern, names or attribute, exactly one, as `Selection` has them.

        An image that other sources bring as well stays, and its credit is split among those.
        dry_run: only count. update: bring all evidence to the new training set at the end, so that credits are exact.
        Raises `SettingsError` when nothing, or not exactly one selection, is given.
        """
        from gmv_qdrant.pipeline.withdraw import preview, withdraw

        selection = Selection(owner, uri, tuple(ids), attribute)
        self._runs.refuse_adopted("nothing of it is removed from here: delete the points where they belong")
        found = preview(self.published, selection)
        if dry_run:
            return {"verb": "withdraw", "dry_run": True, **found.counts}
        with self._runs.open("withdraw", networks=False) as parts:
            withdraw(
                parts.run,
                self.ledger,
                parts.spaces,
                self.path,
                selection,
                self.settings.candidates,
                parts.spare,
            )
            if update:
                parts.update()
        return parts.run.summary()

    def erase(self) -> dict[str, Any]:
        """Take what was withdrawn off the disk, too: rewrite the files that keep bytes of it, and search them all.

        Raises `StoreError` where a URI or a vector of a withdrawn image is still in a file of the workspace. A server
        cleans its own files in its own time; copies, exports and reports made before are not looked at.
        """
        from gmv_qdrant.pipeline.erase import erase

        self._runs.refuse_adopted("nothing of it is erased from here: delete the points where they belong")
        if not self._runs.begun:
            return {"verb": "erase", "files_searched": 0, "seconds": {"total": 0.0}}
        with self._runs.open("erase", networks=False) as parts:
            erase(parts.run, self.ledger, parts.spaces, self.path, parts.progress)
        return parts.run.summary()

    def check(
        self, *, read_images: bool = False, repair: bool = False, take_over: bool = False
    ) -> "list[Finding]":
        """Whether ledger, store and matrices agree and the sums hold; each thing wrong is a `Finding`.

        read_images: also the networks, each vector of the store, and whether every source is what it was.
        repair: repair what can be repaired; each finding says what was done about it.
        take_over: this copy of a workspace, whose original is gone, owns the server's collection from now on.
        """
        from gmv_qdrant.ledger.runs import Run, recorded
        from gmv_qdrant.pipeline.check import check
        from gmv_qdrant.pipeline.repair import repair as mend

        if not self._runs.begun:
            return []
        with self._runs.alone():
            run = Run("check", self.ledger.training_version)
            with self._runs.assembled(run, remake=repair, take_over=take_over) as parts:
                findings = check(parts, read_images=read_images)
                if not repair or not findings:
                    return findings
                with recorded(self.ledger, "check", self.settings.evidence(), {"repair": True}) as parts.run:
                    return mend(parts, findings, read_images=read_images)

    # -- questions -----------------------------------------------------------------------------------

    def credits(
        self,
        by: str = "owner",
        *,
        top: int | None = None,
        rule: str = "shares",
        interval: float | None = None,
        select: Selection | None = None,
        **function: Unpack[ValueOptions],
    ) -> Relation:
        """Credit by ``image`` (zeros included), ``owner``, ``label``, ``licence``, ``batch`` or any attribute.

        Largest first.

        rule: ``shares`` (the paper), ``owner-shapley`` (groups) or ``knn-shapley`` (images).
        interval: percent; adds ``low`` and ``high``, a bootstrap over the generated images.
        select: only these training images, of credits by image.
        """
        value_function = self._function(function)
        question = queries.credits(self.published, by, value_function, top, rule, interval, select)
        return self.published.relation(*question)

    def value_function(self, **function: Unpack[ValueOptions]) -> ValueFunction:
        """How evidence becomes values by these options; its ``question`` says what such credit answers."""
        return self._function(function)

    def effective_contributors(self, **function: Unpack[ValueOptions]) -> float | None:
        """Mean effective number of contributors of a generated image; None when none was valued."""
        return queries.effective_contributors(self.published, self._function(function))

    def explain(
        self,
        image: str,
        *,
        training: bool = False,
        select: Selection | None = None,
        **function: Unpack[ValueOptions],
    ) -> Explained:
        """A generated image's contributors, or a training image's beneficiaries, and the totals by owner.

        image: its URI, path, file name, id or SHA-256; or the path of an image that was never valued, which goes
        through the networks for this answer, and nothing of it is kept.
        batch: in which a generated image was valued that was valued in
        several; training: the training image, where a generated one goes by the same name.
        select: only these training images among the contributors.
        """
        from gmv_qdrant.ledger.explain import explain
        from gmv_qdrant.ledger.names import is_known

        value_function, kind = self._function(function), "training" if training else None
        if is_known(self.published, image, kind) or not Path(image).is_file():
            found = explain(self.published, image, value_function, training=training, selection=select)
        else:
            found = self._lookup.explain(Path(image).absolute(), value_function, kind, select)
        return Explained(found.image, self._relation(found.matches), self._relation(found.owners))

    def picture(
        self, image: str, target: str | Path, *, training: bool = False, **function: Unpack[ValueOptions]
    ) -> Path:
        """Write a contact sheet: the image beside its contributors or beneficiaries, as `explain` lists them."""
        from gmv_qdrant.report.sheet import write_sheet

        value_function = self._function(function)
        return write_sheet(self.path, self.published, image, value_function, Path(target), training=training)

    def sql(self, query: str, *, attach: Mapping[str, str | Path] | None = None) -> Relation:
        """Any SELECT over the ledger and its macros; it can't write, and can't touch files or the network.

        attach: CSV, JSON or Parquet files that it can name as tables.
        """
        files = {name: Path(file).absolute() for name, file in (attach or {}).items()}
        return self._relation(self.published.restricted(attach=files).query(query))

    def export(
        self, directory: str | Path, *, file_format: str = "parquet", **function: Unpack[ValueOptions]
    ) -> list[Path]:
        """Write values, contributions, sources and generated images as Parquet or CSV; returns the files."""
        return queries.export(self.published, Path(directory), self._function(function), file_format)

    def report(
        self, target: str | Path, *, title: str | None = None, **function: Unpack[ValueOptions]
    ) -> Path:
        """Write one self-contained HTML file: credits, intervals, plots, best and worst matches, provenance."""
        from gmv_qdrant.report.page import write_report

        value_function = self._function(function)
        return write_report(
            self.path, self.published, self.settings.evidence(), value_function, Path(target), title
        )

    def plot_values(self, **function: Unpack[ValueOptions]) -> "Figure":
        """How the values of training images are distributed, as the report draws it."""
        return self._figure(function, "Distribution of values")

    def plot_credit_curve(self, **function: Unpack[ValueOptions]) -> "Figure":
        """The share of credit that the most valued training images hold, as the report draws it."""
        return self._figure(function, "Credit curve")

    def plot_contributors(self, **function: Unpack[ValueOptions]) -> "Figure":
        """Among how many training images the credit of a generated one is spread, as the report draws it."""
        return self._figure(function, "Effective number of contributors")

    def plot_distances(self, **function: Unpack[ValueOptions]) -> "Figure":
        """Distances of the nearest training images, against quality where it was measured, as the report draws them."""
        return self._figure(function, "Quality against distance", "Distance of the nearest training image")

    def serve(
        self,
        host: str = "127.0.0.1",
        port: int = 8377,
        *,
        root_path: str = "",
        allowed_hosts: Sequence[str] = (),
        tell: Callable[[str], None] = lambda address: None,
    ) -> "Served | None":
        """Serve the pages until interrupted: to this computer only, or, with another host, to who has the token.

        root_path, allowed_hosts: what a proxy in front puts before every path, and the names that it goes by.
        tell: gets the address to open, with the token in it. In a notebook it returns at once; ``.stop()`` ends it.
        """
        from gmv_qdrant.web.app import application
        from gmv_qdrant.web.server import serve

        app = application(
            self.path, self.published, self.settings, host, root_path=root_path, allowed_hosts=allowed_hosts
        )
        return serve(app, host, port, tell=tell)

    def copies(
        self,
        *,
        batch: str | None = None,
        level: float | None = None,
        training: bool = False,
        sample: int | None = None,
        top: int | None = None,
    ) -> Relation:
        """Generated images that are nearly a training image, with its owners, the most unusual first.

        level: only those that come nearer than strangers (a control set: ``value(control=True)``), at this share of
        false discoveries. training: instead, training images of different owners that are nearly the same, as claims
        to look at: a run that searches the neighbours of ``sample`` training images, or of all.
        """
        from gmv_qdrant.evaluation.copies import claims, copies, find_neighbours

        if not training:
            return self._relation(copies(self.published, batch, level, top))
        with self._runs.open("copies", {"sample": sample}, networks=False) as parts:
            find_neighbours(parts, sample)
        return self._relation(claims(self.published, top))

    # -- is it true? ---------------------------------------------------------------------------------

    def calibrate(
        self,
        *,
        name: str = "default",
        probes: int = 500,
        seed: int = 0,
        k: int = 30,
        null_distance: bool = False,
    ) -> dict[str, Any]:
        """Fit a value function on probes, training images transformed, whose parents are known; keep it as ``name``.

        It answers "of whom is this nearly a copy?". k: for the figures only. null_distance: also fit how much
        credit is nobody's; without it all credit goes to training images, also of generated images that resemble none.
        Returns the fit and its figures on the probes, before (the paper's formula) and after.
        """
        from gmv_qdrant.evaluation.calibrate import calibrate

        with self._runs.open("calibrate") as parts:
            return calibrate(parts, name=name, probes=probes, seed=seed, k=k, null_distance=null_distance)

    def advise(
        self,
        paths: str | Path | Sequence[str | Path] = (),
        *,
        encoders: Sequence[str] = (),
        distances: Sequence[str] = (),
        sample: int = 1000,
        probes: int = 300,
        seed: int = 0,
    ) -> Relation:
        """Which encoder and distance, with and without a thumbnail, find the parents of probes best, the best first.

        paths: images to try them on; none is this workspace's own training images. encoders, distances: names to try
        beside this workspace's. It reads and computes only; a workspace keeps the vectors that it was made with.
        """
        import pyarrow as pa

        from gmv_qdrant.evaluation.advise import advise
        from gmv_qdrant.images.sources import open_sources
        from gmv_qdrant.models.devices import Runtime
        from gmv_qdrant.pipeline.intake import whole_names

        if not paths:
            found = self.published.rows("SELECT DISTINCT uri FROM sources ORDER BY uri")
            step = max(1, len(found) // sample)
            paths = [str(row["uri"]) for row in found[::step][:sample]]
        settings, progress = self.settings, self._runs.progress
        rows = advise(
            open_sources(whole_names(paths), allowed=list(settings.allow)),
            encoders=[settings.encoder, *encoders],
            distances=[settings.distance, *distances],
            views=settings.views,
            sample=sample,
            probes=probes,
            candidates=settings.candidates,
            seed=seed,
            runtime=Runtime.of(settings, getattr(progress, "download", None)),
            progress=progress,
        )
        return self._relation(pa.Table.from_pylist(rows))

    def evaluate(
        self, criterion: str, *, options: dict[str, Any] | None = None, **function: Unpack[ValueOptions]
    ) -> dict[str, Any]:
        """Figures of a criterion of the paper, or of known parents, with standard errors.

        criterion: a name of `gmv_qdrant.evaluation.evaluate.CRITERIA`, whose functions say what ``options`` they take.
        """
        from gmv_qdrant.evaluation.evaluate import evaluate

        return evaluate(self.published, criterion, self._function(function), **(options or {}))

    def import_scores(
        self,
        file: str | Path,
        into: str | Path,
        *,
        method: str = "external",
        batch: str = "default",
        score_type: str = "share",
        top_k: int = 1000,
    ) -> dict[str, Any]:
        """Make a workspace with another method's scores of this one's images, to credit and evaluate beside ours.

        file: Parquet with generated, training and score. score_type: ``share``, ``similarity`` or ``distance``, as
        `gmv_qdrant.evaluation.importing` says.
        """
        from gmv_qdrant.evaluation.importing import import_scores

        return import_scores(
            self.published,
            self.settings,
            Path(file),
            Path(into).absolute(),
            method=method,
            batch=batch,
            score_type=score_type,
            top_k=top_k,
        )

    # -- money ---------------------------------------------------------------------------------------

    def payout(
        self,
        budget: "Money",
        by: str = "owner",
        *,
        record: str | None = None,
        batch: str | Sequence[str] | None = None,
        currency: str | None = None,
        minimum: "Money | None" = None,
        exclude: Mapping[str | None, str] | Collection[str | None] = (),
        hold: bool = False,
        release: bool = False,
        allow_overlap: bool = False,
        rule: str | None = None,
        k: int | None = None,
        temperature: float | None = None,
        calibration: str | None = None,
        quality_weighted: bool | None = None,
    ) -> "PayoutRows":
        """Share a budget by credit, to the smallest unit: rows ``{by: name, "amount": "12.34", "paid": ..., ...}``.

        The amounts add up to the budget exactly. record: the period (``2026-Q1``) under which it is kept; None is a
        preview. minimum: what is less is carried forward. exclude: names that get nothing, best with the reason; None
        is those without a name. hold: keep back what several names claim; release: give back what was held.
        rule and all after it: the value function; what isn't given is as ``[value]`` of ``gmv.toml`` says.
        """
        from gmv_qdrant.accounting import accounts
        from gmv_qdrant.accounting.money import Currency
        from gmv_qdrant.accounting.payout import PayoutRows, Terms

        standing = self.settings.payout
        money = Currency(currency or standing.currency)
        name, function = accounts.standing_function(
            self.published,
            self.settings.value,
            rule=rule,
            k=k,
            temperature=temperature,
            calibration=calibration,
            quality_weighted=quality_weighted,
        )
        terms = Terms(
            by=by,
            budget=money.parse(budget),
            currency=money,
            rule=name,
            function=function,
            batches=[batch] if isinstance(batch, str) else batch,
            exclusions=dict(exclude) if isinstance(exclude, Mapping) else dict.fromkeys(exclude, ""),
            minimum=money.parse(standing.minimum if minimum is None else minimum, "minimum"),
            hold=hold,
            release=release,
        )
        if record is None:
            return PayoutRows(*accounts.preview(self.path, self.published, terms))
        with folder.alone(self.path), self.ledger.held():
            return PayoutRows(
                *accounts.record(self.path, self.ledger, terms, record, allow_overlap=allow_overlap)
            )

    def payouts(self) -> list[dict[str, Any]]:
        """The recorded payouts, the oldest first."""
        from gmv_qdrant.accounting.records import read_records

        return [record.summary() for record in read_records(self.published)]

    def payout_record(self, payout: str) -> "PayoutRows":
        """The lines of a recorded payout."""
        from gmv_qdrant.accounting.payout import PayoutRows
        from gmv_qdrant.accounting.records import find_record, read_records

        return PayoutRows(find_record(read_records(self.published), payout).payout)

    def export_payout(self, payout: str, directory: str | Path) -> list[Path]:
        """Write what a stranger needs to recompute a recorded payout, with a manifest; returns the files."""
        from gmv_qdrant.accounting.accounts import export

        return export(self.path, self.published, payout, Path(directory))

    def statement(self, owner: str, target: str | Path, *, payout: str | None = None) -> Path:
        """Write what a name earned by a payout (None: the latest), and by which pictures, as ``.html`` or ``.csv``."""
        from gmv_qdrant.report.statement import Statements

        return Statements.of(self.path, self.published, payout).write(owner, Path(target))

    def statements(self, directory: str | Path, *, payout: str | None = None) -> list[Path]:
        """Write the statements of all names of a payout, as HTML and CSV, and a list of them; returns the files."""
        from gmv_qdrant.report.statement import Statements

        return Statements.of(self.path, self.published, payout).write_all(Path(directory))

    def explain_owner(
        self, owner: str, *, by: str = "owner", payout: str | None = None, top: int | None = None
    ) -> Relation:
        """Why a name gets what it gets: the images that earn it, with the generated image each earns most by.

        payout: a recorded one, by whose evidence it is explained; None is today's evidence.
        """
        from gmv_qdrant.accounting.accounts import explain_name

        rows = explain_name(
            self.path, self.published, self.settings, owner, by=by, payout_id=payout, most=top
        )
        return self._relation(rows)

    def verify(self, payout: str | None = None) -> "list[Discrepancy]":
        """Whether recorded payouts, or this one, are what was recorded and follow from their evidence."""
        from gmv_qdrant.accounting.verify import verify, verify_published

        found = verify(self.path, self.published, payout)
        if payout is None:
            with (
                contextlib.suppress(LedgerLocked, SettingsError),
                folder.alone(self.path),
            ):  # else a run is at work
                found += verify_published(self.ledger, self.published)
        return found

    # -- the Qdrant that is there --------------------------------------------------------------------

    @classmethod
    def adopt(
        cls,
        path: str | Path = ".",
        *,
        fields: Mapping[str, Any] | None = None,
        where: Mapping[str, str] | None = None,
        sample: int = 16,
        trust_encoder: bool = False,
        create_index: bool = False,
        enable_quantization: bool = False,
        progress: "Progress | None" = None,
        **settings: Unpack[SettingOptions],
    ) -> dict[str, Any]:
        """Use a server's collection, which others fill, as the training set; returns counts and timings.

        Makes the workspace when there is none at ``path``; an adopted one is brought to what the collection is now.
        settings: as for `init`; ``vector_name`` None is the only vector, ``filter`` what of the collection is the
        training set. where: payload fields and the values that they must have, beside the filter.
        fields: payload fields by what they say (`gmv_qdrant.deployments.payload_fields.Fields`).
        sample: images that the encoder is proven with; trust_encoder: none, with the distance ``none``.
        Two flags are all that is ever written to the collection.
        Raises `CollectionMismatch` when the collection was made with another encoder; nothing is left behind then.
        """
        from gmv_qdrant.deployments.adopt import AdoptOptions, adopt, adopted_fields
        from gmv_qdrant.deployments.part import describe_foreign, same_part, with_where
        from gmv_qdrant.models.catalogue import preflight

        root = Path(path).absolute()
        given: dict[str, Any] = {**settings}
        fresh = not folder.is_workspace(root)
        if fresh:
            folder.refuse_foreign(root)
            wanted = Settings.resolve(root, **given)
            preflight(wanted)
            wanted = folder.canonical(wanted)
            spec = describe_foreign(wanted, given.get("vector_name"), where or {}, create_index=create_index)
            mapping = adopted_fields({}, fields or {})
            folder.make(root, wanted, adopted={"dim": spec.dim, "fields": dataclasses.asdict(mapping)})
            given = {name: value for name, value in given.items() if name not in IMMUTABLE_SETTINGS}
        elif where or given.get("filter"):
            kept_filter = json.loads(Published(root / PUBLISHED).meta()["settings"])["filter"]
            if same_part(kept_filter, given.get("filter") or {}, where or {}):
                given["filter"] = kept_filter  # spelt as the collection spells it
            else:
                given["filter"] = with_where(given.get("filter") or {}, where or {}, {}, [])  # refused
        workspace = cls(root, progress=progress, **given)
        kept = workspace.ledger.meta()
        if "adopted" not in kept:
            raise SettingsError(
                f"the workspace {root} has a collection of its own: adopt into another folder"
            )
        mapping = adopted_fields(json.loads(kept["adopted"])["fields"], fields or {})
        options = AdoptOptions(sample, trust_encoder, enable_quantization)
        try:
            allow = list(workspace.settings.allow)
            request = {"fields": dataclasses.asdict(mapping), "allow": allow}
            with workspace._runs.open("adopt", request) as parts:
                adopt(parts, mapping, options)
        except BaseException:
            if fresh and not workspace._believed():
                folder.unmake(root)
            raise
        return parts.run.summary()

    def copy(
        self, into: str | Path, *, qdrant_url: str | None = None, collection: str | None = None
    ) -> dict[str, Any]:
        """Make the workspace ``into`` with all that this one holds; returns counts. This one stays as it is.

        qdrant_url: the server that gets its collection; None: it is embedded. collection: its name there.
        Stopped at any moment, it goes on when it is called again. Raises `StoreError` when the two don't agree.
        """
        from gmv_qdrant.deployments.copying import copy_workspace
        from gmv_qdrant.pipeline.spaces import open_spaces

        meta = self.ledger.meta()
        if "adopted" in meta:
            raise SettingsError(
                f"the collection {self.settings.collection!r} was adopted and stays where it is: to have it elsewhere, "
                "ingest its images into another workspace"
            )
        checked = Settings.resolve(
            qdrant_url=qdrant_url or "", collection=collection or self.settings.collection
        )
        there = self.settings.replaced(qdrant_url=checked.qdrant_url, collection=checked.collection)
        progress = self._runs.progress
        with self._runs.alone():
            if meta.get("settled") == "false":
                raise SettingsError(
                    f"the last run of {self.path} didn't come to its end: finish it first, with 'gmv-qdrant update'"
                )
            with open_spaces(self.path, self.settings, self.ledger, tell=progress.note) as spaces:
                counts = copy_workspace(
                    self.path, self.settings, self.ledger, spaces, Path(into).absolute(), there, progress
                )
        return {"verb": "copy", **counts}

    # -- how a verb is carried out -------------------------------------------------------------------

    @cached_property
    def _runs(self) -> "Runs":
        from gmv_qdrant.pipeline.runs import Runs
        from gmv_qdrant.pipeline.streams import NullProgress

        return Runs(self.path, self.settings, self.ledger, self.published, self._progress or NullProgress())

    @cached_property
    def _lookup(self) -> "Lookup":
        from gmv_qdrant.pipeline.lookup import Lookup

        return Lookup(self.path, self.settings, self.published)

    @cached_property
    def _memory(self) -> duckdb.DuckDBPyConnection:
        """Where relations of tables live."""
        con = duckdb.connect(":memory:")
        con.execute("SET GLOBAL TimeZone = 'UTC'")
        return con

    def _figure(self, options: ValueOptions, *titles: str) -> "Figure":
        from gmv_qdrant.report.figures import figure

        return figure(self.published, self._function(options), *titles)

    def _function(self, options: ValueOptions) -> ValueFunction:
        return queries.value_function(self.published, **options)

    def _relation(self, table: Any) -> Relation:
        return self._memory.cursor().from_arrow(table)  # each may be read, or left half read, by itself

    def _search(self) -> dict[str, Any]:
        return dict(json.loads(self.published.meta().get("search", "{}")))

    def _believed(self) -> bool:
        """Whether the encoder of an adopted collection has been proven."""
        return "cosine" in json.loads(self.published.meta()["adopted"])
