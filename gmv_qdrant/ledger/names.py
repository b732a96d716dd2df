"""Names that people give: the image, owner, label or batch that is meant, or a sentence with the near one."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gmv_qdrant.errors import SettingsError, did_you_mean
from gmv_qdrant.ledger.database import Readable

if TYPE_CHECKING:
    import pyarrow as pa

_KNOWN = {
    "training": """SELECT DISTINCT 'training' AS kind, training_key AS key, NULL AS batch, uri, point_id, content_hash
        FROM training JOIN sources USING (training_key) WHERE version_withdrawn IS NULL""",
    "generated": """SELECT 'generated' AS kind, generated_key AS key, batch, uri, point_id, content_hash
        FROM generated""",
}
_FILE = "regexp_extract({}, '[^/:]*$')"


@dataclass(frozen=True, slots=True)
class Image:
    """A training image, or a generated one as it was valued in a batch."""

    kind: str
    key: int
    uri: str
    batch: str | None


def nfc(name: str) -> str:
    """As names are kept: one form for letters that print alike."""
    return unicodedata.normalize("NFC", name)


def find_image(ledger: Readable, name: str, *, batch: str | None = None, training: bool = False) -> Image:
    """The one image that goes by a name: a URI, a path, the end of one, an id, or a SHA-256.

    batch: the generated one that was valued under this name; training: the training image.
    Raises `SettingsError` when there is none, or more than one.
    """
    if batch is not None:
        require_batch(ledger, batch)
    found = _called(
        ledger, name, "training" if training else "generated" if batch is not None else None, batch
    )
    images = list(
        {
            (row["kind"], row["key"]): Image(row["kind"], row["key"], row["uri"], row["batch"])
            for row in found
        }.values()
    )
    if len(images) == 1:
        return images[0]
    if images:
        raise SettingsError(f"{len(images)} images are called {name!r}: {_ways_out(images)}")
    which = "training" if training else "generated" if batch is not None else "training or generated"
    of = f" of the batch {batch!r}" if batch is not None else ""
    raise SettingsError(
        f"no {which} image{of} is called {name!r}{_near_file(ledger, name)}: give its path, file name or id"
    )


def is_known(ledger: Readable, name: str, kind: str | None = None) -> bool:
    """Whether any image, training or generated, goes by this name."""
    return bool(_called(ledger, name, kind, None))


def _called(ledger: Readable, name: str, kind: str | None, batch: str | None) -> list[dict[str, Any]]:
    """Rows of images that go by a name; those that have it as their whole URI come alone."""
    known = " UNION ALL ".join([_KNOWN[kind]] if kind else _KNOWN.values())
    rows = ledger.rows(
        f"""SELECT kind, key, batch, uri, uri IN ($name, $path) AS exact FROM ({known})
        WHERE (uri IN ($name, $path) OR ends_with(uri, '/' || $name) OR point_id = lower($name)
               OR content_hash = lower($name)) AND ($batch IS NULL OR batch = $batch)
        ORDER BY kind, uri, batch""",
        {"name": nfc(name), "path": nfc(os.path.abspath(name)), "batch": batch},
    )
    return [row for row in rows if row["exact"]] or rows


def _ways_out(images: list[Image]) -> str:
    """What tells several images of one name apart."""
    batches = list(dict.fromkeys(image.batch for image in images if image.batch is not None))
    own = ["--training"] if any(image.kind == "training" for image in images) else []
    options = " or ".join([*own, *(f"--batch {batch}" for batch in batches[:5])])
    if len({image.uri for image in images}) == 1:
        return f"add {options}"
    names = list(dict.fromkeys(f"{image.uri} ({image.kind})" for image in images))
    also = f", and {options}" if len(names) < len(images) else ""
    return f"give one of {', '.join(names[:5])}{', ...' if names[5:] else ''}{also}"


def _near_file(ledger: Readable, name: str) -> str:
    uri = _FILE.format("uri")
    near = ledger.rows(
        f"""SELECT any_value({uri}) AS file FROM (SELECT uri FROM sources UNION ALL SELECT uri FROM generated)
        WHERE jaro_winkler_similarity(lower({uri}), $name) > 0.85
        GROUP BY lower({uri}) ORDER BY max(jaro_winkler_similarity(lower({uri}), $name)) DESC, 1 LIMIT 1""",
        {"name": nfc(os.path.basename(name)).lower()},
    )
    return f" (did you mean {near[0]['file']!r}?)" if near else ""


def find_images(
    ledger: Readable, names: Sequence[str], kind: str = "training", *, batch: str | None = None
) -> dict[str, int]:
    """Key of the training (or generated) image that goes by each name, as in `find_image`, for many at once.

    Raises `SettingsError` for names that nothing, or more than one image, goes by.
    """
    found, unknown = named(ledger, names, kind, batch=batch)
    if unknown:
        others = f", nor are {len(unknown) - 1} others" if unknown[1:] else ""
        raise SettingsError(
            f"no {kind} image is called {unknown[0]!r}{_near_file(ledger, unknown[0])}{others}: "
            "give the path, file name or id that it has in this workspace"
        )
    return dict(zip(found["name"].to_pylist(), found["key"].to_pylist(), strict=True))


def named(
    ledger: Readable, names: Sequence[str], kind: str = "training", *, batch: str | None = None
) -> tuple[pa.Table, list[str]]:
    """``(found, unknown)``: name, key and uri (NULL where an id or a hash was given), and names that nothing goes by.

    Raises `SettingsError` for a name that more than one image goes by.
    """
    import pyarrow as pa

    found = ledger.query(
        f"""
        WITH known AS (SELECT * FROM ({_KNOWN[kind]}) WHERE $batch IS NULL OR batch = $batch), exact AS (
            SELECT name, key, uri FROM wanted JOIN known ON nfc_normalize(name) = uri
            UNION SELECT name, key, NULL FROM wanted JOIN known ON lower(name) = point_id
            UNION SELECT name, key, NULL FROM wanted JOIN known ON lower(name) = content_hash
        ), ending AS (
            SELECT name, key, uri FROM wanted JOIN known
            ON {_FILE.format("uri")} = {_FILE.format("nfc_normalize(name)")}
            AND ends_with(uri, '/' || nfc_normalize(name))
            WHERE name NOT IN (SELECT name FROM exact)
        )
        SELECT name, min(key) AS key, any_value(uri) AS uri, count(DISTINCT key) AS images
        FROM (FROM exact UNION ALL FROM ending) GROUP BY name ORDER BY name""",
        {"batch": batch},
        wanted=pa.table({"name": pa.array(sorted(set(names)), pa.string())}),
    )
    there = dict(zip(found["name"].to_pylist(), found["images"].to_pylist(), strict=True))
    for name, images in there.items():
        if images > 1:
            raise SettingsError(
                f"{images} {kind} images are called {name!r}: give the whole URI"
                + (" and the batch" if kind == "generated" and batch is None else ", or the id")
            )
    return found, list(dict.fromkeys(name for name in names if name not in there))


def require_batch(ledger: Readable, batch: str) -> None:
    """Raises `SettingsError` where nothing was valued under this name."""
    rows = ledger.rows("SELECT DISTINCT batch FROM generated ORDER BY batch")
    require_known("batch", batch, [row["batch"] for row in rows])


def require_owner(ledger: Readable, owner: str) -> None:
    """Raises `SettingsError` where no training image is this owner's."""
    rows = ledger.rows("SELECT DISTINCT owner FROM sources WHERE owner IS NOT NULL ORDER BY owner")
    require_known("owner", owner, [row["owner"] for row in rows])


def require_known(kind: str, name: str, known: Sequence[str]) -> None:
    """Raises `SettingsError` with the near name, and with all where they are few."""
    if nfc(name) in known:
        return
    there = "there is none yet" if not known else "there are " + ", ".join(map(repr, known[:8]))
    more = ", ..." if len(known) > 8 else ""
    raise SettingsError(f"there is no {kind} {name!r}{did_you_mean(name, known)}: {there}{more}")
