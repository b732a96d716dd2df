"""Questions put to the evidence, each one SELECT over the macros of ``credits.sql``."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gmv_qdrant.errors import SettingsError, did_you_mean
from gmv_qdrant.images.embedded import place_of
from gmv_qdrant.ledger.database import Connection, Readable, literal
from gmv_qdrant.ledger.names import require_batch
from gmv_qdrant.ledger.selection import Selection
from gmv_qdrant.text import FORMULA, NUMBER


@dataclass(frozen=True, slots=True)
class ValueFunction:
    """How evidence becomes values: a choice of the question, never of the run.

    k: contributors of a generated image (P_j of Eq. 6); None for all candidates.
    temperature: T in exp(-d/T); 1 is the paper.
    quality_weighted: weigh by quality (section 3.2).
    batch: only the generated images valued under this name.
    null_distance: the distance at which "nobody" weighs as much as an image; None is the paper.
    relative: distances, temperature and null_distance are in units of the image's 30th distance.
    calibration: the version that the three are from, such as ``default@3``.
    as_of: a date or time (UTC): credit goes to whom the sources named then.
    """

    k: int | None = 30
    temperature: float = 1.0
    quality_weighted: bool = True
    batch: str | None = None
    null_distance: float | None = None
    relative: bool = False
    calibration: str | None = None
    as_of: str | None = None

    def __post_init__(self) -> None:
        if self.k is not None and self.k < 1:
            raise SettingsError(f"k = {self.k} can't be used: at least one contributor is needed")
        if not 1e-9 <= self.temperature <= 1e9:
            raise SettingsError(
                f"temperature = {self.temperature} can't be used: it must be above 0, from 1e-9 to 1e9 (1 is the paper)"
            )
        if self.null_distance is not None and not math.isfinite(self.null_distance):
            raise SettingsError(
                f"null_distance = {self.null_distance} can't be used: it is a distance, or None, where nobody gets any"
            )
        if self.as_of is not None:
            object.__setattr__(self, "as_of", _utc(self.as_of))

    @property
    def question(self) -> str:
        """What credit by this function answers: copies and losses are two questions with two temperatures."""
        if self.calibration == LOSS:
            return "what would a model lose without them?"
        if self.calibration:
            return "of whom is this nearly a copy?"
        return "who resembles it?"

    def sql(self) -> str:
        """Arguments of a macro, after positional ones."""
        values = {
            "k": self.k,
            "temperature": self.temperature,
            "quality_weighted": self.quality_weighted,
            "batch": self.batch,
            "null_distance": self.null_distance,
            "relative": self.relative,
            "as_of": self.as_of,
        }
        return ", ".join(f"{name} := {literal(value)}" for name, value in values.items())


LOSS, LOSS_TEMPERATURE = "loss", 0.25
"""The value function that follows best what small generators lost when they were trained again without the images, in
units of an image's 30th distance, over all K candidates: see ``scripts/reproduce/counterfactual.py``."""


def _utc(text: str) -> str:
    """A date or a time, as people write it, as a time in UTC. Raises `SettingsError`."""
    try:
        time = datetime.fromisoformat(str(text))
    except ValueError:
        raise SettingsError(
            f"as_of = {text!r} is no date: write it as 2025-12-31, or 2025-12-31T18:00:00"
        ) from None
    return time.astimezone(UTC).replace(tzinfo=None).isoformat() if time.tzinfo else time.isoformat()


def value_function(ledger: Readable, *, calibration: str | None = None, **fields: Any) -> ValueFunction:
    """A value function from its fields, or from what `calibrate` kept under a name (k, batch, ... stay free).

    calibration: ``default`` is the latest version of that name, ``default@2`` the second; ``loss`` is built in. k: when
    it isn't given 30, but all candidates for ``loss`` and for imported scores.
    Raises `SettingsError` for an unknown name or version, and for a temperature beside a calibration.
    """
    given = {name: value for name, value in fields.items() if value is not None or name == "k"}
    if "k" not in given and (calibration == LOSS or "imported" in ledger.meta()):
        given["k"] = None
    if "batch" in given:
        require_batch(ledger, given["batch"])
    if calibration is None:
        return ValueFunction(**given)
    if {"temperature", "null_distance", "relative"} & given.keys():
        raise SettingsError(
            f"the calibration {calibration!r} has a temperature of its own: give one or the other"
        )
    if calibration == LOSS:
        return ValueFunction(calibration=LOSS, temperature=LOSS_TEMPERATURE, relative=True, **given)
    version, own = _calibration(ledger, calibration)
    return ValueFunction(calibration=version, **own, **given)


