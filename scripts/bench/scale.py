"""What n costs: clustered 512-d vectors through the store, the feature files and the ledger, without networks.

    python scripts/bench/scale.py --work FOLDER [--sizes 10000 100000 1000000] [--sides pq faiss ...] [--small]

Sides: a kind of code (``pq``, ``turbo``, ``scalar``, ``none``; then ``-scan``: never with a graph, ``-graph``: always);
``engine`` (``pq`` that re-ranks inside Qdrant, by a second vector, and not from the feature files); ``faiss`` (IVF-PQ
with refinement, at the same K and recall). All are measured against a batched exact matmul over float32.
For each n: seconds to fill and to quantize, disk, milliseconds of recall and re-ranking per generated image, peak
memory. Each side runs in a process of its own, one after the other, and is written to ``--out`` when it is done.
``--encoder`` also measures a network's forward pass, for the growth with n of a whole valuation. ``--small`` takes a
minute, and exits 1 when a ratio is far off.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import Clock, disk_mb, machine, note, peak_memory, seconds, show

if TYPE_CHECKING:
    from gmv_qdrant.vectors.protocol import VectorStore

DIM, RERANK_DIM = 512, 1792
BLOCK = 20_000
TARGET = 0.99


def vectors(n: int, seed: int = 0) -> np.ndarray:
    """Unit float32 ``(n, 512)``: about 200 around each center, in blocks that don't depend on n."""
    centers = np.random.default_rng(seed).normal(size=(max(50, n // 200), DIM)).astype(np.float32)
    out = np.empty((n, DIM), dtype=np.float32)
    for start in range(0, n, BLOCK):
        random = np.random.default_rng((seed, start))
        rows = out[start : start + BLOCK]
        rows[:] = centers[random.integers(0, len(centers), len(rows))]
        rows += 0.7 * random.normal(size=rows.shape).astype(np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return out


def queries_near(data: np.ndarray, m: int) -> np.ndarray:
    """Generated images: each near a training image, as near as its neighbours are."""
    random = np.random.default_rng(99)
    near = data[random.integers(0, len(data), m)] + 0.03 * random.normal(size=(m, DIM)).astype(np.float32)
    return np.asarray(near / np.linalg.norm(near, axis=1, keepdims=True), dtype=np.float32)


def best_of(call: Callable[[], Any], repeat: int = 3) -> Clock:
    """The least wall and processor seconds."""
    times = [seconds(call) for _ in range(repeat)]
    return {clock: min(one[clock] for one in times) for clock in ("wall", "cpu")}


def per_query(call: Callable[[], Any], queries: np.ndarray) -> Clock:
    """Milliseconds for each of ``queries``, by the clock and of the processor."""
    clock = best_of(call)
    return {"ms": 1000 * clock["wall"] / len(queries), "cpu_ms": 1000 * clock["cpu"] / len(queries)}


def ours(task: dict[str, Any]) -> dict[str, Any]:
    """A workspace filled with vectors, and its own matching code."""
    from gmv_qdrant.pipeline.engine_rerank import EngineRerank

    from gmv_qdrant import Workspace
    from gmv_qdrant.ledger.database import insert
    from gmv_qdrant.ledger.runs import Run
    from gmv_qdrant.pipeline.ingest import insert_features
    from gmv_qdrant.pipeline.value import Valuation
    from gmv_qdrant.vectors.embedded import search, segments
    from gmv_qdrant.vectors.embedded import store as edge

    if task["graph"] is not None:
        edge.HNSW_POINTS = segments.HNSW_POINTS = search.HNSW_POINTS = 1 if task["graph"] else sys.maxsize
    root = Path(task["root"])
    shutil.rmtree(root, ignore_errors=True)
    data = np.load(task["data"], mmap_mode="r")
    queries = np.load(task["queries"])
    n, figures = len(data), {}
    columns = np.random.default_rng(1).integers(0, DIM, RERANK_DIM)
    workspace = Workspace.init(
        root, quantization=task["quantization"], candidates=max(task["candidates"]), rerank=task["rerank"]
    )
    shapes = {
        "recall_shape": {"dim": DIM, "metric": "cosine", "storage": {"dtype": "float32", "scale": 1.0}},
        "rerank_shape": {
            "dim": RERANK_DIM,
            "metric": "cosine",
            "storage": {"dtype": "float16", "scale": 1.0},
        },
    }
    with workspace.ledger.write() as con:
        workspace.ledger.set_meta(con, **shapes)
    with workspace._alone() as context, peak_memory() as memory:
        started = time.perf_counter()
        for start in range(0, n, BLOCK):
            rows = np.array(data[start : start + BLOCK])
            keys = list(range(start + 1, start + len(rows) + 1))
            points = [point(key) for key in keys]
            context.store.upsert(points, rows, [{"uri": f"image-{key}"} for key in keys])
            engine = EngineRerank(context) if context.reranks_in_engine else None
            if engine:
                engine.keep(points, rows[:, columns])
            else:
                locations = context.space("training/rerank").append(rows[:, columns])
            with workspace.ledger.write() as con:
                training = {"training_key": keys, "point_id": [str(point) for point in points]}
                insert(con, "training", {**training, "version_added": [1] * len(keys)})
                if not engine:
                    insert_features(con, "training/rerank", keys, locations)
        context.store.flush()
        figures["fill_s"] = time.perf_counter() - started
        started = time.perf_counter()
        context.store.optimize(force=True)
        figures["quantize_s"] = time.perf_counter() - started
        status = context.store.status()
    figures |= {
        name: round(size / 2**20, 2)
        for name, size in (("code_mb", status.code_bytes), ("vector_mb", status.vector_bytes))
    }
    figures["fill_peak_mb"] = memory
    figures["disk_mb"] = {name: disk_mb(root / name) for name in ("qdrant", "features")}
    figures["disk_mb"]["ledger"] = round((root / "ledger.duckdb").stat().st_size / 2**20, 1)
    with workspace._alone() as context, peak_memory() as memory:
        spaces = {
            "generated/recall": context.space("generated/recall").append(queries),
            "generated/rerank": context.space("generated/rerank").append(queries[:, columns]),
        }
        run = Run("bench", 1)
        valuation = Valuation(context, run)
        for k in task["candidates"]:
            context.settings.candidates = k
            valuation.matcher.params._params = None
            valuation.match(spaces)  # warms up, and measures recall
            figures[f"recall@{k}"] = run.figures["recall"]
            found = []
            for _ in range(3):
                run.timings.clear()
                valuation.match(spaces)
                found.append(
                    {name: 1000 * run.timings[name] / len(queries) for name in ("recall", "re-rank")}
                )
            params = valuation.matcher.params(queries)
            figures[f"ms@{k}"] = {
                **{name: min(one[name] for one in found) for name in ("recall", "re-rank")},
                "search": per_query(lambda: context.store.search(queries, k, params), queries),  # noqa: B023
                "oversampling": params.oversampling,
                "exact": params.exact,
            }
        figures["value_peak_mb"] = dict(memory)
        figures["sweep"] = sweep(context.store, queries, np.load(task["truth"])[:, : task["candidates"][0]])
    shutil.rmtree(root)
    return figures


def sweep(store: VectorStore, queries: np.ndarray, truth: np.ndarray) -> list[dict[str, float]]:
    """Recall and time of ever wider searches; ``truth`` int64 ``(q, k)`` are places in the data."""
    from gmv_qdrant.vectors.protocol import SearchParams

    k = truth.shape[1]
    near = [{point(place + 1) for place in row} for row in truth.tolist()]
    found = []
    for oversampling in (1.0, 2.0, 4.0, 8.0, 16.0):
        params = SearchParams(oversampling=oversampling, hnsw_ef=max(256, round(k * oversampling)))
        hits = store.search(queries, k, params)
        recall = float(
            np.mean([len(true.intersection(hit.ids)) / k for true, hit in zip(near, hits, strict=True)])
        )
        clock = per_query(lambda: store.search(queries, k, params), queries)  # noqa: B023
        found.append({"oversampling": oversampling, "recall": recall, **clock})
    return found


def point(key: int) -> uuid.UUID:
    return uuid.uuid5(uuid.NAMESPACE_OID, str(key))


def matmul(task: dict[str, Any]) -> dict[str, Any]:
    """All queries against all vectors in one product, and the K best of each row; leaves them, nearest first."""
    queries, figures = np.load(task["queries"]), {}
    with peak_memory() as memory:
        data = np.load(task["data"])

        def search(k: int) -> np.ndarray:
            parts = []
            for start in range(0, len(queries), 20):
                scores = queries[start : start + 20] @ data.T
                best = np.argpartition(scores, -k, axis=1)[:, -k:]
                order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
                parts.append(np.take_along_axis(best, order, axis=1))
            return np.concatenate(parts)

        np.save(task["truth"], search(max(task["candidates"])))
        for k in task["candidates"]:
            figures[f"search@{k}"] = per_query(lambda: search(k), queries)  # noqa: B023
    return {**figures, "peak_mb": memory}


def faiss_ivfpq(task: dict[str, Any]) -> dict[str, Any]:
    """IVF-PQ with as many bytes a vector, exact refinement, probing more cells until recall is reached."""
    import faiss

    faiss.omp_set_num_threads(1)
    data, queries, truth = (np.load(task[name]) for name in ("data", "queries", "truth"))
    figures: dict[str, Any] = {}
    with peak_memory() as memory:
        started = time.perf_counter()
        cells = int(np.sqrt(len(data)))
        coarse = faiss.IndexFlatIP(DIM)
        codes = faiss.IndexIVFPQ(coarse, DIM, cells, DIM // 4, 8, faiss.METRIC_INNER_PRODUCT)
        index = faiss.IndexRefineFlat(codes)
        index.train(data[: max(20_000, 50 * cells)])
        index.add(data)
        figures["build_s"] = time.perf_counter() - started
        for k in task["candidates"]:
            figures[f"search@{k}"] = _probing_enough(index, codes, cells, queries, truth[:, :k])
    return {**figures, "peak_mb": memory, "code_mb": round(len(data) * DIM / 4 / 2**20)}


def _probing_enough(
    index: Any, codes: Any, cells: int, queries: np.ndarray, truth: np.ndarray
) -> dict[str, Any]:
    """The first of ever wider searches that finds TARGET of ``truth``; the ones before are its ``sweep``."""
    k = truth.shape[1]
    tried = []
    for factor, probes in ((4, 8), (4, 16), (4, 32), (8, 32), (8, 64), (8, 128), (16, 256), (16, cells)):
        index.k_factor, codes.nprobe = factor, min(probes, cells)
        found = index.search(queries, k)[1]
        recall = float(np.mean([len(set(a) & set(b)) / k for a, b in zip(found, truth, strict=True)]))
        wide = {"recall": recall, "nprobe": codes.nprobe, "k_factor": index.k_factor}
        tried.append({**wide, **per_query(lambda: index.search(queries, k), queries)})
        if recall >= TARGET:
            break
    return {**tried[-1], "sweep": tried}


SIDES = {"ours": ours, "matmul": matmul, "faiss": faiss_ivfpq}


def alone(side: str, task: dict[str, Any]) -> dict[str, Any]:
    """One side in a process of its own."""
    note(side, {name: task[name] for name in ("n", "quantization", "graph", "rerank")})
    done = subprocess.run(
        [sys.executable, __file__, "--side", side, "--task", json.dumps(task)],
        stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        return {"failed": done.returncode}
    found = dict(json.loads(done.stdout))
    note(found)
    return found


def forward_ms(encoder: str, weights: str | None) -> float:
    """Of one image, at the batch size that the network is fastest at."""
    import torch
    from PIL import Image

    from gmv_qdrant.models.registry import load_encoder

    network = load_encoder(encoder, weights=weights)
    batch = torch.stack([network.prepare(Image.new("RGB", (224, 224), (9 * i, 7, 5))) for i in range(16)])
    return min(
        per_query(lambda: [network.encode(part) for part in batch.split(size)], batch)["ms"]  # noqa: B023
        for size in (1, 2, 16)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--sides", nargs="+", default=["pq", "turbo", "scalar", "none", "engine", "faiss"])
    parser.add_argument("-m", type=int, default=100)
    parser.add_argument("--candidates", type=int, nargs="+", default=[200, 100, 400, 700])
    parser.add_argument("--encoder", help="measure this network's forward pass, too")
    parser.add_argument("--weights")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--task", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(SIDES[options.side](options.task), default=float))
        return
    if options.small:
        options.sizes, options.m = [2_000, 10_000], 40
        options.sides, options.candidates = ["pq", "turbo"], [200]
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {
        "machine": machine(),
        "dim": DIM,
        "rerank_dim": RERANK_DIM,
        "m": options.m,
        "n": {},
    }
    if options.encoder:
        figures["forward_ms"] = forward_ms(options.encoder, options.weights)
    for n in options.sizes:
        paths = {name: str(work / f"{name}-{n}.npy") for name in ("data", "queries", "truth")}
        data = vectors(n)
        np.save(paths["queries"], queries_near(data, options.m))
        np.save(paths["data"], data)
        del data
        task = {**paths, "n": n, "root": str(work / f"workspace-{n}"), "candidates": options.candidates}
        rows = figures["n"][n] = {}
        for side in ("matmul", *options.sides):
            rows[side] = measure(side, task)
            figures["growth"] = growth(figures, options.candidates[0])
            if options.out:
                options.out.write_text(json.dumps(figures, indent=2, default=float))
        for path in paths.values():
            Path(path).unlink(missing_ok=True)
    show(figures, options.out)
    if options.small and not sane(figures, options.candidates[0]):
        sys.exit(1)


def measure(side: str, task: dict[str, Any]) -> dict[str, Any]:
    """One side by its name, see above."""
    kind, _, graph = side.partition("-")
    ours_of = {
        "quantization": "pq" if kind == "engine" else kind,
        "graph": graph == "graph" if graph else None,
        "rerank": "engine" if kind == "engine" else "local",
    }
    return alone(side if side in SIDES else "ours", {**task, **ours_of})


def growth(figures: dict[str, Any], k: int) -> dict[str, float]:
    """Time per generated image at the largest n over that at the smallest."""
    rows = [one["pq"][f"ms@{k}"] for one in figures["n"].values() if f"ms@{k}" in one.get("pq", {})]
    search = [row["recall"] + row["re-rank"] for row in rows]
    if len(search) < 2:
        return {}
    found = {"recall_and_rerank": search[-1] / search[0]}
    if "forward_ms" in figures:
        found["with_forward_pass"] = (search[-1] + figures["forward_ms"]) / (
            search[0] + figures["forward_ms"]
        )
    return found


def sane(figures: dict[str, Any], k: int) -> bool:
    """Loose bounds, for machines that do other things, too: recall is reached, codes are small, growth is mild."""
    largest = list(figures["n"].values())[-1]["pq"]
    return "failed" not in largest and bool(
        largest[f"recall@{k}"] >= TARGET
        and largest["code_mb"] <= largest["vector_mb"] / 8
        and figures["growth"].get("recall_and_rerank", 99.0) < 10
    )


if __name__ == "__main__":
    main()
