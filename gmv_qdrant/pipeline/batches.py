"""Forward passes at the batch size that a network is fastest at here, found while it works."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import torch

from gmv_qdrant.models.base import Encoder

TRIES = 3
"""Passes by which a batch size is judged: the quickest of them counts, for others use the machine, too."""
GIVE_UP = 1.25
"""Sizes double until an image takes this many times longer than at the best size so far."""


class Forward:
    """One network for all threads, one batch at a time.

    most: images in a batch at the most; a GPU is fastest at large ones, some networks on a CPU at one or two.
    clock: what a pass is judged by. fixed: always ``most``, halved only when the device has no room.
    """

    def __init__(
        self,
        encoder: Encoder,
        most: int,
        *,
        clock: Callable[[], float] = time.perf_counter,
        fixed: bool = False,
    ) -> None:
        self.encoder = encoder
        self.size = most if fixed else 1
        self._most = most
        self._clock = clock
        self._settled = fixed
        self._best = (float("inf"), self.size)
        self._tries: list[float] = []
        self._lock = threading.Lock()

    def __call__(self, tensors: torch.Tensor) -> np.ndarray:
        """Prepared tensors ``(n, ...)`` -> float32 ``(n, dim)``."""
        parts = []
        with self._lock:
            while len(tensors):
                parts.append(self._pass(tensors[: self.size]))
                tensors = tensors[len(parts[-1]) :]
        return np.concatenate(parts)

    def _pass(self, batch: torch.Tensor) -> np.ndarray:
        started = self._clock()
        try:
            vectors = self.encoder.encode(batch)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        else:
            self._judge(len(batch), (self._clock() - started) / len(batch))
            return vectors
        torch.cuda.empty_cache()
        self.size, self._settled = len(batch) // 2, True
        return np.concatenate([self._pass(half) for half in batch.tensor_split(2)])

    def _judge(self, images: int, each: float) -> None:
        if self._settled or images != self.size:
            return
        self._tries.append(each)
        if len(self._tries) < TRIES:
            return
        quickest = min(self._tries)
        self._tries.clear()
        self._best = min(self._best, (quickest, self.size))
        self._settled = quickest > GIVE_UP * self._best[0] or 2 * self.size > self._most
        self.size = self._best[1] if self._settled else 2 * self.size
