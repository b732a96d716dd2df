"""Adopt: a collection that others fill becomes the training set, as it is.

Its points become rows of the ledger; its vectors stay where they are, and all that is ours (re-rank vectors, evidence)
is kept in the workspace. The encoder is proven before anything is believed. Nothing is written to the
collection but what two flags ask for.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from gmv_qdrant.deployments.encoder_check import (
    Claimed,
    EncoderCheck,
    Stored,
    check_encoder,
    common_length,
    name_encoders,
)
from gmv_qdrant.deployments.payload_fields import Fields, pick
from gmv_qdrant.errors import CollectionMismatch, ImageError, SettingsError, StoreError
from gmv_qdrant.images.embedded import SCHEME, KeptImages
from gmv_qdrant.ledger.database import Connection, insert
from gmv_qdrant.ledger.selection import Selection
from gmv_qdrant.ledger.sources import SOURCES, Written, write_sources
from gmv_qdrant.models.registry import NONE
from gmv_qdrant.pipeline.assembly import Assembly
from gmv_qdrant.pipeline.recovery import remove_images
from gmv_qdrant.pipeline.streams import batched
from gmv_qdrant.pipeline.training_vectors import stored_vectors
from gmv_qdrant.pipeline.withdraw import cut_short, preview, take_out
from gmv_qdrant.vectors.protocol import Point, SearchParams, VectorStore, parse_point_id
from gmv_qdrant.vectors.server.store import ServerStore


@dataclass(frozen=True, slots=True)
class AdoptOptions:
    """sample: images to prove the encoder with. trust_encoder: prove nothing, and need no images.

    The last is the only write to the collection.
    """

    sample: int = 16
    trust_encoder: bool = False
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


def adopt(parts: Assembly, fields: Fields, options: AdoptOptions) -> None:
    """Take a collection's points into the ledger, or bring the ledger up to what the collection is now.

    What is new makes a training-set version; what has vanished is taken out of the ledger; what is described
    otherwise is described anew. Raises `CollectionMismatch` when the encoder isn't that of the collection.
    """
    run, ledger, settings = parts.run, parts.ledger, parts.settings
    adopted = json.loads(ledger.meta()["adopted"])
    if parts.spaces.recall.dim != adopted["dim"]:
        raise CollectionMismatch(
            f"the vectors of {settings.collection!r} have {adopted['dim']} numbers, and the encoder "
            f"{settings.encoder} gives {parts.spaces.recall.dim}; {name_encoders(adopted['dim'])}"
        )
    store = parts.spaces.store
    with run.timed("prove the encoder"):
        parts.progress.phase("prove the encoder", None)
        first = _first(store)
        if not first:
            raise StoreError(
                f"the collection {parts.settings.collection!r} has no points any more: the ledger stays as it is"
            )
        _check_distance_vector(parts)
        if options.trust_encoder:
            proof = _trusted(parts, first)
        else:
            fields.check(first, parts.settings.collection)
            proof = _prove(parts, first, fields, options.sample)
            if (second := parts.spaces.stored_rerank) is not None:
                _prove(parts, _first(second), fields, options.sample, second=second)
        length = adopted.get("length", proof.length)  # evidence was made with it
        with parts.ledger.write() as con:
            cosine = None if options.trust_encoder else proof.cosine
            facts = {**adopted, "fields": asdict(fields), "length": length, "cosine": cosine}
            parts.ledger.set_meta(con, adopted=facts)
    with run.timed("read points"):
        _take_in(parts, fields, named=not options.trust_encoder)
    spread = _spread(parts, options.sample)
    run.counts["sample_twins"] = _twins(parts.spaces.store, spread)
    if options.trust_encoder:
        parts.progress.note("nobody has proven that the vectors are of the encoder: --trust-encoder")
    else:
        with run.timed("prove the encoder"):
            again = _prove(parts, spread, fields, options.sample)
        run.figures["cosine"] = round(min(proof.cosine, again.cosine), 6)
        run.counts["sample_differing"] = again.differing
    _read_rerank(parts)
    parts.spaces.sample(ledger).remember(anew=True)
    if options.enable_quantization:
        _quantize(parts)


def _first(store: VectorStore) -> list[Point]:
    """Some points, with their vectors and all of their payloads, which may be large: a few in a request."""
    ids = next(store.ids(), [])[:FIRST]
    return [point for some in batched(ids, 32) for point in store.retrieve(some, with_vectors=True)]


FIRST = 128
"""Points that a collection is judged by before all of it is read."""


# -- the encoder -----------------------------------------------------------------------------------------------------


def _check_distance_vector(parts: Assembly) -> None:
    """Raises `CollectionMismatch` or `SettingsError` where the second vector can't be the distance's."""
    spaces, settings = parts.spaces, parts.settings
    if spaces.stored_rerank is None:
        return
    if settings.distance == NONE or spaces.rerank.metric != "cosine":
        raise SettingsError(
            f"--distance-vector {settings.distance_vector!r} needs a distance that compares embeddings by their "
            f"cosine, which {settings.distance} doesn't: give --distance the name of the encoder that made the vector"
        )
    if (dim := spaces.stored_rerank.spec.dim) != spaces.rerank.dim:
        raise CollectionMismatch(
            f"the vectors {settings.distance_vector!r} of {settings.collection!r} have {dim} numbers, and the distance "
            f"{settings.distance} gives {spaces.rerank.dim}; {name_encoders(dim)}"
        )


def _read_rerank(parts: Assembly) -> None:
    """Re-rank vectors that the collection holds, each once, into the matrix; a run that was stopped goes on."""
    spaces = parts.spaces
    if spaces.stored_rerank is None or spaces.training is None:
        return
    rows = parts.ledger.query(
        "SELECT training_key AS key FROM training WHERE version_withdrawn IS NULL ORDER BY key"
    )
    keys = rows["key"].to_numpy()
    lacking = keys[~spaces.training.has(keys)].tolist() if len(keys) else []
    with parts.run.timed("read re-rank vectors"):
        parts.progress.phase("read re-rank vectors", len(lacking))
        for some in batched(lacking, ROWS):
            found = dict(stored_vectors(parts.ledger, spaces, parts.settings, some))
            if found:
                spaces.training.write(list(found), np.stack(list(found.values())))
            parts.run.counts["read"] += len(found)
            parts.progress.advance(len(some))


ROWS = 1_024
"""Vectors that are read and written down at once."""


def _prove(
    parts: Assembly, points: list[Point], fields: Fields, sample: int, second: VectorStore | None = None
) -> EncoderCheck:
    """second: the store of the vectors, where they are the distance's."""
    kept, found = KeptImages(parts.root), []
    for point in points:
        if point.vector is not None and np.linalg.norm(point.vector) > 0:
            with contextlib.suppress(ImageError):  # said when all are taken in
                found += [Stored(uri, point.vector) for uri in fields.uris_of(point.payload, kept.keep)[:1]]
    models, settings = parts.models, parts.settings
    claimed = (
        Claimed(settings.distance, models.rerank, "--distance", second.spec)
        if second
        else Claimed(settings.encoder, models.recall, "--encoder", parts.spaces.store.spec)
    )
    return check_encoder(parts, claimed, found, sample)


