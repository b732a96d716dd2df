"""Metadata tables as people write them -> rows: CSV with any separator, TSV, JSON, JSON lines, Parquet.

Nothing is guessed about values: CSV stays text, so that an owner ``007`` doesn't become 7. A row or a cell that can't
be read is one that says so; only a table that names no images at all is refused as a whole.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

from gmv_qdrant.errors import ImageError, first_line
from gmv_qdrant.images import limits
from gmv_qdrant.images.arrow import class_names, hub_features, values
from gmv_qdrant.images.descriptions import Pairs, Unreadable
from gmv_qdrant.images.kinds import HEAD, kind_of

Open = Callable[[], BinaryIO]
"""The table's bytes from their beginning, as often as asked for."""
Note = Callable[[str], None]


class Row(NamedTuple):
    """One row: where it stands, the files that it names, its other columns. A damaged row names no files."""

    place: str
    """``line 7`` or ``row 7``."""
    files: tuple[str, ...]
    pairs: Pairs
    damage: str = ""


_FILE_COLUMNS = (
    *("file_name", "file_names", "filename", "filenames", "file_path", "filepath", "file", "path"),
    *("image_file", "image_name", "image_path", "image", "img"),
)
"""The first of these that a table has names the images, in any case; a space or ``-`` is as good as ``_``."""

_SEPARATORS = ",;\t|"
_LINE = 16 * limits.MIB
_CUT = "\udc00"
"""In place of a line that is too long; no decoder gives it."""
_WHOLE_JSON = 256 * limits.MIB
_PAGE = 1024
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_UNDECODED = {
    "utf-8": (re.compile("[\udc80-\udcff]"), "it has bytes that aren't UTF-8, as the rest is"),
    "cp1252": (  # and no word begins with ÿ, or has it beside þ: these are the bytes FF and FE
        re.compile("[\udc80-\udcff]|(?<![A-Za-z])ÿ|þÿ"),
        "its bytes are neither UTF-8 nor Windows-1252: save the table as UTF-8",
    ),
    "utf-16": (re.compile("\ufffd"), "it has bytes that aren't UTF-16"),
}
"""What decoders leave in the place of bytes that are none of an encoding's, and what to say of it."""
_EXCEL_TEXT = re.compile(r'="(.*)"', re.DOTALL)

Wrong = Callable[[str], str]
"""What is wrong with a decoded text, if anything is."""


def read_rows(name: str, source: Open, note: Note) -> Iterator[Row]:
    """The rows of the table called ``name``; ``note`` is told what had to be decided on the way.

    Raises `ImageError` when it names no files or isn't readable at all.
    """
    ending = name.lower().rpartition(".")[2]
    with source() as file:
        kind = kind_of(file.read(HEAD))
    if kind is not None and kind.reason and kind.name not in ("json", "xml"):
        raise ImageError(f"it is {kind.reason}", kind=kind.name)
    if ending == "parquet":
        return _parquet(source, note)
    return _text(source, _encoding(source, note), ending)


def _text(source: Open, encoding: str, ending: str) -> Iterator[Row]:
    one_byte = encoding in ("utf-8", "utf-8-sig", "cp1252")
    left, reason = _UNDECODED[encoding.removesuffix("-sig") if one_byte else "utf-16"]

    def wrong(text: str) -> str:
        if _CUT in text:
            return f"it has more than {limits.size_of(_LINE)}"
        return reason if left.search(text) else ""

    errors = "surrogateescape" if one_byte else "replace"
    with io.TextIOWrapper(source(), encoding=encoding, errors=errors, newline="") as text:
        if ending in ("csv", "tsv"):
            separators = "\t" + _SEPARATORS if ending == "tsv" else _SEPARATORS
            yield from _separated(_lines(text), separators, wrong)
        else:
            yield from _json(_lines(text), ending, wrong)


def _encoding(source: Open, note: Note) -> str:
    """By its byte-order mark; else UTF-8, and Windows-1252 where no line but plain ones is that, as Excel saves CSV."""
    with source() as file:
        head = file.read(4)
        for mark, encoding in _BOMS:
            if head.startswith(mark):
                return encoding
        if b"\0" in head:
            raise ImageError("it is neither text in UTF-8 nor marked as UTF-16: save it as UTF-8")
        others = False
        while line := head + file.readline(_LINE):
            head = b""
            if line.isascii():
                continue
            try:
                line.decode()
                return "utf-8"
            except UnicodeDecodeError:
                others = True
    if not others:
        return "utf-8"
    note("isn't UTF-8 and was read as Windows-1252: check the accents in its names")
    return "cp1252"


def _lines(text: io.TextIOWrapper) -> Iterator[str]:
    while line := text.readline(_LINE):
        if len(line) == _LINE and not line.endswith("\n"):
            while (more := text.readline(_LINE)) and not more.endswith("\n"):
                pass
            line = _CUT + "\n"
        yield line


# -- columns ---------------------------------------------------------------------------------------------------------


