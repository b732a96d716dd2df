"""The ledger's file: one process writes it, in transactions; what it holds is published for everybody else.

DuckDB lets one process write a file, or many read it, never both. So nobody reads the file that is written: after each
run, and now and then within a long one, it is copied to ``credits.duckdb`` (`Ledger.publish`), which
`gmv_qdrant.ledger.publish.Published` and everybody's own tools read.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import duckdb

from gmv_qdrant.errors import LedgerError, LedgerLocked, first_line
from gmv_qdrant.files import sync_folder
from gmv_qdrant.ledger.schema import SCHEMA_VERSION, check_schema, digest_of_macros, macros, tables

if TYPE_CHECKING:  # questions with small answers do without Arrow, which takes longer to import than to ask
    import pyarrow as pa

STORAGE_VERSION = "v1.4.0"
"""Of the files, whatever DuckDB writes them: version 1.4 and every later one reads them."""
PUBLISHED = "credits.duckdb"
"""The file that everybody reads, beside the ledger."""
PUBLISH_EVERY = 300.0
"""Seconds after which a run that goes on publishes what it has so far."""
_COPIED = 8 << 20
"""Bytes that are copied at once."""

Connection = duckdb.DuckDBPyConnection

opening = threading.Lock()
"""Two threads that open one file at the same time get a connection without its functions (DuckDB 2.0)."""


class Readable(Protocol):
    """What questions are put to: the published file, or, within a run, the ledger itself."""

    @property
    def path(self) -> Path: ...

    def read(self) -> AbstractContextManager[Connection]:
        """A connection to one state of the tables and macros."""
        ...

    def query(
        self, sql: str, parameters: Sequence[Any] | dict[str, Any] = (), **tables: pa.Table
    ) -> pa.Table:
        """Rows as an Arrow table; ``tables`` can be named in the SQL."""
        ...

    def rows(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> list[dict[str, Any]]:
        """Rows of a small answer as dicts."""
        ...

    def meta(self) -> dict[str, str]:
        """All small facts."""
        ...

    @property
    def training_version(self) -> int: ...


def utc_now() -> datetime:
    """The time as the ledger keeps it: UTC, without a zone, so that no setting of a machine can move it."""
    return datetime.now(UTC).replace(tzinfo=None)


def literal(value: str | float | bool | None) -> str:
    """A value as SQL text: macro arguments can't be prepared parameters."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return repr(float(value)) + "::DOUBLE" if isinstance(value, float) else str(value)


BROKEN = (duckdb.Error, RuntimeError, ValueError, IndexError, MemoryError)
"""What opening a damaged file may raise: DuckDB's own errors, and those of the C++ library below it."""


@contextmanager
def one_sentence(
    path: Path, doing: str, way_out: str, errors: tuple[type[Exception], ...] = (duckdb.Error,)
) -> Iterator[None]:
    """What the engine raises in this block becomes a `LedgerError`: which file, what was done, why, the way out."""
    try:
        yield
    except errors as error:
        if "Could not set lock" in str(error):
            raise LedgerLocked(
                f"another program has {path} open: wait for it, or close it there (to look at the results, open "
                f"{PUBLISHED}, and read-only)"
            ) from error
        raise LedgerError(f"{path} could not be {doing} ({first_line(error)}): {way_out}") from error


