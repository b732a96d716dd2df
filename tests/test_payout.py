"""Payouts: to the cent, the budget exactly, the same for everybody who computes it."""

from __future__ import annotations

import csv
import itertools
import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gmv_qdrant import Workspace
from gmv_qdrant.accounting.payout import allocate, cents, money, payout
from gmv_qdrant.cli.main import cli
from gmv_qdrant.errors import SettingsError

values = st.lists(
    st.one_of(st.floats(0, 1e6), st.sampled_from([0.0, 1.0, 1 / 3, 2.0])), min_size=1, max_size=30
).filter(lambda v: sum(v) > 0)


@given(values, st.integers(0, 10**12), st.integers(0, 10**4))
def test_amounts_add_up_and_follow_the_values(values: list[float], budget: int, floor: int) -> None:
    try:
        amounts = allocate(values, budget, floor)
    except SettingsError:
        assert floor > 0  # nobody reaches it
        return
    assert sum(amounts) == budget
    paid = [i for i, amount in enumerate(amounts) if amount]
    assert all(amounts[i] >= floor for i in paid)
    assert all(amount == 0 for amount, value in zip(amounts, values, strict=True) if value == 0)
    order = sorted(range(len(values)), key=lambda i: values[i])
    assert all(amounts[a] <= amounts[b] + (values[a] == values[b]) for a, b in itertools.pairwise(order))
    if floor == 0:
        total = sum(map(Fraction, values))
        assert all(abs(a - Fraction(v) * budget / total) < 1 for a, v in zip(amounts, values, strict=True))


@given(values, st.integers(1, 10**8), st.integers(1, 10**6))
def test_the_floor_drops_as_few_as_it_can(values: list[float], budget: int, floor: int) -> None:
    """The definition, searched: the largest set of top values in which everybody reaches the floor."""
    exact = [Fraction(v) for v in values]
    best: list[int] = []
    for least in sorted({v for v in exact if v > 0}):
        members = [i for i, v in enumerate(exact) if v >= least]
        if least * budget >= floor * sum(exact[i] for i in members):
            best = members
            break
    try:
        amounts = allocate(values, budget, floor)
    except SettingsError:
        assert not best
        return
    assert {i for i, amount in enumerate(amounts) if amount} == set(best)


@given(values, st.integers(0, 10**9), st.randoms())
def test_the_order_of_rows_only_breaks_ties_of_equals(
    values: list[float], budget: int, random: object
) -> None:
    amounts = sorted(zip(values, allocate(values, budget), strict=True))
    shuffled = list(values)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert sorted(zip(shuffled, allocate(shuffled, budget), strict=True)) == amounts


def test_the_rest_goes_to_the_largest_remainders() -> None:
    assert allocate([1.0, 1.0, 1.0], 100) == [34, 33, 33]
    assert allocate([5.0, 3.0, 1.0], 10) == [6, 3, 1]  # 5.56, 3.33, 1.11
    assert allocate([1.0, 2.0, 3.0], 4) == [1, 1, 2]  # 0.67, 1.33, 2


def test_a_floor_shares_what_it_keeps_back() -> None:
    assert allocate([90.0, 9.0, 1.0], 10_000, 500) == [9091, 909, 0]
    assert allocate([4.0, 3.0, 3.0], 1000, 350) == [1000, 0, 0]  # equals stay or go together
    with pytest.raises(SettingsError, match="leaves nobody"):
        allocate([1.0, 1.0, 1.0], 1470, 500)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10000", 1_000_000),
        ("5.00", 500),
        ("0.01", 1),
        (12, 1200),
        (0.1, 10),
        (Decimal("1.5"), 150),
        ("1e3", 100_000),
    ],
)
def test_amounts_are_read_exactly(text: str | int | float | Decimal, expected: int) -> None:
    assert cents(text) == expected
    assert money(expected) == f"{Decimal(str(text)):.2f}"


@pytest.mark.parametrize(
    "text", ["-1", "-0.01", "0.001", "10.005", "ten", "", "nan", "inf", "1e15", "1e999999999", 0.1 + 0.2]
)
def test_other_amounts_are_refused(text: str | float) -> None:
    with pytest.raises(SettingsError, match="budget"):
        cents(text)


