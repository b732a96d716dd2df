"""Growth (App. O, P; Figs. 10, 11, 12): seconds per generated image with n, with m and with K, by phase.

    python scripts/reproduce/growth.py KIT [--sizes 1000 2500 5000 10000] [--many 10 30 100 250]
    [--recalled 100 200 300 400 500 600 700] [--plots DIR]

Fig. 10: every distance at growing n. Fig. 11: the recall phase alone, beside a float32 matrix product over all vectors.
Fig. 12: K by l2, time and identical-class ratio at k = 30, beside exact search re-ranked by the same distance.

Each workspace values a few other images first, which loads code and measures the recall of the codes. Phases are by
the clock; they overlap, and may add up to more than the run. Processor time is that of a run, less that of the same run
with nothing new, which loads the networks, too. Vectors of training images are remembered between workspaces, those
of generated images are computed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
import others

from gmv_qdrant import Workspace
from gmv_qdrant.models.registry import load_distance

WARM = 8
DISTANCE = "l2@64"
"""Of Fig. 12, as in the paper."""
K_OF_RHO = 30


def timed(workspace: Workspace, folder: Path, batch: str, count: int) -> dict[str, Any]:
    """Seconds an image: by phase and by the clock; and of the processor, less those of a run with nothing new."""

    def run() -> tuple[dict[str, float], float]:
        started = time.process_time()
        spent = workspace.value([folder], batch=batch)["seconds"]
        return spent, time.process_time() - started

    (phases, processor), (_, once) = run(), run()
    by_phase = {phase: seconds / count for phase, seconds in phases.items()}
    return {"seconds": by_phase, "processor": (processor - once) / count}


def rho(workspace: Workspace, batch: str | None, k: int) -> dict[str, float]:
    row: dict[str, float] = workspace.evaluate("identical-class", batch=batch, options={"ks": (k,)})["rows"][
        0
    ]
    return {"rho": row["rho"], "standard_error": row["standard_error"]}


def reranked(paths: list[Path], made: list[Path], rows: np.ndarray, k: int) -> others.Ranked:
    """The k nearest of the candidates ``rows`` by the distance of Fig. 12, and the distances."""
    encoder = load_distance(DISTANCE)
    wanted = np.unique(rows)
    training = dict(zip(wanted.tolist(), others.encoded(encoder, [paths[i] for i in wanted]), strict=True))
    chosen, distances = [], []
    for image, candidates in zip(others.encoded(encoder, made), rows, strict=True):
        away = np.array([np.linalg.norm(training[i] - image) for i in candidates.tolist()], dtype=np.float64)
        order = np.argsort(away, kind="stable")[:k]
        chosen.append(candidates[order])
        distances.append(away[order])
    return np.stack(chosen), np.stack(distances), "distance"


def matmul_seconds(training: np.ndarray, generated: np.ndarray, count: int) -> float:
    """Seconds a query: one query at a time, a matrix product over all vectors and the nearest ``count`` of it."""
    started = time.perf_counter()
    for one in generated:
        near = np.argpartition(-(training @ one), min(count, len(training) - 1))[:count]
        near[np.argsort(-(training[near] @ one))]
    return (time.perf_counter() - started) / len(generated)


def draw(found: dict[str, Any], target: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    by_n, recall, by_m, by_k = figure.subplots(2, 2).ravel()
    for distance, rows in found["by_n"].items():
        at = [row["n"] for row in rows]
        by_n.plot(at, [1000 * row["processor"] for row in rows], "o-", label=distance)
        recall.plot(at, [1000 * row["seconds"]["recall"] for row in rows], "o-", label=f"recall, {distance}")
    rows = found["matmul"]
    recall.plot([row["n"] for row in rows], [1000 * row["seconds"] for row in rows], "s--", color="grey",
                label="float32 product, exact")  # fmt: skip
    for distance, rows in found["by_m"].items():
        by_m.plot([row["m"] for row in rows], [1000 * row["processor"] for row in rows], "o-", label=distance)
    at = [row["K"] for row in found["by_K"]]
    by_k.plot(at, [1000 * row["processor"] for row in found["by_K"]], "o-", label="ms an image")
    right = by_k.twinx()
    for name, style in (("codes", "o-"), ("exact", "s--")):
        rates = [100 * row[name]["rho"] for row in found["by_K"]]
        right.plot(at, rates, style, color="#c05621", alpha=0.7, label=f"rho, {name}")
    right.set(ylabel=f"rho at k = {found['k']} (%)", ylim=(0, 102))
    by_k.set(
        title="Fig. 12: K", xlabel="K", ylabel="ms per generated image, of the processor", ylim=(0, None)
    )
    lines = [*by_k.get_lines(), *right.get_lines()]
    by_k.legend(lines, [line.get_label() for line in lines], frameon=False, fontsize=8, loc="center right")
    by_n.set(title="Fig. 10: n", xlabel="n, training images")
    recall.set(title="Fig. 11: recall alone", xlabel="n, training images")
    by_m.set(title="m", xlabel="m, generated images in a run")
    for axes in (by_n, recall, by_m):
        clock = " by the clock" if axes is recall else " of the processor"
        axes.set(ylabel=f"ms per generated image,{clock}", ylim=(0, None))
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(target)


def main() -> None:
    parser = common.arguments(
        __doc__, encoder="alexnet", distances=("none", "l2@64", "lpips:alex@64"), sizes=(1000, 2500, 5000, 10_000),
        many=(10, 30, 100, 250), recalled=(100, 200, 300, 400, 500, 600, 700), generated=100,
    )  # fmt: skip
    parser.add_argument("--plots", type=Path, help="a folder for growth.png")
    given = parser.parse_args()
    kit, work = common.Kit(given.kit), common.work_folder(given)
    everything = kit("mnist_gen_gan")
    stamp = time.strftime(
        "%H%M%S"
    )  # workspaces of this run only: in another one, images were embedded before

    def write_made(name: str, rows: np.ndarray) -> list[Path]:
        folder = work / f"growth-{name}-{stamp}"
        return common.write_set(everything["images"][rows], folder, label=everything["labels"][rows])

    # no image twice: what was valued before isn't embedded again
    left = np.random.default_rng(0).permutation(len(everything["labels"]))
    warm, made, many = work, [], {}
    for name, count in (("warm", WARM), ("made", given.generated), *((f"m{m}", m) for m in given.many)):
        if count > len(left):
            sys.exit(
                f"{len(everything['labels'])} generated images aren't enough for these --generated and --many"
            )
        rows, left = left[:count], left[count:]
        written = write_made(name, rows)
        if name == "warm":
            warm = written[0].parent
        elif name == "made":
            made = written
        else:
            many[count] = written

    def workspace_of(n: int, distance: str, candidates: int) -> tuple[Workspace, list[Path]]:
        training = kit("mnist_train_10k_A", n)
        folder = work / f"mnist_train_10k_A-{n}"
        paths = common.write_set(training["images"], folder, label=training["labels"])
        path = work / common.slug("growth", str(n), given.encoder, distance, str(candidates), stamp)
        settings = {**kit.encoder(given.encoder), "distance": distance, "candidates": candidates}
        with common.remembering(work):
            workspace = common.workspace(path, [folder], **settings)
        workspace.value([warm], batch=f"warm-{stamp}")
        return workspace, paths

    found: dict[str, Any] = {"generated_images": len(made), "by_n": {}, "by_m": {}, "by_K": [], "matmul": []}
    largest = max(given.sizes)
    for distance in given.distances:
        rows = found["by_n"].setdefault(distance, [])
        for n in given.sizes:
            common.note("n", n, distance)
            workspace, _ = workspace_of(n, distance, min(200, n))
            rows.append({"n": n, **timed(workspace, made[0].parent, f"made-{stamp}", len(made))})
            if n == largest:
                found["by_m"][distance] = [
                    {"m": m, **timed(workspace, those[0].parent, f"m{m}-{stamp}", m)}
                    for m, those in many.items()
                ]
            common.show(found, given.out, quiet=True)
    file = work / "recall-vectors.sqlite"
    queries = others.vectors(kit, given.encoder, made, file)
    k = found["k"] = min(K_OF_RHO, *given.recalled)
    for n in given.sizes:
        paths = [work / f"mnist_train_10k_A-{n}" / f"mnist_train_10k_A-{n}-{i:06d}.png" for i in range(n)]
        vectors = others.vectors(kit, given.encoder, paths, file)
        found["matmul"].append({"n": n, "seconds": matmul_seconds(vectors, queries, min(200, n))})
    exact, _, _ = others.nearest(vectors, queries, max(given.recalled))
    for candidates in given.recalled:
        common.note("K", candidates)
        workspace, paths = workspace_of(largest, DISTANCE, candidates)
        phases = timed(workspace, made[0].parent, f"made-{stamp}", len(made))
        near = reranked(paths, made, exact[:, :candidates], k)
        other = others.imported(workspace, work / f"growth-exact-{candidates}", made, paths, near)
        rates = {"codes": rho(workspace, f"made-{stamp}", k), "exact": rho(other, None, k)}
        found["by_K"].append({"K": candidates, **phases, **rates})
        common.show(found, given.out, quiet=True)
    if given.plots:
        given.plots.mkdir(parents=True, exist_ok=True)
        draw(found, given.plots / "growth.png")
    common.show(found, given.out)


if __name__ == "__main__":
    main()
