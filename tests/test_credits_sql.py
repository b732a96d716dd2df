"""The value functions against brute force in plain Python, on small random ledgers and on adversarial ones."""

from __future__ import annotations

import functools
import itertools
import json
import math
import runpy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gmv_qdrant.ledger import schema
from gmv_qdrant.ledger.queries import LOSS_TEMPERATURE

MACROS = ("image_values({})", "credits('owner', {})", "owner_shapley('owner', {})", "knn_shapley({})",
          "effective_contributors({})", "credit_intervals('owner', {})",
          "credit_intervals('owner', rule := 'owner-shapley', {})")  # fmt: skip


ODD = """Value of ~"a.b"/'c' """
"""The name of an attribute."""


def label(image: int, source: int) -> str | None:
    """What the sources of the images say beside their owners."""
    return ("x", "y", None)[(image + source) % 3]


@functools.cache
def empty() -> duckdb.DuckDBPyConnection:
    """An empty ledger; who fills it takes back what was filled in."""
    con = duckdb.connect(":memory:", config={"threads": 2})
    con.execute(schema.tables() + schema.macros())
    return con


Function = dict[str, Any]


@dataclass
class Small:
    """A ledger in plain lists: sources of each training image, and the matches of each generated one."""

    owners: list[list[str | None]]  # of each training image, one for each source
    matches: list[list[tuple[int, float]]]  # of each generated image: training image, distance; nearest first
    quality: list[float | None]
    batch: list[str]

    @contextmanager
    def connect(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """The ledger in DuckDB, for as long as the block lasts."""
        con = empty()
        con.execute("BEGIN")

        def fill(table: str, columns: str, rows: list[tuple[Any, ...]]) -> None:
            names = columns.split(", ")
            given = pa.table(
                {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
            )
            con.register("given", given)
            con.execute(f"INSERT INTO {table} ({columns}) FROM given")
            con.unregister("given")

        fill("meta", "key, value", [("training_version", "1")])
        fill("training", "training_key, point_id, version_added, version_withdrawn",
             [(i, f"p{i}", 1, None) for i in range(len(self.owners))] + [(999, "gone", 1, 2)])  # fmt: skip
        fill("sources", "training_key, uri, owner, label, attributes",
             [(i, f"{i}-{j}", owner, label(i, j), json.dumps({ODD: label(i, j)}))
              for i, row in enumerate(self.owners) for j, owner in enumerate(row)])  # fmt: skip
        fill("generated", "generated_key, point_id, content_hash, uri, batch, quality, version_valued",
             [(j, f"g{j}", f"h{j}", f"g{j}", b, q, 1)
              for j, (b, q) in enumerate(zip(self.batch, self.quality, strict=True))])  # fmt: skip
        fill("matches", "generated_key, training_key, rank, distance",
             [(j, i, rank, d) for j, row in enumerate(self.matches) for rank, (i, d) in enumerate(row, 1)])  # fmt: skip
        try:
            yield con
        finally:
            con.execute("ROLLBACK")

    def asked(self, function: Function) -> list[tuple[float, list[tuple[int, float]]]]:
        """Quality and matches of the generated images that count, at the distances that count."""
        return [
            (1.0 if q is None or not function["quality_weighted"] else q, in_units(row, function["relative"]))
            for q, row, b in zip(self.quality, self.matches, self.batch, strict=True)
            if row and function["batch"] in (None, b)
        ]


def in_units(row: list[tuple[int, float]], relative: bool) -> list[tuple[int, float]]:
    """Distances, or as multiples of the 30th (here: the last)."""
    if not relative:
        return row
    assert len(row) <= 30
    unit = max(row[-1][1], 1e-300)
    return [(i, min(d / unit, 1e6)) for i, d in row]


@st.composite
def ledgers(draw: st.DrawFn, most: int = 7) -> Small:
    owners = st.lists(st.sampled_from(["Ada", "Bay", "Cy", None]), min_size=1, max_size=3)
    training = draw(st.lists(owners, min_size=1, max_size=most))
    scale = draw(st.sampled_from([1.0, 0.01, 700.0]))
    distance = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.25, 0.5])).map(lambda d: d * scale)
    matches = []
    for _ in range(draw(st.integers(1, 5))):
        who = draw(st.permutations(range(len(training))))[: draw(st.integers(1, len(training)))]
        matches.append(sorted(((i, draw(distance)) for i in who), key=lambda pair: (pair[1], pair[0])))
    count = len(matches)
    quality = draw(st.lists(st.one_of(st.none(), st.floats(0, 1)), min_size=count, max_size=count))
    batch = ["a", *draw(st.lists(st.sampled_from(["a", "b"]), min_size=count - 1, max_size=count - 1))]
    return Small(training, matches, quality, batch)


