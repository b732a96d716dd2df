"""Metadata tables as people write them -> rows: CSV with any separator, TSV, JSON, JSON lines, Parquet.

Nothing is guessed about values: CSV stays text, so that an owner ``007`` doesn't become 7. A row that can't be read is
a row that says so; only a table that names no images at all is refused as a whole.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

from gmv_qdrant.errors import ImageError
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
_WHOLE_JSON = 256 * limits.MIB
_PAGE = 1024
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_EXCEL_TEXT = re.compile(r'="(.*)"', re.DOTALL)


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
    with io.TextIOWrapper(source(), encoding=encoding, newline="") as text:
        try:
            if ending in ("csv", "tsv"):
                yield from _separated(_lines(text), "\t" + _SEPARATORS if ending == "tsv" else _SEPARATORS)
            else:
                yield from _json(text, ending)
        except UnicodeError as error:
            raise ImageError(f"its text is damaged: {error}") from None


def _encoding(source: Open, note: Note) -> str:
    """By its byte-order mark; else UTF-8, and Windows-1252 where it isn't that, as Excel saves CSV."""
    with source() as file:
        head = file.read(4)
        for mark, encoding in _BOMS:
            if head.startswith(mark):
                return encoding
        if b"\0" in head:
            raise ImageError("it is neither text in UTF-8 nor marked as UTF-16: save it as UTF-8")
        decoders = {name: codecs.getincrementaldecoder(name)() for name in ("utf-8", "cp1252")}
        block = head
        while decoders:
            for name in list(decoders):
                try:
                    decoders[name].decode(block, final=not block)
                except UnicodeDecodeError:
                    del decoders[name]
            if not block:
                break
            block = file.read(limits.MIB)
    if "utf-8" in decoders:
        return "utf-8"
    if not decoders:
        raise ImageError("its text is neither UTF-8 nor Windows-1252: save it as UTF-8")
    note("isn't UTF-8 and was read as Windows-1252: check the accents in its names")
    return "cp1252"


def _lines(text: io.TextIOWrapper) -> Iterator[str]:
    while line := text.readline(_LINE):
        if len(line) == _LINE:
            raise ImageError(f"it has a line of more than {limits.size_of(_LINE)}")
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


def _separated(lines: Iterator[str], separators: str) -> Iterator[Row]:
    names, at, separator, header_line = _header(lines, separators)
    reader = _Records(lines, separator)
    for cells, damage in reader:
        place = f"line {header_line + reader.first_line}"
        if damage:
            yield Row(place, (), (), damage)
        elif any(cell.strip() for cell in cells):
            yield _row_of_cells(place, names, at, cells)


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
    """Records of CSV, each with what is wrong with it; a quote that doesn't close swallows no line unsaid."""

    def __init__(self, lines: Iterator[str], separator: str) -> None:
        self.lines, self.separator = lines, separator
        self.read: list[str] = []
        self.seen = 0
        self.first_line = 0

    def __iter__(self) -> Iterator[tuple[list[str], str]]:
        records = csv.reader(self._remembered(), delimiter=self.separator, skipinitialspace=True, strict=True)
        while True:
            self.read.clear()
            self.first_line = self.seen + 1
            try:
                yield next(records), ""
            except StopIteration:
                return
            except csv.Error as error:
                yield self._again(str(error))

    def _remembered(self) -> Iterator[str]:
        for line in self.lines:
            self.seen += 1
            self.read.append(line)
            yield line

    def _again(self, reason: str) -> tuple[list[str], str]:
        """A line that is sloppy by itself (``"Rock" Johnson``) is read as it can be."""
        if len(self.read) == 1 and self.read[0].count('"') % 2 == 0 and "limit" not in reason:
            return next(csv.reader(self.read, delimiter=self.separator, skipinitialspace=True)), ""
        if len(self.read) > 1:
            reason = f"a quote doesn't close within {len(self.read)} lines"
        return [], reason


