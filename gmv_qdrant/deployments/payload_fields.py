"""What a foreign collection's payloads say about its images: which field is the URI, the owner, the label."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gmv_qdrant.errors import ImageError, SettingsError
from gmv_qdrant.images.descriptions import describe, jsonable, names_of
from gmv_qdrant.images.embedded import image_in
from gmv_qdrant.images.limits import ATTRIBUTE_CHARACTERS
from gmv_qdrant.vectors.protocol import Point

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")


@dataclass(frozen=True, slots=True)
class Fields:
    """Names of payload fields, or paths, as `pick` reads them.

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

    def uris_of(self, payload: Mapping[str, Any], keep: Callable[[bytes], str]) -> list[str]:
        """Where the point's image is, once or several times; local paths become absolute. None where it names none.

        keep: gives the URI of an image that is in the payload itself. Raises `ImageError` where that can't be taken.
        """
        found = pick(payload, self.uri)
        values = found if isinstance(found, list) else [found]
        kept = [keep(data) for value in values if (data := image_in(value)) is not None]
        if kept:
            return list(dict.fromkeys(kept))
        try:
            return list(dict.fromkeys(self._whole(name) for name in names_of(found)))
        except ImageError:
            return []

    def _whole(self, named: str) -> str:
        if _SCHEME.match(named):
            return named
        if self.uri_prefix.endswith("/"):
            named = named.lstrip("/")
        whole = self.uri_prefix + named
        return whole if _SCHEME.match(whole) else os.path.abspath(whole)

    @property
    def payload(self) -> tuple[str, ...] | None:
        """The fields to ask a server for, whole; None is all of them."""
        if self.attributes == "all":
            return None
        names = (self.uri, self.owner, self.label, self.licence, *self.attributes)
        whole = [f'"{name}"' for name in names if "." in name]  # it may be a name with a dot, and no path
        return tuple(dict.fromkeys([*(re.split(r"[.\[]", name)[0] for name in names), *whole]))

    def rows(self, point: Point, uris: Sequence[str]) -> list[dict[str, str | None]]:
        """What the ledger keeps of a point: a row for each place of its image and each of its owners.

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
            attributes = {name: _attribute(pick(payload, name)) for name in names}
        except (ValueError, RecursionError) as error:
            raise ImageError(f"its payload can't be kept: {error}", kind="description") from None
        kept = {name: value for name, value in attributes.items() if value is not None}
        common = {
            "point_id": str(point.id),
            "label": described.label,
            "licence": described.licence,
            "attributes": json.dumps(described.attributes | kept),
        }
        owners = described.owners or (None,)
        return [{**common, "uri": uri, "owner": owner} for uri in uris for owner in owners]

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


def _attribute(value: Any) -> Any:
    """As JSON; None for what is too long to be kept, such as an image."""
    plain = jsonable(value)
    return plain if len(json.dumps(plain)) <= ATTRIBUTE_CHARACTERS else None


def pick(payload: Mapping[str, Any], name: str) -> Any:
    """A payload's field; None when it isn't there.

    A dot leads into an object, or into text that holds JSON; ``[2]`` takes an item of a list, ``[]`` all of them.
    """
    if name in payload:
        return payload[name]
    found, several = [payload], False
    for key, index in re.findall(r"([^.\[\]]+)|\[(\d*)\]", name):
        several = several or (not key and not index)
        found = [inner for value in found for inner in _into(value, key, index)]
    return found if several and found else found[0] if found else None


def _into(value: Any, key: str, index: str) -> list[Any]:
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            value = json.loads(value)
        except ValueError:
            return []
    if key:
        return [value[key]] if isinstance(value, Mapping) and key in value else []
    if not isinstance(value, list):
        return []
    return value if not index else value[int(index) : int(index) + 1]
