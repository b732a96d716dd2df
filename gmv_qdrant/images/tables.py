"""Tables of images: Parquet files, by pyarrow, and data sets of the Hugging Face hub, by `datasets`.

Parquet is read by pyarrow because a URI names one row, and only pyarrow goes straight to a row; the
hub's column types (ClassLabel, Image) are read from the file's own schema.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gmv_qdrant.errors import ImageError, SourceError
from gmv_qdrant.images.records import Record, Unusable, describe

HUB = "hf://"
_LIKELY_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo", "bytes", "content", "data")
_BATCH = 32
"""Rows in memory at a time; a row holds a whole image file."""
_PAGEWISE: dict[str, Any] = {"buffer_size": 1 << 20, "pre_buffer": False}
"""Pages are read as they are needed; by default pyarrow reads a whole row group, however large."""


@dataclass(frozen=True, slots=True)
class _Columns:
    """Which column holds the image, and the names of the columns that hold class numbers."""

    image: str
    classes: Mapping[str, list[str]]

    def record(self, uri: str, row: Mapping[str, Any], owner: str | None) -> Record | Unusable:
        try:
            data = _image_bytes(row[self.image])
        except ImageError as error:
            return Unusable(uri, str(error))
        rest = {name: self._named(name, value) for name, value in row.items() if name != self.image}
        return Record(uri=uri, data=data, **describe(rest, owner=owner))

    def _named(self, column: str, value: object) -> object:
        names = self.classes.get(column)
        if names is None or not isinstance(value, int):
            return value
        return names[value] if 0 <= value < len(names) else None  # -1 is the hub's "no label"


def parquet_stream(path: str, owner: str | None) -> Iterator[Record | Unusable]:
    """The images of a Parquet file, in order of rows.

    Raises `SourceError` for a file that isn't Parquet, has no image column or no rows. Damage after the
    first image ends the stream with an `Unusable`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        with pq.ParquetFile(path, **_PAGEWISE) as file:
            columns = _parquet_columns(path, file.schema_arrow)
            if not file.metadata.num_rows:
                raise SourceError(f"The Parquet file {path} has no rows.")
            for batch in file.iter_batches(batch_size=_BATCH):
                for values in batch.to_pylist():
                    yield columns.record(f"{path}#{row}", values, owner)
                    row += 1
    except (pa.ArrowException, OSError) as error:
        if not row:
            raise SourceError(f"The Parquet file {path} cannot be read: {_line(error)}") from error
        yield Unusable(path, f"the file is damaged from row {row} on: {_line(error)}")


def parquet_rows(path: str) -> int | None:
    """How many rows a Parquet file says it has; None when it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError):
        return None


def read_parquet_row(path: str, row: int) -> bytes:
    """The image bytes of one row. Raises `ImageError`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, **_PAGEWISE) as file:
            image = _parquet_columns(path, file.schema_arrow).image
            skip = row
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if skip >= rows:
                    skip -= rows
                    continue
                for batch in file.iter_batches(batch_size=_BATCH, row_groups=[group], columns=[image]):
                    if skip < batch.num_rows:
                        return _image_bytes(batch.column(0)[skip].as_py())
                    skip -= batch.num_rows
    except (pa.ArrowException, OSError, SourceError) as error:
        raise ImageError(f"Row {row} of {path} cannot be read: {_line(error)}") from error
    raise ImageError(f"The Parquet file {path} has no row {row}.")


def check_hub(uri: str) -> None:
    """Raises `SourceError` when the data set cannot be had or has no image column."""
    _hub_dataset(uri)


def hub_stream(uri: str, owner: str | None) -> Iterator[Record | Unusable]:
    """The images of ``hf://NAME[:SPLIT]``, streamed; without a split, ``train`` or else the first one.

    Raises `SourceError` when the data set cannot be had or has no image column.
    """
    dataset, split, columns = _hub_dataset(uri)
    name = _hub_name(uri)[0]
    rows = iter(dataset)
    row = 0
    while True:
        try:
            values = next(rows)
        except StopIteration:
            break
        except Exception as error:
            raise SourceError(f"The data set {uri} stopped at row {row}: {_line(error)}") from error
        yield columns.record(f"{HUB}{name}:{split}#{row}", values, owner)
        row += 1
    if not row:
        raise SourceError(f"The data set {uri} has no rows.")