functions = st.fixed_dictionaries(
    {
        "k": st.sampled_from([1, 2, 3, 30, 100, None]),
        "temperature": st.sampled_from([1.0, 0.1, 25.0]),
        "quality_weighted": st.booleans(),
        "batch": st.sampled_from([None, "a"]),
        "null_distance": st.sampled_from([None, 0.3, 500.0]),
        "relative": st.booleans(),
    }
)
PAPER: Function = {
    "k": 30,
    "temperature": 1.0,
    "quality_weighted": True,
    "batch": None,
    "null_distance": None,
    "relative": False,
}


def sql(function: Function) -> str:
    def text(value: Any) -> str:
        return "NULL" if value is None else f"'{value}'" if isinstance(value, str) else str(value)

    return ", ".join(f"{name} := {text(value)}" for name, value in function.items())


def shares(row: list[tuple[int, float]], function: Function) -> list[tuple[int, float]]:
    """Eq. 6 without q, against the smallest distance."""
    top, t, nobody = row[: function["k"]], function["temperature"], function["null_distance"]
    weights = [math.exp((top[0][1] - d) / t) for _, d in top]
    exponent = -math.inf if nobody is None else (top[0][1] - nobody) / t
    total = sum(weights) + (math.exp(exponent) if exponent < 700 else math.inf)
    return [(i, weight / total) for (i, _), weight in zip(top, weights, strict=True)]


def values(ledger: Small, function: Function) -> dict[int, float]:
    found = dict.fromkeys(range(len(ledger.owners)), 0.0)
    for q, row in ledger.asked(function):
        for i, share in shares(row, function):
            found[i] += q * share
    return found


def close(value: float) -> Any:
    return pytest.approx(value, rel=1e-12, abs=1e-15)


def parts(owners: list[str | None], names: list[str | None]) -> dict[str | None, float]:
    """How an image's credit is split among names, one for each source: by owners first, then by an owner's sources."""
    counted = [(o, n) for o, n in zip(owners, names, strict=True) if o is not None] or list(
        zip(owners, names, strict=True)
    )
    by_owner: dict[str | None, list[str | None]] = {}
    for owner, name in counted:
        by_owner.setdefault(owner, []).append(name)
    found: dict[str | None, float] = {}
    for mine in by_owner.values():
        for name in mine:
            found[name] = found.get(name, 0.0) + 1 / (len(by_owner) * len(mine))
    return found


def nobody(ledger: Small, function: Function) -> float:
    """What the images leave."""
    return sum(
        q * (1 - sum(share for _, share in shares(row, function))) for q, row in ledger.asked(function)
    )


