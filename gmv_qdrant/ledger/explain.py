"""Explain one image: a generated one's contributors, or who a training image contributes to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from gmv_qdrant.ledger import schema
from gmv_qdrant.ledger.candidates import Matches, replace
from gmv_qdrant.ledger.database import Connection, Readable, arrow, insert, literal
from gmv_qdrant.ledger.names import Image, find_image
from gmv_qdrant.ledger.queries import ValueFunction
from gmv_qdrant.ledger.selection import Selection


@dataclass(frozen=True, slots=True)
class Explanation:
    """The image that is meant, its matches, nearest or most credited first, and the credit of them by owner.

    matches: of a generated image its contributors (rank, uri, owner, label, share of its credit, contribution,
    distance, quality); of a training image the generated ones that credit it (share is of their credit).
    owners: owner, contribution, share; of a generated image also what is nobody's, with a null distance.
    """

    image: Image
    matches: pa.Table
    owners: pa.Table


def explain(
    ledger: Readable,
    name: str,
    function: ValueFunction,
    *,
    training: bool = False,
    selection: Selection | None = None,
) -> Explanation:
    """Explain the image that goes by a name: see `find_image`; ``function.batch`` says in which batch it was valued.

    selection: only these training images among the contributors. Raises `SettingsError` for an unknown name.
    """
    image = find_image(ledger, name, batch=None if training else function.batch, training=training)
    keys = None if selection is None else selection.keys(ledger)
    made = image.kind == "generated"
    words = {
        "credit": f"contributions({function.sql()})",
        "as_of": literal(function.as_of),
        "kind": image.kind,
        "nobody": _NOBODY.format(credit=f"_gmv_nobody({function.sql()})") if made else "",
    }
    values = {"key": image.key, "keys": keys}
    matches = ledger.query((_CONTRIBUTORS if made else _BENEFICIARIES).format(**words), values)
    owners = ledger.query(_OWNERS.format(**words), values)
    return Explanation(image, matches, owners)


def explain_found(
    ledger: Readable,
    uri: str,
    matches: Matches,
    quality: float | None,
    function: ValueFunction,
    selection: Selection | None = None,
) -> Explanation:
    """Explain a generated image that isn't in the ledger by the evidence that was found for it."""
    with ledger_of_one(matches, quality, function) as con:
        tables = {
            "looked_up": arrow(con, f"FROM contributions({function.sql()})"),
            "nobodys": arrow(con, f"FROM _gmv_nobody({function.sql()})"),
        }
    nobody = _NOBODY.format(credit="nobodys")
    words = {"as_of": literal(function.as_of), "kind": "generated", "credit": "looked_up", "nobody": nobody}
    values = {"key": 0, "keys": None if selection is None else selection.keys(ledger)}
    return Explanation(
        Image("generated", 0, uri, None),
        ledger.query(_CONTRIBUTORS.format(**words), values, **tables),
        ledger.query(_OWNERS.format(**words), values, **tables),
    )


@contextmanager
def ledger_of_one(matches: Matches, quality: float | None, function: ValueFunction) -> Iterator[Connection]:
    """A ledger of one generated image, with the key 0, that is never written: the very macros value it."""
    with duckdb.connect(":memory:") as con:
        con.execute(schema.tables())
        con.execute(schema.macros())
        image = {
            "generated_key": [0],
            "point_id": [""],
            "content_hash": [""],
            "uri": [""],
            "batch": [function.batch or "looked up"],
            "quality": pa.array([quality], pa.float64()),
            "version_valued": [0],
        }
        insert(con, "generated", image)
        replace(con, [0], [matches])
        yield con


_CONTRIBUTORS = """
    SELECT c.rank, i.uri, i.owner, i.label, c.contribution / nullif(c.quality, 0) AS share, c.contribution, c.distance,
           c.quality
    FROM {credit} c JOIN _gmv_images({as_of}) i USING (training_key)
    WHERE c.generated_key = $key AND ($keys IS NULL OR c.training_key IN (SELECT unnest($keys::INTEGER[])))
    ORDER BY c.rank"""
_BENEFICIARIES = """
    SELECT g.uri, g.batch, c.rank, c.contribution / nullif(c.quality, 0) AS share, c.contribution, c.distance, c.quality
    FROM {credit} c JOIN generated g USING (generated_key)
    WHERE c.training_key = $key AND $keys IS NULL ORDER BY c.contribution DESC, g.uri, g.batch"""
_OWNERS = """
    WITH parts AS (
        SELECT h.name AS owner, sum(c.contribution * h.weight) AS contribution
        FROM {credit} c JOIN _gmv_holders('owner', {as_of}) h USING (training_key)
        WHERE c.{kind}_key = $key AND ($keys IS NULL OR c.training_key IN (SELECT unnest($keys::INTEGER[])))
        GROUP BY h.name {nobody})
    SELECT owner, contribution, contribution / nullif(sum(contribution) OVER (), 0) AS share
    FROM parts ORDER BY contribution DESC, owner NULLS LAST"""
_NOBODY = """UNION ALL
        SELECT '(nobody)', contribution FROM {credit} WHERE generated_key = $key AND $keys IS NULL"""
