"""Everything that was tried against this tool, kind by kind: how many of each, and how many ended well.

    python scripts/attack.py                              all kinds, in full
    python scripts/attack.py --count ci                   a few of each
    python scripts/attack.py --only flips --only cuts     some kinds
    python scripts/attack.py --json attack.json           the table as JSON, too

Ended well means: inputs are taken or refused by name, and the good image beside them comes in; a workspace that was
killed or lost its power ends, after the same command once more, with the exports of an undisturbed run and an empty
`check`; a flipped byte is said in one sentence, or no answer changes; SQL stops in time and within its memory. Exit
code 1 when one doesn't.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import bad_inputs
import crash
import numpy as np
import test_published
import test_tiff
import tiny_workspace

from gmv_qdrant import Workspace
from gmv_qdrant.errors import ImageError, LedgerError
from gmv_qdrant.images.decode import decode
from gmv_qdrant.ledger.database import Ledger
from gmv_qdrant.vectors.embedded.store import EdgeStore

Outcomes = Iterator[tuple[str, str]]
"""Of each attack: what was done, and what went wrong ("" where nothing did)."""


# -- inputs ----------------------------------------------------------------------------------------------------------


def inputs(count: int, kinds: tuple[str, ...]) -> Outcomes:
    """count: cuts and changes of each file."""
    for kind in kinds:
        for name, make in bad_inputs.KINDS[kind](count):
            yield name, bad_inputs.survives(make)


def tiffs(_: int) -> Outcomes:
    """The same pixels as the picture that was stored, or a refusal that says why."""
    for name, (make, expected, most) in test_tiff.SAME.items():
        shown = np.asarray(decode(make())).astype(int)
        reference = expected if expected.ndim == 3 else np.repeat(expected[..., None], 3, axis=2)
        same = shown.shape == reference.shape and np.abs(shown - reference).max() <= most
        yield name, "" if same else "other pixels"
    for name, (make, message) in test_tiff.REFUSED.items():
        try:
            decode(make())
        except ImageError as error:
            yield name, "" if re.search(message, str(error)) else f"refused as {error}"
        else:
            yield name, "taken"


# -- kills -----------------------------------------------------------------------------------------------------------


def write_images(root: Path) -> Path:
    folders = {"a": range(70), "b": range(60, 200), "g": range(500, 540), "many": range(1000, 1300)}
    for folder, seeds in folders.items():
        tiny_workspace.write(root / "images" / folder, seeds)
    return root / "images"


def kills(count: int) -> Outcomes:
    """kill -9 at random moments: see crash.py."""
    with tiny_workspace.scratch() as root:
        images = write_images(root)
        ready = crash.scenarios(root)
        for scenario in ready:
            scenario.template.parent.mkdir()
            scenario.prepare(images, scenario.template.with_name("log"))
        for seed in range(count):
            scenario = ready[seed % len(ready)]
            yield f"{scenario.name}, seed {seed}", _said(partial(crash.one, seed, scenario, images))


def _said(call: Callable[[], Any]) -> str:
    try:
        call()
    except AssertionError as error:
        return str(error)
    return ""


# -- power cuts ------------------------------------------------------------------------------------------------------

COMMANDS = (["ingest", "{}/b", "--owner", "bo"], ["value", "{}/g"], ["withdraw", "--owner", "ada"])
"""On a workspace with the images of ``a``; ingest and value also bring evidence up to date, withdraw takes it out."""


class Disk:
    """What of a workspace has reached the disk: a copy of each part as it was when it was last synced.

    A part is what one program orders by itself: DuckDB its file with its log, the engine its folder; any other file is
    a part of its own. Each sync is an event; at the event ``cut`` the process ends, before it takes effect.
    """

    def __init__(self, workspace: Path, shadow: Path, cut: int | None) -> None:
        self.workspace, self.shadow, self.cut = workspace, shadow, cut
        self.events = 0

    def synced(self, part: str) -> None:
        if self.events == self.cut:
            os._exit(77)
        self.events += 1
        for name in names(self.workspace, part) | names(self.shadow, part):
            copy_part(self.workspace / name, self.shadow / name)

    def fsync(self, handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        real_fsync(handle)
        if path.is_dir():
            for child in path.iterdir():  # its names are safe, whatever is in the files
                self._name(child)
            for gone in self._shadow_of(path).glob("*"):
                if gone.is_file() and not (path / gone.name).exists():
                    self.synced(part_of(str(gone.relative_to(self.shadow))))
        elif path.is_relative_to(self.workspace):
            self.synced(part_of(str(path.relative_to(self.workspace))))

    def _shadow_of(self, path: Path) -> Path:
        inside = path.is_relative_to(self.workspace)
        return self.shadow / path.relative_to(self.workspace) if inside else self.shadow / "nothing"

    def _name(self, path: Path) -> None:
        """A file whose name is safe and which is there under another name was renamed: the bytes came with it."""
        if path.is_file() and path.is_relative_to(self.workspace):
            part = part_of(str(path.relative_to(self.workspace)))
            if part not in ("ledger.duckdb", "qdrant"):
                self.synced(part)


real_fsync = os.fsync


def part_of(name: str) -> str:
    if name.startswith("qdrant/"):
        return "qdrant"
    return "ledger.duckdb" if name.startswith("ledger.duckdb") else name


def names(root: Path, part: str) -> set[str]:
    return {path.name for path in root.glob("ledger.duckdb*")} if part == "ledger.duckdb" else {part}


def copy_part(source: Path, target: Path) -> None:
    """Also where there is none any more."""
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        crash.copy(source, target)
    elif source.exists():
        shutil.copy2(source, target)


@contextmanager
def recorded(disk: Disk) -> Iterator[None]:
    """In a process of its own: nothing is put back."""
    write, flush, publish = Ledger.write, EdgeStore.flush, Ledger.publish

    @contextmanager
    def writing(self: Ledger) -> Iterator[Any]:
        with write(self) as con:
            yield con
        if self.path.parent == disk.workspace:
            disk.synced("ledger.duckdb")

    def flushing(self: EdgeStore) -> None:
        flush(self)
        disk.synced("qdrant")

    def publishing(self: Ledger) -> None:
        publish(self)
        if self.path.parent == disk.workspace:
            disk.synced("ledger.duckdb")

    Ledger.write, EdgeStore.flush, Ledger.publish = writing, flushing, publishing  # type: ignore[method-assign]
    os.fsync = disk.fsync  # type: ignore[assignment]
    yield


def run_until(
    workspace: Path, command: list[str], images: Path, log: Path, cut: int | None
) -> tuple[int, int]:
    """The command, until the ``cut``-th sync: exit code, and how many syncs there were."""
    shadow, told = workspace.with_name("shadow"), workspace.with_name("events")
    crash.copy(workspace, shadow)

    def run() -> None:
        disk = Disk(workspace, shadow, cut)
        sys.argv = ["gmv-qdrant", "-w", str(workspace), *(part.format(images) for part in command)]
        with recorded(disk):
            try:
                crash.command_line()
            finally:
                told.write_text(str(disk.events))

    told.write_text("0")
    code = crash.forked(run, log)
    return code, int(told.read_text())


def after_the_cut(workspace: Path, chance: random.Random) -> None:
    """Each part is what was synced of it, or what was written to it: a disk may have kept either."""
    shadow = workspace.with_name("shadow")
    parts = {
        part_of(str(path.relative_to(root)))
        for root in (workspace, shadow)
        for path in root.rglob("*")
        if path.is_file()
    }
    kept = chance.choice((0.0, 0.5, 1.0))
    for part in sorted(parts):
        if chance.random() >= kept:
            for name in names(workspace, part) | names(shadow, part):
                copy_part(shadow / name, workspace / name)


def cuts(count: int) -> Outcomes:
    """Power cuts in ingest, value and withdraw, at every kind of sync, with what wasn't synced lost, kept or mixed."""
    with tiny_workspace.scratch() as root:
        images, log = write_images(root), root / "log"
        template = root / "template"
        Workspace.init(template, **tiny_workspace.SETTINGS)
        assert crash.gmv(template, ["ingest", "{}/a", "--owner", "ada"], images, log) == 0, log.read_text()
        starts, syncs = [template], []
        for number, command in enumerate(COMMANDS):
            folder = root / f"calm{number}"
            folder.mkdir()
            crash.copy(starts[-1], folder / "ws")
            code, events = run_until(folder / "ws", command, images, log, None)
            assert code == 0, log.read_text()
            starts.append(folder / "ws")
            syncs.append(events)
        crash.copy(starts[-1], root / "calm")
        expected = crash.finish(root / "calm", images, log)
        for seed in range(count):
            at = seed % len(COMMANDS)
            chance = random.Random(seed)
            work = root / "cut" / "ws"
            shutil.rmtree(work.parent, ignore_errors=True)
            work.parent.mkdir()
            crash.copy(starts[at], work)
            cut = chance.randrange(syncs[at])
            run_until(work, COMMANDS[at], images, log, cut)
            after_the_cut(work, chance)
            told = f"{COMMANDS[at][0]} at sync {cut} of {syncs[at]}, seed {seed}"
            yield told, _said(partial(_goes_on, work, at, images, log, expected))


