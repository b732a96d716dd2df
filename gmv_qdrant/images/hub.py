"""Data sets of the Hugging Face hub: ``hf://NAME[:SPLIT]``, streamed by `datasets`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from gmv_qdrant.errors import ImageError, SourceError, first_line
from gmv_qdrant.images.arrow import classes_of, named
from gmv_qdrant.images.descriptions import Pairs
from gmv_qdrant.images.parquet import Layout, choose, image_bytes, said_of

HUB = "hf://"


def check_hub(uri: str) -> None:
    """Raises `SourceError` when the data set cannot be had or has no image column."""
    _opened(uri)


def hub_rows(uri: str) -> tuple[str, Layout, Iterator[tuple[Pairs, object]]]:
    """``hf://NAME:SPLIT``, the layout, and for each row its other columns and its image's value.

    Without a split, it is ``train`` or else the first one. Raises `SourceError`.
    """
    dataset, split, layout = _opened(uri)
    return f"{HUB}{_parted(uri)[0]}:{split}", layout, _rows(uri, dataset, layout)


def read_hub_row(uri: str, row: int) -> bytes:
    """The image bytes of one row of ``hf://NAME:SPLIT``; the rows before it are streamed past."""
    try:
        dataset, _, layout = _opened(uri)
        for values in dataset.skip(row).take(1):
            return hub_image(uri, values[layout.image])
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"Row {row} of {uri} cannot be read: {first_line(error)}") from error
    raise ImageError(f"The data set {uri} has no row {row}.", kind="absent")


def hub_image(uri: str, value: object) -> bytes:
    """As `image_bytes`; a data set made of files names them, and those of this very data set are read."""
    path = value.get("path") if isinstance(value, Mapping) and value.get("bytes") is None else None
    name = re.escape(_parted(uri)[0])
    if not isinstance(path, str) or not re.fullmatch(
        rf"(zip://[^:]*::)?hf://datasets/{name}(@[^/:]*)?/[^:]*", path
    ):
        return image_bytes(value)
    if ".." in path:
        raise ImageError(f"{path} cannot be read: it leads out of its data set.", kind="foreign")
    import fsspec

    try:
        with fsspec.open(path, "rb") as file:
            data: bytes = file.read()
    except Exception as error:
        raise ImageError(f"{path} cannot be read: {first_line(error)}") from error
    return data


def _rows(uri: str, dataset: Any, layout: Layout) -> Iterator[tuple[Pairs, object]]:
    rows = iter(dataset)
    row = 0
    while True:
        try:
            values = next(rows)
        except StopIteration:
            return
        except Exception as error:
            raise SourceError(f"The data set {uri} stopped at row {row}: {first_line(error)}") from error
        row += 1
        pairs = [
            (name, named(value, layout.classes.get(name)))
            for name, value in values.items()
            if name != layout.image and name not in layout.others
        ]
        yield pairs, values[layout.image]


def _opened(uri: str) -> tuple[Any, str, Layout]:
    try:
        import datasets
    except ImportError:
        raise SourceError(f"To read {uri}, install the extra: pip install 'gmv-qdrant[hub]'.") from None

    name, split = _parted(uri)
    try:
        if not split:
            splits = datasets.get_dataset_split_names(name)
            split = "train" if "train" in splits else splits[0]
        dataset = datasets.load_dataset(name, split=split, streaming=True)
        if dataset.features is None:
            dataset = dataset._resolve_features()
    except Exception as error:
        raise SourceError(
            f"The data set {uri} cannot be had from the Hugging Face hub: {first_line(error)}. "
            "Check the name (hf://NAME:SPLIT), the network and HF_HUB_OFFLINE."
        ) from error
    return dataset.decode(False), split, _layout(uri, dataset.features)


def _layout(uri: str, features: Any) -> Layout:
    from datasets import Image, Value

    def is_image(feature: Any) -> bool:
        return isinstance(feature, Image) or (isinstance(feature, dict) and "bytes" in feature)

    images = [column for column, feature in features.items() if is_image(feature)]
    plain = [
        column
        for column, feature in features.items()
        if isinstance(feature, Value) and "binary" in feature.dtype
    ]
    try:
        image, others = choose(images, plain)
    except ImageError as error:
        raise SourceError(f"The data set {uri} can't be read: {error}") from None
    if image is None:
        raise SourceError(f"The data set {uri} has no image column (it has {', '.join(features)}).")
    types = {name: feature for name, feature in features.to_dict().items() if isinstance(feature, dict)}
    return Layout(image, classes_of(types), others, said_of(image, others))


def _parted(uri: str) -> tuple[str, str]:
    name, _, split = uri.removeprefix(HUB).partition(":")
    return name, split
