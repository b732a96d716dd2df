"""SQL that people type: asked in a process of its own, within limits of time and memory that hold.

DuckDB's own limits don't hold: a function like ``lpad('', 2000000000, 'x')`` can't be interrupted, and its memory isn't
counted. A process can be killed, and the operating system bounds its memory. In it the published file is attached
read-only, and files, network and settings are shut off before the SQL is read.

This file is also the program of that process, and imports nothing of the package.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

REFUSED, FAILED, TOO_LARGE = 3, 4, 5
"""Exit codes of the process: no rows to give, DuckDB's own words, more memory than allowed."""


@dataclass(frozen=True)
class Restricted:
    """The published file, for SQL that may read its tables and macros, and nothing else.

    seconds: after which a question is stopped; None is never. memory: bytes; by default half of the machine's, at most
    8 GiB. attach: files (CSV, JSON, Parquet) that can be named in the SQL as tables.
    """

    path: Path
    seconds: float | None = 300.0
    memory: int | None = None
    attach: Mapping[str, Path] = field(default_factory=dict)
    search_path: str = "credits.main,memory.main"
    macros: str = ""

    def query(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> pa.Table:
        """Rows of a SELECT as an Arrow table that keeps DuckDB's types.

        Raises `SettingsError` for what gives no rows, `LedgerError` with the engine's words or at a limit.
        """
        memory = self.memory or _half_of_memory()
        task = {
            "path": str(self.path),
            "sql": sql,
            "parameters": parameters or None,
            "memory": memory,
            "attach": {name: str(file) for name, file in self.attach.items()},
            "macros": self.macros,
            "search_path": self.search_path,
        }
        child = subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        stopped = threading.Event()

        def stop() -> None:
            stopped.set()
            child.kill()

        alarm = threading.Timer(self.seconds, stop) if self.seconds is not None else None
        if alarm:
            alarm.daemon = True
            alarm.start()
        try:
            rows, complaint = _converse(child, json.dumps(task).encode(), memory)
        finally:
            if alarm:
                alarm.cancel()
            child.kill()
            child.wait()
        return self._judged(rows, child.returncode, complaint, stopped.is_set(), memory)

    def _judged(self, rows: bytes | None, code: int, complaint: str, stopped: bool, memory: int) -> pa.Table:
        import pyarrow as pa

        from gmv_qdrant.errors import LedgerError, SettingsError

        if stopped:
            raise LedgerError(f"this SQL was stopped after {self.seconds:g} s: ask for less at a time")
        if code == REFUSED:
            raise SettingsError("this SQL gives no rows: only SELECT can be asked here")
        if code == FAILED:
            raise LedgerError(f"this SQL can't be run: {complaint}")
        if code or rows is None:
            raise LedgerError(
                f"this SQL needs more than {memory / 2**30:.1f} GiB of memory: ask for less at a time"
            )
        with pa.ipc.open_stream(rows) as reader:
            return reader.read_all()


def _half_of_memory() -> int:
    return min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2, 8 << 30)


def _converse(child: subprocess.Popen[bytes], task: bytes, most: int) -> tuple[bytes | None, str]:
    """What the process says: rows as an Arrow stream (None: more than ``most`` bytes), and its complaint."""
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    with child.stdin, child.stdout, child.stderr:
        try:
            child.stdin.write(task)
            child.stdin.close()
        except BrokenPipeError:  # it ended before it read its task, and says why
            pass
        rows = child.stdout.read(most + 1)
        if len(rows) > most:
            child.kill()
            return None, ""
        complaint = child.stderr.read().decode(errors="replace").strip()
    child.wait()
    return rows, complaint


def _bound_memory(most: int) -> None:
    """Bound what this process may take beside what its libraries have, where the system tells that."""
    import resource

    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            taken = int(statm.read().split()[0]) * resource.getpagesize()
    except OSError:  # not Linux: DuckDB's own limit and the clock remain
        return
    resource.setrlimit(resource.RLIMIT_AS, (taken + most, taken + most))


def _connect(task: dict[str, Any]) -> Any:
    """The file, attached read-only to a database in memory, with all doors shut."""
    import duckdb

    con = duckdb.connect(
        ":memory:",
        config={
            "memory_limit": f"{task['memory'] * 3 // 4}B",
            "temp_directory": "",
            "python_enable_replacements": "false",
        },
    )
    con.execute(f"ATTACH '{_quoted(task['path'])}' AS credits (READ_ONLY)")
    con.execute("SET TimeZone = 'UTC'; SET arrow_lossless_conversion = true")
    for name, file in task["attach"].items():
        con.execute(f"""CREATE TABLE "{name.replace('"', '""')}" AS FROM '{_quoted(file)}'""")
    con.execute(f"SET search_path = '{task['search_path']}'")
    con.execute(task["macros"] or "SELECT 1").fetchall()
    for name in ("autoinstall_known_extensions", "autoload_known_extensions", "enable_external_access"):
        con.execute(f"SET {name} = false")
    con.execute("SET lock_configuration = true")
    return con


def _quoted(text: str) -> str:
    return text.replace("'", "''")


def main() -> int:
    """Read a task from standard input, write its rows to standard output as an Arrow stream."""
    task = json.load(sys.stdin)
    import duckdb
    import pyarrow as pa

    try:
        con = _connect(task)
        _bound_memory(task["memory"])
        found = con.sql(task["sql"], params=task["parameters"])
        if found is None:
            return REFUSED
        with (
            pa.RecordBatchReader.from_stream(found) as reader,
            pa.ipc.new_stream(sys.stdout.buffer, reader.schema) as out,
        ):
            for batch in reader:
                out.write_batch(batch)
        return 0
    except (MemoryError, duckdb.OutOfMemoryException):
        return TOO_LARGE
    except (duckdb.Error, RuntimeError, ValueError, pa.ArrowException) as error:
        sys.stderr.write(str(error).strip())
        return FAILED
    except BrokenPipeError:
        return FAILED


if __name__ == "__main__":
    sys.exit(main())
