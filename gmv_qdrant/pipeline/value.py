"""Value: each generated image goes through the networks once and gets its evidence.

Order of writes, for each chunk: feature shards (synced), then one ledger transaction that replaces the rows of
these images. What the evidence is worth is a question for SQL (``ledger/credits.sql``). One chunk is matched and
written while the next goes through the networks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import pyarrow as pa

from gmv_qdrant.errors import LedgerError
from gmv_qdrant.images.records import Record, Unusable
from gmv_qdrant.ledger.candidates import forget
from gmv_qdrant.ledger.database import Connection, insert
from gmv_qdrant.ledger.runs import Run
from gmv_qdrant.pipeline.context import Context
from gmv_qdrant.pipeline.ingest import insert_features, weight
from gmv_qdrant.pipeline.loading import Embedder, Loaded, load, usable
from gmv_qdrant.pipeline.matching import (
    Known,
    Matcher,
    Matches,
    evidence_columns,
    require_training_images,
    spare_columns,
)
from gmv_qdrant.pipeline.streams import BackgroundWriter, chunked

CONSERVATION = 1e-9
"""Largest relative error allowed in sum_i V_ij = q_j and sum_i phi_i = sum_j q_j."""


def value(context: Context, run: Run, records: Iterable[Record | Unusable], batch: str) -> None:
    """Value generated images, under the name ``batch``; those valued already against this training set stay."""
    require_training_images(context)
    with run.timed("optimize"):
        context.store.optimize()  # a withdrawal leaves none of the codes
    valuation, book = Valuation(context, run), LedgerWriter(context, run, batch)
    with BackgroundWriter() as behind:
        for chunk in chunked(records, partial(weight, context), smallest=32, largest=1024):
            if work := valuation.work(usable(run, chunk), batch):
                behind.hand_over(partial(_finish, valuation, book, work))
            context.progress.advance(len(chunk))
    check_conservation(context, run)


def check_conservation(context: Context, run: Run) -> None:
    """Sum_i V_ij = q_j for every j, and sum_i phi_i = sum_j q_j, over everything in the ledger.

    Raises `LedgerError` when the evidence doesn't add up.
    """
    with run.timed("check"):
        error = context.ledger.query("SELECT * FROM conservation(k := NULL)").to_pylist()[0]
    worst = max(abs(float(v)) for v in error.values() if v is not None)
    run.figures["conservation_error"] = worst
    if not worst <= CONSERVATION:
        raise LedgerError(
            f"the credits of {context.ledger.path} don't add up to the qualities (relative error {worst:.3g}): "
            "'gmv-qdrant check' says which rows are wrong"
        )


def _finish(valuation: Valuation, book: LedgerWriter, work: EmbeddedChunk) -> None:
    book.write(work, valuation.match(work.spaces))


@dataclass(slots=True)
class EmbeddedChunk:
    """A chunk of generated images whose vectors are safe."""

    images: pa.Table
    """`IMAGES`."""
    spaces: dict[str, np.ndarray]
    """int64 ``(n, 2)`` locations of their vectors in each feature space."""


IMAGES = pa.schema(
    [
        ("point_id", pa.string()),
        ("content_hash", pa.string()),
        ("uri", pa.string()),
        ("label", pa.string()),
        ("quality", pa.float64()),
        ("attributes", pa.string()),
    ]
)

_Facts = tuple[str, int, str | None, str]
"""Content hash, training_version, label and attributes of a generated image: what its evidence follows from."""


@dataclass(slots=True)
class _Vectors:
    """Quality of a content, and the shard and row of its vector in each feature space."""

    quality: float | None
    locations: dict[str, list[int]]


class Valuation:
    """Turns chunks of generated images into evidence."""

    def __init__(self, context: Context, run: Run) -> None:
        self.context = context
        self.run = run
        self.matcher = Matcher(context, run)
        self.in_flight: dict[str, _Facts] = {}
        """URI -> what the chunk that is being written makes of it."""
        self.vectors_in_flight: dict[str, _Vectors] = {}

    @cached_property
    def embedder(self) -> Embedder:
        """Loaded when there is an image to embed: `match` needs no network."""
        return Embedder(self.context, views=self.context.views, quality=True)

    def work(self, records: Sequence[Record], batch: str) -> EmbeddedChunk | None:
        """Read, hash and embed what isn't valued yet; None when nothing is to be done.

        It only reads the ledger, and doing a chunk twice does no harm.
        """
        once = {record.uri: record for record in records}  # a path may have been given twice
        loaded = list(load(self.context, self.run, list(once.values())))
        known = self._known([item.record.uri for item in loaded], batch) | self.in_flight
        todo = []
        for item in loaded:
            if known.get(item.record.uri) == self._facts(item):
                self.run.counts["unchanged"] += 1
                self.run.resolve([item.record.uri])
            else:
                todo.append(item)
        vectors = self._vectors({item.hash: item for item in todo})
        valued = [item for item in todo if item.hash in vectors]
        if not valued:
            return None
        images = [
            {
                "point_id": str(item.point_id),
                "content_hash": item.hash,
                "uri": item.record.uri,
                "label": item.record.label,
                "quality": vectors[item.hash].quality,
                "attributes": json.dumps(item.record.attributes),
            }
            for item in valued
        ]
        spaces = {
            space: np.array([vectors[item.hash].locations[space] for item in valued], dtype=np.int64)
            for space in self.context.generated_spaces
        }
        self.vectors_in_flight = vectors
        self.in_flight = {item.record.uri: self._facts(item) for item in valued}
        return EmbeddedChunk(pa.Table.from_pylist(images, IMAGES), spaces)

    def _facts(self, item: Loaded) -> _Facts:
        return item.hash, self.run.training_version, item.record.label, json.dumps(item.record.attributes)

    def _vectors(self, images: dict[str, Loaded]) -> dict[str, _Vectors]:
        """Where the vectors of each content are: known from another valuation, or computed now."""
        vectors = self._valued_before(list(images))
        vectors |= {hash_: mine for hash_, mine in self.vectors_in_flight.items() if hash_ in images}
        embedded = list(
            self.embedder.embed(self.run, [images[hash_] for hash_ in images if hash_ not in vectors])
        )
        if embedded:
            with self.run.timed("write"):
                for index, view in enumerate(self.context.views):
                    for kind in ("recall", "rerank"):
                        rows = [np.asarray(getattr(item, kind))[index] for item in embedded]
                        space = f"generated/{kind}{view}"
                        locations = self.context.space(space).append(np.stack(rows))
                        for item, location in zip(embedded, locations.tolist(), strict=True):
                            mine = vectors.setdefault(item.loaded.hash, _Vectors(item.quality, {}))
                            mine.locations[space] = location
        return vectors

    def _valued_before(self, hashes: list[str]) -> dict[str, _Vectors]:
        rows = self.context.ledger.query(
            """
            SELECT content_hash, any_value(quality) AS quality, f.space, min([f.shard, f.row]) AS location
            FROM generated g JOIN hashes USING (content_hash) JOIN features f ON f.key = g.generated_key
            WHERE starts_with(f.space, 'generated/') GROUP BY content_hash, f.space
            """,
            hashes=pa.table({"content_hash": pa.array(hashes, pa.string())}),
        )
        found: dict[str, _Vectors] = {}
        for row in rows.to_pylist():
            mine = found.setdefault(row["content_hash"], _Vectors(row["quality"], {}))
            mine.locations[row["space"]] = row["location"]
        return found

    def match(self, spaces: dict[str, np.ndarray], known: Sequence[Known] | None = None) -> list[Matches]:
        """Evidence of images whose vectors stand at these int64 ``(m, 2)`` locations of each feature space.

        known: distances that the ledger has for each of them.
        """
        count = len(next(iter(spaces.values())))
        evidence: list[Matches] = []
        for start in range(0, count, self.matcher.group):
            recall, rerank = (
                np.stack(
                    [
                        self.context.space(space).gather(spaces[space][start : start + self.matcher.group])
                        for space in (f"generated/{kind}{view}" for view in self.context.views)
                    ],
                    axis=1,
                )
                for kind in ("recall", "rerank")
            )
            some = known[start : start + self.matcher.group] if known else None
            evidence += self.matcher.match(recall, rerank, some)
        return evidence

    def _known(self, uris: list[str], batch: str) -> dict[str, _Facts]:
        rows = self.context.ledger.query(
            """SELECT uri, content_hash, version_valued, label, attributes
            FROM generated JOIN uris USING (uri) WHERE batch = $batch""",
            {"batch": batch},
            uris=pa.table({"uri": pa.array(sorted(set(uris)), pa.string())}),
        )
        return {uri: tuple(facts) for uri, *facts in zip(*(c.to_pylist() for c in rows.columns), strict=True)}


class LedgerWriter:
    """Writes evidence to the ledger under the name ``batch``: one transaction for a chunk, and keys for new images."""

    def __init__(self, context: Context, run: Run, batch: str) -> None:
        self.context = context
        self.run = run
        self.batch = batch
        with context.ledger.read() as con:
            self.next_key: int = con.execute(
                "SELECT coalesce(max(generated_key), 0) + 1 FROM generated"
            ).fetchall()[0][0]

    def write(self, work: EmbeddedChunk, evidence: Sequence[Matches]) -> None:
        """In place of what these images had."""
        uris = work.images["uri"].to_pylist()
        keys = self._keys(uris)
        with self.run.timed("write"), self.context.ledger.write() as con:
            replace_matches(con, keys, evidence)
            con.execute("DELETE FROM generated WHERE generated_key IN (SELECT unnest(?::INTEGER[]))", [keys])
            insert(
                con,
                "generated",
                {
                    "generated_key": keys,
                    **{name: work.images[name] for name in IMAGES.names},
                    "batch": [self.batch] * len(keys),
                    "recall_radius": [matches.radius for matches in evidence],
                    "version_valued": [self.run.training_version] * len(keys),
                },
            )
            for space, locations in work.spaces.items():
                con.execute(
                    "DELETE FROM features WHERE space = ? AND key IN (SELECT unnest(?::INTEGER[]))",
                    [space, keys],
                )
                insert_features(con, space, keys, locations)
            self.run.write_quarantine(con, resolved=uris)
        self.run.counts["valued"] += len(keys)

    def _keys(self, uris: list[str]) -> list[int]:
        known = self.context.ledger.query(
            "SELECT uri, generated_key FROM generated JOIN uris USING (uri) WHERE batch = $batch",
            {"batch": self.batch},
            uris=pa.table({"uri": pa.array(uris, pa.string())}),
        )
        keys = dict(zip(known["uri"].to_pylist(), known["generated_key"].to_pylist(), strict=True))
        for uri in uris:
            if uri not in keys:
                keys[uri] = self.next_key
                self.next_key += 1
        return [keys[uri] for uri in uris]


def replace_matches(con: Connection, keys: Sequence[int], evidence: Sequence[Matches]) -> None:
    """The evidence of these generated images, in place of what there was."""
    forget(con, keys)
    insert(con, "matches", evidence_columns(keys, evidence))
    insert(con, "spare_candidates", spare_columns(keys, evidence))
