"""Every figure of docs/research/performance.md by one command.

    python scripts/bench/all.py --out figures.json [--only NAME ...] [--kit KIT] [--device cuda]
    python scripts/bench/all.py --small
    python scripts/bench/all.py --table docs/research/performance.md [--out figures.json]

Each benchmark is a process that measures its sides in turns. figures.json holds their rows with machine, versions, date
and command; with ``--only``, what other benchmarks gave before stays. ``--table`` writes the page's tables from it.
``--small`` takes a minute and needs no KIT: exit code 1 when a count (passes through networks, queries, rows and bytes
read) isn't what it must be; times are never looked at.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common import KIT, machine, note

HERE = Path(__file__).parent
BENCHES = {
    "networks": ["networks.py"],
    "recall": ["recall.py"],
    "real": ["recall.py", "--real", "--sizes", "20000", "--turns", "3"],
    "credits": ["credits.py"],
    "update": ["update.py", "-n", "2000", "-m", "200"],
    "rayed": ["rayed.py"],
    "phases": ["phases.py"],
}
ASKED_FOR = {"million": ["recall.py", "--sizes", "1000000", "--turns", "3"], "gpu": ["gpu.py"]}
"""Only by ``--only``: some 40 minutes and 8 GB; a GPU."""
SMALL = {
    name: [f"{name}.py", "--small"] for name in ("networks", "recall", "credits", "update", "gpu", "phases")
}
MARKS = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- /figures -->)", re.DOTALL)


def run(command: list[str]) -> dict[str, Any] | None:
    """What one benchmark printed, and how long it took; None when it failed, which stderr tells."""
    note(shlex.join(command))
    started = time.perf_counter()
    environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **os.environ}
    done = subprocess.run(
        [sys.executable, str(HERE / command[0]), *command[1:]],
        stdout=subprocess.PIPE, text=True, check=False, env=environment,
    )  # fmt: skip
    if done.returncode:
        note("failed with exit code", done.returncode)
        return None
    shown = [part for part in command if not part.startswith("/")]
    return {
        **json.loads(done.stdout),
        "command": f"python scripts/bench/{shlex.join(shown)}",
        "seconds": round(time.perf_counter() - started),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
    }


def met(row: dict[str, Any]) -> str:
    if "count" in row:
        return "met" if row["count"] == row["expected"] else "missed"
    if row["aim"] is None:
        return ""
    sign, bound = row["aim"].split()
    kept = row["value"] <= float(bound) if sign == "<=" else row["value"] >= float(bound)
    return "met" if kept else "missed"


def line(row: dict[str, Any]) -> str:
    if "count" in row:
        cells = [f"{row['count']:,}", "", "count", f"{row['expected']:,}"]
    else:
        spread = f"{row['low']:.3g} to {row['high']:.3g}" if row["turns"] > 1 else "one turn"
        cells = [f"{row['value']:.3g}", spread, row["unit"], row["aim"] or ""]
    return "| " + " | ".join([row["figure"], *cells, met(row)]) + " |"


def table(document: dict[str, Any]) -> str:
    """Markdown of one benchmark: its machine and command, and a line for each row."""
    on = document["machine"]
    versions = ", ".join(f"{name} {on[name]}" for name in on if name not in {"processor", "cores", "threads"})
    lines = [
        f"`{document['command']}`, {document['date']}: {on['processor']}, {on['cores']} cores, "
        f"{on['threads']} thread(s); "
        f"{versions}.", "", "| figure | median | spread | unit | aim | |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    lines += map(line, document["rows"])
    return "\n".join(lines) + "\n"


def fill(page: Path, figures: dict[str, Any]) -> None:
    """Put tables where the page has their marks."""

    def one(mark: re.Match[str]) -> str:
        document = figures.get(mark[2])
        return mark[1] + ("\n" + table(document) + "\n" if document else "") + mark[3]

    page.write_text(MARKS.sub(one, page.read_text()))


def wrong(documents: dict[str, dict[str, Any]]) -> list[str]:
    """Counts that aren't what they must be."""
    return [
        f"{name}: {row['figure']}: {row['count']:,}, not {row['expected']:,}"
        for name, document in documents.items()
        for row in document["rows"]
        if "count" in row and row["count"] != row["expected"]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("figures.json"))
    parser.add_argument("--only", nargs="+", choices=[*BENCHES, *ASKED_FOR], metavar="NAME")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--kit", type=Path, default=KIT)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--table", type=Path, metavar="PAGE")
    options = parser.parse_args()
    if options.table:
        fill(options.table, json.loads(options.out.read_text()))
        return
    known = SMALL if options.small else BENCHES | ASKED_FOR
    names = [name for name in options.only or (SMALL if options.small else BENCHES) if name in known]
    figures = json.loads(options.out.read_text()) if options.out.exists() and not options.small else {}
    found, failed = {}, []
    for name in names:
        done = run([*known[name], "--kit", str(options.kit), "--device", options.device])
        if done is None:
            failed.append(f"{name} failed")
            continue
        found[name] = done
        if not options.small:
            options.out.write_text(json.dumps(figures | found, indent=2) + "\n")
    for name, document in found.items():
        print(f"\n## {name}\n\n{table(document)}")
    if faults := failed + wrong(found):
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
