"""Making and opening a workspace: its settings, its ledger, and who may write."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import duckdb
from filelock import FileLock, Timeout

from gmv_qdrant.errors import FingerprintMismatch, LedgerLocked, SettingsError
from gmv_qdrant.ledger import queries
from gmv_qdrant.ledger.database import Ledger
from gmv_qdrant.ledger.queries import ValueFunction
from gmv_qdrant.ledger.runs import Run, recorded
from gmv_qdrant.settings import FILE, IMMUTABLE_SETTINGS, Settings

if TYPE_CHECKING:
    from gmv_qdrant.pipeline.context import Context
    from gmv_qdrant.pipeline.streams import Progress


class Opened:
    """An open workspace, before its verbs: see `gmv_qdrant.Workspace`."""

    def __init__(self, path: str | Path = ".", *, progress: Progress | None = None, **overrides: Any) -> None:
        self.path = Path(path).absolute()
        if not (self.path / FILE).is_file():
            raise SettingsError(f"{self.path} is not a workspace: make one with 'gmv-qdrant init {path}'")
        self.ledger = Ledger.open(self.path / "ledger.duckdb")
        if self.ledger.meta().get("switching") == "true":
            from gmv_qdrant.deployments.moving import finish_switch

            finish_switch(self.path, self.ledger)
        self.settings = self._settings(overrides)
        self._progress = progress
        self._memory = duckdb.connect(":memory:")  # relations live here, and hold no lock on the ledger

    @classmethod
    def init(cls, path: str | Path, **settings: Any) -> Self:
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
            settings = {name: value for name, value in settings.items() if name not in IMMUTABLE_SETTINGS}
        return cls(root, **settings)

    @staticmethod
    def _make(root: Path, wanted: Settings, **facts: Any) -> None:
        """facts: of the ledger's ``meta``, from its first moment."""
        from gmv_qdrant.models.encoders import canonical_distance_name, canonical_encoder_name
        from gmv_qdrant.models.quality import canonical_quality_name

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
                context.write_fingerprint()
            with recorded(self.ledger, verb, self.settings.evidence(), request) as run:
                recover(context, run)
                yield context, run

    @contextlib.contextmanager
    def _alone(self) -> Iterator[Context]:
        """The only writer of this workspace. Raises `LedgerLocked` when there is another."""
        from gmv_qdrant.pipeline.context import Context
        from gmv_qdrant.pipeline.streams import NullProgress

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
        context = Context(self.path, self.settings, self.ledger, self._progress or NullProgress())
        try:
            yield context
        finally:
            try:
                context.close()
            finally:
                lock.release()

    def _function(self, fields: dict[str, Any]) -> ValueFunction:
        return queries.value_function(self.ledger, **fields)


def _canonical(settings: Settings) -> dict[str, Any]:
    """The evidence settings with names spelt out, comparable with those that `init` kept."""
    from gmv_qdrant.models.encoders import canonical_distance_name, canonical_encoder_name
    from gmv_qdrant.models.quality import canonical_quality_name

    weights = settings.encoder_weights
    return {
        **settings.evidence(),
        "encoder": canonical_encoder_name(settings.encoder),
        "distance": canonical_distance_name(settings.distance),
        "quality": canonical_quality_name(settings.quality),
        "encoder_weights": str(Path(weights).absolute()) if weights else None,
    }
