"""Workspace: a folder, and one method for each verb of the command line.

Tables come back as DuckDB relations (``.df()``, ``.pl()``, ``.arrow()``, ``.fetchall()``) that hold no lock on
the ledger.
"""

from __future__ import annotations

from gmv_qdrant.workspace.reading import Reading, Relation
from gmv_qdrant.workspace.writing import Writing

__all__ = ["Relation", "Workspace"]


class Workspace(Writing, Reading):
    """An existing workspace; `Workspace.init` makes one.

    overrides: settings of this process that beat the environment and ``gmv.toml`` (``device="cpu"``, ...).
    Raises `SettingsError` when there is no workspace at ``path``, and `FingerprintMismatch` when a setting that
    the evidence depends on isn't the one that the workspace was made with.
    """
