"""The tables of a folder, asked about one file after the other.

Rows are kept in a temporary database on disk, so that a table of millions of rows costs no memory; each row is for one
image, and whoever asks for it twice is refused. Names are compared in NFC, with ``/`` between them.
"""

from __future__ import annotations

import pickle
import re
import sqlite3
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote

from gmv_qdrant.errors import ImageError, first_line
from gmv_qdrant.images.descriptions import (
    EMPTY,
    Description,
    Pairs,
    Unreadable,
    canonical,
    describe,
    is_whole,
    merged,
)
from gmv_qdrant.images.names import is_hidden, key, printable
from gmv_qdrant.images.records import Unusable
from gmv_qdrant.images.tables import Open, Row, read_rows

Exists = Callable[[str], bool]
"""Whether there is a file at a path from the table's folder."""
Note = Callable[[str], None]

_ABSOLUTE = re.compile(r"/|[A-Za-z]:/")
_TRIES = 1_000
"""Absolute paths that are looked for under the table's folder before it is given up, if none was found."""


class Rows:
    """Tables that were read, and their rows in a temporary database that goes to disk when it grows."""

    def __init__(self) -> None:
        self._con = sqlite3.connect("", check_same_thread=False)
        self._con.execute("CREATE TABLE rows (tab INTEGER, path TEXT, folded TEXT, place TEXT, pairs BLOB)")
        self._con.execute("CREATE INDEX paths ON rows (tab, path)")
        self._con.execute("CREATE INDEX folds ON rows (tab, folded)")
        self._tables: dict[tuple[object, ...], Table] = {}

    def table(self, uri: str, version: tuple[object, ...], source: Open, exists: Exists, note: Note) -> Table:
        """The table at ``uri``, of which nothing was asked yet; one of that version is only read once."""
        key = (uri, *version)
        if key not in self._tables:
            self._tables[key] = Table(uri, source, exists, self, len(self._tables))
        self._tables[key].begin(note)
        return self._tables[key]

    def add(self, rows: Iterator[tuple[int, str, str, str, bytes]]) -> range:
        """Keep the rows of one more table; their numbers."""
        first = self._last() + 1
        with self._con:
            self._con.executemany("INSERT INTO rows VALUES (?, ?, ?, ?, ?)", rows)
        return range(first, self._last() + 1)

    def ask(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        return self._con.execute(sql, parameters).fetchall()

    def _last(self) -> int:
        return int(self.ask("SELECT coalesce(max(rowid), 0) FROM rows")[0][0])


class Table:
    """One metadata table: what it says of a file, and afterwards, which of its rows were about none."""

    def __init__(self, uri: str, source: Open, exists: Exists, rows: Rows, number: int) -> None:
        """Reads all of it into ``rows``. What is wrong with it as a whole is its ``problem``: nothing is raised."""
        self.uri = printable(uri)
        self.name = self.uri.replace("#", "/").rpartition("/")[2]
        self.problem = ""
        self.is_other = False
        """Whether it is called like a table of images and is something else."""
        self.has_label = False
        self.damaged: list[tuple[str, str]] = []
        """Rows that can't be read: where, and why."""
        self.nameless: list[str] = []
        """Where rows stand that name no file."""
        self._told: list[str] = []
        """What reading it had to decide."""
        self._say: Note = self._told.append
        self._exists = exists
        self._prefixes: list[str] = []
        self._misses = 0
        self._whole: dict[str, bool] = {}
        self._rows, self._tab, self._numbers = rows, number, range(0)
        self._claimed = bytearray()
        try:
            self._numbers = rows.add(self._kept(source))
        except ImageError as error:
            self.is_other = error.kind == "no-table"
            self.problem = str(error)
        except Exception as error:  # noqa: BLE001 - whatever a table does to a reader, its images are refused by name
            self.problem = f"it can't be read: {first_line(error)}"
        if self.is_other:
            self._note(f"isn't a table of images and isn't used: {self.problem}")

    def begin(self, note: Note) -> None:
        """No row was asked for yet; ``note`` is told what is decided, and what was when it was read."""
        self._say = note
        self._claimed = bytearray(len(self._numbers))
        for text in self._told:
            note(text)

    def describe(self, path: str) -> Description | None:
        """What the rows for the file at ``path``, from the table's folder, say together; None where there is none.

        Raises `ImageError` when that can't be told: the table or the row is damaged, or rows disagree.
        """
        if self.problem:
            raise _refused(f"{self.uri}, which describes it, is of no use: {self.problem}")
        found = self._find(path)
        if not found and self.damaged:
            place, reason = self.damaged[0]
            raise _refused(
                f"{self.uri} has no row for it, but {len(self.damaged)} that can't be read ({place}: {reason})"
            )
        claims = [number - self._numbers.start for number, _, _ in found]
        taken = [self._claimed[claim] for claim in claims]
        for claim in claims:
            self._claimed[claim] = 1
        if any(taken):
            place = found[taken.index(1)][1]
            raise _refused(f"{place} of {self.uri} is about another image already")
        description = self._together(found)
        if len(found) > 1:
            self._note(
                "has several rows for one image: where they agree on its names, they are taken together"
            )
        return description

    def _together(self, rows: list[tuple[int, str, bytes]]) -> Description | None:
        whole = frozenset(name for name, is_so in self._whole.items() if is_so)
        description: Description | None = None
        for _, place, pairs in rows:
            try:
                one = describe(pickle.loads(pairs), whole)
            except ImageError as error:
                raise _refused(f"{place} of {self.uri}: {error}") from None
            together = f"{len(rows)} rows of {self.uri}"
            description = one if description is None else merged(description, one, together)
        return description

    def _note(self, text: str) -> None:
        self._say(f"{self.uri} {text}")

    def leftover(self) -> Iterator[Unusable]:
        """The table itself where it is of no use; its damaged rows; rows about files that nobody asked for."""
        if self.problem:
            yield Unusable(self.uri, f"this table of descriptions is of no use: {self.problem}", "table")
        for place, reason in self.damaged:
            yield Unusable(f"{self.uri}#{place}", reason, "row")
        for place in self.nameless:
            yield Unusable(f"{self.uri}#{place}", "the row names no file", "row")
        for number in self._numbers:
            if not self._claimed[number - self._numbers.start]:
                ((path, place),) = self._rows.ask("SELECT path, place FROM rows WHERE rowid = ?", number)
                if (found := self._unclaimed(path, place)) is not None:
                    yield found

    def _unclaimed(self, path: str, place: str) -> Unusable | None:
        row = f"{self.uri}#{path}"
        if path.startswith("../"):
            return Unusable(row, f"{place} names a file outside the table's folder; move the table up", "row")
        if not self._exists(path):
            reason = f"{place} of {self.uri} names this file, but it does not exist (paths are from the table's folder)"
            return Unusable(self.uri.removesuffix(self.name) + path, reason, "absent")
        if any(is_hidden(part) for part in path.split("/")):
            return Unusable(row, f"{place} names a file in a hidden folder, which is not looked into", "row")
        self._note("names files that a nearer table describes, or that were reached by another path")
        return None

    def _kept(self, source: Open) -> Iterator[tuple[int, str, str, str, bytes]]:
        for row in self._read(source):
            if row.damage:
                self.damaged.append((row.place, row.damage))
            elif not row.files:
                self.nameless.append(row.place)
            self._look_at_columns(row)
            pairs = _packed(row.pairs)
            for file in row.files:
                path = self._path(file)
                if file != file.strip() and not self._exists(path):  # blanks are part of few names
                    path = self._path(file.strip())
                path = path.encode("utf-8", "backslashreplace").decode()
                yield self._tab, path, _folded(path), row.place, pairs

    def _read(self, source: Open) -> Iterator[Row]:
        """Its rows; where damage in the midst of it ends them, those before it are kept."""
        last = ""
        try:
            for row in read_rows(self.name, source, self._note):
                yield row
                last = row.place
        except Exception as error:
            if not last:
                raise
            yield Row(f"after {last}", (), (), f"what follows {last} can't be read: {first_line(error)}")

    def _look_at_columns(self, row: Row) -> None:
        for name, value in row.pairs:
            target = canonical(name)
            if target == "label":
                self.has_label = True
            if (
                target
                and value is not None
                and not (isinstance(value, str) and (not value or value in EMPTY))
            ):
                self._whole[target] = self._whole.get(target, True) and is_whole(value)

    def _path(self, file: str) -> str:
        """A name in a row, as a path from the table's folder."""
        plain = unicodedata.normalize("NFC", file.removeprefix("file://")).replace("\\", "/")
        if _ABSOLUTE.match(plain):
            return self._relocated(plain)
        above = 0
        parts: list[str] = []
        for part in plain.split("/"):
            if part == ".." and parts:
                parts.pop()
            elif part == "..":
                above += 1
            elif part not in ("", "."):
                parts.append(part)
        return "../" * above + "/".join(parts)

    def _relocated(self, path: str) -> str:
        """An absolute path, of this machine or of another: what follows the part of it that is the table's folder."""
        for prefix in self._prefixes:
            if path.startswith(prefix):
                return key(path[len(prefix) :])
        parts = path.split("/")
        if self._misses < _TRIES or self._prefixes:
            for start in range(1, len(parts)):
                ending = key("/".join(parts[start:]))
                if self._exists(ending):
                    self._prefixes.append("/".join(parts[:start]) + "/")
                    self._note(
                        f"has absolute paths: what follows {self._prefixes[-1]} is looked for in its folder"
                    )
                    return ending
            self._misses += 1
        return key(path)

    def _find(self, path: str) -> list[tuple[int, str, bytes]]:
        wanted = key(path)
        found = self._rows.ask(
            "SELECT rowid, place, pairs FROM rows WHERE tab = ? AND path = ?", self._tab, wanted
        )
        if found:
            return [(row[0], row[1], row[2]) for row in found]
        near = self._rows.ask(
            "SELECT rowid, place, pairs, path FROM rows WHERE tab = ? AND folded = ?",
            self._tab,
            _folded(wanted),
        )
        named = {row[3] for row in near}
        if len(named) != 1 or self._exists(named.pop()):
            return []
        self._note("names files in another case, or percent-encoded: they are taken for those that are there")
        return [(row[0], row[1], row[2]) for row in near]


def _refused(reason: str) -> ImageError:
    return ImageError(reason, kind="description")


def _packed(pairs: Pairs) -> bytes:
    try:
        return pickle.dumps(pairs)
    except RecursionError:
        return pickle.dumps([("row", Unreadable("it is nested too deeply"))])


def _folded(path: str) -> str:
    return unquote(path).casefold()