def _calibration(ledger: Readable, name: str) -> tuple[str, dict[str, Any]]:
    """Its version, and what it says of the value function. Raises `SettingsError`."""
    kept = calibrations(ledger)
    latest = {row["name"]: f"{row['name']}@{row['version']}" for row in kept.values()}
    version = latest.get(name, name)
    if version not in kept:
        raise SettingsError(
            f"there is no calibration {name!r}{did_you_mean(name, {*kept, *latest})} "
            f"(known: {', '.join(kept) or 'none yet'}): make it with 'gmv-qdrant calibrate'"
        )
    return version, {field: kept[version][field] for field in ("temperature", "null_distance", "relative")}


def calibrations(ledger: Readable) -> dict[str, dict[str, Any]]:
    """All versions of all calibrations, as ``name@version`` -> row; the versions of a name in order."""
    rows = ledger.rows("FROM calibrations ORDER BY name, version")
    return {f"{row['name']}@{row['version']}": row for row in rows}


RULES = {"shares": "credits", "owner-shapley": "owner_shapley", "knn-shapley": "knn_shapley"}
"""How the credit of one generated image is divided: name -> macro; docs/concepts/method.md says what each rewards."""


def credits(
    ledger: Readable,
    by: str,
    function: ValueFunction,
    top: int | None,
    rule: str = "shares",
    interval: float | None = None,
    selection: Selection | None = None,
) -> tuple[str, dict[str, Any]]:
    """SQL, with its parameters, of credit, largest first: by ``image`` (zeros included), ``owner``, ``label``,
    ``licence``, ``batch`` (of the generated images) or any attribute.

    The first column has the name of what is asked for, but where it would be that of a figure: then it is ``name``.
    With a null distance the column ``nobody`` marks the row of credit that no image gets.
    rule: one of `RULES`. interval: percent of an interval, which adds the columns ``low`` and ``high``.
    selection: only these images, of credits by image.
    """
    _refuse_credits(by, rule, interval, selection)
    limit = f" LIMIT {int(top)}" if top is not None else ""
    nobody = "" if function.null_distance is None else ", nobody"
    if by == "image":
        which = "" if selection is None else "WHERE training_key IN (SELECT unnest($keys::INTEGER[]))"
        return (
            f"""SELECT point_id AS image, uri, owner, label, value, matches {nobody}
            FROM {_IMAGE_RULES[rule]}({function.sql()}) {which}
            ORDER BY value DESC, point_id NULLS FIRST{limit}""",
            {} if selection is None else {"keys": selection.keys(ledger)},
        )
    if by == "batch":
        return _BY_BATCH.format(function=function.sql(), batch=literal(function.batch)) + limit, {}
    if by not in ("owner", "label", "licence") and by not in attribute_names(ledger):
        known = ["image", "owner", "label", "licence", "batch", *attribute_names(ledger)]
        raise SettingsError(
            f"no training image has the attribute {by!r}{did_you_mean(by, known)}: credits go by {', '.join(known)}"
        )
    name = '"name"' if by.lower() in _FIGURES else '"' + by.replace('"', '""') + '"'
    arguments = f"{literal(by)}, {function.sql()}"
    ends, bounds = "", ""
    if interval is not None:
        ends = ", low, high"
        bounds = f"""JOIN (SELECT name AS bounded, low, high, nobody AS no_one
            FROM credit_intervals({arguments}, level := {float(interval)}, rule := {literal(rule)}))
            ON bounded IS NOT DISTINCT FROM name AND no_one = nobody"""
    return (
        f"""SELECT name AS {name}, value{ends}, share, images, matches{nobody} FROM {RULES[rule]}({arguments}) {bounds}
        ORDER BY value DESC, name NULLS LAST{limit}""",
        {},
    )


