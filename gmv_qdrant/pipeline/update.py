"""What new and withdrawn training images change: exactly the generated images that they can affect.

A new training image can only enter the candidates of a generated image if it is nearer, in the recall space, than
the last that is kept of them. Where the list is complete, it is put in its place; elsewhere the image is searched.
A withdrawn one left the lists when it was withdrawn; `update` has to search where too few were in spare. All other
evidence is what a valuation from scratch would find, and stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from gmv_qdrant.errors import StoreError
from gmv_qdrant.ledger import candidates
from gmv_qdrant.ledger.candidates import ENTERING, rearrange
from gmv_qdrant.ledger.database import Connection, Ledger
from gmv_qdrant.ledger.runs import Run
from gmv_qdrant.pipeline.matching import Matcher
from gmv_qdrant.pipeline.nearness import Block, Near, blocks_of, nearer
from gmv_qdrant.pipeline.spaces import Spaces
from gmv_qdrant.pipeline.streams import Progress, batched
from gmv_qdrant.pipeline.value import check_conservation

CHUNK = 512
"""Generated images that are searched, or whose distances are computed, together."""
MERGED = 8192
"""Generated images whose lists are rearranged in one transaction."""
NEVER = np.iinfo(np.int32).max


def update(run: Run, ledger: Ledger, spaces: Spaces, matcher: Matcher, progress: Progress) -> None:
    """Make the evidence what a valuation from scratch would give, touching only what can have changed."""
    stale = Stale.of(ledger, run.training_version, matcher)
    run.counts["stale"] = len(stale.keys)
    if len(stale.keys) == 0:
        return
    progress.phase("update", len(stale.keys))
    most = matcher.candidates // 2
    with run.timed("find affected"):
        newer = _newer(ledger, spaces, int(stale.versions[stale.versions > 0].min(initial=NEVER)))
        valued = np.where(stale.versions > 0, stale.versions, NEVER)
        coming, near = nearer(
            spaces.read_recall, spaces.store.spec.distance, stale.keys, valued, stale.reach, newer, most
        )
    affected = (stale.versions == 0) | (coming > 0)
    merged = stale.complete & (coming > 0) & (coming <= most)
    run.counts["affected"] = int(affected.sum())
    if not affected.all():
        with ledger.write() as con:
            _set_version(con, stale.keys[~affected], run.training_version)
    progress.skip(int((~affected).sum()))
    unsettled: list[int] = []
    rows = np.flatnonzero(merged[near.generated])
    for start in range(0, len(stale.keys), MERGED):
        part = rows[(near.generated[rows] >= start) & (near.generated[rows] < start + MERGED)]
        if len(part):
            unsettled += _merge(run, ledger, spaces, matcher, stale.keys, near[part], progress)
    searched = sorted([*stale.keys[affected & ~merged].tolist(), *unsettled])
    run.counts["searched"] = len(searched)
    for chunk in batched(searched, CHUNK):
        _search(run, ledger, spaces, matcher, chunk)
        progress.advance(len(chunk))
    check_conservation(run, ledger)


@dataclass(slots=True)
class Stale:
    """Generated images whose evidence is of another training set than today's; all ``(m,)``.

    versions: what they were valued against; 0: value again. reach: recall distance of the last that is kept. complete:
    whether the list is; one that isn't (two views are merged, a vector couldn't be had, fewer than K exist) can't be
    rearranged.
    """

    keys: np.ndarray
    versions: np.ndarray
    reach: np.ndarray
    complete: np.ndarray

    @classmethod
    def of(cls, ledger: Ledger, training_version: int, matcher: Matcher) -> Stale:
        rows = ledger.query(
            """
            SELECT generated_key, version_valued, greatest(recall_radius, last) AS reach,
                   recall_radius < 'infinity'::DOUBLE AND coalesce(kept, 0) = $candidates AS complete
            FROM generated
            LEFT JOIN (SELECT generated_key, count(recall_distance) AS kept FROM matches GROUP BY ALL)
                USING (generated_key)
            LEFT JOIN (SELECT generated_key, max(recall_distance) AS last FROM spare_candidates GROUP BY ALL)
                USING (generated_key)
            WHERE version_valued < $training_version ORDER BY generated_key
            """,
            {"training_version": training_version, "candidates": matcher.candidates},
        )
        keys, versions, reach, complete = (column.to_numpy() for column in rows.columns)
        return cls(keys, versions, reach, complete.astype(bool) & (len(keys) > 0 and matcher.spare > 0))


def _newer(ledger: Ledger, spaces: Spaces, version: int) -> Iterator[Block]:
    """The training images that were added after ``version``.

    Raises `StoreError` when the store has lost one.
    """
    rows = ledger.query(
        """SELECT point_id, version_added FROM training
        WHERE version_added > $version AND version_withdrawn IS NULL""",
        {"version": version},
    )
    found = 0
    points = zip(rows["point_id"].to_pylist(), rows["version_added"].to_pylist(), strict=True)
    for block in blocks_of(spaces.store, points):
        found += len(block.points)
        yield block
    if found < rows.num_rows:
        way = (
            "'gmv-qdrant check --repair' computes them again from their sources"
            if spaces.owned
            else "'gmv-qdrant adopt' brings the ledger to what the collection is now"
        )
        raise StoreError(
            f"the store lacks {rows.num_rows - found} training images that the ledger has: {way}"
        )


def _merge(
    run: Run,
    ledger: Ledger,
    spaces: Spaces,
    matcher: Matcher,
    keys: np.ndarray,
    near: Near,
    progress: Progress,
) -> list[int]:
    """Put new training images where they belong; returns the keys of generated images that must be searched."""
    with run.timed("re-rank"):
        training = matcher.training.keys({near.points[i] for i in np.unique(near.training).tolist()})
        there = matcher.training.require(training.values())
        key_of = np.array([training.get(point, -1) for point in near.points], dtype=np.int32)
        usable = np.isin(key_of, sorted(there))[near.training]
        lacking = np.unique(near.generated[~usable])
        near = near[~np.isin(near.generated, lacking)]
        if not len(near.generated):
            return list(keys[lacking].tolist())
        places, starts = np.unique(near.generated, return_index=True)
        distances = [np.empty(0)]
        lists = zip(places.tolist(), np.split(key_of[near.training], starts[1:]), strict=True)
        for chunk in batched(lists, CHUNK):
            queries = spaces.read_rerank(keys[[place for place, _ in chunk]])
            of = np.repeat(np.arange(len(chunk)), [len(mine) for _, mine in chunk])
            distances.append(matcher.distances(np.concatenate([mine for _, mine in chunk]), of, queries)[0])
    entering = (
        keys[near.generated],
        key_of[near.training],
        near.distances,
        np.concatenate(distances),
        np.zeros(len(near.training)),
        near.slack,
    )
    columns = {
        field.name: pa.array(column).cast(field.type)
        for field, column in zip(ENTERING, entering, strict=True)
    }
    moved: list[int] = keys[places].tolist()
    with run.timed("write"), ledger.write() as con:
        unsettled = rearrange(con, moved, matcher.candidates, matcher.spare, pa.table(columns))
        _set_version(con, np.setdiff1d(moved, unsettled), run.training_version)
    progress.advance(len(moved) - len(unsettled))
    return [*unsettled, *keys[lacking].tolist()]


def _search(run: Run, ledger: Ledger, spaces: Spaces, matcher: Matcher, keys: list[int]) -> None:
    """Find the candidates of generated images anew; known distances stay."""
    recall, rerank = spaces.generated(np.array(keys))
    evidence = matcher.match(recall, rerank, candidates.known_distances(ledger, keys))
    with run.timed("write"), ledger.write() as con:
        candidates.replace(con, keys, evidence)
        con.register("fresh", pa.table({"key": keys, "radius": [matches.radius for matches in evidence]}))
        con.execute(
            "UPDATE generated SET recall_radius = fresh.radius FROM fresh WHERE generated_key = fresh.key"
        )
        con.unregister("fresh")
        _set_version(con, np.array(keys), run.training_version)
        run.write_quarantine(con, [])


def _set_version(con: Connection, keys: np.ndarray, training_version: int) -> None:
    con.execute(
        "UPDATE generated SET version_valued = ? WHERE generated_key IN (SELECT unnest(?::INTEGER[]))",
        [training_version, keys.tolist()],
    )
