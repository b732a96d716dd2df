"""What the criteria ask of the ledger: small tables, one SELECT each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from gmv_qdrant.errors import SettingsError
from gmv_qdrant.ledger.database import Readable, literal
from gmv_qdrant.ledger.queries import ValueFunction

TRUE = "('1', '1.0', 'true', 't', 'yes', 'y')"
"""What counts as yes in an attribute, whatever its case."""


def _field(alias: str, name: str) -> str:
    """A label or an attribute of a training or generated image, as text."""
    if name == "label":
        return f"{alias}.label"
    return f"json_extract_string({alias}.attributes, {literal(_path(name))})"


def _path(name: str) -> str:
    """A JSON pointer: the name may have quotes, dots and slashes."""
    return "/" + name.replace("~", "~0").replace("/", "~1")


def _in_batch(batch: str | None) -> str:
    return "true" if batch is None else f"g.batch = {literal(batch)}"


# -- agreement of contributors (C1, C2) --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Agreement:
    """names: the generated image's own values, joined. hits: int64 ``(m, len(ks))``, how many of the k nearest agree.

    chance: float64 ``(m,)``, the share of all training images that agree. without: generated images left out because
    they lack one of the fields.
    """

    names: list[str]
    hits: np.ndarray
    chance: np.ndarray
    ks: tuple[int, ...]
    without: int


def agreement(ledger: Readable, fields: Sequence[str], ks: Sequence[int], batch: str | None) -> Agreement:
    """How many of the k nearest have the same label or attributes as the generated image, for each image and k.

    A training image that lacks a field doesn't agree.
    Raises `SettingsError` when no generated image has the fields, or one has fewer than k candidates.
    """
    mine = ", ".join(_field("g", name) for name in fields)
    theirs = ", ".join(_field("t", name) for name in fields)
    present = " AND ".join(f"{_field('g', name)} IS NOT NULL" for name in fields)
    counted = ", ".join(f"count(*) FILTER (WHERE agrees AND rank <= {int(k)}) AS k{int(k)}" for k in ks)
    table = ledger.query(
        f"""
        WITH wanted AS (SELECT generated_key, [{mine}] AS own FROM generated g WHERE {_in_batch(batch)} AND {present}),
        trained AS (SELECT training_key, [{theirs}] AS own FROM training t WHERE version_withdrawn IS NULL),
        sizes AS (SELECT own, count(*) / sum(count(*)) OVER () AS share FROM trained GROUP BY own),
        judged AS (
            SELECT w.generated_key, w.own, m.rank, t.own IS NOT DISTINCT FROM w.own AS agrees
            FROM matches m JOIN wanted w USING (generated_key) JOIN trained t USING (training_key))
        SELECT array_to_string(j.own, ' & ') AS name, {counted}, count(*) AS candidates,
               coalesce(any_value(s.share), 0) AS chance
        FROM judged j LEFT JOIN sizes s ON s.own = j.own GROUP BY j.generated_key, j.own ORDER BY j.generated_key"""
    )
    total = ledger.query(f"SELECT count(*) AS n FROM generated g WHERE {_in_batch(batch)}")["n"][0].as_py()
    if not table.num_rows:
        which = " and ".join(repr(name) for name in fields)
        of = f" of the batch {batch!r}" if batch else ""
        raise SettingsError(
            f"none of the {total:,} generated images{of} has {which}: give it in the metadata.csv beside them and "
            "value them again"
        )
    fewest = min(table["candidates"].to_pylist())
    if max(ks) > fewest:
        raise SettingsError(
            f"k = {max(ks)} can't be judged: a generated image has {fewest} candidates only; ask for a smaller k"
        )
    return Agreement(
        names=table["name"].to_pylist(),
        hits=np.column_stack([table[f"k{int(k)}"].to_numpy() for k in ks]),
        chance=table["chance"].to_numpy().astype(np.float64),
        ks=tuple(int(k) for k in ks),
        without=int(total) - table.num_rows,
    )


# -- values of groups of training images (C3, membership) --------------------------------------------


@dataclass(frozen=True, slots=True)
class Group:
    """Some of the training images: exactly one of the three says which.

    attribute: ``NAME`` (its value means yes) or ``NAME=VALUE``. uri: a pattern with ``*`` and ``?``. ids: URIs, file
    names, ids or content hashes.
    """

    attribute: str | None = None
    uri: str | None = None
    ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if sum((self.attribute is not None, self.uri is not None, bool(self.ids))) != 1:
            raise SettingsError("say which training images are meant by one of attribute, uri or ids")


@dataclass(frozen=True, slots=True)
class Values:
    """One row for each training image, in order of its key.

    value: float64, Eq. 5. nearest: float64, the smallest distance to any generated image that has it among its
    candidates, infinite when none has.
    """

    keys: np.ndarray
    value: np.ndarray
    nearest: np.ndarray


def values(ledger: Readable, function: ValueFunction) -> Values:
    """Values, and the smallest distances over all candidates. Raises `SettingsError` when nothing was valued."""
    table = ledger.query(
        f"""
        WITH nearest AS (
            SELECT training_key, min(distance) AS nearest FROM matches JOIN generated g USING (generated_key)
            WHERE {_in_batch(function.batch)} GROUP BY training_key)
        SELECT v.training_key, v.value, coalesce(n.nearest, 'infinity'::DOUBLE) AS nearest
        FROM image_values({function.sql()}) v LEFT JOIN nearest n USING (training_key) ORDER BY v.training_key"""
    )
    found = Values(*(table[name].to_numpy() for name in ("training_key", "value", "nearest")))
    if not np.isfinite(found.nearest).any():
        of = f" of the batch {function.batch!r}" if function.batch else ""
        raise SettingsError(f"no generated image{of} was valued yet: gmv-qdrant value FOLDER")
    return found


def members(ledger: Readable, keys: np.ndarray, group: Group) -> np.ndarray:
    """bool: which of the training images with these (ascending) keys belong to a group.

    Raises `SettingsError` when none does, or for a name that no training image has.
    """
    if group.attribute is not None:
        found = _by_attribute(ledger, group.attribute)
    elif group.uri is not None:
        found = ledger.query(
            "SELECT DISTINCT training_key AS key FROM sources WHERE uri GLOB $pattern", {"pattern": group.uri}
        )
        if not found.num_rows:
            raise SettingsError(f"no training image's URI is like {group.uri!r}")
    else:
        found = pa.table({"key": list(resolve(ledger, group.ids).values())})
    return np.isin(keys, found["key"].to_numpy())


def _by_attribute(ledger: Readable, text: str) -> pa.Table:
    name, given, wanted = text.partition("=")
    own = "label" if name == "label" else f"json_extract_string(attributes, {literal(_path(name))})"
    rule = f"= {literal(wanted)}" if given else f"IN {TRUE}"
    test = f"{own} {rule}" if given else f"lower({own}) {rule}"
    found = ledger.query(f"SELECT DISTINCT training_key AS key FROM sources WHERE {test}")
    if found.num_rows:
        return found
    seen = ledger.query(
        f"SELECT DISTINCT {own} AS own FROM sources WHERE {own} IS NOT NULL ORDER BY own LIMIT 6"
    )
    kinds = ", ".join(map(repr, seen["own"].to_pylist()))
    have = (
        f"its values are {kinds}: give {name}=VALUE" if kinds else "no training image has it in its metadata"
    )
    raise SettingsError(f"the attribute {text!r} picks no training image: {have}")


def resolve(ledger: Readable, names: Sequence[str], kind: str = "training") -> dict[str, int]:
    """Key of the training (or generated) image that goes by each name: URI, end of a URI, id or content hash.

    Raises `SettingsError` for names that nothing, or more than one image, goes by.
    """
    of = {
        "training": """SELECT t.training_key AS key, t.point_id, t.content_hash, s.uri
            FROM training t JOIN sources s USING (training_key) WHERE t.version_withdrawn IS NULL""",
        "generated": "SELECT generated_key AS key, point_id, content_hash, uri FROM generated",
    }[kind]
    table = ledger.query(
        f"""
        WITH known AS ({of}), exact AS (
            SELECT name, key FROM wanted JOIN known ON name = uri
            UNION SELECT name, key FROM wanted JOIN known ON name = point_id
            UNION SELECT name, key FROM wanted JOIN known ON name = content_hash
        ), ending AS (
            SELECT name, key FROM wanted JOIN known
            ON regexp_extract(uri, '[^/]*$') = regexp_extract(name, '[^/]*$') AND ends_with(uri, '/' || name)
            WHERE name NOT IN (SELECT name FROM exact)
        )
        SELECT name, min(key) AS key, count(DISTINCT key) AS images
        FROM (FROM exact UNION ALL FROM ending) GROUP BY name""",
        wanted=pa.table({"name": pa.array(sorted(set(names)), pa.string())}),
    )
    rows = {row["name"]: row for row in table.to_pylist()}
    if unknown := [name for name in names if name not in rows]:
        raise SettingsError(
            f"no {kind} image is called {unknown[0]!r}"
            + (f", nor are {len(set(unknown)) - 1} others" if len(set(unknown)) > 1 else "")
            + ": give the path, file name or id that it has in this workspace"
        )
    if several := [name for name, row in rows.items() if row["images"] > 1]:
        raise SettingsError(
            f"{rows[several[0]]['images']} {kind} images are called {several[0]!r}: give the whole URI or the id"
        )
    return {name: int(row["key"]) for name, row in rows.items()}


# -- contributions -----------------------------------------------------------------------------------


def credit_of(ledger: Readable, function: ValueFunction, keys: np.ndarray) -> np.ndarray:
    """float64 ``(m,)``: the share of each generated image's credit that goes to the training images with these keys."""
    table = ledger.query(
        f"""SELECT sum(contribution) FILTER (WHERE mine.key IS NOT NULL) / sum(contribution) AS share
        FROM contributions({function.sql()}) c LEFT JOIN mine ON mine.key = c.training_key
        GROUP BY c.generated_key HAVING sum(contribution) > 0 ORDER BY c.generated_key""",
        mine=pa.table({"key": pa.array(keys, pa.int32())}),
    )
    shares: np.ndarray = table["share"].fill_null(0.0).to_numpy()
    return shares


def top_scores(ledger: Readable, function: ValueFunction, ranks: int) -> np.ndarray:
    """float64 ``(m, ranks)``: contributions of the nearest, second, third... training image of each generated image."""
    columns = ", ".join(f"sum(contribution) FILTER (WHERE rank = {r}) AS r{r}" for r in range(1, ranks + 1))
    table = ledger.query(
        f"SELECT {columns} FROM contributions({function.sql()}) GROUP BY generated_key ORDER BY generated_key"
    )
    return np.column_stack([table[f"r{r}"].fill_null(0.0).to_numpy() for r in range(1, ranks + 1)])


def runs(ledger: Readable) -> list[dict[str, Any]]:
    """Finished runs, oldest first; counts and timings are JSON text."""
    table = ledger.query(
        "SELECT verb, started_at, counts, timings FROM runs WHERE status = 'done' ORDER BY started_at"
    )
    return list(table.to_pylist())
