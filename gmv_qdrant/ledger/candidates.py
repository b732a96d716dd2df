"""Candidate lists: the K candidates of a generated image (`matches`) and the next nearest (`spare_candidates`).

Both together are the exact beginning of the list of all training images by recall distance. So when a candidate
leaves, the first of the spare takes its place; and when a training image comes, it is put where it belongs.
Neither needs a search, until a spare is used up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from gmv_qdrant.ledger.database import Connection, Ledger, insert


@dataclass(slots=True)
class Candidates:
    """Training images beside a generated one: keys int32, distances float64, views int8, recall float32, ``(n,)``."""

    keys: np.ndarray
    distances: np.ndarray
    views: np.ndarray
    recall: np.ndarray

    def __getitem__(self, which: np.ndarray) -> Candidates:
        return Candidates(self.keys[which], self.distances[which], self.views[which], self.recall[which])


@dataclass(slots=True)
class Matches(Candidates):
    """The evidence of one generated image: its K candidates, nearest first.

    radius: recall distance of the K-th candidate, infinite when the collection has fewer than K.
    spare: the next nearest by recall, where evidence is kept exact without searching; nearest by recall first.
    """

    radius: float
    spare: Candidates


@dataclass(frozen=True, slots=True)
class Known:
    """Distances that a generated image has already, in order of their training keys.

    keys: int32 ``(n,)``, ascending. distances: float64 ``(n,)``. views: int8 ``(n,)``.
    """

    keys: np.ndarray
    distances: np.ndarray
    views: np.ndarray

    def places(self, keys: np.ndarray) -> np.ndarray:
        """Where each of ``keys`` stands here; -1 where it doesn't."""
        if not len(self.keys):
            return np.full(len(keys), -1)
        places = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        return np.where(self.keys[places] == keys, places, -1)


NOTHING_KNOWN = Known(np.empty(0, np.int32), np.empty(0), np.empty(0, np.int8))


ENTERING = pa.schema(
    [
        ("generated_key", pa.int32()),
        ("training_key", pa.int32()),
        ("recall_distance", pa.float32()),
        ("distance", pa.float64()),
        ("view", pa.int8()),
        ("slack", pa.float32()),
    ]
)
"""Training images that come into lists; ``slack`` is what rounding may have changed of their recall distance."""

_LINE = """
CREATE OR REPLACE TEMP TABLE line AS
SELECT *, row_number() OVER (PARTITION BY generated_key ORDER BY recall_distance, point_id) AS place
FROM (
    SELECT generated_key, training_key, recall_distance, distance, view, NULL AS slack
    FROM matches SEMI JOIN wanted USING (generated_key)
    UNION ALL BY NAME
    SELECT generated_key, training_key, recall_distance, distance, view, NULL AS slack
    FROM spare_candidates SEMI JOIN wanted USING (generated_key)
    UNION ALL BY NAME SELECT * FROM entering
) JOIN (SELECT training_key, point_id FROM training) USING (training_key)
"""

# Where the list is cut, and where it ended before: who comes that close to either might stand on its other side.
_DOUBTFUL = """
CREATE OR REPLACE TEMP TABLE doubtful AS
WITH edges AS (
    SELECT generated_key, training_key, recall_distance FROM line
    WHERE place IN ($candidates, $candidates + 1, $candidates + $spare, $candidates + $spare + 1)
    UNION ALL
    SELECT generated_key, NULL, max(recall_distance) FROM line WHERE slack IS NULL GROUP BY generated_key
)
SELECT DISTINCT line.generated_key FROM line JOIN edges USING (generated_key)
WHERE slack IS NOT NULL AND line.training_key IS DISTINCT FROM edges.training_key
AND abs(line.recall_distance - edges.recall_distance) <= slack
"""

