"""What quantization costs and saves: recall@K, bytes, build time and query time against exact search.

    python scripts/bench/recall.py --sizes 20000 100000 > recall.json

Both sides are measured in one run on the same vectors and queries: the embedded store with each kind of code,
and one batched float32 matrix product over all vectors in memory. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gmv_qdrant.vectors.embedded.store import EdgeStore
from gmv_qdrant.vectors.protocol import CollectionSpec, Quantization, SearchParams
from gmv_qdrant.vectors.search import default_params, measure_recall, tune_search

BATCH = 2_000
REPEATS = 5


def clustered(n: int, queries: int, dim: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors in clusters of about a hundred, as embeddings of images have them, and queries among them."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(2, n // 100), dim), dtype=np.float32)
    total = n + queries
    rows = centres[rng.integers(0, len(centres), total)]
    rows += 0.7 * rng.standard_normal((total, dim), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows[:n], rows[n:]


def side_by_side(*calls: Callable[[], object]) -> list[float]:
    """Median seconds of each call, taken in turns: other work on the machine meets all sides."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(REPEATS):
        for call, of_call in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            of_call.append(time.perf_counter() - start)
    return [statistics.median(of_call) for of_call in times]


def matmul(rows: np.ndarray, queries: np.ndarray, limit: int) -> np.ndarray:
    scores = queries @ rows.T
    return np.argpartition(-scores, limit - 1, axis=1)[:, :limit]


def measure(
    rows: np.ndarray, queries: np.ndarray, limit: int, kind: Quantization, folder: Path
) -> dict[str, Any]:
    n, dim = rows.shape
    with EdgeStore.open(folder, CollectionSpec(kind, dim, quantization=kind)) as store:
        start = time.perf_counter()
        for i in range(0, n, BATCH):
            part = rows[i : i + BATCH]
            store.upsert(list(range(i, i + len(part))), part, [{}] * len(part))
        store.flush()
        upserted = time.perf_counter()
        store.optimize(force=True)
        built = time.perf_counter()
        status = store.status()
        params = default_params(kind, limit)
        ours, plain = side_by_side(
            lambda: store.search(queries, limit, params), lambda: matmul(rows, queries, limit)
        )
        found: dict[str, Any] = {
            "upsert_points_per_second": round(n / (upserted - start)),
            "build_seconds": round(built - upserted, 2),
            "coded_points": status.coded_points,
            "code_bytes": status.code_bytes,
            "vector_bytes": status.vector_bytes,
            "oversampling": params.oversampling,
            "recall": round(measure_recall(store, queries, limit, params), 5),
            "query_ms": round(1e3 * ours / len(queries), 3),
            "matmul_ms": round(1e3 * plain / len(queries), 3),
            "query_time_over_matmul": round(ours / plain, 2),
        }
        if kind != "none":
            bare = SearchParams(rescore=False, oversampling=1.0)
            found["recall_without_rescoring"] = round(measure_recall(store, queries, limit, bare), 5)
            calibrated, recall = tune_search(store, queries, limit)
            found["quality_weighted"] = {"oversampling": calibrated.oversampling, "recall": round(recall, 5)}
        return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--limit", type=int, default=200, help="K")
    parser.add_argument("--kinds", nargs="+", default=["pq", "turbo", "scalar", "none"])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    report: dict[str, Any] = {"machine": platform.processor() or platform.machine(), **vars(args), "runs": []}
    for n in args.sizes:
        rows, queries = clustered(n, args.queries, args.dim, args.seed)
        run: dict[str, Any] = {"points": n}
        for kind in args.kinds:
            with tempfile.TemporaryDirectory() as folder:
                run[kind] = measure(rows, queries, args.limit, kind, Path(folder))
                print(n, kind, run[kind], file=sys.stderr)
        report["runs"].append(run)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
