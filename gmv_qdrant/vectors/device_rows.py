"""The rows of a matrix on the device that compares them: on a GPU with room for them, each goes there once."""

from __future__ import annotations

import numpy as np
import torch

from gmv_qdrant.vectors.matrices import Keys, Matrix

SHARE = 0.5
"""Of a GPU's free memory that rows may take; networks and what is being compared need the rest."""


class DeviceRows:
    """Rows of ``matrix`` as float32 tensors on ``device``, the same numbers as `Matrix.read`.

    room: bytes that rows may take there; None finds out: a share of a GPU's free memory, nothing on a CPU, where the
    file's pages are in memory anyway. A matrix that doesn't fit is sent block by block. Rows stay in the stored dtype;
    one whose checksum in the file is another by now is read again, so that a row that was taken out is never used.
    """

    def __init__(self, matrix: Matrix, device: str, room: int | None = None) -> None:
        self.device = device
        self._matrix = matrix
        self._room = _free(device) if room is None else room
        self._rows = torch.empty((0, matrix.dim), dtype=_dtype(matrix), device=device)
        self._sums = np.empty(0, np.uint64)
        """The checksums of the rows that are there; 0 where none is."""

    def read(self, keys: Keys) -> torch.Tensor:
        """float32 ``(n, dim)``. Raises `StoreError` as `Matrix.read` does."""
        keys = np.asarray(keys, dtype=np.int64)
        if not self._fits() or keys.max(initial=-1) >= len(self._sums):
            return torch.from_numpy(self._matrix.read(keys)).to(self.device)
        sums = self._matrix.sums(keys)
        new = np.flatnonzero((self._sums[keys] != sums) | (sums == 0))
        if len(new):
            storage = self._matrix.storage
            rows = torch.from_numpy(storage.pack(self._matrix.read(keys[new])))
            self._rows[torch.from_numpy(keys[new]).to(self.device)] = rows.to(self.device)
            self._sums[keys[new]] = sums[new]
        found = self._rows[torch.from_numpy(keys).to(self.device)].float()
        return found if self._matrix.storage.scale == 1.0 else found.mul_(self._matrix.storage.scale)

    def _fits(self) -> bool:
        """Whether the whole matrix has room; makes it where it has grown."""
        count = self._matrix.rows
        size = count * self._matrix.dim * self._rows.element_size()
        if not size or size > self._room:
            return False
        if count > len(self._rows):
            grown = self._rows.new_empty((count, self._matrix.dim))
            grown[: len(self._rows)] = self._rows
            self._rows = grown
            self._sums = np.pad(self._sums, (0, count - len(self._sums)))
        return True


def _dtype(matrix: Matrix) -> torch.dtype:
    return torch.from_numpy(np.empty(0, matrix.storage.dtype)).dtype


def _free(device: str) -> int:
    if not device.startswith("cuda"):
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return int(SHARE * free)
