"""`ingest` by Ray with one worker and with two, beside the local engine; and memory for each image.

    python scripts/bench/rayed.py [-n 1500]

Each side is a process of its own. Ray's start and each worker's loading of networks are in it, as users wait for them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import images, networks, note, parser, peak_memory, row, show, workspace, write_images

SIDES = {"local": {}, "one worker": {"ray_workers": 1}, "two workers": {"ray_workers": 2}}


def side(name: str, folder: Path, kit: Path, device: str) -> None:
    options = SIDES[name]
    engine = {"engine": "ray", "workers": 1, **options} if options else {}
    mine = workspace(folder / name.replace(" ", "-"), device, networks(kit, small=False), **engine)
    started = time.perf_counter()
    with peak_memory() as memory:
        mine.ingest([folder / "training"])
    print(json.dumps({"seconds": time.perf_counter() - started, "mb": memory["own"]}))


def main() -> None:
    made = parser(__doc__)
    made.add_argument("-n", type=int, default=1_500)
    made.add_argument("--side")
    made.add_argument("--folder", type=Path)
    options = made.parse_args()
    if options.side:
        side(options.side, options.folder, options.kit, options.device)
        return
    rows, found = [], {}
    with tempfile.TemporaryDirectory() as folder:
        write_images(images(options.kit, "cifar10_train_10k_A", 0, options.n), Path(folder) / "training")
        for name in SIDES:
            command = [
                sys.executable,
                __file__,
                "--side",
                name,
                "--folder",
                folder,
                "--kit",
                str(options.kit),
            ]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[name] = json.loads(done.stdout.splitlines()[-1])
            note(name, found[name])
            rows += [
                row(f"{options.n:,} images, {name}", [found[name]["seconds"]], "s"),
                row(f"{options.n:,} images, {name}: own memory of the driver", [found[name]["mb"]], "MB"),
            ]
    rows.append(row("two workers / one", [found["two workers"]["seconds"] / found["one worker"]["seconds"]]))
    show(rows)


if __name__ == "__main__":
    main()
