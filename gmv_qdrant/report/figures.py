"""The report's plots by themselves, for notebooks and files."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path

from gmv_qdrant.errors import SettingsError, did_you_mean
from gmv_qdrant.ledger.database import Readable
from gmv_qdrant.ledger.queries import ValueFunction
from gmv_qdrant.report.page import distribution, environment, write_whole
from gmv_qdrant.report.plots import Plot
from gmv_qdrant.report.queries import Snapshot


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot that a notebook shows, and that `save` writes as a page of its own."""

    title: str
    html: str

    def _repr_html_(self) -> str:
        return self.html

    def save(self, target: str | Path) -> Path:
        """Write a self-contained HTML file; it is whole or not there."""
        page = f"<!doctype html><meta charset=utf-8><title>{escape(self.title)}</title>{self.html}"
        return write_whole(Path(target), page.encode(), "the plot")


def figure(ledger: Readable, function: ValueFunction, *titles: str) -> Figure:
    """The plot of the report that has the first of these titles that there is. Raises `SettingsError` without any."""
    drawn: dict[str, Plot] = {
        plot.title: plot for plot in distribution(Snapshot.take(ledger, function))["plots"]
    }
    for title in titles:
        if title in drawn:
            module = environment().get_template("plot.svg").module
            style = files(__package__).joinpath("templates/style.css").read_text(encoding="utf-8")
            html = module.draw(drawn[title], title.lower().replace(" ", "-"))  # type: ignore[attr-defined]
            return Figure(title, f"<style>{style}</style>{html}")
    raise SettingsError(
        f"there is no plot {titles[0]!r} yet{did_you_mean(titles[0], drawn)}: value images first"
    )
