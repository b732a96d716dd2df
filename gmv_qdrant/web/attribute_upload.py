"""Drop an image, see its contributors: one image through the networks, and nothing kept of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gmv_qdrant.images.decode import decode, thumbnail
from gmv_qdrant.ledger.candidates import Matches
from gmv_qdrant.ledger.explain import ledger_of_one
from gmv_qdrant.ledger.publish import Published
from gmv_qdrant.ledger.queries import ValueFunction
from gmv_qdrant.pipeline.lookup import Lookup
from gmv_qdrant.report.queries import Row
from gmv_qdrant.report.thumbnails import LARGE, Picture
from gmv_qdrant.settings import Settings


@dataclass(frozen=True, slots=True)
class Found:
    """An image that isn't in the ledger, and its contributors: rows as `queries.contributors` gives them."""

    name: str
    picture: Picture
    quality: float | None
    effective: float | None
    contributors: list[Row]


class Uploads:
    """Looks up images that people drop on a page."""

    def __init__(self, root: Path, settings: Settings, published: Published) -> None:
        self._lookup = Lookup(root, settings, published)

    def find(self, data: bytes, name: str, function: ValueFunction, most: int) -> Found:
        """Contributors of an image file. Raises what `Lookup.find` does."""
        picture = Picture(thumbnail(decode(data), LARGE))
        found = self._lookup.find(data, name)
        rows, effective = _valued(found.matches, found.quality, function)
        return Found(name, picture, found.quality, effective, rows[:most])


def _valued(
    matches: Matches, quality: float | None, function: ValueFunction
) -> tuple[list[Row], float | None]:
    """Eq. 6 by the very macros of the ledger."""
    with ledger_of_one(matches, quality, function) as con:
        arguments = function.sql()
        rows = con.sql(f"FROM contributions({arguments}) ORDER BY rank").to_arrow_table().to_pylist()
        effective = con.execute(f"SELECT effective FROM effective_contributors({arguments})").fetchall()
    return rows, effective[0][0] if effective else None
