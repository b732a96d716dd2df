"""Which part of a foreign collection is the training set: a filter, as the collection's own payloads spell it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gmv_qdrant.deployments.payload_fields import pick
from gmv_qdrant.errors import SettingsError, StoreError
from gmv_qdrant.settings import Settings
from gmv_qdrant.vectors import open_existing, server_config
from gmv_qdrant.vectors.protocol import CollectionSpec, Point

Where = Mapping[str, str]
"""Payload fields and the value, as text, that each must have."""


def describe_foreign(
    settings: Settings, vector_name: str | None, where: Where, *, create_index: bool = False
) -> CollectionSpec:
    """The collection as the server describes it; the settings get its vector's name, codes and the typed filter.

    vector_name: None for its only vector. create_index: make the indexes that strict mode wants for the filter.
    Raises `StoreError` when it, or the part of it, is empty.
    """
    from gmv_qdrant.vectors.server.reader import parse_filter
    from gmv_qdrant.vectors.server.store import create_indexes

    if not settings.qdrant_url:
        raise SettingsError("which server has the collection? Give --qdrant-url, or set QDRANT_URL")
    with open_existing(settings.replaced(filter={}), vector_name) as store:
        spec, first = store.spec, next(store.scroll(), [])
        if not first:
            raise StoreError(f"the collection {spec.name!r} has no points: there is nothing to adopt")
        settings.filter = with_where(settings.filter, where, store.payload_types(), first)
        lacking = store.lacking_indexes(parse_filter(settings.filter))
    if create_index and lacking:
        create_indexes(server_config(settings), spec.name, lacking)
    with open_existing(settings, spec.vector_name) as store:
        if not next(store.scroll(fields=()), []):
            part = (
                " and ".join(f"{name} = {value!r}" for name, value in where.items())
                or "what the filter asks for"
            )
            raise StoreError(
                f"the collection {spec.name!r} has no points with {part}: check the field and its value"
            )
    settings.vector_name = spec.vector_name
    settings.quantization = "none" if spec.quantization == "binary" else spec.quantization
    return spec


def with_where(
    given: Mapping[str, Any], where: Where, types: Mapping[str, str], first: Sequence[Point]
) -> dict[str, Any]:
    """The filter ``given``, and that each field has its value; the collection says whether as text, number or flag.

    types: of the payload fields that are indexed. first: points, where a field has no index.
    """
    if not where:
        return dict(given)
    must = [
        {"key": name, "match": {"value": _typed(name, text, types, first)}}
        for name, text in sorted(where.items())
    ]
    return {"must": [*([dict(given)] if given else []), *must]}


def _typed(name: str, text: str, types: Mapping[str, str], first: Sequence[Point]) -> str | int | bool:
    held = next((value for point in first if (value := pick(point.payload, name)) is not None), text)
    held = held[0] if isinstance(held, list) and held else held
    kinds = {"bool": bool, "integer": int, "float": float}
    kind = kinds.get(types[name], str) if name in types else type(held)
    if kind is float:
        raise SettingsError(
            f"{name} = {text} can't be asked for: Qdrant has no exact match for numbers with decimals; give a range "
            f'with --filter FILE, such as {{"must": [{{"key": "{name}", "range": {{"gte": {text}, "lte": {text}}}}}]}}'
        )
    if kind is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind is int and text.lstrip("-").isdecimal():
        return int(text)
    words = {bool: "true or false", int: "a whole number"}
    if kind in words:
        raise SettingsError(f"{name} = {text} can't be asked for: its payload holds {words[kind]}")
    return text


def same_part(kept: Mapping[str, Any], given: Mapping[str, Any], where: Where) -> bool:
    """Whether a filter and values that are given again are those which the workspace keeps."""

    def spelt(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: spelt(one) for name, one in value.items()}
        return [spelt(one) for one in value] if isinstance(value, list) else str(value).lower()

    return bool(spelt(kept) == spelt(with_where(given, where, {}, [])))
