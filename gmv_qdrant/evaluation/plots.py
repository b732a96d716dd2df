"""The paper's figures, from what `evaluate` gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gmv_qdrant.errors import SettingsError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Figures = dict[str, Any]

BLUE, ORANGE, GREY = "#2b6cb0", "#c05621", "#a0aec0"


def plot(figures: Figures, target: Path) -> Path:
    """Draw figures of `evaluate` into a file (PNG, SVG or PDF by its ending).

    Raises `SettingsError` for an ending that can't be drawn and a folder that can't be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained", dpi=150)  # no pyplot: no display, no global state
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _DRAW[figures["criterion"]](axes, figures)
    axes.spines[["top", "right"]].set_visible(False)
    about = figures["workspace"]
    axes.set_title(
        f"{figures['criterion']}  ({about['encoder']}, {about['distance']})", loc="left", fontsize=9
    )
    try:
        figure.savefig(target)
    except (OSError, ValueError) as error:
        raise SettingsError(f"the plot {target} can't be written: {error}") from None
    return target


def _rho(axes: Axes, figures: Figures) -> None:
    rows = figures["rows"]
    k = [row["k"] for row in rows]
    axes.errorbar(
        k,
        _column(rows, "rho", 100),
        _errors(rows, 100),
        marker="o",
        color=BLUE,
        capsize=3,
        label="contributors",
    )
    axes.plot(k, _column(rows, "chance", 100), "--", color=GREY, label="drawn at random")
    axes.set(xlabel="k", ylabel="share with the same label (%)", ylim=(0, 102), xticks=k)
    axes.legend(frameon=False)


def _attributes(axes: Axes, figures: Figures) -> None:
    ks = sorted({row["k"] for row in figures["rows"]})
    names = list(dict.fromkeys(row["attribute"] for row in figures["rows"]))
    width = 0.8 / len(ks)
    for place, k in enumerate(ks):
        rows = [row for row in figures["rows"] if row["k"] == k]
        at = [i + (place - (len(ks) - 1) / 2) * width for i in range(len(names))]
        rho, errors = _column(rows, "rho", 100), _errors(rows, 100)
        axes.bar(at, rho, width, yerr=errors, label=f"k = {k}", alpha=1 - 0.25 * place, color=BLUE, capsize=2)
    for i, row in enumerate(row for row in figures["rows"] if row["k"] == ks[0]):
        axes.plot(
            [i - 0.45, i + 0.45],
            [100 * row["chance"]] * 2,
            "--",
            color=ORANGE,
            label=None if i else "at random",
        )
    axes.set(ylabel="contributors that agree (%)", ylim=(0, 102), xticks=range(len(names)))
    axes.set_xticklabels(names, fontsize=8)
    axes.legend(frameon=False, fontsize=8)


def _ranks(axes: Axes, figures: Figures) -> None:
    ranks = figures.get("value_ranks", [])
    axes.plot(range(len(ranks)), ranks, ".", color=BLUE)
    axes.set(
        xlabel="corrupted training image",
        ylabel="rank of its value (1 = largest)",
        ylim=(figures["images"] * 1.02, 0),
    )


def _groups(axes: Axes, figures: Figures) -> None:
    rows = figures["rows"]
    names = [row["group"] for row in rows]
    errors = [1.96 * (row["standard_error"] or 0) for row in rows]
    axes.bar(names, _column(rows, "mean_value"), yerr=errors, color=[BLUE, GREY], capsize=4, width=0.5)
    p = figures["test"]["p"]
    axes.set(
        ylabel="mean value, with 95 % interval", xlabel="" if p is None else f"one-sided Welch p = {p:.2g}"
    )


def _spread(axes: Axes, figures: Figures) -> None:
    rows = figures["rows"]
    sizes = [row["m"] for row in rows]
    spread = [100 * (row["spread"] or 0) for row in rows]
    axes.errorbar(sizes, _column(rows, "rho", 100), spread, marker="o", color=BLUE, capsize=3)
    axes.set(
        xlabel="m, generated images in a draw",
        ylabel=f"rho at k = {figures['k']} (%)",
        ylim=(0, 102),
        xticks=sizes,
    )


def _scores(axes: Axes, figures: Figures) -> None:
    edges = figures["histogram"]["edges"]
    for name, colour in (("with q", BLUE), ("without q", ORANGE)):
        for rank, counts in enumerate(figures["histogram"][name]):
            axes.stairs(
                counts, edges, color=colour, alpha=1 - 0.3 * rank, label=f"{name}, contributor {rank + 1}"
            )
    axes.set(xlabel="score", ylabel="generated images")
    axes.legend(frameon=False, fontsize=8)


def _seconds(axes: Axes, figures: Figures) -> None:
    rows = [row for row in figures["rows"] if row["phase"] != "total" and row["seconds_per_image"] > 0]
    names = [f"{row['verb']}: {row['phase']}" for row in rows]
    axes.barh(names, _column(rows, "seconds_per_image"), color=BLUE)
    axes.invert_yaxis()
    axes.set(xlabel="seconds per image")


def _parents(axes: Axes, figures: Figures) -> None:
    rows = figures["rows"]
    for place, (name, label) in enumerate(
        (
            ("parent_share", "credit on true parents"),
            ("correlation", "correlation with truth"),
            ("first_rate", "parent first"),
        )
    ):
        at = [i + (place - 1) * 0.27 for i in range(len(rows))]
        axes.bar(at, _column(rows, name), 0.27, color=(BLUE, ORANGE, GREY)[place], label=label)
    axes.set(ylim=(0, 1.02), xticks=range(len(rows)))
    axes.set_xticklabels([row["values"] for row in rows])
    axes.legend(frameon=False, fontsize=8)


def _lds(axes: Axes, figures: Figures) -> None:
    rows = figures["rows"]
    axes.bar(
        [row["values"] for row in rows], _column(rows, "LDS"), yerr=_errors(rows, 1), color=BLUE, capsize=3
    )
    if figures["ceiling"]:
        axes.axhline(figures["ceiling"], linestyle="--", color=GREY, label="ceiling")
        axes.legend(frameon=False)
    axes.set(ylabel="LDS")


def _column(rows: list[Figures], name: str, times: float = 1.0) -> list[float]:
    return [times * (row[name] or 0.0) for row in rows]


def _errors(rows: list[Figures], times: float) -> list[float]:
    return [times * (row["standard_error"] or 0.0) for row in rows]


_DRAW: dict[str, Callable[[Any, Figures], None]] = {
    "identical-class": _rho,
    "attributes": _attributes,
    "ood": _ranks,
    "membership": _groups,
    "sensitivity": _spread,
    "quality-weighting": _scores,
    "efficiency": _seconds,
    "known-parents": _parents,
    "counterfactual": _lds,
}