@settings(max_examples=60, deadline=None)
@given(ledgers(), functions)
def test_values_credits_and_effective_contributors(ledger: Small, function: Function) -> None:
    expected = values(ledger, function)
    strangers = {None: nobody(ledger, function)} if function["null_distance"] is not None else {}
    with ledger.connect() as con:
        arguments = sql(function)
        found = dict(con.execute(f"SELECT training_key, value FROM image_values({arguments})").fetchall())
        assert found == {i: close(value) for i, value in {**expected, **strangers}.items()}
        said = {
            "owner": [list(row) for row in ledger.owners],
            "label": [[label(i, j) for j in range(len(row))] for i, row in enumerate(ledger.owners)],
        }
        said[ODD] = said["label"]
        for field, names in said.items():
            split = [parts(*each) for each in zip(ledger.owners, names, strict=True)]
            quoted = field.replace("'", "''")
            rows = con.execute(
                f"SELECT name, value, share, images FROM credits('{quoted}', {arguments}) WHERE NOT nobody"
            ).fetchall()
            totals = {name: 0.0 for held in split for name in held}
            for i, held in enumerate(split):
                for name, part in held.items():
                    totals[name] += expected[i] * part
            assert {row[0]: row[1] for row in rows} == {name: close(value) for name, value in totals.items()}
            assert {row[0]: row[3] for row in rows} == {
                name: sum(name in held for held in split) for name in totals
            }
            shared = con.execute(f"SELECT sum(share) FROM credits('{quoted}', {arguments})").fetchall()
            if sum(totals.values()) > 1e-12:
                assert shared[0][0] == close(1.0)
            rows = con.execute(
                f"SELECT name, value FROM credits('{quoted}', {arguments}) WHERE nobody"
            ).fetchall()
            assert rows == [("(nobody)", close(value)) for value in strangers.values()]
        effective = dict(
            con.execute(
                f"SELECT generated_key, effective FROM effective_contributors({arguments})"
            ).fetchall()
        )
        for j, row in enumerate(ledger.matches):
            own = [share for _, share in shares(in_units(row, function["relative"]), function)]
            whole = sum(own)
            if j in effective and whole > 1e-3:
                entropy = -sum(p / whole * math.log(p / whole) for p in own if p > 0)
                assert effective[j] == pytest.approx(math.exp(entropy), rel=1e-6)
        worst = con.execute("SELECT * FROM conservation(k := NULL)").fetchall()[0]
        assert max(worst) < 1e-9


def shapley(players: list[Any], worth: Any) -> dict[Any, float]:
    """By the definition: the mean of what a player adds, over all orders of arrival."""
    found = dict.fromkeys(players, 0.0)
    for order in itertools.permutations(players):
        for place, player in enumerate(order):
            found[player] += worth(order[: place + 1]) - worth(order[:place])
    return {player: value / math.factorial(len(players)) for player, value in found.items()}


def similarity(row: list[tuple[int, float]], function: Function) -> dict[Any, float]:
    """exp(-d/T) of each image, relative to the best; "nobody" is one of them when asked for."""
    distances: dict[Any, float] = dict(row)
    if function["null_distance"] is not None:
        distances["nobody"] = function["null_distance"]
    best = min(distances.values())
    return {i: math.exp((best - d) / function["temperature"]) for i, d in distances.items()}


@settings(max_examples=50, deadline=None)
@given(ledgers(), functions)
def test_owner_shapley_is_the_shapley_value_of_the_best_match(ledger: Small, function: Function) -> None:
    held = [parts(row, row) for row in ledger.owners]
    expected: dict[Any, float] = {name: 0.0 for row in held for name in row}
    if function["null_distance"] is not None:
        expected["(nobody)"] = 0.0
    for q, row in ledger.asked(function):
        near = similarity(row[: function["k"]], function)
        has: dict[Any, list[float]] = {}
        for i, u in near.items():
            for owner in {"(nobody)"} if i == "nobody" else set(held[i]):
                has.setdefault(owner, []).append(u)

        def worth(owners: tuple[Any, ...], has: dict[Any, list[float]] = has) -> float:
            return max((u for owner in owners for u in has[owner]), default=0.0)

        for owner, value in shapley(list(has), worth).items():
            expected[owner] += q * value
    with ledger.connect() as con:
        rows = con.execute(f"SELECT name, value FROM owner_shapley('owner', {sql(function)})").fetchall()
        assert dict(rows) == {name: close(value) for name, value in expected.items()}


