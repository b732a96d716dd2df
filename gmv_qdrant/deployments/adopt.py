"""Adopt: a collection that others fill becomes the training set, as it is.

Its points become rows of the ledger; its vectors stay where they are, and all that is ours (re-rank vectors, evidence)
is kept in the workspace. The encoder is proven before anything is believed. Nothing is written to the
collection but what two flags ask for.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from gmv_qdrant.deployments.encoder_check import EncoderCheck, Stored, check_encoder, name_encoders
from gmv_qdrant.deployments.payload_fields import Fields
from gmv_qdrant.errors import CollectionMismatch, ImageError, SettingsError, StoreError
from gmv_qdrant.ledger.database import Connection, insert
from gmv_qdrant.ledger.runs import Run
from gmv_qdrant.pipeline.collection import Sample
from gmv_qdrant.pipeline.context import Context
from gmv_qdrant.pipeline.withdraw import Selection, cut_short, take_out
from gmv_qdrant.settings import Settings
from gmv_qdrant.vectors import open_existing
from gmv_qdrant.vectors.protocol import CollectionSpec, Condition, Point, parse_point_id
from gmv_qdrant.vectors.server.store import ServerStore


@dataclass(frozen=True, slots=True)
class AdoptOptions:
    """sample: images to prove the encoder with. The other two are the only writes to the collection."""

    sample: int = 16
    enable_quantization: bool = False


def adopted_fields(kept: Mapping[str, Any], given: Mapping[str, Any]) -> Fields:
    """The fields that a workspace keeps, but for those given now. Raises `SettingsError` for an unknown one."""
    whole = {
        **asdict(Fields()),
        **kept,
        **{name: value for name, value in given.items() if value is not None},
    }
    if unknown := sorted(whole.keys() - asdict(Fields()).keys()):
        raise SettingsError(
            f"payload fields are mapped to {', '.join(asdict(Fields()))}, not to {unknown[0]!r}"
        )
    return Fields.parse(whole)


def describe_foreign(settings: Settings, vector_name: str | None) -> CollectionSpec:
    """The collection as the server describes it; the settings get its vector's name, codes and kinds of tenant.

    vector_name: None for its only vector. Raises `StoreError` when it, or the tenant's part of it, is empty.
    """
    if not settings.qdrant_url:
        raise SettingsError("which server has the collection? Give --qdrant-url, or set QDRANT_URL")
    with open_existing(settings.replaced(tenant={}), vector_name) as store:
        settings.tenant = {name: _as_stored(store, name, value) for name, value in settings.tenant.items()}
        points = store.count([Condition(name, (value,)) for name, value in settings.tenant.items()])
        spec = store.spec
    if not points:
        part = " and ".join(f"{name} = {value!r}" for name, value in settings.tenant.items())
        raise StoreError(
            f"the collection {settings.collection!r} has no points"
            + (f" with {part}: check the tenant's field and value" if part else ": there is nothing to adopt")
        )
    settings.vector_name = spec.vector_name
    settings.quantization = "none" if spec.quantization == "binary" else spec.quantization
    return spec


def _as_stored(store: ServerStore, name: str, value: str | int | bool) -> str | int | bool:
    """A tenant's value is text on a command line; in payloads it may be a number or a flag."""
    forms: list[str | int | bool] = [value]
    if isinstance(value, str):
        forms += [int(value)] if value.lstrip("-").isdecimal() else []
        forms += [value.lower() == "true"] if value.lower() in ("true", "false") else []
    return next((form for form in forms if store.count([Condition(name, (form,))])), value)


