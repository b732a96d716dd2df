"""What new and withdrawn training images change: exactly the generated images that they can affect.

A new training image can only enter the candidates of a generated image if it is nearer, in the recall space, than
the K-th candidate (the *recall radius*). A withdrawn one only matters where it stands among the matches. All other
evidence is what a valuation from scratch would find, and stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from gmv_qdrant.errors import SettingsError
from gmv_qdrant.ledger.ledger import Connection, Ledger
from gmv_qdrant.ledger.runs import Run
from gmv_qdrant.pipeline.context import Context
from gmv_qdrant.pipeline.ingest import insert_features
from gmv_qdrant.pipeline.streams import batched
from gmv_qdrant.pipeline.valuation import Valuation, check_conservation, replace_matches
from gmv_qdrant.store.base import VectorDistance, parse_point_id

SLACK = 1e-5
"""Added to every radius: distances by the engine and by us differ by float32 rounding; too many is still exact."""
_BLOCK = 2048


def update(context: Context, run: Run) -> None:
    """Make the evidence what a valuation from scratch would give, touching only what can have changed."""
    stale = context.ledger.query(
        """SELECT generated_key AS key, epoch_valued, recall_radius FROM generated
        WHERE epoch_valued < $epoch ORDER BY key""",
        {"epoch": run.epoch},
    )
    keys, epochs, radii = (column.to_numpy() for column in stale.columns)
    run.counts["stale"] = len(keys)
    if len(keys) == 0:
        return
    with run.timed("find affected"):
        affected = (epochs == 0) | _reached(context, keys, epochs, radii)
    run.counts["affected"] = int(affected.sum())
    context.progress.phase("update", len(keys))
    with context.ledger.write() as con:
        _set_epoch(con, keys[~affected], run.epoch)
    context.progress.advance(int((~affected).sum()))
    valuation = Valuation(context, run)
    for chunk in batched(keys[affected].tolist(), 256):
        evidence = valuation.match(
            {space: locate(context, space, chunk) for space in context.generated_spaces}
        )
        with run.timed("write"), context.ledger.write() as con:
            replace_matches(con, chunk, evidence)
            con.register(
                "fresh", pa.table({"key": chunk, "radius": [matches.radius for matches in evidence]})
            )
            con.execute(
                "UPDATE generated SET recall_radius = fresh.radius FROM fresh WHERE generated_key = fresh.key"
            )
            con.unregister("fresh")
            _set_epoch(con, np.array(chunk), run.epoch)
            run.write_quarantine(con, [])
        context.progress.advance(len(chunk))
    check_conservation(context, run)


def _set_epoch(con: Connection, keys: np.ndarray, epoch: int) -> None:
    con.execute(
        "UPDATE generated SET epoch_valued = ? WHERE generated_key IN (SELECT unnest(?::INTEGER[]))",
        [epoch, keys.tolist()],
    )


def locate(context: Context, space: str, keys: list[int]) -> np.ndarray:
    """int64 ``(n, 2)`` locations, in the order of ``keys``, of vectors that the ledger names."""
    rows = context.ledger.query(
        "SELECT key, shard, row FROM features JOIN wanted USING (key) WHERE space = $space",
        {"space": space},
        wanted=pa.table({"key": pa.array(keys, pa.int32())}),
    )
    where = dict(
        zip(
            rows["key"].to_pylist(),
            zip(rows["shard"].to_pylist(), rows["row"].to_pylist(), strict=True),
            strict=True,
        )
    )
    return np.array([where[key] for key in keys], dtype=np.int64).reshape(-1, 2)


def _reached(context: Context, keys: np.ndarray, epochs: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Which of these generated images a newer training image comes close enough to: bool ``(len(keys),)``."""
    reached = np.zeros(len(keys), dtype=bool)
    for added, vectors in _newer(context, int(epochs[epochs > 0].min(initial=np.iinfo(np.int32).max))):
        for start in range(0, len(keys), _BLOCK):
            part = slice(start, start + _BLOCK)
            near = np.zeros((len(keys[part]), len(vectors)), dtype=bool)
            for view in context.views:
                space = f"generated/recall{view}"
                queries = context.space(space).gather(locate(context, space, keys[part].tolist()))
                near |= (
                    recall_distances(context.store.spec.distance, queries, vectors)
                    <= radii[part, None] + SLACK
                )
            reached[part] |= (near & (added[None, :] > epochs[part, None])).any(axis=1)
    return reached


