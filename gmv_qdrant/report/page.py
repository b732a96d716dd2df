"""The report: one self-contained HTML file of bounded size, with pictures, for people who weren't there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2

from gmv_qdrant.accounting.claims import find_claims
from gmv_qdrant.accounting.evidence import Evidence
from gmv_qdrant.errors import LedgerError, SettingsError
from gmv_qdrant.ledger.database import Readable
from gmv_qdrant.ledger.queries import ValueFunction, allowed_places
from gmv_qdrant.ledger.runs import versions
from gmv_qdrant.report import plots
from gmv_qdrant.report.queries import (
    INTERVAL,
    MOST_LISTED,
    Row,
    Snapshot,
    contributors,
    generated_names,
    training_names,
)
from gmv_qdrant.report.thumbnails import Picture, Thumbnails

STATEMENT = (
    "Credit is a share of perceptual similarity, not of causal influence: it says which training images a generated "
    "image resembles, not which of them made the generator produce it."
)
MATCHED = 6
"""Generated images shown as best, and as worst matched; a third as many as best and worst in quality."""
SHOWN = 5
"""Contributors shown beside each."""
VALUABLE = 12
QUALITY_CELLS = (36, 20)


def number(value: float | None) -> str:
    """Four significant digits; whole numbers in full."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    if value != 0 and abs(value) < 1e-4:
        return f"{value:.2e}"
    digits = max(0, 4 - len(str(int(abs(value))))) if abs(value) >= 1 else 4
    return f"{value:,.{digits}f}"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}" if value < 0.1 else f"{value:.1%}"


def name(uri: str | None) -> str:
    """The last part of a URI: what people call the file."""
    return (uri or "unknown source").rstrip("/").rpartition("/")[2]


def environment(*packages: str) -> jinja2.Environment:
    """Templates of the report and of these packages; all is escaped, and a name that isn't there is an error."""
    env = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(name) for name in ("gmv_qdrant.report", *packages)]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {"number": number, "percent": percent, "name": name}
    env.globals |= {"statement": STATEMENT, "level": INTERVAL, "most_listed": MOST_LISTED}
    env.globals["version"] = version("gmv-qdrant")
    return env


@dataclass(frozen=True, slots=True)
class Shown:
    """What a template shows for an image: an address, or a reason."""

    src: str
    reason: str = ""


def write_report(
    root: Path,
    ledger: Readable,
    settings: Mapping[str, Any],
    function: ValueFunction,
    target: Path,
    title: str | None = None,
) -> Path:
    """Write the report of the workspace at ``root``; the file is whole or not there.

    Raises `SettingsError` when it can't be written, `LedgerError` when the ledger can't be read.
    """
    snapshot = Snapshot.take(ledger, function)
    thumbnails = Thumbnails(root, allowed_places(ledger))

    def picture(kind: str, image: Row) -> Shown:
        found: Picture = thumbnails.get(image)
        return Shown(found.data_uri if found.jpeg else "", found.reason)

    html = (
        environment()
        .get_template("report.html")
        .render(
            picture=picture,
            address_of=lambda kind, image: None,
            title=title or root.name,
            made_at=f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
            **summary(snapshot),
            **distribution(snapshot),
            **owners_table(snapshot),
            **claims_table(root, ledger),
            valuable=most_valued(ledger, snapshot),
            groups=match_groups(ledger, snapshot),
            function_facts=function_facts(function),
            settings_facts=settings_facts(settings, snapshot),
            version_facts=version_facts(snapshot),
        )
    )
    return write_whole(target, html.encode("utf-8", "backslashreplace"), "the report")


