"""Payouts: to the unit, the budget exactly, the same for everybody who computes them, and recorded once."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gmv_qdrant import Workspace
from gmv_qdrant.accounting.evidence import UNIT, Evidence
from gmv_qdrant.accounting.money import Currency
from gmv_qdrant.accounting.payout import Payout, Terms, compute
from gmv_qdrant.cli.main import cli
from gmv_qdrant.errors import LedgerError, SettingsError
from gmv_qdrant.ledger.queries import ValueFunction

EUR = Currency("EUR")

# -- on evidence made up -----------------------------------------------------------------------------


class Small:
    """Evidence in plain lists: names of each image's sources, and of each generated image its matches and quality."""

    def __init__(
        self,
        names: list[list[str | None]],
        matches: list[list[tuple[int, float]]],
        quality: list[float | None] | None = None,
    ) -> None:
        self.names, self.matches = names, matches
        self.quality = quality or [None] * len(matches)

    def evidence(self, images: list[int] | None = None, generated: list[int] | None = None) -> Evidence:
        """images, generated: the order that they stand in."""
        images = images or list(range(len(self.names)))
        generated = generated or list(range(len(self.matches)))
        place = {image: row for row, image in enumerate(images)}
        sources = [
            {"image": place[image], "uri": f"{image}-{n}", "name": name, "licence": None}
            for image in images
            for n, name in enumerate(self.names[image])
        ]
        matches = [
            {"generated": row, "rank": rank, "image": place[image], "distance": distance}
            for row, one in enumerate(generated)
            for rank, (image, distance) in enumerate(self.matches[one], 1)
        ]
        texts = {"batch": pa.string(), "uri": pa.string(), "sha256": pa.string(), "quality": pa.float64()}
        of_generated = [
            {"batch": "b", "uri": f"g{j}", "sha256": f"{j:064x}", "quality": self.quality[j]}
            for j in generated
        ]
        kinds = {"image": pa.int32(), "uri": pa.string(), "name": pa.string(), "licence": pa.string()}
        numbers = {"generated": pa.int32(), "rank": pa.int32(), "image": pa.int32(), "distance": pa.float64()}
        pairs = {"image": pa.int32(), "other": pa.int32(), "distance": pa.float64()}
        return Evidence.of_tables(
            {
                "generated": pa.Table.from_pylist(of_generated, schema=pa.schema(texts)),
                "images": pa.table(
                    {"id": [f"p{i}" for i in images], "sha256": [f"{i:064x}" for i in images]}
                ),
                "sources": pa.Table.from_pylist(sources, schema=pa.schema(kinds)),
                "history": history_of(sources),
                "matches": pa.Table.from_pylist(matches, schema=pa.schema(numbers)),
                "copies": pa.Table.from_pylist([], schema=pa.schema(pairs)),
            }
        )


def history_of(sources: list[dict[str, Any]]) -> pa.Table:
    """The history of sources that never said anything else."""
    kinds = {"image": pa.int32(), "uri": pa.string(), "name": pa.string(), "licence": pa.string()}
    kinds |= {"place": pa.int32(), "current": pa.int32()}
    return pa.Table.from_pylist(
        [{**row, "place": 1, "current": 1} for row in sources], schema=pa.schema(kinds)
    )


@st.composite
def ledgers(draw: st.DrawFn, most: int = 7) -> Small:
    names = st.lists(st.sampled_from(["Ada", "Bay", "Cy", None]), min_size=1, max_size=3)
    training = draw(st.lists(names, min_size=1, max_size=most))
    scale = draw(st.sampled_from([1.0, 0.01, 700.0]))
    distance = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.25, 0.5])).map(lambda d: d * scale)
    matches = []
    for _ in range(draw(st.integers(1, 5))):
        who = draw(st.permutations(range(len(training))))[: draw(st.integers(1, len(training)))]
        matches.append(sorted(((i, draw(distance)) for i in who), key=lambda pair: (pair[1], pair[0])))
    quality = st.one_of(st.none(), st.floats(0, 1))
    return Small(training, matches, draw(st.lists(quality, min_size=len(matches), max_size=len(matches))))


