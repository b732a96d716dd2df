"""What the report and the pages show: one moment of the ledger, summed up, and then asked without any lock.

`Snapshot.take` reads the ledger in one short connection. It keeps a row of numbers for each image (no names, no
pictures), so that sorting, paging and plotting never touch the ledger again; names are fetched for the rows shown.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import duckdb
import pyarrow as pa

from gmv_qdrant.ledger.database import Connection, Readable
from gmv_qdrant.ledger.queries import LOSS, RULES, ValueFunction

Row = dict[str, Any]

INTERVAL = 95
"""Percent of the bootstrap intervals beside credits."""
MOST_LISTED = 50
"""Rows of any one list of names (owners, quarantine, runs) on one page."""

TRAINING_SORTS = {
    "value": "place",
    "value-up": "place DESC",
    "matches": "matches DESC, place",
    "matches-up": "matches, place DESC",
}
GENERATED_SORTS = {
    "distance": "nearest, generated_key",
    "distance-down": "nearest DESC, generated_key",
    "quality": "quality DESC NULLS LAST, generated_key",
    "quality-up": "quality NULLS LAST, generated_key",
    "effective": "effective, generated_key",
    "effective-down": "effective DESC, generated_key",
    "order": "generated_key",
}
OWNER_SORTS = {
    "value": "value DESC, name NULLS LAST",
    "value-up": "value, name NULLS LAST",
    "name": "name NULLS LAST",
    "name-down": "name DESC NULLS LAST",
    "images": "images DESC, name NULLS LAST",
    "images-up": "images, name NULLS LAST",
    "each": "each DESC, name NULLS LAST",
    "each-up": "each, name NULLS LAST",
}

_TABLES = {
    "training_values": """
        SELECT row_number() OVER (ORDER BY value DESC, point_id) AS place, training_key, value, matches
        FROM image_values({arguments}) WHERE NOT nobody""",
    "images": """
        SELECT generated_key, any_value(g.batch) AS batch, any_value(g.quality) AS quality, min(distance) AS nearest,
               any_value(e.effective) AS effective
        FROM contributions({arguments}) c JOIN generated g USING (generated_key)
        JOIN effective_contributors({arguments}) e USING (generated_key) GROUP BY generated_key""",
    "owners": """
        SELECT c.name, c.value, c.share, c.images, c.value / nullif(c.images, 0) AS each, i.low, i.high
        FROM {macro}('owner', {arguments}) c
        LEFT JOIN credit_intervals('owner', level := {level}, rule := '{rule}', {arguments}) i
        ON i.name IS NOT DISTINCT FROM c.name AND i.nobody = c.nobody""",
    "quarantine": """SELECT uri, reason, "at"::VARCHAR AS noted FROM quarantine ORDER BY "at" DESC, uri LIMIT {most}""",
    "batches": "SELECT batch, count(*) AS images FROM generated GROUP BY batch ORDER BY batch LIMIT {most}",
    "runs": """
        SELECT run_id, verb, status, strftime(started_at, '%Y-%m-%d %H:%M:%S') AS started,
               date_diff('millisecond', started_at, finished_at) / 1000 AS seconds, training_version, counts, versions
        FROM runs ORDER BY started_at DESC LIMIT {most}""",
    "meta": "SELECT key, value FROM meta",
    "totals": """
        SELECT (SELECT count(*) FROM training WHERE version_withdrawn IS NULL) AS training_images,
               (SELECT count(*) FROM sources) AS sources,
               (SELECT count(*) FROM training WHERE version_withdrawn IS NOT NULL) AS withdrawn,
               (SELECT count(DISTINCT owner) FROM sources) AS owners,
               (SELECT count(*) FROM generated) AS generated_images,
               (SELECT count(*) FROM matches) AS matches,
               (SELECT count(*) FROM quarantine) AS quarantined,
               (SELECT count(*) FROM generated WHERE version_valued < (
                    SELECT value::INTEGER FROM meta WHERE key = 'training_version')) AS stale""",
}
"""One connection reads all of these, so every figure is of the same moment."""


class Snapshot:
    """The numbers of one moment, for one value function. Safe to ask from many threads."""

    def __init__(self, function: ValueFunction, tables: dict[str, pa.Table]) -> None:
        self.function = function
        self._memory = duckdb.connect(":memory:")
        self._lock = threading.Lock()
        for name, table in tables.items():
            self._memory.register("rows_read", table)
            self._memory.execute(f"CREATE TABLE {name} AS FROM rows_read")
            self._memory.unregister("rows_read")
        self.totals = self.ask("FROM totals")[0]
        self.meta: dict[str, str] = {row["key"]: row["value"] for row in self.ask("FROM meta")}
        self.batches = self.ask("FROM batches")
        self.quarantine = self.ask("FROM quarantine")
        self.runs = [
            {
                **row,
                "counts": json.loads(row["counts"] or "{}"),
                "versions": json.loads(row["versions"] or "{}"),
            }
            for row in self.ask("FROM runs")
        ]
        self.sums = self._sums()

    @classmethod
    def take(cls, ledger: Readable, function: ValueFunction, rule: str = "shares") -> Snapshot:
        """Read all that depends on the whole of the evidence: seconds at 100,000 generated images.

        rule: by which the owners' credit is divided.
        """
        words: dict[str, Any] = {"arguments": function.sql(), "most": MOST_LISTED, "macro": RULES[rule]}
        words |= {"rule": rule, "level": INTERVAL}
        with ledger.read() as con:
            return cls(function, {name: _arrow(con, sql.format(**words)) for name, sql in _TABLES.items()})

    def ask(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Rows of a SELECT over the snapshot's own tables."""
        with self._lock:
            cursor = self._memory.cursor()
        try:
            return _rows(cursor, sql, parameters)
        finally:
            cursor.close()

    def _sums(self) -> Row:
        """Of all images together: credit, how many have any, quality, distance, effective contributors."""
        training = self.ask(
            "SELECT coalesce(sum(value), 0) AS credit, count(*) FILTER (matches > 0) AS matched FROM training_values"
        )[0]
        generated = self.ask(
            """SELECT count(*) AS valued, avg(quality) AS quality, avg(nearest) AS nearest, avg(effective) AS effective,
            median(effective) AS effective_median FROM images"""
        )[0]
        return {**training, **generated}

    # -- lists ---------------------------------------------------------------------------------------

    def training(self, sort: str, offset: int, count: int, keys: pa.Table | None = None) -> list[Row]:
        """A page of training images: place, training_key, value, matches. ``keys`` keeps only those."""
        return self._page("training_values", TRAINING_SORTS[sort], offset, count, keys)

    def generated(self, sort: str, offset: int, count: int, keys: pa.Table | None = None) -> list[Row]:
        """A page of generated images: generated_key, batch, quality, nearest, effective."""
        return self._page("images", GENERATED_SORTS[sort], offset, count, keys)

    def count(self, table: str, keys: pa.Table | None = None) -> int:
        """Rows of ``training_values`` or ``images``; of those in ``keys`` where given."""
        if keys is not None:
            return int(keys.num_rows)
        return int(self.ask(f"SELECT count(*) AS n FROM {table}")[0]["n"])

    def count_owners(self, matching: str) -> int:
        """Owners with ``matching`` in their name."""
        sql = "SELECT count(*) AS n FROM owners WHERE $1 = '' OR contains(lower(name), lower($1))"
        return int(self.ask(sql, [matching])[0]["n"])

    def _page(self, table: str, order: str, offset: int, count: int, keys: pa.Table | None) -> list[Row]:
        with self._lock:
            cursor = self._memory.cursor()
        try:
            kept = ""
            if keys is not None:
                cursor.register("kept_keys", keys)
                kept = f" SEMI JOIN kept_keys USING ({keys.column_names[0]})"
            return _rows(
                cursor, f"FROM {table}{kept} ORDER BY {order} LIMIT {int(count)} OFFSET {int(offset)}"
            )
        finally:
            cursor.close()

    def owners(
        self, sort: str = "value", matching: str = "", offset: int = 0, count: int = MOST_LISTED
    ) -> list[Row]:
        """Owners with credit, share and interval; ``found`` is how many match ``matching`` (part of the name)."""
        return self.ask(
            f"""SELECT *, count(*) OVER () AS found FROM owners
            WHERE $1 = '' OR contains(lower(name), lower($1))
            ORDER BY {OWNER_SORTS[sort]} LIMIT {int(count)} OFFSET {int(offset)}""",
            [matching],
        )

    # -- plots: never more rows than bins ---------------------------------------------------------------

    def value_bins(self, bins: int = 30) -> list[Row]:
        """Histogram of the values above 0, over equal steps of log10: low, high, images."""
        return self.ask(
            f"""WITH positive AS (SELECT log10(value) AS x FROM training_values WHERE value > 0),
            span AS (SELECT floor(min(x) * 4) / 4 AS low, ceil(max(x) * 4 + 1e-9) / 4 AS high FROM positive),
            placed AS (SELECT least(floor((x - low) / nullif(high - low, 0) * {bins}), {bins - 1})::INTEGER AS bin
                       FROM positive, span)
            SELECT low + (high - low) * bin / {bins} AS low, low + (high - low) * (bin + 1) / {bins} AS high,
                   count(*) AS images FROM placed, span GROUP BY ALL ORDER BY low"""
        )

    def bins(self, column: str, bins: int = 30) -> list[Row]:
        """Histogram of a column of the generated images: low, high, images."""
        return self.ask(
            f"""WITH numbers AS (SELECT round({column}, 6) AS x FROM images WHERE {column} IS NOT NULL),
            span AS (SELECT min(x) AS low, max(x) AS high FROM numbers),
            placed AS (SELECT coalesce(least(floor((x - low) / nullif(high - low, 0) * {bins}), {bins - 1}), 0)::INTEGER
                              AS bin FROM numbers, span)
            SELECT low + (high - low) * bin / {bins} AS low, low + (high - low) * (bin + 1) / {bins} AS high,
                   count(*) AS images FROM placed, span GROUP BY ALL ORDER BY low"""
        )

    def credit_curve(self, points: int = 200) -> list[tuple[float, float]]:
        """(share of training images, share of credit they hold), the most valued first; both in [0, 1]."""
        rows = self.ask(
            f"""WITH steps AS (
                SELECT ceil(place * {points} / images) AS step, max(place / images) AS x, sum(value) AS held
                FROM training_values, (SELECT count(*) AS images FROM training_values) GROUP BY step)
            SELECT x, sum(held) OVER (ORDER BY step) / sum(held) OVER () AS y FROM steps
            WHERE (SELECT sum(held) FROM steps) > 0 ORDER BY step"""
        )
        return [(0.0, 0.0), *((row["x"], row["y"]) for row in rows)] if rows else []

    def held_by_top(self, shares: Iterable[float] = (0.01, 0.05, 0.10, 0.25)) -> list[Row]:
        """Share of the credit held by the most valued 1 %, 5 %, ... (at least one image)."""
        return self.ask(
            """SELECT s.share AS top, greatest(1, round(s.share * n.images))::BIGINT AS images,
                   sum(value) FILTER (place <= greatest(1, round(s.share * n.images))) / nullif(sum(value), 0) AS held
            FROM training_values, (SELECT unnest($1::DOUBLE[]) AS share) s,
                 (SELECT count(*) AS images FROM training_values) n
            GROUP BY ALL ORDER BY top""",
            [list(shares)],
        )

    def quality_by_distance(self, columns: int = 36, rows: int = 20) -> list[Row]:
        """Images in each cell of (nearest distance, quality): the cell's x and y, and what the grid spans."""
        return self.ask(
            f"""WITH span AS (SELECT min(nearest) AS low, max(nearest) AS high,
                                     greatest(ceil(max(quality) * 10 - 1e-9) / 10, 0.1) AS top
                              FROM images WHERE quality IS NOT NULL),
            placed AS (SELECT coalesce(least(floor((nearest - low) / nullif(high - low, 0) * {columns}), {columns - 1}),
                              {columns // 2})::INTEGER AS x,
                              least(floor(quality / top * {rows}), {rows - 1})::INTEGER AS y
                       FROM images, span WHERE quality IS NOT NULL)
            SELECT x, y, count(*) AS images, any_value(low) AS low, any_value(high) AS high, any_value(top) AS top
            FROM placed, span GROUP BY x, y ORDER BY x, y"""
        )

    def correlation(self) -> float | None:
        """Pearson's r of nearest distance and quality."""
        found = self.ask("SELECT corr(nearest, quality) AS r FROM images WHERE quality IS NOT NULL")[0]["r"]
        return None if found is None or found != found else float(found)


