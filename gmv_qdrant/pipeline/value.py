"""Value: each generated image goes through the networks once and gets its evidence.

Order of writes, for each chunk: matrix rows (synced), then one ledger transaction for all these images.
What the evidence is worth is a question for SQL (``ledger/credits.sql``). One chunk is matched and written while
the next goes through the networks; vectors go from the networks to matching in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa

from gmv_qdrant.errors import LedgerError, SettingsError, StoreError
from gmv_qdrant.images.records import Record, Unusable
from gmv_qdrant.ledger import candidates
from gmv_qdrant.ledger.candidates import Matches
from gmv_qdrant.ledger.database import Connection, Ledger, Readable, insert
from gmv_qdrant.ledger.runs import Run
from gmv_qdrant.pipeline.embedding import Content, Embedded
from gmv_qdrant.pipeline.ingest import Engine, Items, weight
from gmv_qdrant.pipeline.matching import Matcher
from gmv_qdrant.pipeline.spaces import Spaces
from gmv_qdrant.pipeline.streams import BackgroundWriter, Progress, chunked

CONSERVATION = 1e-9
"""Largest relative error allowed in sum_i V_ij = q_j and sum_i phi_i = sum_j q_j."""
LAST_KEY = "last_generated_key"
"""Of the ledger's small facts: keys are never used again for another image, whose rows a reader might still want."""


def value(
    records: Iterable[Record | Unusable],
    batch: str,
    run: Run,
    ledger: Ledger,
    spaces: Spaces,
    embed: Engine,
    matcher: Matcher,
    progress: Progress,
    *,
    control: bool = False,
) -> None:
    """Value generated images, under the name ``batch``; those valued already against this training set stay.

    control: they are known to resemble no training image, and earn no credit. Raises `SettingsError` when the batch
    has images of the other kind.
    """
    others = ledger.query(
        "SELECT count(*) AS n FROM generated WHERE batch = $batch AND control <> $control",
        {"batch": batch, "control": control},
    )["n"][0].as_py()
    if others:
        kind, name = (
            ("generated images", "a control set") if control else ("a control set", "generated images")
        )
        raise SettingsError(
            f"the batch {batch!r} has {kind} of before: give {name} another name with --batch"
        )
    with run.timed("optimize"):
        spaces.store.optimize()  # an erasure leaves none of the codes
    valued = ValuedImages(run, ledger, spaces, batch, control)

    def chunks() -> Iterator[Items]:
        for chunk in chunked(records, partial(weight, spaces), smallest=32, largest=1024):
            run.counts["seen"] += len(chunk)
            yield chunk

    def finish(images: list[Embedded]) -> None:
        valued.keep(images, find_evidence(images, matcher))

    with BackgroundWriter() as behind:
        for contents in embed(chunks(), valued.contents):
            if images := valued.to_value(contents):
                behind.hand_over(partial(finish, images))
            progress.skip(len(contents) - len(images))
            progress.advance(len(images))
    spaces.zero_generated(valued.left)
    if matcher.unknown_points:
        run.counts["unknown_points"] = len(matcher.unknown_points)
    check_conservation(run, ledger)


def find_evidence(images: Sequence[Embedded], matcher: Matcher) -> list[Matches]:
    """The evidence of images that went through the networks; equal contents are matched once. Nothing is written."""
    distinct = {image.hash: image for image in images}
    found = matcher.match(
        np.stack([image.recall for image in distinct.values()]),
        np.stack([image.rerank for image in distinct.values() if image.rerank is not None]),
    )
    of_hash = dict(zip(distinct, found, strict=True))
    return [of_hash[image.hash] for image in images]


def require_training_images(ledger: Readable) -> None:
    """Raises `StoreError` with a hint where there are none."""
    count = ledger.query("SELECT count(*) AS n FROM training WHERE version_withdrawn IS NULL")["n"][0].as_py()
    if count == 0:
        raise StoreError(
            "there are no training images to value against: take them in with 'gmv-qdrant ingest PATH' first"
        )


def check_conservation(run: Run, ledger: Ledger) -> None:
    """Sum_i V_ij = q_j for every j, and sum_i phi_i = sum_j q_j, over everything in the ledger.

    Raises `LedgerError` when the evidence doesn't add up.
    """
    with run.timed("check"):
        error = ledger.query("SELECT * FROM conservation(k := NULL)").to_pylist()[0]
    worst = max(abs(float(v)) for v in error.values() if v is not None)
    run.figures["conservation_error"] = worst
    if not worst <= CONSERVATION:
        raise LedgerError(
            f"the credits of {ledger.path} don't add up to the qualities (relative error {worst:.3g}): "
            "'gmv-qdrant check' says which rows are wrong"
        )


_Facts = tuple[str, int, str | None, str]
"""Content hash, training_version, label and attributes of a generated image: what its evidence follows from."""


