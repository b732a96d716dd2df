"""What a million images cost, fourteen million (ImageNet-21k), and five billion (LAION-5B): bytes, requests, seconds.

    python scripts/cost_model.py                                   # the table of docs/growing.md
    python scripts/cost_model.py --gpu-tflops 40 --gpus 8 --json   # for other machines
    python scripts/cost_model.py --measure ledger                  # measures constants, writes cost_model.json
    python scripts/cost_model.py --measure networks --cache-dir FOLDER

Every constant stands in cost_model.json with where it comes from. What isn't measured is an assumption and is called
one: above all the GPU, which is an option. The table is arithmetic on these, not a measurement at that size.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

CONSTANTS = Path(__file__).with_suffix(".json")
SIZES = {"a million": 1_000_000, "ImageNet-21k": 14_000_000, "LAION-5B": 5_000_000_000}
CANDIDATES = 200
GROUP = 512
"""Generated images that are matched at once."""
INT32 = 2**31 - 1
MAPS = 65_530
"""Files that a Linux process may map (vm.max_map_count)."""

Constants = dict[str, float]


def read_constants() -> Constants:
    return {name: entry["value"] for name, entry in json.loads(CONSTANTS.read_text()).items()}


# -- the model -------------------------------------------------------------------------------------------------------


def training_set(n: float, c: Constants, gpus: float, tflops: float) -> dict[str, float]:
    """Taking in n training images."""
    flops = c["recall network"] + c["re-rank network"]
    task = c["images of a GPU task"]
    return {
        "server: disk, GB": n * c["store bytes"] / 1e9,
        "server: memory for codes and graph, GB": n * (c["code bytes"] + c["graph bytes"]) / 1e9,
        "feature files, GB": n * c["re-rank vector bytes"] / 1e9,
        "feature files": n / task,
        "ledger, GB": n * c["ledger bytes"] / 1e9,
        "memory of each host for what workers look up, GB": n * c["snapshot bytes"] / 1e9,
        "requests to the server, thousands": n
        * (1 / c["images of a GPU task"] + 1 / c["points of a request"])
        / 1e3,
        "GPU seconds, thousands": n * flops / (tflops * 1e12) / 1e3,
        "CPU seconds of decoding, thousands": n * c["decode seconds"] / 1e3,
        "hours on these GPUs": n * flops / (tflops * 1e12) / gpus / 3600,
        "hours of the ledger writer": writer_seconds(n, c) / 3600,
    }


def writer_seconds(n: float, c: Constants) -> float:
    """The one writer: a fixed part for each transaction, and one that grows with what the ledger holds already."""
    return (
        n
        / c["images of a transaction"]
        * (c["ledger seconds a transaction"] + c["ledger seconds a transaction and million"] * n / 2 / 1e6)
    )


def generated_set(m: float, n: float, c: Constants, gpus: float, tflops: float) -> dict[str, float]:
    """Valuing m generated images against n training images, with K = 200."""
    flops = c["recall network"] + c["re-rank network"] + c["quality network"]
    return {
        "feature files, GB": m * (c["re-rank vector bytes"] + 4 * c["recall numbers"]) / 1e9,
        "ledger, GB": m * c["evidence bytes"] / 1e9,
        "evidence over the network, GB": m * c["evidence message bytes"] / 1e9,
        "requests to the server, thousands": m / 1e3,
        "GPU seconds, thousands": m * flops / (tflops * 1e12) / 1e3,
        "CPU seconds of matching, thousands": m * c["match seconds"] / 1e3,
        "CPU seconds of looking candidates up, thousands": m / GROUP * c["look-up seconds"] * n / 1e6 / 1e3,
        "hours on these GPUs": m * flops / (tflops * 1e12) / gpus / 3600,
        "hours of the ledger writer": m * c["evidence seconds"] / 3600,
    }


def limits(
    c: Constants, gpus: float, tflops: float, memory_gb: float, disk_gb: float
) -> list[tuple[float, str]]:
    """From which n something breaks, smallest first."""
    flops = c["recall network"] + c["re-rank network"]
    rate = gpus * tflops * 1e12 / flops  # images a second that the GPUs encode
    longest = c["images of a transaction"] / rate  # that a transaction may take, or the GPUs wait for it
    slower = (
        (longest - c["ledger seconds a transaction"]) / c["ledger seconds a transaction and million"] * 1e6
    )
    found = [
        (
            memory_gb * 1e9 / c["snapshot bytes"],
            f"what workers look up outgrows {memory_gb:.0f} GB of a host",
        ),
        (
            disk_gb * 1e9 / c["re-rank vector bytes"],
            f"feature files outgrow {disk_gb:,.0f} GB of a host's disk",
        ),
        (max(0.0, slower), f"the one ledger writer is slower than these GPUs ({rate:,.0f} images a second)"),
        (MAPS * c["images of a GPU task"], "more feature files than Linux lets a process map"),
        (float(INT32), "training keys are 32-bit integers"),
    ]
    return sorted(found)


def tables(c: Constants, gpus: float, tflops: float, memory_gb: float, disk_gb: float) -> str:
    """The part of docs/growing.md that this script writes: Markdown."""
    lines = [
        f"{gpus:.0f} GPUs of {tflops:g} TFLOP/s each *(assumed)*. Training images:",
        "",
        *_table({name: training_set(n, c, gpus, tflops) for name, n in SIZES.items()}),
        "",
        f"A million generated images, K = {CANDIDATES}, against so many training images:",
        "",
        *_table({name: generated_set(1e6, n, c, gpus, tflops) for name, n in SIZES.items()}),
        "",
        f"Where it breaks, with {memory_gb:.0f} GB of memory and {disk_gb:,.0f} GB of disk in each host:",
        "",
        "| from n = | what |",
        "|---|---|",
        *(f"| {_rounded(n)} | {what} |" for n, what in limits(c, gpus, tflops, memory_gb, disk_gb)),
    ]
    return "\n".join(lines) + "\n"


def _table(columns: dict[str, dict[str, float]]) -> list[str]:
    rows = next(iter(columns.values()))
    return [
        f"| | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
        *(f"| {row} | {' | '.join(_rounded(column[row]) for column in columns.values())} |" for row in rows),
    ]


def _rounded(value: float) -> str:
    """Two digits: more would promise too much."""
    if value == 0:
        return "0"
    digits = 1 - int(np.floor(np.log10(abs(value))))
    shown = round(value, digits)
    return f"{shown:,.{max(0, digits)}f}"


# -- the constants ---------------------------------------------------------------------------------------------------


def measure_ledger(held: tuple[int, int] = (200_000, 2_000_000), together: int = 4096) -> Constants:
    """The ledger's own writers on ledgers that hold so many images already; and what workers and wires carry."""
    from gmv_qdrant.cluster import snapshot

    from gmv_qdrant.ledger.database import Ledger
    from gmv_qdrant.ledger.runs import Run
    from gmv_qdrant.pipeline import ingest

    found: Constants = {}
    seconds: list[float] = []
    looking: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for n in held:
            ledger = Ledger.create(Path(folder) / f"{n}.duckdb")
            with ledger.write() as con:
                con.execute(FILL.replace("$n", str(n)))
            context: Any = SimpleNamespace(ledger=ledger, root=Path(folder))
            book = ingest.LedgerWriter(context, Run("ingest", 1))
            work = [_taken(n + i * together, together) for i in range(5)]
            seconds.append(_least_seconds([partial(book.write, taken) for taken in work]))
            rows = n + len(work) * together
            if n == held[0]:
                found |= _measure_evidence(context, n)
            found["ledger bytes"] = _rewritten(ledger) / rows
            looked_up = snapshot.of_value(ledger, images=False)
            found["snapshot bytes"] = sum(table.nbytes for table in looked_up.values()) / rows
            looking.append(_look_up_seconds(snapshot.Snapshot(ledger.path, looked_up, 1), n))
    slope = max(0.0, (seconds[1] - seconds[0]) / (held[1] - held[0]) * 1e6)
    found["look-up seconds"] = max(0.0, (looking[1] - looking[0]) / (held[1] - held[0]) * 1e6)
    found["ledger seconds a transaction and million"] = slope
    found["ledger seconds a transaction"] = max(0.0, seconds[0] - slope * held[0] / 1e6)
    return found