def _goes_on(work: Path, at: int, images: Path, log: Path, expected: Any) -> None:
    for command in COMMANDS[at:]:
        log.write_text("")
        code = crash.gmv(work, command, images, log)
        through = command[0] == "withdraw" and "there is no owner" in log.read_text()
        assert code == 0 or through, f"{command[0]} once more failed: {log.read_text()[-300:]}"
    found = crash.finish(work, images, log)
    for name, rows in expected.items():
        assert found[name] == rows, f"the {name} differ from those of an undisturbed run"


# -- flipped bytes ---------------------------------------------------------------------------------------------------

FILES = {
    "ledger": "ledger.duckdb",
    "published": "credits.duckdb",
    "matrices": "vectors/*",
    "vectors of the store": "qdrant/training/segments/*/vector_storage*/**/*",
    "ids of the store": "qdrant/training/segments/*/id_tracker*",
    "settings": "gmv.toml",
}


def flips(count: int) -> Outcomes:
    """One byte of a file, where it holds something; then everything is asked and checked, and the rest goes in."""
    with tiny_workspace.scratch() as root:
        images, log = write_images(root), root / "log"
        template, work = root / "template", root / "ws"
        Workspace.init(template, **{**tiny_workspace.SETTINGS, "candidates": 40, "quantization": "pq"})
        for command in (["ingest", "{}/many", "--owner", "ada"], ["ingest", "{}/b", "--owner", "bo"]):
            assert crash.gmv(template, command, images, log) == 0, log.read_text()
        crash.copy(template, work)
        expected = crash.finish(work, images, log)
        for seed in range(count):
            chance = random.Random(seed)
            kind = list(FILES)[seed % len(FILES)]
            crash.copy(template, work)
            told = _flip(work, FILES[kind], chance)
            log.unlink(missing_ok=True)
            yield f"{kind}: {told}, seed {seed}", _noticed(work, images, log, expected)