functions = st.builds(
    ValueFunction,
    k=st.sampled_from([1, 2, 3, 30, None]),
    temperature=st.sampled_from([1.0, 0.1, 25.0]),
    quality_weighted=st.booleans(),
    null_distance=st.sampled_from([None, 0.3, 500.0]),
    relative=st.booleans(),
)


def holders(names: list[str | None]) -> list[str | None]:
    """Distinct names; nobody's only where nobody is named."""
    return sorted({name for name in names if name is not None}) or [None]


def by_definition(small: Small, rule: str, function: ValueFunction) -> dict[Any, float]:
    """Credit by name, by brute force; ``0`` is nobody. Owner Shapley: over all orders in which names may arrive."""
    credit: dict[Any, float] = {}
    for row, quality in zip(small.matches, small.quality, strict=True):
        q = 1.0 if quality is None or not function.quality_weighted else quality
        unit = max(max(d for _, d in row[:30]), 1e-300)
        near = [(i, min(d / unit, 1e6) if function.relative else d) for i, d in row][: function.k]
        nobody = function.null_distance
        best = min([d for _, d in near] + ([nobody] if nobody is not None else []))

        def weight(d: float, best: float = best) -> float:
            return math.exp((best - d) / function.temperature)

        parts: dict[Any, float] = {}
        if rule == "shares":
            weights = [(i, weight(d)) for i, d in near]
            total = sum(w for _, w in weights) + (weight(nobody) if nobody is not None else 0.0)
            for i, w in weights:
                for name in holders(small.names[i]):
                    parts[name] = parts.get(name, 0.0) + w / total / len(holders(small.names[i]))
            if nobody is not None:
                parts[0] = weight(nobody) / total
        else:
            worth: dict[Any, float] = {} if nobody is None else {0: weight(nobody)}
            for i, d in near:
                for name in holders(small.names[i]):
                    worth[name] = max(worth.get(name, 0.0), weight(d))
            orders = list(itertools.permutations(worth))
            for order in orders:
                so_far = 0.0
                for name in order:
                    parts[name] = parts.get(name, 0.0) + max(worth[name] - so_far, 0.0) / len(orders)
                    so_far = max(so_far, worth[name])
        for name, part in parts.items():
            credit[name] = credit.get(name, 0.0) + q * part
    return credit


def units(evidence: Evidence) -> dict[Any, int]:
    rows = evidence.rows(
        "SELECT id, name, CAST(sum(units) AS HUGEINT) AS units FROM earned LEFT JOIN names USING (id) GROUP BY ALL"
    )
    return {row["name"] if row["id"] else 0: int(row["units"]) for row in rows}


@settings(max_examples=60, deadline=None)
@given(ledgers(), functions, st.sampled_from(["owner-shapley", "shares"]))
def test_units_are_the_rules_by_definition(small: Small, function: ValueFunction, rule: str) -> None:
    evidence = small.evidence()
    evidence.earn(rule, function)
    expected = by_definition(small, rule, function)
    found = units(evidence)
    assert found.keys() == expected.keys()
    for name, credit in expected.items():
        assert found[name] / UNIT == pytest.approx(credit, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(ledgers(), functions, st.sampled_from(["owner-shapley", "shares"]), st.randoms())
def test_a_payout_knows_no_order_of_taking_in_or_valuing(
    small: Small, function: ValueFunction, rule: str, random: Any
) -> None:
    terms = Terms("owner", 100_003, EUR, rule, function)
    images, generated = list(range(len(small.names))), list(range(len(small.matches)))
    random.shuffle(images)
    random.shuffle(generated)
    try:
        one = compute(small.evidence(), terms, training_version=1)
    except SettingsError:  # no credit at all
        return
    other = compute(small.evidence(images, generated), terms, training_version=1)
    assert one.lines == other.lines
    assert sum(line.amount for line in one.lines) == 100_003
    for line in one.lines:
        assert line.low <= line.amount <= line.high <= 100_003
        due = line.brought + line.released + line.amount - line.held
        assert due == (line.paid + line.balance if line.kind != "nobody" else line.amount)
    ordered = [line for line in one.lines if line.kind == "named"]
    assert all(a.amount >= b.amount and a.units >= b.units for a, b in itertools.pairwise(ordered))


@cache
def tiny_evidence() -> Evidence:
    return Small([["Ada"]], [[(0, 0.1)]]).evidence()


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(0, 60), min_size=1, max_size=50))
def test_the_exponential_of_money_is_that_of_everybody(numbers: list[float]) -> None:
    evidence = Small([["Ada"]], [[(0, 0.1)]]).evidence()
    for row in evidence.rows(
        "SELECT x, _exp_minus(x) AS found FROM (SELECT unnest(?::DOUBLE[]) AS x)", [numbers]
    ):
        assert row["found"] == pytest.approx(math.exp(-row["x"]), rel=5e-16, abs=2**-60)


