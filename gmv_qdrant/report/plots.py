"""Plots as geometry: numbers in, marks in a view box out; `templates/plot.svg` draws them, the style sheet colours.

Every plot has a title and a sentence that says what it shows, for those who hear the page. Marks are bounded by
the bins and points that `facts` gives, whatever the number of images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

WIDTH = 640
HEIGHT = 270
LEFT, RIGHT, TOP, BOTTOM = 58, 26, 12, 46


@dataclass(frozen=True, slots=True)
class Tick:
    at: float
    text: str


@dataclass(slots=True)
class Plot:
    """Marks in pixels of a ``WIDTH`` x ``height`` view box."""

    title: str
    description: str
    x_label: str = ""
    y_label: str = ""
    height: int = HEIGHT
    x_ticks: list[Tick] = field(default_factory=list)
    y_ticks: list[Tick] = field(default_factory=list)
    bars: list[dict[str, Any]] = field(default_factory=list)
    """x, y, width, height, hint; and ``shade`` in (0, 1] where it stands for a number."""
    lines: list[dict[str, str]] = field(default_factory=list)
    """points (as SVG writes them), kind: ``curve`` or ``even``."""


@dataclass(frozen=True, slots=True)
class _Axis:
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low or 1.0
        return round(self.start + (value - self.low) / span * (self.end - self.start), 2)


def _x(low: float, high: float) -> _Axis:
    return _Axis(low, high, LEFT, WIDTH - RIGHT)


def _y(high: float, low: float = 0.0) -> _Axis:
    return _Axis(low, high, HEIGHT - BOTTOM, TOP)


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers within [low, high], about so many."""
    if not high > low:
        return [low]
    raw = (high - low) / max(about, 1)
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def short(value: float) -> str:
    """A tick's text: 1,200 · 0.05 · 2e-05."""
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:,.6g}" if abs(value) < 1e6 else f"{value:.3g}"


def _count_ticks(axis: _Axis) -> list[Tick]:
    return [Tick(axis(value), short(value)) for value in nice_ticks(0, axis.high, 4) if value == int(value)]


def values(bins: Sequence[dict[str, Any]], zeros: int) -> Plot:
    """Histogram of the values above 0 over log10, with those that are 0 as a bar of their own at the left."""
    images = sum(row["images"] for row in bins)
    plot = Plot(
        "Distribution of values",
        f"{images:,} training images have a value above 0 and {zeros:,} have the value 0.",
        "value of a training image (logarithmic)",
        "training images",
    )
    tallest = max([row["images"] for row in bins] + [zeros, 1])
    y = _y(tallest)
    plot.y_ticks = _count_ticks(y)
    gap = 64 if bins else 0
    x = _Axis(bins[0]["low"], bins[-1]["high"], LEFT + gap, WIDTH - RIGHT) if bins else _x(0, 1)
    plot.bars.append(_bar(LEFT + 8, LEFT + 40, zeros, y, f"value 0: {zeros:,} training images"))
    plot.x_ticks.append(Tick(LEFT + 24, "0"))
    for row in bins:
        low, high = 10 ** row["low"], 10 ** row["high"]
        hint = f"{low:.3g} to {high:.3g}: {row['images']:,} training images"
        plot.bars.append(_bar(x(row["low"]), x(row["high"]), row["images"], y, hint))
    if bins:
        plot.x_ticks += _log_ticks(x)
    return plot


def _log_ticks(axis: _Axis) -> list[Tick]:
    """Powers of ten, with 2 and 5 between them where there is room."""
    found = []
    for power in range(math.floor(axis.low), math.ceil(axis.high) + 1):
        for digit in (1, 2, 5) if axis.high - axis.low < 3 else (1,):
            at = power + math.log10(digit)
            if axis.low - 1e-9 <= at <= axis.high + 1e-9:
                found.append(Tick(axis(at), short(float(f"{10**at:.3g}"))))
    return found