def _trusted(parts: Assembly, points: list[Point]) -> EncoderCheck:
    if parts.settings.distance != NONE and parts.spaces.stored_rerank is None:
        raise SettingsError(
            f"--trust-encoder takes the vectors alone, and the distance {parts.settings.distance} needs images: give "
            "--distance none, or name a second vector with --distance-vector"
        )
    vectors = [point.vector for point in points if point.vector is not None]
    spec = parts.spaces.store.spec
    return EncoderCheck(0, 1.0, 0, common_length(spec.distance, spec.name, vectors))


def _spread(parts: Assembly, sample: int) -> list[Point]:
    """Points from everywhere in the collection: its first page may be all of one age."""
    points = parts.ledger.query(
        """SELECT point_id FROM training WHERE version_withdrawn IS NULL ORDER BY hash(point_id), point_id LIMIT $n""",
        {"n": 8 * sample},
    )["point_id"].to_pylist()
    return parts.spaces.store.retrieve([parse_point_id(point) for point in points], with_vectors=True)


def _twins(store: VectorStore, points: list[Point]) -> int:
    """How many of some points have another point with the same vector: copies under other names, which share credit."""
    rows = [point.vector for point in points if point.vector is not None and point.vector.any()][:TWINS]
    if not rows or not store.limits.exact:
        return 0
    hits = store.search(np.stack(rows), 2, SearchParams(exact=True))
    return sum(len(hit.ids) == 2 and bool(hit.distances[1] - hit.distances[0] <= 1e-6) for hit in hits)


TWINS = 32
"""Points that are looked for twice."""


# -- points become rows ----------------------------------------------------------------------------------------------


