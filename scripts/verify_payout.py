"""Recompute a payout from its bundle, with nothing of gmv-qdrant: Python, duckdb and pyarrow.

    python verify_payout.py BUNDLE [--fingerprint FROM_A_STATEMENT] [--previous BUNDLE_OF_THE_PAYOUT_BEFORE]

BUNDLE is what `gmv-qdrant payout export ID BUNDLE` wrote. Every file is held against the manifest, the evidence against
its SHA-256 in payout.json, and claims and amounts are computed anew from it, to the smallest unit of the currency.
Exit code 0 and "follows from its evidence", or 1 and the first difference. A bundle can be forged as a whole; the
fingerprint on a statement can't: with --fingerprint, it is what that statement was about.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import Counter
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

TABLES = {
    "generated": "batch string, uri string, sha256 string, quality double",
    "images": "id string, sha256 string",
    "sources": "image int32, uri string, name string, licence string",
    "history": "image int32, uri string, name string, licence string, place int32, current int32",
    "matches": "generated int32, rank int32, image int32, distance double",
    "copies": "image int32, other int32, distance double",
}
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, pa.ArrowException, duckdb.Error)
UNITS = "CAST({} * 1.152921504606846976e18 AS BIGINT)"  # credit in units of 2^-60 of a generated image


class Difference(Exception):
    """The payout isn't what its bundle says."""


def require(true: bool, otherwise: str) -> None:
    if not true:
        raise Difference(otherwise)


def same(what: str, said: object, found: object) -> None:
    require(said == found, f"{what}: it says {said!r}, and it should be {found!r}")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> dict:
    found = json.loads(path.read_bytes())
    canonical = json.dumps(found, indent=1, sort_keys=True) + "\n"
    require(path.read_text("ascii") == canonical, f"{path.name}: not as it was written")
    return found


