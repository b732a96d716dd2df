"""What a notebook shows of a workspace and of its answers."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import pytest
import tiny_workspace

from gmv_qdrant import SettingsError, Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace.init(tmp_path / "ws", **tiny_workspace.SETTINGS)
    made.ingest(tiny_workspace.write(tmp_path / "a", range(30)), owner="<b>Ada</b>")
    made.value(tiny_workspace.write(tmp_path / "g", range(50, 53)))
    return made


def test_a_workspace_says_what_it_holds(workspace: Workspace) -> None:
    assert repr(workspace) == (
        f"<Workspace {workspace.path}: 30 training images of 1 owners, 3 generated images in 1 batches>"
    )
    shown = workspace._repr_html_()
    assert "<td>30</td>" in shown
    assert str(workspace.path) in shown


def test_relations_are_tables_where_there_is_a_notebook(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[Any, Any] = {}
    html = SimpleNamespace(for_type=kept.__setitem__)
    shell = SimpleNamespace(display_formatter=SimpleNamespace(formatters={"text/html": html}))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    again = Workspace(workspace.path)
    owners = kept[duckdb.DuckDBPyRelation](again.credits())
    assert "<th>owner</th>" in owners
    assert "&lt;b&gt;Ada&lt;/b&gt;" in owners, "a name is no markup"
    images = again.credits("image")
    shown = kept[duckdb.DuckDBPyRelation](images)
    assert shown.count("<tr>") == 21
    assert "the first 20 rows" in shown
    assert len(images.fetchall()) == 30, "shown, and still there"


def test_no_notebook_is_needed(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert len(Workspace(workspace.path).credits().fetchall()) == 1


def test_plots_of_the_report(workspace: Workspace, tmp_path: Path) -> None:
    for plot in (
        workspace.plot_values,
        workspace.plot_credit_curve,
        workspace.plot_contributors,
        workspace.plot_distances,
    ):
        figure = plot(k=3)
        assert "<svg" in figure._repr_html_()
        page = figure.save(tmp_path / "plot.html").read_text()
        assert figure.title in page
        assert "http" not in page.replace("http://www.w3.org", ""), "nothing is fetched"


def test_a_plot_without_anything_valued_says_what_to_do(tmp_path: Path) -> None:
    empty = Workspace.init(tmp_path / "empty", **tiny_workspace.SETTINGS)
    with pytest.raises(SettingsError, match="value images first"):
        empty.plot_contributors()
