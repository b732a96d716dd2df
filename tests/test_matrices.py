"""Matrix files: a reader sees an image's own vector or an error; whatever happens to the file, and whoever writes."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tiny_workspace
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gmv_qdrant.errors import StoreError
from gmv_qdrant.models.base import Storage
from gmv_qdrant.vectors.device_rows import DeviceRows
from gmv_qdrant.vectors.matrices import GROUP, PAGE, Keys, Matrix

DIM = 5
FLOAT = Storage()
BYTES = Storage("uint8", 1 / 255)


@pytest.fixture
def path() -> Iterator[Path]:
    with tiny_workspace.scratch() as folder:
        yield folder / "vectors" / "training-rerank"


def vectors(seed: int, count: int, storage: Storage = FLOAT) -> np.ndarray:
    """What comes back exactly."""
    random = np.random.default_rng(seed)
    stored = random.integers(0, 256, (count, DIM)).astype(storage.dtype)
    return np.asarray(storage.unpack(stored))


def flip(path: Path, position: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ (1 << bit)]))


KEYS = st.lists(st.sampled_from([0, 1, 2, 3, 511, 512, 513, 1024, 5000]), unique=True, min_size=1)
STEPS = st.lists(
    st.tuples(st.sampled_from(["write", "zero", "open"]), KEYS, st.integers(0, 999)), max_size=12
)


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_what_is_read_is_what_was_written_last(
    dtype: Literal["float32", "float16", "uint8"], steps: list[tuple[str, list[int], int]]
) -> None:
    storage = Storage(dtype)
    with tiny_workspace.scratch() as folder:
        matrix = Matrix(folder / "matrix", DIM, storage)
        model: dict[int, np.ndarray] = {}
        for step, keys, seed in steps:
            if step == "write":
                rows = vectors(seed, len(keys), storage)
                matrix.write(keys, rows)
                model.update(zip(keys, rows, strict=True))
            elif step == "zero":
                matrix.zero(keys)
                for key in keys:
                    model.pop(key, None)
            else:
                matrix = Matrix(folder / "matrix", DIM, storage)
            assert matrix.has(range(-1, 6000)).nonzero()[0].tolist() == sorted(key + 1 for key in model)
            there = [key for key in keys if key in model]
            np.testing.assert_array_equal(
                matrix.read(there), np.array([model[k] for k in there]).reshape(-1, DIM)
            )
            for key in keys:
                if key not in model:
                    with pytest.raises(StoreError, match=rf"vector of image {key}\b.*is not there"):
                        matrix.read([key])


def test_every_flipped_byte_is_found(path: Path) -> None:
    keys = [3, 4, 600]
    expected = vectors(1, len(keys))
    Matrix(path, DIM, FLOAT).write(keys, expected)
    used = set(range(0, PAGE, 37))
    group = 8 * GROUP + 4 * DIM * GROUP
    for key in keys:
        start = PAGE + key // GROUP * group
        used |= set(range(start + 8 * (key % GROUP), start + 8 * (key % GROUP) + 8))
        row = start + 8 * GROUP + 4 * DIM * (key % GROUP)
        used |= set(range(row, row + 4 * DIM))
    for position in sorted(used):
        flip(path, position, position % 8)
        with pytest.raises(StoreError, match="check --repair"):
            Matrix(path, DIM, FLOAT).read(keys)
        if position >= PAGE:
            assert len(Matrix(path, DIM, FLOAT).wrong(keys)) == 1
        flip(path, position, position % 8)
    for position in range(PAGE, path.stat().st_size, 61):
        if position not in used:
            flip(path, position)
            np.testing.assert_array_equal(Matrix(path, DIM, FLOAT).read(keys), expected)


@pytest.mark.parametrize("size", [1, 4096, 32768])
def test_zeroed_and_moved_and_cut_bytes_are_found(path: Path, size: int) -> None:
    keys = np.arange(3000)
    expected = vectors(2, len(keys))
    Matrix(path, DIM, FLOAT).write(keys, expected)
    whole = path.read_bytes()
    random = np.random.default_rng(size)
    for damage in ("zeros", "moved", "cut"):
        for start in random.integers(PAGE, len(whole) - size, 10).tolist():
            other = int(random.integers(PAGE, len(whole) - size))
            piece = {"zeros": bytes(size), "moved": whole[other : other + size], "cut": b""}[damage]
            spoilt = whole[:start] + piece + (whole[start + size :] if damage != "cut" else b"")
            path.unlink()
            path.write_bytes(spoilt)
            matrix = Matrix(path, DIM, FLOAT)
            wrong = set(matrix.wrong(keys).tolist())
            assert wrong or spoilt == whole
            good = [key for key in keys.tolist() if key not in wrong]
            np.testing.assert_array_equal(matrix.read(good), expected[good])
            for key in list(wrong)[:5]:
                with pytest.raises(StoreError, match=f"image {key} in {path}"):
                    matrix.read([key])


def test_a_row_of_another_key_is_not_believed(path: Path) -> None:
    Matrix(path, DIM, FLOAT).write([0, 1], vectors(3, 2))
    data = bytearray(path.read_bytes())
    sums, rows = PAGE, PAGE + 8 * GROUP
    data[sums : sums + 8], data[sums + 8 : sums + 16] = data[sums + 8 : sums + 16], data[sums : sums + 8]
    width = 4 * DIM
    data[rows : rows + width], data[rows + width : rows + 2 * width] = (
        data[rows + width : rows + 2 * width],
        data[rows : rows + width],
    )
    path.write_bytes(data)
    for key in (0, 1):
        with pytest.raises(StoreError, match="is damaged"):
            Matrix(path, DIM, FLOAT).read([key])


def test_a_file_of_another_kind_or_workspace_is_refused(path: Path) -> None:
    Matrix(path, DIM, FLOAT, identity="one").write([1], vectors(4, 1))
    for other in (
        Matrix(path, DIM + 1, FLOAT, identity="one"),
        Matrix(path, DIM, BYTES, identity="one"),
        Matrix(path, DIM, FLOAT, identity="another"),
    ):
        with pytest.raises(StoreError, match="doesn't hold the vectors of this workspace"):
            other.read([1])
        with pytest.raises(StoreError, match="doesn't hold the vectors of this workspace"):
            other.write([1], np.ones((1, other.dim), np.float32))
    Matrix(path, DIM, FLOAT, identity="one").read([1])


def test_what_another_process_takes_out_is_gone_at_once(path: Path) -> None:
    reader = Matrix(path, DIM, FLOAT)
    assert not reader.has([7]).any()
    rows = vectors(5, 3)
    in_a_process(_write, path, [7, 8, 2000], rows)
    np.testing.assert_array_equal(reader.read([2000, 7]), rows[[2, 0]])  # the file came after its reader
    in_a_process(_zero, path, [7])
    assert reader.has([7, 8]).tolist() == [False, True]
    with pytest.raises(StoreError, match="is not there"):
        reader.read([7])
    path.unlink()
    in_a_process(_write, path, [8], rows[:1])
    np.testing.assert_array_equal(reader.read([8]), rows[:1])  # another file of this name


def test_two_writers_and_a_reader(path: Path) -> None:
    """Each row that is read is whole, and is one that was written for its key."""
    until = time.time() + 3
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_keep_writing, args=(path, salt, until)) for salt in (1, 2)]
    for writer in writers:
        writer.start()
    reader, seen, refused = Matrix(path, DIM, FLOAT), 0, 0
    keys = np.arange(500, 530)
    while time.time() < until:
        try:
            rows = reader.read(keys)
        except StoreError:
            refused += 1
            continue
        seen += 1
        for key, row in zip(keys.tolist(), rows, strict=True):
            assert row[0] == key
            assert len(set(row[1:].tolist())) == 1
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert seen > 10
    assert len(reader.wrong(keys)) == 0


def test_a_full_disk_is_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = Matrix(path, DIM, FLOAT)
    matrix.write([1], vectors(6, 1))

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(StoreError, match=r"No space left on device.*make room"):
            matrix.write([2], vectors(7, 1))
    np.testing.assert_array_equal(matrix.read([1]), vectors(6, 1))


def _write(path: Path, keys: list[int], rows: np.ndarray) -> None:
    Matrix(path, DIM, FLOAT).write(keys, rows)


def _zero(path: Path, keys: list[int]) -> None:
    Matrix(path, DIM, FLOAT).zero(keys)


def _keep_writing(path: Path, salt: int, until: float) -> None:
    matrix, random = Matrix(path, DIM, FLOAT), np.random.default_rng(salt)
    while time.time() < until:
        keys = np.arange(500, 530)
        rows = np.column_stack([keys, *[random.integers(0, 99, len(keys))] * (DIM - 1)]).astype(np.float32)
        matrix.write(keys, rows)


def in_a_process(work: Any, *arguments: Any) -> None:
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize("storage", [FLOAT, Storage("float16"), Storage("uint8", 1 / 255)])
def test_rows_that_stay_on_a_device_are_those_of_the_file(tmp_path: Path, storage: Storage) -> None:
    """On `cpu` by the code that a GPU runs: each row goes there once, and again when it is another."""
    random = np.random.default_rng(0)
    matrix = Matrix(tmp_path / "m", DIM, storage)
    matrix.write(range(1, 21), storage.unpack(storage.pack(random.random((20, DIM), dtype=np.float32))))
    reads: list[int] = []

    class Counting(Matrix):
        def read(self, keys: Keys) -> np.ndarray:
            reads.append(len(keys))
            return super().read(keys)

    counted = Counting(tmp_path / "m", DIM, storage)
    kept = DeviceRows(counted, "cpu", room=1 << 30)
    sent = DeviceRows(counted, "cpu", room=8)
    for keys in ([3, 1, 20], [1, 3, 3, 7], [7, 20]):
        np.testing.assert_array_equal(kept.read(keys).numpy(), matrix.read(keys))
    assert reads == [3, 1]
    np.testing.assert_array_equal(sent.read([3, 1]).numpy(), matrix.read([3, 1]))
    matrix.write([3, 600], storage.unpack(storage.pack(random.random((2, DIM), dtype=np.float32))))
    for keys in ([1, 3], [600, 7]):
        np.testing.assert_array_equal(kept.read(keys).numpy(), matrix.read(keys))
    matrix.zero([7])
    for bad in (7, 5_000):
        with pytest.raises(StoreError, match="is not there"):
            kept.read([1, bad])
