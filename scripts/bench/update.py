"""What keeping credits exact costs: `ingest` and `withdraw` of 1 % of the training images, beside valuing from scratch.

    python scripts/bench/update.py [-n 3000] [-m 300] [--small]

Both sides on the same collection, in one process; then every value is compared with the one from scratch.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import duckdb
from common import Row, count, counted, images, networks, note, parser, row, show, workspace, write_images

from gmv_qdrant import Workspace
from gmv_qdrant.vectors.embedded.store import EdgeStore


def values(mine: Workspace) -> dict[str, float]:
    return dict(mine.credits("image").project("image, value").fetchall())


def from_scratch(mine: Workspace, generated: Path, device: str) -> tuple[Workspace, float]:
    """A copy that has valued nothing yet, and the seconds of valuing everything."""
    root = Path(f"{mine.path}-scratch")
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(mine.path, root)
    for matrix in (root / "vectors").glob("generated-*"):
        matrix.unlink()
    with duckdb.connect(str(root / "ledger.duckdb")) as con:
        con.execute("DELETE FROM matches; DELETE FROM spare_candidates; DELETE FROM generated")
    fresh = Workspace(root, device=device)
    return fresh, fresh.value([generated])["seconds"]["total"]


def main() -> None:
    made = parser(__doc__)
    made.add_argument("-n", type=int, default=3_000)
    made.add_argument("-m", type=int, default=300)
    options = made.parse_args()
    kit = Path("none") if options.small else options.kit
    n, m, turns = (300, 20, 1) if options.small else (options.n, options.m, options.turns)
    one_percent, rows, shares = n // 100, [], {"ingest": [], "withdraw": []}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        pictures = images(kit, "cifar10_train_10k_A", 0, n + turns * one_percent)
        generated = write_images(images(kit, "cifar10_gen_vae", 0, m), work / "generated")
        mine = workspace(
            work / "ws", options.device, networks(kit, options.small), candidates=20 if options.small else 200
        )
        mine.ingest([write_images(pictures[:n], work / "training")])
        mine.value([generated])
        for turn in range(turns):
            start = n + turn * one_percent
            new = write_images(pictures[start : start + one_percent], work / f"new {turn}")
            with counted(EdgeStore, "search", lambda _, queries, *__: len(queries)) as asked:
                found = {
                    "ingest": mine.ingest([new], owner=f"newcomer {turn}", update=False) and mine.update(),
                    "withdraw": mine.withdraw(owner=f"newcomer {turn}"),
                }
            fresh, whole = from_scratch(mine, generated, options.device)
            for verb, summary in found.items():
                shares[verb].append(summary["seconds"]["total"] / whole)
            a, b = values(mine), values(fresh)
            rows = [
                count(
                    "values that differ from those from scratch",
                    sum(a[one] != b.get(one) for one in a | b),
                    0,
                )
            ]
            note(turn, shares, sum(asked))
    if options.small:  # elsewhere rounding can decide who is a candidate, and then a search does
        rows.append(count("queries to the store after 1 % came and went", sum(asked), 0))
    aimed: list[Row] = [
        row(f"update after 1 % {what} / from scratch", shares[verb], aim="<= 0.05")
        for verb, what in (("ingest", "more"), ("withdraw", "less"))
    ]
    show(rows if options.small else [*aimed, *rows])


if __name__ == "__main__":
    main()
