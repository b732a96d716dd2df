"""The tables, and the value functions as macros over them; the comments in their SQL are kept in the file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path

from gmv_qdrant.errors import LedgerError

SCHEMA_VERSION = "1"


@cache
def tables() -> str:
    """SQL that makes the tables, with a comment on each and on each of their columns."""
    sql = _read("schema.sql")
    return sql + "\n".join(_comments_of_tables(sql))


@cache
def macros() -> str:
    """SQL that makes views and macros, with a comment on each that people are to use."""
    sql = intervals() + _read("credits.sql")
    return sql + "\n".join(_comments_of_macros(sql))


@cache
def intervals() -> str:
    """SQL that makes those macros that payouts need, too: exact sums, and intervals of them."""
    return _read("intervals.sql")


@cache
def digest_of_macros() -> str:
    return hashlib.sha256(macros().encode()).hexdigest()


def check_schema(path: Path, meta: dict[str, str]) -> None:
    """Raises `LedgerError` for a file with tables of another version."""
    version = meta.get("schema_version")
    if version != SCHEMA_VERSION:
        raise LedgerError(
            f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}: "
            "use the version of gmv-qdrant that made it, or start another workspace"
        )


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


_COMMENT = r"((?:^-- [^\n]*\n)+)"
_TABLE = re.compile(_COMMENT + r"CREATE TABLE (\w+) \(\n(.*?)^\);", re.MULTILINE | re.DOTALL)
_COLUMN = re.compile(r'^    ("?\w+"?) +[A-Z].*-- (.*)$', re.MULTILINE)
_MACRO = re.compile(
    _COMMENT + r"CREATE OR REPLACE (VIEW|MACRO) ([a-z]\w*)[^\n]*? AS( TABLE)?\b", re.MULTILINE
)


def _comments_of_tables(sql: str) -> Iterator[str]:
    for comment, table, body in _TABLE.findall(sql):
        yield f"COMMENT ON TABLE {table} IS {_text(comment)};"
        for column, said in _COLUMN.findall(body):
            yield f"COMMENT ON COLUMN {table}.{column} IS {_text(said)};"


def _comments_of_macros(sql: str) -> Iterator[str]:
    for comment, kind, name, gives_rows in _MACRO.findall(sql):
        yield f"COMMENT ON {kind}{gives_rows} {name} IS {_text(comment)};"


def _text(comment: str) -> str:
    joined = " ".join(line.removeprefix("--").strip() for line in comment.splitlines())
    return "'" + joined.replace("'", "''") + "'"
