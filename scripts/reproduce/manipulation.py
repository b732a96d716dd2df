"""What an owner gains by copies, near-copies and other names, under the default rule of payouts and under the paper's.

python scripts/reproduce/manipulation.py [--repeats 10] [--out manipulation.json]

scikit-learn's handwritten digits belong to 20 owners; a generated image is the mean of two of a class, with noise. One
owner then does something, and her share of the credit after it is divided by that before: the gain. At most 1 is
what a rule should give. Distances are root-mean-square differences of pixels, 200 candidates each.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from gmv_qdrant.accounting.evidence import Evidence
from gmv_qdrant.accounting.near_copies import find
from gmv_qdrant.ledger.queries import ValueFunction

OWNERS, GENERATED, CANDIDATES = 20, 300, 200
SHARP = 0.03
"""A temperature as 'calibrate' fits it: it tells a parent from its neighbours."""
RULES = {
    "owner-shapley, calibrated": ("owner-shapley", ValueFunction(k=None, temperature=SHARP)),
    "owner-shapley, T = 1": ("owner-shapley", ValueFunction(k=None, temperature=1.0)),
    "shares, calibrated": ("shares", ValueFunction(k=30, temperature=SHARP)),
    "shares, the paper": ("shares", ValueFunction(k=30, temperature=1.0)),
}
"""The first is what a payout takes in a workspace that was calibrated."""


@dataclass(frozen=True)
class World:
    """Training images ``(n, 64)`` in [0, 1], the owners of each, and generated images ``(m, 64)``."""

    images: np.ndarray
    owners: list[list[str]]
    generated: np.ndarray

    def of(self, owner: str) -> list[int]:
        return [row for row, names in enumerate(self.owners) if owner in names]

    def with_images(self, images: np.ndarray, owner: str) -> World:
        return replace(
            self, images=np.vstack([self.images, images]), owners=[*self.owners, *[[owner]] * len(images)]
        )


def world(seed: int) -> World:
    from sklearn.datasets import load_digits

    random = np.random.default_rng(seed)
    digits = load_digits()
    pixels, labels = digits.data / 16.0, digits.target
    owners = [[f"owner {number:02d}"] for number in random.integers(OWNERS, size=len(pixels))]
    made = []
    for label in random.integers(10, size=GENERATED):
        one, other = random.choice(np.flatnonzero(labels == label), 2, replace=False)
        made.append(0.5 * (pixels[one] + pixels[other]) + random.normal(0, 0.03, pixels.shape[1]))
    return World(pixels, owners, np.clip(made, 0, 1))


def credits(here: World, names: set[str]) -> dict[str, float]:
    """The share of the credit that these names have together, by each rule."""
    squares = (
        (here.generated**2).sum(1)[:, None] + (here.images**2).sum(1) - 2 * here.generated @ here.images.T
    )
    distances = np.sqrt(np.maximum(squares, 0) / here.images.shape[1])
    near = np.argsort(distances, axis=1, kind="stable")[:, :CANDIDATES]
    m, n = len(here.generated), len(here.images)
    sources = [(row, name) for row, held in enumerate(here.owners) for name in held]
    texts = [f"{i:05d}" for i in range(max(m, n))]
    told = {
        "image": pa.array([row for row, _ in sources], pa.int32()),
        "uri": [f"{row}-{name}" for row, name in sources],
        "name": [name for _, name in sources],
        "licence": pa.nulls(len(sources), pa.string()),
    }
    once = pa.array([1] * len(sources), pa.int32())
    shuffled = np.random.default_rng(0).permutation(np.unique(near))
    copies = find(
        lambda rows: here.images[rows], "euclid", shuffled, np.repeat(np.arange(m), CANDIDATES), near.ravel()
    )
    evidence = Evidence.of_tables(
        {
            "generated": pa.table(
                {
                    "batch": ["b"] * m,
                    "uri": texts[:m],
                    "sha256": texts[:m],
                    "quality": pa.nulls(m, pa.float64()),
                }
            ),
            "images": pa.table({"id": texts[:n], "sha256": texts[:n]}),
            "sources": pa.table(told),
            "history": pa.table({**told, "place": once, "current": once}),
            "matches": pa.table(
                {
                    "generated": pa.array(np.repeat(np.arange(m), CANDIDATES), pa.int32()),
                    "rank": pa.array(np.tile(np.arange(1, CANDIDATES + 1), m), pa.int32()),
                    "image": pa.array(near.ravel(), pa.int32()),
                    "distance": np.take_along_axis(distances, near, axis=1).ravel(),
                }
            ),
            "copies": copies,
        }
    )
    found = {}
    for rule, (name, function) in RULES.items():
        evidence.earn(name, function)
        rows = evidence.rows(
            "SELECT name, CAST(sum(units) AS DOUBLE) AS units FROM earned JOIN names USING (id) GROUP BY name"
        )
        total = sum(row["units"] for row in rows)
        found[rule] = sum(row["units"] for row in rows if row["name"] in names) / total
    return found


def near_copies(here: World, rows: list[int], each: int, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, 0.02, (each, len(rows), here.images.shape[1]))
    return np.clip(here.images[rows] + noise, 0, 1).reshape(-1, here.images.shape[1])


def manipulations(eve: str, seed: int) -> dict[str, Callable[[World], tuple[World, set[str]]]]:
    """What she does -> the world after it, and the names that are hers."""

    def split(here: World, ways: int) -> tuple[World, set[str]]:
        owners = [list(names) for names in here.owners]
        for number, row in enumerate(here.of(eve)):
            owners[row] = [f"{eve}/{number % ways}"]
        return replace(here, owners=owners), {f"{eve}/{number}" for number in range(ways)}

    def stolen(here: World, share: float) -> tuple[World, set[str]]:
        random = np.random.default_rng(seed)
        owners = [
            [*names, eve] if eve not in names and random.random() < share else names for names in here.owners
        ]
        return replace(here, owners=owners), {eve}

    return {
        "28 copies of each of her images, byte for byte": lambda here: (here, {eve}),  # one content, one row
        "3 near-copies of each of her images": lambda here: (
            here.with_images(near_copies(here, here.of(eve), 3, seed), eve),
            {eve},
        ),
        "28 near-copies of each of her images": lambda here: (
            here.with_images(near_copies(here, here.of(eve), 28, seed), eve),
            {eve},
        ),
        "her images under 2 names": lambda here: split(here, 2),
        "her images under 5 names": lambda here: split(here, 5),
        "copies of a tenth of everybody's images, byte for byte": lambda here: stolen(here, 0.1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    gains: dict[str, dict[str, list[float]]] = {}
    for seed in range(given.repeats):
        here, eve = world(seed), f"owner {seed % OWNERS:02d}"
        before = credits(here, {eve})
        for what, act in manipulations(eve, seed).items():
            after = credits(*act(here))
            for rule in RULES:
                gains.setdefault(what, {}).setdefault(rule, []).append(after[rule] / before[rule])
    table = {
        what: {
            rule: {
                "gain": round(float(np.mean(all_)), 3),
                "se": round(float(np.std(all_, ddof=1) / np.sqrt(len(all_))), 3),
            }
            for rule, all_ in by_rule.items()
        }
        for what, by_rule in gains.items()
    }
    print(json.dumps(table, indent=2))
    if given.out:
        given.out.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