def _take_in(parts: Assembly, fields: Fields, *, named: bool) -> None:
    """named: only points that name an image."""
    run, store = parts.run, parts.spaces.store
    assert isinstance(store, ServerStore)
    there = _ids(store)
    lacking = store.lacking()[store.spec.vector_name]
    if lacking:
        run.counts["without_vector"] = lacking
    intake, reader = _Intake(parts, _moved(parts, there)), _Reader(parts, fields, named)
    parts.progress.phase("read points", len(there))
    seen: list[pa.Array] = []
    for page in store.scroll(fields=fields.payload, having_vector=lacking > 0):
        rows = [row for point in page for row in reader.rows(point)]
        if rows:
            seen.append(pa.array(sorted({str(row["point_id"]) for row in rows}), pa.string()))
            intake.take(pa.Table.from_pylist(rows, _PAGE))
        parts.progress.advance(len(page))
    if not seen:
        raise StoreError(
            f"no point of {parts.settings.collection!r} names an image any more: the ledger stays as it is"
        )
    _take_out_vanished(parts, pa.table({"point_id": pa.chunked_array(seen)}))
    used = parts.ledger.query("SELECT DISTINCT uri FROM sources WHERE starts_with(uri, $s)", {"s": SCHEME})
    reader.kept.remove_all_but(set(used["uri"].to_pylist()))


def _ids(store: ServerStore) -> set[str]:
    """Raises `CollectionMismatch` where one id is there several times."""
    there = {str(point) for page in store.ids() for point in page}
    if (counted := store.count()) > len(there) and store.custom_shards:
        raise CollectionMismatch(
            f"the collection {store.spec.name!r} holds {counted - len(there)} of its ids under several shard "
            "keys, and a search doesn't tell those apart: give each point an id of its own"
        )
    return there


def _take_out_vanished(parts: Assembly, seen: pa.Table) -> None:
    vanished = parts.ledger.query(
        "SELECT point_id FROM training ANTI JOIN seen USING (point_id) WHERE version_withdrawn IS NULL",
        seen=seen,
    )["point_id"].to_pylist()
    if vanished:
        parts.run.counts["vanished"] = len(vanished)
        _take_out(parts, vanished, "vanished from the collection")


class _Reader:
    """Points -> what the ledger keeps of them. One image under two ids is told from two by its place, or its bytes."""

    def __init__(self, parts: Assembly, fields: Fields, named: bool) -> None:
        self._run, self._fields, self._named = parts.run, fields, named
        self._collection = parts.settings.collection
        self.kept = KeptImages(parts.root)
        self._first: dict[str, tuple[int | uuid.UUID, str]] = {}
        """Where images are: the first point of each, and its owners."""

    def rows(self, point: Point) -> list[dict[str, str | None]]:
        uri = f"qdrant://{self._collection}/{point.id}"
        try:
            uris = self._fields.uris_of(point.payload, self.kept.keep) or ([] if self._named else [uri])
            if not uris:
                self._run.counts["without_uri"] += 1
                return []
            uri = uris[0]
            owners = repr(pick(point.payload, self._fields.owner))
            first, theirs = self._first.setdefault(uri, (point.id, owners))
            if first != point.id:  # searches pass its point over
                self._run.counts["same_image"] += 1
                if owners != theirs:
                    self._run.counts["other_owner"] += 1
                return []
            return self._fields.rows(point, uris)
        except ImageError as error:
            self._run.quarantine(uri, str(error), error.kind)
            return []


def _moved(parts: Assembly, there: set[str]) -> dict[str, int]:
    """Where images of the ledger are whose points have gone, and their keys: one may be back under another id."""
    rows = parts.ledger.query(
        "SELECT point_id, uri, training_key AS key FROM training JOIN sources USING (training_key) "
        "WHERE version_withdrawn IS NULL"
    ).to_pylist()
    return {row["uri"]: row["key"] for row in rows if row["point_id"] not in there}


def _take_out(parts: Assembly, points: list[str], reason: str) -> None:
    """Images whose vectors are gone: whoever may have met one is valued again, so all that may have."""
    settings, spaces = parts.settings, parts.spaces
    selection = Selection(ids=tuple(points))
    leaving = preview(parts.ledger, selection)
    hidden = cut_short(parts.ledger, settings.candidates, spaces.views)[0].tolist()
    take_out(parts.run, parts.ledger, selection, reason, hidden, settings.candidates, parts.spare)
    remove_images(spaces, parts.root, leaving.keys, leaving.points, leaving.hashes)


_PAGE = pa.schema(
    [(name, pa.string()) for name in ("point_id", "uri", "owner", "label", "licence", "attributes")]
)


