"""Credits out of SQL against a bare GROUP BY over the same rows; prints one JSON document.

    python scripts/bench/credits.py [--generated 50000] [--candidates 200] [--training 60000] [--owners 100]

Both sides run in turn, in one process, on one connection; the figures are the best wall time and the best CPU time (of
all threads) of the rounds. On a busy machine trust the CPU time.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import duckdb

from gmv_qdrant.ledger.ledger import Ledger


def make(path: Path, generated: int, candidates: int, training: int, owners: int) -> None:
    """A ledger of random matches with plausible distances, in the order in which `value` writes them."""
    with Ledger.create(path).write() as con:
        con.execute(f"""INSERT INTO training (training_key, point_id, epoch_added)
            SELECT i, 'point-' || i, 1 FROM range({training}) t(i)""")
        con.execute(f"""INSERT INTO sources (training_key, uri, owner)
            SELECT i, 'image-' || i, 'owner ' || i % {owners} FROM range({training}) t(i)""")
        con.execute(f"""INSERT INTO generated (generated_key, point_id, content_hash, uri, batch, quality, epoch_valued)
            SELECT j, 'g' || j, 'h' || j, 'g' || j, 'b', 0.2 + 0.7 * (hash(j) % 1000) / 1000, 1
            FROM range({generated}) t(j)""")
        con.execute(f"""INSERT INTO matches (generated_key, training_key, rank, distance)
            SELECT j, CAST((hash(j, r) >> 8) % {training} AS INTEGER), r,
                   0.2 + 0.3 * (1 - exp(-r / 80.0)) + 0.2 * (hash(j) % 100) / 100
            FROM range({generated}) a(j), range(1, {candidates + 1}) b(r) ORDER BY j, r""")


def measure(
    con: duckdb.DuckDBPyConnection, queries: dict[str, str], rounds: int
) -> dict[str, dict[str, float]]:
    """Best wall and CPU seconds of each query, all asked in turn."""
    best: dict[str, dict[str, float]] = {name: {"wall": 1e9, "cpu": 1e9} for name in queries}
    for _ in range(rounds):
        for name, query in queries.items():
            before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
            con.sql(query).to_arrow_table()
            wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            best[name] = {"wall": min(best[name]["wall"], wall), "cpu": min(best[name]["cpu"], cpu)}
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("generated", 50_000), ("candidates", 200), ("training", 60_000), ("owners", 100)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.duckdb"
        make(path, given.generated, given.candidates, given.training, given.owners)
        con = duckdb.connect(str(path), read_only=True, config={"threads": given.threads})
        for k in (30, given.candidates):
            queries = {
                "bare GROUP BY": f"""SELECT training_key, sum(distance) FROM matches WHERE rank <= {k}
                                     GROUP BY training_key""",
                "credits": f"FROM credits('owner', k := {k})",
                "image_values": f"FROM image_values(k := {k})",
            }
            best = measure(con, queries, given.rounds)
            best |= measure(
                con,
                {
                    "effective_contributors": f"FROM effective_contributors(k := {k})",
                    "owner_shapley": f"FROM owner_shapley('owner', k := {k})",
                    "credit_intervals": f"FROM credit_intervals('owner', k := {k})",
                },
                1,
            )
            bare = best["bare GROUP BY"]
            figures[f"k = {k}"] = {
                name: {clock: round(s, 3) for clock, s in seconds.items()}
                | {f"{clock}_ratio": round(s / bare[clock], 2) for clock, s in seconds.items()}
                for name, seconds in best.items()
            }
        con.close()
    rows = given.generated * given.candidates
    print(
        json.dumps(
            {"matches": rows, **vars(given), "duckdb": duckdb.__version__, "seconds": figures}, indent=2
        )
    )


if __name__ == "__main__":
    main()
