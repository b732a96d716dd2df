"""The proof of quantization: what the embedded store's segments on disk really hold.

The engine's own ``info()`` counts a segment as indexed whether or not it is quantized, so the files are read
instead: ``segment.json``, the vectors and ``quantized.data``. Nothing here opens the shard, so any process
may ask while another one writes.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gmv_qdrant.errors import StoreError
from gmv_qdrant.text import digest
from gmv_qdrant.vectors.protocol import CollectionSpec, Quantization, StoreStatus

MIN_CODED = 256
"""Below this, codes save nothing: a product-quantization codebook alone has 256 centroids."""
HNSW_POINTS = 1_000_000
"""From this size on a graph is built over the codes; below it, scanning them all is as fast."""
FLOAT_BYTES = 4
_MATRIX_HEADER = 4
_KINDS: dict[str, Quantization] = {
    "product": "pq",
    "turbo": "turbo",
    "scalar": "scalar",
    "binary": "binary",
}


def tail_warrants(points: int, tail: int) -> bool:
    """Whether quantizing pays: the first time as soon as codes save anything, again (a full retraining) when
    more than 5,000 points and a tenth of all have no codes; until then they are scanned exactly."""
    if tail == points:
        return points >= MIN_CODED
    return tail > max(5_000, points // 10)


@dataclass(frozen=True, slots=True)
class Segment:
    """One immutable segment: how many live vectors it has, and how they are coded."""

    quantization: Quantization
    points: int
    code_bytes: int


def read_segments(shard: Path, spec: CollectionSpec) -> list[Segment]:
    """The built segments of the shard in the folder ``shard``; writable ones (the tail) are left out."""
    found = []
    folder = f"vector_storage-{spec.vector_name}" if spec.vector_name else "vector_storage"
    for description in sorted(shard.glob("segments/*/segment.json")):
        segment = description.parent
        try:
            config = json.loads(description.read_text())["config"]["vector_data"].get(spec.vector_name, {})
            matrix = segment / folder / "matrix.dat"
            stored = (matrix.stat().st_size - _MATRIX_HEADER) // (FLOAT_BYTES * spec.dim)
            gone = (segment / "id_tracker.deleted").read_bytes()
            deleted = int.from_bytes(gone, "little").bit_count()
        except FileNotFoundError:  # the tail, or a segment that went away while we read
            continue
        codes = segment / folder / "quantized.data"
        kind = next(iter(config.get("quantization_config") or {}), "")
        size = codes.stat().st_size if codes.exists() else 0
        found.append(
            Segment(_KINDS.get(kind, "none") if size else "none", stored - min(stored, deleted), size)
        )
    return found


def collection_dir(path: Path, name: str) -> Path:
    return path / name


def note_path(path: Path, name: str) -> Path:
    return path / f"{name}.json"


def write_note(path: Path, name: str, points: int, optimizer: int | None = None) -> None:
    """Leave the point count (as of the last flush) and the optimizing process for readers."""
    target = note_path(path, name)
    draft = target.with_suffix(".json.new")
    draft.write_text(json.dumps({"points": points, "optimizer": optimizer}))
    draft.replace(target)


def _read_note(path: Path, spec: CollectionSpec) -> dict[str, Any]:
    try:
        return dict(json.loads(note_path(path, spec.name).read_text()))
    except (OSError, ValueError):
        raise StoreError(
            f"there is no embedded collection {spec.name!r} in {path}: run `gmv-qdrant ingest` first."
        ) from None


def read_status(path: Path, spec: CollectionSpec) -> StoreStatus:
    """The status of ``spec``'s collection under the folder ``path``, as of its last flush.

    Works while another process writes. Raises `StoreError` when there is no such collection.
    """
    note = _read_note(path, spec)
    points = int(note["points"])
    segments = read_segments(collection_dir(path, spec.name), spec)
    coded = [s for s in segments if s.quantization != "none"]
    # While an optimizer swaps segments, old and new lie side by side: never count past the points.
    covered = min(points, _points([s for s in segments if s.quantization == spec.quantization]))
    coded_points = min(points, _points(coded))
    scanned_anyway = spec.quantization == "none" and points < HNSW_POINTS
    tail = 0 if scanned_anyway else points - covered
    state = _state(note, tail_warrants(points, tail), spec.quantization != "none" and not coded_points)
    return StoreStatus(
        engine="edge",
        version=importlib.metadata.version("qdrant-edge-py"),
        points=points,
        quantization=coded[0].quantization if coded else "none",
        coded_points=coded_points,
        tail_points=tail,
        code_bytes=sum(s.code_bytes for s in coded),
        vector_bytes=points * spec.dim * FLOAT_BYTES,
        state=state,
        approximate=bool(coded) or (points >= HNSW_POINTS and covered > 0),
        searched=digest(points, state, *sorted(map(dataclasses.astuple, segments))),
    )


def _points(segments: list[Segment]) -> int:
    return sum(segment.points for segment in segments)


def _state(note: dict[str, Any], warranted: bool, uncoded: bool) -> str:
    if note.get("optimizer") and _alive(int(note["optimizer"])):
        return "optimizing"
    return "pending" if warranted else "exact" if uncoded else "green"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
