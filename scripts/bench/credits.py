"""Answers out of SQL over 10 million matches, against a bare GROUP BY over the same rows; and a payout.

    python scripts/bench/credits.py [--generated 50000] [--candidates 200] [--training 60000] [--owners 100] [--small]

All answers are asked in turns, in one process, on one connection.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import duckdb
from common import Row, count, in_turns, note, parser, ratios, row, show

from gmv_qdrant.ledger.database import Ledger

AIMS = {
    "credits": "<= 1.5",
    "image_values": None,
    "owner_shapley": "<= 4",
    "credit_intervals": "<= 4",
    "knn_shapley": None,
}
BY_NAME = {"credits", "owner_shapley", "credit_intervals"}


def make(path: Path, generated: int, candidates: int, training: int, owners: int) -> None:
    """A ledger of random matches with plausible distances, in the order in which `value` writes them."""
    with Ledger.create(path).write() as con:
        con.execute(f"""INSERT INTO training (training_key, point_id, version_added)
            SELECT i, 'point-' || i, 1 FROM range({training}) t(i)""")
        con.execute(f"""INSERT INTO sources (training_key, uri, owner)
            SELECT i, 'image-' || i, 'owner ' || i % {owners} FROM range({training}) t(i)""")
        con.execute(f"""INSERT INTO generated
            (generated_key, point_id, content_hash, uri, batch, quality, version_valued)
            SELECT j, 'g' || j, 'h' || j, 'g' || j, 'b', 0.2 + 0.7 * (hash(j) % 1000) / 1000, 1
            FROM range({generated}) t(j)""")
        con.execute(f"""INSERT INTO matches (generated_key, training_key, rank, distance)
            SELECT j, CAST((hash(j, r) >> 8) % {training} AS INTEGER), r,
                   0.2 + 0.3 * (1 - exp(-r / 80.0)) + 0.2 * (hash(j) % 100) / 100
            FROM range({generated}) a(j), range(1, {candidates + 1}) b(r) ORDER BY j, r""")


def measure(con: duckdb.DuckDBPyConnection, k: int, turns: int) -> list[Row]:
    asked = {
        "bare": f"SELECT training_key, sum(distance) FROM matches WHERE rank <= {k} GROUP BY training_key"
    }
    for name in AIMS:
        field = "'owner', " if name in BY_NAME else ""
        asked[name] = f"FROM {name}({field}k := {k})"
    clock = in_turns({n: partial(lambda q: con.sql(q).to_arrow_table(), q) for n, q in asked.items()}, turns)
    note(k, clock)
    rows = [row(f"bare GROUP BY, k = {k}", clock["bare"], "s")]
    for name, aim in AIMS.items():
        rows.append(row(f"{name} / bare GROUP BY, k = {k}", ratios(clock[name], clock["bare"]), aim=aim))
    return rows


def main() -> None:
    options = parser(__doc__)
    for name, default in (("generated", 50_000), ("candidates", 200), ("training", 60_000), ("owners", 100)):
        options.add_argument(f"--{name}", type=int, default=default)
    given = options.parse_args()
    if given.small:
        given.generated, given.training, given.turns = 500, 1_000, 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.duckdb"
        make(path, given.generated, given.candidates, given.training, given.owners)
        with duckdb.connect(str(path)) as con:
            if given.small:
                asked = f"SELECT sum(matches) FROM owner_shapley('owner', k := {given.candidates})"
                [(found,)] = con.sql(asked).fetchall()
                show([count("matches that owner_shapley counts", found, given.generated * given.candidates)])
                return
            con.execute("SET threads = 2")
            show([one for k in (30, given.candidates) for one in measure(con, k, given.turns)])


if __name__ == "__main__":
    main()