class Ledger:
    """One ledger file, for the process that writes.

    It is open while somebody uses it: for one transaction or question, or for a whole run within `held`.
    Raises `LedgerLocked` when another program has the file open, and `LedgerError` when it isn't a ledger, is
    damaged, or has another schema version.
    """

    def __init__(self, path: Path, *, publishes: bool = True) -> None:
        self.path = path
        self._publishes = publishes
        self._lock = threading.RLock()
        self._writing = threading.RLock()
        self._con: Connection | None = None
        self._file = -1
        self._users = 0
        self._runs = 0
        self._unpublished = False
        self._published_at = time.monotonic()

    @classmethod
    def create(cls, path: Path, *, publish: bool = True, **meta: object) -> Ledger:
        """Make an empty ledger, published unless told otherwise: tables, value functions, small facts."""
        with one_sentence(path, "made", "make room, or choose another folder"):
            _create(path)
        ledger = cls(path, publishes=publish)
        with ledger.write() as con:
            con.execute(tables())
            ledger.set_meta(con, schema_version=SCHEMA_VERSION, **{"training_version": 0, **meta})
            ledger._write_macros(con)
        return ledger

    def _write_macros(self, con: Connection) -> None:
        con.execute(macros())
        self.set_meta(con, macros=digest_of_macros())

    # -- connections ---------------------------------------------------------------------------------

    @contextmanager
    def _opened(self) -> Iterator[Connection]:
        """The one connection: who comes first opens it, who leaves last closes it."""
        with self._lock:
            if self._con is None:
                self._open()
            self._users += 1
            con = self._con
        assert con is not None
        try:
            yield con
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    self._close()

    def _open(self) -> None:
        with one_sentence(self.path, "opened", _REPAIR, BROKEN):
            with opening:
                self._con = duckdb.connect(str(self.path))
                self._con.execute("SET GLOBAL TimeZone = 'UTC'")  # for times that come with a zone
            # held until the connection is closed: closing any handle of a file ends this process's locks on it
            self._file = os.open(self.path, os.O_RDONLY)

    def _close(self) -> None:
        con, self._con = self._con, None
        with one_sentence(self.path, "closed", _REPAIR):
            if con is not None:
                con.close()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the file open for a run, with the value functions of today, and publish at its end what it wrote."""
        if not self.path.is_file():
            raise LedgerError(f"there is no ledger at {self.path}: make the workspace with 'gmv-qdrant init'")
        with self._opened():
            self._runs += 1
            try:
                meta = self.meta()
                check_schema(self.path, meta)
                if meta.get("macros") != digest_of_macros():  # of a version with other value functions
                    with self.write() as con:
                        self._write_macros(con)
                yield
            except BaseException:
                self._runs -= 1
                with contextlib.suppress(LedgerError):  # the error that ended the run is the one to tell
                    self._publish_what_is_new()
                raise
            self._runs -= 1
            self._publish_what_is_new()

    def _publish_what_is_new(self) -> None:
        if self._runs == 0 and (self._unpublished or not self.path.with_name(PUBLISHED).exists()):
            self.publish()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection to what is committed now."""
        with self._opened() as con, one_sentence(self.path, "read", _REPAIR), con.cursor() as cursor:
            yield cursor

    def query(
        self, sql: str, parameters: Sequence[Any] | dict[str, Any] = (), **tables: pa.Table
    ) -> pa.Table:
        """Rows of one question as an Arrow table; ``tables`` can be named in the SQL."""
        with self.read() as con:
            return arrow(con, sql, parameters, **tables)

    def rows(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> list[dict[str, Any]]:
        """Rows of a small answer as dicts."""
        with self.read() as con:
            return read_rows(con, sql, parameters)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction: committed at the end of the block, rolled back on any error; one at a time.

        It is published at once, but within a run (`held`) now and then, and at the end.
        """
        with self._opened() as con:
            with self._writing, one_sentence(self.path, "written", _NOT_KEPT), con.cursor() as cursor:
                cursor.execute("BEGIN TRANSACTION")
                try:
                    yield cursor
                except BaseException:
                    with contextlib.suppress(duckdb.Error):  # a full disk may have closed the database
                        cursor.execute("ROLLBACK")
                    raise
                cursor.execute("COMMIT")
                self._unpublished = True
            if self._runs == 0:
                self.publish()
            elif time.monotonic() - self._published_at > PUBLISH_EVERY:
                self._published_at = time.monotonic()
                with contextlib.suppress(LedgerError):  # the run goes on; its end says what is wrong
                    self.publish()

    # -- the file itself -----------------------------------------------------------------------------

    def publish(self) -> None:
        """Copy what is committed to ``credits.duckdb``, whole or not at all: readers go over to it when they ask next.

        Raises `LedgerError` when there is no room; what was published before then stays.
        """
        if not self._publishes:
            return
        target = self.path.with_name(PUBLISHED)
        partial = target.with_name(target.name + ".partial")
        with self._writing, self._opened() as con:
            with one_sentence(self.path, "written", _NOT_KEPT), con.cursor() as cursor:
                self.set_meta(cursor, published_at=utc_now().isoformat(timespec="seconds"))
                cursor.execute("CHECKPOINT")
            try:
                partial.unlink(missing_ok=True)
                _copy(self._file, partial)
                partial.chmod(
                    0o444
                )  # so that nobody writes to it, or holds it against its readers, by mistake
                partial.replace(target)
                sync_folder(target.parent)
            except OSError as error:
                with contextlib.suppress(OSError):
                    partial.unlink(missing_ok=True)
                raise LedgerError(
                    f"{target} could not be written ({error.strerror}), so questions are answered from the state "
                    "before: the ledger itself is safe; make room and run any command that writes, such as "
                    "'gmv-qdrant update'"
                ) from error
            self._unpublished, self._published_at = False, time.monotonic()

    def rewrite(self) -> None:
        """Write the file anew: DuckDB leaves the bytes of deleted rows in blocks that it has freed."""
        fresh = self.path.with_suffix(".rewriting")
        for leftover in (fresh, fresh.with_name(fresh.name + ".wal")):
            leftover.unlink(missing_ok=True)
        with self._writing, self._lock, self._opened() as con:
            assert self._users == self._runs + 1, "no other thread may use the file while it is replaced"
            with one_sentence(
                self.path, "written anew", "its rows are safe; make room and run the command again"
            ):
                try:
                    con.execute("CHECKPOINT")
                    con.execute(
                        f"ATTACH {literal(str(fresh))} AS fresh (STORAGE_VERSION '{STORAGE_VERSION}')"
                    )
                    mine = str(con.execute("SELECT current_database()").fetchall()[0][0])
                    con.execute(f'COPY FROM DATABASE "{mine}" TO fresh')
                    con.execute("DETACH fresh")
                except BaseException:
                    fresh.unlink(missing_ok=True)
                    raise
            with fresh.open("rb") as file:
                os.fsync(file.fileno())
            self._close()
            fresh.replace(self.path)
            sync_folder(self.path.parent)
            self._open()
            self._unpublished = True

    # -- small facts ---------------------------------------------------------------------------------

    def meta(self) -> dict[str, str]:
        """All small facts."""
        with self.read() as con:
            return read_meta(self.path, con)

    @staticmethod
    def set_meta(con: Connection, **values: object) -> None:
        for key, value in values.items():
            text = value if isinstance(value, str) else json.dumps(value)
            con.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", [key, text])

    @property
    def training_version(self) -> int:
        """The version of the training set: 0 when nothing was ever ingested."""
        return int(self.meta()["training_version"])


_REPAIR = (
    f"if it is damaged, put a copy of {PUBLISHED} in its place, which has the state after the last run, and run "
    "'gmv-qdrant check'"
)
_NOT_KEPT = "nothing of this batch was kept, all before it is safe; make room and run the command again"


def _create(path: Path) -> None:
    """An empty file in the pinned format; a plain connection would take the newest that this DuckDB knows."""
    if not path.exists():  # a log without its file is left by an init that was killed
        path.with_name(path.name + ".wal").unlink(missing_ok=True)
    with duckdb.connect(":memory:") as con:
        con.execute(f"ATTACH {literal(str(path))} AS fresh (STORAGE_VERSION '{STORAGE_VERSION}')")
        con.execute("CHECKPOINT fresh")


def _copy(source: int, target: Path) -> None:
    """Copy an open file, and return when the copy is safe."""
    with target.open("xb") as copy:
        place = 0
        while block := os.pread(source, _COPIED, place):
            copy.write(block)
            place += len(block)
        copy.flush()
        os.fsync(copy.fileno())


def read_meta(path: Path, con: Connection) -> dict[str, str]:
    """All small facts. Raises `LedgerError` for a DuckDB file of somebody else's."""
    try:
        return dict(con.execute("SELECT key, value FROM meta").fetchall())
    except duckdb.CatalogException as error:
        raise LedgerError(f"{path} is not a ledger of this tool: it has no table 'meta'") from error


def read_rows(
    con: Connection, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()
) -> list[dict[str, Any]]:
    """Rows of a small answer as dicts."""
    done = con.execute(sql, parameters or None)
    names = [column[0] for column in done.description or ()]
    return [dict(zip(names, row, strict=True)) for row in done.fetchall()]


def arrow(
    con: Connection, sql: str, parameters: Sequence[Any] | dict[str, Any] = (), **tables: pa.Table
) -> pa.Table:
    """Rows of a question as an Arrow table; ``tables`` can be named in the SQL."""
    for name, table in tables.items():
        con.register(name, table)
    return con.sql(sql, params=parameters or None).to_arrow_table()


def insert(con: Connection, table: str, columns: dict[str, Any]) -> None:
    """Append rows, given as columns, to a table."""
    import pyarrow as pa

    rows = pa.table(columns)
    con.register("rows_to_insert", rows)
    names = ", ".join(f'"{name}"' for name in columns)
    con.execute(f"INSERT INTO {table} ({names}) SELECT {names} FROM rows_to_insert")
    con.unregister("rows_to_insert")
