"""Check: what must hold between ledger, store and matrices, and a sentence for everything that doesn't.

Nothing is changed here; `repair` repairs. A million images take seconds: ids and checksums are compared. Reading the
images is asked for by itself: then networks, the store's vectors and all source files are looked at, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

from gmv_qdrant.errors import CollectionMismatch, FingerprintMismatch
from gmv_qdrant.images.records import Unusable
from gmv_qdrant.ledger.database import Ledger
from gmv_qdrant.pipeline.assembly import Assembly
from gmv_qdrant.pipeline.collection import SAME
from gmv_qdrant.pipeline.recovery import left_over, misnamed, withdrawn_among
from gmv_qdrant.pipeline.searching import differing
from gmv_qdrant.pipeline.spaces import Spaces
from gmv_qdrant.pipeline.streams import Progress, batched, mapped
from gmv_qdrant.pipeline.training_vectors import BATCH, embed_sources, may_lack_rows, still_the_same
from gmv_qdrant.pipeline.value import CONSERVATION
from gmv_qdrant.vectors.matrices import Matrix
from gmv_qdrant.vectors.protocol import CollectionSpec, parse_point_id

NORM_TOLERANCE = 1e-3
"""Of the unit vectors that a collection with cosine distance keeps."""


@dataclass(slots=True)
class Finding:
    """One thing that is wrong: its kind, how often, a sentence; and what was done about it, if anything was."""

    kind: str
    count: int
    sentence: str
    repaired: str | None = None
    keys: list[Any] = field(default_factory=list, repr=False)
    """Which rows or points, for the repair."""

    def __str__(self) -> str:
        return f"{self.sentence}; {self.repaired}" if self.repaired else self.sentence

    def as_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "keys"}


def check(parts: Assembly, *, read_images: bool = False) -> list[Finding]:
    """Everything that is wrong, in the order in which it should be repaired."""
    ledger, spaces = parts.ledger, parts.spaces
    findings = list(unfinished(ledger))
    if read_images:
        findings += networks(parts)
    findings += evidence(ledger, parts.settings.candidates)
    findings += rows(ledger, spaces)
    missing, embeds = list(points(ledger, spaces)), read_images
    findings += missing
    if not any(finding.kind == "points" for finding in missing):
        changed = list(sample(ledger, spaces))
        embeds = embeds or bool(changed and spaces.owned)
        findings += [] if embeds and spaces.owned else changed
    if read_images:
        findings += vectors(ledger, spaces)
        findings += sources(ledger, parts.allowed, parts.progress)
    if embeds and not any(finding.kind == "fingerprint" for finding in findings):
        findings += embeddings(parts)
    return findings


def unfinished(ledger: Ledger) -> Iterator[Finding]:
    runs = ledger.query("SELECT verb FROM runs WHERE status = 'running'")["verb"].to_pylist()
    if runs:
        yield Finding(
            "unfinished", len(runs), f"{len(runs)} runs were killed before their end: {_some(runs)}"
        )
    elif ledger.meta().get("settled") == "false":
        yield Finding("unfinished", 1, "the last run failed, and what it left half-done is not tidied up")


def networks(parts: Assembly) -> Iterator[Finding]:
    """Whether encoder, distance and quality are those that the evidence was made with."""
    try:
        _ = parts.models
    except FingerprintMismatch as error:
        yield Finding("fingerprint", 1, str(error))


# -- the ledger by itself: kind, sentence about {n} rows, and a SELECT of their keys ---------------------------------

_MUST = "(SELECT count(*) FROM training WHERE version_withdrawn IS NULL)"
_LEDGER = (
    (
        "training twice",
        "{n} training images have the same key, id or hash as another",
        """SELECT training_key AS key FROM training GROUP BY ALL HAVING count(*) > 1
        UNION SELECT min(training_key) FROM training GROUP BY point_id HAVING count(*) > 1
        UNION SELECT min(training_key) FROM training GROUP BY content_hash HAVING count(content_hash) > 1""",
    ),
    (
        "generated twice",
        "{n} generated images stand in the ledger twice",
        """SELECT generated_key AS key FROM generated GROUP BY ALL HAVING count(*) > 1
        UNION SELECT unnest(list(generated_key ORDER BY generated_key DESC)[2:])
        FROM generated GROUP BY uri, batch HAVING count(*) > 1""",
    ),
    (
        "source twice",
        "{n} training images have the same source twice",
        """SELECT DISTINCT training_key AS key FROM sources
        GROUP BY training_key, uri, owner HAVING count(*) > 1""",
    ),
    (
        "source of nothing",
        "{n} sources belong to no training image",
        """SELECT DISTINCT training_key AS key FROM sources
        ANTI JOIN (FROM training WHERE version_withdrawn IS NULL) USING (training_key)""",
    ),
    (
        "no source",
        "{n} training images have no source, so nobody gets their credit",
        """SELECT training_key AS key FROM training ANTI JOIN sources USING (training_key)
        WHERE version_withdrawn IS NULL""",
    ),
    (
        "match of nothing",
        "{n} keys of generated images in the evidence belong to no generated image",
        """SELECT generated_key AS key FROM matches ANTI JOIN generated USING (generated_key)
        UNION SELECT generated_key FROM spare_candidates ANTI JOIN generated USING (generated_key)""",
    ),
    (
        "evidence",
        "{n} generated images are credited to training images that aren't there",
        """SELECT DISTINCT generated_key AS key FROM matches SEMI JOIN generated USING (generated_key)
        ANTI JOIN (FROM training WHERE version_withdrawn IS NULL) USING (training_key)""",
    ),
    (
        "evidence",
        "{n} generated images have ranks that don't run from 1 to n",
        """SELECT generated_key AS key FROM matches SEMI JOIN generated USING (generated_key) GROUP BY generated_key
        HAVING min(rank) <> 1 OR max(rank) <> count(*) OR count(DISTINCT rank) <> count(*)""",
    ),
    (
        "evidence",
        "{n} generated images are credited to one training image twice",
        """SELECT DISTINCT generated_key AS key FROM matches SEMI JOIN generated USING (generated_key)
        GROUP BY generated_key, training_key HAVING count(*) > 1""",
    ),
    (
        "evidence",
        "{n} generated images have distances that aren't in order, or are no distances",
        """SELECT DISTINCT generated_key AS key FROM (
            SELECT generated_key, distance, point_id, lag(distance) OVER one AS before, lag(point_id) OVER one AS above
            FROM matches JOIN training USING (training_key) WINDOW one AS (PARTITION BY generated_key ORDER BY rank))
        WHERE NOT isfinite(distance) OR distance < 0 OR distance < before
        OR (distance = before AND point_id < above)""",
    ),
    (
        "evidence",
        "{n} generated images have fewer matches than there were candidates",
        f"""SELECT g.generated_key AS key FROM generated g LEFT JOIN matches m USING (generated_key)
        WHERE version_valued = (SELECT value::INTEGER FROM meta WHERE key = 'training_version')
        GROUP BY g.generated_key HAVING count(m.rank) <> least($candidates, {_MUST})""",
    ),
    (
        "evidence",
        "{n} generated images have candidates in spare that aren't the next nearest",
        """SELECT DISTINCT r.generated_key AS key FROM spare_candidates r JOIN generated USING (generated_key)
        LEFT JOIN matches m USING (generated_key, training_key)
        LEFT JOIN training t ON t.training_key = r.training_key AND t.version_withdrawn IS NULL
        WHERE m.rank IS NOT NULL OR t.point_id IS NULL OR NOT r.recall_distance >= recall_radius""",
    ),
    (
        "evidence",
        "{n} generated images have no recall radius, or a version of the training set that is still to come",
        """SELECT generated_key AS key FROM generated WHERE recall_radius IS NULL OR isnan(recall_radius)
        OR version_valued > (SELECT value::INTEGER FROM meta WHERE key = 'training_version')""",
    ),
    (
        "quality",
        "{n} generated images have a quality outside of [0, 1]",
        "SELECT generated_key AS key FROM generated WHERE NOT coalesce(quality, 0) BETWEEN 0 AND 1",
    ),
    (
        "evidence",
        "{n} generated images give away more or less than their quality",
        f"""SELECT generated_key AS key FROM contributions(k := NULL) GROUP BY generated_key
        HAVING NOT abs(sum(contribution) - any_value(quality))
            <= {CONSERVATION} * greatest(any_value(quality), 1e-9)""",
    ),
)


def evidence(ledger: Ledger, candidates: int) -> Iterator[Finding]:
    """What is wrong in the ledger's tables. candidates: K."""
    numbers = True
    for kind, sentence, select in _LEDGER:
        if not numbers and "contributions(" in select:
            continue  # what isn't a distance can't be added up
        given = {"candidates": candidates} if "$candidates" in select else ()
        keys = ledger.query(select, given)["key"].to_pylist()
        if keys:
            numbers &= "isfinite" not in select
            yield Finding(kind, len(keys), sentence.format(n=len(keys)), keys=keys)


