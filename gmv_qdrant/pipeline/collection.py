"""The collection of a workspace: its own, or the adopted one; opened only where it is what the ledger says."""

from __future__ import annotations

from pathlib import Path

from gmv_qdrant.errors import CollectionMismatch
from gmv_qdrant.ledger.database import Ledger
from gmv_qdrant.settings import Settings
from gmv_qdrant.vectors import Owner, open_existing, open_own
from gmv_qdrant.vectors.protocol import CollectionSpec, VectorStore


def open_collection(
    root: Path, settings: Settings, ledger: Ledger, dim: int, *, remake: bool = False, take_over: bool = False
) -> VectorStore:
    """The collection with recall vectors of ``dim`` numbers.

    It is made when there has been none yet, and never where one was adopted, or was lost (but for ``remake``, which is
    for `check --repair`). Raises `StoreError`, and `CollectionMismatch` where it is another's or another.
    """
    meta = ledger.meta()
    if "adopted" in meta:
        store = open_existing(settings, settings.vector_name)
        if store.spec.dim != dim:
            store.close()
            raise CollectionMismatch(
                f"the collection {settings.collection!r} now has vectors of {store.spec.dim} numbers, not {dim} as "
                "when it was adopted: adopt it in another workspace"
            )
        return store
    spec = CollectionSpec(
        settings.collection, dim, vector_name=settings.vector_name, quantization=settings.quantization
    )
    known = meta.get("collection_made") == "true"
    owner = Owner.at(root, meta["workspace_id"])
    made = open_own(root, settings, spec, owner, make=remake or not known, take_over=take_over)
    if not known:
        with ledger.write() as con:
            ledger.set_meta(con, collection_made=True)
    return made