@settings(max_examples=40, deadline=None)
@given(ledgers(most=5), functions)
def test_knn_shapley_is_the_shapley_value_of_the_mean_of_the_k_nearest(
    ledger: Small, function: Function
) -> None:
    expected: dict[int | None, float] = dict.fromkeys(range(len(ledger.owners)), 0.0)
    if function["null_distance"] is not None:
        expected[None] = 0.0
    for q, row in ledger.asked(function):
        near = similarity(row, function)
        k = function["k"] or len(near)

        def worth(images: tuple[Any, ...], near: dict[Any, float] = near, k: int = k) -> float:
            return sum(sorted((near[i] for i in images), reverse=True)[:k]) / k

        for i, value in shapley(list(near), worth).items():
            expected[None if i == "nobody" else i] += q * value / worth(tuple(near))
    with ledger.connect() as con:
        rows = con.execute(f"SELECT training_key, value FROM knn_shapley({sql(function)})").fetchall()
        assert dict(rows) == {i: close(value) for i, value in expected.items()}


@settings(max_examples=15, deadline=None)
@given(ledgers(), functions)
def test_shapley_totals_are_the_qualities(ledger: Small, function: Function) -> None:
    total = sum(q for q, _ in ledger.asked(function))
    with ledger.connect() as con:
        for macro in (f"owner_shapley('owner', {sql(function)})", f"knn_shapley({sql(function)})"):
            assert con.execute(f"SELECT sum(value) FROM {macro}").fetchall()[0][0] == close(total)


def test_relative_distances_are_multiples_of_the_thirtieth() -> None:
    row = [(i, 0.01 * (i + 1)) for i in range(40)]
    with Small([["Ada"]] * 40, [row, row[:4]], [None] * 2, ["a"] * 2).connect() as con:
        found = con.execute(
            "SELECT distance FROM contributions(k := NULL, relative := true) ORDER BY ALL"
        ).fetchall()
    expected = sorted([(i + 1) / 30 for i in range(40)] + [(i + 1) / 4 for i in range(4)])
    np.testing.assert_allclose([d for (d,) in found], expected)


def test_a_control_set_earns_no_credit() -> None:
    ledger = Small([["Ada"], ["Bay"]], [[(0, 0.1), (1, 0.2)], [(1, 0.1)]], [None, 0.5], ["a", "strangers"])
    with ledger.connect() as con:
        con.execute("UPDATE generated SET control = true WHERE batch = 'strangers'")
        for function in (PAPER, {**PAPER, "null_distance": 0.3}, {**PAPER, "relative": True}):
            for macro in (
                "image_values({})",
                "credits('owner', {})",
                "owner_shapley('owner', {})",
                "knn_shapley({})",
            ):
                both = [
                    con.execute(f"SELECT value FROM {macro.format(sql(each))} ORDER BY ALL").fetchall()
                    for each in (function, {**function, "batch": "a"})
                ]
                assert both[0] == both[1]
        assert con.execute("SELECT count(*) FROM effective_contributors()").fetchall() == [(1,)]
        assert max(con.execute("FROM conservation()").fetchall()[0]) < 1e-9


def noisy(images: int = 400, generated: int = 300, k: int = 40, seed: int = 0) -> duckdb.DuckDBPyConnection:
    """A ledger large enough for several threads and vectors; single images have several owners."""
    con = duckdb.connect(":memory:")
    con.execute(schema.tables() + schema.macros())
    con.execute(
        f"INSERT INTO training (training_key, point_id, version_added) SELECT i, 'p' || i, 1 FROM range({images}) t(i)"
    )
    con.execute(f"""INSERT INTO sources (training_key, uri, owner)
        SELECT i, 'u' || i, 'owner' || i % 23 FROM range({images}) t(i)
        UNION ALL SELECT i, 'v' || i, 'owner' || i % 7 FROM range(0, {images}, 3) t(i)""")
    con.execute(f"""INSERT INTO generated (generated_key, point_id, content_hash, uri, batch, quality, version_valued)
        SELECT j, 'g' || j, 'h' || j, 'g' || j, 'b', hash(j, {seed}) % 1000 / 1000, 1 FROM range({generated}) t(j)""")
    con.execute(f"""INSERT INTO matches (generated_key, training_key, rank, distance)
        SELECT j, (j * 131 + r * 7) % {images}, r, 0.1 * ln(1 + r) + 0.3 * (hash(j) % 100) / 100
        FROM range({generated}) a(j), range(1, {k + 1}) b(r)""")
    return con


