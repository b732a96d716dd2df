"""`evaluate` and `import-scores` on the command line: figures, tables, plots, sentences for what can't be judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from gmv_qdrant import Workspace
from gmv_qdrant.cli.main import cli
from gmv_qdrant.evaluation.evaluate import CRITERIA


def run(workspace: Path, *arguments: object) -> Result:
    return CliRunner().invoke(cli, ["-w", str(workspace), *map(str, arguments)])


def gmv(workspace: Path, *arguments: object) -> Any:
    done = run(workspace, *arguments, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def shapes(random: np.random.Generator, label: int) -> np.ndarray:
    """A bar at a place that the label decides, on noise."""
    image = random.normal(60, 12, (20, 20))
    image[3 + 4 * label : 6 + 4 * label] += 120
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 training images of 4 labels, 20 of noise that are marked so; 24 images made from the first of each label."""
    root = tmp_path_factory.mktemp("evaluate")
    random = np.random.default_rng(0)
    images = [shapes(random, i % 4) for i in range(80)]
    images += [random.integers(0, 256, (20, 20), dtype=np.uint8) for _ in range(20)]
    oracle.write_png(np.stack(images), root / "training", "t-")
    rows = [f"t-{i:05d}.png,{i % 4},{int(i >= 80)},{int(i < 40)},{i % 2}" for i in range(100)]
    header = "file_name,label,corrupted,trained,striped"
    (root / "training/metadata.csv").write_text("\n".join([header, *rows]) + "\n")
    made = [np.clip(images[j] + random.normal(0, 4, (20, 20)), 0, 255).astype(np.uint8) for j in range(24)]
    oracle.write_png(np.stack(made), root / "made", "g-")
    rows = [f"g-{j:05d}.png,{j % 4},{j % 2},t-{j:05d}.png" for j in range(24)]
    (root / "made/metadata.csv").write_text("\n".join(["file_name,label,striped,parent", *rows]) + "\n")
    workspace = Workspace.init(
        root / "ws", encoder="pixels:16", distance="l2@16", quality="piqe", candidates=40, quantization="none"
    )
    workspace.ingest([root / "training"])
    workspace.value([root / "made"])
    workspace.calibrate(probes=40, null_distance=True)
    return root / "ws"


ARGUMENTS: dict[str, tuple[object, ...]] = {
    "identical-class": ("-k", 5, "-k", 10),
    "attributes": ("striped", "label", "--combined"),
    "ood": ("--attribute", "corrupted"),
    "membership": ("--attribute", "trained", "--temperature", 0.01),
    "sensitivity": ("-m", 1, "-m", 10, "-k", 10),
    "quality-weighting": ("--attribute", "corrupted=1"),
    "efficiency": (),
    "known-parents": ("--calibration", "default"),
}


def test_every_criterion_has_a_command() -> None:
    assert ARGUMENTS.keys() | {"counterfactual"} == CRITERIA.keys()


@pytest.mark.parametrize("criterion", ARGUMENTS)
def test_tables_json_and_plots(workspace: Path, tmp_path: Path, criterion: str) -> None:
    figures = gmv(workspace, "evaluate", criterion, *ARGUMENTS[criterion], "--plot", tmp_path / "plot.svg")
    assert figures["criterion"] == criterion
    assert figures["workspace"]["encoder"] == "pixels:16"
    assert (tmp_path / "plot.svg").read_text().rstrip().endswith("</svg>")
    table = run(workspace, "evaluate", criterion, *ARGUMENTS[criterion])
    assert table.exit_code == 0, table.output
    for column in figures["rows"][0]:
        assert column.split("_")[0] in table.stdout


def test_what_the_figures_say(workspace: Path) -> None:
    rho = gmv(workspace, "evaluate", "identical-class", "-k", 10)["rows"][0]
    assert rho["rho"] == pytest.approx(1.0)
    assert rho["chance"] == pytest.approx(0.25)
    ood = gmv(workspace, "evaluate", "ood", "--attribute", "corrupted", "-k", 40)["rows"]
    assert [row["score"] for row in ood][:2] == ["value", "nearest"]
    assert ood[1]["auroc"] > 0.95
    membership = gmv(
        workspace, "evaluate", "membership", "--attribute", "trained", "--calibration", "default"
    )
    assert membership["test"]["p"] < 0.01
    paper, _, calibrated = gmv(workspace, "evaluate", "known-parents", "--calibration", "default")["rows"]
    assert paper["first_rate"] == calibrated["first_rate"] == 1.0
    assert calibrated["parent_share"] > 4 * paper["parent_share"]


def test_groups_from_files(workspace: Path, tmp_path: Path) -> None:
    trained, held_out = tmp_path / "trained.txt", tmp_path / "held-out.txt"
    trained.write_text("\n".join(f"t-{i:05d}.png" for i in range(40)) + "\n")
    held_out.write_text("\n".join(f"t-{i:05d}.png" for i in range(40, 80)) + "\n\n")
    found = gmv(workspace, "evaluate", "membership", "--ids", trained, "--held-out", held_out)
    assert [row["images"] for row in found["rows"]] == [40, 40]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("ood",), 2, "Say which training images are meant"),
        (("ood", "--attribute", "rotten"), 1, "no training image has the attribute 'rotten'"),
        (("identical-class", "-k", 41), 1, "40 candidates only"),
        (("identical-class", "--batch", "none"), 1, "batch 'none'"),
        (("attributes", "hat"), 1, "'hat'"),
        (("sensitivity", "-m", 25), 1, "m = 25 can't be drawn"),
        (("known-parents", "--calibration", "x"), 1, "no calibration 'x'"),
        (("identical-class", "-k", 5, "--plot", "plot.xyz"), 1, "can't be written"),
        (("attributes",), 2, "NAMES"),
        (("beauty",), 2, "No such command"),
    ],
)
def test_what_cant_be_judged_is_a_sentence(
    workspace: Path, arguments: tuple[object, ...], code: int, words: str
) -> None:
    done = run(workspace, "evaluate", *arguments)
    assert done.exit_code == code, done.output
    assert words in " ".join(done.output.split())
    assert "Traceback" not in done.output


def test_other_methods_beside_ours(workspace: Path, tmp_path: Path) -> None:
    rows = [
        (f"g-{j:05d}.png", f"t-{i:05d}.png", 1.0 + (i == j))
        for j in range(24)
        for i in range(0, 100, 1 + (j > 99))
    ]
    columns = zip(("generated", "training", "score"), map(list, zip(*rows, strict=True)), strict=True)
    pq.write_table(pa.table(dict(columns)), tmp_path / "scores.parquet")
    options = ("--into", tmp_path / "theirs", "--method", "toy", "--top-k", 50, "--batch", "toy")
    made = gmv(workspace, "import-scores", tmp_path / "scores.parquet", *options)
    assert (made["generated_images"], made["matches"], made["dropped"]) == (24, 1200, 1200)
    ours = gmv(workspace, "evaluate", "known-parents")["rows"][0]
    theirs = gmv(tmp_path / "theirs", "evaluate", "known-parents", "--batch", "toy")["rows"][0]
    assert theirs["first_rate"] == ours["first_rate"] == 1.0
    assert theirs["parent_share"] == pytest.approx(
        2 / 51
    )  # in proportion to the scores, however many there are
    credits = gmv(tmp_path / "theirs", "credits", "--by", "label", "--no-quality")
    assert sum(row["value"] for row in credits) == pytest.approx(24)
    refused = run(tmp_path / "theirs", "value", workspace.parent / "made")
    assert refused.exit_code == 1
    assert "imported from 'toy'" in " ".join(refused.output.split())
