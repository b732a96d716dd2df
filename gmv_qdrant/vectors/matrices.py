"""Vectors that are read again and again: a memory-mapped file for each space, an image's vector in its key's row.

    page 0     what the file holds: numbers of a vector, how they are kept, whose they are
    then       groups of 512 rows: their checksums (64 bits each), then their vectors

A checksum is the beginning of a SHA-256 over key and vector. A CRC would let one damaged row in four billion through
and is linear, so that it can't tell a row that moved from one that stayed; this one finds any damage, a vector in
another row, and rows of zeros, at 1.5 GB/s. It is compared at a row's first use in a process. A row whose checksum is 0
isn't there: rows that were never written are holes in a sparse file.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from gmv_qdrant.errors import StoreError
from gmv_qdrant.files import sync_folder
from gmv_qdrant.models.base import Storage

PAGE = 4096
GROUP = 512
FORMAT = 1
Keys = Sequence[int] | np.ndarray
_NO_FILE = (-1, -1, 0)


class Matrix:
    """Vectors of ``dim`` numbers, kept as ``storage`` says, by integer key (from 0).

    identity: whose vectors they are; a file of another identity is refused, for there keys mean other images.
    Speaks float32; packing to the stored dtype happens here and nowhere else. Any number of processes may read while
    others write. Raises `StoreError` for a file that holds something else, and where a disk is full.
    """

    def __init__(self, path: Path, dim: int, storage: Storage, *, identity: str = "") -> None:
        self.path = path
        self.dim = dim
        self.storage = storage
        facts = {
            "gmv-qdrant": "matrix",
            "format": FORMAT,
            "dim": dim,
            "dtype": storage.dtype,
            "scale": storage.scale,
            "identity": identity,
        }
        self._header = json.dumps(facts).encode().ljust(PAGE)
        self._group = np.dtype([("sums", "<u8", (GROUP,)), ("vectors", storage.dtype, (GROUP, dim))])
        self._row_bytes = dim * np.dtype(storage.dtype).itemsize
        self._mapped: tuple[tuple[int, int, int], np.ndarray] = (_NO_FILE, np.empty(0, self._group))
        self._verified = np.empty(0, np.uint64)
        """The checksum that a row's vector was found to have, by key; 0 where none was compared yet."""

    # -- reading -------------------------------------------------------------------------------------

    def has(self, keys: Keys) -> np.ndarray:
        """bool ``(n,)``: which keys have a row; whether it is whole, `read` says."""
        return np.asarray(self._sums(self._map(), _array(keys)) != 0)

    def read(self, keys: Keys) -> np.ndarray:
        """The vectors of these keys, float32 ``(n, dim)``.

        Raises `StoreError` that names key and file for a row that isn't there, or isn't what was written.
        """
        keys, groups = _array(keys), self._map()
        sums = self._sums(groups, keys)
        self._refuse(keys[sums == 0], "is not there")
        stored = self._vectors(groups, keys)
        self._refuse(self._damaged(keys, sums, stored), "is damaged")
        # whoever takes a row out clears its checksum first: so what is unchanged by now was whole when it was copied
        self._refuse(keys[self._sums(groups, keys) != sums], "was taken out meanwhile")
        return self.storage.unpack(stored)

    @property
    def rows(self) -> int:
        """Rows that the file has room for as it is now."""
        return len(self._map()) * GROUP

    def sums(self, keys: Keys) -> np.ndarray:
        """uint64 ``(n,)``: the rows' checksums in the file as it is now; 0 where there is no row."""
        return self._sums(self._map(), _array(keys))

    def stored(self, keys: Keys) -> np.ndarray:
        """Those rows of these keys that are there, in the dtype and the bytes of the file; nothing is compared."""
        keys, groups = _array(keys), self._map()
        return self._vectors(groups, keys[self._sums(groups, keys) != 0])

    def wrong(self, keys: Keys) -> np.ndarray:
        """int64: those of ``keys`` whose row isn't there, isn't what was written, or has numbers that aren't finite."""
        keys, groups = np.sort(_array(keys)), self._map()

        def look(some: np.ndarray) -> np.ndarray:
            sums = self._sums(groups, some)
            there = some[sums != 0]
            stored = self._vectors(groups, there)
            bad = self._differing(there, sums[sums != 0], stored)
            bad |= ~np.isfinite(stored).all(axis=1)
            return np.concatenate([some[sums == 0], there[bad]])

        with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter lock
            found = list(pool.map(look, np.array_split(keys, max(1, len(keys) // GROUP))))
        return np.sort(np.concatenate(found))

    def _map(self) -> np.ndarray:
        """All whole groups of the file as it is now, ``(groups,)``; none when there is no file."""
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                count = max(0, status.st_size - PAGE) // self._group.itemsize
                state = (status.st_dev, status.st_ino, count)
                if state == self._mapped[0]:
                    return self._mapped[1]
                self._check_header(file.read(PAGE))
                groups = np.memmap(file, self._group, "r", offset=PAGE, shape=(count,)) if count else None
        except FileNotFoundError:
            state, groups = _NO_FILE, None
        except OSError as error:
            raise StoreError(f"the vectors in {self.path} can't be read: {error.strerror}") from error
        if state[:2] != self._mapped[0][:2]:
            self._verified = np.empty(0, np.uint64)
        mapped = np.asarray(groups) if groups is not None else np.empty(0, self._group)
        self._mapped = state, mapped
        return mapped

    def _check_header(self, found: bytes) -> None:
        if found != self._header and found.strip(b"\0"):
            raise StoreError(
                f"{self.path} doesn't hold the vectors of this workspace ({self.dim} numbers, {self.storage.dtype}), "
                "or is damaged: move it away, and 'gmv-qdrant check --repair' computes them again"
            )

    def _sums(self, groups: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """uint64 ``(n,)`` checksums; 0 beyond the file's end."""
        inside = (keys >= 0) & (keys < len(groups) * GROUP)
        sums = np.zeros(len(keys), np.uint64)
        sums[inside] = groups["sums"][np.divmod(keys[inside], GROUP)]
        return sums

    def _vectors(self, groups: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """A copy of rows that are inside the file, in the stored dtype ``(n, dim)``."""
        if not len(keys):
            return np.empty((0, self.dim), self.storage.dtype)
        return np.asarray(groups["vectors"][np.divmod(keys, GROUP)])

    def _damaged(self, keys: np.ndarray, sums: np.ndarray, stored: np.ndarray) -> np.ndarray:
        """Those keys whose vector isn't what its checksum was made of; each is only looked at once."""
        if len(keys) and (top := int(keys.max())) >= len(self._verified):
            self._verified = np.pad(self._verified, (0, top + 1 - len(self._verified) + GROUP))
        new = np.flatnonzero(self._verified[keys] != sums)
        bad = self._differing(keys[new], sums[new], stored[new])
        self._verified[keys[new[~bad]]] = sums[new[~bad]]
        return np.asarray(keys[new[bad]])

    def _differing(self, keys: np.ndarray, sums: np.ndarray, stored: np.ndarray) -> np.ndarray:
        return np.asarray(_checksums(keys, stored) != sums)

    def _refuse(self, keys: np.ndarray, what: str) -> None:
        if len(keys):
            others = f" (and of {len(keys) - 1} others)" if len(keys) > 1 else ""
            raise StoreError(
                f"the vector of image {keys[0]}{others} in {self.path} {what}: "
                "'gmv-qdrant check --repair' computes it again"
            )

    # -- writing -------------------------------------------------------------------------------------

    def write(self, keys: Keys, vectors: np.ndarray) -> None:
        """Keep float32 ``(n, dim)``, in place of what these keys had; safe from a power cut when this returns."""
        keys = _array(keys)
        if vectors.shape != (len(keys), self.dim):
            raise StoreError(f"{self.path} takes rows of {self.dim} numbers, not an array of {vectors.shape}")
        order = np.argsort(keys, kind="stable")
        keys, packed = keys[order], self.storage.pack(vectors[order])
        sums = _checksums(keys, packed)
        with self._writing(f"{packed.nbytes >> 20} MB of vectors") as file:
            needed = PAGE + (int(keys.max(initial=-1)) // GROUP + 1) * self._group.itemsize
            if os.fstat(file).st_size < needed:
                os.ftruncate(file, needed)
            self._clear_sums(file, keys)
            for rows in _runs(keys):
                self._put(file, packed[rows], self._vector_at(int(keys[rows.start])))
            for rows in _runs(keys):
                self._put(file, sums[rows], self._sum_at(int(keys[rows.start])))

    def zero(self, keys: Keys) -> None:
        """Overwrite the rows of these keys; safe from a power cut when this returns."""
        keys = np.unique(_array(keys))
        keys = keys[(keys >= 0) & (keys < len(self._map()) * GROUP)]
        if not len(keys):
            return
        with self._writing("zeros") as file:
            self._clear_sums(file, keys)
            for rows in _runs(keys):
                nothing = np.zeros((rows.stop - rows.start) * self._row_bytes, np.uint8)
                self._put(file, nothing, self._vector_at(int(keys[rows.start])))

    @contextmanager
    def _writing(self, what: str) -> Iterator[int]:
        """The file, made if need be, for one writer at a time; synced at the end."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                found = os.pread(file, PAGE, 0)
                self._check_header(found)
                if found != self._header:
                    self._put(file, np.frombuffer(self._header, np.uint8), 0)
                yield file
                os.fsync(file)
            finally:
                os.close(file)
            if found != self._header:
                sync_folder(self.path.parent)
        except OSError as error:
            raise StoreError(
                f"{what} can't be written to {self.path} ({error.strerror or error}): all before them is safe; "
                "make room and run the command again"
            ) from error

    def _clear_sums(self, file: int, keys: np.ndarray) -> None:
        """First of all, so that nobody takes half a vector for a whole one."""
        there = keys[self._sums(self._map(), keys) != 0]
        for rows in _runs(there):
            self._put(file, np.zeros(rows.stop - rows.start, np.uint64), self._sum_at(int(there[rows.start])))

    def _put(self, file: int, data: np.ndarray, position: int) -> None:
        left = memoryview(np.ascontiguousarray(data).data).cast("B")
        while left:
            written = os.pwrite(file, left, position)
            left, position = left[written:], position + written

    def _sum_at(self, key: int) -> int:
        group, place = divmod(key, GROUP)
        return PAGE + group * self._group.itemsize + 8 * place

    def _vector_at(self, key: int) -> int:
        group, place = divmod(key, GROUP)
        return PAGE + group * self._group.itemsize + 8 * GROUP + self._row_bytes * place


def _array(keys: Keys) -> np.ndarray:
    return np.asarray(keys, dtype=np.int64)


def _checksums(keys: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """uint64 ``(n,)``, never 0, of rows in the stored dtype ``(n, dim)``."""
    digests = [
        hashlib.sha256(key.to_bytes(8, "little") + row.tobytes()).digest()[:8]
        for key, row in zip(keys.tolist(), stored, strict=True)
    ]
    return np.maximum(np.frombuffer(b"".join(digests), "<u8").astype(np.uint64), np.uint64(1))


def _runs(keys: np.ndarray) -> Iterator[slice]:
    """Parts of ascending keys that stand one behind the other in one group."""
    breaks = np.flatnonzero((np.diff(keys) != 1) | (keys[1:] % GROUP == 0)) + 1
    bounds = [0, *breaks.tolist(), len(keys)] if len(keys) else [0]
    for start, stop in itertools.pairwise(bounds):
        yield slice(start, stop)
