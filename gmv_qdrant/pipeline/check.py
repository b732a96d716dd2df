"""Check: what must hold between ledger, store and feature files, and a sentence for everything that doesn't.

Nothing is changed here; `repairing` repairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from gmv_qdrant.errors import FingerprintMismatch, ImageError, StoreError
from gmv_qdrant.images.records import content_hash
from gmv_qdrant.images.sources import read_uri
from gmv_qdrant.pipeline.context import Context
from gmv_qdrant.pipeline.ingest import stores_rerank
from gmv_qdrant.pipeline.recovery import find_unknown_points, left_over
from gmv_qdrant.pipeline.streams import mapped
from gmv_qdrant.pipeline.value import CONSERVATION

NORM_TOLERANCE = 1e-3
"""Of the unit vectors that a collection with cosine distance keeps."""


@dataclass(slots=True)
class Finding:
    """One thing that is wrong: its kind, how often, a sentence; and what was done about it, if anything was."""

    kind: str
    count: int
    sentence: str
    repaired: str | None = None
    keys: list[Any] = field(default_factory=list, repr=False)
    """Which rows or points, for the repair."""

    def __str__(self) -> str:
        return f"{self.sentence}; {self.repaired}" if self.repaired else self.sentence

    def as_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "keys"}


def check(context: Context, *, read_images: bool = False) -> list[Finding]:
    """Everything that is wrong, in the order in which it should be repaired."""
    findings = []
    for look in (_unfinished, _fingerprint, _ledger, _features, _store):
        findings += list(look(context))
    if read_images:
        findings += list(_sources(context))
    return findings


def _unfinished(context: Context) -> Iterator[Finding]:
    runs = context.ledger.query("SELECT verb FROM runs WHERE status = 'running'")["verb"].to_pylist()
    if runs:
        yield Finding(
            "unfinished", len(runs), f"{len(runs)} runs were killed before their end: {_some(runs)}"
        )
    elif context.ledger.meta().get("settled") == "false":
        yield Finding("unfinished", 1, "the last run failed, and what it left half-done is not tidied up")


def _fingerprint(context: Context) -> Iterator[Finding]:
    try:
        context.write_fingerprint()
    except FingerprintMismatch as error:
        yield Finding("fingerprint", 1, str(error))


# -- the ledger by itself: kind, sentence about {n} rows, and a SELECT of their keys ---------------------------------

_MUST = "(SELECT count(*) FROM training WHERE version_withdrawn IS NULL)"
_LEDGER = (
    ("training twice", "{n} training images have the same key, id or hash as another", """
        SELECT training_key AS key FROM training GROUP BY ALL HAVING count(*) > 1
        UNION SELECT min(training_key) FROM training GROUP BY point_id HAVING count(*) > 1
        UNION SELECT min(training_key) FROM training GROUP BY content_hash HAVING count(content_hash) > 1"""),
    ("generated twice", "{n} generated images stand in the ledger twice", """
        SELECT generated_key AS key FROM generated GROUP BY ALL HAVING count(*) > 1
        UNION SELECT unnest(list(generated_key ORDER BY generated_key DESC)[2:])
        FROM generated GROUP BY uri, batch HAVING count(*) > 1"""),
    ("source twice", "{n} training images have the same source twice", """
        SELECT DISTINCT training_key AS key FROM sources GROUP BY training_key, uri HAVING count(*) > 1"""),
    ("feature twice", "{n} images have two rows in one feature space", """
        SELECT DISTINCT key FROM features GROUP BY space, key HAVING count(*) > 1"""),
    ("source of nothing", "{n} sources belong to no training image", """
        SELECT DISTINCT training_key AS key FROM sources
        ANTI JOIN (FROM training WHERE version_withdrawn IS NULL) USING (training_key)"""),
    ("no source", "{n} training images have no source, so nobody gets their credit", """
        SELECT training_key AS key FROM training ANTI JOIN sources USING (training_key)
        WHERE version_withdrawn IS NULL"""),
    ("match of nothing", "{n} keys of generated images in the evidence belong to no generated image", """
        SELECT generated_key AS key FROM matches ANTI JOIN generated USING (generated_key)
        UNION SELECT generated_key FROM spare_candidates ANTI JOIN generated USING (generated_key)"""),
    ("evidence", "{n} generated images are credited to training images that aren't there", """
        SELECT DISTINCT generated_key AS key FROM matches SEMI JOIN generated USING (generated_key)
        ANTI JOIN (FROM training WHERE version_withdrawn IS NULL) USING (training_key)"""),
    ("evidence", "{n} generated images have ranks that don't run from 1 to n", """
        SELECT generated_key AS key FROM matches SEMI JOIN generated USING (generated_key) GROUP BY generated_key
        HAVING min(rank) <> 1 OR max(rank) <> count(*) OR count(DISTINCT rank) <> count(*)"""),
    ("evidence", "{n} generated images are credited to one training image twice", """
        SELECT DISTINCT generated_key AS key FROM matches SEMI JOIN generated USING (generated_key)
        GROUP BY generated_key, training_key HAVING count(*) > 1"""),
    ("evidence", "{n} generated images have distances that aren't in order, or are no distances", """
        SELECT DISTINCT generated_key AS key FROM (
            SELECT generated_key, distance, point_id, lag(distance) OVER one AS before, lag(point_id) OVER one AS above
            FROM matches JOIN training USING (training_key) WINDOW one AS (PARTITION BY generated_key ORDER BY rank))
        WHERE NOT isfinite(distance) OR distance < 0 OR distance < before
        OR (distance = before AND point_id < above)"""),
    ("evidence", "{n} generated images have fewer matches than there were candidates", f"""
        SELECT g.generated_key AS key FROM generated g LEFT JOIN matches m USING (generated_key)
        WHERE version_valued = (SELECT value::INTEGER FROM meta WHERE key = 'training_version')
        GROUP BY g.generated_key HAVING count(m.rank) <> least($candidates, {_MUST})"""),
    ("evidence", "{n} generated images have candidates in spare that aren't the next nearest", """
        SELECT DISTINCT r.generated_key AS key FROM spare_candidates r JOIN generated USING (generated_key)
        LEFT JOIN matches m USING (generated_key, training_key)
        LEFT JOIN training t ON t.training_key = r.training_key AND t.version_withdrawn IS NULL
        WHERE m.rank IS NOT NULL OR t.point_id IS NULL OR NOT r.recall_distance >= recall_radius"""),
    ("evidence", "{n} generated images have no recall radius, or an training_version that is still to come", """
        SELECT generated_key AS key FROM generated WHERE recall_radius IS NULL OR isnan(recall_radius)
        OR version_valued > (SELECT value::INTEGER FROM meta WHERE key = 'training_version')"""),
    ("quality", "{n} generated images have a quality outside of [0, 1]", """
        SELECT generated_key AS key FROM generated WHERE NOT coalesce(quality, 0) BETWEEN 0 AND 1"""),
    ("evidence", "{n} generated images give away more or less than their quality", f"""
        SELECT generated_key AS key FROM contributions(k := NULL) GROUP BY generated_key
        HAVING NOT abs(sum(contribution) - any_value(quality))
            <= {CONSERVATION} * greatest(any_value(quality), 1e-9)"""),
)  # fmt: skip


def _ledger(context: Context) -> Iterator[Finding]:
    numbers = True
    for kind, sentence, select in _LEDGER:
        if not numbers and "contributions(" in select:
            continue  # what isn't a distance can't be added up
        given = {"candidates": context.settings.candidates} if "$candidates" in select else ()
        keys = context.ledger.query(select, given)["key"].to_pylist()
        if keys:
            numbers &= "isfinite" not in select
            yield Finding(kind, len(keys), sentence.format(n=len(keys)), keys=keys)


# -- feature files ---------------------------------------------------------------------------------------------------


def _features(context: Context) -> Iterator[Finding]:
    for space in ("training/rerank", *context.generated_spaces):
        yield from _space(context, space)


def _space(context: Context, space: str) -> Iterator[Finding]:
    files = context.space(space)
    rows = context.ledger.query("SELECT key, shard, row FROM features WHERE space = $space", {"space": space})
    keys, shards, places = (column.to_numpy() for column in rows.columns)
    lost: list[int] = []
    for shard in np.unique(shards).tolist():
        mine = shards == shard
        try:
            good = mine & (places < files.rows(shard)) & (places >= 0)
            finite = np.isfinite(files.gather(np.stack([shards[good], places[good]], axis=1))).all(axis=1)
            good[np.flatnonzero(good)[~finite]] = False
        except (StoreError, ValueError):  # not there, not readable, of another width
            good = np.zeros(len(keys), dtype=bool)
        lost += keys[mine & ~good].tolist()
    if lost:
        sentence = f"{len(lost)} rows of the feature space {space} are named in the ledger, but can't be read"
        yield Finding("features", len(lost), sentence, keys=[(space, key) for key in lost])
    table = "generated" if space.startswith("generated/") else "training"
    if table == "generated" or (context.owns_collection and stores_rerank(context)):
        where = "" if table == "generated" else "WHERE version_withdrawn IS NULL"
        missing = context.ledger.query(
            f"""SELECT {table}_key AS key FROM {table} ANTI JOIN (FROM features WHERE space = $space) f
            ON f.key = {table}_key {where}""",
            {"space": space},
        )["key"].to_pylist()
        if missing:
            sentence = f"{len(missing)} {table} images have no vector in the feature space {space}"
            yield Finding("features", len(missing), sentence, keys=[(space, key) for key in missing])
    orphans = sorted(set(files.shards()) - set(shards.tolist()))
    if orphans:
        sentence = f"{len(orphans)} files of the feature space {space} hold nothing that the ledger names"
        yield Finding("orphan shards", len(orphans), sentence)


# -- the store -------------------------------------------------------------------------------------------------------


def _store(context: Context) -> Iterator[Finding]:
    wrong, seen = [], []
    cosine = context.store.spec.distance == "cosine"
    for page in context.store.scroll(with_vectors=True):
        seen += [str(point.id) for point in page]
        for point in page:
            norm = float(np.linalg.norm(point.vector)) if point.vector is not None else np.nan
            fits = point.vector is not None and len(point.vector) == context.store.spec.dim
            if not fits or not np.isfinite(norm) or (cosine and abs(norm - 1) > NORM_TOLERANCE):
                wrong.append(str(point.id))
    training = context.ledger.query("SELECT point_id FROM training WHERE version_withdrawn IS NULL")
    missing = sorted(set(training["point_id"].to_pylist()) - set(seen))
    if wrong:
        sentence = (
            f"{len(wrong)} points of the store have no vector of {context.store.spec.dim} finite numbers"
        )
        yield Finding("vectors", len(wrong), sentence + (" and length 1" if cosine else ""), keys=wrong)
    if missing:
        sentence = f"{len(missing)} training images of the ledger are not in the store, so nobody is matched with them"
        yield Finding("vectors", len(missing), sentence, keys=missing)
    if not context.owns_collection:
        return
    unknown_points, renamed = find_unknown_points(context)
    left = left_over(context, unknown_points)
    if left:
        sentence = f"{len(left)} points of the store were left behind by runs that were stopped"
        yield Finding("left over", len(left), sentence, keys=left)
    if strange := sorted(unknown_points.keys() - set(left)):
        sentence = (
            f"{len(strange)} points of the store are of no run of this workspace, and stay: {_some(strange)}"
        )
        yield Finding("unknown points", len(strange), sentence, keys=strange)
    if renamed:
        sentence = f"{len(renamed)} points of the store name a source that is not theirs"
        yield Finding("payloads", len(renamed), sentence, keys=list(renamed))


# -- the images ------------------------------------------------------------------------------------------------------


def _sources(context: Context) -> Iterator[Finding]:
    """Read every source: one finding for those that are gone, one for those that have become something else."""
    rows = context.ledger.query(
        "SELECT uri, content_hash FROM sources JOIN training USING (training_key) WHERE version_withdrawn IS NULL"
    ).to_pylist()
    context.progress.phase("read images", len(rows))
    unreadable, changed = [], []
    for uri, state in mapped(context.pool, lambda row: _state(row, context.allowed), rows, 64):
        if state == "unreadable":
            unreadable.append(uri)
        elif state == "changed":
            changed.append(uri)
        context.progress.advance()
    if unreadable:
        sentence = f"{len(unreadable)} source images can't be read any more: {_some(unreadable)}"
        yield Finding("unreadable", len(unreadable), sentence, keys=unreadable)
    if changed:
        sentence = f"{len(changed)} source images are no longer what was taken in: {_some(changed)}"
        yield Finding("changed", len(changed), sentence, keys=changed)


def _state(row: dict[str, Any], allowed: Sequence[str]) -> tuple[str, str]:
    try:
        data = read_uri(row["uri"], allowed)
    except ImageError:
        return row["uri"], "unreadable"
    return row["uri"], "same" if row["content_hash"] in (None, content_hash(data)) else "changed"


def _some(names: list[str], most: int = 3) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