# -- the matrices ----------------------------------------------------------------------------------------------------


def rows(ledger: Ledger, spaces: Spaces) -> Iterator[Finding]:
    """Vectors that aren't there, or aren't what was written; every checksum is compared."""
    training = ledger.query("SELECT training_key AS key FROM training WHERE version_withdrawn IS NULL")
    if spaces.training is not None:
        keys = training["key"].to_numpy()
        if may_lack_rows(spaces):  # computed when they are needed
            keys = keys[spaces.training.has(keys)]
        yield from _rows("training vectors", "training", keys, [spaces.training])
    generated = ledger.query("SELECT generated_key AS key FROM generated")["key"].to_numpy()
    yield from _rows(
        "generated vectors", "generated", generated, [spaces.generated_recall, spaces.generated_rerank]
    )


def _rows(kind: str, images: str, keys: np.ndarray, matrices: Sequence[Matrix]) -> Iterator[Finding]:
    found = [(matrix, matrix.wrong(keys)) for matrix in matrices]
    wrong = sorted({int(key) for _, some in found for key in some})
    if wrong:
        where = " and ".join(str(matrix.path.name) for matrix, some in found if len(some))
        sentence = f"{len(wrong)} {images} images have no vector, or a damaged one, in {where}"
        yield Finding(kind, len(wrong), sentence, keys=wrong)


