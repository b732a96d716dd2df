"""Copy: a second workspace with all that the first one holds, its collection embedded or on a server; the first stays.

Points are scrolled and upserted, vectors are read row by row with their checksums compared, both sides are compared,
and only then the ledger appears under its name, which makes the folder a workspace. What the target has already is
passed over, so a copy that was stopped at any moment goes on when it is run again.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gmv_qdrant import folder
from gmv_qdrant.errors import SettingsError, StoreError
from gmv_qdrant.files import sync_folder, write_atomically
from gmv_qdrant.ledger.database import PUBLISHED, Ledger
from gmv_qdrant.pipeline.searching import require_same_images
from gmv_qdrant.pipeline.spaces import Spaces, matrices
from gmv_qdrant.pipeline.streams import Progress, batched
from gmv_qdrant.settings import Settings
from gmv_qdrant.vectors import Owner, open_own
from gmv_qdrant.vectors.matrices import Matrix
from gmv_qdrant.vectors.protocol import Point, SearchParams, VectorStore

MARK, MAKING = ".copying.json", ".ledger.copying"
SAMPLE, NEIGHBOURS = 200, 20
"""Points whose vectors, payloads and neighbours are compared in the end."""
TOLERANCE = 1e-5
"""Between float32 vectors that were normalised twice and written as decimal numbers once."""
ROWS = 1_024


def copy_workspace(
    root: Path,
    settings: Settings,
    ledger: Ledger,
    spaces: Spaces,
    into: Path,
    there: Settings,
    progress: Progress,
) -> dict[str, int]:
    """Make the workspace ``into`` with settings ``there``; ``root`` and its collection are only read.

    Raises `SettingsError` for a folder that holds something else, `CollectionMismatch` for a collection that is
    another's, `StoreError` when the two sides don't agree in the end.
    """
    mark = _begin(root, into, there)
    counts = {"points": 0, "copied": 0, "compared": 0}
    if folder.is_workspace(into):  # all that was left to do is to say so
        return {**counts, "points": _said(into)}
    if ledger.training_version and ledger.meta().get("collection_made") == "true":
        target_spec = replace(spaces.store.spec, name=there.collection, quantization=there.quantization)
        target = open_own(
            into, there, target_spec, Owner.at(into, mark["workspace_id"]), make=True, tell=progress.note
        )
        try:
            progress.phase("copy points", spaces.store.count())
            counts["copied"] = _copy_points(ledger, spaces.store, target, progress)
            progress.phase("build codes", None)
            target.optimize()
            progress.phase("compare", None)
            require_same_images(ledger, target)
            counts["points"], counts["compared"] = target.count(), _compare(spaces.store, target)
        finally:
            target.close()
    if "recall_shape" in ledger.meta():
        _copy_matrices(ledger, spaces, into, there, mark["workspace_id"], progress)
    _finish(ledger, into, there, mark["workspace_id"], made=counts["points"] > 0)
    return counts


def _begin(root: Path, into: Path, there: Settings) -> dict[str, Any]:
    """What a copy is known by, from before its first write: the id of the workspace that it makes."""
    wanted = {"from": str(root), "qdrant_url": there.qdrant_url, "collection": there.collection}
    file = into / MARK
    if file.is_file():
        mark: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if {name: mark[name] for name in wanted} != wanted:
            raise SettingsError(
                f"another copy to {into} was begun, of {mark['from']} to {mark['qdrant_url'] or 'the folder itself'}: "
                "run that one again, or name another folder"
            )
        return mark
    if folder.is_workspace(into):
        raise SettingsError(f"{into} is a workspace already: name a new folder for the copy")
    folder.refuse_foreign(into)
    try:
        into.mkdir(parents=True, exist_ok=True)
        mark = {**wanted, "workspace_id": uuid.uuid4().hex}
        write_atomically(file, json.dumps(mark))
    except OSError as error:
        raise SettingsError(f"a workspace can't be made at {into}: {error.strerror}") from error
    return mark


def _copy_points(ledger: Ledger, source: VectorStore, target: VectorStore, progress: Progress) -> int:
    """The points that the ledger names and the target lacks; what the target has beyond them is taken out again."""
    named = set(
        ledger.query("SELECT point_id FROM training WHERE version_withdrawn IS NULL")["point_id"].to_pylist()
    )
    there = {point for page in target.ids() for point in page}
    extra = [point for point in there if str(point) not in named]
    target.delete(extra)
    copied = 0
    for page in source.scroll(with_vectors=True):
        missing = [point for point in page if str(point.id) in named and point.id not in there]
        if missing:
            target.upsert([p.id for p in missing], _vectors(missing), [p.payload for p in missing])
            copied += len(missing)
        progress.advance(len(page))
    target.flush()
    return copied


def _compare(source: VectorStore, target: VectorStore) -> int:
    """Raises `StoreError` unless a sample has the same vectors, payloads and neighbours; returns its size."""
    ids = [point for page in target.ids() for point in page]
    chosen = ids[:: max(1, len(ids) // SAMPLE)]
    left = {p.id: p for p in source.retrieve(chosen, with_vectors=True)}
    right = {p.id: p for p in target.retrieve(chosen, with_vectors=True)}
    for point in chosen:
        if not _same(left.get(point), right.get(point)):
            raise StoreError(
                f"point {point} differs in the copy: was it changed meanwhile? Run the copy again"
            )
    if chosen and source.limits.exact and target.limits.exact:
        _compare_neighbours(
            source, target, _vectors([left[point] for point in chosen[:: max(1, len(chosen) // 20)]])
        )
    return len(chosen)


def _same(a: Point | None, b: Point | None) -> bool:
    if a is None or b is None or a.payload != b.payload:
        return False
    return np.allclose(_vectors([a]), _vectors([b]), rtol=TOLERANCE, atol=TOLERANCE)


def _compare_neighbours(source: VectorStore, target: VectorStore, queries: np.ndarray) -> None:
    exact = SearchParams(exact=True)
    both = (store.search(queries, NEIGHBOURS, exact) for store in (source, target))
    for ours, theirs in zip(*both, strict=True):
        shared = min(len(ours.ids), len(theirs.ids))
        if not np.allclose(ours.distances[:shared], theirs.distances[:shared], rtol=1e-4, atol=1e-5):
            raise StoreError("a sample search finds other points in the copy: run the copy again")


def _vectors(points: Sequence[Point]) -> np.ndarray:
    bare = [p.id for p in points if p.vector is None]
    if bare:
        raise StoreError(
            f"{len(bare)} points have no vector (such as {bare[0]}): 'gmv-qdrant check' lists them"
        )
    return np.stack([p.vector for p in points if p.vector is not None])


def _copy_matrices(
    ledger: Ledger, spaces: Spaces, into: Path, there: Settings, workspace_id: str, progress: Progress
) -> None:
    """Row by row, so that a checksum is compared before it is written anew."""
    targets = matrices(into, there, ledger.meta(), workspace_id)
    pairs: Iterator[tuple[str, Matrix | None, Matrix | None]] = iter(
        (
            ("training", spaces.training, targets.training),
            ("generated", spaces.generated_recall, targets.generated_recall),
            ("generated", spaces.generated_rerank, targets.generated_rerank),
            ("training", spaces.recall_sample, targets.recall_sample),
        )
    )
    for table, source, target in pairs:
        if source is None or target is None:
            continue
        where = "WHERE version_withdrawn IS NULL" if table == "training" else ""
        keys = ledger.query(f"SELECT {table}_key AS key FROM {table} {where} ORDER BY key")["key"].to_numpy()
        keys = keys[source.has(keys) & ~target.has(keys)] if len(keys) else keys
        progress.phase(f"copy {target.path.name}", len(keys))
        for some in batched(keys.tolist(), ROWS):
            target.write(some, source.read(some))
            progress.advance(len(some))


def _finish(ledger: Ledger, into: Path, there: Settings, workspace_id: str, *, made: bool) -> None:
    """The ledger last: with it the folder is a workspace."""
    making = into / MAKING
    for left in (making, into / f"{MAKING}.wal"):  # by a copy that was killed
        left.unlink(missing_ok=True)
    ledger.publish()
    shutil.copyfile(ledger.path.with_name(PUBLISHED), making)
    fresh = Ledger(making, publishes=False)
    with fresh.write() as con:
        fresh.set_meta(con, workspace_id=workspace_id, settings=there.evidence(), collection_made=made)
    there.write(into)
    making.replace(into / folder.LEDGER)
    sync_folder(into)
    _said(into)


def _said(into: Path) -> int:
    """The end of a copy; returns how many training images it has."""
    ledger = Ledger(into / folder.LEDGER)
    ledger.publish()
    (into / MARK).unlink()
    rows = ledger.query("SELECT count(*) AS n FROM training WHERE version_withdrawn IS NULL")
    return int(rows["n"][0].as_py())
