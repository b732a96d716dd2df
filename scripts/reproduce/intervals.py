"""How often the 95 % intervals of credit hold what they should: the table on the research page.

python scripts/reproduce/intervals.py [--repeats 200] [--out intervals.json]

Owners hold equal parts of a training set, or parts that fall off by Zipf's law. A generated image of random quality
resembles a dozen training images, whose owners are drawn by size: at a sharp temperature its credit goes to one or two
of them, at a broad one to several. An interval is right when it holds the credit that as many other images of the same
generator give an owner on average. ``covered``: the share of all owners' intervals that are right; ``without``: of
those of owners who earned nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from gmv_qdrant.ledger.schema import intervals

OWNERS, IMAGES, SIZES = (7, 60, 200), (20, 50, 250), ("equal", "Zipf")
TEMPERATURES = {"sharp": 0.15, "broad": 0.6}
NEAR = 12
"""Training images that a generated image resembles."""
LONG_RUN = 200_000
"""Generated images whose mean credit is taken for the true one."""
Z = 1.959963984540054


def sizes(kind: str, owners: int) -> np.ndarray:
    weights = np.ones(owners) if kind == "equal" else 1 / np.arange(1.0, owners + 1)
    return np.asarray(weights / weights.sum())


def credit(random: np.random.Generator, of: np.ndarray, m: int, temperature: float) -> tuple[np.ndarray, ...]:
    """Owners ``(m, NEAR)`` of the images that m generated ones resemble, what each earns, and qualities ``(m,)``."""
    owners = random.choice(len(of), (m, NEAR), p=of)
    gaps = np.sort(random.gamma(2.0, 0.5, (m, NEAR)), axis=1)
    shares = np.exp((gaps[:, :1] - gaps) / temperature)
    quality = random.uniform(0.3, 0.8, m)
    return owners, shares / shares.sum(axis=1, keepdims=True) * quality[:, None], quality


def bounds(
    con: duckdb.DuckDBPyConnection, owners: np.ndarray, parts: np.ndarray, quality: np.ndarray, count: int
) -> np.ndarray:
    """float64 ``(owners + 1, 2)`` as `_gmv_bounds` gives them; the last row is that of an owner without credit."""
    m = len(owners)
    rows = pa.table({"image": np.repeat(np.arange(m), NEAR), "id": owners.ravel(), "part": parts.ravel()})
    con.register("rows", rows)
    con.execute(
        "CREATE OR REPLACE TEMP TABLE credit AS SELECT id, sum(part) AS x FROM rows GROUP BY image, id"
    )
    con.execute(
        "CREATE OR REPLACE TEMP TABLE images AS SELECT ?::DOUBLE AS m, ?::DOUBLE AS most", [m, quality.sum()]
    )
    found = con.execute(f"FROM _gmv_bounds('credit', 'images', {Z}) ORDER BY id NULLS LAST").fetchnumpy()
    by_id = np.full((count + 1, 2), np.nan)
    ids = np.ma.filled(found["id"].astype(float), -1).astype(int)
    by_id[ids] = np.stack([found["low"], found["high"]], axis=1)
    return by_id


def cells(repeats: int) -> Iterator[dict[str, object]]:
    con = duckdb.connect(":memory:")
    con.execute(intervals())
    for kind in SIZES:
        for owners in OWNERS:
            of = sizes(kind, owners)
            for spread, temperature in TEMPERATURES.items():
                random = np.random.default_rng(owners)
                far, parts, _ = credit(random, of, LONG_RUN, temperature)
                true = np.bincount(far.ravel(), parts.ravel(), owners) / LONG_RUN
                for m in IMAGES:
                    held, none = [], []
                    for _ in range(repeats):
                        who, parts, quality = credit(random, of, m, temperature)
                        by_id = bounds(con, who, parts, quality, owners)
                        earned = np.bincount(who.ravel(), minlength=owners) > 0
                        mine = np.where(earned[:, None], by_id[:-1], by_id[-1])
                        right = (mine[:, 0] <= m * true) & (m * true <= mine[:, 1])
                        held.append(right.mean())
                        none += right[~earned].tolist()
                    yield {
                        "sizes": kind,
                        "owners": owners,
                        "images": m,
                        "credit": spread,
                        "covered": round(float(np.mean(held)), 3),
                        "without": round(float(np.mean(none)), 3) if none else None,
                    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found = []
    for cell in cells(given.repeats):
        found.append(cell)
        print(json.dumps(cell), flush=True)
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
