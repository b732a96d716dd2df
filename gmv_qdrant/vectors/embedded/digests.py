"""Digests of the files in which the engine keeps vectors and codes, for it doesn't notice itself when they change.

The files of a built segment never change while it lives; those of the tail may whenever points are written, so what was
noted of them is forgotten before the first write, and noted again when the shard is closed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gmv_qdrant.files import write_atomically

_BUILT = ("matrix.dat", "quantized.data", "quantized.meta.json", "id_tracker.mappings")
_TAIL = "chunk_*"


class Digests:
    """Of the shard in the folder ``shard``; kept beside it, in ``NAME.digests``."""

    def __init__(self, shard: Path) -> None:
        self._shard = shard
        self._file = shard.with_name(f"{shard.name}.digests")

    def note(self) -> None:
        """Note down files that weren't known yet; those that were stay as they were noted."""
        known = self._read()
        there = list(self._files())
        new = [path for path in there if self._name(path) not in known]
        kept = {self._name(path): known[self._name(path)] for path in there if self._name(path) in known}
        found = kept | dict(zip(map(self._name, new), _hashed(new), strict=True))
        if found != known:
            write_atomically(self._file, json.dumps(found))

    def forget_tail(self) -> None:
        """Points are going to be written."""
        known = self._read()
        built = {name: value for name, value in known.items() if Path(name).name in _BUILT}
        if built != known:
            write_atomically(self._file, json.dumps(built))

    def forget(self) -> None:
        self._file.unlink(missing_ok=True)

    def differing(self) -> list[str]:
        """Files, as named within the shard, that aren't what they were noted as; 2 GB take two seconds."""
        known = self._read()
        paths = [path for path in self._files() if self._name(path) in known]
        found = zip(map(self._name, paths), _hashed(paths), strict=True)
        return [name for name, value in found if value != known[name]]

    def _files(self) -> Iterator[Path]:
        for name in (*_BUILT, _TAIL):
            yield from sorted(self._shard.glob(f"segments/*/**/{name}"))

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._shard))

    def _read(self) -> dict[str, str]:
        try:
            found = json.loads(self._file.read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


def _hashed(paths: list[Path]) -> list[str]:
    def one(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter lock
        return list(pool.map(one, paths))