def test_the_same_to_the_bit_on_any_number_of_threads() -> None:
    con = noisy(images=2000, generated=5000, k=70)  # 350,000 matches: three row groups
    answers = []
    for threads in (1, 4, 3):
        con.execute(f"SET threads = {threads}")
        answers.append([
            con.execute(f"SELECT * FROM {macro.format(arguments)} ORDER BY ALL").fetchall()
            for macro in MACROS
            for arguments in ("k := 30", "k := NULL, temperature := 0.01")
        ])  # fmt: skip
    assert answers[0] == answers[1] == answers[2]
    assert all(rows for rows in answers[0])


def test_generated_images_without_matches_break_conservation() -> None:
    ledger = Small([["Ada"]], [[(0, 0.5)], []], [0.5, 0.25], ["a", "a"])
    with ledger.connect() as con:
        assert con.execute("SELECT per_image, overall FROM conservation()").fetchall() == [
            (1.0, pytest.approx(1 / 3))
        ]
        con.execute("UPDATE generated SET version_valued = 0 WHERE generated_key = 1")  # waits for update
        assert max(con.execute("FROM conservation()").fetchall()[0]) < 1e-9
        con.execute("UPDATE generated SET version_valued = 1")
        con.execute("DELETE FROM matches")
        con.execute("UPDATE training SET version_withdrawn = 1")
        assert con.execute("FROM conservation()").fetchall() == [(0, 0)]


def test_values_above_eight_fit_the_fixed_point() -> None:
    count = 5000
    ledger = Small([["Ada"]], [[(0, 0.5)]] * count, [1.0] * count, ["a"] * count)
    with ledger.connect() as con:
        for macro in ("credits('owner')", "owner_shapley()", "image_values()", "knn_shapley()"):
            assert con.execute(f"SELECT value FROM {macro}").fetchall() == [(count,)]
        low, high = con.execute("SELECT low, high FROM credit_intervals('owner')").fetchall()[0]
        assert count * 0.998 < low <= high == count


def flooded(copies: int) -> Small:
    """Ada's image is nearest by far; Bay has a fair one; Cy brings many near-duplicates of his own, a bit farther."""
    owners: list[list[str | None]] = [["Ada"], ["Bay"], *[["Cy"]] * copies]
    row = [(0, 0.10), (1, 0.30), *((2 + i, 0.35 + 1e-6 * i) for i in range(copies))]
    return Small(owners, [row], [1.0], ["a"])


def test_a_flood_of_near_duplicates_pays_in_shares_and_not_in_owner_shapley() -> None:
    def cy(copies: int, macro: str) -> float:
        with flooded(copies).connect() as con:
            return float(dict(con.execute(f"SELECT name, value FROM {macro}").fetchall())["Cy"])

    for temperature in (1.0, 0.1):
        function = f"temperature := {temperature}"
        alone, flood = (cy(n, f"credits('owner', {function})") for n in (1, 28))
        assert flood > 3 * alone
        alone, flood = (cy(n, f"owner_shapley('owner', {function})") for n in (1, 28))
        assert flood == alone


@pytest.mark.parametrize("level", [80, 95])
def test_intervals_cover_at_the_rate_they_claim(level: float) -> None:
    """Owners earn random amounts with known means; halves of a set differ by what the intervals of both allow."""
    random = np.random.default_rng(0)
    covered, agreed, asked = 0, 0, 0
    taste = np.array([0.4, 0.3, 0.2, 0.1])
    count = 160
    for _ in range(15):
        ends = []
        for _ in range(2):
            who = random.choice(4, size=(count, 3), p=taste)
            rows = [[(int(o) + 4 * place, 0.1 * place) for place, o in enumerate(row)] for row in who]
            ledger = Small([[f"o{i % 4}"] for i in range(12)], rows, [None] * count, ["a"] * count)
            with ledger.connect() as con:
                ends.append(con.execute(f"""SELECT c.value, i.low, i.high FROM credits('owner') c
                    JOIN credit_intervals('owner', level := {level}) i
                    USING (name) ORDER BY name""").fetchnumpy())  # fmt: skip
        one, other = ends
        truth = count * taste
        covered += int(((one["low"] <= truth) & (truth <= one["high"])).sum())
        widths = np.hypot(one["high"] - one["low"], other["high"] - other["low"]) / 2
        agreed += int((np.abs(one["value"] - other["value"]) <= widths).sum())
        asked += 4
    assert covered / asked == pytest.approx(level / 100, abs=0.08)
    assert agreed / asked == pytest.approx(level / 100, abs=0.08)


