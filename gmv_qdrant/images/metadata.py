"""Folder metadata, in the imagefolder conventions: one table describes the images at and below its folder.

``metadata.csv``, ``metadata.jsonl`` or ``metadata.parquet``, with a column ``file_name`` (or
``file_path``) relative to the table's own folder. DuckDB reads and keeps it, so a table of millions of
rows costs columns, not Python objects.
"""

from __future__ import annotations

import csv
import glob
import json
import os
import posixpath
from collections.abc import Iterator

from gmv_qdrant.errors import SourceError
from gmv_qdrant.images.records import printable

NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""At most one of these in a folder."""

_FILE_COLUMNS = ("file_name", "file_path")
_PAGE = 1024

Row = dict[str, object]


class FolderMetadata:
    """One metadata table. Of several rows for one file, the last counts."""

    def __init__(self, path: str) -> None:
        """Read the table at ``path``. Raises `SourceError` when it is damaged or names no files."""
        import duckdb

        self.path = path
        self.root = os.path.dirname(path)
        self._json = path.endswith(".jsonl")
        self._database = duckdb.connect()
        try:
            self._load()
        except duckdb.Error as error:
            raise SourceError(
                f"The metadata file {printable(path)} cannot be read: {_first_line(error)}; "
                "repair it or move it out of the folder."
            ) from error

    @classmethod
    def beside(cls, folder: str, names: set[str]) -> FolderMetadata | None:
        """The table among the files ``names`` of ``folder``, if there is one."""
        found = [name for name in NAMES if name in names]
        if len(found) > 1:
            raise SourceError(
                f"The folder {printable(folder)} has {' and '.join(found)}; keep the one that counts."
            )
        return cls(os.path.join(folder, found[0])) if found else None

    @property
    def has_label(self) -> bool:
        return "label" in self._columns

    def rows(self, folder: str) -> Iterator[tuple[str, Row]]:
        """``(base name, columns)`` of the rows that name files in ``folder``, in byte order of the name."""
        relative = os.path.relpath(folder, self.root)
        yield from self._select("folder = ?", ["" if relative == "." else relative])

    def row(self, path: str) -> Row | None:
        """The columns of the row that names the file ``path``, which lies in the table's own folder."""
        found = self._select("folder = '' AND name = ?", [os.path.basename(path)])
        return next((columns for _, columns in found), None)

    def folders(self) -> list[str]:
        """All folders that rows name, absolute, sorted."""
        rows = self._database.execute("SELECT DISTINCT folder FROM entries ORDER BY folder").fetchall()
        return [os.path.normpath(os.path.join(self.root, folder)) for (folder,) in rows]

    def close(self) -> None:
        self._database.close()

    def _load(self) -> None:
        reader = self._reader()
        source = self._database.execute(f"SELECT * FROM {reader} LIMIT 0", [glob.escape(self.path)])
        names = [name for name, *_ in source.description or ()]
        file_column = next((name for name in names if name in _FILE_COLUMNS), None)
        if file_column is None:
            raise SourceError(
                f"The metadata file {printable(self.path)} has no column file_name "
                f"(it has {', '.join(names)}); add it, with paths relative to the file's folder."
            )
        self._columns = [name for name in names if name != file_column]
        self._database.create_function("folder_of", _folder_of, ["VARCHAR"], "VARCHAR")
        self._database.create_function("name_of", posixpath.basename, ["VARCHAR"], "VARCHAR")
        value = f"({_quoted(file_column)} ->> '$')" if self._json else f"{_quoted(file_column)}::VARCHAR"
        # Their columns go into one struct, so that no name of theirs meets one of ours.
        packed = ", ".join(f"{_quoted(name)} := {_quoted(name)}" for name in self._columns)
        columns = f"struct_pack({packed})" if self._columns else "NULL"
        self._database.execute(
            f"""CREATE TABLE entries AS
                SELECT folder_of(file) AS folder, name_of(file) AS name, columns, place
                FROM (SELECT {value} AS file, {columns} AS columns, row_number() OVER () AS place
                      FROM {reader})
                WHERE file IS NOT NULL AND file <> ''
                QUALIFY row_number() OVER (PARTITION BY folder, name ORDER BY place DESC) = 1
                ORDER BY folder, name""",
            [glob.escape(self.path)],
        )

    def _reader(self) -> str:
        """The SQL that reads the table; its parameter is the path."""
        if self.path.endswith(".parquet"):
            return "read_parquet(?)"
        if self._json:  # depth 1 leaves each value as the JSON it was: no guessed dates or identifiers
            return "read_json(?, format = 'newline_delimited', maximum_depth = 1, sample_size = -1)"
        # Nothing is guessed: all stays text (an owner "007" must not become 7), and a broken row is an
        # error, where DuckDB's detection would take another line for the header.
        try:
            with open(self.path, encoding="utf-8-sig", newline="") as file:
                header = next(csv.reader(file), [])
        except (OSError, ValueError, csv.Error) as error:
            raise SourceError(f"The metadata file {printable(self.path)} cannot be read: {error}.") from error
        names = [name.strip() or f"column{place}" for place, name in enumerate(header)] or ["nothing"]
        columns = ", ".join(f"{_literal(name)}: 'VARCHAR'" for name in names)
        return (
            f"read_csv(?, auto_detect = false, columns = {{{columns}}}, header = true, delim = ',', "
            "quote = '\"', escape = '\"')"
        )

    def _select(self, condition: str, parameters: list[str]) -> Iterator[tuple[str, Row]]:
        found = self._database.cursor().execute(
            f"SELECT name, columns FROM entries WHERE {condition} ORDER BY name", parameters
        )
        while page := found.fetchmany(_PAGE):
            for name, columns in page:
                yield name, self._parse(columns or {})

    def _parse(self, columns: Row) -> Row:
        if not self._json:
            return columns
        return {name: None if value is None else json.loads(str(value)) for name, value in columns.items()}


def _folder_of(file: str) -> str:
    return posixpath.dirname(posixpath.normpath(file))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
