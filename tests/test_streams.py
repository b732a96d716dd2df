"""Bounded streams, work behind, batch sizes found while working, and threads that share a ledger."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gmv_qdrant.ledger.database import Ledger
from gmv_qdrant.pipeline.batches import Forward
from gmv_qdrant.pipeline.streams import BackgroundWriter, chunked


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Network:
    """Takes as long as ``cost`` says for a batch, and holds no more than ``room``."""

    def __init__(self, clock: Clock, cost: dict[int, float], room: int = 1 << 30) -> None:
        self.clock, self.cost, self.room = clock, cost, room
        self.batches: list[int] = []

    def encode(self, batch: torch.Tensor) -> np.ndarray:
        if len(batch) > self.room:
            raise torch.OutOfMemoryError
        self.batches.append(len(batch))
        self.clock.now += self.cost.get(len(batch), 1.0) * len(batch)
        return batch.numpy()


@pytest.mark.parametrize(
    ("cost", "most", "best"),
    [
        ({1: 8, 2: 4, 4: 2, 8: 1, 16: 1.1, 32: 1.2, 64: 0.9}, 64, 64),  # a GPU: the more the better
        ({1: 1.0, 2: 0.9, 4: 1.4, 8: 0.1}, 64, 2),  # a cache that overflows: larger ones aren't tried
        ({1: 1.0, 2: 1.0}, 2, 1),
    ],
)
def test_the_batch_size_is_the_one_that_is_fastest(cost: dict[int, float], most: int, best: int) -> None:
    network = Network(clock := Clock(), cost)
    forward = Forward(network, most, clock=clock)  # type: ignore[arg-type]
    images = torch.arange(500.0)[:, None]
    np.testing.assert_array_equal(forward(images), images.numpy())
    assert forward.size == best
    network.batches.clear()
    forward(images[:64])
    assert set(network.batches) == {best}


def test_a_device_without_room_gets_halves_and_nothing_is_lost() -> None:
    network = Network(clock := Clock(), {}, room=5)
    forward = Forward(network, 64, clock=clock, fixed=True)  # type: ignore[arg-type]
    images = torch.arange(100.0)[:, None]
    np.testing.assert_array_equal(forward(images), images.numpy())
    assert forward.size <= 5
    network.room = 0
    with pytest.raises(torch.OutOfMemoryError):
        forward(images)


def test_work_behind_is_done_in_order_and_its_error_comes_out() -> None:
    done: list[int] = []
    with BackgroundWriter() as behind:
        for number in range(20):
            behind.hand_over(lambda number=number: done.append(number))  # type: ignore[misc]
    assert done == list(range(20))

    def fail() -> None:
        raise ValueError("full disk")

    with pytest.raises(ValueError, match="full disk"), BackgroundWriter() as behind:  # noqa: PT012
        behind.hand_over(fail)
        behind.hand_over(lambda: done.append(99))
    assert 99 not in done
    with pytest.raises(KeyError), BackgroundWriter() as behind:  # noqa: PT012
        behind.hand_over(lambda: done.append(100))
        raise KeyError
    assert 100 in done  # what was handed over is finished


@given(st.lists(st.integers(0, 100), max_size=300), st.integers(1, 200))
def test_chunks_hold_everything_once_and_are_bounded(weights: list[int], heaviest: int) -> None:
    chunks = list(chunked(weights, lambda item: item, smallest=8, largest=32, heaviest=heaviest))
    assert [item for chunk in chunks for item in chunk] == weights
    for chunk in chunks:
        assert 1 <= len(chunk) <= 32
        assert sum(chunk[:-1]) < heaviest


def test_threads_read_and_write_one_ledger(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "ledger.duckdb")
    begin = threading.Barrier(4)

    def work(number: int) -> None:
        begin.wait()
        for turn in range(15):
            if number == 0:
                with ledger.write() as con:
                    ledger.set_meta(con, turn=turn)
            else:
                assert "training_version" in ledger.query("SELECT key FROM meta")["key"].to_pylist()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert ledger.meta()["turn"] == "14"
