"""What runs in a reading task: sources become chunks of records. No network is imported here."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from gmv_qdrant.cluster import wire
from gmv_qdrant.errors import GmvError
from gmv_qdrant.images.records import Record, Unusable
from gmv_qdrant.images.sources import Sources
from gmv_qdrant.pipeline.streams import chunked


def messages(part: Sources, rows: int) -> Iterator[pa.Table]:
    """Chunks of at most ``rows`` records, for the workers, in an order that a second try repeats."""
    try:
        for chunk in chunked(part, _weight, smallest=rows, largest=rows):
            yield wire.packed({"records": wire.records_table(chunk)})
    except GmvError as error:
        yield wire.packed({"error": error})


def _weight(record: Record | Unusable) -> int:
    """Bytes that travel to the worker, or are read by it."""
    if isinstance(record, Unusable):
        return 0
    return len(record.data) if record.data is not None else record.size or 0
