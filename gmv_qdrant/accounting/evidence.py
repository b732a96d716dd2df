"""The evidence of a payout: six tables in an order of their own, their fingerprints, and credit in exact units.

Nothing here knows a key of the ledger, a machine, or the order in which images were taken in and valued: the same
contents give the same tables, the same SHA-256 and the same units everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from gmv_qdrant.accounting.near_copies import SCHEMA, near_copies
from gmv_qdrant.errors import LedgerError, SettingsError, did_you_mean
from gmv_qdrant.ledger.database import Readable, literal, read_rows
from gmv_qdrant.ledger.queries import ValueFunction
from gmv_qdrant.ledger.schema import intervals

UNIT = 2**60
"""Units of credit that a generated image of quality 1 has to give."""
RULES = ("owner-shapley", "shares")
"""How the credit of one generated image is divided, where money is paid by it."""
NOBODY = 0
"""The id of "no image at all", where a value function has a null distance."""

COLUMNS = {
    "generated": "batch, uri, sha256, quality",
    "images": "id, sha256",
    "sources": "image, uri, name, licence",
    "history": "image, uri, name, licence, place, current",
    "matches": "generated, rank, image, distance",
    "copies": "image, other, distance",
}
"""What is paid by. ``generated``, ``image`` and ``other`` are row numbers, from 0, in ``generated`` and ``images``.

history: what each source has said, in its order (``place``, from 1), and whether it says so now (``current``, 0 or 1):
an order and no times, which differ where the same was taken in elsewhere. copies: see `near_copies`.
"""

_FROM_LEDGER = {
    "generated": """
        SELECT generated_key, batch, uri, content_hash AS sha256, quality FROM generated
        WHERE NOT control AND ({batches} IS NULL OR list_contains({batches}, batch))""",
    "images": """
        SELECT training_key, point_id AS id, content_hash AS sha256 FROM training WHERE version_withdrawn IS NULL""",
    "sources": """
        SELECT training_key, uri, {name} AS name, licence FROM sources""",
    "history": """
        SELECT training_key, uri, {name} AS name, licence, since, until IS NULL AS current FROM source_history""",
    "matches": """
        SELECT generated_key, training_key, rank, distance FROM matches JOIN generated USING (generated_key)
        WHERE NOT control AND ({batches} IS NULL OR list_contains({batches}, batch))""",
}
_IN_ORDER = """
    CREATE TABLE generated AS
    SELECT CAST(row_number() OVER (ORDER BY batch, uri, sha256) - 1 AS INTEGER) AS generated, * FROM of_generated;
    CREATE TABLE images AS
    SELECT CAST(row_number() OVER (ORDER BY id) - 1 AS INTEGER) AS image, * FROM of_images;
    CREATE TABLE sources AS
    SELECT image, uri, name, licence FROM of_sources JOIN images USING (training_key)
    ORDER BY image, uri, name NULLS LAST, licence NULLS LAST;
    CREATE TABLE history AS
    SELECT image, uri, name, licence, CAST(row_number() OVER said AS INTEGER) AS place,
           CAST(current AS INTEGER) AS current
    FROM of_history JOIN images USING (training_key)
    WINDOW said AS (PARTITION BY image, uri ORDER BY since, current, name NULLS LAST, licence NULLS LAST)
    ORDER BY image, uri, place;
    CREATE TABLE matches AS
    SELECT generated, CAST(rank AS INTEGER) AS rank, image, distance
    FROM of_matches JOIN generated USING (generated_key) JOIN images USING (training_key) ORDER BY generated, rank;
    CREATE TABLE copies AS
    SELECT least(a.image, b.image) AS image, greatest(a.image, b.image) AS other, distance
    FROM of_copies c JOIN images a ON a.training_key = c.image JOIN images b ON b.training_key = c.other ORDER BY ALL;
    ALTER TABLE generated DROP generated_key;
    ALTER TABLE images DROP training_key;