def read_hub_row(uri: str, row: int) -> bytes:
    """The image bytes of one row of ``hf://NAME:SPLIT``; the rows before it are streamed past."""
    try:
        dataset, _, columns = _hub_dataset(uri)
        for values in dataset.skip(row).take(1):
            return _image_bytes(values[columns.image])
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"Row {row} of {uri} cannot be read: {_line(error)}") from error
    raise ImageError(f"The data set {uri} has no row {row}.")


def _parquet_columns(path: str, schema: Any) -> _Columns:
    """From an Arrow schema, with what the hub's own writer left in it."""
    import pyarrow as pa

    hub = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = hub.get("info", {}).get("features", {})
    types = {name: _hub_type(feature) for name, feature in features.items()}

    def holds_bytes(kind: Any) -> bool:
        return bool(
            pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)
        )

    images = [field.name for field in schema if types.get(field.name) == "Image"]
    images += [
        field.name
        for field in schema
        if pa.types.is_struct(field.type)
        and field.type.get_field_index("bytes") >= 0
        and holds_bytes(field.type.field("bytes").type)
    ]
    plain = [field.name for field in schema if holds_bytes(field.type)]
    classes = {name: features[name]["names"] for name, kind in types.items() if kind == "ClassLabel"}
    return _Columns(_image_column(f"The Parquet file {path}", schema.names, images, plain), classes)


def _hub_dataset(uri: str) -> tuple[Any, str, _Columns]:
    import datasets

    name, split = _hub_name(uri)
    try:
        if not split:
            splits = datasets.get_dataset_split_names(name)
            split = "train" if "train" in splits else splits[0]
        dataset = datasets.load_dataset(name, split=split, streaming=True)
        if dataset.features is None:
            dataset = dataset._resolve_features()
    except Exception as error:
        raise SourceError(
            f"The data set {uri} cannot be had from the Hugging Face hub: {_line(error)} "
            "Check the name (hf://NAME:SPLIT), the network and HF_HUB_OFFLINE."
        ) from error
    features = dataset.features
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    images += [
        column for column, feature in features.items() if isinstance(feature, dict) and "bytes" in feature
    ]
    plain = [
        column
        for column, feature in features.items()
        if isinstance(feature, datasets.Value) and "binary" in feature.dtype
    ]
    classes = {
        column: feature.names
        for column, feature in features.items()
        if isinstance(feature, datasets.ClassLabel)
    }
    image = _image_column(f"The data set {uri}", list(features), images, plain)
    return dataset.decode(False), split, _Columns(image, classes)


def _image_column(what: str, names: list[str], images: list[str], plain: list[str]) -> str:
    """``image`` where there are several; of plain binary columns one that is named so, or the only one."""
    for candidates in (images, plain):
        for name in _LIKELY_NAMES:
            if name in candidates:
                return name
    if images:
        return images[0]
    if len(plain) == 1:
        return plain[0]
    raise SourceError(
        f"{what} has no image column (it has {', '.join(names)}); "
        "name a column of image bytes `image`, or export it with HF datasets."
    )


def _image_bytes(value: Any) -> bytes:
    """Of an image column's value: bytes, or the hub's ``{"bytes": ..., "path": ...}``."""
    path = None
    if isinstance(value, Mapping):
        value, path = value.get("bytes"), value.get("path")
    # The hub's folders of images name where the bytes are; a table must not send us anywhere else.
    if value is None and path and path.rpartition("::")[2].startswith(HUB):
        import fsspec

        try:
            with fsspec.open(path, "rb") as file:
                value = file.read()
        except Exception as error:
            raise ImageError(f"{path} cannot be read: {_line(error)}") from error
    if value is None:
        raise ImageError(
            f"the row holds no image bytes, only the name {path}" if path else "the row has no image"
        )
    return bytes(value)


def _hub_name(uri: str) -> tuple[str, str]:
    name, _, split = uri.removeprefix(HUB).partition(":")
    return name, split


def _hub_type(feature: object) -> str | None:
    return feature.get("_type") if isinstance(feature, dict) else None


def _line(error: BaseException) -> str:
    """An engine's message as one line that ends with a full stop."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".") + "."