def histogram(bins: Sequence[dict[str, Any]], title: str, description: str, x_label: str) -> Plot:
    """Counts of generated images over equal steps."""
    plot = Plot(title, description, x_label, "generated images")
    if not bins:
        return plot
    low, high = bins[0]["low"], bins[-1]["high"]
    if not high > low:  # a single image, or all the same
        low, high = low - 0.5, high + 0.5
    x, y = _x(low, high), _y(max(row["images"] for row in bins))
    plot.x_ticks = [Tick(x(value), short(value)) for value in nice_ticks(low, high, 6)]
    plot.y_ticks = _count_ticks(y)
    for row in bins:
        left, right = (
            (x(row["low"]), x(row["high"])) if row["high"] > row["low"] else (x.start + 220, x.end - 220)
        )
        hint = f"{row['low']:.4g} to {row['high']:.4g}: {row['images']:,} generated images"
        plot.bars.append(_bar(left, right, row["images"], y, hint))
    return plot


def credit_curve(points: Sequence[tuple[float, float]]) -> Plot:
    """Share of credit held by the top x % of training images, against an even spread."""
    plot = Plot("Credit curve", "No credit was given yet.", "most valued training images", "credit they hold")
    x, y = _x(0, 1), _y(1)
    for value in (0, 0.25, 0.5, 0.75, 1):
        plot.x_ticks.append(Tick(x(value), f"{value:.0%}"))
        plot.y_ticks.append(Tick(y(value), f"{value:.0%}"))
    plot.lines.append({"kind": "even", "points": f"{x(0)},{y(0)} {x(1)},{y(1)}"})
    if points:
        plot.lines.append({"kind": "curve", "points": " ".join(f"{x(px)},{y(py)}" for px, py in points)})
        half = next(px for px, py in points if py >= 0.5)
        plot.description = (
            f"Half of all credit is held by the most valued {half:.1%} of the training images; the straight line "
            "is an even spread."
        )
    return plot


def density(cells: Sequence[dict[str, Any]], r: float | None, columns: int, rows: int) -> Plot:
    """Quality against nearest distance: darker cells hold more generated images."""
    images = sum(cell["images"] for cell in cells)
    related = "" if r is None else f" Their correlation is {r:.2f}."
    plot = Plot(
        "Quality against distance",
        f"{images:,} generated images by the distance of their nearest training image and their quality; "
        f"darker cells hold more.{related}",
        "distance of the nearest training image",
        "quality",
    )
    if not cells:
        return plot
    low, high = cells[0]["low"], cells[0]["high"]
    if not high > low:
        low, high = low - 0.5, high + 0.5
    top = cells[0]["top"]
    x, y = _x(low, high), _y(top)
    plot.x_ticks = [Tick(x(value), short(value)) for value in nice_ticks(low, high, 6)]
    plot.y_ticks = [Tick(y(value), short(value)) for value in nice_ticks(0, top, 5)]
    most = max(cell["images"] for cell in cells)
    wide, tall = (x.end - x.start) / columns, y(0) - y(top / rows)
    for cell in cells:
        shade = 0.25 + 0.75 * math.log1p(cell["images"]) / math.log1p(most)
        plot.bars.append(
            {
                "x": round(x.start + cell["x"] * wide, 2),
                "y": y((cell["y"] + 1) / rows * top),
                "width": round(wide - 1, 2),
                "height": round(tall - 1, 2),
                "shade": round(shade, 2),
                "hint": f"{cell['images']:,} generated images",
            }
        )
    return plot


def _bar(left: float, right: float, count: float, y: _Axis, hint: str) -> dict[str, Any]:
    top = y(count)
    return {
        "x": round(left, 2),
        "y": top,
        "width": round(max(right - left - 1, 0.5), 2),
        "height": round(y(0) - top, 2),
        "hint": hint,
    }


def share_bar(low: float | None, value: float, high: float | None, most: float) -> dict[str, float]:
    """A credit and its interval as parts of a bar 100 wide; ``most`` is the largest number on the list."""
    scale = 100 / most if most > 0 else 0.0
    bar = {"value": round(max(value, 0.0) * scale, 2)}
    if low is not None and high is not None:
        bar |= {"low": round(max(low, 0.0) * scale, 2), "high": round(min(high * scale, 100.0), 2)}
    return bar