_IMAGE_RULES = {"shares": "image_values", "knn-shapley": "knn_shapley"}
_FIGURES = ("value", "low", "high", "share", "images", "matches", "nobody")
_BY_BATCH = """
WITH earned AS (
    SELECT batch, _gmv_floating(sum(_gmv_fixed(contribution))) AS value, count(*) AS matches
    FROM contributions({function}) JOIN generated g USING (generated_key) GROUP BY batch
), batches AS (
    SELECT batch, count(*) AS images FROM _gmv_credited({batch}) JOIN generated USING (generated_key) GROUP BY batch
)
SELECT batch, coalesce(value, 0.0) AS value, coalesce(value, 0.0) / nullif(sum(value) OVER (), 0) AS share, images,
       coalesce(matches, 0) AS matches
FROM batches LEFT JOIN earned USING (batch) ORDER BY value DESC, batch"""


def _refuse_credits(by: str, rule: str, interval: float | None, selection: Selection | None) -> None:
    """Raises `SettingsError` for questions that make no sense."""
    if rule not in RULES:
        raise SettingsError(
            f"there is no rule {rule!r}{did_you_mean(rule, RULES)}: choose one of {', '.join(RULES)}"
        )
    if (rule == "knn-shapley" and by != "image") or (rule == "owner-shapley" and by in ("image", "batch")):
        other = "images" if rule == "knn-shapley" else "owners and other groups of training images"
        raise SettingsError(f"{rule} values {other}, so it can't be asked by {by}")
    if selection is not None and by != "image":
        raise SettingsError(f"some training images are chosen for credits by image, not by {by}")
    if interval is None:
        return
    if by in ("image", "batch"):
        raise SettingsError(
            "intervals are given for credits of owners and other groups, not of images or batches"
        )
    if not 50 <= interval < 100:
        raise SettingsError(
            f"an interval of {interval:g} % can't be given: ask for 50 or more, and less than 100"
        )


def attribute_names(ledger: Readable) -> list[str]:
    """Names of the attributes that metadata gave to sources."""
    rows = ledger.rows(
        "SELECT DISTINCT unnest(json_keys(attributes)) AS name FROM sources WHERE attributes IS NOT NULL ORDER BY name"
    )
    return [str(row["name"]) for row in rows]


def effective_contributors(ledger: Readable, function: ValueFunction) -> float | None:
    """Mean over the generated images of exp(entropy of the contributions); None when there are none."""
    rows = ledger.rows(
        f"""SELECT _gmv_floating(sum(_gmv_fixed(effective))) / count(effective) AS mean
        FROM effective_contributors({function.sql()})"""
    )
    mean = rows[0]["mean"]
    return None if mean is None else float(mean)


def stale(ledger: Readable) -> int:
    """Generated images valued against another training set than today's."""
    rows = ledger.rows(
        """SELECT count(*) AS n FROM generated
        WHERE version_valued < (SELECT value::INTEGER FROM meta WHERE key = 'training_version')"""
    )
    return int(rows[0]["n"])


def counts(ledger: Readable) -> dict[str, dict[str, Any]]:
    """What the ledger holds, by section."""
    row = ledger.rows(
        """
        SELECT (SELECT count(*) FROM training WHERE version_withdrawn IS NULL) AS training_images,
               (SELECT count(*) FROM sources) AS sources,
               (SELECT count(*) FROM training WHERE version_withdrawn IS NOT NULL) AS withdrawn,
               (SELECT count(DISTINCT owner) FROM sources) AS owners,
               (SELECT count(*) FROM generated) AS generated_images,
               (SELECT count(DISTINCT batch) FROM generated) AS batches,
               (SELECT count(*) FROM matches) AS matches,
               (SELECT count(*) FROM quarantine) AS quarantined
        """
    )[0]
    return {
        "training": {
            "images": row["training_images"],
            "sources": row["sources"],
            "duplicates": row["sources"] - row["training_images"],
            "owners": row["owners"],
            "withdrawn": row["withdrawn"],
            "quarantined": row["quarantined"],
        },
        "generated": {
            "images": row["generated_images"],
            "batches": row["batches"],
            "stale": stale(ledger),
            "matches": row["matches"],
        },
    }


def quarantined_requests(ledger: Readable, verb: str) -> list[tuple[dict[str, Any], frozenset[str]]]:
    """What runs of ``verb`` were asked for, each with the inputs of it that are in quarantine; oldest first."""
    rows = ledger.rows(
        """SELECT json_extract(settings, '$.request')::VARCHAR AS request, list(DISTINCT uri) AS uris
        FROM quarantine JOIN runs USING (run_id) WHERE verb = $verb GROUP BY request ORDER BY min("at"), request""",
        {"verb": verb},
    )
    found = [(json.loads(row["request"] or "{}"), frozenset(row["uris"])) for row in rows]
    return [(request, uris) for request, uris in found if request.get("paths")]


