"""Withdrawal: an owner's images go, with all that follows from them; it costs what is taken out.

Order: ledger (one transaction), then points, matrix rows, cached pictures. What a crash leaves in between is removed by
the next run (`recovery`): a withdrawn image is in no store and no matrix. Bytes that files keep in freed places go
with `erase`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gmv_qdrant.ledger.candidates import rearrange
from gmv_qdrant.ledger.database import Connection, Ledger, Readable, utc_now
from gmv_qdrant.ledger.runs import Run
from gmv_qdrant.ledger.selection import STAYING, Selection, select
from gmv_qdrant.ledger.sources import remove_sources
from gmv_qdrant.pipeline.erase import Traces
from gmv_qdrant.pipeline.nearness import blocks_of, nearer
from gmv_qdrant.pipeline.recovery import remove_images, rename_points
from gmv_qdrant.pipeline.spaces import Spaces
from gmv_qdrant.vectors.protocol import parse_point_id

_COUNTS = """
SELECT (SELECT count(*) FROM leaving) AS sources, (SELECT count(*) FROM gone) AS images,
       (SELECT count(DISTINCT generated_key) FROM matches SEMI JOIN gone USING (training_key)) AS affected
"""


@dataclass(frozen=True, slots=True)
class Leaving:
    """Training images that go: key, point id and content hash of each; points that only lose a source; the
    URIs of all sources that go; counts."""

    keys: list[int]
    points: list[str]
    hashes: list[str | None]
    staying: list[str]
    uris: list[str]
    counts: dict[str, int]


def preview(ledger: Readable, selection: Selection) -> Leaving:
    """What `withdraw` would take out. Raises `SettingsError` when that is nothing."""
    sources, unknown = selection.sources(ledger), selection.unknown(ledger)
    with ledger.read() as con:
        select(con, sources)
        counts = {**con.sql(_COUNTS).to_arrow_table().to_pylist()[0], "unknown_ids": len(unknown)}
        gone = con.sql("FROM gone ORDER BY training_key").to_arrow_table().to_pydict()
        staying = con.sql(
            "SELECT point_id FROM training SEMI JOIN leaving USING (training_key) ANTI JOIN gone USING (training_key)"
        ).fetchall()
        uris = con.execute(
            f"SELECT DISTINCT uri FROM leaving WHERE uri NOT IN (SELECT uri FROM ({STAYING})) ORDER BY uri"
        ).fetchall()
    return Leaving(
        gone["training_key"],
        gone["point_id"],
        gone["content_hash"],
        [row[0] for row in staying],
        [row[0] for row in uris],
        counts,
    )


def withdraw(
    run: Run, ledger: Ledger, spaces: Spaces, root: Path, selection: Selection, candidates: int, spare: int
) -> None:
    """Take sources out, and images when their last source goes. What stays is one row of an image: hash, date, reason.

    candidates, spare: K, and how many beyond it are kept.
    """
    leaving = preview(ledger, selection)
    _ = spaces.store  # whoever may not touch the points changes no ledger, either
    hidden = _hidden(ledger, spaces, leaving, candidates)
    _note_traces(spaces, root, leaving)
    take_out(run, ledger, selection, f"withdrawn by {selection.by}", hidden, candidates, spare)
    with run.timed("vectors and points"):
        rename_points(ledger, spaces, leaving.staying)
        remove_images(spaces, root, leaving.keys, leaving.points, leaving.hashes)


def _note_traces(spaces: Spaces, root: Path, leaving: Leaving) -> None:
    """What an erasure is to search for, before nobody knows it any more."""
    points = spaces.store.retrieve([parse_point_id(point) for point in leaving.points], with_vectors=True)
    vectors = [point.vector for point in points if point.vector is not None]
    if spaces.training is not None:
        vectors += list(spaces.training.stored(leaving.keys))
    Traces(root).add(leaving.uris, vectors)


def take_out(
    run: Run,
    ledger: Ledger,
    selection: Selection,
    reason: str,
    hidden: Sequence[int],
    candidates: int,
    spare: int,
) -> None:
    """The ledger's part; ``hidden``: generated images to value again beside those that matched."""
    sources, unknown = selection.sources(ledger), selection.unknown(ledger)
    with run.timed("ledger"), ledger.write() as con:
        select(con, sources)
        counts = {**con.sql(_COUNTS).to_arrow_table().to_pylist()[0], "unknown_ids": len(unknown)}
        con.execute("DELETE FROM quarantine WHERE uri IN (SELECT uri FROM leaving)")
        remove_sources(con, run.run_id, "leaving")
        _forget_places(con)
        if counts["images"]:
            run.training_version += 1
            ledger.set_meta(con, training_version=run.training_version)
            _let_move_up(con, run, candidates, spare, hidden)
            _bury(con, run, reason)
    names = {"sources": "sources_withdrawn", "images": "images_withdrawn"}
    run.counts.update({names.get(name, name): n for name, n in counts.items()})