def _newer(context: Context, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of (epoch added, recall vector) of the training images added after ``epoch``."""
    rows = context.ledger.query(
        "SELECT point_id, epoch_added FROM training WHERE epoch_added > $epoch AND epoch_withdrawn IS NULL",
        {"epoch": epoch},
    ).to_pylist()
    for block in batched(rows, _BLOCK):
        added = {parse_point_id(row["point_id"]): row["epoch_added"] for row in block}
        points = context.store.retrieve(list(added), with_vectors=True)
        vectors = [point.vector for point in points if point.vector is not None]
        yield np.array([added[point.id] for point in points if point.vector is not None]), np.stack(vectors)


def recall_distances(kind: VectorDistance, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Recall distances float32 ``(q, n)`` as the store gives them: 1 - cos, minus the product, or the 2-norm."""
    if kind == "cosine":
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        of_queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
        return np.asarray(1.0 - of_queries @ unit.T, dtype=np.float32)
    products = queries @ rows.T
    if kind == "dot":
        return np.asarray(-products, dtype=np.float32)
    squares = (queries**2).sum(1)[:, None] + (rows**2).sum(1)[None, :] - 2 * products
    return np.asarray(np.sqrt(np.maximum(squares, 0)), dtype=np.float32)


# -- withdrawal --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Selection:
    """Which sources to withdraw: by owner, by a URI pattern with ``*`` and ``?``, or by ids."""

    owner: str | None = None
    uri: str | None = None
    ids: tuple[str, ...] = ()
    """Point ids, content hashes or URIs."""

    def __post_init__(self) -> None:
        if (self.owner is not None) + (self.uri is not None) + bool(self.ids) != 1:
            raise SettingsError("name what to withdraw by exactly one of owner, URI pattern and ids")

    def describe(self) -> str:
        return (
            f"owner {self.owner}" if self.owner else f"uri {self.uri}" if self.uri else f"{len(self.ids)} ids"
        )

    def select(self, con: Connection) -> None:
        """Make the temporary tables ``leaving`` (sources) and ``gone`` (images that lose their last source)."""
        con.register("given_ids", pa.table({"id": pa.array(self.ids, pa.string())}))
        con.execute(
            """
            CREATE TEMP TABLE leaving AS SELECT training_key, uri FROM sources JOIN training USING (training_key)
            WHERE epoch_withdrawn IS NULL AND (owner = $owner OR uri GLOB $uri
                OR point_id IN (FROM given_ids) OR content_hash IN (FROM given_ids) OR uri IN (FROM given_ids))
            """,
            {"owner": self.owner, "uri": self.uri},
        )
        con.execute(
            """
            CREATE TEMP TABLE gone AS SELECT training_key, point_id FROM training
            WHERE training_key IN (SELECT training_key FROM leaving) AND training_key NOT IN (
                SELECT training_key FROM sources ANTI JOIN leaving USING (training_key, uri))
            """
        )


_COUNTS = """
SELECT (SELECT count(*) FROM leaving) AS sources, (SELECT count(*) FROM gone) AS images,
       (SELECT count(DISTINCT generated_key) FROM matches SEMI JOIN gone USING (training_key)) AS affected
"""


def preview_withdrawal(ledger: Ledger, selection: Selection) -> dict[str, int]:
    """What `withdraw` would take out: sources, images, and generated images whose evidence it touches."""
    with ledger.read() as con:
        selection.select(con)
        return dict(con.sql(_COUNTS).to_arrow_table().to_pylist()[0])


def withdraw(context: Context, run: Run, selection: Selection) -> None:
    """Take sources out, and images when their last source goes: rows, matches, point, vectors.

    Order: ledger (one transaction), store, feature files. After a crash in between, `recover` finishes: a point or a
    feature row that the ledger doesn't name is removed. What stays is one row: hash, date, reason.
    Raises `SettingsError` when nothing is selected.
    """
    with run.timed("ledger"), context.ledger.write() as con:
        selection.select(con)
        counts = con.sql(_COUNTS).to_arrow_table().to_pylist()[0]
        if not counts["sources"]:
            raise SettingsError(f"nothing to withdraw: no training image has {selection.describe()}")
        points = [row[0] for row in con.execute("SELECT point_id FROM gone").fetchall()]
        con.execute(
            "DELETE FROM sources USING leaving l WHERE sources.training_key = l.training_key AND sources.uri = l.uri"
        )
        if points:
            run.epoch += 1
            context.ledger.set_meta(con, epoch=run.epoch)
            _take_out(con, run, f"withdrawn: {selection.describe()}")
    run.counts.update({f"{name}_withdrawn" if name != "affected" else name: n for name, n in counts.items()})
    with run.timed("store"):
        context.store.delete([parse_point_id(point) for point in points])
        context.store.flush()
        context.store.optimize()
    with run.timed("feature files"):
        compact(context, run)


def _take_out(con: Connection, run: Run, reason: str) -> None:
    """All that the ledger holds of the images in ``gone``, but for their tombstones."""
    con.execute(
        "CREATE TEMP TABLE touched AS SELECT DISTINCT generated_key FROM matches SEMI JOIN gone USING (training_key)"
    )
    con.execute(
        """
        CREATE TEMP TABLE kept AS
        SELECT generated_key, training_key, row_number() OVER (PARTITION BY generated_key ORDER BY rank) AS rank,
               distance, view
        FROM matches SEMI JOIN touched USING (generated_key) ANTI JOIN gone USING (training_key)
        """
    )
    con.execute("DELETE FROM matches WHERE generated_key IN (FROM touched)")
    con.execute("INSERT INTO matches SELECT * FROM kept")
    # Who had none of them among the candidates is exact for the new set, if it was for the old.
    con.execute(
        "UPDATE generated SET epoch_valued = ? WHERE epoch_valued = ? AND generated_key NOT IN (FROM touched)",
        [run.epoch, run.epoch - 1],
    )
    con.execute("UPDATE generated SET epoch_valued = 0 WHERE generated_key IN (FROM touched)")
    con.execute(
        "DELETE FROM features WHERE space = 'training/rerank' AND key IN (SELECT training_key FROM gone)"
    )
    con.execute(
        """
        UPDATE training SET epoch_withdrawn = ?, withdrawn_at = ?, withdrawn_why = ?,
            label = NULL, width = NULL, height = NULL, attributes = NULL
        WHERE training_key IN (SELECT training_key FROM gone)
        """,
        [run.epoch, datetime.now(UTC), reason],
    )


# -- feature files -----------------------------------------------------------------------------------------


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


def recover(context: Context, run: Run) -> None:
    """Finish what a killed run left between its writes: points and feature rows that the ledger doesn't name go."""
    killed = context.ledger.query(
        "SELECT run_id FROM runs WHERE status = 'running' AND run_id <> $me", {"me": run.run_id}
    )
    if len(killed) == 0:
        return
    with run.timed("recover"):
        if context.owns_collection:
            strangers = unknown_points(context)
            context.store.delete([parse_point_id(point) for point in strangers])
            context.store.flush()
            run.counts["points_removed"] += len(strangers)
        compact(context, run)
        with context.ledger.write() as con:
            con.execute(
                "UPDATE runs SET status = 'killed' WHERE status = 'running' AND run_id <> ?", [run.run_id]
            )


def unknown_points(context: Context) -> list[str]:
    """Ids of points in the collection that are no training images of the ledger."""
    strangers: list[str] = []
    for page in context.store.scroll():
        rows = context.ledger.query(
            """SELECT point_id FROM page ANTI JOIN
            (SELECT point_id FROM training WHERE epoch_withdrawn IS NULL) USING (point_id)""",
            page=pa.table({"point_id": pa.array([str(point.id) for point in page], pa.string())}),
        )
        strangers += rows["point_id"].to_pylist()
    return strangers
