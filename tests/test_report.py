"""The report: self-contained, bounded, accessible, and proof against hostile names; the contact sheet; thumbnails."""

from __future__ import annotations

import io
import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from synthetic_data import synthetic

from gmv_qdrant import SettingsError, ValueFunction, Workspace
from gmv_qdrant.images.records import content_hash
from gmv_qdrant.report import lettering, page, plots, queries
from gmv_qdrant.report.queries import Snapshot
from gmv_qdrant.report.thumbnails import SMALL, Thumbnails

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'; DROP TABLE training; --",
    "{{ 7 * 7 }}{% raw %}",
    "</style></title></textarea>",
    "‮evil & <b>bold</b>",
]


class Parsed(HTMLParser):
    """What an auditor would count."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def written(workspace: Workspace, **function: object) -> tuple[str, Parsed]:
    html = workspace.report(workspace.path / "out" / "report.html", **function).read_text("utf-8")
    return html, Parsed(html)


def assert_self_contained(html: str, parsed: Parsed) -> None:
    assert not parsed.named("script")
    assert not parsed.named("link")
    for _, attrs in parsed.tags:
        for name in ("src", "href", "srcset", "action"):
            if value := attrs.get(name):
                assert value.startswith(("data:image/jpeg;base64,", "#"))
    assert "url(" not in html
    assert "@import" not in html
    assert any("default-src 'none'" in (meta.get("content") or "") for meta in parsed.named("meta"))


def assert_accessible(parsed: Parsed) -> None:
    levels = [int(tag[1]) for tag, _ in parsed.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert all(image.get("alt") for image in parsed.named("img"))
    for drawing in parsed.named("svg"):
        assert drawing.get("aria-labelledby") or drawing.get("aria-hidden") == "true"
    ids = [attrs["id"] for _, attrs in parsed.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert parsed.named("html")[0]["lang"] == "en"


@pytest.mark.parametrize("generated", [0, 1, 2, 30])
def test_report_of_few_images(tmp_path: Path, generated: int) -> None:
    workspace = synthetic(tmp_path / "w", generated=generated, training=40, images=True)
    html, parsed = written(workspace)
    assert_self_contained(html, parsed)
    assert_accessible(parsed)
    assert page.STATEMENT.split(":")[0] in html
    if generated:
        assert f'title="{tmp_path}/w/files/generated-{generated}.png"' in html
    else:
        assert "No generated image was valued yet" in html


def test_report_of_an_empty_workspace(tmp_path: Path) -> None:
    workspace = Workspace.init(tmp_path / "w", encoder="pixels:8", distance="l2@8", quality="none")
    html, parsed = written(workspace)
    assert_self_contained(html, parsed)
    assert_accessible(parsed)
    assert "There are no training images" in html


def test_report_of_a_hundred_thousand_images_keeps_its_size(tmp_path: Path) -> None:
    workspace = synthetic(tmp_path / "w", generated=100_000, training=2_000, owners=500)
    html, parsed = written(workspace)
    assert_self_contained(html, parsed)
    assert len(html) < 1_000_000
    assert len(parsed.named("img")) + html.count('class="missing"') <= 12 + 16 * (1 + page.SHOWN)
    assert len(parsed.named("rect")) < 2_000
    assert "The 50 owners with the most credit of 500" in html


def test_no_quality_is_shown_as_no_quality(tmp_path: Path) -> None:
    workspace = synthetic(tmp_path / "w", generated=5, training=40)
    with workspace.ledger.write() as con:
        con.execute("UPDATE generated SET quality = NULL")
    html, _ = written(workspace)
    assert "no quality was measured" in html
    assert "Highest quality" not in html


def test_figures_are_those_of_sql(tmp_path: Path) -> None:
    workspace = synthetic(tmp_path / "w", generated=50, training=60, owners=4)
    function = ValueFunction(k=7, temperature=0.1, batch="batch 1")
    snapshot = Snapshot.take(workspace.published, function)
    arguments = {"k": 7, "temperature": 0.1, "batch": "batch 1"}
    owners = {row["name"]: row["value"] for row in snapshot.owners()}
    assert owners == dict(workspace.credits("owner", **arguments).project("owner, value").fetchall())
    assert snapshot.sums["effective"] == pytest.approx(workspace.effective_contributors(**arguments))
    values = np.array([row[0] for row in workspace.credits("image", **arguments).project("value").fetchall()])
    assert snapshot.sums["credit"] == pytest.approx(values.sum())
    curve = dict(snapshot.credit_curve())
    assert curve[1.0] == pytest.approx(1.0)
    assert curve[0.5] == pytest.approx(np.sort(values)[::-1][:30].sum() / values.sum())
    assert sum(row["images"] for row in snapshot.value_bins()) == (values > 0).sum()
    assert sum(cell["images"] for cell in snapshot.quality_by_distance()) == 25
    held = {row["top"]: row["held"] for row in snapshot.held_by_top()}
    assert held[0.25] == pytest.approx(np.sort(values)[::-1][:15].sum() / values.sum())


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_names_stay_text(tmp_path: Path, hostile: str) -> None:
    workspace = synthetic(tmp_path / "w", generated=3, training=10)
    with workspace.ledger.write() as con:
        con.execute(
            """UPDATE sources SET uri = $1 || training_key, owner = $1, label = $1, licence = $1,
            attributes = to_json($1)""",
            [hostile],
        )
        con.execute("UPDATE generated SET uri = $1 || generated_key, batch = $1, label = $1", [hostile])
        con.execute("INSERT INTO quarantine VALUES ($1, $1, $1, 'run', now())", [hostile])
    html, parsed = written(workspace, batch=hostile)
    assert_self_contained(html, parsed)
    assert hostile in "".join(parsed.text)
    assert "<img src=x" not in html
    assert not any(name.startswith("on") for _, attrs in parsed.tags for name in attrs)
    assert queries.training_keys(workspace.published, owner=hostile).num_rows == 10
    assert queries.training_keys(workspace.published, named=hostile).num_rows == 10
    assert workspace.sql("SELECT count(*) FROM training").fetchall() == [(10,)]


def test_a_report_is_whole_or_not_there(tmp_path: Path) -> None:
    workspace = synthetic(tmp_path / "w", generated=1, training=5)
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="can't be written"):
        workspace.report(tmp_path / "file" / "report.html")
    target = workspace.report(tmp_path / "deep" / "er" / "report.html", title="Ours & theirs")
    assert "<h1>Credit report: Ours &amp; theirs</h1>" in target.read_text()
    assert [path.name for path in target.parent.iterdir()] == ["report.html"]


def _luminance(colour: str) -> float:
    colour = colour if len(colour) == 7 else "#" + "".join(2 * digit for digit in colour[1:])
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1, 2], ids=["light", "dark", "print"])
def test_text_has_the_contrast_of_wcag_aa(theme: int) -> None:
    css = (Path(page.__file__).parent / "templates" / "style.css").read_text()
    colours = dict(re.findall(r"--(\w+): (#\w+)", re.findall(r":root \{[^}]*\}", css)[theme]))
    for text in ("ink", "soft", "accent", "warn"):
        for ground in ("paper", "raised"):
            light, dark = sorted((_luminance(colours[text]), _luminance(colours[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


def test_thumbnails_are_small_bare_and_cached(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "secret place")
    buffer = io.BytesIO()
    Image.effect_noise((400, 200), 60).save(buffer, "PNG", pnginfo=info)
    source = tmp_path / "photo.png"
    source.write_bytes(buffer.getvalue())
    image = {"hash": content_hash(buffer.getvalue()), "point_id": "../../../etc", "uris": [str(source)]}
    thumbnails = Thumbnails(tmp_path / "w", (str(tmp_path),))
    first = thumbnails.get(image)
    assert first.jpeg is not None
    shown = Image.open(io.BytesIO(first.jpeg))
    assert shown.size == (SMALL, SMALL // 2)
    assert not shown.getexif()
    assert b"secret" not in first.jpeg
    source.unlink()
    assert thumbnails.get(image) == first
    kept = [path for path in (tmp_path / "w").rglob("*") if path.is_file()]
    assert len(kept) == 1
    assert kept[0].is_relative_to(tmp_path / "w" / "thumbnails")


def test_an_image_that_changed_is_not_shown(tmp_path: Path) -> None:
    source = tmp_path / "photo.png"
    Image.new("RGB", (8, 8), "red").save(source)
    image = {"hash": content_hash(b"another"), "point_id": "p", "uris": [str(source)]}
    changed = Thumbnails(tmp_path, (str(tmp_path),)).get(image)
    gone = Thumbnails(tmp_path, (str(tmp_path),)).get({**image, "uris": [str(tmp_path / "none.png")]})
    source.write_bytes(b"no image")
    damaged = Thumbnails(tmp_path, (str(tmp_path),)).get({**image, "hash": None})
    nowhere = Thumbnails(tmp_path, (str(tmp_path),)).get({**image, "uris": []})
    assert [picture.jpeg for picture in (changed, gone, damaged, nowhere)] == [None] * 4
    assert "no longer the image" in changed.reason
    assert "does not exist" in gone.reason
    assert "not an image" in damaged.reason
    assert "No source" in nowhere.reason
    assert not (tmp_path / "thumbnails").exists()


def test_reading_is_enough_for_pictures(tmp_path: Path) -> None:
    (tmp_path / "thumbnails").write_text("not a folder")
    source = tmp_path / "photo.png"
    Image.new("RGB", (8, 8), "red").save(source)
    assert (
        Thumbnails(tmp_path, (str(tmp_path),))
        .get({"hash": None, "point_id": "p", "uris": [str(source)]})
        .jpeg
    )


@pytest.mark.parametrize("image", ["generated-2.png", "training-5.png"])
def test_contact_sheet(tmp_path: Path, image: str) -> None:
    workspace = synthetic(tmp_path / "w", generated=12, training=20)
    synthetic_files = tmp_path / "w" / "files"
    synthetic_files.mkdir()
    for i in range(1, 21):
        Image.new("RGB", (8, 4), (i * 12, 0, 99)).save(synthetic_files / f"training-{i}.png")
    target = workspace.picture(image, tmp_path / "sheet.png", k=9)
    with Image.open(target) as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 900
        colours = {colour for _, colour in sheet.getcolors(1 << 20) or []}
    assert len(colours) > 100
    with pytest.raises(SettingsError, match="no training or generated image"):
        workspace.picture("nobody.png", tmp_path / "sheet.png")


@given(
    st.floats(-1e6, 1e6),
    st.floats(1e-6, 1e6),
    st.integers(1, 10),
)
def test_ticks_are_round_and_inside(low: float, span: float, about: int) -> None:
    high = low + span
    ticks = plots.nice_ticks(low, high, about)
    slack = 1e-6 * span + 1e-9 * abs(low)
    assert all(low - slack <= tick <= high + slack for tick in ticks)
    assert len(ticks) <= 3 * about + 3
    assert ticks == sorted(ticks)


@given(st.lists(st.integers(1, 10**7), min_size=1, max_size=30), st.integers(0, 10**7))
def test_bars_stay_inside_the_drawing(counts: list[int], zeros: int) -> None:
    bins = [{"low": i / 4, "high": (i + 1) / 4, "images": count} for i, count in enumerate(counts)]
    for plot in (plots.values(bins, zeros), plots.histogram(bins, "t", "d", "x")):
        for bar in plot.bars:
            assert bar["x"] >= plots.LEFT - 0.01
            assert bar["x"] + bar["width"] <= plots.WIDTH
            assert bar["y"] >= plots.TOP - 0.01
            assert bar["y"] + bar["height"] <= plots.HEIGHT - plots.BOTTOM + 0.02


def test_a_bar_and_its_interval_fit_together() -> None:
    assert plots.share_bar(1.0, 2.0, 4.0, 4.0) == {"value": 50.0, "low": 25.0, "high": 100.0}
    assert plots.share_bar(None, 2.0, None, 4.0) == {"value": 50.0}
    assert plots.share_bar(0.0, 0.0, 0.0, 0.0) == {"value": 0.0, "low": 0.0, "high": 0.0}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0.0000"),
        (12, "12"),
        (1234567, "1,234,567"),
        (1.5, "1.500"),
        (123456.7, "123,457"),
        (1e-9, "1.00e-09"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert page.number(value) == text


@pytest.mark.parametrize("system", [True, False], ids=["fonts of the system", "no fonts but Pillow's"])
def test_names_in_any_script_are_lettered(system: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not system:
        monkeypatch.setattr(lettering, "FONTS", ())
    for cached in (lettering._fonts, lettering._choice):
        cached.cache_clear()
    try:
        written = "".join(run for _, run in lettering._runs("Zoë Müller, José, 山田", 13))
        assert written.replace("?", "")[:16] in ("Zoë Müller, José", "Zoe Muller, Jose")
        assert len(written) == len("Zoë Müller, José, 山田")
        assert lettering.width(written, 13) > 50
        assert lettering.fit("a" * 100, 13, 80).endswith("…")
        assert lettering.width(lettering.fit("é" * 100, 13, 80), 13) <= 80
        assert lettering.wrap("one two three", 13, 40, lines=2)[0] == "one"
    finally:
        for cached in (lettering._fonts, lettering._choice):
            cached.cache_clear()
