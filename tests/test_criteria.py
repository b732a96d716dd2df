"""Criteria on ledgers made by hand, where the answer is known: perfect, random, all ties."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import oracle
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from gmv_qdrant.errors import FingerprintMismatch, LedgerError, SettingsError, SourceError
from gmv_qdrant.evaluation import evidence
from gmv_qdrant.evaluation.criteria import efficiency, sensitivity
from gmv_qdrant.evaluation.evaluate import CRITERIA, evaluate
from gmv_qdrant.evaluation.parents import parents_of
from gmv_qdrant.evaluation.plots import plot
from gmv_qdrant.evaluation.statistics import detection
from gmv_qdrant.ledger.database import Ledger, insert
from gmv_qdrant.ledger.queries import ValueFunction
from gmv_qdrant.ledger.selection import Selection
from gmv_qdrant.workspace import Workspace

PAPER = ValueFunction()


def make(
    path: Path,
    distances: np.ndarray,
    *,
    training: list[dict[str, Any]],
    generated: list[dict[str, Any]],
    candidates: int,
    quality: np.ndarray | None = None,
) -> Ledger:
    """A ledger whose evidence is these ``(m, n)`` distances; ``label`` is taken out of the attributes."""
    ledger = Ledger.create(path / "ledger.duckdb")
    m, n = distances.shape
    order = np.argsort(distances, axis=1, kind="stable")[:, :candidates]
    with ledger.write() as con:
        ledger.set_meta(
            con, training_version=1, settings={"encoder": "pixels:8", "distance": "l2@8", "quality": "none"}
        )
        ids = [f"t{i:05d}" for i in range(n)]
        labels = pa.array([row.get("label") for row in training], pa.string())
        attributes = [json.dumps({k: v for k, v in row.items() if k != "label"}) for row in training]
        insert(con, "training", {"training_key": range(n), "point_id": ids, "content_hash": [f"hash-{i}" for i in ids],
                                 "version_added": [1] * n})  # fmt: skip
        insert(con, "sources", {"training_key": range(n), "uri": [f"/data/{i}.png" for i in ids], "label": labels,
                                "attributes": attributes})  # fmt: skip
        insert(con, "generated", {
            "generated_key": range(m), "point_id": [f"g{j}" for j in range(m)],
            "content_hash": [f"made-{j}" for j in range(m)], "uri": [f"/made/{j}.png" for j in range(m)],
            "batch": [row.pop("batch", "default") for row in generated],
            "label": pa.array([row.get("label") for row in generated], pa.string()),
            "quality": pa.array(quality, pa.float64()) if quality is not None else pa.nulls(m, pa.float64()),
            "version_valued": [1] * m,
            "attributes": [json.dumps({k: v for k, v in row.items() if k != "label"}) for row in generated],
        })  # fmt: skip
        insert(con, "matches", {
            "generated_key": np.repeat(np.arange(m), candidates), "training_key": order.ravel(),
            "rank": np.tile(np.arange(1, candidates + 1), m),
            "distance": np.take_along_axis(distances, order, axis=1).ravel(),
        })  # fmt: skip
    return ledger


def labelled(count: int, classes: int) -> list[dict[str, Any]]:
    return [{"label": str(i % classes)} for i in range(count)]


@pytest.fixture
def noise() -> Callable[[int, int], np.ndarray]:
    random = np.random.default_rng(0)
    return lambda m, n: random.uniform(0.3, 0.4, (m, n))


# -- C1 and C2 ---------------------------------------------------------------------------------------


def test_identical_class_perfect_random_and_never(tmp_path: Path, noise: Callable[..., np.ndarray]) -> None:
    same = np.arange(40)[:, None] % 5 == np.arange(500)[None, :] % 5
    expected = {"perfect": 1.0, "never": 0.0}
    for name, shift in (("perfect", -0.2), ("never", 0.2), ("random", 0.0)):
        (tmp_path / name).mkdir()
        ledger = make(tmp_path / name, noise(40, 500) + shift * same, training=labelled(500, 5),
                      generated=labelled(40, 5), candidates=60)  # fmt: skip
        rows = evaluate(ledger, "identical-class", PAPER, ks=(10, 30))["rows"]
        assert [row["k"] for row in rows] == [10, 30]
        assert all(row["chance"] == pytest.approx(0.2) for row in rows)
        for row in rows:
            if name in expected:
                assert (row["rho"], row["standard_error"]) == (expected[name], 0.0)
            else:
                assert abs(row["rho"] - 0.2) < 4 * row["standard_error"]
                assert row["low"] < row["rho"] < row["high"]


def test_identical_class_counts_like_a_loop(tmp_path: Path, noise: Callable[..., np.ndarray]) -> None:
    distances = noise(12, 80)
    training, generated = labelled(80, 3), labelled(12, 4)
    generated[5].pop("label")
    training[7].pop("label")
    own, theirs = [row.get("label") for row in generated], [row.get("label") for row in training]
    ledger = make(tmp_path, distances, training=training, generated=generated, candidates=20)
    found = evaluate(ledger, "identical-class", PAPER, ks=(7,))
    rates = [
        np.mean([theirs[i] == own[j] for i in np.argsort(distances[j])[:7]])
        for j in range(12) if own[j] is not None
    ]  # fmt: skip
    assert found["rows"][0]["rho"] == pytest.approx(np.mean(rates))
    assert found["rows"][0]["standard_error"] == pytest.approx(stats.sem(rates))
    assert (found["rows"][0]["images"], found["left_out"]) == (11, 1)
    by_value = {row["value"]: row for row in found["by_value"]}
    assert by_value["3"]["rho_7"] == by_value["3"]["chance"] == 0.0  # no training image has this label


def test_an_image_with_two_labels_agrees_by_either(tmp_path: Path, noise: Callable[..., np.ndarray]) -> None:
    ledger = make(tmp_path, noise(4, 30), training=labelled(30, 3), generated=labelled(4, 3), candidates=20)
    before = evaluate(ledger, "identical-class", PAPER, ks=(20,))["rows"][0]
    with ledger.write() as con:
        con.execute(
            "INSERT INTO sources (training_key, uri, label) SELECT training_key, 'copy', '0' FROM training"
        )
    after = evaluate(ledger, "identical-class", PAPER, ks=(20,))
    by_value = {row["value"]: row for row in after["by_value"]}
    assert by_value["0"]["rho_20"] == by_value["0"]["chance"] == 1.0  # every image has this label, too
    assert by_value["1"]["chance"] == pytest.approx(before["chance"])


def test_the_standard_error_of_c3_has_both_sides(tmp_path: Path) -> None:
    """Other generated images move the AUROC, too: the error is larger than that of the training side alone."""
    random = np.random.default_rng(5)
    bad = np.arange(60) < 20
    taste = random.normal(0, 0.1, (40, 1)) * np.where(bad, 1, -1)  # each generated image prefers a side
    ledger = make(
        tmp_path, np.abs(1 + taste + random.normal(0, 0.2, (40, 60))), candidates=60,
        training=[{"corrupted": str(int(b))} for b in bad], generated=labelled(40, 1),
    )  # fmt: skip
    found = evaluate(ledger, "ood", ValueFunction(k=20), group=Selection(attribute="corrupted"))["rows"][0]
    values = evidence.values(ledger, ValueFunction(k=20)).value
    assert found["standard_error"] > 1.1 * (detection(-values, bad).standard_error or 0)


def test_the_spread_of_draws_is_that_of_all_subsets() -> None:
    rates = np.random.default_rng(0).random(6)
    every = [np.mean(rates[list(some)]) for some in combinations(range(6), 4)]
    found = sensitivity(rates, [4], repeats=2, seed=0)["rows"][0]
    assert found["expected_spread"] == pytest.approx(np.std(every))


def test_efficiency_is_never_negative() -> None:
    """Phases overlap: networks work on one chunk while another is written."""
    timings = json.dumps({"networks": 8.0, "write": 5.0, "total": 10.0})
    rows = efficiency([{"verb": "value", "counts": '{"valued": 4}', "timings": timings}])["rows"]
    assert min(row["seconds"] for row in rows) == 0.0


def test_identical_class_says_what_is_missing(tmp_path: Path, noise: Callable[..., np.ndarray]) -> None:
    ledger = make(tmp_path, noise(3, 30), training=labelled(30, 3), generated=[{}, {}, {}], candidates=20)
    with pytest.raises(SettingsError, match="none of the 3 generated images has 'label'"):
        evaluate(ledger, "identical-class", PAPER)
    with pytest.raises(SettingsError, match="of the batch 'other'"):
        evaluate(ledger, "identical-class", ValueFunction(batch="other"))
    with pytest.raises(SettingsError, match="no criterion"):
        evaluate(ledger, "beauty", PAPER)


def test_more_contributors_than_candidates_is_an_error(
    tmp_path: Path, noise: Callable[..., np.ndarray]
) -> None:
    ledger = make(tmp_path, noise(3, 30), training=labelled(30, 3), generated=labelled(3, 3), candidates=20)
    with pytest.raises(SettingsError, match="20 candidates only"):
        evaluate(ledger, "identical-class", PAPER, ks=(21,))


def test_attributes_alone_and_together(tmp_path: Path, noise: Callable[..., np.ndarray]) -> None:
    """Contributors always share the hat, never the glasses; the third attribute is the same everywhere."""
    training = [{"hat": str(i % 2), "glasses": str(i // 2 % 2), "face": "yes"} for i in range(200)]
    generated = [{"hat": str(j % 2), "glasses": str(j // 2 % 2), "face": "yes"} for j in range(20)]
    hat = np.arange(20)[:, None] % 2 == np.arange(200)[None, :] % 2
    glasses = np.arange(20)[:, None] // 2 % 2 == np.arange(200)[None, :] // 2 % 2
    ledger = make(tmp_path, noise(20, 200) - 0.2 * (hat & ~glasses), training=training, generated=generated,
                  candidates=30)  # fmt: skip
    found = evaluate(ledger, "attributes", PAPER, names=("hat", "glasses", "face"), combined=True, ks=(5,))
    rho = {row["attribute"]: (row["rho"], row["chance"]) for row in found["rows"]}
    assert rho == {
        "hat": (1.0, 0.5), "glasses": (0.0, 0.5), "face": (1.0, 1.0), "hat & glasses": (0.0, 0.25),
        "hat & face": (1.0, 0.5), "glasses & face": (0.0, 0.5), "hat & glasses & face": (0.0, 0.25),
    }  # fmt: skip


# -- C3 ----------------------------------------------------------------------------------------------


def test_ood_perfect_random_and_ties(tmp_path: Path, noise: Callable[..., np.ndarray]) -> None:
    bad = np.arange(100) >= 90
    training = [{"corrupted": "1" if each else "0"} for each in bad]
    group = Selection(attribute="corrupted")
    answers = {}
    for name, shift in (("far", 1.0), ("near", -0.2), ("random", 0.0)):
        (tmp_path / name).mkdir()
        ledger = make(tmp_path / name, noise(50, 100) + shift * bad, training=training, generated=labelled(50, 1),
                      candidates=100)  # fmt: skip
        answers[name] = evaluate(ledger, "ood", ValueFunction(k=20), group=group)
    value, nearest, among = answers["far"]["rows"]
    assert value["auroc"] == nearest["auroc"] == among["auroc"] == 1.0
    assert set(answers["far"]["value_ranks"]) == {95.5}  # the last ten places, shared
    assert (value["corrupted_with_score"], value["clean_with_score"]) == (0.0, 1.0)
    assert answers["near"]["rows"][0]["auroc"] == 0.0
    assert answers["near"]["rows"][0]["mean_percentile"] == pytest.approx(0.05)
    random = answers["random"]["rows"][0]
    assert abs(random["auroc"] - 0.5) < 4 * random["standard_error"]


def test_ood_with_most_values_zero_says_that_it_is_vacuous(
    tmp_path: Path, noise: Callable[..., np.ndarray]
) -> None:
    """One generated image, 5 contributors of 1,000: the corrupted have value 0, and so have nearly all."""
    bad = np.arange(1000) < 20
    distances = noise(1, 1000) + 0.5 * bad
    ledger = make(tmp_path, distances, training=[{"corrupted": str(int(b))} for b in bad], generated=[{}],
                  candidates=10)  # fmt: skip
    found = evaluate(ledger, "ood", ValueFunction(k=5), group=Selection(attribute="corrupted=1"))
    value = found["rows"][0]
    assert value["auroc"] == pytest.approx(0.5 + 0.5 * 5 / 980)
    assert value["tied_pairs"] == pytest.approx(975 / 980)
    assert found["nothing_to_see"] is True
    assert len(found["rows"]) == 2  # none of them was recalled, so there is no row among the recalled
    assert found["rows"][1]["corrupted_with_score"] == 0.0


def test_groups_by_attribute_pattern_and_ids(tmp_path: Path, noise: Callable[..., np.ndarray]) -> None:
    odd = 'it\'s "odd"/~'
    training = [
        {"kind": "noise" if i < 3 else "clean", "bad": i < 3, odd: "no" if i > 2 else "Yes"}
        for i in range(30)
    ]
    ledger = make(tmp_path, noise(2, 30), training=training, generated=[{}, {}], candidates=10)
    keys = evidence.values(ledger, PAPER).keys
    for group in (
        Selection(attribute="kind=noise"),
        Selection(attribute="bad"),
        Selection(attribute=odd),
        Selection(attribute=f"{odd}=Yes"),
        Selection(ids=("t00000.png", "data/t00001.png", "t00002")),
        Selection(ids=("hash-t00000", "/data/t00001.png", "/data/t00002.png")),
    ):
        assert np.flatnonzero(evidence.members(ledger, keys, group)).tolist() == [0, 1, 2], group
    for group, words in (
        (Selection(attribute="kind"), "its values are 'clean', 'noise': give kind=VALUE"),
        (Selection(attribute="nothing"), "no training image has the attribute"),
        (Selection(attribute="it's"), "no training image has the attribute"),
        (Selection(uri="/elsewhere/*"), "no training image has uri"),
        (Selection(ids=("t00000.png", "no.png", "neither.png")), "called 'no.png', nor are 1 others"),
    ):
        with pytest.raises(SettingsError, match=words):
            evidence.members(ledger, keys, group)
    with pytest.raises(SettingsError, match="exactly one of"):
        Selection(attribute="bad", uri="*")


# -- membership --------------------------------------------------------------------------------------


def test_membership_sees_copying_and_only_copying(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    trained = np.arange(200) % 2 == 0
    training = [{"trained": str(int(each))} for each in trained]
    answers = {}
    for name in ("copies", "generalises"):
        (tmp_path / name).mkdir()
        distances = random.uniform(0.3, 0.6, (60, 200))
        if name == "copies":
            distances[np.arange(60), 2 * (np.arange(60) % 100)] = 0.05
        ledger = make(tmp_path / name, distances, training=training, generated=labelled(60, 1), candidates=50)
        answers[name] = evaluate(
            ledger, "membership", ValueFunction(k=5, temperature=0.05), group=Selection(attribute="trained")
        )
        values = evidence.values(ledger, ValueFunction(k=5, temperature=0.05)).value
        expected = stats.ttest_ind(values[trained], values[~trained], equal_var=False, alternative="greater")
        assert answers[name]["test"]["p"] == pytest.approx(expected.pvalue)
        assert answers[name]["credit"]["trained_share"] == pytest.approx(values[trained].sum() / 60)
    assert answers["copies"]["test"]["p"] < 1e-6
    assert answers["copies"]["nearest_test"]["p"] < 1e-6
    assert answers["copies"]["credit"]["trained_share"] > 0.8
    assert answers["generalises"]["test"]["p"] > 0.01
    credit = answers["generalises"]["credit"]
    assert abs(credit["trained_share"] - credit["expected"]) < 4 * credit["expected_spread"]
    drawn = [values[random.permutation(200)[:100]].sum() / 60 for _ in range(4000)]
    assert credit["expected_spread"] == pytest.approx(np.std(drawn), rel=0.1)


def test_membership_groups_must_not_overlap(tmp_path: Path, noise: Callable[..., np.ndarray]) -> None:
    ledger = make(tmp_path, noise(2, 30), training=[{}] * 30, generated=[{}, {}], candidates=10)
    ids = tuple(f"t{i:05d}" for i in range(10))
    with pytest.raises(SettingsError, match="5 training images are in both"):
        evaluate(ledger, "membership", PAPER, group=Selection(ids=ids), held_out=Selection(ids=ids[5:]))


# -- sensitivity, calibration, efficiency ------------------------------------------------------------


def test_sensitivity_shrinks_as_sampling_says(tmp_path: Path, noise: Callable[..., np.ndarray]) -> None:
    ledger = make(
        tmp_path, noise(100, 200), training=labelled(200, 4), generated=labelled(100, 4), candidates=20
    )
    function = ValueFunction(k=10)
    found = evaluate(ledger, "sensitivity", function, sizes=(1, 10, 50, 100), repeats=300)
    rho = evaluate(ledger, "identical-class", function, ks=(10,))["rows"][0]["rho"]
    for row in found["rows"]:
        assert row["rho"] == pytest.approx(rho, abs=0.04)
        assert row["spread"] == pytest.approx(row["expected_spread"], rel=0.2, abs=1e-12)
    assert found["rows"][-1]["spread"] == pytest.approx(0.0)  # all of them, each time
    assert found == evaluate(ledger, "sensitivity", function, sizes=(1, 10, 50, 100), repeats=300)
    assert evaluate(ledger, "sensitivity", function, sizes=(5,), label="2")["images"] == 25
    with pytest.raises(SettingsError, match="m = 101 can't be drawn"):
        evaluate(ledger, "sensitivity", function, sizes=(101,))
    with pytest.raises(SettingsError, match="no generated image has the label 'x'"):
        evaluate(ledger, "sensitivity", function, label="x")


def test_calibration_scales_scores_by_quality(tmp_path: Path, noise: Callable[..., np.ndarray]) -> None:
    quality = np.linspace(0.1, 0.9, 20)
    bad = [{"corrupted": str(int(i < 10))} for i in range(60)]
    ledger = make(
        tmp_path, noise(20, 60), training=bad, generated=labelled(20, 1), candidates=30, quality=quality
    )
    found = evaluate(ledger, "quality-weighting", ValueFunction(k=5), group=Selection(attribute="corrupted"))
    means = {(row["contributor"], row["scores"]): row["mean"] for row in found["rows"]}
    plain = evidence.top_scores(ledger, ValueFunction(k=5, quality_weighted=False), 3)
    assert means[1, "with q"] == pytest.approx((plain[:, 0] * quality).mean())
    assert means[1, "without q"] == pytest.approx(plain[:, 0].mean())
    assert [row["values"] for row in found["ood_rows"]] == ["with q", "without q"]
    assert sum(found["histogram"]["with q"][0]) == 20


def test_without_quality_there_is_nothing_to_calibrate(
    tmp_path: Path, noise: Callable[..., np.ndarray]
) -> None:
    ledger = make(tmp_path, noise(2, 30), training=[{}] * 30, generated=[{}, {}], candidates=10)
    with pytest.raises(SettingsError, match="quality 'none'"):
        evaluate(ledger, "quality-weighting", PAPER)
    with pytest.raises(SettingsError, match="no timings"):
        evaluate(ledger, "efficiency", PAPER)


def test_efficiency_adds_up_finished_runs(tmp_path: Path, noise: Callable[..., np.ndarray]) -> None:
    ledger = make(tmp_path, noise(2, 30), training=[{}] * 30, generated=[{}, {}], candidates=10)
    runs = [("value", "done", {"valued": 10}, {"recall": 1.0, "total": 4.0}),
            ("value", "failed", {"valued": 9}, {"total": 9.0}),
            ("value", "done", {"valued": 30}, {"recall": 1.0, "re-rank": 2.0, "total": 4.0}),
            ("value", "done", {"unchanged": 40}, {"total": 0.5}),
            ("ingest", "done", {"new": 30}, {"total": 3.0})]  # fmt: skip
    with ledger.write() as con:
        for i, (verb, status, counts, timings) in enumerate(runs):
            con.execute(
                "INSERT INTO runs VALUES (?, ?, now(), now(), 1, '{}', '{}', ?, ?, ?)",
                [str(i), verb, json.dumps(counts), json.dumps(timings), status],
            )
    rows = evaluate(ledger, "efficiency", PAPER)["rows"]
    seconds = {(row["verb"], row["phase"]): row["seconds_per_image"] for row in rows}
    assert seconds == {
        ("value", "re-rank"): 2 / 40, ("value", "recall"): 2 / 40, ("value", "other"): 4 / 40,
        ("value", "total"): 8 / 40,
        ("ingest", "other"): 0.1, ("ingest", "total"): 0.1,
    }  # fmt: skip


# -- known parents -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"parent": "a"}, [("a", 1.0)]),
        ({"parent": "a", "parent2": "b"}, [("a", 0.5), ("b", 0.5)]),
        ({"parent1": "a", "parent2": "b", "weight1": "3", "weight2": 1}, [("a", 0.75), ("b", 0.25)]),
        ({"parents": '["a", "b"]', "weights": "[0.75, 0.25]"}, [("a", 0.75), ("b", 0.25)]),
        ({"parents": ["a", "a", "b", "b"]}, [("a", 0.5), ("b", 0.5)]),
        ({"parents": '["a"]', "weights": ""}, [("a", 1.0)]),
        ({"parent": "", "hat": "yes"}, []),
    ],
)
def test_parents_are_read_from_attributes(
    attributes: dict[str, Any], expected: list[tuple[str, float]]
) -> None:
    assert parents_of(attributes) == expected


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"parent": "a", "parent2": "b", "weight": "1"}, "1 weights were given for 2 parents"),
        ({"parent": "a", "weight": "much"}, "must be numbers"),
        ({"parent": "a", "weight": "0"}, "above 0"),
        ({"parents": "a, b"}, "isn't a JSON list"),
    ],
)
def test_parents_that_make_no_sense_are_a_sentence(attributes: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        parents_of(attributes)


def test_known_parents_perfect_random_and_unknown(tmp_path: Path) -> None:
    random = np.random.default_rng(8)
    parent = random.permutation(100)[:30]
    truth = [{"parent": f"t{i:05d}.png"} for i in parent]
    answers = {}
    for name in ("perfect", "random"):
        (tmp_path / name).mkdir()
        distances = random.uniform(0.3, 0.5, (30, 100))
        if name == "perfect":
            distances[np.arange(30), parent] = 0.01
        ledger = make(
            tmp_path / name, distances, training=[{}] * 100, generated=[dict(t) for t in truth], candidates=40
        )
        answers[name] = evaluate(ledger, "known-parents", ValueFunction(temperature=0.01))["rows"]
    paper, sharp = answers["perfect"]
    assert paper["values"] == "paper"
    assert paper["parent_share"] == pytest.approx(1 / 30, rel=0.4)
    assert sharp["parent_share"] > 0.999
    assert (sharp["first_rate"], sharp["rank"], sharp["recalled"]) == (1.0, 1.0, 1.0)
    assert sharp["correlation"] > 0.999
    assert answers["random"][0]["recalled"] == pytest.approx(0.4, abs=0.25)
    assert abs(answers["random"][1]["correlation"]) < 0.1
    ledger = make(
        tmp_path, distances, training=[{}] * 100, generated=[{"parent": "gone.png"}] * 30, candidates=40
    )
    with pytest.raises(SettingsError, match=r"no training image is called 'gone\.png'"):
        evaluate(ledger, "known-parents", PAPER)


# -- imported scores ---------------------------------------------------------------------------------


@pytest.fixture
def workspace(tmp_path: Path, noise: Callable[..., np.ndarray]) -> Workspace:
    """A workspace with a ledger made by hand."""
    root = tmp_path / "ws"
    made = Workspace.init(root, encoder="pixels:8", distance="l2@8", quality="none", quantization="none")
    settings = made.settings.evidence()
    (root / "ledger.duckdb").unlink()
    generated: list[dict[str, Any]] = [*labelled(3, 3), {"label": "9"}]
    ledger = make(root, noise(4, 30), training=labelled(30, 3), generated=generated, candidates=20)
    with ledger.write() as con:
        ledger.set_meta(con, settings=settings)
    return Workspace(root)


def write_scores(path: Path, rows: list[tuple[str, str, float]]) -> Path:
    columns = zip(("generated", "training", "score"), map(list, zip(*rows, strict=True)), strict=True)
    pq.write_table(pa.table(dict(columns)), path)
    return path


def test_imported_shares_become_credit_in_proportion(workspace: Workspace, tmp_path: Path) -> None:
    rows = [("/made/0.png", "t00000.png", 3.0), ("/made/0.png", "t00001.png", 1.0), ("/made/0.png", "t00002.png", 0.0),
            ("1.png", "hash-t00004", 2.0), ("1.png", "t00001", 2.0)]  # fmt: skip
    made = workspace.import_scores(
        write_scores(tmp_path / "s.parquet", rows), tmp_path / "theirs", method="tracin"
    )
    assert (made["generated_images"], made["matches"], made["dropped"]) == (2, 4, 1)
    theirs = Workspace(tmp_path / "theirs")
    values = {row[1]: row[4] for row in theirs.credits("image").fetchall()}
    assert len(values) == 30
    assert values["/data/t00000.png"] == pytest.approx(0.75)
    assert values["/data/t00001.png"] == pytest.approx(0.25 + 0.5)
    assert values["/data/t00004.png"] == pytest.approx(0.5)
    assert theirs.evaluate("identical-class", options={"ks": (2,)})["rows"][0]["rho"] == pytest.approx(0.75)
    assert theirs.settings.distance == "imported:tracin"
    assert theirs.status()["generated"]["stale"] == 0
    assert workspace.credits("image").fetchall() != theirs.credits("image").fetchall()
    oracle.write_png(np.zeros((1, 8, 8, 3), np.uint8), tmp_path / "one", "g")
    with pytest.raises(FingerprintMismatch, match="imported from 'tracin'"):
        theirs.value([tmp_path / "one"])


def test_imported_scores_of_any_sign_and_distances(workspace: Workspace, tmp_path: Path) -> None:
    rows = [("0.png", "t00000.png", -2.0), ("0.png", "t00001.png", 1.0), ("0.png", "t00003.png", 0.5)]
    file = write_scores(tmp_path / "s.parquet", rows)
    soft = np.exp([-2.0, 1.0, 0.5]) / np.exp([-2.0, 1.0, 0.5]).sum()
    for kind, expected in (
        ("similarity", soft),
        ("distance", np.exp([2.0, -1.0, -0.5]) / np.exp([2.0, -1.0, -0.5]).sum()),
    ):
        workspace.import_scores(file, tmp_path / kind, score_type=kind)
        values = {row[1]: row[4] for row in Workspace(tmp_path / kind).credits("image").fetchall()}
        assert [values[f"/data/t0000{i}.png"] for i in (0, 1, 3)] == pytest.approx(expected.tolist())
    made = workspace.import_scores(file, tmp_path / "few", score_type="similarity", top_k=1)
    assert (made["matches"], made["dropped"]) == (1, 2)
    with pytest.raises(SettingsError, match="negative scores"):
        workspace.import_scores(file, tmp_path / "share")
    with pytest.raises(SettingsError, match="is a workspace already"):
        workspace.import_scores(file, tmp_path / "few")


def test_imports_that_make_no_sense_are_a_sentence(workspace: Workspace, tmp_path: Path) -> None:
    cases: list[tuple[list[tuple[str, str, float]], str]] = [
        ([("0.png", "gone.png", 1.0)], "no training image is called 'gone.png'"),
        ([("gone.png", "t00000.png", 1.0)], "no generated image is called 'gone.png'"),
        (
            [("0.png", "t00000.png", 1.0), ("/made/0.png", "t00000", 2.0)],
            "'0.png' and 't00000.png' and, as '/made/0.png' and",
        ),
        ([("0.png", "t00000.png", float("nan"))], "1 scores that can't be used, the first of them nan"),
        (
            [("0.png", "t00000.png", 1.7e308), ("0.png", "t00001.png", -1.7e308)],
            "2 scores that can't be used",
        ),
        ([("0.png", "t00000.png", 0.0)], "give nobody credit"),
    ]
    for number, (rows, words) in enumerate(cases):
        file = write_scores(tmp_path / f"{number}.parquet", rows)
        with pytest.raises(SettingsError, match=words):
            workspace.import_scores(file, tmp_path / "never")
    duckdb.sql("SELECT 1 AS a").write_parquet(str(tmp_path / "other.parquet"))
    with pytest.raises(SourceError, match="columns generated, training, score"):
        workspace.import_scores(tmp_path / "other.parquet", tmp_path / "never")
    good = write_scores(tmp_path / "good.parquet", [("0.png", "t00000.png", 1.0)])
    with pytest.raises(SettingsError, match="top_k = 32767"):
        workspace.import_scores(good, tmp_path / "never", top_k=32767)
    assert not (tmp_path / "never").exists()
    with pytest.raises((SettingsError, LedgerError)):
        Workspace(tmp_path / "never")


# -- plots and JSON ----------------------------------------------------------------------------------


def test_every_criterion_is_json_and_a_plot(tmp_path: Path, noise: Callable[..., np.ndarray]) -> None:
    training = [{"label": str(i % 3), "hat": str(i % 2), "bad": str(int(i < 9))} for i in range(60)]
    generated = [{"label": str(j % 3), "hat": str(j % 2), "parent": f"t{j:05d}.png"} for j in range(12)]
    ledger = make(tmp_path, noise(12, 60), training=training, generated=generated, candidates=30,
                  quality=np.full(12, 0.5))  # fmt: skip
    with ledger.write() as con:
        con.execute("""INSERT INTO runs VALUES ('r', 'value', now(), now(), 1, '{}', '{}', '{"valued": 12}',
                    '{"recall": 1.0, "total": 2.0}', 'done')""")
    group = Selection(attribute="bad")
    options: dict[str, dict[str, Any]] = {
        "identical-class": {"ks": (5, 10)}, "attributes": {"names": ("hat", "label"), "combined": True},
        "ood": {"group": group}, "membership": {"group": group}, "sensitivity": {"sizes": (1, 5)},
        "quality-weighting": {"group": group},
    }  # fmt: skip
    for criterion in CRITERIA.keys() - {"counterfactual"}:
        found = evaluate(ledger, criterion, PAPER, **options.get(criterion, {}))
        assert json.loads(json.dumps(found))["criterion"] == criterion
        assert all(row.keys() == found["rows"][0].keys() for row in found["rows"])
        drawn = plot(found, tmp_path / f"{criterion}.png")
        assert drawn.read_bytes().startswith(b"\x89PNG")
        assert drawn.stat().st_size > 5_000
    with pytest.raises(SettingsError, match="can't be written"):
        plot(found, tmp_path / "plot.docx")
    with pytest.raises(SettingsError, match="can't be written"):
        plot(found, tmp_path / "nowhere" / "plot.png")
