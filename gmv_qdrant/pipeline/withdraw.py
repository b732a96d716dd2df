"""Withdrawal: an owner's images go, with all that follows from them."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from gmv_qdrant.errors import SettingsError
from gmv_qdrant.ledger.candidates import rearrange
from gmv_qdrant.ledger.database import Connection, Readable, utc_now
from gmv_qdrant.ledger.runs import Run
from gmv_qdrant.pipeline.context import Context
from gmv_qdrant.pipeline.matching import spare_count
from gmv_qdrant.pipeline.recovery import erase
from gmv_qdrant.pipeline.update import NEVER, nearer, recall_vectors


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
            WHERE version_withdrawn IS NULL AND (owner = $owner OR regexp_full_match(uri, $uri)
                OR point_id IN (SELECT lower(id) FROM given_ids) OR content_hash IN (SELECT lower(id) FROM given_ids)
                OR uri IN (SELECT id FROM given_ids))
            """,
            {"owner": self.owner, "uri": None if self.uri is None else _expression(self.uri)},
        )
        con.execute(
            """
            CREATE TEMP TABLE unknown AS SELECT DISTINCT id FROM given_ids
            WHERE id NOT IN (SELECT uri FROM sources) AND lower(id) NOT IN (
                SELECT unnest([point_id, content_hash]) FROM training WHERE content_hash IS NOT NULL
                UNION ALL SELECT point_id FROM training)
            """
        )
        con.execute(
            """
            CREATE TEMP TABLE gone AS SELECT training_key, point_id FROM training
            WHERE training_key IN (SELECT training_key FROM leaving) AND training_key NOT IN (
                SELECT training_key FROM sources ANTI JOIN leaving USING (training_key, uri))
            """
        )


def _expression(pattern: str) -> str:
    """A pattern with ``*`` and ``?`` as a regular expression; brackets in file names mean themselves."""
    return "(?s)" + "".join({"*": ".*", "?": "."}.get(char) or re.escape(char) for char in pattern)


_COUNTS = """
SELECT (SELECT count(*) FROM leaving) AS sources, (SELECT count(*) FROM gone) AS images,
       (SELECT count(DISTINCT generated_key) FROM matches SEMI JOIN gone USING (training_key)) AS affected,
       (SELECT count(*) FROM unknown) AS unknown_ids
"""


def preview_withdrawal(ledger: Readable, selection: Selection) -> dict[str, int]:
    """What `withdraw` would take out: sources, images, and generated images whose evidence it touches."""
    with ledger.read() as con:
        selection.select(con)
        return dict(con.sql(_COUNTS).to_arrow_table().to_pylist()[0])


def withdraw(context: Context, run: Run, selection: Selection) -> None:
    """Take sources out, and images when their last source goes: rows, matches, point, vectors, thumbnails.

    Order: ledger (one transaction, which also says that erasing is due), then `erase`; after a crash in between the
    next run erases. What stays is one row of an image: hash, date, reason.
    Raises `SettingsError` when nothing is selected, or when the collection was adopted.
    """
    if not context.owns_collection:
        raise SettingsError(
            f"the collection {context.settings.collection!r} was adopted, and nothing of it is removed from here: "
            "delete the points where they belong"
        )
    take_out(context, run, selection, f"withdrawn: {selection.describe()}", _hidden(context, selection))


def take_out(context: Context, run: Run, selection: Selection, reason: str, hidden: list[int]) -> None:
    """`withdraw`, for whoever may; ``hidden``: generated images to value again beside those that matched."""
    candidates, spare = context.settings.candidates, spare_count(context)
    _ = context.store  # whoever may not touch the points changes no ledger, either
    with run.timed("ledger"), context.ledger.write() as con:
        selection.select(con)
        counts = con.sql(_COUNTS).to_arrow_table().to_pylist()[0]
        if not counts["sources"]:
            raise SettingsError(f"nothing to withdraw: no training image has {selection.describe()}")
        con.execute("DELETE FROM quarantine WHERE uri IN (SELECT uri FROM leaving)")
        con.execute(  # what runs were asked for names paths; it is only needed to try again what is in quarantine
            """UPDATE runs SET settings = json_merge_patch(settings, '{"request": null}')
            WHERE run_id NOT IN (SELECT run_id FROM quarantine) AND run_id <> ?""",
            [run.run_id],
        )
        con.execute(
            "DELETE FROM sources USING leaving l WHERE sources.training_key = l.training_key AND sources.uri = l.uri"
        )
        if counts["images"]:
            run.training_version += 1
            context.ledger.set_meta(con, training_version=run.training_version)
            _let_move_up(con, run, candidates, spare, hidden)
            _take_out(con, run, reason)
        con.execute(_DESCRIBE_AGAIN)
        context.ledger.set_meta(con, erasing=True)
    names = {"sources": "sources_withdrawn", "images": "images_withdrawn"}
    run.counts.update({names.get(name, name): n for name, n in counts.items()})
    erase(context, run)


_DESCRIBE_AGAIN = """
UPDATE training SET label = s.label, attributes = s.attributes FROM (
    SELECT training_key, first(label ORDER BY rowid) AS label, first(attributes ORDER BY rowid) AS attributes
    FROM sources WHERE training_key IN (SELECT training_key FROM leaving) GROUP BY training_key) s
WHERE training.training_key = s.training_key
"""
"""An image that stays is described by the first of the sources that stay."""


def _hidden(context: Context, selection: Selection) -> list[int]:
    """Generated images that a leaving image may have been a candidate of without standing among the matches.

    That happens where candidates of two views are merged and cut to K, and where a candidate's re-rank vector could
    not be computed.
    """
    with context.ledger.read() as con:
        selection.select(con)
        points = [row[0] for row in con.execute("SELECT point_id FROM gone").fetchall()]
    keys, training_versions, radii = cut_short(context)
    if not points or not len(keys):
        return []
    blocks = recall_vectors(context, points, [NEVER] * len(points))
    counts, _ = nearer(context, keys, training_versions, radii, blocks)
    return [int(key) for key in keys[counts > 0]]


def cut_short(context: Context) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Generated images that have had more candidates than matches: keys, versions and recall radii, each ``(m,)``."""
    cut = "recall_radius < 'infinity'::DOUBLE"
    if len(context.views) == 1:
        cut += " AND generated_key NOT IN (SELECT generated_key FROM matches WHERE rank = $wanted)"
    asked = context.ledger.query(
        f"SELECT generated_key, version_valued, recall_radius FROM generated WHERE {cut}",
        {"wanted": context.settings.candidates} if "$wanted" in cut else (),
    )
    keys, training_versions, radii = (column.to_numpy() for column in asked.columns)
    return keys, training_versions, radii


def _let_move_up(con: Connection, run: Run, candidates: int, spare: int, hidden: list[int]) -> None:
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
        {"hidden": hidden, "touched": touched, "candidates": candidates},
    )


def _take_out(con: Connection, run: Run, reason: str) -> None:
    """All else that the ledger holds of the images in ``gone``, but for their tombstones."""
    con.execute(
        "DELETE FROM features WHERE space = 'training/rerank' AND key IN (SELECT training_key FROM gone)"
    )
    con.execute(
        """
        UPDATE training SET version_withdrawn = ?, withdrawn_at = ?, withdrawn_why = ?,
            label = NULL, width = NULL, height = NULL, attributes = NULL
        WHERE training_key IN (SELECT training_key FROM gone)
        """,
        [run.training_version, utc_now(), reason],
    )