class _Intake:
    """Pages of points -> rows of ``training`` and ``sources``: each page durable when `take` returns."""

    def __init__(self, parts: Assembly, moved: dict[str, int]) -> None:
        self.parts, self.moved = parts, moved
        self.run = parts.run
        self.begun = False
        last = parts.ledger.query("SELECT coalesce(max(training_key), 0) AS last FROM training")["last"]
        self.next_key = int(last[0].as_py()) + 1

    def take(self, page: pa.Table) -> None:
        self._follow(page)
        known, points = self._known(page), _by_point(page.to_pylist())
        replaced = _replaced(known, points)
        if replaced:  # by another image under the same id, whose vectors are others, too
            _take_out(self.parts, sorted(replaced), "replaced in the collection")
        new: list[dict[str, Any]] = []
        changed: list[dict[str, Any]] = []
        for point, rows in points.items():
            there = known.get(point, [])
            key = self._key(there)
            numbered = [{**row, "key": key} for row in rows]
            if not there or there[0]["gone"] or point in replaced:
                new += numbered
            elif _facts(there) != _facts(rows):
                changed += numbered
            else:
                self.run.counts["unchanged"] += 1
        if new or changed:
            self._write(new, changed, len(replaced))

    def _write(self, new: list[dict[str, Any]], changed: list[dict[str, Any]], replaced: int) -> None:
        with self.parts.ledger.write() as con:
            if new:
                self._insert_training(con, new)
            told = self._write_sources(con, new + changed)
        self.run.tell_changes(told.changes, kept=True)
        self.run.counts["new"] += len({row["key"] for row in new}) - replaced
        self.run.counts["changed"] += len({row["key"] for row in changed}) + replaced

    def _known(self, page: pa.Table) -> dict[str, list[dict[str, Any]]]:
        """What the ledger has of the page's points: a row for each source, or one without."""
        rows = self.parts.ledger.query(
            """
            SELECT t.point_id, t.training_key AS key, t.version_withdrawn IS NOT NULL AS gone,
                   s.uri, s.owner, s.label, s.licence, s.attributes::VARCHAR AS attributes
            FROM training t JOIN (SELECT DISTINCT point_id FROM page) USING (point_id)
            LEFT JOIN sources s USING (training_key)
            """,
            page=page,
        )
        return _by_point(rows.to_pylist())

    def _key(self, there: list[dict[str, Any]]) -> int:
        if there:
            return int(there[0]["key"])
        self.next_key += 1
        return self.next_key - 1

    def _follow(self, page: pa.Table) -> None:
        """An image whose point has another id now stays the image that it was, and so do its credits."""
        moved = {
            self.moved.pop(row["uri"]): row["point_id"]
            for row in page.to_pylist()
            if row["uri"] in self.moved
        }
        if moved:
            with self.parts.ledger.write() as con:
                con.executemany(
                    "UPDATE training SET point_id = ? WHERE training_key = ?",
                    [[point, key] for key, point in moved.items()],
                )
            self.run.counts["new_ids"] += len(moved)

    def _insert_training(self, con: Connection, rows: list[dict[str, Any]]) -> None:
        if not self.begun:  # the first new point of a run begins an training_version
            self.begun = True
            self.run.training_version += 1
            self.parts.ledger.set_meta(con, training_version=self.run.training_version)
        rows = list({row["key"]: row for row in rows}.values())
        keys = [row["key"] for row in rows]
        con.execute("DELETE FROM training WHERE training_key IN (SELECT unnest(?::INTEGER[]))", [keys])
        insert(
            con,
            "training",
            {
                "training_key": keys,
                "point_id": [row["point_id"] for row in rows],
                "version_added": [self.run.training_version] * len(rows),
            },
        )

    def _write_sources(self, con: Connection, rows: list[dict[str, Any]]) -> Written:
        """What the collection says of these images now: it is the authority, so it may reassign."""
        columns = [name for name in SOURCES.names if name in _PAGE.names]
        table = pa.Table.from_pylist(
            [{**{name: row[name] for name in columns}, "training_key": row["key"]} for row in rows], SOURCES
        )
        return write_sources(con, self.run.run_id, table, reassign=True)


Rows = dict[str, list[dict[str, Any]]]
"""By point."""


def _replaced(known: Rows, points: Rows) -> set[str]:
    """Points that name another image than the ledger has for them."""
    return {
        point
        for point, there in known.items()
        if not there[0]["gone"] and points[point][0]["uri"] not in {row["uri"] for row in there}
    }


def _by_point(rows: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        found[row["point_id"]].append(row)
    return dict(found)


def _facts(rows: list[dict[str, Any]]) -> set[tuple[Any, ...]]:
    """What an image's sources say: one row for each owner."""
    return {tuple(row[name] for name in ("uri", "owner", "label", "licence", "attributes")) for row in rows}


# -- what two flags ask for ------------------------------------------------------------------------------------------


def _quantize(parts: Assembly) -> None:
    """Product quantization, in place; codes that are there already stay."""
    run, store = parts.run, parts.spaces.store
    assert isinstance(store, ServerStore)
    if store.spec.quantization != "none":
        return
    with run.timed("quantize"):
        parts.progress.phase("quantize", None)
        status = store.enable_quantization("pq")
    run.counts["quantized"] = status.coded_points
