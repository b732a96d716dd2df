"""Re-rank vectors of training images: read from their matrix; computed, once, where they were never kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch

from gmv_qdrant.errors import ImageError
from gmv_qdrant.images.decode import decode
from gmv_qdrant.images.records import Record, Unusable
from gmv_qdrant.images.sources import read_uri
from gmv_qdrant.ledger.database import Ledger
from gmv_qdrant.ledger.runs import Run
from gmv_qdrant.models.base import Encoder
from gmv_qdrant.models.registry import NONE
from gmv_qdrant.models.verified import Models
from gmv_qdrant.pipeline.embedding import Loaded, encode_each, forward, unusable
from gmv_qdrant.pipeline.spaces import Spaces
from gmv_qdrant.pipeline.streams import Progress, batched, mapped
from gmv_qdrant.settings import Settings
from gmv_qdrant.vectors.device_rows import DeviceRows
from gmv_qdrant.vectors.protocol import parse_point_id

MEMORY_BYTES = 1 << 30
"""Room for vectors that are too large to be kept on disk."""
BATCH = 64
"""Images that are decoded before the network works on them."""

Make = Callable[[Sequence[int]], Iterator[tuple[int, np.ndarray]]]
"""Training keys -> key and float32 ``(dim,)`` vector of those that could be made."""


class TrainingVectors(Protocol):
    """What matching asks of the training images."""

    def keys(self, points: Iterable[str]) -> dict[str, int]:
        """Training keys of those of ``points`` that are training images."""
        ...

    def require(self, keys: Iterable[int]) -> set[int]:
        """Make the vectors of these available; returns the keys of those that are."""
        ...

    def read(self, keys: np.ndarray) -> np.ndarray | torch.Tensor:
        """float32 ``(n, dim)``, of keys that `require` returned; a tensor where they are on a device already."""
        ...


class KeptVectors:
    """`TrainingVectors` of a workspace.

    make: for vectors that may lack a row, because a collection was adopted or they are too large to be kept; None
    where every image has its row. keep: write down what was made. device: where vectors are compared.
    """

    def __init__(
        self,
        ledger: Ledger,
        spaces: Spaces,
        make: Make | None = None,
        *,
        keep: bool = True,
        device: str = "cpu",
    ) -> None:
        self._ledger = ledger
        self._matrix = spaces.training
        self._shape = spaces.rerank
        self._make = make
        self._keep = keep and self._matrix is not None
        self._made: OrderedDict[int, np.ndarray] = OrderedDict()
        """Packed vectors that aren't in the matrix."""
        self._on_device = DeviceRows(self._matrix, device) if self._matrix is not None else None

    def keys(self, points: Iterable[str]) -> dict[str, int]:
        rows = self._ledger.query(
            "SELECT point_id, training_key FROM training JOIN points USING (point_id) WHERE version_withdrawn IS NULL",
            points=pa.table({"point_id": pa.array(list(points), pa.string())}),
        )
        return dict(zip(rows["point_id"].to_pylist(), rows["training_key"].to_pylist(), strict=True))

    def require(self, keys: Iterable[int]) -> set[int]:
        wanted = set(keys)
        if self._make is None:
            return wanted
        missing = sorted(key for key in wanted - self._made.keys() if not self._has(key))
        if missing:
            self._forget(wanted)
            made = list(self._make(missing))
            self._take([key for key, _ in made], [vector for _, vector in made])
            wanted -= set(missing) - {key for key, _ in made}
        return wanted

    def read(self, keys: np.ndarray) -> np.ndarray | torch.Tensor:
        made = np.isin(keys, np.fromiter(self._made, dtype=np.int64, count=len(self._made)))
        if self._on_device is not None and not made.any():
            return self._on_device.read(keys)
        vectors = np.empty((len(keys), self._shape.dim), dtype=np.float32)
        if self._matrix is not None and not made.all():
            vectors[~made] = self._matrix.read(keys[~made])
        for place in np.flatnonzero(made):
            vectors[place] = self._shape.storage.unpack(self._made[int(keys[place])])
        return vectors

    def _has(self, key: int) -> bool:
        return self._matrix is not None and bool(self._matrix.has([key])[0])

    def _take(self, keys: list[int], vectors: list[np.ndarray]) -> None:
        if not keys:
            return
        if self._keep and self._matrix is not None:
            self._matrix.write(keys, np.stack(vectors))
        else:
            self._made.update(zip(keys, self._shape.storage.pack(np.stack(vectors)), strict=True))

    def _forget(self, in_use: set[int]) -> None:
        """Those that aren't asked for go when there are too many, the oldest first."""
        for key in list(self._made):
            if len(self._made) * self._shape.bytes <= MEMORY_BYTES:
                return
            if key not in in_use:
                del self._made[key]


def may_lack_rows(spaces: Spaces) -> bool:
    return spaces.training is None or not spaces.owned


