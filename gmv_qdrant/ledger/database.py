"""The DuckDB file: connections held briefly, one transaction per batch, locks waited for.

DuckDB lets one process write, or many read, never both. So nobody keeps the file open: a writer connects,
commits one batch and lets go; a reader connects, fetches and lets go. Either waits for the other.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from tenacity import RetryError, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from gmv_qdrant.errors import LedgerError, LedgerLocked
from gmv_qdrant.ledger.gate import Gate

SCHEMA_VERSION = "1"
READER_PATIENCE = 10.0
"""Seconds that a reader waits for a batch to be committed."""
WRITER_PATIENCE = 60.0
"""Seconds that a writer waits for readers to finish."""

# What SQL typed by a person may do: read this ledger, and nothing else.
_LOCKED = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "lock_configuration": "true",
}

_UNWRITABLE = (
    duckdb.IOException,
    duckdb.FatalException,
    duckdb.OutOfMemoryException,
    duckdb.TransactionException,  # a commit that finds the disk full
)

Connection = duckdb.DuckDBPyConnection

_opening = threading.Lock()
"""Two threads that open one file at the same time get a connection without its functions (DuckDB 2.0)."""


_Stamp = tuple[int, int, int, int]
_TICK = 20_000_000
"""Nanoseconds within which a file can change twice and keep its time."""


def _stamp(path: Path) -> _Stamp:
    """What changes when anybody, in this process or another, has written the file or its log."""
    try:
        file, log = path.stat(), path.with_name(path.name + ".wal")
        return (file.st_mtime_ns, file.st_size, file.st_ino, log.stat().st_mtime_ns if log.exists() else 0)
    except OSError:  # its opening says what is wrong
        return (time.time_ns(), 0, 0, 0)


def _is_busy(error: BaseException) -> bool:
    """Somebody else has the file open in a way that excludes us; it passes."""
    text = str(error)
    words = (
        "Could not set lock",
        "different configuration",
        "already attached",
    )  # of processes, then of threads
    return isinstance(error, duckdb.Error) and any(phrase in text for phrase in words)


def _open(path: Path, read_only: bool, config: dict[str, Any]) -> Connection:
    with _opening:
        return duckdb.connect(str(path), read_only=read_only, config=config)


@cache
def _macros() -> str:
    return files(__package__).joinpath("credits.sql").read_text()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


class Ledger:
    """One ledger file.

    Raises `LedgerLocked` when the other side holds the file for longer than the patience, and
    `LedgerError` when the file isn't a ledger or has another schema version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._gate = Gate()
        self._meta: tuple[_Stamp, dict[str, str]] | None = None
        """What `meta` last said, and of which state of the file."""

    @classmethod
    def create(cls, path: Path) -> Ledger:
        """Make an empty ledger: tables, and the macros that turn evidence into values."""
        ledger = cls(path)
        with ledger.write() as con:
            con.execute(files(__package__).joinpath("schema.sql").read_text())
            ledger.set_meta(con, schema_version=SCHEMA_VERSION, training_version=0)
            ledger._write_macros(con)
        return ledger

    def _write_macros(self, con: Connection) -> None:
        con.execute(_macros())
        self.set_meta(con, macros=_digest(_macros()))

    @classmethod
    def open(cls, path: Path) -> Ledger:
        if not path.is_file():
            raise LedgerError(f"there is no ledger at {path}: make the workspace with 'gmv-qdrant init'")
        ledger = cls(path)
        try:
            meta = ledger.meta()
        except duckdb.Error as error:
            raise LedgerError(f"{path} is not a ledger of this tool: {error}") from error
        version = meta.get("schema_version")
        if version != SCHEMA_VERSION:
            raise LedgerError(
                f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}: "
                "use the version of gmv-qdrant that made it, or start another workspace"
            )
        if meta.get("macros") != _digest(_macros()):  # it was made by a version with other value functions
            with ledger.write() as con:
                ledger._write_macros(con)
        return ledger

    # -- connections ---------------------------------------------------------------------------------

    def _connect(self, patience: float, *, read_only: bool, locked: bool = False) -> Connection:
        retrying = Retrying(
            retry=retry_if_exception(_is_busy),
            wait=wait_random_exponential(multiplier=0.02, max=0.5),
            stop=stop_after_delay(patience),
        )
        try:
            config: dict[str, Any] = dict(_LOCKED) if locked else {}
            return retrying(_open, self.path, read_only, config)
        except RetryError as error:
            doing = "writing to" if read_only else "using"
            raise LedgerLocked(
                f"another process has been {doing} the ledger {self.path} for over {patience:g} s: "
                "try again when it has finished"
            ) from error.last_attempt.exception()
        except duckdb.IOException as error:
            raise LedgerError(f"the ledger {self.path} cannot be opened: {error}") from error

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction: committed at the end of the block, rolled back on any error."""
        with self._gate.writing(WRITER_PATIENCE):
            con = self._connect(WRITER_PATIENCE, read_only=False)
            try:
                con.execute("BEGIN TRANSACTION")
                try:
                    yield con
                except BaseException:
                    with contextlib.suppress(duckdb.Error):  # a full disk may have closed the database
                        con.execute("ROLLBACK")
                    raise
                con.execute("COMMIT")
                self._meta = None
            except _UNWRITABLE as error:
                raise LedgerError(
                    f"the ledger {self.path} could not be written ({_first_line(error)}): nothing of this batch "
                    "was kept, all before it is safe; make room and run the command again"
                ) from error
            finally:
                con.close()

    def rewrite(self) -> None:
        """Write the file anew: DuckDB leaves the bytes of deleted rows in blocks that it has freed."""
        fresh = self.path.with_suffix(".rewriting")
        for leftover in (fresh, fresh.with_name(fresh.name + ".wal")):
            leftover.unlink(missing_ok=True)
        with self._gate.writing(WRITER_PATIENCE):
            con = self._connect(WRITER_PATIENCE, read_only=False)
            try:
                con.execute("CHECKPOINT")
                con.execute(f"ATTACH '{str(fresh).replace(chr(39), chr(39) * 2)}' AS fresh")
                mine = con.execute("SELECT current_database()").fetchall()[0][0]
                con.execute(f'COPY FROM DATABASE "{mine}" TO fresh')
                con.execute("DETACH fresh")
            except duckdb.Error as error:
                fresh.unlink(missing_ok=True)
                raise LedgerError(
                    f"the ledger {self.path} could not be written anew ({_first_line(error)}): its rows are safe; "
                    "make room and run the command again"
                ) from error
            finally:
                con.close()
            with fresh.open("rb") as file:
                os.fsync(file.fileno())
            fresh.replace(self.path)

    @contextmanager
    def read(self, *, locked: bool = False) -> Iterator[Connection]:
        """A read-only connection; keep the block short, a writer may be waiting.

        locked: for SQL typed by a person: no files, no network, no change of settings.
        """
        with self._gate.reading(READER_PATIENCE):
            con = self._connect(READER_PATIENCE, read_only=True, locked=locked)
            try:
                yield con
            finally:
                con.close()

    def query(
        self, sql: str, parameters: Sequence[Any] | dict[str, Any] = (), **tables: pa.Table
    ) -> pa.Table:
        """Rows of one read as an Arrow table; ``tables`` can be named in the SQL."""
        with self.read() as con:
            for name, table in tables.items():
                con.register(name, table)
            return con.sql(sql, params=parameters or None).to_arrow_table()

    # -- small facts ---------------------------------------------------------------------------------

    def meta(self) -> dict[str, str]:
        """All small facts; the file is only opened when it has changed since they were read."""
        stamp = _stamp(self.path)
        if self._meta is None or self._meta[0] != stamp:
            with self.read() as con:
                found = dict(con.execute("SELECT key, value FROM meta").fetchall())
            self._meta = None
            if time.time_ns() - stamp[0] > _TICK:  # else it may change again and look the same
                self._meta = stamp, found
            return found
        return dict(self._meta[1])

    @staticmethod
    def set_meta(con: Connection, **values: object) -> None:
        for key, value in values.items():
            text = value if isinstance(value, str) else json.dumps(value)
            con.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", [key, text])

    @property
    def training_version(self) -> int:
        """The version of the training set: 0 when nothing was ever ingested."""
        return int(self.meta()["training_version"])


def insert(con: Connection, table: str, columns: dict[str, Any]) -> None:
    """Append rows, given as columns, to a table."""
    rows = pa.table(columns)
    con.register("rows_to_insert", rows)
    names = ", ".join(f'"{name}"' for name in columns)
    con.execute(f"INSERT INTO {table} ({names}) SELECT {names} FROM rows_to_insert")
    con.unregister("rows_to_insert")
