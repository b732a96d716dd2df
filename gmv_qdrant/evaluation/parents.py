"""Known parents: generated images whose metadata says which training images they were made from.

The attributes ``parent``, ``parent2``, ``parent3``... (or ``parents``, a JSON list) name training images by
URI, end of a URI, id or hash; ``weight``, ``weight2``... (or ``weights``) say how much each counts, equally if absent.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from gmv_qdrant.errors import SettingsError
from gmv_qdrant.evaluation.evidence import resolve
from gmv_qdrant.ledger.database import Readable, literal

_COLUMN = re.compile(r"(parent|weight)(\d*)")


@dataclass(frozen=True, slots=True)
class KnownParents:
    """Evidence beside the truth, a row for each generated image with parents.

    distances: float64 ``(p, K)``, ascending, inf where an image has fewer candidates. views: int8 ``(p, K)``.
    parents: float64 ``(p, K)``, the weight of each candidate as a parent. weights: float64 ``(p, most)``, all
    parents' weights (sum 1), recalled or not, heaviest first, 0 for none.
    """

    distances: np.ndarray
    views: np.ndarray
    parents: np.ndarray
    weights: np.ndarray


def parents_of(attributes: dict[str, Any]) -> list[tuple[str, float]]:
    """``(name, weight)`` of the parents that an image's attributes name, weights summing to 1.

    >>> parents_of({"parent": "a.png", "parent2": "b.png", "weight": "3", "weight2": "1"})
    [('a.png', 0.75), ('b.png', 0.25)]

    Raises `SettingsError` for weights that aren't positive numbers or don't fit the parents.
    """
    names, weights = _listed(attributes, "parents"), _listed(attributes, "weights")
    numbered: dict[tuple[str, int], Any] = {}
    for column, value in attributes.items():
        if (found := _COLUMN.fullmatch(column)) and value not in (None, ""):
            numbered[found[1], int(found[2] or 1)] = value
    order = sorted(number for kind, number in numbered if kind == "parent")
    names = names or [numbered["parent", number] for number in order]
    weights = weights or [numbered["weight", number] for number in order if ("weight", number) in numbered]
    if weights and len(weights) != len(names):
        raise SettingsError(
            f"{len(weights)} weights were given for {len(names)} parents: give one each, or none"
        )
    try:
        numbers = [float(weight) for weight in weights] or [1.0] * len(names)
    except (TypeError, ValueError):
        raise SettingsError(f"weights of parents must be numbers: {weights!r}") from None
    if not all(number > 0 for number in numbers):
        raise SettingsError(f"weights of parents must be above 0: {weights!r}")
    merged: dict[str, float] = {}
    for name, number in zip(names, numbers, strict=True):
        merged[str(name)] = merged.get(str(name), 0.0) + number / sum(numbers)
    return list(merged.items())


def _listed(attributes: dict[str, Any], column: str) -> list[Any]:
    value = attributes.get(column)
    if isinstance(value, str) and value:
        try:
            value = json.loads(value)
        except ValueError:
            raise SettingsError(f"{column} = {value!r} isn't a JSON list") from None
    if value in (None, ""):
        return []
    return list(value) if isinstance(value, list) else [value]


def known_parents(ledger: Readable, batch: str | None) -> KnownParents:
    """The evidence of the generated images that name their parents.

    Raises `SettingsError` when none does, and for a parent that isn't a training image.
    """
    where = "true" if batch is None else f"batch = {literal(batch)}"
    rows = ledger.query(
        f"SELECT generated_key AS key, attributes FROM generated WHERE {where} ORDER BY generated_key"
    ).to_pylist()
    truth = {
        row["key"]: named for row in rows if (named := parents_of(json.loads(row["attributes"] or "{}")))
    }
    if not truth:
        raise SettingsError(
            f"none of the {len(rows):,} generated images says what it was made from: give the columns parent, parent2 "
            "(and weight, weight2) in the metadata.csv beside them and value them again"
        )
    key_of = resolve(ledger, sorted({name for named in truth.values() for name, _ in named}))
    evidence = ledger.query(
        f"""SELECT generated_key, list(training_key ORDER BY rank) AS keys, list(distance ORDER BY rank) AS distances,
        list(view ORDER BY rank) AS views
        FROM matches WHERE generated_key IN (SELECT generated_key FROM generated WHERE {where})
        GROUP BY generated_key ORDER BY generated_key"""
    ).to_pylist()
    evidence = [row for row in evidence if row["generated_key"] in truth]
    width = max(len(row["keys"]) for row in evidence)
    most = max(len(named) for named in truth.values())
    distances = np.full((len(evidence), width), np.inf)
    views = np.zeros((len(evidence), width), dtype=np.int8)
    parents = np.zeros((len(evidence), width))
    weights = np.zeros((len(evidence), most))
    for i, row in enumerate(evidence):
        of_key: dict[int, float] = {}  # two names of one content are one parent
        for name, weight in truth[row["generated_key"]]:
            of_key[key_of[name]] = of_key.get(key_of[name], 0.0) + weight
        count = len(row["keys"])
        distances[i, :count], views[i, :count] = row["distances"], row["views"]
        parents[i, :count] = [of_key.get(key, 0.0) for key in row["keys"]]
        weights[i, : len(of_key)] = sorted(of_key.values(), reverse=True)
    return KnownParents(distances, views, parents, weights)
