"""The recipes of docs/how-to/pay-owners.md, as they stand there, on a workspace with owners and licences."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gmv_qdrant import Workspace

PAGE = Path(__file__).resolve().parents[1] / "docs/how-to/pay-owners.md"
RECIPES = re.findall(r"```sql\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
POOL, CAP, LICENCES, AMOUNTS = RECIPES


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """40 images of four owners, of which Ada's are nearest to what is generated."""
    folder = tmp_path_factory.mktemp("recipes")
    random = np.random.default_rng(0)
    (folder / "training").mkdir()
    (folder / "generated").mkdir()
    pixels = random.integers(0, 255, (40, 16, 16, 3))
    for i, image in enumerate(pixels):
        Image.fromarray(image.astype(np.uint8)).save(folder / f"training/{i}.png")
    for j in range(10):
        blended = 0.8 * pixels[0 if j < 7 else j] + 0.2 * pixels[j + 20]
        Image.fromarray(blended.astype(np.uint8)).save(folder / f"generated/{j}.png")
    owners, licences = ("Ada", "Bay", "Cy", "Dee"), ("exclusive", "standard", "cc0", "")
    rows = [f"{i}.png,{owners[i % 4]},{licences[i % 4]}" for i in range(40)]
    (folder / "training/metadata.csv").write_text("\n".join(["file_name,owner,licence", *rows]))
    made = Workspace.init(
        folder / "ws",
        encoder="pixels:16",
        distance="l2@16",
        quality="none",
        candidates=20,
        quantization="none",
    )
    made.ingest([folder / "training"])
    made.value([folder / "generated"])
    made.payout(100, record="2026-Q1", temperature=0.05)
    return made


def shares(workspace: Workspace, recipe: str) -> dict[str, float]:
    found = dict(workspace.sql(recipe).fetchall())
    assert sum(found.values()) == pytest.approx(1)
    return found


def plain(workspace: Workspace) -> dict[str, float]:
    rows = workspace.sql("SELECT name, share FROM owner_shapley('owner', k := NULL, temperature := 0.05)")
    return dict(rows.fetchall())


def test_a_pool_goes_by_images(workspace: Workspace) -> None:
    credit = plain(workspace)
    assert shares(workspace, POOL) == pytest.approx({name: 0.2 / 4 + 0.8 * credit[name] for name in credit})


def test_a_cap_is_kept_and_what_is_above_it_goes_to_the_others(workspace: Workspace) -> None:
    credit, capped = plain(workspace), shares(workspace, CAP)
    assert credit["Ada"] > 0.4
    assert max(capped.values()) == pytest.approx(0.4)
    others = [name for name, share in capped.items() if share < 0.4 - 1e-9]
    assert len(others) >= 2
    ratios = [capped[name] / credit[name] for name in others]
    assert ratios == pytest.approx([ratios[0]] * len(ratios))
    assert ratios[0] > 1


def test_licences_weigh(workspace: Workspace) -> None:
    equal = shares(workspace, re.sub(r"', \d\.\d\)", "', 1.0)", LICENCES))
    weighed = shares(workspace, LICENCES)
    expected = {"Ada": 2.0, "Bay": 1.0, "Cy": 0.5, "Dee": 1.0}
    total = sum(equal[name] * expected[name] for name in equal)
    assert weighed == pytest.approx({name: equal[name] * expected[name] / total for name in equal})


def test_amounts_are_those_of_the_payout(workspace: Workspace) -> None:
    found = dict(workspace.sql(AMOUNTS).fetchall())
    assert sum(found.values()) == 1_000_000
    again = workspace.payout(10_000, temperature=0.05)
    assert {name: f"{cents // 100}.{cents % 100:02d}" for name, cents in found.items()} == {
        row["owner"]: row["amount"] for row in again
    }