def adopt(context: Context, run: Run, fields: Fields, options: AdoptOptions) -> None:
    """Take a collection's points into the ledger, or bring the ledger up to what the collection is now.

    What is new makes a training-set version; what has vanished is taken out of the ledger; what is described
    otherwise is described anew. Raises `CollectionMismatch` when the encoder isn't that of the collection.
    """
    adopted = json.loads(context.ledger.meta()["adopted"])
    if context.encoder.dim != adopted["dim"]:
        raise CollectionMismatch(
            f"the vectors of {context.settings.collection!r} have {adopted['dim']} numbers, and the encoder "
            f"{context.settings.encoder} gives {context.encoder.dim}; {name_encoders(adopted['dim'])}"
        )
    store = context.store
    with run.timed("prove the encoder"):
        context.progress.phase("prove the encoder", None)
        first = next(store.scroll(with_vectors=True), [])
        if not first:
            raise StoreError(
                f"the collection {context.settings.collection!r} has no points any more: the ledger stays as it is"
            )
        fields.check(first, context.settings.collection)
        proof = _prove(context, first, fields, options.sample)
        length = adopted.get("length", proof.length)  # evidence was made with it
        with context.ledger.write() as con:
            facts = {**adopted, "fields": asdict(fields), "length": length, "cosine": proof.cosine}
            context.ledger.set_meta(con, adopted=facts)
    run.figures["cosine"] = round(proof.cosine, 6)
    with run.timed("read points"):
        _take_in(context, run, fields)
    with run.timed("prove the encoder"):
        proof = _prove(context, _spread(context, options.sample), fields, options.sample)
    run.figures["cosine"] = round(min(run.figures["cosine"], proof.cosine), 6)
    run.counts["sample_differing"] = proof.differing
    Sample(context.root, context.ledger, context.store).remember(anew=True)
    if options.enable_quantization:
        _quantize(context, run)


# -- the encoder -----------------------------------------------------------------------------------------------------


def _prove(context: Context, points: list[Point], fields: Fields, sample: int) -> EncoderCheck:
    found = [
        Stored(uri, point.vector)
        for point in points
        if (uri := fields.uri_of(point.payload)) is not None
        and point.vector is not None
        and np.linalg.norm(point.vector) > 0
    ]
    return check_encoder(context, found, sample)


def _spread(context: Context, sample: int) -> list[Point]:
    """Points from everywhere in the collection: its first page may be all of one age."""
    points = context.ledger.query(
        """SELECT point_id FROM training WHERE version_withdrawn IS NULL ORDER BY hash(point_id), point_id LIMIT $n""",
        {"n": 8 * sample},
    )["point_id"].to_pylist()
    return context.store.retrieve([parse_point_id(point) for point in points], with_vectors=True)


# -- points become rows ----------------------------------------------------------------------------------------------


def _take_in(context: Context, run: Run, fields: Fields) -> None:
    intake = _Intake(context, run)
    context.progress.phase("read points", context.store.count())
    seen: list[pa.Array] = []
    for page in context.store.scroll():
        rows = []
        for point in page:
            uri = fields.uri_of(point.payload)
            if uri is None:
                run.counts["without_uri"] += 1
                continue
            try:
                rows += fields.rows(point, uri)
            except ImageError as error:
                run.quarantine(uri, str(error))
        if rows:
            seen.append(pa.array(sorted({str(row["point_id"]) for row in rows}), pa.string()))
            intake.take(pa.Table.from_pylist(rows, _PAGE))
        context.progress.advance(len(page))
    if not seen:
        raise StoreError(
            f"no point of {context.settings.collection!r} names an image any more: the ledger stays as it is"
        )
    vanished = context.ledger.query(
        "SELECT point_id FROM training ANTI JOIN seen USING (point_id) WHERE version_withdrawn IS NULL",
        seen=pa.table({"point_id": pa.chunked_array(seen)}),
    )["point_id"].to_pylist()
    if vanished:
        run.counts["vanished"] = len(vanished)
        hidden = cut_short(context)[
            0
        ].tolist()  # whoever may have met one: its vector is gone, so all of them
        take_out(context, run, Selection(ids=tuple(vanished)), "vanished from the collection", hidden)


_PAGE = pa.schema(
    [(name, pa.string()) for name in ("point_id", "uri", "owner", "label", "licence", "attributes")]
)


