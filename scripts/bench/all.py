"""Every figure of docs/performance.md by one command: JSON, a table of aims hit and missed, and plots.

    python scripts/bench/all.py --data KIT --work FOLDER [--only NAME ...] [--baseline FOLDER/figures.json]
    python scripts/bench/all.py --small --work FOLDER [--only NAME ...]

Each benchmark is a process that measures both of its sides; its document stays as FOLDER/NAME.json, so that with
``--only`` some are run anew and the others are shown as they were. FOLDER/figures.json holds all documents, commands
and ratios. ``--baseline`` compares the ratios with those of an older one: exit code 1 when one is worse by more than
``--tolerance``. ``--small`` needs no KIT and takes a minute: exit code 1 when a ratio is far off, on any machine.
KIT is the data folder that docs/results.md describes.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import machine, note
from figures import Found, joined, read
from plots import draw
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
LITE = "timm:tf_efficientnet_lite0"


@dataclass(frozen=True, slots=True)
class Kit:
    """The data kit, and a folder to work in."""

    data: Path
    work: Path

    def images(self, name: str) -> str:
        return str(self.data / "images" / f"{name}.npz")

    @property
    def pair(self) -> list[str]:
        """Training and generated images."""
        return [
            "--training",
            self.images("cifar10_train_10k_A"),
            "--generated",
            self.images("cifar10_gen_vae"),
        ]

    @property
    def network(self) -> list[str]:
        return ["--encoder", LITE, "--weights", str(self.data / "weights/tf_efficientnet_lite0-fp16.pth")]


Command = Callable[[Kit], list[str]]

BENCHES: dict[str, Command] = {
    "paper": lambda kit: [
        "throughput.py", *kit.pair, "-n", "40", "-m", "32", "--repeat", "2", "--batches", "1", "4", "16",
        "--random-weights", str(kit.work / "random weights"),
    ],
    "throughput": lambda kit: [
        "throughput.py", *kit.pair, *kit.network, "-n", "400", "-m", "200", "--repeat", "2",
        "--distance", "lpips:alex@64", "--quality", "none",
    ],
    "rerank": lambda kit: ["rerank.py", "--images", kit.images("cifar10_train_10k_A")],
    "authors": lambda kit: ["authors.py", *kit.pair, *kit.network, "-n", "1000", "-m", "200"],
    "scale": lambda kit: [
        "scale.py", "--work", str(kit.work / "scale"), "--sizes", "10000", "100000", *kit.network,
    ],
    "million": lambda kit: [
        "scale.py", "--work", str(kit.work / "million"), "--sizes", "1000000", "--sides", "turbo", "pq", "faiss",
        *kit.network,
    ],
    "recall": lambda kit: ["recall.py", "--sizes", "20000", "100000"],
    "credits": lambda kit: ["credits.py"],
    "ledger": lambda kit: [
        "credits.py", "--generated", "500000", "--training", "1000000", "--owners", "1000", "--rounds", "2",
        "--also", "credit_intervals", "--work", str(kit.work),
    ],
    "update": lambda kit: [
        "update.py", "--data", str(kit.data), "--work", str(kit.work / f"update-{time.time_ns()}"),
        "-n", "3000", "-m", "300",
    ],
    "bf16": lambda kit: [
        "precision.py", *kit.pair, *kit.network, "--distance", "lpips:alex@64", "--count", "2000",
        "--generated-count", "200",
    ],
    "bf16-encoder": lambda kit: ["precision.py", "--images", kit.images("cifar10_train_10k_A"), *kit.network],
    "bf16-lpips": lambda kit: [
        "precision.py", "--images", kit.images("cifar10_train_10k_A"), "--distance", "lpips:alex@64",
    ],
}  # fmt: skip
SMALL: dict[str, Command] = {
    "scale": lambda kit: [
        "scale.py", "--work", str(kit.work / "scale"), "--sizes", "1000", "5000", "-m", "20", "--candidates", "200",
        "--sides", "pq", "turbo",
    ],
    "recall": lambda kit: ["recall.py", "--sizes", "3000", "--kinds", "turbo", "--queries", "20"],
    "credits": lambda kit: ["credits.py", "--generated", "2000", "--training", "3000", "--rounds", "2"],
    "rerank": lambda kit: ["rerank.py", "--images", kit.images("cifar10_train_10k_A"), "--repeat", "1"],
}  # fmt: skip
NEEDS_DATA = {"rerank"}
"""Of the small ones: left out where there is no KIT."""


def run(name: str, command: list[str], kit: Kit) -> dict[str, Any] | None:
    """The document of one benchmark; None when it failed, which stderr tells."""
    note(name, shlex.join(command))
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    weights = {"TORCH_HOME": str(kit.data / "weights/torch_home")}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(HERE / command[0]), *command[1:]],
        stdout=subprocess.PIPE, text=True, check=False, env={**weights, **os.environ, **threads},
    )  # fmt: skip
    if done.returncode or not done.stdout:
        note(name, "failed with exit code", done.returncode)
        return None
    document = json.loads(done.stdout)
    return {
        "command": f"python scripts/bench/{shlex.join(command)}",
        "seconds": round(time.perf_counter() - started, 1),
        "document": document,
    }


def load(work: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """What earlier runs left in the folder."""
    paths = {name: work / f"{name}.json" for name in names}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def table(
    found: list[Found], before: Mapping[str, float], tolerance: float, small: bool
) -> tuple[Table, int]:
    """All ratios beside their aims and the baseline's, and how many are too bad."""
    shown = Table("benchmark", "figure", "value", "aim", "", "baseline", "worse by")
    bad = 0
    for one in found:
        figure, value = one.figure, one.value
        bound = figure.loose if small else figure.aim
        kept = figure.keeps(value, bound)
        old = before.get(f"{one.bench}: {figure.name}")
        factor = figure.worse(value, old) if old is not None else None
        slower = factor is not None and factor > 1 + tolerance
        bad += slower or (small and kept is False)
        shown.add_row(
            one.bench,
            figure.name,
            f"{value:.3g}",
            "" if bound is None else f"{'>=' if figure.least else '<='} {bound:.3g}",
            {None: "", True: "[green]hit[/]", False: "[red]missed[/]"}[kept],
            "" if old is None else f"{old:.3g}",
            "" if factor is None else f"[red]{factor:.2f} times[/]" if slower else "-",
        )
    return shown, bad


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("no data kit"), metavar="KIT")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=[*BENCHES], metavar="NAME", help=", ".join(BENCHES))
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--baseline", type=Path, metavar="FIGURES_JSON")
    parser.add_argument("--tolerance", type=float, default=0.25, help="worse by this share is a regression")
    options = parser.parse_args()
    kit = Kit(options.data, options.work)
    there = options.data.is_dir()
    benches = {n: c for n, c in SMALL.items() if there or n not in NEEDS_DATA} if options.small else BENCHES
    if not (options.small or there):
        parser.error("give --data KIT, the data folder that docs/results.md describes, or --small")
    wanted = options.only or [*benches]
    if missing := set(wanted) - set(benches):
        parser.error(f"not in a small run without --data: {', '.join(sorted(missing))}")
    before = json.loads(options.baseline.read_text())["ratios"] if options.baseline else {}
    options.work.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name in wanted:
        done = run(name, benches[name](kit), kit)
        failed += done is None
        if done:
            (options.work / f"{name}.json").write_text(json.dumps(done, indent=2) + "\n")
    runs = load(options.work, [*benches])
    documents = {name: one["document"] for name, one in runs.items()}
    documents |= joined(documents)
    found = [one for name, document in documents.items() for one in read(name, document)]
    ratios = {f"{one.bench}: {one.figure.name}": one.value for one in found}
    gathered = {"machine": machine(), "benches": runs, "ratios": ratios}
    (options.work / "figures.json").write_text(json.dumps(gathered, indent=2) + "\n")
    plots = draw(documents, options.work)
    shown, bad = table(found, before, options.tolerance, options.small)
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(shown)
    for path in [options.work / "figures.json", *plots]:
        console.print(path)
    if failed or bad:
        console.print(f"[red]{failed} failed, {bad} figures too bad[/]")
        sys.exit(1)


if __name__ == "__main__":
    main()
