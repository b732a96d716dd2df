"""Migrate: the collection moves between the embedded store and a server, and the workspace with it.

Copy, compare, and only then switch: one ledger transaction, from which ``gmv.toml`` is written anew even after a crash.
The ledger remembers where a move is going, so that it can go on, and where it came from, so that the old copy can go.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from gmv_qdrant.deployments.copy_points import migrate
from gmv_qdrant.errors import CollectionMismatch, SettingsError
from gmv_qdrant.ledger.database import Ledger
from gmv_qdrant.ledger.runs import Run
from gmv_qdrant.pipeline.context import Context
from gmv_qdrant.settings import Settings
from gmv_qdrant.vectors import EDGE_FOLDER, open_existing, open_store
from gmv_qdrant.vectors.protocol import VectorStore


def move(context: Context, run: Run, there: Settings, *, remove_source: bool = False) -> None:
    """Move the collection to where the settings ``there`` say. Resumable.

    Raises `SettingsError` when it is there already, `CollectionMismatch` when the target is somebody else's,
    `StoreError` when the two sides don't agree in the end: nothing is switched then.
    """
    here = context.settings
    if place(here) == place(there):
        if not remove_source or _remembered(context.ledger, "moved_from") is None:
            raise SettingsError(
                f"the collection {here.collection!r} is there already, and no old copy is left"
            )
    else:
        if _has_images(context):
            _copy(context, run, there)
        _switch(context, there)
    if remove_source:
        with run.timed("remove source"):
            _remove(context, run)


def place(settings: Settings) -> list[str | None]:
    """Where a collection is, as the ledger remembers it."""
    return [settings.qdrant_url, settings.collection]


def finish_switch(root: Path, ledger: Ledger) -> None:
    """Write ``gmv.toml`` as the ledger says, if a move was killed before it did."""
    meta = ledger.meta()
    if meta.get("switching") != "true":
        return
    Settings.resolve().replaced(**json.loads(meta["settings"])).write(root)
    with ledger.write() as con:
        ledger.set_meta(con, switching=False)


def _has_images(context: Context) -> bool:
    rows = context.ledger.query("SELECT count(*) AS n FROM training WHERE version_withdrawn IS NULL")
    return bool(rows["n"][0].as_py())


def _copy(context: Context, run: Run, there: Settings) -> None:
    source = context.store
    spec = replace(source.spec, name=there.collection, quantization=there.quantization)
    edge = context.root / EDGE_FOLDER
    goal = [*place(there), context.ledger.training_version]
    going_on = _remembered(context.ledger, "moving_to") == goal
    if there.qdrant_url is None and not going_on and edge.exists():
        shutil.rmtree(edge)  # what an earlier move left behind
    target = open_store(context.root, there, spec)
    try:
        if not going_on:
            _make_room(context, target, there)
            with context.ledger.write() as con:
                context.ledger.set_meta(con, moving_to=goal)
        with run.timed("copy and compare"):
            context.progress.phase("migrate", source.count())
            moved = migrate(source, target, context.progress.advance)
    finally:
        target.close()
    run.counts.update(points=moved.points, copied=moved.copied, compared=moved.compared)


def _make_room(context: Context, target: VectorStore, there: Settings) -> None:
    """The target must be empty, or be what an earlier move of this workspace left there."""
    points = target.count()
    if points and _remembered(context.ledger, "moved_from") != place(there):
        raise CollectionMismatch(
            f"the collection {there.collection!r} there holds {points} points of somebody else: "
            "choose another name with --collection"
        )
    _empty(target)


def _empty(store: VectorStore) -> int:
    """Delete all points, page by page; returns how many."""
    ids = [point.id for page in store.scroll() for point in page]
    store.delete(ids)
    store.flush()
    return len(ids)


def _switch(context: Context, there: Settings) -> None:
    meta = context.ledger.meta()
    facts: dict[str, Any] = {
        "settings": there.evidence(),
        "moved_from": place(context.settings),
        "moving_to": None,
        "collection_is_ours": there.qdrant_url is not None and _has_images(context),
        "switching": True,
    }
    if "fingerprint" in meta:
        facts["fingerprint"] = {**json.loads(meta["fingerprint"]), "collection": there.collection}
    with context.ledger.write() as con:
        context.ledger.set_meta(con, **facts)
    there.write(context.root)
    with context.ledger.write() as con:
        context.ledger.set_meta(con, switching=False)


def _remove(context: Context, run: Run) -> None:
    """Take away the copy that the last move left behind."""
    url, collection = _remembered(context.ledger, "moved_from")
    if url is None:
        context.close()
        shutil.rmtree(context.root / EDGE_FOLDER, ignore_errors=True)
    else:
        old = context.settings.replaced(qdrant_url=url, collection=collection)
        with open_existing(old, old.vector_name) as store:
            run.counts["removed"] = _empty(store)
    with context.ledger.write() as con:
        context.ledger.set_meta(con, moved_from=None)


def _remembered(ledger: Ledger, name: str) -> Any:
    return json.loads(ledger.meta().get(name, "null"))
