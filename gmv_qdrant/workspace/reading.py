"""The verbs that read: questions put to the evidence; they work while a run writes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from gmv_qdrant.accounting.payout import Money, payout
from gmv_qdrant.errors import SettingsError, StoreError
from gmv_qdrant.ledger import queries
from gmv_qdrant.workspace.opening import Opened

Relation = duckdb.DuckDBPyRelation


class Reading(Opened):
    """Verbs that ask: see `gmv_qdrant.Workspace`."""

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
        function: fields of `ValueFunction` (``k``, ``temperature``, ``quality_weighted``, ``batch``,
        ``null_distance``), or ``calibration``, a name that `calibrate` kept.
        """
        return self._relation(queries.credits(self.ledger, by, self._function(function), top, rule, interval))

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
        table = queries.credits(self.ledger, by, self._function(function), None, rule)
        found = zip(table.column(0).to_pylist(), table["value"].to_pylist(), strict=True)
        return payout(by, list(found), budget, floor=floor, exclude=exclude)

    def effective_contributors(self, **function: Any) -> float | None:
        """Mean effective number of contributors of a generated image; None when none was valued."""
        return queries.effective_contributors(self.ledger, self._function(function))

    def stale(self) -> int:
        """Generated images whose evidence is from another training set than today's; `update` repairs them."""
        return queries.stale(self.ledger)

    def status(self) -> dict[str, Any]:
        """What the workspace holds, the proof of quantization, what is stale, the latest runs.

        Without a server it opens no network.
        """
        return {
            "workspace": {"path": str(self.path), **self.settings.evidence()},
            **queries.counts(self.ledger),
            "store": self._store_status(),
            "search": self._search(),
            "runs": queries.last_runs(self.ledger),
        }

    def recall(self) -> float | None:
        """Share of the exact K nearest that the search finds, as measured on generated images; None before any."""
        found = self._search().get("recall")
        return None if found is None else float(found)

    def _search(self) -> dict[str, Any]:
        return dict(json.loads(self.ledger.meta().get("search", "{}")))

    def _store_status(self) -> dict[str, Any]:
        """Read off the disk, so that it also answers while a run writes."""
        from gmv_qdrant.vectors.embedded.segments import read_status
        from gmv_qdrant.vectors.protocol import CollectionSpec

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
        from gmv_qdrant.vectors import open_existing

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
        kind, table = queries.explain(self.ledger, image, self._function(function))
        return kind, self._relation(table)

    def sql(self, query: str) -> Relation:
        """Any SELECT over the ledger and its macros; it can't write, and can't touch files or the network."""
        return self._relation(queries.sql(self.ledger, query))

    def export(self, directory: str | Path, *, file_format: str = "parquet", **function: Any) -> list[Path]:
        """Write values, contributions, sources and generated images as Parquet or CSV; returns the files."""
        return queries.export(self.ledger, Path(directory), self._function(function), file_format)

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
        score_type: str = "share",
        most: int = 1000,
    ) -> dict[str, Any]:
        """Make a workspace with another method's scores of this one's images, to credit and evaluate beside ours.

        file: Parquet with generated, training and score. score_type: ``share``, ``similarity`` or ``distance``, as
        `gmv_qdrant.evaluation.importing` says.
        """
        from gmv_qdrant.evaluation.importing import import_scores

        return import_scores(
            self.ledger, self.settings, Path(file), Path(into).absolute(),
            method=method, batch=batch, score_type=score_type, most=most,
        )  # fmt: skip

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
        tell: Callable[[str], None] = lambda address: None,
    ) -> None:
        """Serve the pages until interrupted: to this computer only, or, with another host, to who has the token.

        tell: gets the address to open, with the token in it.
        """
        from gmv_qdrant.web.server import serve

        serve(self.path, self.ledger, self.settings, host, port, tell=tell)
