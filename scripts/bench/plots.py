"""The pictures of docs/performance.md: growth with n, what K costs, and recall against time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

SIDES = {
    "pq": ("product quantization", "tab:blue"),
    "turbo": ("turbo", "tab:green"),
    "scalar": ("scalar", "tab:olive"),
    "none": ("no codes, exact", "tab:brown"),
    "engine": ("re-ranked in the engine", "tab:purple"),
    "faiss": ("faiss IVF-PQ with refinement", "tab:orange"),
    "matmul": ("exact float32 matmul, batched", "tab:gray"),
}
VARIANTS = {"scan": ("scan", ":"), "graph": ("graph", "--")}


def draw(documents: Mapping[str, Mapping[str, Any]], folder: Path) -> list[Path]:
    """Plots of the ``scale`` and ``million`` documents; gives the files written."""
    runs: dict[int, Mapping[str, Any]] = {}
    for name in ("scale", "million"):
        runs |= {int(n): rows for n, rows in documents.get(name, {}).get("n", {}).items()}
    if not runs:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    runs = dict(sorted(runs.items()))
    return [_growth(runs, folder), _candidates(runs, folder), _recall(runs, folder)]


def _style(side: str) -> dict[str, Any]:
    kind, _, variant = side.partition("-")
    label, colour = SIDES.get(kind, (kind, "black"))
    words, line = VARIANTS.get(variant, ("", "-"))
    return {
        "label": f"{label}, {words}" if words else label,
        "color": colour,
        "linestyle": line,
        "marker": "o",
    }


def _search(row: Mapping[str, Any], k: int) -> float | None:
    """Processor milliseconds of a search for K."""
    found = row.get(f"search@{k}") or row.get(f"ms@{k}", {}).get("search")
    return None if found is None else float(found["cpu_ms"])


def _sweep(row: Mapping[str, Any]) -> list[Mapping[str, float]]:
    """Ever wider searches for K = 200; none in older documents."""
    found: list[Mapping[str, float]] = row.get("sweep") or row.get("search@200", {}).get("sweep") or []
    return found


def _sides(runs: Mapping[int, Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(side for rows in runs.values() for side in rows))


def _growth(runs: Mapping[int, Mapping[str, Any]], folder: Path) -> Path:
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for side in _sides(runs):
        points = [(n, _search(rows.get(side, {}), 200)) for n, rows in runs.items()]
        points = [(n, ms) for n, ms in points if ms is not None]
        if points:
            axes.plot(*zip(*points, strict=True), **_style(side))
    axes.set(xscale="log", yscale="log", xlabel="training images", ylabel="ms of processor time a query")
    axes.set_title("Recall of 200 candidates, without the forward pass")
    return _save(figure, axes, folder / "growth.png")


def _candidates(runs: Mapping[int, Mapping[str, Any]], folder: Path) -> Path:
    n, rows = list(runs.items())[-1]
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for side, row in rows.items():
        ks = sorted(int(name.partition("@")[2]) for name in row if name.startswith(("search@", "ms@")))
        if ks:
            axes.plot(ks, [_search(row, k) for k in ks], **_style(side))
    axes.set(xlabel="K", ylabel="ms of processor time a query", ylim=(0, None))
    axes.set_title(f"Candidates at {n:,} images, recall@K of 0.99 or more")
    return _save(figure, axes, folder / "candidates.png")


def _recall(runs: Mapping[int, Mapping[str, Any]], folder: Path) -> Path:
    n, rows = max(of for of in runs.items() if any(map(_sweep, of[1].values())) or of[0] == min(runs))
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for side, row in rows.items():
        points = _sweep(row)
        if points:
            axes.plot([p["cpu_ms"] for p in points], [p["recall"] for p in points], **_style(side))
        elif side == "matmul":
            axes.axvline(row["search@200"]["cpu_ms"], color=SIDES[side][1], label=SIDES[side][0])
    axes.axhline(0.99, color="black", linewidth=0.5)
    axes.set(xscale="log", xlabel="ms of processor time a query", ylabel="recall@200")
    axes.set_title(f"Recall against time at {n:,} images")
    return _save(figure, axes, folder / "recall.png")


def _save(figure: Any, axes: Any, path: Path) -> Path:
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
