"""Whose collection it is: a workspace's own collection carries the workspace's id and where that workspace is.

A server keeps both in the collection's metadata, which the request that makes the collection sets, so of two workspaces
that begin at once one is refused. An embedded collection keeps the id in a file beside it.
"""

from __future__ import annotations

import json
import platform
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gmv_qdrant.errors import CollectionMismatch
from gmv_qdrant.files import sync_folder

KEY = "gmv_workspace"
"""Of a collection's metadata."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A workspace: its id, and where it is (``cp -r`` copies the id)."""

    id: str
    host: str
    path: str
    inode: int

    @classmethod
    def at(cls, root: Path, id: str) -> Owner:
        return cls(id, platform.node(), str(root), root.stat().st_ino)

    @classmethod
    def nobody(cls) -> Owner:
        """Of a collection that no workspace has."""
        return cls(uuid.uuid4().hex, platform.node(), "", 0)

    @property
    def metadata(self) -> dict[str, Any]:
        return {KEY: asdict(self)}

    def check(self, metadata: Mapping[str, Any] | None, name: str, shown: str) -> None:
        """Raises `CollectionMismatch` unless the collection ``name`` at ``shown`` is this workspace's.

        A workspace may be moved (its folder keeps its inode) and restored in its place (path and host are the same).
        """
        there = self.check_id(metadata, name, shown)
        if "path" in there and not self._same_place(there):
            raise CollectionMismatch(
                f"the collection {name!r} at {shown} belongs to the workspace {_place(there)}, of which {self.path} "
                "is a copy: give the copy a collection of its own with 'gmv-qdrant copy', or, if the other is gone "
                "for good, take its collection over with 'gmv-qdrant check --take-over'"
            )

    def check_id(self, metadata: Mapping[str, Any] | None, name: str, shown: str) -> Mapping[str, Any]:
        """The same, but copies of the workspace pass; returns the owner that the collection names."""
        there = (metadata or {}).get(KEY)
        if not isinstance(there, Mapping) or "id" not in there:
            wanted = json.dumps({KEY: {"id": self.id}})
            raise CollectionMismatch(
                f"the collection {name!r} at {shown} was not made by this workspace: choose another name with "
                "--collection, use it as it is with 'gmv-qdrant adopt', delete it where it stands in the place of one "
                "that was lost ('gmv-qdrant check --repair' makes that anew), or, to make it yourself, give it the "
                f"metadata {wanted}"
            )
        if there["id"] != self.id:
            raise CollectionMismatch(
                f"the collection {name!r} at {shown} belongs to another workspace ({_place(there)}): choose another "
                "name with --collection"
            )
        return there

    def _same_place(self, there: Mapping[str, Any]) -> bool:
        moved = there.get("inode") == self.inode
        return moved or (there.get("host"), there["path"]) == (self.host, self.path)

    def check_folder(self, path: Path, name: str) -> None:
        """The same for an embedded collection in the folder ``path``, which may be copied with its workspace."""
        note = path / f"{name}.owner"
        if note.is_file():
            if note.read_text() != self.id:
                raise CollectionMismatch(
                    f"the collection {name!r} in {path} belongs to another workspace: move it away, or choose "
                    "another name with --collection"
                )
        elif (path / name).is_dir():
            raise CollectionMismatch(
                f"the collection {name!r} in {path} was not made by this workspace: move it away, or choose "
                "another name with --collection"
            )
        else:
            draft = note.with_suffix(".owner.new")
            draft.write_text(self.id)
            sync_folder(draft)
            draft.replace(note)
            sync_folder(path)


def _place(there: Mapping[str, Any]) -> str:
    return f"{there.get('host', '?')}:{there.get('path', '?')}"
