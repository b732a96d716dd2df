"""What sources say of their images, now (`sources`) and before (`source_history`).

Credit becomes money, so what a source said is never lost, and never changes without being told: a source that is read
again and names another owner, licence or label stays as it is, and is counted, unless `write_sources` is told to
reassign. A row of the history is closed when its source says something else or leaves, and another one is added.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa

from gmv_qdrant.ledger.database import Connection, Readable, arrow, utc_now

SOURCES = pa.schema(
    [
        ("training_key", pa.int32()),
        ("uri", pa.string()),
        ("owner", pa.string()),
        ("label", pa.string()),
        ("licence", pa.string()),
        ("attributes", pa.string()),
        ("file_size", pa.int64()),
        ("file_time", pa.int64()),
    ]
)
"""A row for each owner that a source names, or one where it names none; ``attributes`` is JSON."""


@dataclass(frozen=True, slots=True)
class Change:
    """So many sources name another owner, licence or label (``field``) than before; None is nobody, or nothing."""

    field: str
    before: str | None
    after: str | None
    sources: int


@dataclass(frozen=True, slots=True)
class Written:
    """Sources that are new, and those that say something else: what of it was written, or, if not, was kept back."""

    new: int
    changes: list[Change]


def changes(ledger: Readable, rows: pa.Table) -> list[Change]:
    """What these sources would change, as `SOURCES` (``training_key`` isn't looked at): the most frequent first."""
    with ledger.read() as con:
        _compare(con, rows, "uri")
        return _changes(con)


def write_sources(con: Connection, run_id: str, rows: pa.Table, *, reassign: bool) -> Written:
    """Keep what sources say, as `SOURCES`: every row of a source at once.

    reassign: also where that changes an owner, a licence or a label; otherwise these sources stay as they are.
    """
    _compare(con, rows, "training_key, uri")
    found = Written(
        new=con.execute("SELECT count(*) FROM compared WHERE known IS NULL").fetchall()[0][0],
        changes=_changes(con),
    )
    moved = "said.owners IS DISTINCT FROM known.owners OR said.label IS DISTINCT FROM known.label " \
        "OR said.licence IS DISTINCT FROM known.licence"  # fmt: skip
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE accepted AS SELECT training_key, uri FROM compared
        WHERE known IS NULL OR known IS DISTINCT FROM said AND ({str(reassign).lower()} OR NOT ({moved}))"""
    )
    con.execute(
        "CREATE OR REPLACE TEMP TABLE written AS FROM incoming SEMI JOIN accepted USING (training_key, uri)"
    )
    now = utc_now()  # what ends and what begins leave no gap between them
    _close(con, run_id, "accepted", "training_key, uri", now)
    con.execute(
        "DELETE FROM sources USING accepted a WHERE sources.training_key = a.training_key AND sources.uri = a.uri"
    )
    con.execute("INSERT INTO sources BY NAME FROM written")
    con.execute(
        """INSERT INTO source_history BY NAME
        SELECT * EXCLUDE (file_size, file_time), $now AS since, $run AS run_id FROM written""",
        {"now": now, "run": run_id},
    )
    con.execute(
        """UPDATE sources SET file_size = i.file_size, file_time = i.file_time FROM incoming i
        WHERE sources.training_key = i.training_key AND sources.uri = i.uri
        AND sources.owner IS NOT DISTINCT FROM i.owner
        AND (sources.file_size, sources.file_time) IS DISTINCT FROM (i.file_size, i.file_time)"""
    )
    con.execute("DROP TABLE accepted; DROP TABLE written; DROP TABLE compared; DROP TABLE incoming")
    return found


def remove_sources(con: Connection, run_id: str, leaving: str) -> None:
    """Take out the sources in the table ``leaving`` (training_key, uri, owner)."""
    _close(con, run_id, leaving, "training_key, uri, owner", utc_now())
    con.execute(
        f"""DELETE FROM sources USING {leaving} l WHERE sources.training_key = l.training_key AND sources.uri = l.uri
        AND sources.owner IS NOT DISTINCT FROM l.owner"""
    )


def erase_history(con: Connection) -> None:
    """Forget what sources said that were withdrawn, and owners whom nothing names any more, before bytes are erased."""
    con.execute(
        """DELETE FROM source_history WHERE until_run_id IN (SELECT run_id FROM runs WHERE verb = 'withdraw')
        OR training_key IN (SELECT training_key FROM training WHERE version_withdrawn IS NOT NULL)"""
    )
    con.execute(
        """UPDATE runs SET settings = json_merge_patch(settings, '{"request": {"owner": null}}')
        WHERE json_extract_string(settings, '$.request.owner') NOT IN (
            SELECT owner FROM source_history WHERE owner IS NOT NULL)
        AND run_id NOT IN (SELECT run_id FROM quarantine)"""
    )


def _close(con: Connection, run_id: str, table: str, columns: str, now: datetime) -> None:
    """End what the history has of these sources; of some owners only, where ``columns`` have the owner."""
    same = " AND ".join(f"h.{name} IS NOT DISTINCT FROM t.{name}" for name in columns.split(", "))
    con.execute(
        f"""UPDATE source_history h SET until = ?, until_run_id = ? FROM {table} t
        WHERE h.until IS NULL AND {same}""",
        [now, run_id],
    )


def _compare(con: Connection, rows: pa.Table, columns: str) -> None:
    """Make the temporary tables ``incoming`` and ``compared``: of each source, what it says and what is known of it."""
    con.register("rows_that_came", rows)
    con.execute(
        f"""CREATE OR REPLACE TEMP TABLE incoming AS SELECT DISTINCT ON ({columns}, owner) * FROM rows_that_came;
        CREATE OR REPLACE TEMP TABLE compared AS
        SELECT {columns}, n.said, o.said AS known FROM ({_SAID.format(columns=columns, table="incoming")}) n
        LEFT JOIN ({_SAID.format(columns=columns, table=f"(FROM sources SEMI JOIN incoming USING ({columns}))")}) o
        USING ({columns})"""
    )
    con.unregister("rows_that_came")


_SAID = """
SELECT {columns}, {{owners: list(DISTINCT owner ORDER BY owner) FILTER (WHERE owner IS NOT NULL),
    label: any_value(label), licence: any_value(licence), attributes: CAST(any_value(attributes) AS VARCHAR)}} AS said
FROM {table} GROUP BY {columns}
"""


def _changes(con: Connection) -> list[Change]:
    """Of ``compared``, by field."""
    owners = "array_to_string({}.owners, ', ')"
    fields = {
        "owner": (owners.format("known"), owners.format("said")),
        "licence": ("known.licence", "said.licence"),
        "label": ("known.label", "said.label"),
    }
    selects = [
        f"""SELECT {place} AS place, '{field}' AS field, {before} AS before, {after} AS after
        FROM compared WHERE known IS NOT NULL"""
        for place, (field, (before, after)) in enumerate(fields.items())
    ]
    rows = arrow(
        con,
        f"""SELECT field, before, after, count(*) AS sources FROM ({" UNION ALL ".join(selects)})
        WHERE before IS DISTINCT FROM after GROUP BY place, field, before, after
        ORDER BY place, sources DESC, before, after""",
    )
    return [Change(**row) for row in rows.to_pylist()]
