"""What a collection's strict mode allows, read from its description, and kept within."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

from qdrant_client import models as m

from gmv_qdrant.errors import StoreError
from gmv_qdrant.vectors.protocol import Limits

BATCH = 1_000
"""Points in a request."""
IDS = 10_000
"""Points in a request that gives nothing but their ids."""
QUERIES = 256
"""Searches in a request."""


@dataclass(frozen=True, slots=True)
class StrictMode:
    """Points a page (of ids alone, too) and an upsert, searches a request, ids a condition, and limits of a search."""

    page: int
    ids_page: int
    upsert: int
    queries: int
    ids: int
    search: Limits
    unindexed: bool
    """Whether a filter may name payload fields without an index."""

    @classmethod
    def of(cls, info: m.CollectionInfo) -> Self:
        strict = info.config.strict_mode_config
        if strict is None or not strict.enabled:
            strict = m.StrictModeConfigOutput()
        free = Limits()
        return cls(
            page=_least(BATCH, strict.max_query_limit),
            ids_page=_least(IDS, strict.max_query_limit),
            upsert=_least(BATCH, strict.upsert_max_batchsize, strict.write_rate_limit),
            queries=_least(QUERIES, strict.search_max_batchsize, strict.read_rate_limit),
            ids=_least(BATCH, strict.condition_max_size, strict.max_query_limit),
            search=Limits(
                points=_least(free.points, strict.max_query_limit),
                exact=strict.search_allow_exact is not False,
                oversampling=min(free.oversampling, strict.search_max_oversampling or free.oversampling),
                ef=_least(free.ef, strict.search_max_hnsw_ef),
            ),
            unindexed=strict.unindexed_filtering_retrieve is not False,
        )


def _least(*numbers: int | None) -> int:
    return max(1, min(number for number in numbers if number is not None))


def fields_of(filter_: Any) -> Iterator[tuple[str, str]]:
    """The payload fields that a filter names, each with the kind of index that serves it."""
    if isinstance(filter_, m.FieldCondition):
        yield filter_.key, _index_for(filter_)
    elif isinstance(filter_, m.NestedCondition):
        for key, kind in fields_of(filter_.nested.filter):
            yield f"{filter_.nested.key}[].{key}", kind
    elif isinstance(filter_, m.Filter):
        for clause in (filter_.must, filter_.should, filter_.must_not):
            for one in clause if isinstance(clause, list) else [clause]:
                yield from fields_of(one)
        if filter_.min_should:
            for one in filter_.min_should.conditions:
                yield from fields_of(one)


def _index_for(condition: m.FieldCondition) -> str:
    match = condition.match
    if isinstance(match, m.MatchValue):
        return {bool: "bool", int: "integer"}.get(type(match.value), "keyword")
    if isinstance(match, m.MatchAny | m.MatchExcept):
        values = match.any if isinstance(match, m.MatchAny) else match.except_
        return "integer" if values and isinstance(next(iter(values)), int) else "keyword"
    if isinstance(match, m.MatchText):
        return "text"
    if isinstance(condition.range, m.DatetimeRange):
        return "datetime"
    return (
        "float"
        if condition.range
        else "geo"
        if condition.geo_radius or condition.geo_bounding_box
        else "keyword"
    )


def lacking_indexes(info: m.CollectionInfo, only: m.Filter | None) -> dict[str, str]:
    """Payload fields of the filter that have no index, with the kind that they need."""
    return {key: kind for key, kind in fields_of(only) if key not in info.payload_schema}


def require_indexes(info: m.CollectionInfo, only: m.Filter | None, name: str, shown: str) -> None:
    """Raises `StoreError` that names the index, and what makes it, where strict mode refuses to filter without."""
    if StrictMode.of(info).unindexed:
        return
    for key, kind in lacking_indexes(info, only).items():
        raise StoreError(
            f"the collection {name!r} at {shown} is filtered by the payload field {key!r}, and its strict mode wants "
            f"an index of the kind {kind!r} for that: make it with 'gmv-qdrant adopt --create-index', or with "
            f'PUT /collections/{name}/index {{"field_name": "{key}", "field_schema": "{kind}"}}'
        )