def _forget_places(con: Connection) -> None:
    """What runs were asked for names paths: those that only led to what has left are forgotten."""
    below = "(uri = place OR starts_with(uri, place) AND (place[-1] = '/' OR uri[len(place) + 1] IN ('/', '#', ':')))"
    rows = con.execute(
        f"""WITH places AS (
            SELECT DISTINCT unnest(json_extract_string(settings, '$.request.paths[*]')) AS place FROM runs),
        living AS (SELECT uri FROM sources UNION SELECT uri FROM generated UNION SELECT uri FROM quarantine)
        SELECT place FROM places WHERE EXISTS (FROM leaving WHERE {below}) AND NOT EXISTS (FROM living WHERE {below})
        """
    ).fetchall()
    gone = {place for (place,) in rows}
    if not gone:
        return
    for run_id, settings in con.execute(
        "SELECT run_id, settings FROM runs WHERE json_exists(settings, '$.request.paths')"
    ).fetchall():
        kept = json.loads(settings)
        paths = kept["request"]["paths"]
        if gone.intersection(paths):
            kept["request"]["paths"] = [path for path in paths if path not in gone]
            con.execute("UPDATE runs SET settings = ? WHERE run_id = ?", [json.dumps(kept), run_id])


def _hidden(ledger: Ledger, spaces: Spaces, leaving: Leaving, candidates: int) -> list[int]:
    """Generated images that a leaving image may have been a candidate of without standing among the matches.

    That happens where candidates of two views are merged and cut to K, and where a candidate's re-rank vector could
    not be computed. Where the store has lost the vector of a leaving image, that is any of them.
    """
    keys, versions, radii = cut_short(ledger, candidates, spaces.views)
    if not leaving.points or not len(keys):
        return []
    blocks = list(blocks_of(spaces.store, ((point, NEVER) for point in leaving.points)))
    if sum(len(block.points) for block in blocks) < len(leaving.points):
        return [int(key) for key in keys]
    counts, _ = nearer(spaces.read_recall, spaces.store.spec.distance, keys, versions, radii, blocks)
    return [int(key) for key in keys[counts > 0]]


NEVER = np.iinfo(np.int32).max


def cut_short(ledger: Ledger, candidates: int, views: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Generated images that have had more candidates than matches: keys, versions and recall radii, each ``(m,)``."""
    cut = "recall_radius < 'infinity'::DOUBLE"
    if views == 1:
        cut += " AND generated_key NOT IN (SELECT generated_key FROM matches WHERE rank = $wanted)"
    asked = ledger.query(
        f"SELECT generated_key, version_valued, recall_radius FROM generated WHERE {cut} ORDER BY generated_key",
        {"wanted": candidates} if views == 1 else (),
    )
    keys, versions, radii = (column.to_numpy() for column in asked.columns)
    return keys, versions, radii


def _let_move_up(con: Connection, run: Run, candidates: int, spare: int, hidden: Sequence[int]) -> None:
    """Candidates in spare take the places of images in ``gone``, so that the evidence is exact at once.

    Where there are too few, and for the ``hidden``, it waits for `update`.
    """
    touched = [
        row[0]
        for row in con.execute(
            "SELECT DISTINCT generated_key FROM matches SEMI JOIN gone USING (training_key)"
        ).fetchall()
    ]
    for table in ("matches", "spare_candidates"):
        con.execute(f"DELETE FROM {table} WHERE training_key IN (SELECT training_key FROM gone)")
    rearrange(con, touched, candidates, spare)
    con.execute(
        "UPDATE generated SET version_valued = ? WHERE version_valued = ?",
        [run.training_version, run.training_version - 1],
    )
    con.execute(
        """
        UPDATE generated SET version_valued = 0
        WHERE generated_key IN (SELECT unnest($hidden::INTEGER[]))
        OR recall_radius < 'infinity'::DOUBLE AND generated_key IN (SELECT unnest($touched::INTEGER[]))
            AND generated_key NOT IN (SELECT generated_key FROM matches WHERE rank = $candidates)
        """,
        {"hidden": list(hidden), "touched": touched, "candidates": candidates},
    )


def _bury(con: Connection, run: Run, reason: str) -> None:
    """All that the ledger holds of the images in ``gone``, but for their tombstones."""
    con.execute(
        """
        UPDATE training SET version_withdrawn = ?, withdrawn_at = ?, withdrawn_why = ?,
            width = NULL, height = NULL
        WHERE training_key IN (SELECT training_key FROM gone)
        """,
        [run.training_version, utc_now(), reason],
    )
    con.execute(
        """DELETE FROM neighbours WHERE training_key IN (SELECT training_key FROM gone)
        OR neighbour_key IN (SELECT training_key FROM gone)"""
    )