def file_column(names: Iterable[str]) -> int | None:
    """Which column names the files; None where none does."""
    plain = [re.sub(r"[\s-]+", "_", name.strip().casefold()) for name in names]
    return next((plain.index(known) for known in _FILE_COLUMNS if known in plain), None)


def _require_file_column(names: list[str], kind: str = "description") -> int:
    place = file_column(names)
    if place is None:
        there = ", ".join(name.strip() for name in names[:20]) or "none"
        raise ImageError(
            f"it has no column file_name (its columns: {there}): add one, with paths from its own folder",
            kind=kind,
        )
    return place


def _files(value: object) -> tuple[str, ...]:
    items = value if isinstance(value, list | tuple) else [value]
    return tuple(str(item) for item in items if item is not None and str(item).strip())


# -- text with separators --------------------------------------------------------------------------------------------


def _separated(lines: Iterator[str], separators: str, wrong: Wrong) -> Iterator[Row]:
    names, at, separator, header_line = _header(lines, separators)
    records = _Records(lines, separator)
    for cells, damage in records:
        place = f"line {header_line + records.first_line}"
        if damage:
            yield Row(place, (), (), damage)
        elif any(cell.strip() for cell in cells):
            yield _row_of_cells(place, names, at, cells, wrong)


def _header(lines: Iterator[str], separators: str) -> tuple[list[str], int, str, int]:
    """Names of columns, which one names the files, the separator, and the header's line number."""
    names: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or (number == 1 and re.fullmatch(r"sep=.\s*", line)):  # Excel's hint
            continue
        if line.count('"') % 2:
            raise ImageError("the quotes of its header don't close")
        for separator in separators:
            names = next(csv.reader([line], delimiter=separator, skipinitialspace=True))
            if (at := file_column(names)) is not None:
                return names, at, separator, number
        names = next(csv.reader([line], skipinitialspace=True))
        break
    return names, _require_file_column(names), ",", 0


class _Records:
    """Records of CSV, each with what is wrong with it; a quote that doesn't close costs the line that it opens in."""

    def __init__(self, lines: Iterator[str], separator: str) -> None:
        self.lines, self.separator = lines, separator
        self.read: list[str] = []
        self.again: deque[str] = deque()
        """Lines that were taken for a part of another record, and weren't."""
        self.seen = 0
        self.first_line = 0

    def __iter__(self) -> Iterator[tuple[list[str], str]]:
        records = self._reader()
        while True:
            self.read.clear()
            self.first_line = self.seen + 1
            try:
                yield next(records), ""
            except StopIteration:
                return
            except csv.Error as error:
                yield self._sloppy(str(error))
                records = self._reader()

    def _reader(self) -> Iterator[list[str]]:
        return csv.reader(self._remembered(), delimiter=self.separator, skipinitialspace=True, strict=True)

    def _remembered(self) -> Iterator[str]:
        while (line := self.again.popleft() if self.again else next(self.lines, None)) is not None:
            self.seen += 1
            self.read.append(line)
            yield line

    def _sloppy(self, reason: str) -> tuple[list[str], str]:
        """A line that is sloppy by itself (``"Rock" Johnson``) is read as it can be."""
        is_long = "limit" in reason
        if len(self.read) == 1 and self.read[0].count('"') % 2 == 0 and not is_long:
            return next(csv.reader(self.read, delimiter=self.separator, skipinitialspace=True)), ""
        self.again.extendleft(reversed(self.read[1:]))
        self.seen -= len(self.read) - 1
        most = f"it has a cell of more than {csv.field_size_limit():,} characters"
        return [], most if is_long and len(self.read) == 1 else "it has a quote that doesn't close"


def _row_of_cells(place: str, names: list[str], at: int, cells: list[str], wrong: Wrong) -> Row:
    damage = wrong("\n".join(cells))
    if damage and (at >= len(cells) or wrong(cells[at])):
        return Row(place, (), (), damage)
    texts = [match[1] if (match := _EXCEL_TEXT.fullmatch(cell.strip())) else cell for cell in cells]
    pairs: list[tuple[str, object]] = [
        (name.strip() or f"column{number}", _cell(text, wrong if damage else None))
        for number, (name, text) in enumerate(itertools.zip_longest(names, texts[: len(names)], fillvalue=""))
        if number != at
    ]
    if "".join(texts[len(names) :]).strip():
        pairs.append(("its last", Unreadable(f"the row has {len(cells)} cells, the header {len(names)}")))
    return Row(place, _files(texts[at] if at < len(texts) else None), pairs)


def _cell(text: str, wrong: Wrong | None) -> object:
    return Unreadable(reason) if wrong and (reason := wrong(text)) else text.strip()


# -- JSON ------------------------------------------------------------------------------------------------------------


class Doubled(dict[str, Any]):
    """An object in which a name stands twice."""

    pairs: Pairs = ()


def parse_json(text: str | bytes) -> Any:
    """JSON, in which an object that has a name twice is `Doubled`. Raises `ValueError` or `RecursionError`."""
    return json.loads(text, object_pairs_hook=_object)


