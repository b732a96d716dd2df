"""What a foreign collection's payloads say about its images: which field is the URI, the owner, the label."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gmv_qdrant.errors import ImageError, SettingsError
from gmv_qdrant.images.descriptions import describe, jsonable, names_of
from gmv_qdrant.vectors.protocol import Point

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")


@dataclass(frozen=True, slots=True)
class Fields:
    """Names of payload fields; a dot leads into a nested object.

    attributes: names, or ``"all"`` that none of the others uses. uri_prefix: put before URIs that have no scheme.
    """

    uri: str = "uri"
    owner: str = "owner"
    label: str = "label"
    licence: str = "licence"
    attributes: tuple[str, ...] | Literal["all"] = ()
    uri_prefix: str = ""

    @classmethod
    def parse(cls, kept: Mapping[str, Any]) -> Fields:
        """The inverse of ``asdict``, through JSON."""
        attributes = kept["attributes"]
        return cls(**{**kept, "attributes": "all" if attributes == "all" else tuple(attributes)})

    def uri_of(self, payload: Mapping[str, Any]) -> str | None:
        """The image's URI, or None when the payload has none; local paths become absolute."""
        try:
            named = next(iter(names_of(pick(payload, self.uri))), None)
        except ImageError:
            named = None
        if named is None or _SCHEME.match(named):
            return named
        if self.uri_prefix.endswith("/"):
            named = named.lstrip("/")
        whole = self.uri_prefix + named
        return whole if _SCHEME.match(whole) else os.path.abspath(whole)

    def rows(self, point: Point, uri: str) -> list[dict[str, str | None]]:
        """What the ledger keeps of a point: a row for each of its owners.

        Raises `ImageError` where the payload's owner is no name: a dict, a flag.
        """
        payload = point.payload
        mapped = {self.uri, self.owner, self.label, self.licence}
        names = (
            [name for name in payload if name not in mapped] if self.attributes == "all" else self.attributes
        )
        described = describe(
            [
                ("owner", pick(payload, self.owner)),
                ("label", pick(payload, self.label)),
                ("licence", pick(payload, self.licence)),
            ]
        )
        try:
            attributes = {name: jsonable(pick(payload, name)) for name in names}
        except (ValueError, RecursionError) as error:
            raise ImageError(f"its payload can't be kept: {error}", kind="description") from None
        kept = {name: value for name, value in attributes.items() if value is not None}
        common = {
            "point_id": str(point.id),
            "uri": uri,
            "label": described.label,
            "licence": described.licence,
            "attributes": json.dumps(described.attributes | kept),
        }
        return [{**common, "owner": owner} for owner in described.owners or (None,)]

    def check(self, points: Sequence[Point], collection: str) -> None:
        """Raises `SettingsError` when a field that was asked for is in none of these points' payloads.

        The usual names of owner, label and licence may be absent; a name that somebody gave may not.
        """
        usual = Fields()
        describing = [
            given
            for given, default in (
                (self.owner, usual.owner),
                (self.label, usual.label),
                (self.licence, usual.licence),
            )
            if given != default
        ]
        attributes = () if self.attributes == "all" else self.attributes
        for name in (self.uri, *describing, *attributes):
            if any(jsonable(pick(point.payload, name)) is not None for point in points):
                continue
            there = (
                ", ".join(sorted({field for point in points for field in point.payload})) or "no field at all"
            )
            hint = "; say with --uri-field which one names the image" if name == self.uri else ""
            raise SettingsError(
                f"none of the first {len(points)} points of {collection!r} has a payload field {name!r}, "
                f"they have {there}{hint}"
            )


def pick(payload: Mapping[str, Any], name: str) -> Any:
    """A payload's field; None when it isn't there."""
    if name in payload:
        return payload[name]
    value: Any = payload
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value