def test_excluded_names_leave_and_the_unnamed_stay_unless_excluded() -> None:
    credits = [("Ada", 5.0), (None, 3.0), ("Bay", 2.0), ("Cy", 0.0)]
    rows = payout("owner", credits, "100")
    assert [(row["owner"], row["amount"]) for row in rows] == [
        ("Ada", "50.00"), (None, "30.00"), ("Bay", "20.00"), ("Cy", "0.00"),
    ]  # fmt: skip
    rows = payout("owner", credits, "100", exclude=["Ada", None])
    assert [(row["owner"], row["amount"], row["share"]) for row in rows] == [
        ("Bay", "100.00", 1.0),
        ("Cy", "0.00", 0.0),
    ]
    with pytest.raises(SettingsError, match="'Adda'"):
        payout("owner", credits, "100", exclude=["Adda"])


def test_without_credit_there_is_nothing_to_pay_by() -> None:
    with pytest.raises(SettingsError, match="no credit"):
        payout("owner", [("Ada", 0.0)], "1")
    assert payout("owner", [("Ada", 0.0)], "0")[0]["amount"] == "0.00"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """38 images of three owners, two of nobody, and 12 generated ones."""
    folder = tmp_path_factory.mktemp("payout")
    random = np.random.default_rng(0)
    for name, count in (("training", 40), ("generated", 12)):
        (folder / name).mkdir()
        for i in range(count):
            Image.fromarray(random.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(
                folder / name / f"{i}.png"
            )
    owned = [f"{i}.png,{('Ada', 'Bay, Ltd', 'Çy')[i % 3]}" for i in range(38)]
    owned = [line.replace("Bay, Ltd", '"Bay, Ltd"') for line in owned]
    (folder / "training/metadata.csv").write_text("\n".join(["file_name,owner", *owned]), encoding="utf-8")
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
    return made


def gmv(workspace: Workspace, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["-w", str(workspace.path), *arguments])


def test_command_line_json_and_files_say_the_same(workspace: Workspace, tmp_path: Path) -> None:
    printed = gmv(workspace, "payout", "--budget", "10000", "--by", "owner", "--json")
    rows = json.loads(printed.stdout)
    assert sum(Decimal(row["amount"]) for row in rows) == Decimal(10000)
    assert {row["owner"] for row in rows} == {"Ada", "Bay, Ltd", "Çy", None}
    assert rows == workspace.payout("10000", by="owner")
    for name in ("pay.csv", "pay.json"):
        assert gmv(workspace, "payout", "--budget", "10000", "--out", str(tmp_path / name)).exit_code == 0
    assert json.loads((tmp_path / "pay.json").read_text()) == rows
    with (tmp_path / "pay.csv").open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    assert [(row["owner"] or None, row["amount"]) for row in read] == [
        (row["owner"], row["amount"]) for row in rows
    ]
    assert gmv(workspace, "payout", "--budget", "1", "--out", str(tmp_path / "pay.xls")).exit_code == 1


def test_command_line_excludes_and_refuses(workspace: Workspace) -> None:
    done = gmv(workspace, "payout", "--budget", "99.99", "--exclude", "Ada", "--exclude-unnamed", "--json")
    assert {row["owner"] for row in json.loads(done.stdout)} == {"Bay, Ltd", "Çy"}
    assert sum(Decimal(row["amount"]) for row in json.loads(done.stdout)) == Decimal("99.99")
    for wrong in ("-1", "1.005", "lots"):
        refused = gmv(workspace, "payout", "--budget", wrong)
        assert refused.exit_code == 1
        assert "budget" in refused.stderr
    assert gmv(workspace, "payout", "--budget", "1", "--by", "image").exit_code == 1


def test_credits_with_intervals_and_other_functions(workspace: Workspace) -> None:
    plain = json.loads(gmv(workspace, "credits", "--json").stdout)
    found = json.loads(gmv(workspace, "credits", "--interval", "95", "--json").stdout)
    assert [{k: v for k, v in row.items() if k not in ("low", "high")} for row in found] == plain
    assert all(row["low"] <= row["value"] <= row["high"] for row in found)
    for arguments in (("--function", "owner-shapley"), ("--function", "knn-shapley", "--by", "image")):
        rows = json.loads(gmv(workspace, "credits", *arguments, "--json").stdout)
        assert sum(row["value"] for row in rows) == pytest.approx(12)
    for wrong in (
        ("--function", "knn-shapley"),
        ("--function", "owner-shapley", "--by", "image"),
        ("--interval", "95", "--by", "image"),
        ("--interval", "0.95"),
        ("--interval", "100"),
    ):
        assert gmv(workspace, "credits", *wrong).exit_code == 1
