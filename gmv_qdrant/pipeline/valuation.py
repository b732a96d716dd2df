"""Value: each generated image goes through the networks once and gets its evidence.

Order of writes, for each chunk: feature shards (synced), then one ledger transaction that replaces the rows of
these images. What the evidence is worth is a question for SQL (``ledger/credits.sql``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ..errors import LedgerError
from ..images.records import Record, Unusable
from ..ledger.ledger import Connection, insert
from ..ledger.runs import Run
from .context import Context
from .ingest import insert_features, stores_rerank
from .loading import Embedded, Embedder, Loaded, load
from .matching import Matcher, Matches, evidence_columns, require_training_images
from .streams import batched, chunked

CONSERVATION = 1e-9
"""Largest relative error allowed in sum_i V_ij = q_j and sum_i phi_i = sum_j q_j."""


def value(context: Context, run: Run, records: Iterable[Record | Unusable], batch: str) -> None:
    """Value generated images, under the name ``batch``; those valued already against this training set stay."""
    require_training_images(context)
    valuation = Valuation(context, run)
    for chunk in chunked(records, smallest=32, largest=1024):
        usable = []
        for record in chunk:
            if isinstance(record, Unusable):
                run.quarantine(record.uri, record.reason)
            else:
                usable.append(record)
        valuation.take(usable, batch)
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


@dataclass(slots=True)
class _Known:
    key: int
    hash: str
    epoch_valued: int


class Valuation:
    """Turns chunks of generated images into evidence."""

    def __init__(self, context: Context, run: Run) -> None:
        self.context = context
        self.run = run
        self.matcher = Matcher(context, run)
        self.embedder = Embedder(context, views=context.views, quality=True)
        with context.ledger.read() as con:
            self.next_key: int = con.execute("SELECT coalesce(max(generated_key), 0) + 1 FROM generated").fetchall()[0][0]

    def take(self, records: Sequence[Record], batch: str) -> None:
        """One chunk: all of it durable when this returns."""
        loaded = list(load(self.context, self.run, records))
        known = self._known([item.record.uri for item in loaded], batch)
        todo = []
        for item in loaded:
            seen = known.get(item.record.uri)
            if seen and seen.hash == item.hash and seen.epoch_valued == self.run.epoch:
                self.run.counts["unchanged"] += 1
            else:
                todo.append(item)
        twice = {item.hash: item for item in todo}
        embedded = {item.loaded.hash: item for item in self.embedder.embed(self.run, list(twice.values()))}
        valued = [item for item in todo if item.hash in embedded]
        if not valued:
            return
        keys = [self._key(known.get(item.record.uri)) for item in valued]
        spaces = self._append(list(embedded.values()))
        position = {hash_: row for row, hash_ in enumerate(embedded)}
        rows = np.array([position[item.hash] for item in valued])
        evidence = self.match(
            {space: locations for space, locations in spaces.items()}, len(embedded)
        )
        with self.run.timed("write"), self.context.ledger.write() as con:
            self._replace(con, keys, valued, [evidence[row] for row in rows], embedded, batch)
            for space, locations in spaces.items():
                con.execute("DELETE FROM features WHERE space = ? AND key IN (SELECT unnest(?::INTEGER[]))", [space, keys])
                insert_features(con, space, keys, locations[rows])
            self.run.write_quarantine(con, healed=[item.record.uri for item in valued])
        self.run.counts["valued"] += len(valued)

    def match(self, spaces: dict[str, np.ndarray], count: int) -> list[Matches]:
        """Evidence of images whose vectors stand at these locations of each feature space."""
        views = self.context.views
        group = 64 if stores_rerank(self.context) else 2  # large vectors: few candidates in memory at once
        evidence: list[Matches] = []
        for start in range(0, count, group):
            part = slice(start, start + group)
            recall, rerank = (
                np.stack(
                    [
                        self.context.space(f"generated/{kind}{view}").gather(spaces[f"generated/{kind}{view}"][part])
                        for view in views
                    ],
                    axis=1,
                )
                for kind in ("recall", "rerank")
            )
            evidence += self.matcher.match(recall, rerank)
        return evidence

    def _key(self, known: _Known | None) -> int:
        if known:
            return known.key
        self.next_key += 1
        return self.next_key - 1

    def _known(self, uris: list[str], batch: str) -> dict[str, _Known]:
        rows = self.context.ledger.query(
            "SELECT uri, generated_key, content_hash, epoch_valued FROM generated JOIN uris USING (uri) WHERE batch = $batch",
            {"batch": batch},
            uris=pa.table({"uri": pa.array(sorted(set(uris)), pa.string())}),
        )
        return {row["uri"]: _Known(row["generated_key"], row["content_hash"], row["epoch_valued"]) for row in rows.to_pylist()}

    def _append(self, embedded: list[Embedded]) -> dict[str, np.ndarray]:
        """Keep the vectors of each view; returns the locations by feature space."""
        spaces = {}
        with self.run.timed("write"):
            for index, view in enumerate(self.context.views):
                recall = np.stack([item.recall[index] for item in embedded])
                rerank = np.stack([item.rerank[index] for item in embedded if item.rerank is not None])
                spaces[f"generated/recall{view}"] = self.context.space(f"generated/recall{view}").append(recall)
                spaces[f"generated/rerank{view}"] = self.context.space(f"generated/rerank{view}").append(rerank)
        return spaces

    def _replace(
        self,
        con: Connection,
        keys: list[int],
        valued: list[Loaded],
        evidence: list[Matches],
        embedded: dict[str, Embedded],
        batch: str,
    ) -> None:
        replace_matches(con, keys, evidence)
        con.execute("DELETE FROM generated WHERE generated_key IN (SELECT unnest(?::INTEGER[]))", [keys])
        insert(
            con,
            "generated",
            {
                "generated_key": keys,
                "point_id": [str(item.point_id) for item in valued],
                "content_hash": [item.hash for item in valued],
                "uri": [item.record.uri for item in valued],
                "batch": [batch] * len(keys),
                "label": pa.array([item.record.label for item in valued], pa.string()),
                "quality": pa.array([embedded[item.hash].quality for item in valued], pa.float64()),
                "recall_radius": [matches.radius for matches in evidence],
                "epoch_valued": [self.run.epoch] * len(keys),
                "attributes": [json.dumps(item.record.attributes) for item in valued],
            },
        )


def replace_matches(con: Connection, keys: Sequence[int], evidence: Sequence[Matches]) -> None:
    """The evidence of these generated images, in place of what there was."""
    con.execute("DELETE FROM matches WHERE generated_key IN (SELECT unnest(?::INTEGER[]))", [list(keys)])
    insert(con, "matches", evidence_columns(keys, evidence))