# -- names and matches of a few images, from the ledger ------------------------------------------------------


def training_names(ledger: Readable, keys: Sequence[int]) -> dict[int, Row]:
    """point_id, hash, uri, uris, owner, label, licence, size of these training images."""
    rows = _with_keys(
        ledger,
        keys,
        f"""SELECT t.training_key AS key, any_value(t.point_id) AS point_id, any_value(t.content_hash) AS hash,
               min(s.uri) AS uri, list(s.uri ORDER BY s.uri)[:{MOST_LISTED}] AS uris, count(s.uri) AS sources,
               string_agg(DISTINCT s.owner, ', ' ORDER BY s.owner) AS owner,
               string_agg(DISTINCT s.label, ', ' ORDER BY s.label) AS label,
               string_agg(DISTINCT s.licence, ', ' ORDER BY s.licence) AS licence, any_value(t.width) AS width,
               any_value(t.height) AS height, arg_min(s.attributes, s.uri)::VARCHAR AS attributes
        FROM training t JOIN wanted_keys w ON t.training_key = w.key
        LEFT JOIN sources s ON s.training_key = t.training_key
        WHERE t.version_withdrawn IS NULL GROUP BY t.training_key""",
    )
    return {row["key"]: row for row in rows}


def generated_names(ledger: Readable, keys: Sequence[int]) -> dict[int, Row]:
    """point_id, hash, uri, batch, label, quality of these generated images."""
    rows = _with_keys(
        ledger,
        keys,
        """SELECT g.generated_key AS key, g.point_id, g.content_hash AS hash, g.uri, [g.uri] AS uris, g.batch, g.label,
               g.quality, g.attributes::VARCHAR AS attributes
        FROM generated g JOIN wanted_keys w ON g.generated_key = w.key""",
    )
    return {row["key"]: row for row in rows}