def _flip(work: Path, pattern: str, chance: random.Random) -> str:
    """Flip a bit of a byte that isn't in a hole."""
    files = [path for path in sorted(work.glob(pattern)) if path.is_file() and path.stat().st_size]
    path = chance.choice(files)
    path.chmod(0o644)
    data = np.memmap(path, np.uint8, "r+")
    used = np.flatnonzero(data)
    place = int(chance.choice(used)) if len(used) else 0
    data[place] ^= 1 << chance.randrange(8)
    data.flush()
    return f"{path.relative_to(work)} at {place}"


def _noticed(work: Path, images: Path, log: Path, expected: Any) -> str:
    """What is wrong with how the tool took it."""
    code = crash.gmv(work, ["check", "--read-images"], images, log)
    said = log.read_text()
    if "Traceback" in said:
        return f"a traceback: {said[-300:]}"
    if code:
        return "" if said.strip() else "check fails without a word"
    try:
        found = crash.finish(work, images, log)
    except AssertionError as error:
        return f"a traceback: {str(error)[-300:]}" if "Traceback" in str(error) else ""
    return "" if found == expected else "check finds nothing, and answers differ"


# -- SQL -------------------------------------------------------------------------------------------------------------

SECONDS, MEMORY = 2, 512 << 20
MORE_BOMBS = (
    "SELECT repeat(repeat('x', 100000), 100000)",
    "SELECT length(rpad('', 2000000000, 'x'))",
    "SELECT bit_count(repeat('1', 2000000000)::BIT)",
    "SELECT list_aggregate(range(1000000000), 'sum')",
    "SELECT list_reduce(range(1000000000), (a, b) -> a + b)",
    "SELECT len(list_filter(range(1000000000), x -> x % 2 = 0))",
    "SELECT len(flatten([range(100000000), range(100000000), range(100000000), range(100000000)]))",
    "SELECT count(DISTINCT i) FROM range(10000000000) t(i)",
    "SELECT count(*) FROM (SELECT DISTINCT hash(i) FROM range(10000000000) t(i))",
    "SELECT i, count(*) FROM range(10000000000) t(i) GROUP BY i ORDER BY 2 DESC LIMIT 1",
    "SELECT median(hash(i)) FROM range(10000000000) t(i)",
    "SELECT histogram(i) FROM range(1000000000) t(i)",
    "SELECT count(*) FROM range(1000000000) a(i) JOIN range(1000000000) b(j) ON hash(i) % 1000 = hash(j) % 1000",
    "SELECT sum(row_number) FROM (SELECT row_number() OVER (ORDER BY hash(i)) FROM range(10000000000) t(i))",
    "SELECT max(s) FROM (SELECT sum(i) OVER (PARTITION BY i % 2 ORDER BY hash(i)) AS s FROM range(1000000000) t(i))",
    "SELECT regexp_replace(repeat('a', 100000000), '(a|aa)+', 'b', 'g') || repeat('x', 900000000)",
    "SELECT count(*) FROM matches a, matches b, matches c, range(1000000000)",
    "SELECT max(md5(i::VARCHAR)) FROM range(100000000000) t(i)",
    "WITH RECURSIVE a AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM a, range(1000)) SELECT sum(i) FROM a",
    "SELECT map_from_entries(list_transform(range(100000000), x -> (x, x)))",
    "SELECT jaccard(repeat('ab', 500000000), repeat('ba', 500000000))",
    "SELECT list_distinct(range(1000000000))",
)


