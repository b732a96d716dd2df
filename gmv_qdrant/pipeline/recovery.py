"""What a killed or failed run leaves between its writes, and how the next run tidies it up.

The ledger is written last, or first when something is taken out; so what runs of this workspace wrote and the ledger
doesn't name, goes.
"""

from __future__ import annotations

import shutil

import numpy as np
import pyarrow as pa

from gmv_qdrant.ledger.runs import Run
from gmv_qdrant.pipeline.collection import Sample
from gmv_qdrant.pipeline.context import Context
from gmv_qdrant.pipeline.ingest import insert_features
from gmv_qdrant.vectors.protocol import RUN, parse_point_id


def compact(context: Context, run: Run) -> None:
    """Rewrite every feature space that holds rows which the ledger doesn't name, and drop shards that it never did."""
    for space in ("training/rerank", *context.generated_spaces):
        rows = context.ledger.query(
            "SELECT key, shard, row FROM features WHERE space = $s ORDER BY shard, row", {"s": space}
        )
        named = np.stack([rows["shard"].to_numpy(), rows["row"].to_numpy()], axis=1).astype(np.int64)
        files = context.space(space)
        before = files.shards()
        distinct, inverse = (
            np.unique(named, axis=0, return_inverse=True) if len(named) else (named, named[:, 0])
        )
        wasteful = [
            s for s in np.unique(distinct[:, 0]).tolist() if files.rows(s) != int((distinct[:, 0] == s).sum())
        ]
        if wasteful:
            moved = np.isin(named[:, 0], wasteful)
            target = np.isin(distinct[:, 0], wasteful)
            fresh = distinct.copy()
            fresh[target] = files.compact(distinct[target])
            keys = rows["key"].to_numpy()[moved].tolist()
            with context.ledger.write() as con:
                con.execute(
                    "DELETE FROM features WHERE space = ? AND key IN (SELECT unnest(?::INTEGER[]))",
                    [space, keys],
                )
                insert_features(con, space, keys, fresh[inverse.reshape(-1)[moved]])
            distinct = fresh
            run.counts["shards_rewritten"] += len(wasteful)
        in_use = set(distinct[:, 0].tolist())
        files.drop([shard for shard in before if shard not in in_use])


def tidy_points(context: Context, run: Run) -> None:
    """Delete what runs that were stopped left behind, and what was withdrawn; where a point names a source that left,
    name one that stays. Points that no run of this workspace wrote are nobody's business here."""
    unknown_points, renamed = find_unknown_points(context)
    leaving = [*left_over(context, unknown_points), *_withdrawn(context)]
    context.store.delete([parse_point_id(point) for point in leaving])
    points = {str(point.id): point for point in context.store.retrieve(
        [parse_point_id(point) for point in renamed], with_vectors=True
    )}  # fmt: skip
    whole = [point for point in points.values() if point.vector is not None]
    if whole:
        context.store.upsert(
            [point.id for point in whole],
            np.stack([point.vector for point in whole if point.vector is not None]),
            [{**point.payload, "uri": renamed[str(point.id)]} for point in whole],
        )
    context.store.flush()
    run.counts["points_removed"] += len(unknown_points.keys() & set(leaving))


def left_over(context: Context, unknown_points: dict[str, str | None]) -> list[str]:
    """Those that a run of this workspace wrote, and was stopped before the ledger named them."""
    runs = set(context.ledger.query("SELECT run_id FROM runs")["run_id"].to_pylist())
    return [point for point, run in unknown_points.items() if run in runs]


def _withdrawn(context: Context) -> list[str]:
    rows = context.ledger.query("SELECT point_id FROM training WHERE version_withdrawn IS NOT NULL")
    found: list[str] = rows["point_id"].to_pylist()
    return found


def find_unknown_points(context: Context) -> tuple[dict[str, str | None], dict[str, str]]:
    """Points that are no training images of the ledger, with the run that wrote each; and, of points that name no
    source of theirs, one that is."""
    unknown_points: dict[str, str | None] = {}
    renamed: dict[str, str] = {}
    for page in context.store.scroll():
        rows = context.ledger.query(
            """
            SELECT p.point_id, p.run, t.training_key IS NULL AS strange, min(s.uri) AS uri,
                   coalesce(bool_or(s.uri = p.uri), false) AS right
            FROM page p LEFT JOIN training t ON t.point_id = p.point_id AND t.version_withdrawn IS NULL
            LEFT JOIN sources s ON s.training_key = t.training_key GROUP BY p.point_id, p.run, t.training_key
            """,
            page=pa.table(
                {
                    "point_id": pa.array([str(point.id) for point in page], pa.string()),
                    "uri": pa.array([point.payload.get("uri") for point in page], pa.string()),
                    "run": pa.array([point.payload.get(RUN) for point in page], pa.string()),
                }
            ),
        ).to_pylist()
        unknown_points.update({row["point_id"]: row["run"] for row in rows if row["strange"]})
        renamed.update({row["point_id"]: row["uri"] for row in rows if row["uri"] and not row["right"]})
    return unknown_points, renamed


def erase(context: Context, run: Run) -> None:
    """Leave nothing of withdrawn images on disk: points and their log, feature rows, thumbnails, freed ledger blocks.

    Done over from the start after a crash: what the ledger doesn't name, goes.
    """
    with run.timed("store"):
        if context.owns_collection:
            tidy_points(context, run)
            context.store.purge()
        Sample(context.root, context.ledger, context.store).forget()
    with run.timed("feature files"):
        compact(context, run)
        if (context.root / "thumbnails").exists():
            shutil.rmtree(context.root / "thumbnails")  # a cache; whoever looks fills it again
    with run.timed("ledger"):
        context.ledger.rewrite()
        with context.ledger.write() as con:
            context.ledger.set_meta(con, erasing=False)


def recover(context: Context, run: Run) -> None:
    """Finish what the run before left between its writes, if it didn't come to its end."""
    if not run.unsettled:
        return
    with run.timed("recover"):
        if context.ledger.meta().get("erasing") == "true":
            erase(context, run)
        else:
            if context.owns_collection:
                tidy_points(context, run)
            compact(context, run)
        with context.ledger.write() as con:
            con.execute(
                "UPDATE runs SET status = 'killed' WHERE status = 'running' AND run_id <> ?", [run.run_id]
            )