def agreement(rows: list[list[tuple[int, float]]], labels: list[str], level: float, trials: int) -> float:
    """How often the totals of two disjoint halves of a generated set differ by no more than their intervals allow."""
    random = np.random.default_rng(1)
    agreed: list[bool] = []
    for _ in range(trials):
        order = random.permutation(len(rows))
        ends = []
        for half in (order[::2], order[1::2]):
            count = len(half)
            ledger = Small(
                [[label] for label in labels], [rows[j] for j in half], [None] * count, ["a"] * count
            )
            with ledger.connect() as con:
                ends.append(con.execute(f"""SELECT c.value, i.low, i.high FROM credits('owner') c
                    JOIN credit_intervals('owner', level := {level}) i
                    USING (name) ORDER BY name""").fetchnumpy())  # fmt: skip
        one, other = ends
        widths = np.hypot(one["high"] - one["low"], other["high"] - other["low"]) / 2
        agreed += (np.abs(one["value"] - other["value"]) <= widths).tolist()
    return float(np.mean(agreed))


@pytest.mark.shared
@pytest.mark.parametrize("generated", ["fashion_gen_pcaflow", "mnist_gen_gan"])
def test_halves_of_a_real_generated_set_agree_as_the_intervals_claim(shared: Path, generated: str) -> None:
    """Class totals against 10,000 real training images, pixel distances, k = 30, 95 %."""
    load = runpy.run_path(str(shared / "data" / "load.py"))["load"]
    train = load(shared / f"data/images/{generated.split('_')[0]}_train_10k_A.npz")
    ours = load(shared / f"data/images/{generated}.npz")["images"][:600]
    x, y = (images.reshape(len(images), -1).astype(np.float32) / 255 for images in (train["images"], ours))
    squares = (y**2).sum(1)[:, None] - 2 * y @ x.T + (x**2).sum(1)[None, :]
    distances = np.sqrt(np.maximum(squares, 0) / x.shape[1])
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :30]
    used, compact = np.unique(nearest, return_inverse=True)
    rows = [
        [(int(i), float(d)) for i, d in zip(who, distances[j, nearest[j]], strict=True)]
        for j, who in enumerate(compact.reshape(nearest.shape))
    ]
    assert agreement(rows, [str(train["labels"][i]) for i in used], 95, trials=10) == pytest.approx(
        0.95, abs=0.06
    )


@pytest.mark.parametrize("name", ["plain", "a.b", 'size "A"/~1', "owner's", "$", "0"])
def test_attributes_may_have_any_name(name: str) -> None:
    """One image has the attribute; the credit of the others, one of them without any source, is unnamed."""
    ledger = Small([["Ada"], ["Bay"], []], [[(0, 0.1), (1, 0.2), (2, 0.3)]], [None], ["a"])
    with ledger.connect() as con:
        con.execute(
            "UPDATE sources SET attributes = ? WHERE training_key = 0", [json.dumps({name: "x", "other": 1})]
        )
        field = name.replace("'", "''")
        rows = con.sql(f"SELECT name, value, images, matches FROM credits('{field}')").fetchall()
        expected = values(ledger, PAPER)
    assert {row[0]: row[1:] for row in rows} == {
        "x": (close(expected[0]), 1, 1),
        None: (close(expected[1] + expected[2]), 2, 2),
    }


