"""The paper's criteria (section 4.2, App. D, F, I) as pure functions: arrays in, figures with standard errors out.

Figures are plain dicts and lists, so that they are tables, JSON and plots without further ado.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmv_qdrant.errors import SettingsError
from gmv_qdrant.evaluation.evidence import Agreement, Values
from gmv_qdrant.evaluation.statistics import (
    average_ranks,
    bootstrap,
    detection,
    mean,
    stratified_permutation,
    welch,
)

Figures = dict[str, Any]


def agreement_figures(found: Agreement) -> Figures:
    """C1 (rho = Q/k, Tables 2, 7, 9) and C2 (Tables 3, 8): the mean over the generated images, for each k.

    chance: what contributors drawn at random would give; a figure says something by as much as it beats it.
    ``by_value`` has the same for the generated images of each label or combination.
    """
    rates = found.hits / np.asarray(found.ks)
    rows = [
        {"k": k, **_rho(rates[:, column], found.chance), "images": len(rates)}
        for column, k in enumerate(found.ks)
    ]
    by_value = []
    names = np.asarray(found.names)
    for name in sorted(set(found.names)):
        mine = names == name
        figures = {f"rho_{k}": float(rates[mine, column].mean()) for column, k in enumerate(found.ks)}
        by_value.append(
            {"value": name, "images": int(mine.sum()), **figures, "chance": float(found.chance[mine].mean())}
        )
    return {"rows": rows, "by_value": by_value, "left_out": found.without}


def _rho(rates: np.ndarray, chance: np.ndarray) -> Figures:
    found = mean(rates)
    low, high = bootstrap(rates) if len(rates) > 1 else (None, None)
    return {
        "rho": found.mean,
        "standard_error": found.standard_error,
        "low": low,
        "high": high,
        "chance": float(chance.mean()),
    }


def out_of_distribution(found: Values, corrupted: np.ndarray) -> Figures:
    """C3, Fig. 5: do the corrupted training images have the lowest values? corrupted: bool ``(n,)``.

    Two scores are judged. ``value`` is the paper's; most values are exactly 0 when m k << n, these share an average
    rank, and ``tied_pairs`` says how many pairs can't be told apart. ``nearest`` is the smallest distance to any
    generated image, which has no such ties: an image that was never among the K candidates lies outside every recall
    radius, so it counts as further than all others (and ties with its like). ``nearest, recalled only`` leaves
    those out.
    """
    ranks = average_ranks(found.value)
    recalled = np.isfinite(found.nearest)
    values = [-(found.value_parts.sum(axis=0) - part) for part in found.value_parts]
    nearest = [
        np.delete(found.nearest_parts, part, axis=0).min(axis=0) for part in range(len(found.nearest_parts))
    ]
    everyone = np.ones(len(corrupted), bool)
    rows = [
        _separation("value", -found.value, values, corrupted, everyone, found.value > 0),
        _separation("nearest", found.nearest, nearest, corrupted, everyone, recalled),
    ]
    if (corrupted & recalled).any() and (~corrupted & recalled).any():
        rows.append(
            _separation("nearest, recalled only", found.nearest, nearest, corrupted, recalled, recalled)
        )
    return {
        "rows": rows,
        "value_ranks": ranks[corrupted].tolist(),
        "images": len(ranks),
        "nothing_to_see": bool(
            (found.value[corrupted] == 0).all() and (found.value[~corrupted] == 0).mean() > 0.5
        ),
    }


def _separation(
    name: str,
    scores: np.ndarray,
    without: Sequence[np.ndarray],
    corrupted: np.ndarray,
    who: np.ndarray,
    has: np.ndarray,
) -> Figures:
    """One row. without: scores ``(n,)`` with each part of the generated images left out. who: bool, whom it is about.
    has: bool, who has a score of its own at all (a value above 0, a distance)."""
    found = detection(scores[who], corrupted[who])
    others = np.array([detection(each[who], corrupted[who]).auroc for each in without])
    # other generated images (a jackknife) beside other training images (DeLong)
    of_generated = (len(others) - 1) / len(others) * float(((others - others.mean()) ** 2).sum())
    error = found.standard_error
    return {
        "score": name,
        "auroc": found.auroc,
        "standard_error": None if error is None else float(np.hypot(error, np.sqrt(of_generated))),
        "mean_percentile": found.mean_percentile,
        "tied_pairs": found.tied,
        "corrupted": found.members,
        "clean": found.others,
        "corrupted_with_score": float(has[who & corrupted].mean()),
        "clean_with_score": float(has[who & ~corrupted].mean()),
    }


def membership(
    found: Values, trained: np.ndarray, held_out: np.ndarray, credit: np.ndarray, strata: np.ndarray
) -> Figures:
    """App. D, Table 6: are images that a generator was trained on worth more than images that it never saw?

    The paper's t-test assumes that chance alone decided who was trained on: groups that differ (by class, by ink)
    differ in value whatever the generator saw. ``permutation_p`` compares images of one stratum only (int ``(n,)``),
    where membership is drawn anew; it is None where no stratum has images of both groups, for then nothing can be told.
    trained, held_out: bool ``(n,)``, disjoint. credit: float64 ``(m,)``, the share of each generated image's credit
    (over both groups) that goes to the trained ones. Welch's one-sided t-test as in the paper, for values and for the
    smallest distances. ``credit`` in the result is the trained images' share of all value: ``standard_error`` says how
    much it would vary with other generated images, ``expected_spread`` how much it varies when the groups are drawn at
    random from all these training images: that is the one to test against, since some images resemble everything.
    Raises `SettingsError` when the groups overlap or one has fewer than two images.
    """
    if (both := int((trained & held_out).sum())) > 0:
        raise SettingsError(
            f"{both} training images are in both groups: trained and held-out must not overlap"
        )
    test = welch(found.value[trained], found.value[held_out])
    rows: list[Figures] = []
    for name, group, figures in (("trained", trained, test.first), ("held out", held_out, test.second)):
        rows.append(
            {
                "group": name,
                "images": figures.count,
                "mean_value": figures.mean,
                "standard_error": figures.standard_error,
                "with_value": float((found.value[group] > 0).mean()),
            }
        )
    distances = None
    near, far = found.nearest[trained], found.nearest[held_out]
    near, far = near[np.isfinite(near)], far[np.isfinite(far)]
    if min(len(near), len(far)) > 1:
        distances = welch(far, near).as_dict()  # trained images should be nearer
    both = trained | held_out
    total = float(found.value[both].sum())
    return {
        "rows": rows,
        "test": {
            "t": test.t,
            "df": test.df,
            "p": test.p,
            "rank_p": test.rank_p,
            **stratified_permutation(found.value, trained, held_out, strata),
        },
        "credit": {
            "trained_share": float(found.value[trained].sum()) / total if total > 0 else None,
            "standard_error": mean(credit).standard_error if len(credit) else None,
            "expected": float(trained.sum() / both.sum()),
            "expected_spread": _spread_of_share(found.value[both], int(trained.sum())),
            "generated_images": len(credit),
        },
        "nearest_test": distances,
    }


def _spread_of_share(values: np.ndarray, count: int) -> float | None:
    """Standard deviation of the share of the total that ``count`` values have which are drawn at random."""
    n, total = len(values), float(values.sum())
    if n < 2 or total == 0:
        return None
    squares = float(((values - values.mean()) ** 2).sum())
    return float(np.sqrt(count * (n - count) / (n * (n - 1)) * squares)) / total


def sensitivity(rates: np.ndarray, sizes: Sequence[int], repeats: int, seed: int) -> Figures:
    """App. F, Fig. 7: how much rho varies with m. rates: float64 ``(images,)``, rho of each generated image.

    For each m, ``repeats`` seeded draws of m different images. ``expected_spread``: what sampling alone gives,
    sd / sqrt(m), corrected for drawing without replacement.
    Raises `SettingsError` when a size exceeds the number of images.
    """
    if max(sizes) > len(rates):
        raise SettingsError(
            f"m = {max(sizes)} can't be drawn: there are {len(rates)} generated images with a label"
        )
    random = np.random.default_rng(seed)
    sd = float(rates.std(ddof=1)) if len(rates) > 1 else 0.0
    rows = []
    for size in sizes:
        draws = np.array([rates[random.permutation(len(rates))[:size]].mean() for _ in range(repeats)])
        left = (len(rates) - size) / len(rates)  # sd is of the sample, so the correction is by N
        rows.append(
            {
                "m": size,
                "rho": float(draws.mean()),
                "spread": float(draws.std(ddof=1)) if repeats > 1 else None,
                "lowest": float(draws.min()),
                "highest": float(draws.max()),
                "expected_spread": sd * float(np.sqrt(left / size)),
            }
        )
    return {"rows": rows, "repeats": repeats, "seed": seed, "images": len(rates)}


def score_distribution(with_quality: np.ndarray, without: np.ndarray) -> Figures:
    """App. I, Fig. 8: contributions of the first contributors, with and without q. Both float64 ``(m, ranks)``."""
    rows = []
    for rank in range(with_quality.shape[1]):
        for name, scores in (("with q", with_quality[:, rank]), ("without q", without[:, rank])):
            found = mean(scores)
            low, middle, high = np.quantile(scores, [0.05, 0.5, 0.95]).tolist()
            rows.append(
                {
                    "contributor": rank + 1,
                    "scores": name,
                    "mean": found.mean,
                    "standard_error": found.standard_error,
                    "q05": low,
                    "median": middle,
                    "q95": high,
                }
            )
    top = float(max(with_quality.max(), without.max()))
    edges = np.linspace(0, top or 1.0, 31)
    counts = {
        name: [np.histogram(scores[:, rank], edges)[0].tolist() for rank in range(scores.shape[1])]
        for name, scores in (("with q", with_quality), ("without q", without))
    }
    return {"rows": rows, "histogram": {"edges": edges.tolist(), **counts}, "images": len(without)}


def efficiency(runs: Sequence[Mapping[str, Any]]) -> Figures:
    """C4, Table 4: seconds by phase and image of ``value`` and of ``ingest``; runs with nothing new are left out.

    runs: ``verb``, ``counts`` and ``timings`` (JSON text) of finished runs.
    """
    rows = []
    for verb, counted in (("value", "valued"), ("ingest", "new")):
        seconds: dict[str, float] = {}
        images = 0
        for run in runs:
            count = int(json.loads(run["counts"] or "{}").get(counted, 0))
            if run["verb"] == verb and count:
                images += count
                for phase, spent in json.loads(run["timings"] or "{}").items():
                    seconds[phase] = seconds.get(phase, 0.0) + spent
        total = seconds.pop("total", 0.0)
        other = max(0.0, total - sum(seconds.values()))  # phases overlap: networks work while others write
        for phase, spent in [
            *sorted(seconds.items(), key=lambda item: -item[1]),
            ("other", other),
            ("total", total),
        ]:
            if images:
                rows.append(
                    {
                        "verb": verb,
                        "phase": phase,
                        "images": images,
                        "seconds": spent,
                        "seconds_per_image": spent / images,
                    }
                )
    if not rows:
        raise SettingsError("no finished run took in or valued anything, so there are no timings")
    return {"rows": rows}