THREE = Small([["Ada"], ["Bay"], ["Cy"]], [[(0, 0.1), (1, 0.2), (2, 0.3)]])


def pay(small: Small = THREE, budget: int = 10_000, **terms: Any) -> Payout:
    previous = terms.pop("previous", None)
    function = ValueFunction(k=None, temperature=terms.pop("temperature", 0.1))
    return compute(
        small.evidence(),
        Terms("owner", budget, EUR, function=function, **terms),
        training_version=1,
        previous=previous,
    )


def test_less_than_the_minimum_is_carried_forward_until_it_is_enough() -> None:
    first = pay(minimum=1000)
    assert [(line.name, line.amount, line.paid, line.balance) for line in first.lines] == [
        ("Ada", 7935, 7935, 0),
        ("Bay", 1614, 1614, 0),
        ("Cy", 451, 0, 451),
    ]
    second = pay(minimum=1000, previous=first)
    assert second.line_of("Cy").balance == 902  # type: ignore[union-attr]
    third = pay(minimum=1000, previous=second)
    cy = third.line_of("Cy")
    assert cy is not None
    assert (cy.brought, cy.amount, cy.paid, cy.balance) == (902, 451, 1353, 0)
    gone = pay(
        Small([["Ada"]], [[(0, 0.1)]]), previous=second
    )  # her image was withdrawn: the balance is still hers
    cy = gone.line_of("Cy")
    assert cy is not None
    assert (cy.units, cy.brought, cy.amount, cy.paid) == (0, 902, 0, 902)
    with pytest.raises(SettingsError, match=r"minimum of 200\.00 is more than the whole budget of 100\.00"):
        pay(minimum=20_000)


def test_the_excluded_get_nothing_and_keep_their_balance() -> None:
    first = pay(minimum=1000)
    second = pay(previous=first, exclusions={"Cy": "a test account"})
    cy = second.line_of("Cy")
    assert cy is not None
    assert (cy.amount, cy.brought, cy.paid, cy.balance) == (0, 451, 0, 451)
    assert sum(line.amount for line in second.lines) == 10_000
    with pytest.raises(SettingsError, match=r"no owner is called 'Baye' \(did you mean 'Bay'\?\)"):
        pay(exclusions={"Baye": ""})
    with pytest.raises(SettingsError, match="without a name"):
        pay(exclusions={None: ""})
    with pytest.raises(SettingsError, match="everybody who earned credit is excluded"):
        pay(exclusions={"Ada": "", "Bay": "", "Cy": ""})


def test_without_credit_there_is_nothing_to_pay_by() -> None:
    with pytest.raises(SettingsError, match="no credit"):
        pay(Small([["Ada"]], [[(0, 0.1)]], [0.0]))
    assert pay(Small([["Ada"]], [[(0, 0.1)]], [0.0]), budget=0).lines[0].amount == 0


def test_nobody_and_the_unnamed_are_lines_that_are_not_paid() -> None:
    small = Small([["Ada"], [None]], [[(0, 0.1), (1, 0.1)]])
    function = ValueFunction(k=None, temperature=0.1, null_distance=0.1)
    found = compute(small.evidence(), Terms("owner", 300, EUR, function=function), training_version=1)
    assert [(line.kind, line.amount, line.paid, line.balance) for line in found.lines] == [
        ("named", 100, 100, 0),
        ("unnamed", 100, 0, 100),
        ("nobody", 100, 0, 0),
    ]