def test_credits_by_image_are_the_values_of_images() -> None:
    ledger = Small([["Ada", "Bay"], ["Bay"], [None]], [[(0, 0.1), (1, 0.2)]], [0.5], ["a"])
    with ledger.connect() as con:
        rows = con.sql("SELECT name, value, matches FROM credits('image') ORDER BY name").fetchall()
        assert rows == con.sql("SELECT point_id, value, matches FROM image_values() ORDER BY 1").fetchall()


@pytest.mark.parametrize("macro", MACROS)
@pytest.mark.parametrize(
    ("argument", "said"),
    [("temperature := 0", "not 0"), ("temperature := -0.5", "not -0.5"), ("temperature := NULL", "not NULL"),
     ("k := 0", "not 0"), ("k := -3", "not -3")],
)  # fmt: skip
def test_impossible_arguments_are_refused_in_a_sentence(macro: str, argument: str, said: str) -> None:
    ledger = Small([["Ada"], ["Bay"]], [[(0, 0.1), (1, 0.2)]], [None], ["a"])
    with ledger.connect() as con, pytest.raises(duckdb.Error, match=f"must be (above|at least).*{said}"):
        con.sql(f"FROM {macro.format(argument)}").fetchall()


UNKNOWN = Small([["Ada"], ["Bay"]], [[(0, 0.1), (1, 0.3)]], [None], ["a"])
"""A ledger to ask for what it hasn't."""
CALIBRATIONS = """INSERT INTO calibrations (name, version, temperature, null_distance, relative, fitted_at)
    VALUES ('default', 1, 0.5, 0.7, false, now()::TIMESTAMP), ('default', 2, 0.25, 1.5, true, now()::TIMESTAMP),
           ('other', 1, 0.1, NULL, false, now()::TIMESTAMP)"""


@pytest.mark.parametrize("macro", [*MACROS, "contributions({})", "nearness({})", "copies({})"])
@pytest.mark.parametrize("emptied", ["", "DELETE FROM matches", "DELETE FROM matches; DELETE FROM generated"])
def test_an_unknown_batch_is_an_error_that_names_those_there_are(macro: str, emptied: str) -> None:
    with UNKNOWN.connect() as con:
        con.execute(emptied or "SELECT 1")
        there = "none" if "generated" in emptied else "a"
        with pytest.raises(duckdb.InvalidInputException, match=rf"batch 'typo' \(there are: {there}\)"):
            con.execute("FROM " + macro.format("batch := 'typo'")).fetchall()


@pytest.mark.parametrize("macro", [*MACROS, "contributions({})"])
def test_calibrations_go_by_their_names_in_sql_too(macro: str) -> None:
    def ask(arguments: str) -> list[tuple[Any, ...]]:
        return con.execute(f"FROM {macro.format(arguments)} ORDER BY ALL").fetchall()

    with UNKNOWN.connect() as con:
        con.execute(CALIBRATIONS)
        first = "temperature := 0.5, null_distance := 0.7"
        second = "temperature := 0.25, null_distance := 1.5, relative := true"
        loss = f"temperature := {LOSS_TEMPERATURE}, relative := true, k := NULL"
        assert ask("calibration := 'default@1'") == ask(first)
        assert ask("calibration := 'default'") == ask("calibration := 'default@2'") == ask(second)
        assert ask("calibration := 'other'") == ask("temperature := 0.1")
        assert ask("calibration := 'loss', k := NULL") == ask(loss)
        with pytest.raises(duckdb.InvalidInputException, match="default@1, default@2, other@1, loss"):
            ask("calibration := 'default@3'")
    with UNKNOWN.connect() as con, pytest.raises(duckdb.InvalidInputException, match="there are: loss"):
        ask("calibration := 'x'")


def test_credits_are_those_of_owners_where_nothing_else_is_asked_for() -> None:
    with UNKNOWN.connect() as con:
        assert con.execute("FROM credits() ORDER BY name").fetchall() == con.execute(
            "FROM credits('owner') ORDER BY name").fetchall()  # fmt: skip
        with pytest.raises(duckdb.InvalidInputException, match="there are: a"):
            con.execute("FROM credits(batch := 'typo')").fetchall()