def pairs_of(value: Mapping[str, Any]) -> Pairs:
    return value.pairs if isinstance(value, Doubled) else list(value.items())


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        found = Doubled(found)
        found.pairs = pairs
    return found


def _json(lines: Iterator[str], ending: str, wrong: Wrong) -> Iterator[Row]:
    """An array of rows, an object of rows by file, or a row on each line; ``.json`` may also be something else."""
    kind = "no-table" if ending == "json" else "description"
    blank: list[str] = []
    start = ""
    while not start.strip() and (start := next(lines, "")):
        blank.append(start)
    lines = itertools.chain(blank, lines)
    if ending == "json" or start.lstrip()[:1] == "[":
        whole = _whole(lines)
        try:
            yield from _json_rows(parse_json(whole), kind, wrong)
            return
        except (ValueError, RecursionError) as error:
            if not str(error).startswith("Extra data"):
                raise ImageError(_damaged(error)) from None
            lines = iter(io.StringIO(whole))
    yield from _json_lines(lines, kind, wrong)


def _damaged(error: Exception) -> str:
    return f"its JSON is damaged: {str(error) or 'it is nested too deeply'}"


def _whole(lines: Iterable[str]) -> str:
    parts: list[str] = []
    size = 0
    for line in lines:
        size += len(line)
        if size > _WHOLE_JSON or _CUT in line:
            most = limits.size_of(_LINE if _CUT in line else _WHOLE_JSON)
            raise ImageError(f"it is JSON of more than {most}: save it as .jsonl, a row on each line")
        parts.append(line)
    return "".join(parts)


def _json_lines(lines: Iterable[str], kind: str, wrong: Wrong) -> Iterator[Row]:
    named = False
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            value = parse_json(line)
        except (ValueError, RecursionError) as error:
            yield Row(place, (), (), wrong(line) or _damaged(error))
            continue
        if not named and _is_by_file(value):
            yield from _json_rows(value, kind, wrong)
            continue
        if not named and isinstance(value, dict):
            _require_file_column([name for name, _ in pairs_of(value)], kind)
            named = True
        yield _json_row(place, value, wrong)


def _is_by_file(value: object) -> bool:
    """Whether it is an object of rows, each under its file's name."""
    return (
        isinstance(value, dict)
        and bool(value)
        and file_column(value) is None
        and all(isinstance(item, dict) for item in value.values())
    )


def _json_rows(value: Any, kind: str, wrong: Wrong) -> Iterator[Row]:
    if _is_by_file(value):
        for number, (name, item) in enumerate(pairs_of(value), 1):
            yield Row(f"row {number}", (str(name),), pairs_of(item))  # type: ignore[arg-type]
        return
    rows = value if isinstance(value, list) else [value]
    objects = [item for item in rows if isinstance(item, dict)]
    if not objects:
        raise ImageError("it is neither an array of rows nor rows by file name", kind=kind)
    _require_file_column(sorted({str(name) for item in objects[:100] for name in item}), kind)
    for number, item in enumerate(rows, 1):
        yield _json_row(f"row {number}", item, wrong)


def _json_row(place: str, value: object, wrong: Wrong) -> Row:
    if not isinstance(value, dict):
        return Row(place, (), (), "it is no JSON object")
    pairs = pairs_of(value)
    at = file_column(name for name, _ in pairs)
    files = () if at is None else _files(pairs[at][1])
    if at is None or (damage := wrong("\n".join(files))):
        return Row(place, (), (), "it names no file" if at is None else damage)
    others = [pair for number, pair in enumerate(pairs) if number != at]
    return Row(place, files, [(n, _cell(v, wrong) if isinstance(v, str) else v) for n, v in others])


# -- Parquet ---------------------------------------------------------------------------------------------------------


def _parquet(source: Open, note: Note) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with source() as binary:
        try:
            with pq.ParquetFile(binary) as file:
                schema = file.schema_arrow
                features, problem = hub_features(schema.metadata)
                if problem:
                    note(problem)
                at = _require_file_column(schema.names)
                classes = [class_names(features.get(name)) for name in schema.names]
                number = itertools.count(1)
                for batch in file.iter_batches(batch_size=_PAGE):
                    columns = [values(batch.column(i), classes[i]) for i in range(batch.num_columns)]
                    for cells in zip(*columns, strict=True):
                        yield _row_of_values(f"row {next(number)}", schema.names, at, cells)
        except (pa.ArrowException, OSError) as error:
            raise ImageError(f"its Parquet is damaged: {first_line(error)}") from error


def _row_of_values(place: str, names: list[str], at: int, cells: tuple[object, ...]) -> Row:
    if isinstance(file := cells[at], Unreadable):
        return Row(place, (), (), f"its file name can't be read: {file.reason}")
    pairs = [pair for number, pair in enumerate(zip(names, cells, strict=True)) if number != at]
    return Row(place, _files(file), pairs)
