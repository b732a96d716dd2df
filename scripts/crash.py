"""Kill -9 at random moments of ingest, value, update, withdraw and quantizing; run the command again; compare.

    python scripts/crash.py [--seeds 200] [--start 0]

Each seed picks a command and a moment. The command line runs in a process of its own, forked from this one, which has
imported everything and used nothing; it is killed, the same command is run again, and then the exported values and
contributions must equal those of an undisturbed run, and `check` must find nothing. Exit code 1 when one doesn't.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import numpy  # noqa: F401 - imported here so that forked processes need not
import pandas  # noqa: F401
import PIL.PngImagePlugin  # noqa: F401
import pyarrow.compute  # noqa: F401
import pyarrow.parquet as parquet
import qdrant_edge  # noqa: F401
import tiny_workspace
import torch  # noqa: F401

from gmv_qdrant import Workspace
from gmv_qdrant.cli import main as command_line

Command = list[str]


class Scenario:
    """A workspace to begin with, and a command; `coded`: with product quantization, built at the end of ingest."""

    def __init__(
        self, root: Path, name: str, before: list[Command], command: Command, *, coded: bool = False
    ) -> None:
        self.name, self.before, self.command = name, before, command
        self.settings = (
            {**tiny_workspace.SETTINGS, "candidates": 400, "quantization": "pq"}
            if coded
            else tiny_workspace.SETTINGS
        )
        self.template = root / name / "template"
        self.seconds = 0.0
        self.expected: Any = None

    def prepare(self, images: Path, log: Path) -> None:
        """The template, and what an undisturbed run gives."""

        def make() -> None:
            Workspace.init(self.template, **self.settings)

        assert forked(make, log) == 0
        for command in self.before:
            assert gmv(self.template, command, images, log) == 0, log.read_text()
        calm = self.template.with_name("calm")
        copy(self.template, calm)
        started = time.monotonic()
        assert gmv(calm, self.command, images, log) == 0, log.read_text()
        self.seconds = time.monotonic() - started
        self.expected = finish(calm, images, log)


def scenarios(root: Path) -> list[Scenario]:
    first, second = ["ingest", "{}/a", "--owner", "ada"], ["ingest", "{}/b", "--owner", "bo"]
    value = ["value", "{}/g"]
    return [
        Scenario(root, "ingest", [first, value], second),
        Scenario(root, "value", [first, second], value),
        Scenario(root, "update", [first, value, second], ["update"]),
        Scenario(root, "withdraw", [first, second, value], ["withdraw", "--owner", "ada"]),
        Scenario(root, "quantize", [], ["ingest", "{}/many", "--owner", "ada"], coded=True),
    ]


def forked(call: Callable[[], Any], log: Path, *, kill_after: float | None = None) -> int:
    """Run in a process of its own: its exit code, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(out, 1)
            os.dup2(out, 2)
            call()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1 if stop.code else 0
        except BaseException:  # noqa: BLE001 - nothing of the parent may run in here
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def gmv(
    workspace: Path, command: Command, images: Path, log: Path, *, kill_after: float | None = None
) -> int:
    """The command line, as its entry point runs it."""

    def run() -> None:
        sys.argv = ["gmv-qdrant", "-w", str(workspace), *(part.format(images) for part in command)]
        command_line()

    return forked(run, log, kill_after=kill_after)


def finish(workspace: Path, images: Path, log: Path) -> Any:
    """Bring everything up to date, check it, and read what is exported; an AssertionError says what is wrong."""
    for command in (["value", "{}/g"], ["update"]):
        assert gmv(workspace, command, images, log) == 0, f"{command[0]} failed: {log.read_text()}"
    assert gmv(workspace, ["check", "--read-images"], images, log) == 0, f"check finds: {log.read_text()}"
    out = workspace / "out"
    assert gmv(workspace, ["export", str(out)], images, log) == 0, log.read_text()
    return {
        name: parquet.read_table(out / f"{name}.parquet", use_threads=False).to_pylist()
        for name in ("values", "contributions")
    }


def copy(source: Path, target: Path) -> None:
    """A whole folder; cp is quick about the holes in the store's logs."""
    shutil.rmtree(target, ignore_errors=True)
    assert os.spawnlp(os.P_WAIT, "cp", "cp", "-r", str(source), str(target)) == 0


def one(seed: int, scenario: Scenario, images: Path) -> str:
    """Kill at a random moment, once or twice, and go on."""
    chance = random.Random(seed)
    work = scenario.template.with_name(f"seed-{seed}")
    copy(scenario.template, work)
    log = work.with_suffix(".log")
    ends = []
    for _ in range(chance.choice((1, 1, 2))):
        moment = chance.uniform(0, 1.05 * scenario.seconds)
        ends.append(gmv(work, scenario.command, images, log, kill_after=moment))
    log.unlink(missing_ok=True)
    code = gmv(work, scenario.command, images, log)
    through = scenario.name == "withdraw" and "there is no owner" in log.read_text()
    assert code == 0 or through, f"run again, it failed: {log.read_text()}"
    found = finish(work, images, log)
    for name, rows in scenario.expected.items():
        assert found[name] == rows, f"the {name} differ from those of an undisturbed run"
    shutil.rmtree(work)
    return "killed" if -signal.SIGKILL in ends else "was done before the kill"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--start", type=int, default=0)
    options = parser.parse_args()
    with tiny_workspace.scratch() as root:
        images = root / "images"
        for folder, seeds in {
            "a": range(70),
            "b": range(60, 200),
            "g": range(500, 540),
            "many": range(1000, 1300),
        }.items():
            tiny_workspace.write(images / folder, seeds)
        ready = scenarios(root)
        for scenario in ready:
            scenario.template.parent.mkdir()
            scenario.prepare(images, scenario.template.with_name("log"))
            print(f"{scenario.name}: {scenario.seconds:.1f} s undisturbed", flush=True)
        failed = 0
        for seed in range(options.start, options.start + options.seeds):
            scenario = ready[seed % len(ready)]
            try:
                print(f"seed {seed} {scenario.name}: {one(seed, scenario, images)}", flush=True)
            except AssertionError as error:
                failed += 1
                print(f"seed {seed} {scenario.name}: FAILED: {error}", flush=True)
    print(f"{options.seeds - failed} of {options.seeds} seeds ended like an undisturbed run")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