def contributors(
    ledger: Readable, keys: Sequence[int], function: ValueFunction, most: int
) -> dict[int, list[Row]]:
    """The first ``most`` contributors of each of these generated images, nearest first."""
    found: dict[int, list[Row]] = {key: [] for key in keys}
    if keys:
        listed = ", ".join(str(int(key)) for key in keys)
        with ledger.read() as con:
            rows = _arrow(
                con,
                f"""SELECT generated_key, training_key, rank, distance, quality, contribution
                FROM contributions({function.sql()}) WHERE generated_key IN ({listed}) AND rank <= {int(most)}
                ORDER BY generated_key, rank""",
            ).to_pylist()
        for row in rows:
            found[row["generated_key"]].append(row)
    return found


def beneficiaries(ledger: Readable, key: int, function: ValueFunction, most: int) -> list[Row]:
    """The generated images that credit this training image most."""
    with ledger.read() as con:
        return _rows(
            con,
            f"""SELECT generated_key, training_key, rank, distance, quality, contribution
            FROM contributions({function.sql()}) WHERE training_key = {int(key)}
            ORDER BY contribution DESC, generated_key LIMIT {int(most)}""",
        )


def choices(ledger: Readable) -> dict[str, list[str]]:
    """What the pages let people choose from: ``batches``, and ``calibrations`` in all their versions."""
    with ledger.read() as con:
        return {
            "batches": [
                row["batch"] for row in _rows(con, "SELECT DISTINCT batch FROM generated ORDER BY batch")
            ],
            "calibrations": [
                *(
                    row["name"]
                    for row in _rows(
                        con,
                        """SELECT name || '@' || version AS name FROM calibrations
                        ORDER BY calibrations.name, version DESC""",
                    )
                ),
                LOSS,
            ],
        }


