"""Explain one image: a generated one's contributors, or who a training image contributes to."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from gmv_qdrant.ledger.database import Readable, literal
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
    words = {"arguments": function.sql(), "as_of": literal(function.as_of), "kind": image.kind}
    words["nobody"] = _NOBODY.format(**words) if made else ""
    values = {"key": image.key, "keys": keys}
    matches = ledger.query((_CONTRIBUTORS if made else _BENEFICIARIES).format(**words), values)
    owners = ledger.query(_OWNERS.format(**words), values)
    return Explanation(image, matches, owners)


_CONTRIBUTORS = """
    SELECT c.rank, i.uri, i.owner, i.label, c.contribution / nullif(c.quality, 0) AS share, c.contribution, c.distance,
           c.quality
    FROM contributions({arguments}) c JOIN _gmv_images({as_of}) i USING (training_key)
    WHERE c.generated_key = $key AND ($keys IS NULL OR c.training_key IN (SELECT unnest($keys::INTEGER[])))
    ORDER BY c.rank"""
_BENEFICIARIES = """
    SELECT g.uri, g.batch, c.rank, c.contribution / nullif(c.quality, 0) AS share, c.contribution, c.distance, c.quality
    FROM contributions({arguments}) c JOIN generated g USING (generated_key)
    WHERE c.training_key = $key AND $keys IS NULL ORDER BY c.contribution DESC, g.uri, g.batch"""
_OWNERS = """
    WITH parts AS (
        SELECT h.name AS owner, sum(c.contribution * h.weight) AS contribution
        FROM contributions({arguments}) c JOIN _gmv_holders('owner', {as_of}) h USING (training_key)
        WHERE c.{kind}_key = $key AND ($keys IS NULL OR c.training_key IN (SELECT unnest($keys::INTEGER[])))
        GROUP BY h.name {nobody})
    SELECT owner, contribution, contribution / nullif(sum(contribution) OVER (), 0) AS share
    FROM parts ORDER BY contribution DESC, owner NULLS LAST"""
_NOBODY = """UNION ALL
        SELECT '(nobody)', contribution FROM _gmv_nobody({arguments}) WHERE generated_key = $key AND $keys IS NULL"""
