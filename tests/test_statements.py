"""Statements and explanations of owners: self-contained, harmless, true to the recorded payout."""

from __future__ import annotations

import csv
import json
import re
import shutil
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from gmv_qdrant import Workspace
from gmv_qdrant.cli.main import cli
from gmv_qdrant.errors import SettingsError

SCRIPT = "<script>alert('x')</script>=1"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Two recorded payouts; an owner is called like a script, and two claim one image."""
    folder = tmp_path_factory.mktemp("statements")
    random = np.random.default_rng(0)
    for name, count in (("training", 24), ("generated", 6)):
        (folder / name).mkdir()
        for i in range(count):
            pixels = random.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    shutil.copyfile(folder / "training/0.png", folder / "training/copy.png")
    blurred = Image.open(folder / "training/0.png").resize((8, 8)).resize((16, 16))
    blurred.save(folder / "generated/0.png")  # it is nearest to the image that two claim
    owners = ("Ada", SCRIPT, "Çy")
    rows = [f'{i}.png,"{owners[i % 3]}"' for i in range(24)]
    text = "\n".join(["file_name,owner", *rows, "copy.png,Eve"])
    (folder / "training/metadata.csv").write_text(text, encoding="utf-8")
    made = Workspace.init(
        folder / "ws",
        encoder="pixels:16",
        distance="l2@16",
        quality="none",
        candidates=12,
        quantization="none",
    )
    made.ingest([folder / "training"])
    made.value([folder / "generated"], batch="first")
    made.payout("100.00", record="2026-Q1", currency="EUR", minimum="30", hold=True)
    made.payout("200.00", record="2026-Q2", currency="EUR", temperature=0.01)
    return made


def test_a_statement_is_one_file_with_pictures_amounts_and_the_fingerprint(
    workspace: Workspace, tmp_path: Path
) -> None:
    html = workspace.statement("Ada", tmp_path / "ada.html", payout="2026-Q1").read_text(encoding="utf-8")
    record = workspace.payout_record("2026-Q1").payout
    line = record.line_of("Ada")
    assert line is not None
    assert record.fingerprint in html
    assert f"{line.amount // 100}.{line.amount % 100:02d}" in html
    assert html.count("data:image/jpeg;base64,") >= 8
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|@import|http", html)
    assert "Eve" in html  # claims one of her images
    assert "is kept" in html
    latest = workspace.statement("Ada", tmp_path / "latest.html").read_text(encoding="utf-8")
    assert latest.count("2026-Q1") == 1  # in the history
    assert "T = 0.0100" in latest


def test_names_are_text_wherever_they_stand(workspace: Workspace, tmp_path: Path) -> None:
    html = workspace.statement(SCRIPT, tmp_path / "x.html").read_text(encoding="utf-8")
    assert "<script>" not in html
    with pytest.raises(SettingsError, match=r"no owner called 'Adda' \(did you mean 'Ada'\?\)"):
        workspace.statement("Adda", tmp_path / "x.html")
    with pytest.raises(SettingsError, match="neither"):
        workspace.statement("Ada", tmp_path / "x.pdf")
    with pytest.raises(SettingsError, match="recorded: 2026-Q1, 2026-Q2"):
        workspace.statement("Ada", tmp_path / "x.html", payout="2025")


def test_all_statements_are_listed_and_their_amounts_add_up(workspace: Workspace, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        cli, ["-w", str(workspace.path), "statements", str(tmp_path), "--payout", "2026-Q2"]
    )
    assert (done.exit_code, "wrote 4 statements" in done.stderr) == (0, True)
    with (tmp_path / "statements.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(Decimal(row["amount"]) for row in rows) == 200
    for row in rows:
        assert (tmp_path / row["statement"]).is_file()
        with (tmp_path / row["statement"]).with_suffix(".csv").open(encoding="utf-8", newline="") as file:
            images = list(csv.DictReader(file))
        assert sum(Decimal(image["amount"]) for image in images) == Decimal(row["amount"])
    assert len({row["statement"].lower() for row in rows}) == len(rows)


def test_why_an_owner_gets_what_she_gets(workspace: Workspace) -> None:
    done = CliRunner().invoke(
        cli, ["-w", str(workspace.path), "explain", "--owner", "Ada", "--payout", "2026-Q2", "--json"]
    )
    images = json.loads(done.stdout)["images"]
    ada = next(row for row in workspace.payout_record("2026-Q2") if row["owner"] == "Ada")
    assert sum(image["credit"] for image in images) == pytest.approx(ada["value"])
    assert sum(image["share"] for image in images) == pytest.approx(1)
    assert [image["credit"] for image in images] == sorted((i["credit"] for i in images), reverse=True)
    assert any(image["also_claimed_by"] == ["Eve"] for image in images)
    assert workspace.explain_owner("Ada").fetchall()
    for wrong in (["explain"], ["explain", "x.png", "--payout", "2026-Q1"]):
        assert CliRunner().invoke(cli, ["-w", str(workspace.path), *wrong]).exit_code == 2


def test_a_withdrawn_picture_is_not_shown_again(workspace: Workspace, tmp_path: Path) -> None:
    shutil.copytree(workspace.path, tmp_path / "ws")
    mine = Workspace(tmp_path / "ws")
    before = mine.statement("Çy", tmp_path / "before.html").read_text(encoding="utf-8")
    mine.withdraw(owner="Çy")
    after = mine.statement("Çy", tmp_path / "after.html").read_text(encoding="utf-8")
    assert "Withdrawn since." in after
    assert after.count("data:image/jpeg") < before.count("data:image/jpeg")
    assert re.findall(r"<strong>[\d.]+ EUR</strong>", after) == re.findall(
        r"<strong>[\d.]+ EUR</strong>", before
    )


def test_without_a_recorded_payout_there_is_no_statement(tmp_path: Path) -> None:
    workspace = Workspace.init(tmp_path / "ws", encoder="pixels:16", distance="l2@16", quality="none")
    with pytest.raises(SettingsError, match="no payout is recorded"):
        workspace.statement("Ada", tmp_path / "x.html")
