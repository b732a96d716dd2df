"""Explain one image: a generated one's contributors, or who a training image contributes to."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from gmv_qdrant.ledger.database import Readable
from gmv_qdrant.ledger.names import Image, find_image
from gmv_qdrant.ledger.queries import ValueFunction
from gmv_qdrant.ledger.selection import Selection


@dataclass(frozen=True, slots=True)
class Explanation:
    """The image that is meant, its matches, nearest or most credited first, and the credit of them by owner.

    matches: of a generated image its contributors (rank, uri, owner, label, share of its credit, contribution,
    distance, quality); of a training image the generated ones that credit it (share is of their credit).
    owners: owner, contribution, share.
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
    select = _CONTRIBUTORS if image.kind == "generated" else _BENEFICIARIES
    values = {"key": image.key, "keys": keys}
    matches = ledger.query(select.format(arguments=function.sql()), values)
    owners = ledger.query(_OWNERS[image.kind].format(arguments=function.sql()), values)
    return Explanation(image, matches, owners)


_SHARED = """
    WITH own AS MATERIALIZED (FROM contributions({arguments})),
    shares AS (
        SELECT *, contribution / nullif(sum(contribution) OVER (PARTITION BY generated_key), 0) AS share FROM own)
"""
_CONTRIBUTORS = f"""{_SHARED}
    SELECT c.rank, min(s.uri) AS uri, string_agg(DISTINCT s.owner, ', ' ORDER BY s.owner) AS owner,
           min(s.label) AS label, c.share, c.contribution, c.distance, c.quality
    FROM shares c LEFT JOIN sources s USING (training_key)
    WHERE c.generated_key = $key AND ($keys IS NULL OR c.training_key IN (SELECT unnest($keys::INTEGER[])))
    GROUP BY c.rank, c.share, c.distance, c.contribution, c.quality ORDER BY c.rank"""
_BENEFICIARIES = f"""{_SHARED}
    SELECT g.uri, g.batch, c.rank, c.share, c.contribution, c.distance, c.quality
    FROM shares c JOIN generated g USING (generated_key)
    WHERE c.training_key = $key AND $keys IS NULL ORDER BY c.contribution DESC, g.uri, g.batch"""
_OWNERS = {
    kind: f"""{_SHARED}, parts AS (
        SELECT h.name AS owner, sum(c.contribution * h.weight / h.weight_total) AS contribution
        FROM shares c JOIN holders('owner') h USING (training_key)
        WHERE c.{column} = $key AND ($keys IS NULL OR c.training_key IN (SELECT unnest($keys::INTEGER[])))
        GROUP BY h.name)
    SELECT owner, contribution, contribution / nullif(sum(contribution) OVER (), 0) AS share
    FROM parts ORDER BY contribution DESC, owner NULLS LAST"""
    for kind, column in (("generated", "generated_key"), ("training", "training_key"))
}
