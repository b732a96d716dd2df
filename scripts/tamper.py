"""Random tamperings of a ledger with recorded payouts, and of exported bundles: is each one found?

python scripts/tamper.py [--count 1000] [--seed 0] [--folder EMPTY]

Every table and column of the ledger is changed, rows are swapped, removed and doubled, in the ledger, in the published
file, or in both; files of kept and exported payouts are changed, cut, removed, replaced; tables in them are changed and
their manifests hashed anew. ``verify`` must find each in the workspace, and scripts/verify_payout.py, with the
fingerprint of a statement, each in the bundle. Prints JSON: how many of each kind were made and found.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import random
import runpy
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from click.testing import CliRunner
from PIL import Image

from gmv_qdrant import Workspace
from gmv_qdrant.accounting.bundle import whole
from gmv_qdrant.cli.main import cli

SCRIPT = Path(__file__).resolve().parent / "verify_payout.py"
HEALED = "key IN ('macros', 'published_at')"
"""Facts that are written anew whenever the ledger is opened or published; no answer depends on them."""


def make(folder: Path) -> None:
    """A workspace ``ws`` with two payouts and something in every table, and the bundle of the second, ``bundle``."""
    numbers = np.random.default_rng(5)
    for name, count in (("training", 30), ("generated", 8)):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(numbers.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(
                folder / name / f"{i}.png"
            )
    for name in ("training/near.png", "training/mine.png", "generated/near.png"):  # of 1.png, which is Bay's
        with Image.open(folder / "training/1.png") as image:
            pixels = np.asarray(image, dtype=np.int16) + numbers.integers(-3, 4, (16, 16, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name)
    (folder / "training" / "bad.png").write_bytes(b"no image")
    shutil.copyfile(folder / "training/0.png", folder / "training/copy.png")  # two owners claim it
    rows = [f"{i}.png,{('Ada', 'Bay', 'Cy', 'Dee')[i % 4]},{'xy'[i % 2]},cc-by,Nikon" for i in range(28)]
    text = "\n".join(["file_name,owner,label,licence,camera", *rows, "copy.png,Eve,x,cc-by,Nikon"])
    text += "\nnear.png,Fay,x,cc-by,Nikon\nmine.png,Bay,y,cc-by,Nikon"
    (folder / "training/metadata.csv").write_text(text)
    workspace = Workspace.init(
        folder / "ws",
        encoder="pixels:16",
        distance="l2@16",
        quality="entropy",
        candidates=12,
        quantization="none",
    )
    workspace.ingest([folder / "training"])
    (folder / "training/metadata.csv").write_text(text.replace("2.png,Cy", "2.png,Cyd"))
    workspace.ingest([folder / "training"], reassign=True)  # a history
    workspace.value([folder / "generated"], batch="first")
    workspace.calibrate(probes=30)
    workspace.copies(training=True)
    workspace.payout(1000, record="2026-Q1", minimum="100", currency="EUR", hold=True)
    workspace.payout(1000, record="2026-Q2", exclude={"Dee": "left"}, currency="EUR", hold=True)
    workspace.export_payout("2026-Q2", folder / "bundle")


# -- values ------------------------------------------------------------------------------------------


def other(value: Any, kind: str, rng: random.Random) -> str:
    """SQL for another value of this kind."""
    if value is None:
        return {"VARCHAR": "'x'", "JSON": "'{}'", "BOOLEAN": "true", "DATE": "DATE '2026-01-01'"}.get(
            kind, "TIMESTAMP '2026-01-01'" if "TIMESTAMP" in kind else "['x']" if kind.endswith("[]") else "1"
        )
    column = "old"
    return {
        "BOOLEAN": f"NOT {column}",
        "VARCHAR": rng.choice([f"{column} || 'x'", f"reverse({column}) || 'y'", "''" if value else "'z'"]),
        "JSON": rng.choice(["'{}'", f"replace({column}::VARCHAR, '1', '2') || ' '"]),
        "DOUBLE": rng.choice([f"{column} * (1 + 1e-12) + 1e-13", f"{column} + 1"]),
        "FLOAT": f"{column} + 0.5",
        "DATE": f"{column} + INTERVAL 1 DAY",
    }.get(
        kind,
        f"{column} + INTERVAL 1 SECOND"
        if "TIMESTAMP" in kind
        else f"list_append({column}, 'x')"
        if kind.endswith("[]")
        else rng.choice([f"{column} + 1", f"{column} - 1"]),
    )


# -- the ledger --------------------------------------------------------------------------------------


def tamper_ledger(ws: Path, rng: random.Random) -> str:
    """Change one thing in the ledger, the published file, or both; returns what."""
    where = rng.choice(["both", "both", "ledger", "published"])
    source = ws / ("credits.duckdb" if where == "published" else "ledger.duckdb")
    source.chmod(0o644)
    with duckdb.connect(str(source)) as con:
        what = None
        while what is None:
            with contextlib.suppress(duckdb.Error):  # a key that is there already, a value that can't be
                what = _change(con, rng)
    if where == "both":
        shutil.copyfile(ws / "ledger.duckdb", ws / "replacement")
        (ws / "replacement").replace(ws / "credits.duckdb")
    return f"{where}: {what}"


def _change(con: duckdb.DuckDBPyConnection, rng: random.Random) -> str | None:
    tables = [name for (name,) in con.execute("SELECT table_name FROM duckdb_tables()").fetchall()]
    table = rng.choice(sorted(tables))
    columns = con.execute(
        "SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = ?", [table]
    ).fetchall()
    column, kind = rng.choice(columns)
    where = f"WHERE NOT {HEALED}" if table == "meta" else ""
    rows = [row for (row,) in con.execute(f"SELECT rowid FROM {table} {where} ORDER BY rowid").fetchall()]
    action = rng.choice(["change", "change", "change", "swap", "remove", "double"])
    if not rows or (action == "swap" and len(rows) < 2):
        return None
    row, second = rng.choice(rows), rng.choice(rows)
    (value,), (value2,) = (
        con.execute(f'SELECT "{column}" FROM {table} WHERE rowid = {one}').fetchall()[0]
        for one in (row, second)
    )
    before = _contents(con, table)
    if action == "change":
        con.execute(
            f'UPDATE {table} SET "{column}" = {other(value, kind, rng).replace("old", chr(34) + column + chr(34))} '
            f"WHERE rowid = {row}"
        )
    elif action == "swap":
        con.execute(
            f'UPDATE {table} SET "{column}" = CASE rowid WHEN {row} THEN $two ELSE $one END '
            f"WHERE rowid IN ({row}, {second})",
            {"one": value, "two": value2},
        )
    elif action == "remove":
        con.execute(f"DELETE FROM {table} WHERE rowid = {row}")
    else:
        con.execute(f"INSERT INTO {table} SELECT * FROM {table} WHERE rowid = {row}")
    return None if _contents(con, table) == before else f"{action} {table}.{column}"


def _contents(con: duckdb.DuckDBPyConnection, table: str) -> list[str]:
    return sorted(text for (text,) in con.execute(f"SELECT t::VARCHAR FROM {table} t").fetchall())


# -- files -------------------------------------------------------------------------------------------


def tamper_bundle(bundle: Path, spare: Path, rng: random.Random) -> str:
    """Change one thing in a bundle; returns what. spare: another bundle, to take files from."""
    actions: list[Callable[[Path, Path, random.Random], str | None]] = [
        _file,
        _table,
        _table,
        _document,
        _manifest,
    ]
    while True:
        found = rng.choice(actions)(bundle, spare, rng)
        if found:
            return found


def _file(bundle: Path, spare: Path, rng: random.Random) -> str | None:
    path = rng.choice(sorted(bundle.iterdir()))
    data = path.read_bytes()
    action = rng.choice(["flip a byte of", "cut", "remove", "replace", "empty", "add beside"])
    if action == "flip a byte of":
        at = rng.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :])
    elif action == "cut":
        path.write_bytes(data[: rng.randrange(len(data))])
    elif action == "remove":
        path.unlink()
    elif action == "replace":
        if (spare / path.name).read_bytes() == data:
            return None
        shutil.copyfile(spare / path.name, path)
    elif action == "empty":
        path.write_bytes(b"")
    else:
        path.with_name("more.parquet").write_bytes(data)
    return f"{action} {path.name}"


def _table(bundle: Path, _: Path, rng: random.Random) -> str | None:
    """Change a table, and hash the manifest anew, or the document and the manifest."""
    name = rng.choice(["generated", "images", "sources", "history", "matches", "copies"])
    path = bundle / f"{name}.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    action, row, second = (
        rng.choice(["change", "swap", "remove", "double"]),
        rng.randrange(len(rows)),
        rng.randrange(len(rows)),
    )
    column = rng.choice(table.column_names)
    if action == "change":
        rows[row][column] = _another(rows[row][column], table.schema.field(column).type)
    elif action == "swap":
        rows[row], rows[second] = rows[second], rows[row]
    elif action == "remove":
        del rows[row]
    else:
        rows.insert(second, rows[row])
    changed = pa.Table.from_pylist(rows, schema=table.schema)
    if changed.equals(table):
        return None
    pq.write_table(changed, path)
    forged = rng.choice(["as it is", "manifest", "document and manifest"])
    if forged == "document and manifest":
        digest = runpy.run_path(str(SCRIPT))["digest"]
        document = json.loads((bundle / "payout.json").read_bytes())
        document["evidence"][name] = digest(pq.read_table(path))
        _write(bundle / "payout.json", document)
    if forged != "as it is":
        _hash_anew(bundle)
    return f"{action} {name}.{column}, hashed anew: {forged}"


def _another(value: Any, kind: pa.DataType) -> Any:
    if pa.types.is_string(kind):
        return None if value and len(value) % 2 else f"{value or ''}x"
    if pa.types.is_floating(kind):
        return 0.5 if value is None else value * (1 + 1e-9) + 1e-12
    return value + 1 if value < 2 else value - 1


def _document(bundle: Path, _: Path, rng: random.Random) -> str | None:
    """Change something in the document, a line of it most often, and hash the manifest anew."""
    document = json.loads((bundle / "payout.json").read_bytes())
    line = rng.choice([*document["lines"], document, document["value_function"]])
    name = rng.choice(sorted(line))
    before = line[name]
    if isinstance(before, bool):
        line[name] = not before
    elif isinstance(before, int | float):
        line[name] = before + rng.choice([-1, 1])
    elif isinstance(before, str):
        line[name] = before + "x"
    elif isinstance(before, list) and before:
        line[name] = rng.choice([before[1:], [*before, before[0]]])
    else:
        line[name] = 1
    _write(bundle / "payout.json", document)
    _hash_anew(bundle)
    return f"change payout.json {name}, hashed anew"


def _manifest(bundle: Path, _: Path, rng: random.Random) -> str | None:
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    name = rng.choice(sorted(manifest))
    manifest[name] = rng.choice(["x", {}, None])
    _write(bundle / "manifest.json", manifest)
    return f"change manifest.json {name}"


def _write(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")


def _hash_anew(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    names = sorted(path.name for path in bundle.iterdir() if path.name != "manifest.json")
    manifest["files"] = {name: hashlib.sha256((bundle / name).read_bytes()).hexdigest() for name in names}
    manifest["fingerprint"] = manifest["files"]["payout.json"]
    manifest["whole"] = whole(manifest)
    _write(bundle / "manifest.json", manifest)


# -- is it found? ------------------------------------------------------------------------------------


def found_by_verify(ws: Path) -> tuple[bool, str]:
    """Whether ``verify`` exits 1 with sentences."""
    done = CliRunner().invoke(cli, ["-w", str(ws), "verify"])
    clean = done.exception is None or isinstance(done.exception, SystemExit)
    return done.exit_code == 1 and clean, f"exit {done.exit_code}: {done.stderr or done.exception!r}"


def found_by_script(bundle: Path, fingerprint: str) -> tuple[bool, str]:
    """Whether the stranger's script exits 1 with a sentence."""
    said = io.StringIO()
    argv, sys.argv = sys.argv, ["verify_payout.py", str(bundle), "--fingerprint", fingerprint]
    try:
        with contextlib.redirect_stdout(said):
            runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as done:
        return done.code == 1 and said.getvalue().startswith("DIFFERS"), said.getvalue()
    finally:
        sys.argv = argv
    return False, "it didn't come to its end"