"""


class Evidence:
    """The tables of `COLUMNS` in a DuckDB of their own, with credit in units for each generated image."""

    def __init__(self, con: duckdb.DuckDBPyConnection, *, knows_copies: bool = True) -> None:
        self._con = con
        self._earned = ""
        self.knows_copies = knows_copies
        """False where near-copies couldn't be looked for."""

    @classmethod
    def of(
        cls, source: Readable, field: str, batches: Sequence[str] | None = None, root: Path | None = None
    ) -> Evidence:
        """What a ledger holds today, for payouts by ``field``, of these batches or of all.

        root: the workspace, whose vectors say which images are near-copies; without it the table ``copies`` is empty.
        Raises `SettingsError` for a batch that there isn't, and names those there are.
        """
        known = source.query("SELECT DISTINCT batch FROM generated WHERE NOT control ORDER BY batch")["batch"]
        _refuse_unknown(batches or (), known.to_pylist())
        listed = f"[{', '.join(map(literal, batches))}]::VARCHAR[]" if batches else "NULL::VARCHAR[]"
        con = duckdb.connect(":memory:")
        for name, sql in _FROM_LEDGER.items():
            con.register(f"of_{name}", source.query(sql.format(name=_name_by(field), batches=listed)))
        copies = near_copies(root, source, listed) if root else None
        con.register("of_copies", SCHEMA.empty_table() if copies is None else copies)
        con.execute(_IN_ORDER)
        for name in (*_FROM_LEDGER, "copies"):
            con.unregister(f"of_{name}")
        con.execute(_credit_sql())
        return cls(con, knows_copies=copies is not None)

    @classmethod
    def of_tables(cls, tables: dict[str, pa.Table]) -> Evidence:
        """From tables as `table` gives them."""
        con = duckdb.connect(":memory:")
        numbers = {"generated": "generated", "images": "image"}
        for name, columns in COLUMNS.items():
            con.register("rows_of_it", tables[name])
            row = f"CAST(row_number() OVER () - 1 AS INTEGER) AS {numbers[name]}, " if name in numbers else ""
            con.execute(f"CREATE TABLE {name} AS SELECT {row}{columns} FROM rows_of_it")
            con.unregister("rows_of_it")
        con.execute(_credit_sql())
        return cls(con)

    def query(
        self, sql: str, parameters: Sequence[Any] | dict[str, Any] = (), **tables: pa.Table
    ) -> pa.Table:
        """Rows as an Arrow table; ``tables`` can be named in the SQL."""
        for name, table in tables.items():
            self._con.register(name, table)
        found = self._con.sql(sql, params=parameters or None).to_arrow_table()
        for name in tables:
            self._con.unregister(name)
        return found

    def rows(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> list[dict[str, Any]]:
        """Rows as dicts, integers of any size exact."""
        return read_rows(self._con, sql, parameters)

    def table(self, name: str) -> pa.Table:
        """A table of `COLUMNS`, in its order."""
        order = {"generated": "generated", "images": "image"}.get(name)
        return self.query(f"SELECT {COLUMNS[name]} FROM {name}" + (f" ORDER BY {order}" if order else ""))

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of the contents of each table, hex."""
        return {name: digest(self.table(name)) for name in COLUMNS}

    def count(self) -> int:
        """Generated images that it is about."""
        return int(self.rows("SELECT count(*) AS n FROM generated")[0]["n"])

    def batches(self) -> list[str]:
        return [row["batch"] for row in self.rows("SELECT DISTINCT batch FROM generated ORDER BY batch")]

    def earn(self, rule: str, function: ValueFunction) -> None:
        """Fill the table ``earned`` (generated, id, image, rank, units), unless it stands already.

        rule: one of `RULES`. id: a row of ``names``, or `NOBODY`. image, rank: what it was earned by.
        """
        if rule not in RULES:
            raise SettingsError(f"a payout can't go by the rule {rule!r}: choose one of {', '.join(RULES)}")
        given = (function.k or 32767, float(function.temperature), function.quality_weighted)
        nobody = None if function.null_distance is None else float(function.null_distance)
        macro = f"{rule.replace('-', '_')}({', '.join(map(literal, (*given, nobody, function.relative)))})"
        if self._earned != macro:
            self._con.execute(f"DELETE FROM earned; INSERT INTO earned FROM {macro}")
            self._earned = macro

    def effective_names(self) -> float:
        """Mean over the generated images of exp(entropy of the units): among how many names one's credit is spread."""
        rows = self.rows(
            """WITH parts AS (
                SELECT generated, id, CAST(sum(units) AS DOUBLE) AS units FROM earned GROUP BY generated, id
            ), shares AS (SELECT generated, units / sum(units) OVER (PARTITION BY generated) AS share FROM parts)
            SELECT avg(effective) AS mean
            FROM (SELECT exp(-sum(share * ln(share))) AS effective FROM shares WHERE share > 0 GROUP BY generated)"""
        )
        return float(rows[0]["mean"] or 0.0)

    def exclude(self, names: Iterable[str | None]) -> None:
        """Leave these out of `intervals`; None is those whose sources name nobody."""
        self._con.execute("DELETE FROM excluded")
        given = pa.table({"name": pa.array(list(names), pa.string())})
        self._con.register("given", given)
        self._con.execute(
            "INSERT INTO excluded SELECT id FROM names n JOIN given g ON n.name IS NOT DISTINCT FROM g.name"
        )
        self._con.unregister("given")

    def intervals(self) -> dict[int | None, tuple[int, int]]:
        """By id: the 95 % interval of its share of the credit, in 2^-40; None is any name without credit."""
        found = {row["id"]: (int(row["low"]), int(row["high"])) for row in self.rows("FROM intervals")}
        return {None: (0, 0), **found}


def digest(table: pa.Table) -> str:
    """SHA-256 of a table's contents, hex: column after column, whatever file it came from.

    A column is its name and a newline, and then its numbers as little-endian int64 or float64 (a missing one is -1),
    or the lengths of its texts in bytes as int64 (a missing one has -1), and then the texts in UTF-8.
    """
    found = hashlib.sha256()
    for name in table.column_names:
        found.update(f"{name}\n".encode())
        for part in _bytes_of(table[name]):
            found.update(part)
    return found.hexdigest()


def _bytes_of(column: pa.ChunkedArray) -> Iterator[bytes]:
    if pa.types.is_string(column.type):
        yield _numbers(pc.binary_length(column), "<i8")
        for chunk in column.chunks:
            yield "".join(text for text in chunk.to_pylist() if text is not None).encode()
    else:
        yield _numbers(column, "<f8" if pa.types.is_floating(column.type) else "<i8")


def _numbers(column: pa.ChunkedArray, kind: str) -> bytes:
    filled = pc.fill_null(column, -1)
    return b"".join(chunk.to_numpy(zero_copy_only=False).astype(kind).tobytes() for chunk in filled.chunks)


def _name_by(field: str) -> str:
    """SQL for what a source says of this field; attributes are looked up by JSON pointer."""
    if field in ("owner", "label", "licence"):
        return field
    return f"json_extract_string(attributes, {literal('/' + field.replace('~', '~0').replace('/', '~1'))})"


def _refuse_unknown(batches: Sequence[str], known: Sequence[str]) -> None:
    for batch in batches:
        if batch not in known:
            there = ", ".join(repr(name) for name in known[:20]) or "none yet"
            raise SettingsError(
                f"no generated image was valued in a batch {batch!r}{did_you_mean(batch, known)} (there are: {there})"
            )
    if not known:
        raise LedgerError("no generated image was valued yet: run 'gmv-qdrant value FOLDER' first")


@cache
def _credit_sql() -> str:
    return intervals() + files(__package__).joinpath("credit.sql").read_text(encoding="utf-8")
