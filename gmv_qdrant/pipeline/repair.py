"""Repair: mends what `check` finds, from what is still whole: the source images first of all.

Each step leaves the workspace no worse when it is killed, and the whole is checked again at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from gmv_qdrant.images.records import Unusable
from gmv_qdrant.ledger.candidates import forget
from gmv_qdrant.ledger.database import Ledger
from gmv_qdrant.pipeline.assembly import Assembly
from gmv_qdrant.pipeline.check import Finding, check
from gmv_qdrant.pipeline.embedding import Embedded, Embedder, Loaded
from gmv_qdrant.pipeline.recovery import recover, remove_left_over, remove_withdrawn, rename_points
from gmv_qdrant.pipeline.searching import differing
from gmv_qdrant.pipeline.streams import batched, mapped
from gmv_qdrant.pipeline.training_vectors import still_the_same
from gmv_qdrant.pipeline.update import update
from gmv_qdrant.vectors.protocol import RUN

BATCH = 256


def repair(parts: Assembly, findings: list[Finding], *, read_images: bool = False) -> list[Finding]:
    """Mend, bring the credits up to date, and check again: what is still wrong then is not marked as repaired."""
    if any(finding.kind == "fingerprint" for finding in findings):
        return findings  # by another model's vectors nothing can be repaired
    mendable = [finding for finding in findings if finding.kind in _REPAIRS]
    mendable.sort(key=lambda one: _ORDER.index(one.kind))
    said = [(finding, _REPAIRS[finding.kind](parts, finding)) for finding in mendable]
    if not parts.spaces.owned or not differing(parts.ledger, parts.spaces.store)[0]:
        update(parts.run, parts.ledger, parts.spaces, parts.matcher(), parts.progress)
    left = check(parts, read_images=read_images)
    parts.run.counts["repaired"] = len(said)
    for finding, what in said:
        if not _among(finding, left):
            finding.repaired = what
    return findings + [one for one in left if one.kind != "unfinished" and not _among(one, findings)]


def _among(finding: Finding, others: list[Finding]) -> bool:
    return any((one.kind, one.sentence) == (finding.kind, finding.sentence) for one in others)


# -- the ledger ------------------------------------------------------------------------------------------------------


def _value_again(ledger: Ledger, keys: Sequence[int]) -> None:
    """Forget the evidence of these generated images; `update` finds it anew."""
    with ledger.write() as con:
        forget(con, keys)
        con.execute(
            "UPDATE generated SET version_valued = 0 WHERE generated_key IN (SELECT unnest(?::INTEGER[]))",
            [list(keys)],
        )


def _evidence(parts: Assembly, finding: Finding) -> str:
    _value_again(parts.ledger, finding.keys)
    return "they were valued again"


def _stray_matches(parts: Assembly, finding: Finding) -> str:
    with parts.ledger.write() as con:
        forget(con, finding.keys)
    return "those matches were deleted"


def _stray_sources(parts: Assembly, finding: Finding) -> str:
    with parts.ledger.write() as con:
        con.execute("DELETE FROM sources WHERE training_key IN (SELECT unnest(?::INTEGER[]))", [finding.keys])
    return "those sources were deleted"


def _doubled(table: str, columns: str) -> Callable[[Assembly, Finding], str]:
    def repair_doubled(parts: Assembly, finding: Finding) -> str:
        with parts.ledger.write() as con:
            con.execute(
                f"DELETE FROM {table} WHERE rowid NOT IN (SELECT max(rowid) FROM {table} GROUP BY {columns})"
            )
        return "the later row of each was kept"

    return repair_doubled


def _doubled_generated(parts: Assembly, finding: Finding) -> str:
    said = _doubled("generated", "uri, batch")(parts, finding)
    with parts.ledger.write() as con:
        for table in ("matches", "spare_candidates"):
            con.execute(
                f"DELETE FROM {table} WHERE generated_key NOT IN (SELECT generated_key FROM generated)"
            )
    return said


def _unfinished(parts: Assembly, finding: Finding) -> str:
    parts.run.unsettled = True
    recover(parts.run, parts.ledger, parts.spaces, parts.root)
    return "what they left between their writes was tidied up"


# -- the store -------------------------------------------------------------------------------------------------------


def _left_over(parts: Assembly, finding: Finding) -> str:
    remove_left_over(parts.ledger, parts.spaces.store)
    return "they were deleted"


def _withdrawn(parts: Assembly, finding: Finding) -> str:
    remove_withdrawn(parts.ledger, parts.spaces, parts.root)
    return "they were deleted"


def _payloads(parts: Assembly, finding: Finding) -> str:
    rename_points(parts.ledger, parts.spaces, finding.keys)
    return "they name one of theirs now"


def _points(parts: Assembly, finding: Finding) -> str | None:
    """Recall vectors that the store lacks; no search was made without them."""
    return _embed_points(parts, finding.keys)


def _point_vectors(parts: Assembly, finding: Finding) -> str | None:
    """Recall vectors that were wrong; whoever was matched with them is valued again."""
    said = _embed_points(parts, finding.keys)
    if said is None:
        return None
    everybody = parts.ledger.query("SELECT generated_key FROM generated")["generated_key"].to_pylist()
    _value_again(parts.ledger, everybody)
    return f"{said}; all generated images were valued again"


def _damaged_files(parts: Assembly, finding: Finding) -> str | None:
    """All recall vectors, for nobody knows which were hit."""
    ids = parts.ledger.query("SELECT point_id FROM training WHERE version_withdrawn IS NULL")
    said = _point_vectors(parts, replace(finding, keys=ids["point_id"].to_pylist()))
    parts.spaces.store.purge()
    parts.spaces.store.optimize()
    return said


def _embed_points(parts: Assembly, points: Sequence[str]) -> str | None:
    if not parts.spaces.owned:
        return None
    store, done = parts.spaces.store, 0
    rows = parts.ledger.query(
        """SELECT point_id, content_hash AS hash, list(uri ORDER BY uri) AS uris
        FROM training JOIN sources USING (training_key) JOIN wanted USING (point_id)
        WHERE version_withdrawn IS NULL GROUP BY ALL""",
        wanted=pa.table({"point_id": pa.array(points, pa.string())}),
    ).to_pylist()
    for images in _embedded(parts, rows, parts.training_embedder()):
        store.upsert(
            [image.point_id for image in images],
            np.concatenate([image.recall for image in images]),
            [{"uri": image.record.uri, "sha256": image.hash, RUN: parts.run.run_id} for image in images],
        )
        done += len(images)
    store.flush()
    lost = len(points) - done
    said = f"{done} were computed again from their sources"
    return said if not lost else f"{said}, but the sources of {lost} are gone: withdraw those"


# -- the matrices ----------------------------------------------------------------------------------------------------


def _training_vectors(parts: Assembly, finding: Finding) -> str:
    """Computed again from the images."""
    assert parts.spaces.training is not None
    parts.spaces.training.zero(finding.keys)
    made = 0
    for keys in batched(finding.keys, BATCH):
        vectors = list(parts.maker()(keys))
        if vectors:
            parts.spaces.training.write([key for key, _ in vectors], np.stack([row for _, row in vectors]))
        made += len(vectors)
    lost = len(finding.keys) - made
    said = f"{made} were computed again from their sources"
    return said if not lost else f"{said}, but the sources of {lost} are gone: withdraw those"


def _generated_vectors(parts: Assembly, finding: Finding) -> str:
    """Both vectors of these generated images, whichever was lost."""
    rows = parts.ledger.query(
        """SELECT list(generated_key) AS keys, content_hash AS hash, list(uri) AS uris FROM generated
        JOIN wanted USING (generated_key) GROUP BY content_hash""",
        wanted=pa.table({"generated_key": pa.array(finding.keys, pa.int32())}),
    ).to_pylist()
    parts.spaces.zero_generated(finding.keys)
    keys_of = {row["hash"]: row["keys"] for row in rows}
    made = 0
    for images in _embedded(parts, rows, parts.generated_embedder()):
        for image in images:
            assert image.rerank is not None
            keys = keys_of[image.hash]
            parts.spaces.write_generated(
                keys, np.stack([image.recall] * len(keys)), np.stack([image.rerank] * len(keys))
            )
            made += len(keys)
    lost = len(finding.keys) - made
    said = f"{made} were computed again from their images"
    return said if not lost else f"{said}, but the files of {lost} are gone: put those back"


def _embedded(
    parts: Assembly, rows: Sequence[dict[str, Any]], embedder: Embedder
) -> Iterator[list[Embedded]]:
    """Images from the first of their ``uris`` that still has the bytes of ``hash``, through the networks."""

    def load(row: dict[str, Any]) -> Loaded | Unusable:
        return still_the_same(row, parts.allowed)

    for some in batched(rows, BATCH):
        loaded = [one for one in mapped(load, some) if isinstance(one, Loaded)]
        found = [image for image in embedder(loaded) if isinstance(image, Embedded)]
        if found:
            yield found


_REPAIRS: dict[str, Callable[[Assembly, Finding], str | None]] = {
    "source twice": _doubled("sources", "training_key, uri, owner"),
    "generated twice": _doubled_generated,
    "source of nothing": _stray_sources,
    "match of nothing": _stray_matches,
    "unfinished": _unfinished,
    "left over": _left_over,
    "withdrawn points": _withdrawn,
    "points": _points,
    "point vectors": _point_vectors,
    "damaged files": _damaged_files,
    "payloads": _payloads,
    "training vectors": _training_vectors,
    "generated vectors": _generated_vectors,
    "evidence": _evidence,
}
_ORDER = list(_REPAIRS)
