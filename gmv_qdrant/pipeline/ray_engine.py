"""Reading, decoding and the networks on a Ray cluster; the driver writes points, rows and ledger.

Workers are stateless: they get chunks of records and give vectors back. Ray starts a worker that died anew and gives it
the same chunk again, so a killed worker costs time and nothing else. Answers come in the order of the records, so keys,
labels and quarantine are those of the local engine.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gmv_qdrant.errors import ModelError, SettingsError
from gmv_qdrant.images.records import Record, Unusable
from gmv_qdrant.models.verified import Models
from gmv_qdrant.pipeline.embedding import Content, Embedder, KnownContents, embed_records
from gmv_qdrant.pipeline.streams import batched
from gmv_qdrant.settings import Settings

ROWS = {"cpu": 64, "gpu": 512}
"""Images of a chunk, which is what a killed worker loses: seconds of a GPU, or minutes of a CPU with large networks."""
AHEAD = 2
"""Chunks that a worker has at a time, so that it never waits for the next."""
RETRIES = 20
"""Times that a chunk's worker may die before the run gives up: an image that kills its worker would do so for ever."""
THREADS = {"cpu": 4, "gpu": 8}
"""Decoding threads of a worker, where the settings don't say."""

Items = list[Record | Unusable]


class Worker:
    """One process with the networks, which it verifies against the ledger's fingerprint when the first chunk comes."""

    def __init__(
        self, settings: Settings, fingerprint: Mapping[str, Any], options: Mapping[str, Any]
    ) -> None:
        self._settings, self._fingerprint, self._options = settings, dict(fingerprint), dict(options)
        self._embedder: Embedder | None = None

    def embed(self, chunk: Items) -> list[Content | Unusable]:
        if self._embedder is None:
            quality = bool(self._options.get("quality"))
            models = Models.verified(self._settings, self._fingerprint, quality=quality)
            settings = self._settings
            self._embedder = Embedder(
                models, batch_size=settings.batch_size, threads=settings.workers, **self._options
            )
        return embed_records(chunk, self._embedder, lambda hashes: set(), self._settings.workers)


@dataclass(frozen=True, slots=True)
class RayEngine:
    """An `Engine` of the pipelines. options: of the `Embedder`.

    Contents that the ledger knows under another name are embedded again: workers don't see the ledger.
    """

    settings: Settings
    fingerprint: Mapping[str, Any]
    options: Mapping[str, Any]

    def __call__(self, chunks: Iterable[Items], known: KnownContents) -> Iterator[list[Content | Unusable]]:
        """Raises `ModelError` when the cluster gives up, `SettingsError` when there is none."""
        ray = _ray()
        with _cluster(ray) as resources:
            kind, workers = self._workers(ray, resources)
            count = len(workers)
            parts = (part for chunk in chunks for part in batched(chunk, ROWS[kind]))
            turns = itertools.cycle(workers)
            waiting = deque(next(turns).embed.remote(part) for part in itertools.islice(parts, AHEAD * count))
            try:
                while waiting:
                    yield ray.get(waiting.popleft())
                    waiting.extend(next(turns).embed.remote(part) for part in itertools.islice(parts, 1))
            except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError) as error:
                raise ModelError(
                    f"the Ray cluster gave up on this run ({_line(error)}): all that was written before is safe, run "
                    "the command again when the cluster is well"
                ) from error

    def _workers(self, ray: Any, resources: Mapping[str, float]) -> tuple[str, list[Any]]:
        """What they compute on, ``cpu`` or ``gpu``; and as many as the cluster has room for, or the settings say."""
        gpus = 0.0 if self.settings.device == "cpu" else resources.get("GPU", 0.0)
        kind = "gpu" if gpus else "cpu"
        threads = self.settings.workers or THREADS[kind]
        cpus = resources.get("CPU", 1.0)
        count = self.settings.ray_workers or max(1, int(gpus) or int(cpus // threads))
        make = ray.remote(Worker).options(
            num_cpus=min(threads, max(cpus - 1, 0.5) / count),  # more than there is waits for ever
            num_gpus=min(1.0, gpus / count),
            max_restarts=-1,
            max_task_retries=RETRIES,
        )
        settings = self.settings.replaced(workers=threads, qdrant_api_key=None)
        return kind, [make.remote(settings, self.fingerprint, self.options) for _ in range(count)]


def _ray() -> Any:
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise SettingsError(
            f"engine = 'ray' needs the package ray ({error}): install it with pip install 'gmv-qdrant[ray]'"
        ) from None
    return ray


@contextlib.contextmanager
def _cluster(ray: Any) -> Iterator[dict[str, float]]:
    """Resources of the cluster that this process is in, or RAY_ADDRESS names, or that is started here for the run."""
    ours = not ray.is_initialized()
    if ours:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        except (ConnectionError, RuntimeError, OSError) as error:
            raise SettingsError(
                f"no Ray cluster could be had ({_line(error)}): is it running, is RAY_ADDRESS right, and do both sides "
                "have the same RAY_AUTH_MODE and token?"
            ) from error
    try:
        yield ray.cluster_resources()
    finally:
        if ours:
            ray.shutdown()


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