class ValuedImages:
    """The generated images of the ledger, and those that come to it under the name ``batch``."""

    def __init__(self, run: Run, ledger: Ledger, spaces: Spaces, batch: str, control: bool = False) -> None:
        self._control = control
        self._run = run
        self._ledger = ledger
        self._spaces = spaces
        self._batch = batch
        self._last_key = int(ledger.meta().get(LAST_KEY, 0))
        self._before: dict[str, tuple[int, float | None]] = {}
        """Contents that were valued before: a key whose rows have the vectors, and the quality."""
        self.left: list[int] = []
        """Keys that no image has any more; their rows may still be read from until the run ends."""

    def contents(self, hashes: set[str]) -> set[str]:
        """Content hashes of images that were valued before, under any name: their vectors are kept."""
        rows = self._ledger.query(
            """SELECT content_hash, min(generated_key) AS key, any_value(quality) AS quality
            FROM generated JOIN hashes USING (content_hash) GROUP BY content_hash""",
            hashes=pa.table({"content_hash": pa.array(sorted(hashes), pa.string())}),
        ).to_pylist()
        self._before |= {row["content_hash"]: (row["key"], row["quality"]) for row in rows}
        return hashes & self._before.keys()

    def to_value(self, contents: Sequence[Content | Unusable]) -> list[Embedded]:
        """With their vectors, those that aren't valued yet as they are now; the rest is counted or quarantined."""
        once: dict[str, Content] = {}
        for item in contents:
            if isinstance(item, Unusable):
                self._run.quarantine(item.uri, item.reason, item.kind)
            elif once.setdefault(item.record.uri, item) is not item:  # a path may have been given twice
                self._run.counts["known"] += 1
        done = self._valued(list(once))
        todo = [item for uri, item in once.items() if done.get(uri) != self._facts(item)]
        self._run.counts["known"] += len(once) - len(todo)
        self._run.resolve(sorted(once.keys() - {item.record.uri for item in todo}))
        return list(self._with_vectors(todo))

    def keep(self, images: Sequence[Embedded], evidence: Sequence[Matches]) -> None:
        """Write vectors and evidence, in place of what these images had."""
        keys, left = self._keys(images)
        with self._run.timed("write"):
            self._spaces.write_generated(
                keys,
                np.stack([image.recall for image in images]),
                np.stack([image.rerank for image in images if image.rerank is not None]),
            )
            with self._ledger.write() as con:
                self._replace(con, keys, left, images, evidence)
                self._run.write_quarantine(con, resolved=[image.record.uri for image in images])
        self.left += left
        self._run.counts["valued"] += len(keys)

    def _facts(self, item: Content) -> _Facts:
        return item.hash, self._run.training_version, item.record.label, json.dumps(item.record.attributes)

    def _valued(self, uris: list[str]) -> dict[str, _Facts]:
        rows = self._ledger.query(
            """SELECT uri, content_hash, version_valued, label, attributes
            FROM generated JOIN uris USING (uri) WHERE batch = $batch""",
            {"batch": self._batch},
            uris=pa.table({"uri": pa.array(uris, pa.string())}),
        )
        return {uri: tuple(facts) for uri, *facts in zip(*(c.to_pylist() for c in rows.columns), strict=True)}

    def _with_vectors(self, todo: Sequence[Content]) -> Iterator[Embedded]:
        before = {item.hash: self._before[item.hash] for item in todo if item.image is None}
        recall, rerank = self._spaces.generated(np.array([key for key, _ in before.values()], dtype=np.int64))
        place = {hash_: index for index, hash_ in enumerate(before)}
        for item in todo:
            if item.image is not None:
                yield replace(item.image, record=item.record)
            else:
                at, quality = place[item.hash], before[item.hash][1]
                yield Embedded(item.record, item.hash, 0, 0, recall[at], rerank[at], quality)

    def _keys(self, images: Sequence[Embedded]) -> tuple[list[int], list[int]]:
        """Keys of these images: that of the same content under the same name, or a new one; and keys that are left."""
        rows = self._ledger.query(
            """SELECT uri, generated_key AS key, content_hash FROM generated JOIN uris USING (uri)
            WHERE batch = $batch""",
            {"batch": self._batch},
            uris=pa.table({"uri": pa.array([image.record.uri for image in images], pa.string())}),
        ).to_pylist()
        of = {(row["uri"], row["content_hash"]): row["key"] for row in rows}
        keys = []
        for image in images:
            name = image.record.uri, image.hash
            if name not in of:
                self._last_key += 1
                of[name] = self._last_key
            keys.append(of[name])
        return keys, sorted({row["key"] for row in rows} - set(keys))

    def _replace(
        self,
        con: Connection,
        keys: list[int],
        left: list[int],
        images: Sequence[Embedded],
        evidence: Sequence[Matches],
    ) -> None:
        candidates.forget(con, left)
        candidates.replace(con, keys, evidence)
        con.execute(
            "DELETE FROM generated WHERE generated_key IN (SELECT unnest(?::INTEGER[]))", [keys + left]
        )
        insert(
            con,
            "generated",
            {
                "generated_key": pa.array(keys, pa.int32()),
                "point_id": [str(image.point_id) for image in images],
                "content_hash": [image.hash for image in images],
                "uri": [image.record.uri for image in images],
                "batch": [self._batch] * len(keys),
                "control": [self._control] * len(keys),
                "label": pa.array([image.record.label for image in images], pa.string()),
                "quality": pa.array([image.quality for image in images], pa.float64()),
                "recall_radius": [matches.radius for matches in evidence],
                "version_valued": [self._run.training_version] * len(keys),
                "attributes": [json.dumps(image.record.attributes) for image in images],
            },
        )
        self._ledger.set_meta(con, **{LAST_KEY: self._last_key})
