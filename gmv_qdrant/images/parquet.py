"""Parquet files that hold images: which column has them, and one row after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gmv_qdrant.errors import ImageError, first_line
from gmv_qdrant.images.arrow import classes_of, hub_features, values
from gmv_qdrant.images.descriptions import Pairs, Unreadable
from gmv_qdrant.images.kinds import HEAD, kind_of
from gmv_qdrant.images.names import printable
from gmv_qdrant.images.records import read_file

_LIKELY_NAMES = ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "photo", "bytes", "content", "data")
_BATCH = 32
"""Rows in memory at a time; a row holds a whole image file."""
_PAGEWISE: dict[str, Any] = {"buffer_size": 1 << 20, "pre_buffer": False}
"""Pages are read as they are needed; by default pyarrow reads a whole row group, however large."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Columns of a table of images."""

    image: str
    classes: Mapping[str, list[str]]
    """Names behind the numbers of a column."""
    others: frozenset[str] = frozenset()
    """Columns that hold images too, and aren't read."""
    notes: tuple[str, ...] = ()


def read_images(path: str, *, load: bool) -> tuple[Layout, Iterator[tuple[Pairs, object]]]:
    """The layout, and for each row its other columns and its image's value; None for that unless ``load``.

    Raises `ImageError`, also from the iterator where the file is damaged: of kind ``no-images`` when it is a table of
    something else.
    """
    import pyarrow.parquet as pq

    kind = kind_of(read_file(path, most=HEAD))
    if kind is not None and kind.name != "parquet":
        raise ImageError(kind.reason or f"it isn't Parquet, but of the kind {kind.name}", kind=kind.name)
    try:
        with pq.ParquetFile(path, **_PAGEWISE) as file:
            layout = find_layout(file)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"this Parquet file can't be read: {first_line(error)}", kind="table") from error
    return layout, _rows(path, layout, load)


def read_row(path: str, row: int) -> bytes:
    """The image bytes of one row. Raises `ImageError`."""
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, **_PAGEWISE) as file:
            image = find_layout(file).image
            skip = row
            for group in range(file.num_row_groups):
                rows = file.metadata.row_group(group).num_rows
                if skip >= rows:
                    skip -= rows
                    continue
                for batch in file.iter_batches(batch_size=_BATCH, row_groups=[group], columns=[image]):
                    if skip < batch.num_rows:
                        return image_bytes(values(batch.column(0).slice(skip, 1))[0])
                    skip -= batch.num_rows
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"Row {row} of {printable(path)} cannot be read: {first_line(error)}.") from error
    raise ImageError(f"The Parquet file {printable(path)} has no row {row}.", kind="absent")


def image_bytes(value: Any) -> bytes:
    """Of an image column's value: bytes, or the hub's ``{"bytes": ..., "path": ...}``. Raises `ImageError`.

    A path in place of bytes is never followed: it could lead to anybody's image.
    """
    path: object = None
    if isinstance(value, Unreadable):
        raise ImageError(f"the row's image can't be read: {value.reason}")
    if isinstance(value, Mapping):
        value, path = value.get("bytes"), value.get("path")
    if value is None:
        raise ImageError(
            f"the row holds no image bytes, only the name {str(path)[:200]}"
            if path
            else "the row has no image",
            kind="no-image",
        )
    return bytes(value)


def choose(found: list[str], plain: list[str]) -> tuple[str | None, frozenset[str]]:
    """Which of the columns of images to take, and which are the others.

    plain: columns of bytes, which are believed to be images only by their name, or alone.
    Raises `ImageError` where there are several, and none is called so that one would know.
    """
    for candidates in (found, plain):
        likely = next((name for name in _LIKELY_NAMES if name in candidates), None)
        if likely is None and len(candidates) > 1:
            raise ImageError(
                f"it has several columns of images ({', '.join(candidates)}): call the one to be read `image`",
                kind="ambiguous",
            )
        if candidates:
            name = likely or candidates[0]
            return name, frozenset(found + plain) - {name}
    return None, frozenset()


