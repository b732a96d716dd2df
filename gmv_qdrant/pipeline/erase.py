"""Erasure: the bytes of withdrawn images leave the workspace's files, and the files are searched to prove it.

A withdrawal takes rows, points and vectors out at once. But an engine keeps what it deleted in its segments and its
log, and DuckDB in blocks that it has freed. `erase` writes those files anew. What to search for is noted down when an
image is withdrawn (`Traces`), for afterwards nobody knows it any more.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gmv_qdrant.errors import StoreError
from gmv_qdrant.files import PAYOUTS, THUMBNAILS, sync_folder
from gmv_qdrant.ledger.database import Ledger
from gmv_qdrant.ledger.runs import Run
from gmv_qdrant.ledger.sources import erase_history
from gmv_qdrant.pipeline.recovery import remove_withdrawn
from gmv_qdrant.pipeline.spaces import Spaces
from gmv_qdrant.pipeline.streams import Progress

FILE = "withdrawn.traces"
"""In a workspace: what must be gone after the next erasure."""
WINDOW = 32
"""Bytes of a vector that are searched for."""
DISTINCT = 8
"""Different bytes that a window must have; plain areas are alike in all images."""
STEP = 64 << 20
"""Bytes of a file that are searched at once."""


class Traces:
    """What identifies withdrawn images in files: their URIs, and a part of each of their vectors."""

    def __init__(self, root: Path) -> None:
        self._file = root / FILE

    def add(self, uris: Sequence[str], vectors: Sequence[np.ndarray]) -> None:
        """Note down, and return when it is safe. vectors: each in the bytes that a file keeps of it."""
        windows = [window for vector in vectors if (window := distinctive(vector.tobytes())) is not None]
        lines = [*uris, *(f"base64:{base64.b64encode(window).decode()}" for window in windows)]
        with self._file.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self._file.parent)

    def read(self) -> tuple[set[str], set[bytes]]:
        """URIs and parts of vectors that were noted down; a line that a crash cut off wasn't withdrawn."""
        uris: set[str] = set()
        windows: set[bytes] = set()
        if self._file.exists():
            for line in self._file.read_text(encoding="utf-8").splitlines():
                try:
                    text = json.loads(line)
                except ValueError:
                    continue
                if text.startswith("base64:"):
                    windows.add(base64.b64decode(text.removeprefix("base64:")))
                else:
                    uris.add(text)
        return uris, windows

    def remove(self) -> None:
        self._file.unlink(missing_ok=True)
        sync_folder(self._file.parent)


def distinctive(data: bytes) -> bytes | None:
    """The part of a vector with the most different bytes; None where no part is unlike plain areas."""
    starts = range(0, max(1, len(data) - WINDOW + 1), WINDOW)
    best = max((data[start : start + WINDOW] for start in starts), key=lambda part: len(set(part)))
    return best if len(set(best)) >= DISTINCT else None


@dataclass(frozen=True, slots=True)
class Proof:
    """How much was searched, and for how many traces; none of them was there."""

    files: int
    bytes: int
    traces: int


def erase(run: Run, ledger: Ledger, spaces: Spaces, root: Path, progress: Progress) -> Proof:
    """Rewrite what keeps bytes of withdrawn images, and search all files of the workspace for them.

    Raises `StoreError` that names the files which still have some.
    """
    progress.phase("erase", None)
    with run.timed("store"):
        remove_withdrawn(ledger, spaces, root)
        if spaces.owned:
            spaces.store.purge()
    with run.timed("ledger"):
        shutil.rmtree(root / THUMBNAILS, ignore_errors=True)  # a cache; whoever looks fills it again
        with ledger.write() as con:
            erase_history(con)
        ledger.rewrite()
        ledger.publish()
    with run.timed("search"):
        proof = prove(ledger, spaces, root)
    Traces(root).remove()
    run.counts.update(files_searched=proof.files, bytes_searched=proof.bytes, traces_searched=proof.traces)
    return proof


def prove(ledger: Ledger, spaces: Spaces, root: Path) -> Proof:
    """Search every file of the workspace for what was noted down of withdrawn images, but for accounts.

    Recorded payouts keep the names, URIs and hashes that they were paid by, as accounts have to.

    Raises `StoreError` where something is found that isn't also of an image that stays.
    """
    uris, windows = Traces(root).read()
    traces = _not_of_living(ledger, uris) + sorted(windows)
    searched, size, found = 0, 0, dict[Path, set[bytes]]()
    for path in sorted(root.rglob("*")):
        account = path.is_relative_to(root / PAYOUTS)
        if path.is_file() and not path.is_symlink() and path.name != FILE and not account:
            searched += 1
            size += path.stat().st_size
            if here := search(path, traces):
                found[path] = here
    if found:
        living = _living_windows(spaces, set.union(*found.values()) & windows)
        found = {path: left for path, here in found.items() if (left := here - living)}
    if found:
        names = ", ".join(str(path.relative_to(root)) for path in found)
        raise StoreError(
            f"{len(set.union(*found.values()))} traces of withdrawn images are still in {names}: run "
            "'gmv-qdrant erase' again, and keep other programs away from these files meanwhile"
        )
    return Proof(searched, size, len(traces))


def _not_of_living(ledger: Ledger, uris: set[str]) -> list[bytes]:
    """URIs that nothing in the ledger names any more, by itself or within a longer name."""
    if not uris:
        return []
    living = ledger.query(
        "SELECT uri FROM sources UNION SELECT uri FROM generated UNION SELECT uri FROM quarantine"
    )
    text = "\0".join(living["uri"].to_pylist())
    return [uri.encode() for uri in sorted(uris) if len(uri) >= 8 and uri not in text]


def _living_windows(spaces: Spaces, windows: set[bytes]) -> set[bytes]:
    """Those that images which stay have, too: other files of the same picture."""
    living: set[bytes] = set()
    if windows:
        for page in spaces.store.scroll(with_vectors=True):
            data = b"".join(point.vector.tobytes() for point in page if point.vector is not None)
            living |= {window for window in windows if window in data}
    return living


def search(path: Path, traces: Sequence[bytes]) -> set[bytes]:
    """Those of ``traces``, each of eight bytes or more, that the file has anywhere.

    The last eight bytes of each are looked up at all places of the file at once; where they are, the whole is compared.
    """
    by_end: dict[int, list[bytes]] = {}
    for trace in traces:
        by_end.setdefault(int.from_bytes(trace[-8:], "little"), []).append(trace)
    ends = np.array(sorted(by_end), dtype=np.uint64)
    maybe = np.zeros(1 << _HASH_BITS, dtype=bool)
    maybe[_hashed(ends)] = True
    found: set[bytes] = set()
    for data in _parts(path, max(map(len, traces), default=0)):
        for shift in range(min(8, len(data) - 7)):
            words = np.frombuffer(data, "<u8", count=(len(data) - shift) // 8, offset=shift)
            for hit in np.flatnonzero(maybe[_hashed(words)]).tolist():
                stop = shift + 8 * hit + 8
                found.update(
                    trace
                    for trace in by_end.get(int(words[hit]), ())
                    if data[max(0, stop - len(trace)) : stop] == trace
                )
    return found


_HASH_BITS = 22


def _hashed(words: np.ndarray) -> np.ndarray:
    return np.asarray((words * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - _HASH_BITS))


def _parts(path: Path, overlap: int) -> Iterator[bytes]:
    """The file, part by part; each begins with as many bytes of the one before."""
    with path.open("rb") as file:
        tail = b""
        while part := file.read(STEP):
            yield tail + part
            tail = (tail + part)[-overlap:] if overlap else b""