_WRITE = """
INSERT INTO matches (generated_key, training_key, rank, distance, view, recall_distance)
SELECT generated_key, training_key, row_number() OVER (PARTITION BY generated_key ORDER BY distance, point_id) AS rank,
       distance, view, recall_distance
FROM line WHERE place <= getvariable('candidates') ORDER BY generated_key, rank;
INSERT INTO spare_candidates SELECT generated_key, training_key, recall_distance, distance, view
FROM line WHERE place > getvariable('candidates') AND place <= getvariable('candidates') + getvariable('spare')
ORDER BY generated_key, place;
UPDATE generated SET recall_radius = line.recall_distance FROM line
WHERE generated.generated_key = line.generated_key AND place = getvariable('candidates')
AND line.recall_distance IS NOT NULL;
"""


def forget(con: Connection, keys: Sequence[int]) -> None:
    """Delete the lists of these generated images."""
    for table in ("matches", "spare_candidates"):
        con.execute(f"DELETE FROM {table} WHERE generated_key IN (SELECT unnest(?::INTEGER[]))", [list(keys)])


def replace(con: Connection, keys: Sequence[int], evidence: Sequence[Matches]) -> None:
    """The lists of these generated images, in place of what there was."""
    forget(con, keys)
    ranks = [np.arange(1, len(matches.keys) + 1, dtype=np.int16) for matches in evidence]
    insert(con, "matches", {**_columns(keys, evidence), "rank": pa.array(np.concatenate(ranks))})
    insert(con, "spare_candidates", _columns(keys, [matches.spare for matches in evidence]))


def _columns(keys: Sequence[int], lists: Sequence[Candidates]) -> dict[str, pa.Array]:
    sizes = [len(one.keys) for one in lists]
    return {
        "generated_key": pa.array(np.repeat(np.asarray(keys, dtype=np.int32), sizes)),
        "training_key": pa.array(np.concatenate([one.keys for one in lists])),
        "distance": pa.array(np.concatenate([one.distances for one in lists])),
        "view": pa.array(np.concatenate([one.views for one in lists])),
        "recall_distance": pa.array(np.concatenate([one.recall for one in lists])),
    }


def known_distances(ledger: Ledger, keys: Sequence[int]) -> list[Known]:
    """The distances that the ledger has for each of these generated images, whose keys ascend."""
    rows = ledger.query(
        """SELECT generated_key, training_key, distance, view FROM (
            SELECT generated_key, training_key, distance, view FROM matches
            UNION ALL SELECT generated_key, training_key, distance, view FROM spare_candidates)
        JOIN wanted ON generated_key = key ORDER BY generated_key, training_key""",
        wanted=pa.table({"key": pa.array(keys, pa.int32())}),
    )
    of, training, distances, views = (column.to_numpy() for column in rows.columns)
    starts, ends = np.searchsorted(of, keys), np.searchsorted(of, keys, side="right")
    return [
        Known(training[start:end], distances[start:end], views[start:end])
        for start, end in zip(starts, ends, strict=True)
    ]


def rearrange(
    con: Connection, keys: Sequence[int], candidates: int, spare: int, entering: pa.Table | None = None
) -> list[int]:
    """Cut these generated images' lists anew: K candidates, in order of their distances, and a spare.

    entering: rows as `ENTERING` that come into the lists. Returns the keys of images that stay as they were, because
    rounding could decide who is a candidate: they must be searched.
    """
    con.register("wanted", pa.table({"generated_key": pa.array(keys, pa.int32())}))
    con.register("entering", entering if entering is not None else ENTERING.empty_table())
    con.execute(_LINE)
    con.execute(_DOUBTFUL, {"candidates": candidates, "spare": spare})
    doubtful: list[int] = [row[0] for row in con.execute("FROM doubtful ORDER BY ALL").fetchall()]
    con.execute("DELETE FROM line WHERE generated_key IN (FROM doubtful)")
    forget(con, sorted(set(keys) - set(doubtful)))
    con.execute(f"SET VARIABLE candidates = {int(candidates)}; SET VARIABLE spare = {int(spare)}")
    con.execute(_WRITE)
    for name in ("wanted", "entering"):
        con.unregister(name)
    return doubtful
