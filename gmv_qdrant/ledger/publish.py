"""The published file, ``credits.duckdb``: what questions are put to, by any number of threads and processes.

It is never written in place, only replaced. So a reader holds no lock that anybody waits for: who has it open sees the
state that was published then, and who asks next sees what is published now.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb

from gmv_qdrant.errors import LedgerError
from gmv_qdrant.ledger.database import (
    BROKEN,
    Connection,
    arrow,
    literal,
    one_sentence,
    opening,
    read_meta,
    read_rows,
)
from gmv_qdrant.ledger.schema import check_schema, digest_of_macros, macros

if TYPE_CHECKING:
    import pyarrow as pa

    from gmv_qdrant.ledger.restricted import Restricted

_REPAIR = "if it is damaged, any command that writes, such as 'gmv-qdrant update', publishes it again"

PLAIN, ABOVE = "credits.main,memory.main", "memory.main,credits.main"
"""Where names are looked for: the file first, or first the macros of today, for a file that has others."""
State = tuple[int, int, int]
"""What changes when the file is replaced."""


class Published:
    """The published file, opened read-only. Safe to share by threads; one object follows all replacements.

    Raises `LedgerError` when the file isn't there, is damaged, or has another schema version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._database: _Database | None = None

    @property
    def state(self) -> State:
        """Equal as long as the same state is published: for whoever keeps answers."""
        try:
            found = self.path.stat()
        except OSError as error:
            raise LedgerError(
                f"{self.path} isn't there: any command that writes, such as 'gmv-qdrant update', publishes it again"
            ) from error
        return found.st_ino, found.st_mtime_ns, found.st_size

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection to one state, for questions that belong together."""
        with one_sentence(self.path, "read", _REPAIR), self._current().cursor() as con:
            yield con

    def query(
        self, sql: str, parameters: Sequence[Any] | dict[str, Any] = (), **tables: pa.Table
    ) -> pa.Table:
        """Rows as an Arrow table; ``tables`` can be named in the SQL."""
        with self.read() as con:
            return arrow(con, sql, parameters, **tables)

    def rows(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> list[dict[str, Any]]:
        """Rows of a small answer as dicts."""
        with self.read() as con:
            return read_rows(con, sql, parameters)

    def relation(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> duckdb.DuckDBPyRelation:
        """Rows as a relation on a connection of its own, so that it may be left half read; they are read at once."""
        with one_sentence(self.path, "read", _REPAIR):
            con = self._current().cursor()
            con.execute(f"CREATE TEMP TABLE answer AS {sql}", parameters or None)
            return con.table("temp.answer")

    def meta(self) -> dict[str, str]:
        """All small facts."""
        with self.read() as con:
            return read_meta(self.path, con)

    @property
    def training_version(self) -> int:
        """The version of the training set: 0 when nothing was ever ingested."""
        return int(self.meta()["training_version"])

    def restricted(
        self,
        *,
        seconds: float | None = 300.0,
        memory: int | None = None,
        attach: Mapping[str, Path] | None = None,
    ) -> Restricted:
        """For SQL typed by people, which may only read these tables: see `Restricted`."""
        from gmv_qdrant.ledger.restricted import Restricted

        return Restricted(self.path, seconds, memory, attach or {}, **self._current().names_and_macros())

    def close(self) -> None:
        """Let go of the file; the next question opens it again."""
        with self._lock:
            database, self._database = self._database, None
        if database:
            database.con.close()

    def _current(self) -> _Database:
        with self._lock:
            state = self.state
            if self._database is None or self._database.state != state:
                self._database = _open(
                    self.path, state
                )  # who still reads the state before has its own connection
            return self._database


@dataclass(frozen=True, slots=True)
class _Database:
    """A DuckDB of our own that one state of the file is attached to.

    Opened by its name, the file would be shared with the user's own connections to it in this process, and go on
    showing the state that they see.
    """

    state: State
    con: Connection
    names: str
    """Where tables and macros are looked for."""

    def names_and_macros(self) -> dict[str, str]:
        """What another process needs to see the same names."""
        return {"search_path": self.names, "macros": macros() if self.names != PLAIN else ""}

    def cursor(self) -> Connection:
        con = self.con.cursor()
        con.execute(f"SET search_path = {literal(self.names)}")
        return con


def _open(path: Path, state: State) -> _Database:
    spilled = f"{tempfile.gettempdir()}/gmv-qdrant.tmp"
    with opening, one_sentence(path, "opened", _REPAIR, BROKEN):
        con = duckdb.connect(":memory:", config={"temp_directory": spilled})
        con.execute(f"ATTACH {literal(str(path))} AS credits (READ_ONLY)")
        con.execute("SET GLOBAL TimeZone = 'UTC'")
    try:
        with one_sentence(path, "read", _REPAIR):
            database = _Database(state, con, PLAIN)
            with database.cursor() as cursor:
                meta = read_meta(path, cursor)
            check_schema(path, meta)
            if meta.get("macros") != digest_of_macros():  # published by a version with other value functions
                database = _Database(state, con, ABOVE)
                with database.cursor() as cursor:
                    cursor.execute(macros())
            return database
    except BaseException:
        con.close()
        raise