def _row_of_cells(place: str, names: list[str], at: int, cells: list[str]) -> Row:
    cells = [match[1] if (match := _EXCEL_TEXT.fullmatch(cell.strip())) else cell for cell in cells]
    pairs: list[tuple[str, object]] = [
        (name.strip() or f"column{number}", cell.strip())
        for number, (name, cell) in enumerate(itertools.zip_longest(names, cells[: len(names)], fillvalue=""))
        if number != at
    ]
    if any(cell.strip() for cell in cells[len(names) :]):
        pairs.append(("its last", Unreadable(f"the row has {len(cells)} cells, the header {len(names)}")))
    return Row(place, _files(cells[at] if at < len(cells) else None), pairs)


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


def _json(text: io.TextIOWrapper, ending: str) -> Iterator[Row]:
    """An array of rows, an object of rows by file, or a row on each line; ``.json`` may also be something else."""
    kind = "no-table" if ending == "json" else "description"
    start = next((line for line in _lines(text) if line.strip()), "")
    lines: Iterable[str] = itertools.chain([start], _lines(text))
    if ending == "json" or start.lstrip()[:1] == "[":
        whole = _whole(lines)
        try:
            value = parse_json(whole)
        except (ValueError, RecursionError) as error:
            if not str(error).startswith("Extra data"):
                raise ImageError(f"its JSON is damaged: {str(error) or 'it is nested too deeply'}") from None
            lines = io.StringIO(whole)
        else:
            yield from _json_rows(value, kind)
            return
    yield from _json_lines(lines, kind)


def _whole(lines: Iterable[str]) -> str:
    parts: list[str] = []
    size = 0
    for line in lines:
        size += len(line)
        if size > _WHOLE_JSON:
            raise ImageError(
                f"it is JSON of more than {limits.size_of(_WHOLE_JSON)}: save it as .jsonl, a row on each line"
            )
        parts.append(line)
    return "".join(parts)


def _json_lines(lines: Iterable[str], kind: str) -> Iterator[Row]:
    named = False
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            value = parse_json(line)
        except (ValueError, RecursionError) as error:
            yield Row(place, (), (), f"its JSON is damaged: {str(error) or 'it is nested too deeply'}")
            continue
        if not isinstance(value, dict):
            yield Row(place, (), (), "it is no JSON object")
            continue
        names = [name for name, _ in pairs_of(value)]
        if not named:
            if (
                file_column(names) is None
                and all(isinstance(item, dict) for item in value.values())
                and value
            ):
                yield from _json_rows(value, kind)
                continue
            _require_file_column(names, kind)
            named = True
        yield _json_row(place, value)


def _json_rows(value: object, kind: str) -> Iterator[Row]:
    if isinstance(value, dict):
        if file_column(value) is None and value and all(isinstance(item, dict) for item in value.values()):
            for number, (name, item) in enumerate(pairs_of(value), 1):
                yield Row(f"row {number}", (str(name),), pairs_of(item))  # type: ignore[arg-type]
            return
        value = [value]
    if not isinstance(value, list) or not any(isinstance(item, dict) for item in value):
        raise ImageError("it is neither an array of rows nor rows by file name", kind=kind)
    _require_file_column(
        sorted({str(name) for item in value[:100] if isinstance(item, dict) for name in item}), kind
    )
    for number, item in enumerate(value, 1):
        if isinstance(item, dict):
            yield _json_row(f"row {number}", item)
        else:
            yield Row(f"row {number}", (), (), "it is no JSON object")


def _json_row(place: str, value: Mapping[str, Any]) -> Row:
    pairs = pairs_of(value)
    at = file_column(name for name, _ in pairs)
    if at is None:
        return Row(place, (), (), "it names no file")
    return Row(place, _files(pairs[at][1]), [pair for number, pair in enumerate(pairs) if number != at])


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
                number = 0
                for batch in file.iter_batches(batch_size=_PAGE):
                    columns = [values(batch.column(i), classes[i]) for i in range(batch.num_columns)]
                    for cells in zip(*columns, strict=True):
                        number += 1
                        pairs = [
                            (n, c)
                            for i, (n, c) in enumerate(zip(schema.names, cells, strict=True))
                            if i != at
                        ]
                        if isinstance(cells[at], Unreadable):
                            yield Row(
                                f"row {number}", (), (), f"its file name can't be read: {cells[at].reason}"
                            )
                        else:
                            yield Row(f"row {number}", _files(cells[at]), pairs)
        except (pa.ArrowException, OSError) as error:
            raise ImageError(f"its Parquet is damaged: {(str(error).splitlines() or [''])[0]}") from error