def _look_up_seconds(held: Any, n: int) -> float:
    """Of a worker, for the candidates of one group of generated images."""
    from gmv_qdrant.pipeline.reranking import RerankVectors

    from gmv_qdrant.ledger.runs import Run

    context: Any = SimpleNamespace(ledger=held, space=lambda _: None, reranks_in_engine=False)
    vectors = RerankVectors(context, Run("value", 1))
    some = held.query(
        f"SELECT point_id FROM training USING SAMPLE reservoir({min(n, 60_000)} ROWS) REPEATABLE (0)"
    )
    points = some["point_id"].to_pylist()
    return _least_seconds([lambda: vectors.know(points)] * 5)


def _measure_evidence(context: Any, n: int, chunk: int = 1024) -> Constants:
    from gmv_qdrant.cluster import wire

    from gmv_qdrant.ledger.runs import Run
    from gmv_qdrant.pipeline import valuation
    from gmv_qdrant.pipeline.matching import Candidates, Matches

    rng = np.random.default_rng(0)

    def candidates(count: int) -> tuple[np.ndarray, ...]:
        keys = rng.choice(n, count, replace=False).astype(np.int32)
        return keys, np.sort(rng.random(count)), np.zeros(count, np.int8), rng.random(count, dtype=np.float32)

    evidence = [
        Matches(*candidates(CANDIDATES), radius=1.0, spare=Candidates(*candidates(CANDIDATES // 10)))
        for _ in range(chunk)
    ]
    work = [_valued(i * chunk, chunk) for i in range(3)]
    message = {"work": work[0], "evidence": wire.table_of(evidence)}
    before = _rewritten(context.ledger)
    book = valuation.LedgerWriter(context, Run("value", 1), "default")
    seconds = _least_seconds([partial(book.write, some, evidence) for some in work])
    return {
        "evidence seconds": seconds / chunk,
        "evidence bytes": (_rewritten(context.ledger) - before) / (chunk * len(work)),
        "evidence message bytes": len(pickle.dumps(message, protocol=5)) / chunk,
    }


FILL = """
INSERT INTO training (training_key, point_id, content_hash, label, width, height, version_added, attributes)
SELECT i + 1, uuid()::VARCHAR, sha256(i::VARCHAR), 'class ' || (i % 1000), 256, 256, 1, '{}' FROM range($n) t(i);
INSERT INTO sources (training_key, uri, owner, label, licence, attributes, file_size, file_time)
SELECT i + 1, '/data/images/' || (i % 1000) || '/' || sha256(i::VARCHAR)[:16] || '.jpg', 'owner ' || (i % 5000),
    'class ' || (i % 1000), 'CC-BY-4.0', '{}', 50000 + i % 9999, 1700000000000000000 + i * 1000003 FROM range($n) t(i);
INSERT INTO features SELECT 'training/rerank', i + 1, 4611686018427387904 + i // 1024, i % 1024 FROM range($n) t(i);
"""


def _taken(first: int, count: int) -> Any:
    """A chunk of images that the ledger doesn't have."""
    from gmv_qdrant.images.records import content_hash, point_id
    from gmv_qdrant.pipeline.ingest import IMAGES, SOURCES, StoredChunk

    hashes = [content_hash(f"new {i}".encode()) for i in range(first, first + count)]
    images = [
        {"content_hash": hash_, "point_id": str(point_id(hash_)), "label": "class 7", "width": 256, "height": 256,
         "attributes": "{}", "shard": 2**62 + first, "row": row}
        for row, hash_ in enumerate(hashes)
    ]  # fmt: skip
    sources = [
        {"content_hash": hash_, "uri": f"/data/images/7/{hash_[:16]}.jpg", "owner": "owner 3", "label": "class 7",
         "licence": "CC-BY-4.0", "attributes": "{}", "file_size": 50_000, "file_time": 1_700_000_000_000_000_000}
        for hash_ in hashes
    ]  # fmt: skip
    return StoredChunk(pa.Table.from_pylist(images, IMAGES), pa.Table.from_pylist(sources, SOURCES))


def _valued(first: int, count: int) -> Any:
    from gmv_qdrant.images.records import content_hash, point_id
    from gmv_qdrant.pipeline.value import IMAGES, EmbeddedChunk

    hashes = [content_hash(f"generated {i}".encode()) for i in range(first, first + count)]
    images = [
        {"point_id": str(point_id(hash_)), "content_hash": hash_, "uri": f"/data/generated/{hash_[:16]}.png",
         "label": "class 7", "quality": 0.5, "attributes": "{}"}
        for hash_ in hashes
    ]  # fmt: skip
    locations = np.stack([np.full(count, 2**62 + first), np.arange(count)], axis=1)
    spaces = {"generated/recall": locations, "generated/rerank": locations}
    return EmbeddedChunk(pa.Table.from_pylist(images, IMAGES), spaces)


def _least_seconds(calls: list[Callable[[], Any]]) -> float:
    """Of the processor, all threads together: other work on the machine counts little."""
    spent = []
    for call in calls:
        began = time.process_time()
        call()
        spent.append(time.process_time() - began)
    return min(spent)


def _rewritten(ledger: Any) -> int:
    """Bytes of the file without freed blocks."""
    ledger.rewrite()
    return int(ledger.path.stat().st_size)


def measure_decoding() -> Constants:
    """A JPEG of 500 pixels, of a cloud as a photograph has them, to RGB and to what CLIP takes."""
    from PIL import Image

    from gmv_qdrant.images.decode import decode

    rough = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(rough).resize((500, 375), Image.Resampling.BICUBIC).save(buffer, "jpeg", quality=90)

    def once() -> None:
        decode(buffer.getvalue()).resize((299, 224), Image.Resampling.BICUBIC)

    return {"decode seconds": _least_seconds([once] * 50)}


def measure_networks(cache_dir: Path | None) -> Constants:
    """Floating-point operations of one image in each of the default networks, counted by torch."""
    import torch
    from PIL import Image
    from torch.utils.flop_counter import FlopCounterMode

    from gmv_qdrant.models.devices import Runtime
    from gmv_qdrant.models.registry import load_distance, load_encoder, load_quality

    runtime = Runtime(device="cpu", offline=True, cache_dir=cache_dir)
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    image = Image.fromarray(noise)

    def flops(call: Callable[[], Any]) -> float:
        torch.backends.mha.set_fastpath_enabled(False)  # its operations aren't counted
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            call()
        return float(counter.get_total_flops())

    found: Constants = {}
    for name, encoder in (
        ("recall network", load_encoder("clip", runtime=runtime)),
        ("re-rank network", load_distance("dreamsim", runtime=runtime)),
    ):
        tensor = encoder.prepare(image)[None]
        found[name] = flops(lambda encoder=encoder, tensor=tensor: encoder.encode(tensor))
    quality = load_quality("maniqa", runtime=runtime)
    assert quality is not None
    small = image.resize((224, 224))  # one crop; larger images have up to twenty
    found["quality network"] = flops(lambda: quality.score(small))
    return found


def keep(found: Constants, command: str) -> None:
    """Write measured constants beside the others."""
    entries = json.loads(CONSTANTS.read_text())
    for name, value in found.items():
        entries[name]["value"] = float(f"{value:.4g}")
        entries[name]["from"] = command
    CONSTANTS.write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--measure", choices=["ledger", "networks", "decoding"])
    parser.add_argument("--cache-dir", type=Path, help="where the networks' weights are")
    parser.add_argument("--gpus", type=float, default=8)
    parser.add_argument("--gpu-tflops", type=float, default=12, help="sustained, in float32 without TF32")
    parser.add_argument("--memory-gb", type=float, default=64)
    parser.add_argument("--disk-gb", type=float, default=4000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.measure:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        measure: dict[str, Callable[[], Constants]] = {
            "ledger": measure_ledger,
            "networks": partial(measure_networks, options.cache_dir),
            "decoding": measure_decoding,
        }
        found = measure[options.measure]()
        keep(found, f"python scripts/cost_model.py --measure {options.measure}")
        print(json.dumps(found, indent=2))
        return 0
    c = read_constants()
    spread = options.gpus, options.gpu_tflops
    if options.json:
        print(
            json.dumps(
                {
                    "training": {name: training_set(n, c, *spread) for name, n in SIZES.items()},
                    "a million generated": {
                        name: generated_set(1e6, n, c, *spread) for name, n in SIZES.items()
                    },
                    "limits": limits(c, *spread, options.memory_gb, options.disk_gb),
                },
                indent=2,
            )
        )
    else:
        print(tables(c, *spread, options.memory_gb, options.disk_gb), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