# -- the store -------------------------------------------------------------------------------------------------------


def points(ledger: Ledger, spaces: Spaces) -> Iterator[Finding]:
    """Whether the store's points are the ledger's training images."""
    missing, unknown = differing(ledger, spaces.store)
    if missing:
        sentence = f"{len(missing)} training images of the ledger are not in the store, so nobody is matched with them"
        yield Finding("points", len(missing), sentence, keys=missing)
    if files := spaces.store.damaged():
        sentence = (
            f"{len(files)} files of the store's vectors are damaged: {_some(files)}; put the folder 'qdrant' back from "
            "a copy, or have all of them computed again with 'gmv-qdrant check --repair'"
        )
        yield Finding("damaged files", len(files), sentence)
    if not spaces.owned or not unknown:
        return
    withdrawn = withdrawn_among(ledger, unknown)
    left = [str(point) for point in left_over(ledger, spaces.store, unknown)]
    if withdrawn:
        sentence = f"{len(withdrawn)} points of the store are of images that were withdrawn"
        yield Finding("withdrawn points", len(withdrawn), sentence, keys=withdrawn)
    if left := sorted(set(left) - set(withdrawn)):
        sentence = f"{len(left)} points of the store were left behind by runs that were stopped"
        yield Finding("left over", len(left), sentence, keys=left)
    if strange := sorted({str(point) for point in unknown} - set(left) - set(withdrawn)):
        sentence = (
            f"{len(strange)} points of the store are of no run of this workspace, and stay: {_some(strange)}"
        )
        yield Finding("unknown points", len(strange), sentence, keys=strange)


