"""Seals of the ledger's tables: what every row of them said when a payout was recorded."""

from __future__ import annotations

from gmv_qdrant.ledger.database import Readable

_OWN = ("payouts", "payout_lines")
_SUMS = """count(*) AS n, CAST(coalesce(sum(md5_number_lower(hashed)), 0) AS VARCHAR) AS lower,
    CAST(coalesce(sum(md5_number_upper(hashed)), 0) AS VARCHAR) AS upper"""
_MOVING = "key NOT IN ('macros', 'published_at')"
"""Facts that are written anew when the ledger is published, and by a newer version of this tool."""


def seal(source: Readable, *, own: bool = False) -> dict[str, str]:
    """By table: the number of rows, and the sum of a hash of each. The order of rows doesn't count, a doubled row does.

    own: those of the payouts themselves, too.
    It finds what was changed by hand, where nothing else has been written since; it is no proof against somebody who
    writes the seal, too. That is what statements with fingerprints are for.
    """
    tables = source.query(
        "SELECT table_name FROM duckdb_tables() WHERE NOT temporary AND NOT internal ORDER BY table_name"
    )["table_name"].to_pylist()
    return {name: _seal_of(source, name) for name in sorted(tables) if own or name not in _OWN}


_FIXED = {
    "runs": ("run_id", "r", "status <> 'running'"),
    "calibrations": ("name || '@' || version", "r", "true"),
    "source_history": (
        "run_id", "row(training_key, uri, owner, label, licence, attributes, since, run_id)", "true"
    ),
    "source_history, closed": ("until_run_id", "r", "until IS NOT NULL"),
    "training, withdrawn": ("CAST(version_withdrawn AS VARCHAR)", "r", "version_withdrawn IS NOT NULL"),
}  # fmt: skip
"""Rows that no run but 'erase' changes, by what wrote them."""


def seal_fixed(source: Readable) -> dict[str, dict[str, str]]:
    """Of the rows that later runs leave as they are: a seal for each run, version or calibration that wrote some."""
    return {
        name: {
            row["key"]: f"{row['n']} {row['lower']} {row['upper']}"
            for row in source.query(
                f"""SELECT key, {_SUMS} FROM (
                    SELECT {key} AS key, CAST({said} AS VARCHAR) AS hashed
                    FROM {name.partition(",")[0]} r WHERE {where}) GROUP BY ALL"""
            ).to_pylist()
        }
        for name, (key, said, where) in _FIXED.items()
    }


def _seal_of(source: Readable, table: str) -> str:
    where = f"WHERE {_MOVING}" if table == "meta" else ""
    row = source.query(
        f"""SELECT {_SUMS}
        FROM (SELECT CAST(t AS VARCHAR) AS hashed FROM "{table}" t {where})"""
    ).to_pylist()[0]
    return f"{row['n']} {row['lower']} {row['upper']}"