def test_a_copy_without_an_owner_takes_nothing() -> None:
    assert [line.amount for line in pay(Small([["Ada", None, None]], [[(0, 0.1)]])).lines] == [10_000]


def test_names_that_print_alike_are_said_and_paid_apart() -> None:
    found = pay(Small([["Jos\u00e9"], ["Jose\u0301"]], [[(0, 0.1), (1, 0.1)]]))
    assert [line.amount for line in found.lines] == [5000, 5000]
    assert "print alike and are paid apart: 'Jose\\u0301', 'Jos\\xe9'" in found.notes[0]


def test_what_several_claim_is_held_until_the_history_settles_it() -> None:
    disputed = Small([["Ada", "Eve"], ["Bay"], ["Ada"]], [[(0, 0.1), (1, 0.2)], [(2, 0.1), (1, 0.4)]])
    plain, held = pay(disputed), pay(disputed, hold=True)
    assert [line.amount for line in plain.lines] == [line.amount for line in held.lines]
    ada, eve, bay = (held.line_of(name) for name in ("Ada", "Eve", "Bay"))
    assert ada is not None
    assert eve is not None
    assert bay is not None
    assert 0 < ada.held < ada.amount  # her other image is hers alone
    assert (ada.paid, ada.balance) == (ada.amount - ada.held, 0)
    assert (eve.held, eve.paid) == (eve.amount, 0)
    assert bay.held == 0
    assert [(hold.name, hold.amount) for hold in held.holds] == [("Ada", ada.held), ("Eve", eve.held)]

    still = pay(disputed, previous=held)
    assert still.holds == held.holds
    settled = Small([["Ada"], ["Bay"], ["Ada"]], disputed.matches)
    after = pay(settled, previous=held, hold=True)
    ada = after.line_of("Ada")
    assert ada is not None
    assert ada.released == sum(hold.amount for hold in held.holds)
    assert ada.paid == ada.amount + ada.released
    assert after.holds == ()
    assert after.line_of("Eve") is None

    given_back = pay(disputed, previous=held, release=True)
    assert given_back.holds == ()
    assert [given_back.line_of(n).released for n in ("Ada", "Eve")] == [  # type: ignore[union-attr]
        hold.amount for hold in held.holds
    ]


def test_near_copies_are_one_claim() -> None:
    evidence = Small([["Ada"], ["Eve"], ["Eve"]], [[(0, 0.1), (1, 0.11), (2, 0.5)]]).evidence()
    evidence._con.execute("INSERT INTO copies VALUES (0, 1, 0.001), (1, 2, 0.001)")
    from gmv_qdrant.accounting.claims import find_claims

    assert [(claim.images, claim.names) for claim in find_claims(evidence)] == [
        (("p0", "p1"), ("Ada", "Eve"))
    ]


@settings(max_examples=40, deadline=None)
@given(ledgers(), st.data())
def test_an_owners_near_copies_count_as_one_picture(small: Small, data: st.DataObject) -> None:
    """None of them is nearer than the farthest that it is nearly the same as; those of others don't matter."""
    n = len(small.names)
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    chosen = data.draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    evidence = small.evidence()
    for i, j in chosen:
        evidence._con.execute("INSERT INTO copies VALUES (?, ?, 0.01)", [i, j])
    function = ValueFunction(k=None, temperature=0.1)
    evidence.earn("owner-shapley", function)
    found = {name: credit / UNIT for name, credit in units(evidence).items()}

    near = {i: {j for pair in chosen if i in pair for j in pair} | {i} for i in range(n)}
    expected: dict[Any, float] = {}
    for row, quality in zip(small.matches, small.quality, strict=True):
        distances = dict(row)
        nearest: dict[Any, float] = {}
        for i, d in row:
            for name in holders(small.names[i]):
                mine = [distances[j] for j in near[i] if j in distances and name in holders(small.names[j])]
                nearest[name] = min(nearest.get(name, math.inf), max(d, *mine))
        places = {name: at for at, name in enumerate(nearest)}
        alone = Small(
            [[name] for name in nearest], [sorted((places[m], d) for m, d in nearest.items())], [quality]
        )
        alone.matches[0].sort(key=lambda pair: pair[1])
        for name, part in by_definition(alone, "owner-shapley", function).items():
            expected[name] = expected.get(name, 0.0) + part
    assert found == pytest.approx({name: expected.get(name, 0.0) for name in found}, abs=1e-12)