def write_whole(target: Path, data: bytes, what: str) -> Path:
    """A file that is whole or not there; one that was there stays until then. Raises `SettingsError`."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        partial.write_bytes(data)
        partial.replace(target)
    except OSError as error:
        raise SettingsError(f"{what} can't be written to {target}: {error.strerror}") from error
    return target


def summary(snapshot: Snapshot) -> dict[str, Any]:
    """Totals and the headline figures."""
    totals, sums, function = snapshot.totals, snapshot.sums, snapshot.function
    candidates = json.loads(snapshot.meta["settings"])["candidates"]
    most = min(function.k or candidates, candidates, max(totals["training_images"], 1))
    headline = [
        ("training images", number(totals["training_images"])),
        ("owners", number(totals["owners"])),
        ("generated images valued", number(sums["valued"])),
    ]
    if sums["valued"]:
        headline += [
            ("credit in all", number(float(sums["credit"]))),
            ("training images among the contributors", number(sums["matched"])),
            (f"effective contributors, of {most}", number(sums["effective"])),
            ("mean distance of the nearest", number(sums["nearest"])),
        ]
    if sums["quality"] is not None:
        headline.append(("mean quality", number(sums["quality"])))
    if totals["quarantined"]:
        headline.append(("in quarantine", number(totals["quarantined"])))
    return {
        "totals": totals,
        "sums": sums,
        "function": function,
        "headline": headline,
        "most_contributors": most,
        "quarantine": snapshot.quarantine,
        "runs": snapshot.runs,
    }


def distribution(snapshot: Snapshot) -> dict[str, Any]:
    """The plots, and the credit held by the top few percent."""
    bins = snapshot.value_bins()
    images = snapshot.totals["training_images"]
    drawn = [plots.values(bins, images - sum(row["images"] for row in bins))]
    curve = snapshot.credit_curve()
    drawn.append(plots.credit_curve(curve))
    sums = snapshot.sums
    if sums["valued"]:
        drawn.append(
            plots.histogram(
                snapshot.bins("effective"),
                "Effective number of contributors",
                f"Among how many training images the credit of one generated image is spread, as exp(entropy): "
                f"{number(sums['effective'])} on average.",
                "effective contributors of a generated image",
            )
        )
    columns, rows = QUALITY_CELLS
    if cells := snapshot.quality_by_distance(columns, rows):
        drawn.append(plots.density(cells, snapshot.correlation(), columns, rows))
    elif sums["valued"]:
        drawn.append(
            plots.histogram(
                snapshot.bins("nearest"),
                "Distance of the nearest training image",
                f"{number(sums['nearest'])} on average; no quality was measured in this workspace.",
                "distance of the nearest training image",
            )
        )
    return {"plots": drawn, "held": snapshot.held_by_top() if images else []}


def owners_table(snapshot: Snapshot, **page: Any) -> dict[str, Any]:
    """A page of owners, each with its bar; ``page`` as `Snapshot.owners` takes it."""
    owners = snapshot.owners(**page)
    top = snapshot.ask("SELECT max(greatest(value, coalesce(high, 0))) AS most FROM owners")[0]["most"] or 0.0
    for owner in owners:
        owner["bar"] = plots.share_bar(owner["low"], owner["value"], owner["high"], top)
    return {
        "owners": owners,
        "found_owners": owners[0]["found"] if owners else 0,
        "has_intervals": any(owner["low"] is not None for owner in owners),
    }


def with_contributors(ledger: Readable, rows: Sequence[Row], function: ValueFunction, most: int) -> list[Row]:
    """Generated images of a snapshot with their names and first contributors, names included."""
    keys = [row["generated_key"] for row in rows]
    matches = contributors(ledger, keys, function, most)
    names = generated_names(ledger, keys)
    training = training_names(
        ledger, sorted({m["training_key"] for found in matches.values() for m in found})
    )
    return [
        {
            **row,
            "image": names[row["generated_key"]],
            "contributors": [
                shown_match(match, training[match["training_key"]])
                for match in matches[row["generated_key"]]
                if match["training_key"] in training
            ],
        }
        for row in rows
        if row["generated_key"] in names
    ]


def shown_match(match: Row, image: Row) -> Row:
    """A contributor with its image, and its share of what the generated image gives."""
    share = match["contribution"] / match["quality"] if match["quality"] else None
    return {**match, "share": share, "image": image}


def most_valued(ledger: Readable, snapshot: Snapshot) -> list[Row]:
    rows = [row for row in snapshot.training("value", 0, VALUABLE) if row["value"] > 0]
    names = training_names(ledger, [row["training_key"] for row in rows])
    return [{**row, "image": names[row["training_key"]]} for row in rows if row["training_key"] in names]


_BY_DISTANCE = (
    (
        "best-matched",
        "distance",
        "Best matched",
        "The generated images whose nearest training image is nearest, with their contributors: distance d, "
        "contribution, and its share of the generated image's credit.",
    ),
    (
        "worst-matched",
        "distance-down",
        "Worst matched",
        "The generated images that are farthest from every training image. Their credit is shared out all the same, "
        "so a large distance asks for care.",
    ),
)
_BY_QUALITY = (
    (
        "best-quality",
        "quality",
        "Highest quality",
        "What the contributors of these images receive is scaled by a quality near the top.",
    ),
    (
        "worst-quality",
        "quality-up",
        "Lowest quality",
        "Images that resemble nothing still have nearest neighbours; a low quality keeps the credit that these "
        "receive small.",
    ),
)
"""Id, order, title and text of the groups of generated images, in pairs of best and worst."""


def match_groups(ledger: Readable, snapshot: Snapshot) -> list[dict[str, Any]]:
    """Best and worst, by distance (the paper's Figs. 4 and 6) and by quality (Fig. 3); no image twice in a pair."""
    wanted = list(_BY_DISTANCE)
    few = max(1, MATCHED // 3)
    if snapshot.sums["quality"] is not None:
        wanted += _BY_QUALITY
    pages: list[tuple[tuple[str, str, str, str], list[Row]]] = []
    valued = snapshot.sums["valued"]
    for index, group in enumerate(wanted):
        most = MATCHED if index < 2 else few
        share = min(most, (valued + 1) // 2 if index % 2 == 0 else valued // 2)
        pages.append((group, snapshot.generated(group[1], 0, share)))
    rows = {row["generated_key"]: row for _, page in pages for row in page}
    full = {
        row["generated_key"]: row
        for row in with_contributors(ledger, list(rows.values()), snapshot.function, SHOWN)
    }
    return [
        {
            "id": id_,
            "title": title,
            "text": text,
            "rows": [full[r["generated_key"]] for r in page if r["generated_key"] in full],
        }
        for (id_, _, title, text), page in pages
    ]


def claims_table(root: Path, ledger: Readable) -> dict[str, Any]:
    """What several owners claim, of the images that generated ones resemble: the first of them, and how many."""
    try:
        evidence = Evidence.of(ledger, "owner", root=root)
    except LedgerError:  # nothing was valued yet
        return {"claims": [], "found_claims": 0}
    found = find_claims(evidence)
    uris = {
        row["id"]: row["uri"]
        for row in evidence.rows(
            "SELECT id, min(uri) AS uri FROM images JOIN sources USING (image) GROUP BY id"
        )
    }
    listed = [
        {"names": claim.names, "uris": [uris[image] for image in claim.images if image in uris]}
        for claim in found[:MOST_LISTED]
    ]
    return {"claims": listed, "found_claims": len(found)}


def function_facts(function: ValueFunction) -> list[tuple[str, Any]]:
    paper = " (the paper)"
    fitted = f" (calibration {function.calibration})" if function.calibration else ""
    temperature = f"{function.temperature:g}{fitted or paper * (function.temperature == 1)}"
    nobody = "none (the paper)" if function.null_distance is None else f"{function.null_distance:g}"
    return [
        ("what such credit answers", function.question),
        ("contributors of a generated image, k", "all candidates" if function.k is None else function.k),
        ("temperature T in exp(−d/T)", temperature),
        ("weighed by quality", "yes" if function.quality_weighted else "no"),
        ("generated images", "all batches" if function.batch is None else f"batch {function.batch}"),
        ("null distance, at which nobody weighs as much", nobody),
        (
            "contribution (Eq. 6)",
            "V(i,j) = q(j) · exp(−d(i,j)/T) / Σ exp(−d(i′,j)/T), over the k nearest training images of j",
        ),
        ("value (Eq. 5)", "φ(i) = Σ V(i,j), over the generated images j"),
    ]


def settings_facts(settings: Mapping[str, Any], snapshot: Snapshot) -> list[tuple[str, Any]]:
    """What the evidence depends on, from the ledger's fingerprint where there is one; secrets aren't among them."""
    kept = json.loads(snapshot.meta.get("fingerprint") or "{}")
    facts: list[tuple[str, Any]] = [
        ("training_version of the training set", snapshot.meta.get("training_version", "0"))
    ]
    for key, value in settings.items():
        if value is None or value == {} or key == "qdrant_url":
            continue
        facts.append((key.replace("_", " "), value if isinstance(value, str | int) else json.dumps(value)))
    for part, identity in kept.items():
        if isinstance(identity, dict):
            facts.append((f"fingerprint of {part}", ", ".join(f"{k} {v}" for k, v in identity.items() if v)))
        elif part == "quality":
            facts.append(("fingerprint of quality", identity))
    return facts


def version_facts(snapshot: Snapshot) -> list[tuple[str, Any]]:
    latest = snapshot.runs[0]["versions"] if snapshot.runs else {}
    mine = versions()
    return [
        (
            package,
            found
            if found == mine.get(package)
            else f"{found} (report: {mine.get(package, 'not installed')})",
        )
        for package, found in (latest or mine).items()
    ]