def one(folder: Path, number: int, seed: int) -> tuple[str, bool, str]:
    """Make one tampering, in a copy; returns its kind, whether it was found, and what was said."""
    rng = random.Random(f"{seed} {number}")
    with tempfile.TemporaryDirectory(dir=folder) as copy:
        kind = rng.choice(["ledger", "ledger", "kept", "bundle"])
        shutil.copytree(folder / ("bundle" if kind == "bundle" else "ws"), copy, dirs_exist_ok=True)
        kept = Path(copy) / "payouts" / rng.choice(["2026-Q1", "2026-Q2"])
        spare = folder / "ws" / "payouts" / "2026-Q1"
        if kind == "bundle":
            fingerprint = hashlib.sha256((folder / "bundle/payout.json").read_bytes()).hexdigest()
            what = tamper_bundle(Path(copy), spare, rng)
            return f"bundle: {what}", *found_by_script(Path(copy), fingerprint)
        what = (
            tamper_ledger(Path(copy), rng) if kind == "ledger" else f"kept: {tamper_bundle(kept, spare, rng)}"
        )
        return what, *found_by_verify(Path(copy))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    made: Counter[str] = Counter()
    missed = []
    with contextlib.ExitStack() as stack:
        folder = given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        make(folder)
        for number in range(given.count):
            what, found, said = one(folder, number, given.seed)
            made[what.partition(",")[0]] += 1
            if not found:
                missed.append({"number": number, "what": what, "said": said})
    print(
        json.dumps(
            {
                "tamperings": given.count,
                "kinds": len(made),
                "found": given.count - len(missed),
                "missed": missed,
                "made": dict(sorted(made.items())),
            },
            indent=1,
        )
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