def sample(ledger: Ledger, spaces: Spaces) -> Iterator[Finding]:
    """Whether a few of the store's vectors are those that the encoder was proven with."""
    try:
        spaces.sample(ledger).verify()
    except CollectionMismatch as error:
        yield Finding("changed vectors", 1, str(error))


def vectors(ledger: Ledger, spaces: Spaces) -> Iterator[Finding]:
    """Each point: its vector, and the source that it names."""
    spec = spaces.store.spec
    wrong: list[str] = []
    renamed: list[str] = []
    for page in spaces.store.scroll(with_vectors=True):
        # a foreign point without the vector isn't seen by searches, and `status` counts it
        held = [point for point in page if point.vector is not None or spaces.owned]
        wrong += [str(point.id) for point in held if not _is_vector(point.vector, spec)]
        if spaces.owned:
            renamed += misnamed(ledger, page)
    if wrong:
        length = " and length 1" if spec.distance == "cosine" else ""
        sentence = f"{len(wrong)} points of the store have no vector of {spec.dim} finite numbers{length}"
        yield Finding("point vectors", len(wrong), sentence, keys=wrong)
    if renamed:
        sentence = f"{len(renamed)} points of the store name a source that is not theirs"
        yield Finding("payloads", len(renamed), sentence, keys=renamed)


# -- the images ------------------------------------------------------------------------------------------------------


def sources(ledger: Ledger, allowed: Sequence[str], progress: Progress) -> Iterator[Finding]:
    """Read every source: one finding for those that are gone, one for those that have become something else."""
    found = ledger.query(
        """SELECT DISTINCT [uri] AS uris, content_hash AS hash FROM sources JOIN training USING (training_key)
        WHERE version_withdrawn IS NULL ORDER BY uri"""
    ).to_pylist()
    progress.phase("read images", len(found))
    bad: dict[str, list[str]] = {"unreadable": [], "changed": []}
    for row, state in zip(found, mapped(partial(still_the_same, allowed=allowed), found), strict=True):
        if isinstance(state, Unusable):
            bad["changed" if state.kind == "changed" else "unreadable"] += row["uris"]
        progress.advance()
    sentences = {
        "unreadable": "source images can't be read any more",
        "changed": "source images are no longer what was taken in",
    }
    for kind, uris in bad.items():
        if uris:
            yield Finding(kind, len(uris), f"{len(uris)} {sentences[kind]}: {_some(uris)}", keys=uris)


def _is_vector(vector: np.ndarray | None, spec: CollectionSpec) -> bool:
    if vector is None or len(vector) != spec.dim:
        return False
    norm = float(np.linalg.norm(vector))
    return bool(np.isfinite(norm)) and (spec.distance != "cosine" or abs(norm - 1) <= NORM_TOLERANCE)


def embeddings(parts: Assembly) -> Iterator[Finding]:
    """Each image that can be read, embedded again, and its stored vector."""
    ledger, models, store = parts.ledger, parts.models, parts.spaces.store
    rows = ledger.query("SELECT training_key AS key, point_id FROM training WHERE version_withdrawn IS NULL")
    points = dict(
        zip(rows["key"].to_pylist(), map(parse_point_id, rows["point_id"].to_pylist()), strict=True)
    )
    parts.progress.phase("embed images again", len(points))
    made = embed_sources(
        ledger, sorted(points), models.recall, models.device, parts.settings, parts.allowed, parts.progress
    )
    differing: list[str] = []
    for some in batched(((key, row) for key, row in made if isinstance(row, np.ndarray)), BATCH):
        found = store.retrieve([points[key] for key, _ in some], with_vectors=True)
        there = {point.id: point.vector for point in found}
        for key, row in some:
            stored = there.get(points[key])
            if stored is not None and not cosine(row, stored) >= SAME:
                differing.append(str(points[key]))
    if differing:
        kind = "point vectors" if parts.spaces.owned else "changed vectors"
        n = len(differing)
        sentence = f"{n} points of the store have another vector than the encoder gives: {_some(differing)}"
        yield Finding(kind, len(differing), sentence, keys=differing)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / lengths) if lengths > 0 else 0.0


def _some(names: list[str], most: int = 3) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
