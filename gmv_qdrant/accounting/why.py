"""Why a name gets what it gets: the images that earned it, and the generated images that used them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from gmv_qdrant.accounting.evidence import UNIT, Evidence
from gmv_qdrant.accounting.money import allocate
from gmv_qdrant.accounting.payout import NAMED, Payout
from gmv_qdrant.errors import SettingsError, did_you_mean

EXPLAINED = pa.schema(
    {
        "uri": pa.string(),
        "image": pa.string(),
        "credit": pa.float64(),
        "share": pa.float64(),
        "generated_images": pa.int64(),
        "also_claimed_by": pa.list_(pa.string()),
        "most_by": pa.string(),
        "batch": pa.string(),
        "rank": pa.int64(),
        "distance": pa.float64(),
        "part": pa.float64(),
    }
)
"""Columns of `explained`."""


@dataclass(frozen=True, slots=True)
class Use:
    """A generated image that used a training image. part: of all the credit that the generated image gives."""

    batch: str
    uri: str
    sha256: str
    rank: int
    distance: float
    credit: float
    part: float


@dataclass(frozen=True, slots=True)
class Earner:
    """A training image that earned something for a name. amount: of the name's, in minor units.

    names: others whose image it is, too. uses: the generated images that it earned most by.
    """

    image: str
    sha256: str | None
    uris: tuple[str, ...]
    names: tuple[str, ...]
    credit: float
    amount: int
    generated_images: int
    uses: tuple[Use, ...]


def earners(
    evidence: Evidence, payout: Payout, name: str | None, *, images: int | None = None, uses: int = 3
) -> list[Earner]:
    """The training images that earned most for a name (None: the unnamed), at most so many, with their uses.

    Raises `SettingsError` for a name that the payout doesn't have, and names the near one.
    """
    line = payout.line_of(name)
    if line is None:
        known = [other.name for other in payout.lines if other.kind == NAMED and other.name is not None]
        raise SettingsError(
            f"the payout has no {payout.terms.by} called {name!r}{did_you_mean(str(name), known)}"
        )
    evidence.earn(payout.terms.rule, payout.terms.function)
    mine = {"name": name}
    found = evidence.rows(
        """SELECT e.image, i.id, i.sha256, CAST(sum(units) AS HUGEINT) AS units, count(*) AS uses
        FROM earned e JOIN names n USING (id) JOIN images i USING (image)
        WHERE n.name IS NOT DISTINCT FROM $name AND units > 0 GROUP BY ALL ORDER BY units DESC, i.id""",
        mine,
    )
    amounts = allocate([int(row["units"]) for row in found], line.amount) if found else []
    shown = found[:images]
    used = _uses(evidence, name, [row["image"] for row in shown], uses)
    sources = _sources(evidence, [row["image"] for row in shown])
    return [
        Earner(
            row["id"],
            row["sha256"],
            *sources[row["image"]],
            int(row["units"]) / UNIT,
            amount,
            row["uses"],
            tuple(used.get(row["image"], ())),
        )
        for row, amount in zip(shown, amounts, strict=False)
    ]


def _uses(evidence: Evidence, name: str | None, images: Sequence[int], most: int) -> dict[int, list[Use]]:
    rows = evidence.rows(
        """WITH mine AS (
            SELECT e.*, row_number() OVER (PARTITION BY image ORDER BY units DESC, generated) AS place
            FROM earned e JOIN names n USING (id)
            WHERE n.name IS NOT DISTINCT FROM $name AND list_contains($images::INTEGER[], image)
        ), given AS (SELECT generated, sum(units) AS units FROM earned GROUP BY generated)
        SELECT e.image, g.batch, g.uri, g.sha256, e.rank, m.distance, CAST(e.units AS HUGEINT) AS units,
               CAST(given.units AS HUGEINT) AS given
        FROM mine e JOIN generated g USING (generated) JOIN given USING (generated)
        JOIN matches m ON m.generated = e.generated AND m.rank = e.rank WHERE place <= $most ORDER BY e.image, place""",
        {"name": name, "images": list(images), "most": most},
    )
    found: dict[int, list[Use]] = {}
    for row in rows:
        credit, given = int(row["units"]), int(row["given"])
        use = Use(
            row["batch"],
            row["uri"],
            row["sha256"],
            row["rank"],
            row["distance"],
            credit / UNIT,
            credit / given,
        )
        found.setdefault(row["image"], []).append(use)
    return found


def _sources(evidence: Evidence, images: Sequence[int]) -> dict[int, tuple[tuple[str, ...], tuple[str, ...]]]:
    """URIs and names of these images."""
    rows = evidence.rows(
        """SELECT image, list(DISTINCT uri ORDER BY uri) AS uris,
                  coalesce(list(DISTINCT name ORDER BY name) FILTER (name IS NOT NULL), []) AS names
        FROM sources WHERE list_contains($images::INTEGER[], image) GROUP BY image""",
        {"images": list(images)},
    )
    found = {row["image"]: (tuple(row["uris"]), tuple(row["names"])) for row in rows}
    return {image: found.get(image, ((), ())) for image in images}


def explained(evidence: Evidence, payout: Payout, name: str | None, most: int | None = None) -> pa.Table:
    """`earners` as a table: an image a row, with the generated image that it earned most by.

    share: of the name's credit. part: of all the credit that the generated image gives.
    """
    line = payout.line_of(name)
    total = line.units / UNIT if line else 0.0
    rows = []
    for one in earners(evidence, payout, name, images=most, uses=1):
        (use,) = one.uses
        rows.append(
            {
                "uri": next(iter(one.uris), None),
                "image": one.image,
                "credit": one.credit,
                "share": one.credit / total,
                "generated_images": one.generated_images,
                "also_claimed_by": [other for other in one.names if other != name],
                "most_by": use.uri,
                "batch": use.batch,
                "rank": use.rank,
                "distance": use.distance,
                "part": use.part,
            }
        )
    return pa.Table.from_pylist(rows, schema=EXPLAINED)