def training_keys(ledger: Readable, *, owner: str | None = None, named: str = "") -> pa.Table:
    """Keys of the training images with a source of this owner ('' is nobody) and ``named`` in its URI or label."""
    with ledger.read() as con:
        return _arrow(
            con,
            """SELECT DISTINCT training_key FROM sources
            WHERE ($owner IS NULL OR coalesce(owner, '') = $owner)
              AND ($named = '' OR contains(lower(uri), lower($named)) OR lower(label) = lower($named))""",
            {"owner": owner, "named": named},
        )


def generated_keys(ledger: Readable, named: str) -> pa.Table:
    """Keys of the generated images with ``named`` in their URI, or as their label."""
    with ledger.read() as con:
        return _arrow(
            con,
            """SELECT generated_key FROM generated
            WHERE contains(lower(uri), lower($named)) OR lower(label) = lower($named)""",
            {"named": named},
        )


def _with_keys(ledger: Readable, keys: Sequence[int], sql: str) -> list[Row]:
    """Keys go in as a parameter: registering a table fails when other threads open the file at that moment."""
    with ledger.read() as con:
        return _rows(con, f"WITH wanted_keys AS (SELECT unnest($1::INTEGER[]) AS key) {sql}", [list(keys)])


def _arrow(con: Connection, sql: str, parameters: Any = ()) -> pa.Table:
    return con.sql(sql, params=parameters or None).to_arrow_table()


def _rows(con: Connection, sql: str, parameters: Any = ()) -> list[Row]:
    rows: list[Row] = _arrow(con, sql, parameters).to_pylist()
    return rows
