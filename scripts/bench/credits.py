"""Credits out of SQL against a bare GROUP BY over the same rows; prints one JSON document.

    python scripts/bench/credits.py [--generated 50000] [--candidates 200] [--training 60000] [--owners 100]

Both sides run in turn, in one process, on one connection; the figures are the best wall time and the best CPU time (of
all threads) of the rounds. On a busy machine trust the CPU time. Then the evidence of one generated image in a hundred
is replaced, as `update` does when images come or go, and credits are asked again. Memory is this process's peak.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
from common import machine, note, peak_memory, show

from gmv_qdrant.ledger.database import Ledger

ONCE = {"effective_contributors": "", "owner_shapley": "'owner', ", "credit_intervals": "'owner', "}
"""Answers that are asked once, and their first arguments."""
COLUMNS = "generated_key, training_key, rank, distance"


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


def clock(call: Callable[[], Any]) -> dict[str, float]:
    """Wall and CPU seconds of ``call``, of all threads, and the peak memory of this process meanwhile."""
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    with peak_memory() as memory:
        call()
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall, "cpu": cpu, "peak_mb": memory["own"]}


def measure(
    con: duckdb.DuckDBPyConnection, queries: dict[str, str], rounds: int
) -> dict[str, dict[str, float]]:
    """Best wall and CPU seconds of each query, all asked in turn, and the highest peak of memory."""
    best: dict[str, dict[str, float]] = {name: {"wall": 1e9, "cpu": 1e9, "peak_mb": 0} for name in queries}
    for _ in range(rounds):
        for name, query in queries.items():
            one = clock(lambda: con.sql(query).to_arrow_table())  # noqa: B023
            peak = max(best[name]["peak_mb"], one["peak_mb"])
            best[name] = {unit: min(best[name][unit], one[unit]) for unit in ("wall", "cpu")} | {
                "peak_mb": peak
            }
            note(name, one)
    return best


def replace(con: duckdb.DuckDBPyConnection) -> None:
    """New evidence for one generated image in a hundred: rows go, and as many come."""
    con.execute(f"""CREATE TEMP TABLE fresh AS SELECT {COLUMNS} FROM matches WHERE generated_key % 100 = 0;
        BEGIN; DELETE FROM matches WHERE generated_key IN (SELECT DISTINCT generated_key FROM fresh);
        INSERT INTO matches ({COLUMNS}) SELECT generated_key, training_key, rank, distance * 1.01 FROM fresh; COMMIT;
        DROP TABLE fresh""")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("generated", 50_000), ("candidates", 200), ("training", 60_000), ("owners", 100)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--work", type=Path, help="where the ledger is made, and removed; else the temporary folder"
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--also", nargs="*", choices=[*ONCE], default=[*ONCE])
    given = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=given.work) as folder:
        path = Path(folder) / "ledger.duckdb"
        make(path, given.generated, given.candidates, given.training, given.owners)
        disk = path.stat().st_size >> 20
        with duckdb.connect(str(path), config={"threads": given.threads}) as con:
            for k in (30, given.candidates):
                figures[f"k = {k}"] = compare(con, k, given.rounds, given.also)
            credits = f"SELECT list(value ORDER BY name) FROM credits('owner', k := {given.candidates})"
            before = con.sql(credits).fetchall()
            update = clock(lambda: replace(con))
            changed = clock(lambda: con.sql(credits).fetchall())
            update["credits_changed"] = before != con.sql(credits).fetchall()
    found = {
        "machine": machine(),
        "matches": given.generated * given.candidates,
        **{
            name: getattr(given, name)
            for name in ("generated", "candidates", "training", "owners", "threads")
        },
        "disk_mb": disk,
        "seconds": figures,
        "replace_1_percent": update,
        "credits_after": changed,
    }
    show(found, given.out)


def compare(
    con: duckdb.DuckDBPyConnection, k: int, rounds: int, also: list[str]
) -> dict[str, dict[str, float]]:
    """Seconds of each answer, and how many times those of the bare GROUP BY."""
    bare = {
        "bare GROUP BY": f"SELECT training_key, sum(distance) FROM matches WHERE rank <= {k} GROUP BY training_key"
    }
    asked = {
        "credits": f"FROM credits('owner', k := {k})",
        "image_values": f"FROM image_values(k := {k})",
    }
    once = {name: f"FROM {name}({field}k := {k})" for name, field in ONCE.items() if name in also}
    best = measure(con, {**bare, **asked}, rounds)
    best |= measure(con, once, 1)
    least = best["bare GROUP BY"]
    return {
        name: of_name | {f"{unit}_ratio": of_name[unit] / max(1e-9, least[unit]) for unit in ("wall", "cpu")}
        for name, of_name in best.items()
    }


if __name__ == "__main__":
    main()
