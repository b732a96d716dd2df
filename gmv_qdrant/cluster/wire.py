"""What travels between driver and workers: one message for each chunk, with Arrow tables in it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pickle
import typing
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from gmv_qdrant.images.records import Record, Unusable

T = TypeVar("T")
Message = dict[str, Any]
COLUMN = "message"

_RECORDS = pa.schema(
    [
        ("uri", pa.string()),
        ("owner", pa.string()),
        ("label", pa.string()),
        ("licence", pa.string()),
        ("attributes", pa.string()),
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("data", pa.large_binary()),
        ("reason", pa.string()),  # of an `Unusable`
    ]
)


def packed(message: Message) -> pa.Table:
    """A block of Ray Data with one row: a chunk is a task, whatever Ray does with blocks."""
    return pa.table({COLUMN: pa.array([pickle.dumps(message, protocol=5)], pa.large_binary())})


def unpacked(block: pa.Table) -> list[Message]:
    return [pickle.loads(row.as_buffer()) for row in block[COLUMN]]


def records_table(records: Iterable[Record | Unusable]) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {**_fields(item), "attributes": json.dumps(item.attributes)}
            if isinstance(item, Record)
            else {"uri": item.uri, "reason": item.reason}
            for item in records
        ],
        _RECORDS,
    )


def _fields(record: Record) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}


def records_of(table: pa.Table) -> list[Record | Unusable]:
    found: list[Record | Unusable] = []
    for row in table.to_pylist():
        reason = row.pop("reason")
        if reason is not None:
            found.append(Unusable(row["uri"], reason))
        else:
            found.append(Record(**{**row, "attributes": json.loads(row["attributes"])}))
    return found


def table_of(items: Sequence[Any]) -> pa.Table:
    """Dataclass instances of one class, at least one, as rows: arrays as lists, dataclasses in them by dotted names."""
    return pa.table(_columns(items, type(items[0]), ""))


def _columns(items: Sequence[Any], kind: type, prefix: str) -> dict[str, pa.Array]:
    columns: dict[str, pa.Array] = {}
    for name, hint in typing.get_type_hints(kind).items():
        values = [getattr(item, name) for item in items]
        if dataclasses.is_dataclass(hint):
            columns |= _columns(values, typing.cast(type, hint), f"{prefix}{name}.")
        elif hint is np.ndarray:
            ends = np.cumsum([0] + [len(value) for value in values])
            columns[prefix + name] = pa.LargeListArray.from_arrays(ends, np.concatenate(values))
        else:
            columns[prefix + name] = pa.array(values)
    return columns


def items_of(table: pa.Table, kind: type[T], prefix: str = "") -> list[T]:
    """The inverse of `table_of`."""
    columns: dict[str, list[Any]] = {}
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            columns[name] = items_of(table, typing.cast(type, hint), f"{prefix}{name}.")
        elif hint is np.ndarray:
            lists = table[prefix + name].combine_chunks()
            ends, values = lists.offsets.to_numpy(), lists.values.to_numpy()
            columns[name] = [values[start:end] for start, end in itertools.pairwise(ends)]
        else:
            columns[name] = table[prefix + name].to_pylist()
    return [kind(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