def allowed_places(ledger: Readable) -> tuple[str, ...]:
    """Where images may be read from: what runs were given, and an adopted collection's prefix and payloads."""
    rows = ledger.rows(
        """SELECT DISTINCT unnest(json_extract_string(settings, '$.request.paths[*]')
            || json_extract_string(settings, '$.request.allow[*]')) AS place
        FROM runs WHERE verb IN ('ingest', 'value', 'adopt') ORDER BY place"""
    )
    adopted = json.loads(ledger.meta().get("adopted", "null"))
    if adopted is None:
        return tuple(row["place"] for row in rows)
    prefix = adopted["fields"]["uri_prefix"]
    return (*(row["place"] for row in rows), *([prefix] if prefix else []), place_of(ledger.path.parent))


def last_runs(ledger: Readable, most: int = 5) -> list[dict[str, Any]]:
    """The latest runs, newest first."""
    rows = ledger.rows(
        """SELECT verb, status, started_at, (timings->>'total')::DOUBLE AS seconds, training_version, counts
        FROM runs ORDER BY started_at DESC LIMIT $most""",
        {"most": most},
    )
    return [{**row, "counts": json.loads(row["counts"] or "{}")} for row in rows]


EXPORTS = {
    "values": """
        SELECT v.point_id AS image, v.uri, coalesce(o.owners, []) AS owners, v.label, v.value, v.matches
        FROM image_values({arguments}) v LEFT JOIN _gmv_owners({as_of}) o USING (training_key)
        ORDER BY value DESC, image""",
    "contributions": """
        SELECT g.uri AS generated_uri, s.uri AS training_uri, coalesce(o.owners, []) AS owners, c.rank, c.distance,
               c.quality, c.contribution, g.batch, t.point_id AS image
        FROM contributions({arguments}) c
        JOIN generated g USING (generated_key) JOIN training t USING (training_key)
        JOIN _gmv_owners(NULL) s USING (training_key) LEFT JOIN _gmv_owners({as_of}) o USING (training_key)
        ORDER BY g.batch, generated_uri, c.rank""",
    "sources": """
        SELECT t.point_id AS image, s.uri, s.owner, s.label, s.licence, s.attributes, t.content_hash AS sha256,
               t.width, t.height
        FROM _gmv_sources({as_of}) s JOIN training t USING (training_key) WHERE t.version_withdrawn IS NULL
        ORDER BY t.point_id, s.uri""",
    "generated": """
        SELECT uri, batch, label, quality, point_id AS image, content_hash AS sha256, attributes
        FROM generated ORDER BY batch, uri""",
}
"""What `export` writes: name of the file -> its rows."""


def export(ledger: Readable, directory: Path, function: ValueFunction, file_format: str) -> list[Path]:
    """Write the tables of `EXPORTS` as Parquet or CSV; each file is whole or not there.

    In CSV, lists are JSON, and texts that a spreadsheet would take for a formula begin with an apostrophe.
    """
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    with ledger.read() as con:
        for name, select in EXPORTS.items():
            target = directory / f"{name}.{file_format}"
            partial = target.with_suffix(".partial")
            rows = select.format(arguments=function.sql(), as_of=literal(function.as_of))
            options = "FORMAT parquet, COMPRESSION zstd"
            if file_format == "csv":
                rows, options = _harmless(con, rows), "FORMAT csv, HEADER"
            con.execute(f"COPY ({rows}) TO {literal(str(partial))} ({options})")
            partial.rename(target)
            written.append(target)
    return written


def _harmless(con: Connection, select: str) -> str:
    """The same rows for a file that people open in a spreadsheet: see `harmless_cell`."""
    columns = con.execute(f"DESCRIBE ({select})").fetchall()
    cells = {name: f"to_json({name})" if kind.endswith("[]") else name for name, kind, *_ in columns}
    texts = [name for name, kind, *_ in columns if kind in ("VARCHAR", "JSON")]
    formula, number = literal(FORMULA), literal(NUMBER)
    for name in texts:
        cells[name] = (
            f"CASE WHEN regexp_matches({name}, {formula}) AND NOT regexp_matches({name}, {number}) "
            f"THEN concat('''', {name}) ELSE {name} END"
        )
    return f"SELECT {', '.join(f'{cell} AS {name}' for name, cell in cells.items())} FROM ({select})"
