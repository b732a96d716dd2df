"""Where the time of each verb goes: the phases of a run, and what is beside them.

    python scripts/bench/phases.py [-n 1000] [-m 200] [--small]

Phases overlap: one chunk is matched and written while the next goes through the networks.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import Row, count, images, networks, note, parser, row, show, workspace, write_images


def main() -> None:
    made = parser(__doc__)
    made.add_argument("-n", type=int, default=1_000)
    made.add_argument("-m", type=int, default=200)
    options = made.parse_args()
    kit = Path("none") if options.small else options.kit
    n, m = (60, 8) if options.small else (options.n, options.m)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        pictures = images(kit, "cifar10_train_10k_A", 0, n + n // 10)
        training, new = write_images(pictures[:n], work / "a"), write_images(pictures[n:], work / "b")
        generated = write_images(images(kit, "cifar10_gen_vae", 0, m), work / "g")
        mine = workspace(
            work / "ws", options.device, networks(kit, options.small), candidates=min(200, n // 2)
        )

        def profiled(verb: str, call: Callable[[], Any]) -> None:
            started = time.perf_counter()
            found = call()
            whole = time.perf_counter() - started
            phases = dict(found["seconds"]) if isinstance(found, dict) and "seconds" in found else {}
            phases.pop("total", None)
            rows.append(row(f"**{verb}**", [whole], "s"))
            rows.extend(
                row(f"{verb}: {name}", [seconds], "s") for name, seconds in phases.items() if seconds >= 0.005
            )
            note(verb, whole, phases)

        profiled("ingest", lambda: mine.ingest([training], owner="a"))
        profiled("value", lambda: mine.value([generated]))
        profiled("ingest 10 % more, credits kept exact", lambda: mine.ingest([new], owner="b"))
        profiled("ingest, nothing new", lambda: mine.ingest([training], owner="a"))
        profiled("withdraw", lambda: mine.withdraw(owner="b"))
        profiled("credits", lambda: mine.credits("owner").fetchall())
        profiled("check", mine.check)
        profiled("report", lambda: mine.report(work / "report.html"))
        profiled("export", lambda: mine.export(work / "export"))
    show(
        [count("verbs that were profiled", sum("**" in one["figure"] for one in rows), 9)]
        if options.small
        else rows
    )


if __name__ == "__main__":
    main()
