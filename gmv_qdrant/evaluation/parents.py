"""Known parents: generated images whose metadata says which training images they were made from.

The attributes ``parent``, ``parent2``, ``parent3``... (or ``parents``, a JSON list) name training images by
URI, end of a URI, id or hash; ``weight``, ``weight2``... (or ``weights``) say how much each counts, equally if absent.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gmv_qdrant import method
from gmv_qdrant.errors import SettingsError
from gmv_qdrant.ledger.database import Readable, literal
from gmv_qdrant.ledger.names import find_images

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
    key_of = find_images(ledger, sorted({name for named in truth.values() for name, _ in named}))
    evidence = ledger.query(
        f"""SELECT generated_key, list(training_key ORDER BY rank) AS keys, list(distance ORDER BY rank) AS distances,
        list(view ORDER BY rank) AS views
        FROM matches WHERE generated_key IN (SELECT generated_key FROM generated WHERE {where})
        GROUP BY generated_key ORDER BY generated_key"""
    ).to_pylist()
    evidence = [row for row in evidence if row["generated_key"] in truth]
    if not evidence:
        raise SettingsError(
            f"none of the {len(truth):,} generated images with known parents has matches: run 'gmv-qdrant update'"
        )
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


@dataclass(frozen=True, slots=True)
class ParentFigures:
    """How credit falls on known parents; means over the images, ``*_se`` standard errors.

    overlap: sum of min(credit, true weight), 1 where credit is the truth. parent_share: credit of the true parents,
    and correlation: of credit with the true weights, over all pairs of an image and a training image; both also reward
    giving everything to one parent. Parents that weren't recalled count in all three.
    first_rate: how often the main parent (the heaviest) is the nearest. recalled: how often it is a candidate. rank:
    its median rank where it is one. effective_contributors: exp of the entropy of an image's credit. nobody: credit
    that no training image gets.
    """

    overlap: float
    overlap_se: float
    parent_share: float
    parent_share_se: float
    correlation: float
    first_rate: float
    first_rate_se: float
    recalled: float
    rank: float
    effective_contributors: float
    nobody: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def parent_figures(
    distances: np.ndarray,
    parents: np.ndarray,
    *,
    training: int,
    weights: np.ndarray | None = None,
    k: int | None = 30,
    temperature: float = 1.0,
    null_distance: float | None = None,
    relative: bool = False,
) -> ParentFigures:
    """Figures of Eq. 6 with this value function.

    distances: float64 ``(p, K)``, ascending, inf where an image has fewer candidates. parents: float64 ``(p, K)``, the
    weight of each candidate as a parent. training: number of training images. weights: float64 ``(p, most)``, of all
    parents, recalled or not; None when every parent is a candidate.
    """
    weights = parents if weights is None else weights
    d = method.relative(distances) if relative else distances
    credit = method.shares(d, k=k, temperature=temperature, null_distance=null_distance)
    there = np.isfinite(distances[:, 0])
    share = (credit * (parents > 0)).sum(axis=1)
    overlap = np.minimum(credit, parents).sum(axis=1)
    is_main = (parents > 0) & (parents >= weights.max(axis=1, keepdims=True) * (1 - 1e-9))
    main = np.where(is_main.any(axis=1), is_main.argmax(axis=1), -1)
    first = (main == 0).astype(np.float64)
    return ParentFigures(
        overlap=float(overlap.mean()),
        overlap_se=_standard_error(overlap),
        parent_share=float(share.mean()),
        parent_share_se=_standard_error(share),
        correlation=_correlation(credit, parents, weights, len(d) * training),
        first_rate=float(first.mean()),
        first_rate_se=_standard_error(first),
        recalled=float((main >= 0).mean()),
        rank=float(np.median(main[main >= 0]) + 1) if (main >= 0).any() else float("nan"),
        effective_contributors=float(method.effective_contributors(credit[there]).mean())
        if there.any()
        else 0.0,
        nobody=float(1 - credit.sum(axis=1).mean()),
    )


def orphans_of_nobody(distances: np.ndarray, parents: np.ndarray, **function: Any) -> float:
    """The share of credit that nobody gets when the parents are taken out of the candidates: 1 is right.

    distances, parents and function: as in `parent_figures`; images without a recalled parent don't count.
    """
    recalled = (parents > 0).any(axis=1)
    d = np.sort(np.where(parents[recalled] > 0, np.inf, distances[recalled]), axis=1)
    if not len(d):
        return float("nan")
    if function.pop("relative", False):
        d = method.relative(d)
    return float(1 - method.shares(d, **function).sum(axis=1).mean())


def _standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def _correlation(credit: np.ndarray, parents: np.ndarray, weights: np.ndarray, pairs: int) -> float:
    """Pearson's of credit and true weights over ``pairs``, most of which are 0 on both sides; 0 without variation."""
    of_credit = float((credit**2).sum()) - float(credit.sum()) ** 2 / pairs
    of_truth = float((weights**2).sum()) - float(weights.sum()) ** 2 / pairs
    if min(of_credit, of_truth) <= 1e-12 * pairs:
        return 0.0
    product = float((credit * parents).sum()) - float(credit.sum()) * float(weights.sum()) / pairs
    return product / float(np.sqrt(of_credit * of_truth))
