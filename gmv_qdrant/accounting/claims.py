"""What several names claim, and amounts that are held back until the history says whose they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gmv_qdrant.accounting.evidence import Evidence
from gmv_qdrant.accounting.money import allocate


@dataclass(frozen=True, slots=True)
class Claim:
    """Training images that are one picture, and the names that bring them.

    images: ids. names: two or more. Of one image, its sources name them; of several, the images are near-copies.
    amount: what of a payout is in question, in minor units.
    """

    images: tuple[str, ...]
    names: tuple[str, ...]
    amount: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {"images": list(self.images), "names": list(self.names), "amount": self.amount}


@dataclass(frozen=True, slots=True)
class Hold:
    """An amount, in minor units, that a claim on these images keeps back from a name."""

    images: tuple[str, ...]
    name: str
    amount: int

    def as_dict(self) -> dict[str, Any]:
        return {"images": list(self.images), "name": self.name, "amount": self.amount}


def find_claims(evidence: Evidence) -> list[Claim]:
    """Claims on images that generated images resemble, in the order of their first image.

    They are contents that several names bring, and near-copies across names.
    """
    names = _names_of(evidence, "SEMI JOIN matches USING (image)")
    copies = evidence.rows(
        """SELECT a.id AS one, b.id AS other
        FROM copies c JOIN images a USING (image) JOIN images b ON b.image = c.other"""
    )
    group = {image: image for image in names}

    def root(image: str) -> str:
        while group[image] != image:
            group[image] = group[group[image]]
            image = group[image]
        return image

    for pair in copies:
        if names[pair["one"]] != names[pair["other"]]:
            first, second = sorted((root(pair["one"]), root(pair["other"])))
            group[second] = first
    members = defaultdict(list)
    for image in sorted(names):
        members[root(image)].append(image)
    found = [
        Claim(tuple(images), tuple(sorted(set().union(*(names[image] for image in images)))))
        for images in members.values()
    ]
    return [claim for claim in found if len(claim.names) > 1]


def in_question(evidence: Evidence, claims: Sequence[Claim], amounts: Mapping[str, int]) -> list[Hold]:
    """What is in question of these amounts: of each, the part that the images in question earned, to the unit."""
    claim_of = {image: number for number, claim in enumerate(claims) for image in claim.images}
    rows = evidence.rows(
        """SELECT n.name, i.id AS image, CAST(sum(units) AS HUGEINT) AS units
        FROM earned JOIN names n USING (id) LEFT JOIN images i USING (image) WHERE n.name IS NOT NULL GROUP BY ALL"""
    )
    units: defaultdict[str, defaultdict[int, int]] = defaultdict(lambda: defaultdict(int))
    for row in rows:
        units[row["name"]][claim_of.get(row["image"], len(claims))] += int(row["units"])
    held = []
    for name in sorted(units.keys() & amounts.keys()):
        numbers = sorted(units[name])
        if amounts[name] and numbers != [len(claims)]:
            parts = allocate([units[name][number] for number in numbers], amounts[name])
            held += [
                Hold(claims[number].images, name, part)
                for number, part in zip(numbers, parts, strict=True)
                if part and number < len(claims)
            ]
    return held


def with_amounts(claims: Iterable[Claim], holds: Iterable[Hold]) -> tuple[Claim, ...]:
    """These claims, with what of a payout is in question."""
    amounts: defaultdict[tuple[str, ...], int] = defaultdict(int)
    for hold in holds:
        amounts[hold.images] += hold.amount
    return tuple(replace(claim, amount=amounts[claim.images]) for claim in claims)


def settle(holds: Iterable[Hold], evidence: Evidence, *, release: bool) -> tuple[list[Hold], dict[str, int]]:
    """Holds that are still in question, and by name what is released.

    A claim is settled when the sources of its images name one owner only; that one gets all that was held for it.
    release: settle everything, each amount to the name that it was kept from.
    """
    names = _names_of(evidence)
    outstanding: list[Hold] = []
    released: defaultdict[str, int] = defaultdict(int)
    for hold in holds:
        owners = set().union(*(names.get(image, set()) for image in hold.images))
        if release or len(owners) == 1:
            released[hold.name if release else min(owners)] += hold.amount
        else:
            outstanding.append(hold)
    return outstanding, dict(released)


def merged(holds: Iterable[Hold]) -> tuple[Hold, ...]:
    """One hold for each claim and name, in an order of their own."""
    amounts: defaultdict[tuple[tuple[str, ...], str], int] = defaultdict(int)
    for hold in holds:
        amounts[hold.images, hold.name] += hold.amount
    return tuple(Hold(images, name, amount) for (images, name), amount in sorted(amounts.items()))


def _names_of(evidence: Evidence, of: str = "") -> dict[str, set[str]]:
    """By id of a training image: the names that its sources bear. of: SQL that picks images."""
    found: dict[str, set[str]] = {}
    for row in evidence.rows(
        f"SELECT i.id, n.name FROM (FROM holders {of}) JOIN names n USING (id) JOIN images i USING (image)"
    ):
        found.setdefault(row["id"], set()).update({row["name"]} - {None})
    return found