def missing_rows(ledger: Ledger, spaces: Spaces, images: int, candidates: int) -> int:
    """How many re-rank vectors valuing so many images will compute at most; 0 where every image has its row."""
    if not may_lack_rows(spaces):
        return 0
    keys = ledger.query("SELECT training_key FROM training WHERE version_withdrawn IS NULL")[
        "training_key"
    ].to_numpy()
    there = int(spaces.training.has(keys).sum()) if spaces.training else 0
    return min(len(keys) - there, images * candidates * spaces.views)


def maker(
    ledger: Ledger,
    spaces: Spaces,
    settings: Settings,
    models: Callable[[], Models],
    allowed: Sequence[str],
    run: Run,
    progress: Progress,
) -> Make:
    """How missing vectors are made: from the store, where that has them, and else from the source images.

    models: called when a network is needed, and not before. allowed: where images may be read from. What can't be made
    is quarantined.
    """

    def make(keys: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        with run.timed("missing re-rank vectors"):
            left = set(keys)
            for key, vector in stored_vectors(ledger, spaces, settings, keys):
                left.discard(key)
                run.counts["read" if spaces.stored_rerank else "computed"] += 1
                yield key, vector
            if not left or settings.distance == NONE:
                return
            network = models()
            progress.phase("missing re-rank vectors", len(left))
            for key, found in embed_sources(
                ledger, sorted(left), network.rerank, network.device, settings, allowed, progress
            ):
                if isinstance(found, Unusable):
                    reason = f"its re-rank vector can't be computed: {found.reason}"
                    run.quarantine(found.uri, reason, found.kind)
                else:
                    run.counts["computed"] += 1
                    yield key, found

    return make


def stored_vectors(
    ledger: Ledger, spaces: Spaces, settings: Settings, keys: Sequence[int]
) -> Iterator[tuple[int, np.ndarray]]:
    """Re-rank vectors that the store has: its second vector, or, without re-ranking, the recall embedding."""
    store = spaces.store if settings.distance == NONE else spaces.stored_rerank
    if store is None:
        return
    rows = ledger.query(
        "SELECT point_id, training_key FROM training JOIN wanted USING (training_key)",
        wanted=pa.table({"training_key": pa.array(keys, pa.int32())}),
    ).to_pylist()
    of_point = {parse_point_id(row["point_id"]): row["training_key"] for row in rows}
    for point in store.retrieve(list(of_point), with_vectors=True):
        if point.vector is not None and (length := np.linalg.norm(point.vector)) > 0:
            yield of_point[point.id], point.vector / length


def embed_sources(
    ledger: Ledger,
    keys: Sequence[int],
    encoder: Encoder,
    device: str,
    settings: Settings,
    allowed: Sequence[str],
    progress: Progress,
) -> Iterator[tuple[int, np.ndarray | Unusable]]:
    """What ``encoder`` makes of training images, float32 ``(dim,)``, from the first source of each that can be read."""
    rows = ledger.query(
        """SELECT training_key AS key, any_value(content_hash) AS hash, list(uri ORDER BY uri) AS uris
        FROM training JOIN sources USING (training_key) JOIN wanted USING (training_key) GROUP BY training_key""",
        wanted=pa.table({"training_key": pa.array(keys, pa.int32())}),
    ).to_pylist()
    network = forward(encoder, device, settings.batch_size)

    def prepare(row: dict[str, Any]) -> torch.Tensor | Unusable:
        loaded = still_the_same(row, allowed)
        if isinstance(loaded, Unusable):
            return loaded
        try:
            return encoder.prepare(decode(loaded.data))[None]
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this image's
            return unusable(loaded.record.uri, error, "can't be decoded", "damaged")

    prepared = zip(rows, mapped(prepare, rows, threads=settings.workers, ahead=2 * BATCH), strict=True)
    for batch in batched(prepared, BATCH):
        tensors = [tensor for _, tensor in batch if isinstance(tensor, torch.Tensor)]
        vectors = iter(encode_each(network, tensors) if tensors else [])
        for row, item in batch:
            done = next(vectors) if isinstance(item, torch.Tensor) else item
            if isinstance(done, Exception):
                done = unusable(row["uris"][0], done, "can't be embedded", "embedding")
            yield row["key"], done if isinstance(done, Unusable) else done[0]
        progress.advance(len(batch))


def still_the_same(row: dict[str, Any], allowed: Sequence[str]) -> Loaded | Unusable:
    """An image from the first of its ``uris`` that can be read and has the bytes of ``hash`` (None: not known)."""
    reason, kind = "no source of this image is known", "unreadable"
    for uri in row["uris"]:
        try:
            loaded = Loaded.of(Record(uri), read_uri(uri, allowed))
        except ImageError as error:
            reason, kind = str(error), error.kind
            continue
        if row["hash"] in (None, loaded.hash):
            return loaded
        reason, kind = "this is no longer the image that was ingested", "changed"
    return Unusable(row["uris"][0] if row["uris"] else "", reason, kind)