def read_document(bundle: Path, fingerprint: str | None) -> dict:
    """payout.json, after every file was held against the manifest, and the manifest against itself."""
    manifest = read_json(bundle / "manifest.json")
    rest = {name: said for name, said in manifest.items() if name != "whole"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    same("manifest.json: hash of the whole", manifest["whole"], hashlib.sha256(text.encode()).hexdigest())
    there = {path.name for path in bundle.iterdir()} - {"manifest.json"}
    for name in sorted(there | manifest["files"].keys()):
        require(name in there, f"{name}: missing")
        require(name in manifest["files"], f"{name}: not in the manifest")
        same(f"{name}: SHA-256 in the manifest", manifest["files"][name], sha256(bundle / name))
    same("manifest.json: fingerprint", manifest["fingerprint"], sha256(bundle / "payout.json"))
    same("the statement: fingerprint", fingerprint or manifest["fingerprint"], manifest["fingerprint"])
    return read_json(bundle / "payout.json")


def digest(table: pa.Table) -> str:
    """Column after column: its name and a newline, then numbers as 8 bytes, or lengths and texts; missing is -1."""
    found = hashlib.sha256()
    for name in table.column_names:
        column = pa.concat_arrays(table[name].chunks or [pa.array([], table[name].type)])
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
    tables = {name: pq.read_table(bundle / f"{name}.parquet") for name in TABLES}
    for name, table in tables.items():
        columns = ", ".join(f"{one.name} {one.type}" for one in table.schema)
        same(f"{name}.parquet: columns", columns, TABLES[name])
        same(f"payout.json: evidence {name}", document["evidence"][name], digest(table))
    now = tables["history"].filter(pc.equal(tables["history"]["current"], 1))
    told = Counter(rows_of(now.select(tables["sources"].column_names)))
    require(told == Counter(rows_of(tables["sources"])), "the history doesn't end in what the sources say")
    return tables


def rows_of(table: pa.Table) -> list[tuple]:
    return list(zip(*table.to_pydict().values(), strict=True))


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
    held AS (SELECT * FROM near JOIN owners USING (image)),
    twins AS (SELECT image, other FROM copies UNION SELECT other, image FROM copies),
    farthest AS (SELECT generated, who, a.image, max(b.d) AS far FROM held a JOIN twins USING (image)
                 JOIN held b USING (generated, who) WHERE b.image = other GROUP BY ALL),
    whole AS (SELECT h.* REPLACE (greatest(d, coalesce(far, 0e0)) AS d)
              FROM held h LEFT JOIN farthest USING (generated, who, image)),
    best AS (SELECT generated, kind, name, arg_min(image, {{{{d: d, r: rank}}}}) AS image, min(d) AS d
             FROM whole GROUP BY generated, kind, name {{stranger}}),
    heights AS (SELECT *, (d - min(d) OVER (PARTITION BY generated)) / t AS x FROM best, constants), {EXPONENTIALS},
    steps AS (SELECT *, row_number() OVER up AS place, u - coalesce(lead(u) OVER up, 0e0) AS rise FROM exponentials
              WINDOW up AS (PARTITION BY generated ORDER BY x, kind, name)),
    parts AS (SELECT generated, kind, name, image, sum({UNITS.format("rise / place")}) OVER
              (PARTITION BY generated ORDER BY place DESC ROWS UNBOUNDED PRECEDING) AS part FROM steps)
    SELECT kind, name, image, CAST(sum(part::HUGEINT * {{quality}} // 1152921504606846976) AS HUGEINT)
    FROM parts JOIN numbered USING (generated) GROUP BY ALL"""
SHARES = f"""
    WITH near AS ({{near}}),
    rivals AS (SELECT generated, 'image' AS kind, image, d FROM near {{stranger}}),
    heights AS (SELECT *, (d - min(d) OVER (PARTITION BY generated)) / t AS x FROM rivals, constants), {EXPONENTIALS},
    weights AS (SELECT generated, image, {UNITS.format("u")} AS w FROM exponentials),
    parts AS (SELECT image, w::HUGEINT * {{quality}} // sum(w) OVER (PARTITION BY generated) AS part
              FROM weights JOIN numbered USING (generated)),
    shared AS (SELECT *, count(*) OVER (PARTITION BY image) AS owners FROM owners)
    SELECT coalesce(kind, 'nobody'), name, image, CAST(sum(part // coalesce(owners, 1)) AS HUGEINT)
    FROM parts LEFT JOIN shared USING (image) GROUP BY ALL"""


def credit(tables: dict[str, pa.Table], function: dict) -> dict[tuple[str, str | None], dict[int, int]]:
    """Units by kind and name, those without any included, and by image."""
    con = duckdb.connect(":memory:")
    for name, table in tables.items():
        con.register(name, table)
    con.execute("""
        CREATE TABLE numbered AS SELECT row_number() OVER () - 1 AS generated, * FROM generated;
        CREATE TABLE owners AS WITH named AS (SELECT DISTINCT image, name FROM sources WHERE name IS NOT NULL)
        SELECT 'named' AS kind, name, image, 'n' || name AS who FROM named
        UNION ALL SELECT 'unnamed', NULL, image, ''
        FROM (SELECT row_number() OVER () - 1 AS image FROM images) WHERE image NOT IN (SELECT image FROM named);
        CREATE TABLE units AS SELECT generated, max(distance) AS one FROM matches WHERE rank <= 30 GROUP BY 1""")
    con.execute("CREATE TABLE constants AS SELECT ?::DOUBLE AS t", [function["temperature"]])
    most = function["k"] or 2**31 - 1
    d = "least(distance / greatest(one, 1e-300), 1e6)" if function["relative"] else "distance"
    nobody = f"SELECT generated, 'nobody' AS kind, {function['null_distance']!r}::DOUBLE AS d FROM numbered"
    sql = {"owner-shapley": OWNER_SHAPLEY, "shares": SHARES}[function["rule"]].format(
        near=f"SELECT generated, rank, image, {d} AS d FROM matches JOIN units USING (generated) WHERE rank <= {most}",
        stranger="" if function["null_distance"] is None else f"UNION ALL BY NAME {nobody}",
        quality=UNITS.format("coalesce(quality, 1e0)" if function["quality_weighted"] else "1e0"),
    )
    found: dict = {who: {} for who in con.execute("SELECT DISTINCT kind, name FROM owners").fetchall()}
    for kind, name, image, credited in con.execute(sql).fetchall():
        found.setdefault((kind, name), {})[image] = int(credited)
    return found


def find_claims(tables: dict[str, pa.Table]) -> list[dict]:
    """Images that generated ones resemble and that several names bring, near-copies together, and these names."""
    names: dict = {image: set() for image in pc.unique(tables["matches"]["image"]).to_pylist()}
    for image, _, name, _ in rows_of(tables["sources"]):
        names.get(image, set()).add(name)
    names = {image: held - {None} for image, held in names.items()}
    group = {image: {image} for image in names}
    for one, other, _ in rows_of(tables["copies"]):
        if {one, other} <= names.keys() and names[one] != names[other]:
            joined = group[one] | group[other]
            group.update(dict.fromkeys(joined, joined))
    found = []
    for first, images in sorted(group.items()):
        bring = sorted(set().union(*(names[one] for one in images)))
        if first == min(images) and len(bring) > 1:
            ids = tables["images"]["id"].take(sorted(images)).to_pylist()
            found.append({"rows": images, "images": ids, "names": bring, "amount": 0})
    return found


def order(kind: str, name: str | None, credited: int) -> tuple[int, int, str]:
    """Of lines: the largest credit first, then by code points; unnamed and nobody last."""
    return ("named", "unnamed", "nobody").index(kind), -credited, name or ""


def share(credits: list[int], budget: int) -> list[int]:
    """Rounded down; the rest, a unit each, to the largest remainders, of equal ones to the earlier line."""
    require(sum(credits) > 0 or not budget, "there is a budget, and no credit")
    total = sum(credits) or 1
    amounts = [one * budget // total for one in credits]
    last = sorted(range(len(credits)), key=lambda i: (-(credits[i] * budget % total), -credits[i], i))
    for i in last[: budget - sum(amounts)]:
        amounts[i] += 1
    return amounts


def check_claims(document: dict, claims: list[dict], by_image: dict, amounts: dict) -> Counter:
    """What is in question, by claim and name, and what is held of it; returns the latter by name."""
    number = {image: n for n, claim in enumerate(claims) for image in claim.pop("rows")}
    left = {(tuple(hold["images"]), hold["name"]): hold["amount"] for hold in document["holds"]}
    require(len(left) == len(document["holds"]), "two holds are of one claim and name")
    held: Counter = Counter()
    for (kind, name), amount in amounts.items():
        units = [0] * (len(claims) + 1)
        for image, credited in by_image[kind, name].items():
            units[number.get(image, len(claims))] += credited
        doubtful = kind == "named" and any(units[:-1])
        for claim, part in zip(claims, share(units, amount) if doubtful else (), strict=False):
            claim["amount"] += part
            if document["hold"] and part:
                held[name] += part
                most = left.get((tuple(claim["images"]), name), 0)
                require(part <= most, f"held of {name!r}: {part} by a claim, and its hold is of {most}")
    require(bool(document["previous"]) or sum(left.values()) == held.total(), "a hold is of no claim")
    same("claims", document["claims"], claims)
    return held


def check_lines(document: dict, claims: list[dict], by_image: dict) -> None:
    excluded = {one["name"] for one in document["exclusions"]}
    listed = {
        who: sum(n.values()) for who, n in by_image.items() if who[0] == "nobody" or who[1] not in excluded
    }
    ordered = sorted(listed, key=lambda who: order(*who, listed[who]))
    amounts = dict(zip(ordered, share([listed[who] for who in ordered], document["budget"]), strict=True))
    lines = {(line["kind"], line["name"]): line for line in document["lines"]}
    held = check_claims(document, claims, by_image, amounts)
    require(len(lines) == len(document["lines"]), "two lines are of one name")
    require(amounts.keys() <= lines.keys(), "somebody who earned something has no line")
    for (kind, name), line in lines.items():
        same(f"units of {name!r}", line["units"], listed.get((kind, name), 0))
        same(f"amount of {name!r}", line["amount"], amounts.get((kind, name), 0))
        require(line["low"] <= line["amount"] <= line["high"], f"interval of {name!r}: without its amount")
        same(f"held of {name!r}", line["held"], held[name])
        due = line["brought"] + line["released"] + line["amount"] - line["held"]
        payable = kind == "named" and name not in excluded and due >= document["minimum"]
        expected = {"nobody": [0, 0]}.get(kind, [due, 0] if payable else [0, due])
        same(f"paid and balance of {name!r}", [line["paid"], line["balance"]], expected)
    places = [order(*who, line["units"]) for who, line in lines.items()]
    require(places == sorted(places), "the lines aren't in their order")


def check_previous(document: dict, previous: Path | None) -> None:
    """Balances brought forward, against the payout before."""
    if document["previous"] and not previous:
        return
    before = read_document(previous, document["previous"]) if previous else {"lines": [], "holds": []}
    owed = {(line["kind"], line["name"]): line["balance"] for line in before["lines"]}
    for line in document["lines"]:
        same(f"brought of {line['name']!r}", line["brought"], owed.pop((line["kind"], line["name"]), 0))
    require(not any(owed.values()), "a balance of the payout before isn't brought forward")
    held = sum(hold["amount"] for hold in before["holds"]) - sum(hold["amount"] for hold in document["holds"])
    released = sum(line["released"] - line["held"] for line in document["lines"])
    same("what was held and isn't any more", held, released)


def main() -> int:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--fingerprint", help="as it is printed on a statement")
    parser.add_argument("--previous", type=Path, help="the bundle of the payout that it brings forward")
    given = parser.parse_args()
    try:
        document = read_document(given.bundle, given.fingerprint)
        tables = read_tables(given.bundle, document)
        same("generated_images", document["generated_images"], len(tables["generated"]))
        same("batches", document["batches"], sorted(set(tables["generated"]["batch"].to_pylist())))
        check_lines(document, find_claims(tables), credit(tables, document["value_function"]))
        same("the budget", document["budget"], sum(line["amount"] for line in document["lines"]))
        check_previous(document, given.previous)
    except (Difference, *UNREADABLE) as found:
        print(f"DIFFERS: {found or type(found).__name__}")
        return 1
    print(
        f"{document['payout']} follows from its evidence: {len(tables['matches']):,} matches, "
        f"{len(document['lines']):,} lines; {document['budget']} (10^-{document['decimals']} {document['currency']})\n"
        f"fingerprint {sha256(given.bundle / 'payout.json')}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
