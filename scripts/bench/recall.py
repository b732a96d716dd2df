"""Recall and search time of the default path (fill, quantize, graph, tune, search) against one float32 matrix product.

    python scripts/bench/recall.py [--sizes 50000] [--kinds pq turbo] [--real] [--small]

Vectors: clusters in 512 dimensions; with ``--real``, embeddings of the kit's images and of shifted, flipped and
brightened ones, as many as are asked for. Each side is a process of its own, so that its memory is its own. ``faiss``
(IVF-PQ with as many bytes, refined by the exact vectors, probing until it is as good) is measured where it is
installed.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import Row, count, images, in_turns, networks, note, parser, peak_memory, ratios, row, show
from PIL import Image, ImageEnhance, ImageOps

from gmv_qdrant.vectors.embedded.store import EdgeStore
from gmv_qdrant.vectors.protocol import CollectionSpec
from gmv_qdrant.vectors.search import TunedSearch

DIM, QUERIES, FILL = 512, 100, 20_000
CANDIDATES = (100, 200, 400)
SETS = ("cifar10_train_10k_A", "fashion_train_10k_A", "mnist_train_10k_A")


def clusters(n: int) -> np.ndarray:
    """float32 ``(n, 512)`` unit vectors: mixed clusters, whose members are unlike in rank, as neighbours are."""
    random = np.random.default_rng(5)
    centres = random.normal(size=(max(50, n // 200), DIM)).astype(np.float32)
    rows = np.empty((n, DIM), dtype=np.float32)
    for start in range(0, n, FILL):
        part = rows[start : start + FILL]
        part[:] = centres[random.integers(0, len(centres), len(part))]
        part += 0.7 * random.normal(size=part.shape).astype(np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return rows


def embeddings(kit: Path, n: int) -> np.ndarray:
    """float32 ``(n, 1280)``: EfficientNet-Lite0 at 64 pixels of the kit's images, and of changed ones."""
    import timm
    import torch

    weights = {"file": networks(kit, small=False)["encoder_weights"]}
    network = timm.create_model(
        "tf_efficientnet_lite0", pretrained=True, num_classes=0, pretrained_cfg_overlay=weights
    )
    network.eval()
    originals = [image for name in SETS for image in images(kit, name, 0, 10_000)]
    random, rows = np.random.default_rng(6), []
    for start in range(0, n, 64):
        some = [
            _changed(originals[i % len(originals)], i // len(originals), random)
            for i in range(start, min(n, start + 64))
        ]
        batch = torch.stack(
            [torch.from_numpy(np.array(image.resize((64, 64)))).permute(2, 0, 1) for image in some]
        )
        with torch.inference_mode():
            rows.append(torch.nn.functional.normalize(network(batch.float() / 127.5 - 1)).numpy())
    return np.concatenate(rows)


def _changed(image: Image.Image, times: int, random: np.random.Generator) -> Image.Image:
    if times == 0:
        return image
    shift = [int(one) for one in random.integers(-4, 5, 2)]
    moved = image.transform(image.size, Image.Transform.AFFINE, (1, 0, shift[0], 0, 1, shift[1]))
    bright = ImageEnhance.Brightness(moved).enhance(float(random.uniform(0.7, 1.3)))
    return ImageOps.mirror(bright) if random.random() < 0.5 else bright


def queries_near(rows: np.ndarray) -> np.ndarray:
    """Generated images: each near a training image, as near as its neighbours are."""
    random = np.random.default_rng(99)
    noise = 0.6 / np.sqrt(rows.shape[1]) * random.normal(size=(QUERIES, rows.shape[1]))
    near = rows[random.integers(0, len(rows), QUERIES)] + noise
    return np.asarray(near / np.linalg.norm(near, axis=1, keepdims=True), dtype=np.float32)


def product(rows: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """The exact k nearest of each query, int64 ``(q, k)``, by one product for 20 queries."""
    parts = []
    for start in range(0, len(queries), 20):
        likeness = queries[start : start + 20] @ rows.T
        parts.append(np.argpartition(likeness, -k, axis=1)[:, -k:])
    return np.concatenate(parts)


def share(found: list[list[int]], truth: np.ndarray) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, truth.tolist(), strict=True)]))


