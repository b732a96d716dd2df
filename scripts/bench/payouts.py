"""A payout of many matches: seconds and memory of computing it, and of recomputing it by scripts/verify_payout.py.

python scripts/bench/payouts.py [--generated 50000] [--candidates 200] [--training 60000] [--owners 100]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from gmv_qdrant.accounting.bundle import write_bundle
from gmv_qdrant.accounting.evidence import Evidence
from gmv_qdrant.accounting.money import Currency
from gmv_qdrant.accounting.payout import Terms, compute
from gmv_qdrant.ledger.queries import ValueFunction

SCRIPT = Path(__file__).resolve().parents[1] / "verify_payout.py"


def tables(generated: int, candidates: int, training: int, owners: int) -> dict[str, pa.Table]:
    """Random evidence: ``generated`` x ``candidates`` matches; one image in a hundred has a near-copy."""
    random = np.random.default_rng(0)
    owner = random.integers(owners, size=training)
    distances = np.sort(random.uniform(0.2, 0.6, (generated, candidates)), axis=1)
    told = {
        "image": np.arange(training, dtype=np.int32),
        "uri": [f"{i}.png" for i in range(training)],
        "name": [f"owner {i:06d}" for i in owner],
        "licence": pa.nulls(training, pa.string()),
    }
    once, near = np.ones(training, np.int32), np.arange(0, training - 1, 100, dtype=np.int32)
    return {
        "generated": pa.table(
            {
                "batch": ["b"] * generated,
                "uri": [f"g{j:08d}.png" for j in range(generated)],
                "sha256": [f"{j:064x}" for j in range(generated)],
                "quality": random.uniform(0.2, 0.9, generated),
            }
        ),
        "images": pa.table(
            {"id": [f"{i:036d}" for i in range(training)], "sha256": [f"{i:064x}" for i in range(training)]}
        ),
        "sources": pa.table(told),
        "history": pa.table({**told, "place": once, "current": once}),
        "matches": pa.table(
            {
                "generated": np.repeat(np.arange(generated, dtype=np.int32), candidates),
                "rank": np.tile(np.arange(1, candidates + 1, dtype=np.int32), generated),
                "image": random.integers(training, size=generated * candidates, dtype=np.int32),
                "distance": distances.ravel(),
            }
        ),
        "copies": pa.table({"image": near, "other": near + 1, "distance": np.full(len(near), 0.05)}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("generated", 50_000), ("candidates", 200), ("training", 60_000), ("owners", 100)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rule", default="owner-shapley")
    given = parser.parse_args()
    figures: dict[str, float] = {"matches": given.generated * given.candidates}

    def timed(name: str, started: float) -> None:
        figures[f"{name} s"] = round(time.perf_counter() - started, 2)

    with tempfile.TemporaryDirectory() as folder:
        made = tables(given.generated, given.candidates, given.training, given.owners)
        started = time.perf_counter()
        evidence = Evidence.of_tables(made)
        timed("load", started)
        terms = Terms("owner", 10**9, Currency("EUR"), given.rule, ValueFunction(k=None, temperature=0.03))
        started = time.perf_counter()
        payout = compute(evidence, terms, training_version=1)
        timed("compute", started)
        started = time.perf_counter()
        write_bundle(Path(folder) / "bundle", payout.document(), evidence, {})
        timed("write", started)
        figures["bundle MB"] = round(sum(f.stat().st_size for f in Path(folder, "bundle").iterdir()) / 1e6, 1)
        figures["compute peak MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        del evidence, made
        started = time.perf_counter()
        code = (  # the kernel's figure for children starts with the parent's memory
            "import re, runpy, sys\nsys.argv = sys.argv[1:]\ntry: runpy.run_path(sys.argv[0], run_name='__main__')\n"
            "except SystemExit: print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, SCRIPT, Path(folder) / "bundle"],
            capture_output=True,
            text=True,
            check=False,
        )
        timed("verify_payout.py", started)
        figures["verify_payout.py peak MB"] = int(done.stdout.split()[-1]) // 1024
        print(done.stdout or done.stderr)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