def said_of(image: str, others: frozenset[str]) -> tuple[str, ...]:
    """What a person should know of a choice among columns."""
    return (
        (f"of several columns of images {image} was taken, and not {', '.join(sorted(others))}",)
        if others
        else ()
    )


def find_layout(file: Any) -> Layout:
    """Of an open ParquetFile. Raises `ImageError`."""
    schema = file.schema_arrow
    features, problem = hub_features(schema.metadata)
    hub = [name for name, feature in features.items() if feature.get("_type") == "Image"]
    image, left = choose(*_columns(file, hub))
    if image is None:
        raise _no_images(schema, hub)
    if schema.names.count(image) > 1:
        raise ImageError(f"it has two columns called {image}", kind="ambiguous")
    return Layout(image, classes_of(features), left, (*said_of(image, left), *([problem] if problem else [])))


def _columns(file: Any, hub: list[str]) -> tuple[list[str], list[str]]:
    """Columns that hold images by their type, and columns of bytes that seem to."""
    schema = file.schema_arrow
    of_bytes = [field.name for field in schema if _is_bytes(field.type)]
    found = [
        field.name
        for field in schema
        if _is_image(field.type) or (field.name in hub and field.name in of_bytes)
    ]
    others = [name for name in of_bytes if name not in found]
    return found, [name for name in others if name in _LIKELY_NAMES or _begins_as_image(file, name)]


def _is_bytes(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_image(kind: Any) -> bool:
    """Whether it is the hub's struct of an image's bytes and path."""
    import pyarrow as pa

    place = kind.get_field_index("bytes") if pa.types.is_struct(kind) else -1
    return place >= 0 and _is_bytes(kind.field(place).type)


def _no_images(schema: Any, hub: list[str]) -> ImageError:
    """hub: columns of the hub's type for images."""
    import pyarrow as pa

    lists = [field.name for field in schema if pa.types.is_nested(field.type) and "binary" in str(field.type)]
    promising = [name for name in (*hub, *lists, "image", "images", "img") if name in schema.names]
    if promising:
        kind = schema.field(schema.get_all_field_indices(promising[0])[0]).type
        return ImageError(
            f"its column {promising[0]} holds {kind}, not the bytes of an image: embed them, as HF datasets "
            "does when it exports",
            kind="no-image",
        )
    return ImageError(f"it has no column of images (it has {', '.join(schema.names[:20])})", kind="no-images")


def _begins_as_image(file: Any, column: str) -> bool:
    """Whether the first value of a column of bytes is an image: a hash is none."""
    for batch in file.iter_batches(batch_size=_BATCH, columns=[column]):
        for value in batch.column(0):
            if value.is_valid:
                kind = kind_of(value.as_py()[:HEAD])
                return kind is not None and kind.name not in ("json", "program", "database")
    return False


def _rows(path: str, layout: Layout, load: bool) -> Iterator[tuple[Pairs, object]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, **_PAGEWISE) as file:
        wanted = [
            name
            for name in dict.fromkeys(file.schema_arrow.names)
            if name not in layout.others and (load or name != layout.image)
        ]
        if not wanted:
            yield from (((), None) for _ in range(file.metadata.num_rows))
            return
        for batch in file.iter_batches(batch_size=_BATCH if load else 1024, columns=wanted):
            yield from _rows_of(batch, layout)


def _rows_of(batch: Any, layout: Layout) -> Iterator[tuple[Pairs, object]]:
    images: list[object] = [None] * batch.num_rows
    columns: list[list[object]] = []
    others: list[str] = []
    for place, name in enumerate(batch.schema.names):
        if name == layout.image:
            images = values(batch.column(place))
        else:
            columns.append(values(batch.column(place), layout.classes.get(name)))
            others.append(name)
    for row, image in enumerate(images):
        yield [(name, column[row]) for name, column in zip(others, columns, strict=True)], image
