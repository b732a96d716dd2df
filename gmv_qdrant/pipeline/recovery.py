"""What a killed or failed run leaves between its writes, and how the next run tidies it up.

The ledger is written last, or first when something is taken out. So points with the mark of a run that didn't end,
which aren't in the ledger, were left behind; and what the ledger says was withdrawn is in no store and no matrix.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from gmv_qdrant.files import remove_thumbnails
from gmv_qdrant.ledger.database import Ledger
from gmv_qdrant.ledger.runs import Run
from gmv_qdrant.pipeline.searching import differing
from gmv_qdrant.pipeline.spaces import Spaces
from gmv_qdrant.vectors.protocol import RUN, Point, PointId, VectorStore, parse_point_id


def recover(run: Run, ledger: Ledger, spaces: Spaces, root: Path) -> None:
    """Finish what runs before left between their writes, if one didn't come to its end."""
    if not run.unsettled:
        return
    with run.timed("recover"):
        if spaces.owned:
            run.counts["points_removed"] += remove_left_over(ledger, spaces.store)
            for page in spaces.store.scroll():
                rename(ledger, spaces.store, page)
        remove_withdrawn(ledger, spaces, root)
        with ledger.write() as con:
            con.execute(
                "UPDATE runs SET status = 'killed' WHERE status = 'running' AND run_id <> ?", [run.run_id]
            )


def left_over(ledger: Ledger, store: VectorStore, unknown: Sequence[PointId]) -> list[PointId]:
    """Those of these points, which the ledger doesn't have, that a run of this workspace brought."""
    runs = set(ledger.query("SELECT run_id FROM runs")["run_id"].to_pylist())
    return [point.id for point in store.retrieve(unknown) if point.payload.get(RUN) in runs]


def remove_left_over(ledger: Ledger, store: VectorStore) -> int:
    """Delete points that runs of this workspace brought, and the ledger doesn't have; returns how many."""
    points = left_over(ledger, store, differing(ledger, store)[1])
    store.delete(points)
    store.flush()
    return len(points)


def remove_withdrawn(ledger: Ledger, spaces: Spaces, root: Path) -> None:
    """Once more, whatever was withdrawn."""
    gone = ledger.query(
        "SELECT training_key, point_id, content_hash FROM training WHERE version_withdrawn IS NOT NULL"
    )
    remove_images(spaces, root, *(column.to_pylist() for column in gone.columns))


def remove_images(
    spaces: Spaces, root: Path, keys: Sequence[int], points: Sequence[str], hashes: Sequence[str | None]
) -> None:
    """Points, matrix rows and cached pictures of images that the ledger no longer has; twice does no harm."""
    if not keys:
        return
    if spaces.owned:
        spaces.store.delete([parse_point_id(point) for point in points])
        spaces.store.flush()
    if spaces.training is not None:
        spaces.training.zero(keys)
    spaces.recall_sample.zero(keys)
    remove_thumbnails(root, zip(hashes, points, strict=True))


def rename_points(ledger: Ledger, spaces: Spaces, points: Iterable[str]) -> None:
    """Where one of these points names a source that left, let it name one that stays."""
    wanted = [parse_point_id(point) for point in points]
    if spaces.owned and wanted:
        rename(ledger, spaces.store, spaces.store.retrieve(wanted))


def rename(ledger: Ledger, store: VectorStore, points: Sequence[Point]) -> int:
    """As `rename_points`; returns how many were wrong."""
    wrong = misnamed(ledger, points)
    found = [
        (point, point.vector)
        for point in store.retrieve([parse_point_id(point) for point in wrong], with_vectors=True)
        if point.vector is not None
    ]
    if found:
        store.upsert(
            [point.id for point, _ in found],
            np.stack([vector for _, vector in found]),
            [{**point.payload, "uri": wrong[str(point.id)]} for point, _ in found],
        )
        store.flush()
    return len(found)


def misnamed(ledger: Ledger, points: Sequence[Point]) -> dict[str, str]:
    """Those that name no source of theirs, and one that is."""
    rows = ledger.query(
        """
        SELECT p.point_id, min(s.uri) AS uri FROM page p
        JOIN training t ON t.point_id = p.point_id AND t.version_withdrawn IS NULL
        JOIN sources s USING (training_key)
        GROUP BY p.point_id HAVING NOT coalesce(bool_or(s.uri = p.uri), false)
        """,
        page=pa.table(
            {
                "point_id": pa.array([str(point.id) for point in points], pa.string()),
                "uri": pa.array([point.payload.get("uri") for point in points], pa.string()),
            }
        ),
    )
    return dict(zip(rows["point_id"].to_pylist(), rows["uri"].to_pylist(), strict=True))


def withdrawn_among(ledger: Ledger, points: Sequence[PointId]) -> list[str]:
    """Those of these points that the ledger says were withdrawn."""
    rows = ledger.query(
        "SELECT point_id FROM training JOIN points USING (point_id) WHERE version_withdrawn IS NOT NULL",
        points=pa.table({"point_id": pa.array([str(point) for point in points], pa.string())}),
    )
    found: list[str] = rows["point_id"].to_pylist()
    return found
