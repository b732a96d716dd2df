"""Recompute a payout from its bundle, with nothing of gmv-qdrant: Python, duckdb and pyarrow.

    python verify_payout.py BUNDLE [--fingerprint FROM_A_STATEMENT] [--previous BUNDLE_OF_THE_PAYOUT_BEFORE]

BUNDLE is what `gmv-qdrant payout export ID BUNDLE` wrote. Every file is held against the manifest, the evidence
against its SHA-256 in payout.json, and every amount is computed anew from the evidence, to the smallest unit of the
currency. Exit code 0 and "follows from its evidence", or 1 and the first difference. A bundle can be forged as a whole;
the fingerprint on a statement can't: with --fingerprint, it is what that statement was about.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

TABLES = {
    "generated": {"batch": "string", "uri": "string", "sha256": "string", "quality": "double"},
    "images": {"id": "string", "sha256": "string"},
    "sources": {"image": "int32", "uri": "string", "name": "string", "licence": "string"},
    "matches": {"generated": "int32", "rank": "int32", "image": "int32", "distance": "double"},
    "copies": {"image": "int32", "other": "int32", "distance": "double"},
}


class Difference(Exception):
    """The payout isn't what its bundle says."""


UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, pa.ArrowException, duckdb.Error)


def require(true: bool, otherwise: str) -> None:
    if not true:
        raise Difference(otherwise)


def same(what: str, said: object, found: object) -> None:
    require(said == found, f"{what}: it says {said!r}, and it should be {found!r}")


