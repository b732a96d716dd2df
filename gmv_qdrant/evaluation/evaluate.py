"""`evaluate`: one function for each criterion, from a ledger to figures.

Every result is a dict with ``criterion``, ``rows`` (a table) and what the plot needs; it is JSON as it stands.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gmv_qdrant.errors import SettingsError
from gmv_qdrant.evaluation import criteria, evidence
from gmv_qdrant.evaluation.counterfactuals import agreement, ceiling, read_models
from gmv_qdrant.evaluation.criteria import Figures
from gmv_qdrant.evaluation.parents import known_parents, parent_figures
from gmv_qdrant.ledger.database import Readable
from gmv_qdrant.ledger.queries import LOSS, ValueFunction, counts, value_function
from gmv_qdrant.ledger.selection import Selection

KS = (30, 50, 100)
"""k of Tables 2 and 7."""


def identical_class(ledger: Readable, function: ValueFunction, *, ks: Sequence[int] = KS) -> Figures:
    """C1: the share of the k contributors that have the generated image's label, for several k (Tables 2, 7, 9).

    It doesn't depend on the value function but for its batch: rho counts contributors, not credit.
    """
    found = evidence.agreement(ledger, ["label"], _ks(ks), function.batch)
    return criteria.agreement_figures(found)


def attributes(
    ledger: Readable,
    function: ValueFunction,
    *,
    names: Sequence[str] = (),
    combined: bool = False,
    ks: Sequence[int] = (5, 10, 15),
) -> Figures:
    """C2: the share of the k contributors that agree in each attribute (Table 3), and in each pair of them (Table 8).

    names: attributes of the metadata on both sides. combined: also all pairs, and all at once when there are
    three or more.
    """
    if not names:
        raise SettingsError("name the attributes to judge, such as 'hat gender eyeglasses'")
    wanted: list[tuple[str, ...]] = [(name,) for name in names]
    if combined:
        wanted += [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
        wanted += [tuple(names)] if len(names) > 2 else []
    rows, left_out = [], {}
    for fields in wanted:
        name = " & ".join(fields)
        found = criteria.agreement_figures(evidence.agreement(ledger, fields, _ks(ks), function.batch))
        rows += [{"attribute": name, **row} for row in found["rows"]]
        left_out[name] = found["left_out"]
    return {"rows": rows, "left_out": left_out}


def _ks(ks: Sequence[int]) -> tuple[int, ...]:
    if not ks or min(ks) < 1:
        raise SettingsError("k must be at least 1, and at least one k is needed")
    return tuple(sorted(set(ks)))


def ood(ledger: Readable, function: ValueFunction, *, group: Selection) -> Figures:
    """C3: whether the training images of ``group`` (corrupted ones) have the lowest values (Fig. 5)."""
    values = evidence.values(ledger, function)
    return criteria.out_of_distribution(values, evidence.members(ledger, values.keys, group))


def membership(
    ledger: Readable, function: ValueFunction, *, group: Selection, held_out: Selection | None = None
) -> Figures:
    """App. D: whether the images of ``group``, that a generator was trained on, are worth more than held-out
    ones (Table 6).

    held_out: None is all others.
    """
    values = evidence.values(ledger, function)
    trained = evidence.members(ledger, values.keys, group)
    others = ~trained if held_out is None else evidence.members(ledger, values.keys, held_out)
    credit = _trained_share(ledger, function, values.keys, trained, others)
    return criteria.membership(values, trained, others, credit, evidence.strata(ledger, values.keys))


def _trained_share(
    ledger: Readable, function: ValueFunction, keys: np.ndarray, trained: np.ndarray, others: np.ndarray
) -> np.ndarray:
    """float64 ``(m,)``: the trained images' part of the credit that either group has of a generated image."""
    mine = evidence.credit_of(ledger, function, keys[trained])
    either = mine + evidence.credit_of(ledger, function, keys[others])
    shares: np.ndarray = mine[either > 0] / either[either > 0]
    return shares


def sensitivity(
    ledger: Readable,
    function: ValueFunction,
    *,
    sizes: Sequence[int] = (1, 10, 30, 50),
    repeats: int = 10,
    seed: int = 0,
    label: str | None = None,
) -> Figures:
    """App. F: the spread of rho over repeated draws of m generated images (Fig. 7).

    label: draw from the images of one class, as the paper does; None draws from all.
    """
    k = function.k or min(KS)
    found = evidence.agreement(ledger, ["label"], [k], function.batch)
    rates = found.hits[:, 0] / k
    if label is not None:
        rates = rates[np.array([name == label for name in found.names])]
        if not len(rates):
            raise SettingsError(
                f"no generated image has the label {label!r}: there are {sorted(set(found.names))}"
            )
    return {"k": k, "label": label, **criteria.sensitivity(rates, sorted(set(sizes)), repeats, seed)}