def ours(
    kind: str, rows: np.ndarray, queries: np.ndarray, turns: int, target: float, folder: Path
) -> list[Row]:
    n, dim = rows.shape
    found = []
    with (
        peak_memory() as memory,
        EdgeStore.open(folder, CollectionSpec("bench", dim, quantization=kind)) as store,
    ):  # type: ignore[arg-type]
        started = time.perf_counter()
        for start in range(0, n, FILL):
            part = np.array(rows[start : start + FILL])
            store.upsert(list(range(start, start + len(part))), part, [{}] * len(part))
        store.flush()
        filled = time.perf_counter()
        store.optimize(force=True)
        found += [
            row("fill", [filled - started], "s"),
            row("quantize and graph", [time.perf_counter() - filled], "s"),
            row("codes", [store.status().code_bytes / 2**20], "MB"),
        ]
        for k in CANDIDATES:
            search = TunedSearch(store, k, target)
            started = time.perf_counter()
            search(queries, k)
            found.append(row(f"tune, K = {k}", [time.perf_counter() - started], "s"))
            found += against(
                lambda k=k, search=search: [hit.ids for hit in search(queries, k)], rows, queries, k, turns
            )  # type: ignore[misc]
    return [*found, row("own memory at its peak", [memory["own"]], "MB")]


def against(
    search: Callable[[], Any], rows: np.ndarray, queries: np.ndarray, k: int, turns: int
) -> list[Row]:
    """Recall, time of a query, and how many times that of the product."""
    recall = share(search(), product(rows, queries, k))
    clock = in_turns({"search": search, "product": lambda: product(rows, queries, k)}, turns)
    return [
        row(f"recall@{k}", [recall], "of 1", aim=">= 0.99"),
        row(f"search, K = {k}", [1000 * one / len(queries) for one in clock["search"]], "ms a query"),
        row(f"search / float32 product, K = {k}", ratios(clock["search"], clock["product"])),
    ]


def faiss_ivfpq(rows: np.ndarray, queries: np.ndarray, turns: int) -> list[Row]:
    import faiss

    faiss.omp_set_num_threads(1)
    n, dim = rows.shape
    cells = int(np.sqrt(n))
    coarse = faiss.IndexFlatIP(dim)
    codes = faiss.IndexIVFPQ(coarse, dim, cells, dim // 4, 8, faiss.METRIC_INNER_PRODUCT)
    index = faiss.IndexRefineFlat(codes)
    started = time.perf_counter()
    index.train(np.ascontiguousarray(rows[: max(20_000, 50 * cells)]))
    index.add(np.ascontiguousarray(rows))
    found = [row("build", [time.perf_counter() - started], "s")]
    for k in CANDIDATES:
        truth = product(rows, queries, k)
        for factor, probes in ((4, 8), (4, 32), (8, 64), (8, 128), (16, 256), (16, cells)):
            index.k_factor, codes.nprobe = factor, min(probes, cells)
            if share(index.search(queries, k)[1].tolist(), truth) >= 0.99:
                break
        found += against(lambda k=k: index.search(queries, k)[1].tolist(), rows, queries, k, turns)  # type: ignore[misc]
    return found


def alone(side: str, data: Path, turns: int) -> list[Row]:
    """One side in a process of its own."""
    note(side, data)
    command = [sys.executable, __file__, "--side", side, "--data", str(data), "--turns", str(turns)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return list(json.loads(done.stdout)["rows"])


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--sizes", type=int, nargs="+", default=[50_000])
    made.add_argument("--kinds", nargs="+", default=["pq", "turbo"])
    made.add_argument("--real", action="store_true")
    made.add_argument("--side")
    made.add_argument("--data", type=Path)
    options = made.parse_args()
    if options.side:
        rows = np.load(options.data / "rows.npy", mmap_mode="r")
        queries = np.load(options.data / "queries.npy")
        if options.side == "faiss":
            show(faiss_ivfpq(rows, queries, options.turns))
        else:
            show(ours(options.side, rows, queries, options.turns, 0.99, options.data / options.side))
        return
    if options.small:
        options.sizes, options.turns = [3_000], 1
    sides = [*options.kinds, *(["faiss"] if importlib.util.find_spec("faiss") else [])]
    found: list[Row] = []
    for n in options.sizes:
        with tempfile.TemporaryDirectory() as folder:
            rows = embeddings(options.kit, n) if options.real else clusters(n)
            np.save(Path(folder) / "rows.npy", rows)
            np.save(Path(folder) / "queries.npy", queries_near(rows))
            del rows
            what = f"{n:,} {'embeddings' if options.real else 'clustered vectors'}"
            for side in sides:
                for one in alone(side, Path(folder), options.turns):
                    found.append({**one, "figure": f"{what}, {side}: {one['figure']}"})
    if options.small:
        missed = sum(one["value"] < 0.99 for one in found if "recall@" in one["figure"])
        found = [count("recall@K below the target", missed, 0)]
    show(found)


if __name__ == "__main__":
    main()
