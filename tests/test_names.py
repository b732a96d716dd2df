"""One selector and one resolver of names, in every command; an unknown name is answered with the near one."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_workspace
from click.testing import CliRunner

from gmv_qdrant import SettingsError, Workspace
from gmv_qdrant.cli.main import cli
from gmv_qdrant.ledger.names import find_image, find_images
from gmv_qdrant.ledger.selection import Selection, expression

JOSE = unicodedata.normalize("NFD", "José")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("names")
    made = Workspace.init(root / "ws", **tiny_workspace.SETTINGS)
    tiny_workspace.write(root / "a[1]", range(3))
    rows = [
        "file_name,owner,site,bad,value",
        "0.png,José,north,yes,1",
        "1.png,Bob,south,no,2",
        "2.png,Ada,south,,3",
    ]
    (root / "a[1]" / "metadata.csv").write_text("\n".join(rows))
    made.ingest([root / "a[1]"])
    made.ingest(tiny_workspace.write(root / "a1", range(10, 13)), owner="Bob")
    for batch in ("first", "second"):
        made.value(tiny_workspace.write(root / "generated", range(20, 24)), batch=batch)
    made.value([root / "a1" / "10.png"], batch="first")
    return made


def gmv(workspace: Workspace, *words: object) -> Any:
    return CliRunner().invoke(cli, ["-w", str(workspace.path), *map(str, words)])


def selected(workspace: Workspace, **by: Any) -> set[str]:
    found = Selection(**by).sources(workspace.published)
    return {uri.rpartition("/")[2] for uri in found["uri"].to_pylist()}


@pytest.mark.parametrize(
    ("by", "files"),
    [
        ({"owner": "Bob"}, {"1.png", "10.png", "11.png", "12.png"}),
        ({"owner": JOSE}, {"0.png"}),
        ({"uri": "*/a[1]/*"}, {"0.png", "1.png", "2.png"}),
        ({"uri": "*/a1/1?.png"}, {"10.png", "11.png", "12.png"}),
        ({"attribute": "site=south"}, {"1.png", "2.png"}),
        ({"attribute": "bad"}, {"0.png"}),
        ({"attribute": "value=3"}, {"2.png"}),
        ({"ids": ("0.png", "a1/11.png", str(tiny_workspace.point(2)))}, {"0.png", "11.png", "2.png"}),
    ],
)
def test_a_selection_means_the_same_everywhere(
    workspace: Workspace, by: dict[str, Any], files: set[str], tmp_path: Path
) -> None:
    assert selected(workspace, **by) == files
    words: list[object] = [f"--{name}" for name in by] + [by[name] for name in by]
    if "ids" in by:
        (tmp_path / "ids").write_text("\n".join(by["ids"]))
        words = ["--ids", tmp_path / "ids"]
    credited = json.loads(gmv(workspace, "credits", "--by", "image", *words, "--json").stdout)
    assert {row["uri"].rpartition("/")[2] for row in credited} == files
    contributors = json.loads(
        gmv(workspace, "explain", "20.png", "--batch", "first", "-k", 99, *words, "--json").stdout
    )
    assert {row["uri"].rpartition("/")[2] for row in contributors["matches"]} <= files
    dry = json.loads(gmv(workspace, "withdraw", *words, "--dry-run", "--json").stdout)
    assert dry["sources"] == len(files)
    evaluated = gmv(workspace, "evaluate", "ood", *words, "--json")
    assert evaluated.exit_code == 0, evaluated.stderr


@pytest.mark.parametrize(
    ("by", "says"),
    [
        ({"owner": "Jose"}, "did you mean 'José'"),
        ({"owner": "bob"}, "did you mean 'Bob'"),
        ({"uri": "/elsewhere/*"}, "no training image has uri '/elsewhere/*'"),
        ({"attribute": "sit=north"}, "did you mean 'site'"),
        ({"attribute": "site=nort"}, "did you mean 'north'"),
        ({"attribute": "site"}, "give site=VALUE"),
        ({"ids": ("00.png",)}, "did you mean '"),
        ({}, "exactly one of"),
        ({"owner": "Bob", "uri": "*"}, "exactly one of"),
    ],
)
def test_what_picks_nothing_names_the_near(workspace: Workspace, by: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Selection(**by).keys(workspace.published)
    assert says in str(caught.value)


def test_patterns_take_brackets_as_they_are() -> None:
    assert expression("a[1].*?") == r"(?s)a\[1\]\..*."


def test_an_image_in_two_batches_is_named_by_its_batch(workspace: Workspace) -> None:
    with pytest.raises(SettingsError, match=r"add --batch first or --batch second"):
        find_image(workspace.published, "20.png")
    assert find_image(workspace.published, "20.png", batch="second").batch == "second"
    with pytest.raises(SettingsError, match=r"there is no batch 'frist' \(did you mean 'first'\?\)"):
        find_image(workspace.published, "20.png", batch="frist")


def test_an_image_that_is_training_and_generated_can_be_named(workspace: Workspace) -> None:
    with pytest.raises(SettingsError, match=r"add --training or --batch first"):
        find_image(workspace.published, "10.png")
    assert find_image(workspace.published, "10.png", training=True).kind == "training"
    assert find_image(workspace.published, "10.png", batch="first").kind == "generated"
    for words, kind in ((["--training"], "training"), (["--batch", "first"], "generated")):
        assert json.loads(gmv(workspace, "explain", "10.png", *words, "--json").stdout)["kind"] == kind


@pytest.mark.parametrize(
    "name", ["0.png", "a[1]/0.png", str(tiny_workspace.point(0)), str(tiny_workspace.point(0)).upper()]
)
def test_an_image_goes_by_many_names(workspace: Workspace, name: str) -> None:
    assert find_image(workspace.published, name).uri.endswith("/a[1]/0.png")
    assert list(find_images(workspace.published, [name])) == [name]


def test_a_path_from_here_is_a_name(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace.path.parent / "a[1]")
    assert find_image(workspace.published, "./0.png").uri.endswith("/a[1]/0.png")


def test_names_of_many_images(workspace: Workspace) -> None:
    with pytest.raises(SettingsError, match=r"no training image is called 'x\.png'.*nor are 1 others"):
        find_images(workspace.published, ["x.png", "0.png", "y.png"])
    with pytest.raises(SettingsError, match="give the whole URI and the batch"):
        find_images(workspace.published, ["20.png"], "generated")
    assert len(find_images(workspace.published, ["20.png", "21.png"], "generated", batch="first")) == 2


@pytest.mark.parametrize(
    "ask",
    [
        lambda w: w.credits(batch="frist"),
        lambda w: w.export("/nowhere", batch="frist"),
        lambda w: w.explain("0.png", batch="frist"),
        lambda w: w.report("/nowhere.html", batch="frist"),
        lambda w: w.effective_contributors(batch="frist"),
    ],
)
def test_an_unknown_batch_is_never_an_empty_answer(
    workspace: Workspace, ask: Callable[[Workspace], object]
) -> None:
    with pytest.raises(SettingsError, match="did you mean 'first'"):
        ask(workspace)


def test_a_misspelt_keyword_names_the_near_one(workspace: Workspace) -> None:
    for call, near in (
        (lambda: workspace.credits(temprature=1), "temperature"),  # type: ignore[call-arg]
        (lambda: workspace.ingest("x", onwer="Ada"), "owner"),  # type: ignore[call-arg]
        (lambda: Workspace(workspace.path, devise="cpu"), "device"),  # type: ignore[call-arg]
        (lambda: Workspace.init("/nowhere", encodr="x"), "encoder"),  # type: ignore[call-arg]
    ):
        with pytest.raises(SettingsError, match=f"did you mean '{near}'"):
            call()


def test_explanations_add_up(workspace: Workspace) -> None:
    found = workspace.explain("20.png", batch="first")
    shares = [row[found.matches.columns.index("share")] for row in found.matches.fetchall()]
    assert sum(shares) == pytest.approx(1)
    assert sum(row[2] for row in found.owners.fetchall()) == pytest.approx(1)
    beneficiaries = workspace.explain("1.png")
    assert beneficiaries.image.kind == "training"
    total = sum(
        row[beneficiaries.matches.columns.index("contribution")] for row in beneficiaries.matches.fetchall()
    )
    credited = {row[1]: row[4] for row in workspace.credits("image").fetchall()}
    assert total == pytest.approx(credited[beneficiaries.image.uri])


def test_credits_by_batch_add_up(workspace: Workspace) -> None:
    rows = {row[0]: row[1:] for row in workspace.credits("batch").fetchall()}
    assert {name: row[2] for name, row in rows.items()} == {"first": 5, "second": 4}
    assert sum(row[0] for row in rows.values()) == pytest.approx(
        sum(row[1] for row in workspace.credits().fetchall())
    )
    with pytest.raises(SettingsError, match="by batch"):
        workspace.credits("batch", rule="owner-shapley")
