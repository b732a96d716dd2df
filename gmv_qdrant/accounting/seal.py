"""Seals of the ledger's tables: what every row of them said when a payout was recorded."""

from __future__ import annotations

from gmv_qdrant.ledger.database import Readable

_OWN = ("payouts", "payout_lines")
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


def _seal_of(source: Readable, table: str) -> str:
    where = f"WHERE {_MOVING}" if table == "meta" else ""
    row = source.query(
        f"""SELECT count(*) AS n, CAST(coalesce(sum(md5_number_lower(hashed)), 0) AS VARCHAR) AS lower,
                   CAST(coalesce(sum(md5_number_upper(hashed)), 0) AS VARCHAR) AS upper
        FROM (SELECT CAST(t AS VARCHAR) AS hashed FROM "{table}" t {where})"""
    ).to_pylist()[0]
    return f"{row['n']} {row['lower']} {row['upper']}"