# -- files -------------------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_document(bundle: Path, fingerprint: str | None) -> dict:
    """payout.json, after every file was held against the manifest, and the manifest against itself."""
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    rest = {name: said for name, said in manifest.items() if name != "whole"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    require(
        hashlib.sha256(text.encode()).hexdigest() == manifest["whole"], "manifest.json: its hash of the whole"
    )
    canonical = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    require(
        (bundle / "manifest.json").read_text("ascii") == canonical, "manifest.json: not as it was written"
    )
    there = {path.name for path in bundle.iterdir()} - {"manifest.json"}
    for name in sorted(there | manifest["files"].keys()):
        require(name in there, f"{name}: missing")
        require(name in manifest["files"], f"{name}: not in the manifest")
        same(f"{name}: SHA-256 in the manifest", manifest["files"][name], sha256(bundle / name))
    same("manifest.json: fingerprint", manifest["fingerprint"], sha256(bundle / "payout.json"))
    same("the statement: fingerprint", fingerprint or manifest["fingerprint"], manifest["fingerprint"])
    document = json.loads((bundle / "payout.json").read_bytes())
    canonical = json.dumps(document, indent=1, sort_keys=True) + "\n"
    require((bundle / "payout.json").read_text("ascii") == canonical, "payout.json: not as it was written")
    return document


def digest(table: pa.Table) -> str:
    """Column after column: its name and a newline, then numbers as 8 bytes, or lengths and texts; missing is -1."""
    found = hashlib.sha256()
    for name in table.column_names:
        column = table[name].combine_chunks()
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        found.update(f"{name}\n".encode())
        texts = pa.types.is_string(column.type)
        kind = pa.float64() if pa.types.is_floating(column.type) else pa.int64()
        numbers = pc.fill_null((pc.binary_length(column) if texts else column).cast(kind), -1)
        if len(numbers):
            start = 8 * numbers.offset
            found.update(memoryview(numbers.buffers()[1])[start : start + 8 * len(numbers)])
        if texts:
            found.update("".join(text for text in column.to_pylist() if text is not None).encode())
    return found.hexdigest()


def read_tables(bundle: Path, document: dict) -> dict[str, pa.Table]:
    tables = {}
    for name, columns in TABLES.items():
        tables[name] = table = pq.read_table(bundle / f"{name}.parquet")
        same(f"{name}.parquet: columns", {field.name: str(field.type) for field in table.schema}, columns)
        same(f"payout.json: evidence {name}", document["evidence"][name], digest(table))
    return tables


# -- credit ------------------------------------------------------------------------------------------


def units(x: str) -> str:
    """SQL for a credit in whole units, 2^-60 of a generated image."""
    return f"CAST({x} * 1.152921504606846976e18 AS BIGINT)"


# u = exp(-x), x >= 0, from +, -, *, / alone, so that every machine gives the same bits: exp(n ln 2 - x) / 2^n with
# n = round(x / ln 2), where ln 2 stands in two parts, and a series that ends at r^13 / 13!.
SERIES = f"{1 / math.factorial(13):.17e}"
for power in range(12, -1, -1):
    SERIES = f"({SERIES} * r + {1 / math.factorial(power):.17e})"
EXPONENTIALS = f"""
    halvings AS (SELECT *, round(least(x, 43e0) * 1.4426950408889634e0) AS n FROM heights),
    rests AS (SELECT *, (n * 6.93147180369123816490e-1 - x) + n * 1.90821492927058770002e-10 AS r FROM halvings),
    exponentials AS (SELECT *, CASE WHEN x < 43e0 THEN {SERIES} / (1::BIGINT << n::BIGINT) ELSE 0e0 END AS u
                     FROM rests)"""
OWNER_SHAPLEY = f"""
    WITH near AS ({{near}}),
    best AS (SELECT generated, kind, name, min(d) AS d FROM near JOIN owners USING (image) GROUP BY ALL {{stranger}}),
    heights AS (SELECT *, (d - min(d) OVER (PARTITION BY generated)) / t AS x FROM best, constants), {EXPONENTIALS},
    steps AS (SELECT *, row_number() OVER up AS place, u - coalesce(lead(u) OVER up, 0e0) AS rise FROM exponentials
              WINDOW up AS (PARTITION BY generated ORDER BY x, kind, name)),
    parts AS (SELECT generated, kind, name, sum({units("rise / place")}) OVER
              (PARTITION BY generated ORDER BY place DESC ROWS UNBOUNDED PRECEDING) AS part FROM steps)
    SELECT kind, name, CAST(sum(part::HUGEINT * {{quality}} // 1152921504606846976) AS HUGEINT)
    FROM parts JOIN numbered USING (generated) GROUP BY ALL"""
SHARES = f"""
    WITH near AS (SELECT *, 'image' AS kind FROM ({{near}})),
    rivals AS (SELECT generated, kind, image, d FROM near {{stranger}}),
    heights AS (SELECT *, (d - min(d) OVER (PARTITION BY generated)) / t AS x FROM rivals, constants), {EXPONENTIALS},
    weights AS (SELECT generated, image, {units("u")} AS w FROM exponentials),
    parts AS (SELECT image, w::HUGEINT * {{quality}} // sum(w) OVER (PARTITION BY generated) AS part
              FROM weights JOIN numbered USING (generated)),
    shared AS (SELECT *, count(*) OVER (PARTITION BY image) AS owners FROM owners)
    SELECT coalesce(kind, 'nobody'), name, CAST(sum(part // coalesce(owners, 1)) AS HUGEINT)
    FROM parts LEFT JOIN shared USING (image) GROUP BY ALL"""


def credit(tables: dict[str, pa.Table], function: dict) -> dict[tuple[str, str | None], int]:
    """Units by kind and name, zeros included."""
    con = duckdb.connect(":memory:")
    for name, table in tables.items():
        con.register(name, table)
    for view, table, number in (("numbered", "generated", "generated"), ("ids", "images", "image")):
        con.execute(f"CREATE TABLE {view} AS SELECT row_number() OVER () - 1 AS {number}, * FROM {table}")
    con.execute("""
        CREATE TABLE owners AS WITH named AS (SELECT DISTINCT image, name FROM sources WHERE name IS NOT NULL)
        SELECT 'named' AS kind, name, image FROM named
        UNION ALL SELECT 'unnamed', NULL, image FROM ids WHERE image NOT IN (SELECT image FROM named)""")
    con.execute("CREATE TABLE constants AS SELECT ?::DOUBLE AS t", [function["temperature"]])
    near = f"SELECT generated, image, distance AS d FROM matches WHERE rank <= {function['k'] or 2**31 - 1}"
    if function["relative"]:  # distances in units of the 30th
        con.execute(
            "CREATE TABLE thirtieth AS SELECT generated, max(distance) AS one FROM matches WHERE rank <= 30 GROUP BY 1"
        )
        near = near.replace("distance AS d", "least(distance / greatest(one, 1e-300), 1e6) AS d")
        near = near.replace("FROM matches", "FROM matches JOIN thirtieth USING (generated)")
    stranger = (
        f"UNION ALL SELECT generated, 'nobody', NULL, {function['null_distance']!r}::DOUBLE FROM numbered"
    )
    sql = {"owner-shapley": OWNER_SHAPLEY, "shares": SHARES}[function["rule"]].format(
        near=near,
        stranger="" if function["null_distance"] is None else stranger,
        quality=units("coalesce(quality, 1e0)" if function["quality_weighted"] else "1e0"),
    )
    found = dict.fromkeys(con.execute("SELECT DISTINCT kind, name FROM owners").fetchall(), 0)
    return found | {(kind, name): int(credited) for kind, name, credited in con.execute(sql).fetchall()}


# -- money -------------------------------------------------------------------------------------------


def order(kind: str, name: str | None, credited: int) -> tuple[int, int, str]:
    """Of lines: the largest credit first, then by code points; unnamed and nobody last."""
    return ("named", "unnamed", "nobody").index(kind), -credited, name or ""


def share(credits: list[int], budget: int) -> list[int]:
    """Rounded down; the rest, a unit each, to the largest remainders, of equal ones to the earlier line."""
    total = sum(credits)
    if not budget:
        return [0] * len(credits)
    require(total > 0, "there is a budget, and no credit")
    amounts = [one * budget // total for one in credits]
    last = sorted(range(len(credits)), key=lambda i: (-(credits[i] * budget % total), -credits[i], i))
    for i in last[: budget - sum(amounts)]:
        amounts[i] += 1
    return amounts


def check_lines(document: dict, credited: dict[tuple[str, str | None], int]) -> None:
    excluded = {one["name"] for one in document["exclusions"]}
    listed = {who: n for who, n in credited.items() if who[0] == "nobody" or who[1] not in excluded}
    ordered = sorted(listed, key=lambda who: order(*who, listed[who]))
    amounts = dict(zip(ordered, share([listed[who] for who in ordered], document["budget"]), strict=True))
    lines = {(line["kind"], line["name"]): line for line in document["lines"]}
    held: dict[str, int] = {}
    for hold in document["holds"]:
        held[hold["name"]] = held.get(hold["name"], 0) + hold["amount"]
    require(len(lines) == len(document["lines"]), "two lines are of one name")
    for who, amount in amounts.items():
        require(who in lines, f"{who[1] or who[0]!r} earned {amount} units of money, and has no line")
    for who, line in lines.items():
        name = line["name"] or line["kind"]
        same(f"units of {name!r}", line["units"], listed.get(who, 0))
        same(f"amount of {name!r}", line["amount"], amounts.get(who, 0))
        require(line["low"] <= line["amount"] <= line["high"], f"interval of {name!r}: without its amount")
        most = min(held.get(line["name"], 0), line["amount"])
        require(0 <= line["held"] <= most, f"held of {name!r}: {line['held']}, where {most} is most")
        due = line["brought"] + line["released"] + line["amount"] - line["held"]
        payable = line["kind"] == "named" and line["name"] not in excluded and due >= document["minimum"]
        expected = [0, 0] if line["kind"] == "nobody" else [due, 0] if payable else [0, due]
        same(f"paid and balance of {name!r}", [line["paid"], line["balance"]], expected)
    places = [order(line["kind"], line["name"], line["units"]) for line in document["lines"]]
    require(places == sorted(places), "the lines aren't in their order")
    same("the budget", document["budget"], sum(line["amount"] for line in document["lines"]))


def check_previous(document: dict, previous: Path | None) -> None:
    """Balances brought forward, against the payout before."""
    before: dict = {"lines": [], "holds": []}
    if previous:
        before = read_document(previous, document["previous"])
    elif document["previous"]:
        return
    owed = {(line["kind"], line["name"]): line["balance"] for line in before["lines"]}
    for line in document["lines"]:
        same(f"brought of {line['name']!r}", line["brought"], owed.pop((line["kind"], line["name"]), 0))
    require(not any(owed.values()), "a balance of the payout before isn't brought forward")
    held = sum(hold["amount"] for hold in before["holds"]) + sum(line["held"] for line in document["lines"])
    left = sum(hold["amount"] for hold in document["holds"])
    same("what was held and isn't any more", held - left, sum(line["released"] for line in document["lines"]))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--fingerprint", help="as it is printed on a statement")
    parser.add_argument("--previous", type=Path, help="the bundle of the payout that it brings forward")
    given = parser.parse_args()
    try:
        document = read_document(given.bundle, given.fingerprint)
        tables = read_tables(given.bundle, document)
        same("generated_images", document["generated_images"], len(tables["generated"]))
        same("batches", document["batches"], sorted(set(tables["generated"]["batch"].to_pylist())))
        check_lines(document, credit(tables, document["value_function"]))
        check_previous(document, given.previous)
    except (Difference, *UNREADABLE) as found:
        print(f"DIFFERS: {found or type(found).__name__}")
        return 1
    paid = sum(line["paid"] for line in document["lines"])
    print(
        f"{document['payout']} follows from its evidence: {len(tables['matches']):,} matches of "
        f"{document['generated_images']:,} generated images, {len(document['lines']):,} lines; of a budget of "
        f"{document['budget']} and balances, {paid} is paid (10^-{document['decimals']} {document['currency']})\n"
        f"fingerprint {sha256(given.bundle / 'payout.json')}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