def bombs(count: int) -> Outcomes:
    """SQL that people type, with 2 seconds and half a gibibyte: it ends in three times that, in one sentence."""
    with tiny_workspace.scratch() as root:
        images = write_images(root)
        workspace = Workspace.init(root / "ws", **tiny_workspace.SETTINGS)
        workspace.ingest([images / "a"])
        workspace.value([images / "g"])
        for sql in (*test_published.BOMBS, *MORE_BOMBS)[:count]:
            started, said = time.monotonic(), ""
            try:
                with suppress(LedgerError):
                    workspace.published.restricted(seconds=SECONDS, memory=MEMORY).query(sql)
            except Exception as error:  # noqa: BLE001 - that there is none is what is tried
                said = f"{type(error).__name__}: {error}"[:300]
            took = time.monotonic() - started
            yield sql, said or (f"took {took:.0f} s" if took > 15 else "")


# -- the table -------------------------------------------------------------------------------------------------------

TABLES = ("tables", "sidecars")
IMAGES = tuple(kind for kind in bad_inputs.KINDS if kind not in TABLES)
KINDS: dict[str, tuple[str, Callable[[int], Outcomes], int, int]] = {
    "inputs": ("bad inputs: images, Parquet, archives, file system", partial(inputs, kinds=IMAGES), 5, 1),
    "tables": ("bad tables and sidecars", partial(inputs, kinds=TABLES), 1, 1),
    "tiffs": ("kinds of TIFF", tiffs, 1, 1),
    "kills": ("kill -9", kills, 100, 5),
    "cuts": ("power cuts", cuts, 60, 6),
    "flips": ("flipped bytes", flips, 60, 12),
    "bombs": ("SQL bombs", bombs, len(test_published.BOMBS) + len(MORE_BOMBS), 3),
}
"""Title, function, and what it is given in full and in CI."""


def attack(kind: str, depth: int) -> dict[str, Any]:
    """Try one kind: how many were tried and survived, and of those that didn't, what went wrong."""
    tried, failed = 0, []
    for name, wrong in KINDS[kind][1](depth):
        tried += 1
        if wrong:
            failed.append(f"{name}: {wrong}")
            print(f"  {kind}: {failed[-1]}", file=sys.stderr, flush=True)
    return {"kind": KINDS[kind][0], "tried": tried, "survived": tried - len(failed), "failed": failed}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=KINDS, help="a kind; can be given several times")
    parser.add_argument("--count", choices=("full", "ci"), default="full")
    parser.add_argument("--json", type=Path, help="a file for the table as JSON")
    options = parser.parse_args(arguments)
    bad_inputs.keep_time()
    rows = []
    print(f"{'kind':<52}{'tried':>7}{'survived':>10}")
    for kind in options.only or KINDS:
        row = attack(kind, KINDS[kind][2 if options.count == "full" else 3])
        rows.append(row)
        print(f"{row['kind']:<52}{row['tried']:>7}{row['survived']:>10}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if any(row["failed"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
