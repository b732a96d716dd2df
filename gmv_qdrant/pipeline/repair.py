"""Repair: repairs what `checking` finds, from what is still whole: the source images first of all.

Each mender leaves the workspace no worse when it is killed, and the whole is checked again at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from gmv_qdrant.errors import ImageError
from gmv_qdrant.images.records import Record, content_hash
from gmv_qdrant.images.sources import read_uri
from gmv_qdrant.ledger.candidates import forget
from gmv_qdrant.ledger.runs import Run, recorded
from gmv_qdrant.pipeline.check import Finding, check
from gmv_qdrant.pipeline.context import Context
from gmv_qdrant.pipeline.ingest import insert_features
from gmv_qdrant.pipeline.loading import Embedded, Embedder, Loaded
from gmv_qdrant.pipeline.recovery import compact, recover, tidy_points
from gmv_qdrant.pipeline.reranking import RerankVectors
from gmv_qdrant.pipeline.update import update
from gmv_qdrant.vectors.protocol import RUN

BATCH = 256


def repair_all(context: Context, findings: list[Finding]) -> list[Finding]:
    """Mend, bring the credits up to date, and check again: what is still wrong then is not marked as repaired."""
    if any(finding.kind == "fingerprint" for finding in findings):
        return findings  # by another model's vectors nothing can be repaired
    with recorded(context.ledger, "check", context.settings.evidence(), {"repair": True}) as run:
        said = {}
        for finding in sorted(findings, key=lambda one: _ORDER.index(one.kind) if one.kind in _ORDER else -1):
            if finding.kind in _MENDERS:
                said[id(finding)] = _MENDERS[finding.kind](context, run, finding)
        compact(context, run)
        update(context, run)
        left = check(context)
        run.counts["repaired"] = len(said)
    still = {(finding.kind, finding.sentence) for finding in left}
    for finding in findings:
        if id(finding) in said and (finding.kind, finding.sentence) not in still:
            finding.repaired = said[id(finding)]
    known = {(finding.kind, finding.sentence) for finding in findings}
    return findings + [
        one for one in left if (one.kind, one.sentence) not in known and one.kind != "unfinished"
    ]


def _value_again(context: Context, keys: Sequence[int]) -> None:
    """Forget the evidence of these generated images; `update` finds it anew."""
    with context.ledger.write() as con:
        forget(con, keys)
        con.execute(
            "UPDATE generated SET version_valued = 0 WHERE generated_key IN (SELECT unnest(?::INTEGER[]))",
            [list(keys)],
        )


def _evidence(context: Context, run: Run, finding: Finding) -> str:
    _value_again(context, finding.keys)
    return "they were valued again"


def _stray_matches(context: Context, run: Run, finding: Finding) -> str:
    with context.ledger.write() as con:
        forget(con, finding.keys)
    return "those matches were deleted"


def _stray_sources(context: Context, run: Run, finding: Finding) -> str:
    with context.ledger.write() as con:
        con.execute("DELETE FROM sources WHERE training_key IN (SELECT unnest(?::INTEGER[]))", [finding.keys])
    return "those sources were deleted"


def _doubled(table: str, columns: str) -> Callable[[Context, Run, Finding], str]:
    def repair(context: Context, run: Run, finding: Finding) -> str:
        with context.ledger.write() as con:
            con.execute(
                f"""DELETE FROM {table} WHERE rowid NOT IN (SELECT max(rowid) FROM {table} GROUP BY {columns})"""
            )
        return "the later row of each was kept"

    return repair


def _doubled_generated(context: Context, run: Run, finding: Finding) -> str:
    said = _doubled("generated", "uri, batch")(context, run, finding)
    with context.ledger.write() as con:
        con.execute("DELETE FROM matches WHERE generated_key NOT IN (SELECT generated_key FROM generated)")
        con.execute(
            """DELETE FROM features WHERE starts_with(space, 'generated/')
            AND key NOT IN (SELECT generated_key FROM generated)"""
        )
    return said


def _unfinished(context: Context, run: Run, finding: Finding) -> str:
    run.unsettled = True
    recover(context, run)
    return "what they left between their writes was tidied up"


def _points(context: Context, run: Run, finding: Finding) -> str:
    tidy_points(context, run)
    return "they were deleted" if finding.kind == "left over" else "they name one of theirs now"


def _orphans(context: Context, run: Run, finding: Finding) -> str:
    return "they were deleted"  # by `compact`, at the end


def _vectors(context: Context, run: Run, finding: Finding) -> str | None:
    """Recall vectors, computed again from the sources; whoever could be matched with them is valued again."""
    if not context.owns_collection:
        return None
    rows = context.ledger.query(
        """SELECT point_id, content_hash, list(uri ORDER BY uri) AS uris
        FROM training JOIN sources USING (training_key) JOIN wanted USING (point_id)
        WHERE version_withdrawn IS NULL GROUP BY ALL""",
        wanted=pa.table({"point_id": pa.array(finding.keys, pa.string())}),
    ).to_pylist()
    embedder = Embedder(context, rerank=False)
    done = 0
    for start in range(0, len(rows), BATCH):
        images = list(_whole(rows[start : start + BATCH], context.allowed))
        found: list[Embedded] = list(embedder.embed(run, images))
        if found:
            context.store.upsert(
                [item.loaded.point_id for item in found],
                np.concatenate([item.recall for item in found]),
                [
                    {"uri": item.loaded.record.uri, "sha256": item.loaded.hash, RUN: run.run_id}
                    for item in found
                ],
            )
            done += len(found)
    context.store.flush()
    lost = len(finding.keys) - done
    everybody = context.ledger.query("SELECT generated_key FROM generated")["generated_key"].to_pylist()
    _value_again(context, everybody)
    said = f"{done} were computed again from their sources, and all generated images were valued again"
    return said if not lost else f"{said}, but the sources of {lost} are gone: withdraw those"


def _features(context: Context, run: Run, finding: Finding) -> str:
    """Feature rows, computed again from the images."""
    by_space: dict[str, list[int]] = {}
    for space, key in finding.keys:
        by_space.setdefault(space, []).append(key)
    for space, keys in by_space.items():
        with context.ledger.write() as con:
            con.execute(
                "DELETE FROM features WHERE space = ? AND key IN (SELECT unnest(?::INTEGER[]))", [space, keys]
            )
        (_training_features if space == "training/rerank" else _generated_features)(context, run, keys)
    return "they were computed again from the images that can still be read"


def _training_features(context: Context, run: Run, keys: list[int]) -> None:
    points = context.ledger.query(
        "SELECT point_id FROM training JOIN wanted USING (training_key) WHERE version_withdrawn IS NULL",
        wanted=pa.table({"training_key": pa.array(keys, pa.int32())}),
    )["point_id"].to_pylist()
    vectors = RerankVectors(context, run)
    for start in range(0, len(points), BATCH):
        vectors.require(vectors.know(points[start : start + BATCH]))


def _generated_features(context: Context, run: Run, keys: list[int]) -> None:
    """All vectors of these generated images, whichever was lost."""
    rows = context.ledger.query(
        """SELECT generated_key AS key, content_hash, [uri] AS uris FROM generated
        JOIN wanted USING (generated_key)""",
        wanted=pa.table({"generated_key": pa.array(keys, pa.int32())}),
    ).to_pylist()
    embedder = Embedder(context, views=context.views)
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        images = {image.hash: image for image in _whole(batch, context.allowed)}
        found = list(embedder.embed(run, list(images.values())))
        if not found:
            continue
        place = {item.loaded.hash: index for index, item in enumerate(found)}
        mine = [row for row in batch if row["content_hash"] in place]
        for index, view in enumerate(context.views):
            for kind in ("recall", "rerank"):
                space = f"generated/{kind}{view}"
                located = context.space(space).append(
                    np.stack([np.asarray(getattr(item, kind))[index] for item in found])
                )
                with context.ledger.write() as con:
                    owners = [row["key"] for row in mine]
                    con.execute(
                        "DELETE FROM features WHERE space = ? AND key IN (SELECT unnest(?::INTEGER[]))",
                        [space, owners],
                    )
                    insert_features(con, space, owners, located[[place[row["content_hash"]] for row in mine]])


def _whole(rows: Sequence[dict[str, Any]], allowed: Sequence[str]) -> Iterator[Loaded]:
    """Each image, from the first of its ``uris`` that still has the bytes of ``content_hash``."""
    for row in rows:
        for uri in row["uris"]:
            try:
                data = read_uri(uri, allowed)
            except ImageError:
                continue
            if content_hash(data) == row["content_hash"]:
                yield Loaded(Record(uri), data, row["content_hash"])
                break


_MENDERS: dict[str, Callable[[Context, Run, Finding], str | None]] = {
    "source twice": _doubled("sources", "training_key, uri"),
    "feature twice": _doubled("features", "space, key"),
    "generated twice": _doubled_generated,
    "source of nothing": _stray_sources,
    "match of nothing": _stray_matches,
    "vectors": _vectors,
    "left over": _points,
    "payloads": _points,
    "features": _features,
    "orphan shards": _orphans,
    "unfinished": _unfinished,
    "evidence": _evidence,
}
_ORDER = list(_MENDERS)