def quality_weighting(
    ledger: Readable, function: ValueFunction, *, group: Selection | None = None
) -> Figures:
    """App. I: scores of the first three contributors with and without q (Fig. 8), and C3 both ways (Fig. 9).

    group: the corrupted training images; None leaves C3 out.
    """
    both = {
        "with q": replace(function, quality_weighted=True),
        "without q": replace(function, quality_weighted=False),
    }
    if not ledger.query("SELECT count(quality) AS n FROM generated")["n"][0].as_py():
        raise SettingsError("the workspace was made with quality 'none': there is no q to judge")
    ranks = min(3, function.k or 3)
    scores = [evidence.top_scores(ledger, each, ranks) for each in both.values()]
    if not len(scores[0]):
        raise SettingsError("no generated image was valued yet: gmv-qdrant value FOLDER")
    found = criteria.score_distribution(*scores)
    if group is not None:
        results = {name: ood(ledger, each, group=group) for name, each in both.items()}
        found["ood_rows"] = [
            {"values": name, **row} for name, one in results.items() for row in one["rows"][:1]
        ]
        found["value_ranks"] = {name: one["value_ranks"] for name, one in results.items()}
    return found


def efficiency(ledger: Readable, function: ValueFunction) -> Figures:
    """C4: seconds per generated (and per training) image by phase, over all finished runs (Table 4)."""
    sizes = counts(ledger)
    return {**criteria.efficiency(evidence.runs(ledger)), "training_images": sizes["training"]["images"]}


def parents(ledger: Readable, function: ValueFunction, *, calibrations: Sequence[str] = ()) -> Figures:
    """Where the credit of generated images goes whose parents are known: a row for the paper's formula, one for
    ``function`` where it differs, and one for each calibration, without and with credit for nobody."""
    known = known_parents(ledger, function.batch)
    asked = {"paper": ValueFunction(k=function.k)}
    if (function.temperature, function.null_distance, function.relative) != (1.0, None, False):
        asked[f"temperature {function.temperature:g}"] = function
    for name in calibrations:
        fitted = value_function(ledger, calibration=name, k=function.k)
        asked[f"calibration {name}"] = fitted
        if fitted.null_distance is not None:
            asked[f"{name}, without nobody"] = replace(fitted, null_distance=None)
    training = counts(ledger)["training"]["images"]
    rows = []
    for name, each in asked.items():
        figures = parent_figures(
            known.distances, known.parents, training=training, weights=known.weights, k=each.k,
            temperature=each.temperature, null_distance=each.null_distance, relative=each.relative,
        )  # fmt: skip
        rows.append({"values": name, "temperature": each.temperature, **figures.as_dict()})
    main = known.parents.argmax(axis=1)
    main_view = known.views[np.arange(len(main)), main][known.parents.max(axis=1) > 0]
    return {
        "rows": rows,
        "images": len(main),
        "matched_mirrored": float((main_view > 0).mean()) if len(main_view) else None,
    }


def counterfactual(
    ledger: Readable,
    function: ValueFunction,
    *,
    subsets: str | Path,
    losses: str | Path,
    calibrations: Sequence[str] = (),
) -> Figures:
    """Whether credit follows what models lose that you have trained again without some of the images (LDS).

    subsets, losses: tables that `read_models` understands. A row for the paper's formula, one for ``function`` where it
    differs, one for each calibration, and one for ``loss``, the value function that is made for this question.
    """
    models = read_models(ledger, Path(subsets), Path(losses), function.batch)
    asked = {"paper": ValueFunction(k=function.k)}
    if (function.temperature, function.null_distance, function.relative) != (1.0, None, False):
        asked[f"temperature {function.temperature:g}"] = function
    for name in (*calibrations, LOSS):
        asked[f"calibration {name}" if name != LOSS else LOSS] = value_function(ledger, calibration=name)
    rows = [
        {"values": name, "LDS": found.mean, "standard_error": found.standard_error, "totals": found.totals}
        for name, each in asked.items()
        for found in [agreement(models.credit(ledger, each), models.losses.mean(axis=1))]
    ]
    return {
        "rows": rows,
        "ceiling": ceiling(models.losses),
        "models": len(models.losses),
        "seeds": models.losses.shape[1],
        "images": models.losses.shape[2],
    }


CRITERIA: dict[str, Callable[..., Figures]] = {
    "identical-class": identical_class,
    "attributes": attributes,
    "ood": ood,
    "membership": membership,
    "sensitivity": sensitivity,
    "quality-weighting": quality_weighting,
    "efficiency": efficiency,
    "known-parents": parents,
    "counterfactual": counterfactual,
}


def evaluate(ledger: Readable, criterion: str, function: ValueFunction, **options: Any) -> Figures:
    """Figures of one criterion by its name. Raises `SettingsError` for an unknown one."""
    if criterion not in CRITERIA:
        raise SettingsError(f"there is no criterion {criterion!r}: there are {', '.join(CRITERIA)}")
    settings = json.loads(ledger.meta()["settings"])
    about = {name: settings.get(name) for name in ("encoder", "distance", "quality", "candidates", "views")}
    return {
        "criterion": criterion,
        "workspace": about,
        "k": function.k,
        "temperature": function.temperature,
        "batch": function.batch,
        **CRITERIA[criterion](ledger, function, **options),
    }