class _Intake:
    """Pages of points -> rows of ``training`` and ``sources``: each page durable when `take` returns."""

    def __init__(self, context: Context, run: Run) -> None:
        self.context = context
        self.run = run
        self.begun = False
        last = context.ledger.query("SELECT coalesce(max(training_key), 0) AS last FROM training")["last"]
        self.next_key = int(last[0].as_py()) + 1

    def take(self, page: pa.Table) -> None:
        known: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in self.context.ledger.query(
            """
            SELECT t.point_id, t.training_key AS key, t.version_withdrawn IS NOT NULL AS gone,
                   s.uri, s.owner, s.label, s.licence, s.attributes::VARCHAR AS attributes
            FROM training t JOIN (SELECT DISTINCT point_id FROM page) USING (point_id)
            LEFT JOIN sources s USING (training_key)
            """,
            page=page,
        ).to_pylist():
            known[row["point_id"]].append(row)
        points: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in page.to_pylist():
            points[row["point_id"]].append(row)
        new: list[dict[str, Any]] = []
        changed: list[dict[str, Any]] = []
        for point, rows in points.items():
            there = known.get(point)
            key = there[0]["key"] if there else self.next_key
            if there is None:
                self.next_key += 1
            numbered = [{**row, "key": key} for row in rows]
            if there is None or there[0]["gone"]:
                new += numbered
            elif _facts(there) != _facts(rows):
                changed += numbered
            else:
                self.run.counts["unchanged"] += 1
        if not new and not changed:
            return
        with self.context.ledger.write() as con:
            if new:
                self._insert_training(con, new)
            if changed:
                _describe_again(con, changed)
            _replace_sources(con, new + changed)
        self.run.counts["new"] += len({row["key"] for row in new})
        self.run.counts["changed"] += len({row["key"] for row in changed})

    def _insert_training(self, con: Connection, rows: list[dict[str, Any]]) -> None:
        if not self.begun:  # the first new point of a run begins an training_version
            self.begun = True
            self.run.training_version += 1
            self.context.ledger.set_meta(con, training_version=self.run.training_version)
        rows = list({row["key"]: row for row in rows}.values())
        keys = [row["key"] for row in rows]
        con.execute("DELETE FROM training WHERE training_key IN (SELECT unnest(?::INTEGER[]))", [keys])
        insert(
            con,
            "training",
            {
                "training_key": keys,
                "point_id": [row["point_id"] for row in rows],
                "label": pa.array([row["label"] for row in rows], pa.string()),
                "version_added": [self.run.training_version] * len(rows),
                "attributes": [row["attributes"] for row in rows],
            },
        )


def _facts(rows: list[dict[str, Any]]) -> set[tuple[Any, ...]]:
    """What an image's sources say: one row for each owner."""
    return {tuple(row[name] for name in ("uri", "owner", "label", "licence", "attributes")) for row in rows}


def _describe_again(con: Connection, rows: list[dict[str, Any]]) -> None:
    rows = list({row["key"]: row for row in rows}.values())
    con.register("described", pa.Table.from_pylist(rows, _PAGE.append(pa.field("key", pa.int32()))))
    con.execute(
        """UPDATE training SET label = d.label, attributes = d.attributes
        FROM described d WHERE training.training_key = d.key"""
    )
    con.unregister("described")


def _replace_sources(con: Connection, rows: list[dict[str, Any]]) -> None:
    keys = [row["key"] for row in rows]
    con.execute("DELETE FROM sources WHERE training_key IN (SELECT unnest(?::INTEGER[]))", [keys])
    columns: dict[str, Any] = {
        name: pa.array([row[name] for row in rows], pa.string())
        for name in ("uri", "owner", "label", "licence", "attributes")
    }
    insert(con, "sources", {"training_key": keys, **columns})


# -- what two flags ask for ------------------------------------------------------------------------------------------


def _quantize(context: Context, run: Run) -> None:
    """Product quantization, in place; codes that are there already stay."""
    store = context.store
    assert isinstance(store, ServerStore)
    if store.spec.quantization != "none":
        return
    with run.timed("quantize"):
        context.progress.phase("quantize", None)
        status = store.enable_quantization("pq")
    run.counts["quantized"] = status.coded_points