@pytest.mark.parametrize("metric", ["euclid", "sqeuclid", "cosine"])
@pytest.mark.parametrize("dim", [48, 300])
def test_near_copies_are_found_as_by_brute_force(metric: Any, dim: int) -> None:
    from gmv_qdrant.accounting.near_copies import NEAR, find
    from gmv_qdrant.method import distances

    random = np.random.default_rng(dim)
    vectors = random.normal(size=(60, dim)).astype(np.float32) * 7
    vectors[40:] = vectors[:20] + random.normal(size=(20, dim)) * np.linspace(0, 4, 20)[:, None]
    lists = [random.permutation(60)[:45] for _ in range(6)]
    known = random.permutation(np.unique(np.concatenate(lists)))

    def read(keys: np.ndarray) -> np.ndarray:
        return vectors[keys - 100]

    found = find(read, metric, known + 100, np.repeat(np.arange(6), 45), np.concatenate(lists) + 100)
    far = sorted(
        distances(metric, vectors[i], vectors[[j]])[0]
        for i, j in zip(known, np.roll(known, -1), strict=False)
    )
    unit = far[(len(far) - 1) // 2]
    expected = {}
    for one in lists:
        for i in one:
            for j, d in zip(one, distances(metric, vectors[i], vectors[one]), strict=False):
                if i < j and d <= NEAR * unit:
                    expected[100 + i, 100 + j] = d / unit
    assert 3 < len(expected) < 20
    rows = {(row["image"], row["other"]): row["distance"] for row in found.to_pylist()}
    assert rows == pytest.approx(expected, rel=1e-3, abs=1e-6)


# -- on a workspace ----------------------------------------------------------------------------------


def paint(folder: Path, count: int, seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for i in range(count):
        pixels = random.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """38 images of three owners, two of nobody, and 12 generated ones in the batch ``first``."""
    folder = tmp_path_factory.mktemp("payout")
    paint(folder / "training", 40, 0)
    paint(folder / "generated", 12, 1)
    names = ("Ada", '"Bay, Ltd"', "Çy")
    owned = [f"{i}.png,{names[i % 3]}" for i in range(38)]
    (folder / "training/metadata.csv").write_text("\n".join(["file_name,owner", *owned]), encoding="utf-8")
    workspace = Workspace.init(
        folder / "ws",
        encoder="pixels:16",
        distance="l2@16",
        quality="none",
        candidates=20,
        quantization="none",
    )
    workspace.ingest([folder / "training"])
    workspace.value([folder / "generated"], batch="first")
    return folder


@pytest.fixture
def workspace(made: Path, tmp_path: Path) -> Workspace:
    """A copy to record in."""
    shutil.copytree(made / "ws", tmp_path / "ws")
    return Workspace(tmp_path / "ws")


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


def test_values_are_those_of_credits(workspace: Workspace) -> None:
    for rule, k in (("owner-shapley", None), ("shares", 30)):
        credits = {row[0]: row[1] for row in workspace.credits("owner", rule=rule, k=k).fetchall()}
        paid = {row["owner"]: row["value"] for row in workspace.payout(1, rule=rule)}
        assert paid == pytest.approx(credits, abs=1e-12)


def test_the_standing_value_function_is_said_and_options_change_it_for_once(workspace: Workspace) -> None:
    said = gmv(workspace, "payout", "--budget", "1").stderr
    assert (
        "rule owner-shapley over all candidates, temperature 1 (the paper's; 'gmv-qdrant calibrate'" in said
    )
    assert "owners, effectively" in said
    workspace.calibrate(probes=40)
    said = gmv(workspace, "payout", "--budget", "1").stderr
    assert "(calibration default@1)" in said
    with (workspace.path / "gmv.toml").open("a") as file:
        file.write(
            '\n[value]\nrule = "shares"\ntemperature = 0.5\n[payout]\ncurrency = "KWD"\nminimum = "0.100"\n'
        )
    done = gmv(workspace, "payout", "--budget", "10", "--json")
    assert "rule shares over the 30 nearest, temperature 0.5, weighted" in done.stderr
    assert {len(row["amount"].partition(".")[2]) for row in json.loads(done.stdout)} == {3}
    said = gmv(workspace, "payout", "--budget", "10", "--calibration", "default@1", "-k", "5").stderr
    assert "rule shares over the 5 nearest" in said
    assert "(calibration default@1)" in said
    refused = gmv(workspace, "payout", "--budget", "10", "--calibration", "default@2")
    assert "did you mean 'default@1'" in refused.stderr


def test_command_line_excludes_and_refuses(workspace: Workspace) -> None:
    done = gmv(workspace, "payout", "--budget", "99.99", "--exclude", "Ada", "--exclude-unnamed", "--json")
    assert {row["owner"] for row in json.loads(done.stdout)} == {"Bay, Ltd", "Çy"}
    assert sum(Decimal(row["amount"]) for row in json.loads(done.stdout)) == Decimal("99.99")
    for wrong in ("-1", "1.005", "lots", "10.000", "10,000", "1e-99999999"):
        refused = gmv(workspace, "payout", f"--budget={wrong}")
        assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
        assert "budget" in refused.stderr
    for wrong, words in (
        (("--by", "image"), "not to images"),
        (("--by", "camera"), "no training image has the attribute 'camera'"),
        (("--batch", "frist"), r"'frist' (did you mean 'first'?) (there are: 'first')"),
        (("--currency", "EURO"), "ISO 4217"),
        (("--exclude", "Adda"), "did you mean 'Ada'"),
        (("--minimum", "2000"), "more than the whole budget"),
    ):
        refused = gmv(workspace, "payout", "--budget", "100", *wrong)
        assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1), refused.stderr
        assert words in refused.stderr
    assert gmv(workspace, "payout").exit_code == 2


def test_a_recorded_payout_is_listed_shown_exported_and_verified(
    workspace: Workspace, tmp_path: Path
) -> None:
    preview = workspace.payout("10000", currency="JPY")
    done = gmv(workspace, "payout", "--budget", "10000", "--currency", "JPY", "--record", "2026q1", "--json")
    assert json.loads(done.stdout) == preview
    (row,) = json.loads(gmv(workspace, "payout", "list", "--json").stdout)
    assert (row["payout"], row["first_day"], row["last_day"]) == ("2026-Q1", "2026-01-01", "2026-03-31")
    assert (row["batches"], row["currency"], row["budget"]) == (["first"], "JPY", "10000")
    shown = json.loads(gmv(workspace, "payout", "show", "2026-Q1", "--json").stdout)
    assert shown["fingerprint"] == row["fingerprint"]
    assert sum(line["amount"] for line in shown["lines"]) == 10_000
    assert "fingerprint " + row["fingerprint"] in gmv(workspace, "payout", "show", "2026-Q1").stderr
    assert gmv(workspace, "payout", "export", "2026-Q1", str(tmp_path / "out")).exit_code == 0
    assert (tmp_path / "out/payout.json").read_bytes() == workspace.payout_record("2026-Q1").payout.document()
    assert gmv(workspace, "payout", "export", "2026-Q1", str(tmp_path / "out")).exit_code == 1
    assert "did you mean '2026-Q1'" in gmv(workspace, "payout", "show", "2026-Q2").stderr
    verified = gmv(workspace, "verify", "--json")
    assert (verified.exit_code, json.loads(verified.stdout)) == (0, [])


def test_a_payout_is_recorded_once(workspace: Workspace) -> None:
    workspace.payout(100, record="2026-Q1")
    for period in ("2026-Q1", "2026-02", "2026"):
        with pytest.raises(
            SettingsError, match=r"12 of these 12 generated images were paid by before, in 2026-Q1"
        ):
            workspace.payout(100, record=period)
    again = workspace.payout(100, record="2026-02", allow_overlap=True)
    assert again.payout.payout_id == "2026-02"
    assert workspace.payout(100, record="2026-Q1", allow_overlap=True).payout.payout_id == "2026-Q1.2"
    later = workspace.payout(100, record="2026-Q2")
    assert any("were paid by before, in 2026-Q1" in note for note in later.payout.notes)
    assert later.payout.previous == workspace.payout_record("2026-Q1.2").payout.fingerprint
    with pytest.raises(SettingsError, match="say why 'Ada' is excluded"):
        workspace.payout(100, record="2027", exclude=["Ada"])
    kept = workspace.payout(100, record="2027", exclude={"Ada": "left"}).payout
    assert kept.terms.exclusions == {"Ada": "left"}
    assert [row["payout"] for row in workspace.payouts()] == [
        "2026-Q1",
        "2026-02",
        "2026-Q1.2",
        "2026-Q2",
        "2027",
    ]
    assert workspace.verify() == []


def test_changed_evidence_is_said_and_the_payout_stands(workspace: Workspace, made: Path) -> None:
    recorded = workspace.payout(100, record="2026-Q1")
    paint(made / "more", 3, 9)
    workspace.ingest([made / "more"], owner="Dee", update=False)
    with pytest.raises(LedgerError, match="gmv-qdrant update"):
        workspace.payout(100, record="2026-Q2")
    workspace.update()
    notes = workspace.payout(100).payout.notes
    assert any("evidence of the payout 2026-Q1 has changed since it was recorded" in note for note in notes)
    (found,) = workspace.verify()
    assert not found.wrong
    assert "ingest, update" in str(found)
    assert workspace.payout_record("2026-Q1") == recorded
    assert gmv(workspace, "verify").exit_code == 0


def test_an_erasure_leaves_accounts(workspace: Workspace) -> None:
    recorded = workspace.payout(100, record="2026-Q1")
    workspace.withdraw(owner="Ada")
    workspace.erase()
    assert workspace.payout_record("2026-Q1") == recorded
    assert [found.wrong for found in workspace.verify()] == [False]


def test_an_attribute_may_be_called_like_a_column(tmp_path: Path) -> None:
    paint(tmp_path / "training", 6, 0)
    rows = [f"{i}.png,{'xy'[i % 2]},a{i % 2}" for i in range(6)]
    (tmp_path / "training/metadata.csv").write_text("\n".join(["file_name,value,amount", *rows]))
    paint(tmp_path / "generated", 2, 1)
    workspace = Workspace.init(
        tmp_path / "ws",
        encoder="pixels:16",
        distance="l2@16",
        quality="none",
        candidates=5,
        quantization="none",
    )
    with pytest.raises(LedgerError, match="no generated image was valued yet"):
        workspace.payout(1)
    workspace.ingest([tmp_path / "training"])
    workspace.value([tmp_path / "generated"])
    assert {row["name"] for row in workspace.payout(100, by="value")} == {"x", "y"}
    assert sum(Decimal(row["amount"]) for row in workspace.payout(100, by="amount")) == 100


@pytest.mark.parametrize("zone", ["PST", "IST", "Pacific/Kiritimati", "GMT+5"])
def test_no_zone_or_locale_is_in_anything_that_is_money(workspace: Workspace, zone: str) -> None:
    code = (
        "import sys; from gmv_qdrant import Workspace; "
        "sys.stdout.write(Workspace(sys.argv[1]).payout(100, exclude={'Ada': 'x'}).payout.fingerprint)"
    )
    environment = {**os.environ, "TZ": zone, "LC_ALL": "C", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(workspace.path)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.stdout == workspace.payout(100, exclude={"Ada": "x"}).payout.fingerprint, done.stderr


def test_recording_that_was_stopped_is_said_and_can_be_done_again(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gmv_qdrant.accounting import accounts

    def stop(*_: Any) -> None:
        raise LedgerError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(accounts, "write_record", stop)
        with pytest.raises(LedgerError, match="stopped"):
            workspace.payout(100, record="2026-Q1")
    (found,) = workspace.verify()
    assert "recording it was stopped" in str(found)
    workspace.payout(100, record="2026-Q1")
    assert workspace.verify() == []
