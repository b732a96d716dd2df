"""The main job on real digits of a real GAN, beside plain code that uses none of this tool.

    python scripts/reproduce/digits.py ../shared [--training 10000] [--generated 100] [--work DIR]

Recall by EfficientNet-Lite0, re-ranking by LPIPS (AlexNet) at 64 px, K = 200. Prints JSON: the identical-class ratio
with standard errors, correlation of the values with the oracle's (exact search, the lpips package's pairwise calls),
recall@200 of product quantization, and the bytes that it saves.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from gmv_qdrant import Workspace

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
import oracle

OWNERS = ("Ada", "Bay Street", "Camera club", "Dana")
K = 200


def write_set(images: np.ndarray, labels: np.ndarray, folder: Path) -> list[Path]:
    paths = oracle.write_png(images, folder, folder.name + "-")
    rows = [
        f"{p.name},{label},{OWNERS[i % 4]}" for i, (p, label) in enumerate(zip(paths, labels, strict=True))
    ]
    (folder / "metadata.csv").write_text("\n".join(["file_name,label,owner", *rows]) + "\n")
    return paths


def same_class(workspace: Workspace, k: int) -> dict[str, float]:
    rho, error = workspace.sql(
        f"""WITH per_image AS (
            SELECT avg((t.label = g.label)::INTEGER) AS rho FROM contributions(k := {k}) c
            JOIN images t USING (training_key) JOIN generated g USING (generated_key) GROUP BY c.generated_key)
        SELECT avg(rho), stddev_samp(rho) / sqrt(count(*)) FROM per_image"""
    ).fetchall()[0]
    return {"rho_percent": round(100 * rho, 2), "standard_error": round(100 * error, 2)}


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("shared", type=Path)
    arguments.add_argument("--training", type=int, default=10_000)
    arguments.add_argument("--generated", type=int, default=100)
    arguments.add_argument("--work", type=Path)
    given = arguments.parse_args()
    os.environ["TORCH_HOME"] = str(given.shared / "data/weights/torch_home")
    weights = given.shared / "data/weights/tf_efficientnet_lite0-fp16.pth"
    load = runpy.run_path(str(given.shared / "data/load.py"))["load"]
    work = given.work or Path(tempfile.mkdtemp())
    sets = {}
    for name, file, count in (
        ("training", "mnist_train_10k_A", given.training),
        ("generated", "mnist_gen_gan", given.generated),
    ):
        data = load(given.shared / f"data/images/{file}.npz")
        step = len(data["images"]) // count
        sets[name] = write_set(data["images"][::step][:count], data["labels"][::step][:count], work / name)
    training, generated = sets["training"], sets["generated"]

    figures: dict[str, object] = {"training_images": len(training), "generated_images": len(generated)}
    values, found = {}, {}
    for quantization in ("none", "pq"):
        workspace = Workspace.init(
            work / quantization, encoder="timm:tf_efficientnet_lite0", encoder_weights=str(weights),
            distance="lpips:alex@64", quality="none", candidates=K, quantization=quantization,
        )  # fmt: skip
        ingested = workspace.ingest([work / "training"])
        valued = workspace.value([work / "generated"])
        by_uri = dict(workspace.credits("image").project("uri, value").fetchall())
        values[quantization] = np.array([by_uri[str(path)] for path in training])
        index = {str(path): i for i, path in enumerate(training)}
        pairs = workspace.sql(
            "SELECT g.uri, s.uri FROM matches JOIN generated g USING (generated_key) "
            "JOIN sources s USING (training_key)"
        ).fetchall()
        found[quantization] = {(g, index[t]) for g, t in pairs}
        figures[quantization] = {
            "identical_class": {f"k={k}": same_class(workspace, k) for k in (30, 50, 100)},
            "seconds": {"ingest": ingested["seconds"], "value": valued["seconds"]},
            "store": workspace.status()["store"],
        }

    started = time.perf_counter()
    embedded = [
        oracle.timm_embeddings(paths, "tf_efficientnet_lite0", weights) for paths in (training, generated)
    ]
    rows = oracle.candidates(*embedded, K)
    pairwise = oracle.PairwiseLpips("alex", 64)
    distances = np.stack(
        [pairwise(p, [training[i] for i in who]) for p, who in zip(generated, rows, strict=True)]
    )
    expected = oracle.contributions(distances, rows, len(training), 30, 1.0, np.ones(len(generated))).sum(
        axis=0
    )
    exact = {(str(p), int(i)) for p, who in zip(generated, rows, strict=True) for i in who}
    figures["oracle_seconds"] = round(time.perf_counter() - started, 1)
    figures["correlation_with_oracle"] = {q: float(np.corrcoef(v, expected)[0, 1]) for q, v in values.items()}
    figures["recall_at_200"] = {q: len(pairs & exact) / len(exact) for q, pairs in found.items()}
    print(json.dumps(figures, indent=2, default=str))


if __name__ == "__main__":
    main()
