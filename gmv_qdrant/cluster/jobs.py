"""`ingest` and `value` on a cluster: Ray Data leads from reading tasks to workers; the driver writes the ledger.

Answers come back in the order of the images, so keys and labels are what the local engine gives. Ray starts a worker
that died anew and gives it the same chunk again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from gmv_qdrant.cluster import snapshot, wire
from gmv_qdrant.cluster.reading import messages
from gmv_qdrant.cluster.workers import Brief, IngestWorker, ValueWorker, Worker
from gmv_qdrant.errors import EngineError, SettingsError
from gmv_qdrant.images.records import Record
from gmv_qdrant.images.sources import Sources
from gmv_qdrant.ledger.runs import Run
from gmv_qdrant.pipeline import ingest as ingesting
from gmv_qdrant.pipeline import valuation as valuing
from gmv_qdrant.pipeline.context import Context
from gmv_qdrant.pipeline.loading import Embedder, load
from gmv_qdrant.pipeline.matching import Matches, require_training_images
from gmv_qdrant.pipeline.rerank_vectors import missing_rerank_vectors
from gmv_qdrant.pipeline.searching import Calibrated
from gmv_qdrant.settings import Settings
from gmv_qdrant.store.base import SearchParams

if TYPE_CHECKING:
    import ray.data

ROWS = {"cpu": 64, "gpu": 1024}
"""Images of a chunk, which is what a killed worker loses: seconds of a GPU, or minutes of a CPU with large networks."""
TOGETHER, PATIENCE = 4096, 5.0
"""Images and seconds after which answers are written: each transaction looks through all that the ledger holds."""
RETRIES = 20
"""Times that a chunk's worker may die before the run gives up: an image that kills its worker would do so for ever."""
SAMPLE = 32
"""Images that the driver embeds to measure recall with, as many as the local engine's first chunk has."""


def require(settings: Settings) -> None:
    """Raises `SettingsError` where a run can't be spread."""
    if settings.qdrant_url is None:
        raise SettingsError(
            "engine = 'ray' needs a Qdrant server: the embedded store belongs to one process. Move the collection with "
            "'gmv-qdrant migrate --to-server URL', or leave out --engine ray"
        )
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            f"engine = 'ray' needs the package ray ({error}): install the extra with pip install 'gmv-qdrant[ray]'"
        ) from None


def ingest(context: Context, run: Run, records: Sources, *, readmit: bool = False) -> None:
    """As `gmv_qdrant.pipeline.ingest.ingest`."""
    _ = context.store  # made, and ours, before anybody else looks for it
    book = ingesting.Book(context, run)
    brief = Brief(context.root, context.settings, context.ledger.path, run.epoch, readmit=readmit)
    tables = snapshot.of_ingest(context.ledger, records.paths)
    waiting: list[ingesting.Taken] = []
    last = time.monotonic()
    try:
        for answer in _answers(context, run, records, IngestWorker, brief, tables):
            if taken := answer.get("taken"):
                waiting.append(taken)
            if time.monotonic() - last > PATIENCE or sum(len(some.images) for some in waiting) >= TOGETHER:
                _write(book, waiting)
                last = time.monotonic()
    finally:
        _write(book, waiting)
    _drop_unnamed(context, ["training/rerank"])
    ingesting.quantize(context, run)


def _write(book: ingesting.Book, waiting: list[ingesting.Taken]) -> None:
    parts = list(waiting)
    waiting.clear()
    if parts:
        book.write(ingesting.Taken.together(parts))


def value(context: Context, run: Run, records: Sources, batch: str) -> None:
    """As `gmv_qdrant.pipeline.valuation.value`."""
    require_training_images(context)
    params = _search_params(context, run, records)
    book = valuing.Book(context, run, batch)
    brief = Brief(context.root, context.settings, context.ledger.path, run.epoch, batch=batch, params=params)
    missing = not ingesting.stores_rerank(context) or missing_rerank_vectors(context, 1) > 0
    tables = snapshot.of_value(context.ledger, images=missing)
    strangers: set[str] = set()
    for answer in _answers(context, run, records, ValueWorker, brief, tables):
        if "work" in answer:
            _keep_features(context, answer["features"])
            book.write(answer["work"], wire.items_of(answer["evidence"], Matches))
            strangers.update(answer["strangers"])
            if strangers:
                run.counts["unknown_points"] = len(strangers)
    _drop_unnamed(context, ["training/rerank", *context.generated_spaces])
    valuing.check_conservation(context, run)


def _search_params(context: Context, run: Run, records: Sources) -> SearchParams:
    """How hard all workers search: known, or measured on the first images."""
    calibrated = Calibrated(context, run)
    queries = np.empty((0, context.recall_shape.dim), dtype=np.float32)
    if calibrated.must_measure():
        first = [item for item in islice(records, SAMPLE) if isinstance(item, Record)]
        embedder = Embedder(context, views=context.views, rerank=False)
        told = Run(run.verb, run.epoch)  # the workers will say what is wrong with these images
        found = [image.recall for image in embedder.embed(told, list(load(context, told, first)))]
        queries = np.concatenate([queries, *found])
    return calibrated(queries)


def _keep_features(context: Context, tables: list[pa.Table]) -> None:
    """Rows that workers computed and the ledger lacks; two of them may have computed the same."""
    for rows in tables:
        with context.ledger.write() as con:
            con.register("computed", rows)
            con.execute(
                "INSERT INTO features BY NAME SELECT * FROM computed ANTI JOIN features USING (space, key)"
            )
            con.unregister("computed")


def _drop_unnamed(context: Context, spaces: Iterable[str]) -> None:
    """Shards that a killed worker wrote and its successor wrote otherwise, by the last bit."""
    for space in spaces:
        named = context.ledger.query(
            "SELECT DISTINCT shard FROM features WHERE space = $space", {"space": space}
        )
        files = context.space(space)
        files.drop(sorted(set(files.shards()) - set(named["shard"].to_pylist())))


# -- the cluster -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """How a run is spread: worker processes, the CPUs and GPUs of each, images of a chunk."""

    workers: int
    cpus: float
    gpus: float
    rows: int

    @classmethod
    def of(cls, settings: Settings, resources: dict[str, float]) -> Sizes:
        """One worker for each GPU; without GPUs, for each four CPUs. Never more than there is: that waits for ever."""
        cpus, gpus = resources.get("CPU", 1.0), resources.get("GPU", 0.0)
        if settings.device == "cpu":
            gpus = 0.0
        threads = settings.workers or (8 if gpus else 4)
        workers = settings.ray_workers or max(1, int(gpus) or int(cpus // threads))
        return cls(
            workers,
            cpus=min(threads, cpus / workers),
            gpus=min(1.0, gpus / workers),
            rows=ROWS["gpu" if gpus else "cpu"],
        )


@contextlib.contextmanager
def _cluster() -> Iterator[dict[str, float]]:
    """Resources of the cluster that this process is in, or ``RAY_ADDRESS`` names, or that is started here."""
    import ray

    ours = not ray.is_initialized()
    if ours:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray's core calls every pool of Ray Data's an error, for what they are made with may get lost: we hold it
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        except (ConnectionError, RuntimeError, OSError) as error:
            raise EngineError(
                f"no Ray cluster could be had ({_line(error)}): is it running, is RAY_ADDRESS right, and do both sides "
                "have the same RAY_AUTH_MODE and token?"
            ) from error
    quiet = logging.getLogger("ray.data")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings()
        ):  # advice for people who write pipelines: small inputs leave workers idle
            warnings.filterwarnings(
                "ignore", "The m..imum number of concurrent (tasks|actors) for", UserWarning
            )
            yield ray.cluster_resources()  # type: ignore[no-untyped-call]
    finally:
        quiet.setLevel(level)
        if ours:
            ray.shutdown()


def _answers(
    context: Context, run: Run, records: Sources, worker: type[Worker], brief: Brief, tables: snapshot.Tables
) -> Iterator[wire.Message]:
    """What the workers answer, chunk by chunk, in the order of the images."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    with _cluster() as resources:
        sizes = Sizes.of(context.settings, resources)
        brief = replace(brief, threads=max(1, int(sizes.cpus)))
        references = (
            ray.put(brief),
            ray.put(tables),
        )  # held until the end: a worker that is started anew asks for them
        try:
            for block in _pipeline(records, worker, references, sizes).iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=0
            ):
                for answer in wire.unpacked(block):
                    if "error" in answer:
                        raise answer["error"]
                    run.absorb(answer["told"])
                    yield answer
                    context.progress.advance(answer["images_seen"])
        except RayTaskError:  # a fault of this program, not of the cluster
            raise
        except RayError as error:
            raise EngineError(
                f"the Ray cluster gave up on this run ({_line(error)}): all that was written before is safe, run the "
                "command again when the cluster is well"
            ) from error


def _pipeline(
    records: Sources, worker: type[Worker], references: tuple[Any, Any], sizes: Sizes
) -> ray.data.Dataset:
    import ray.data
    from ray.data import Datasource, ReadTask
    from ray.data.block import BlockMetadata

    parts = records.parts()

    class Images(Datasource):
        """One reading task for each part of the sources; it looks at files, or streams a container's images."""

        def estimate_inmemory_data_size(self) -> None:
            return None

        def get_read_tasks(self, *_: Any, **__: Any) -> list[ReadTask]:
            unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(partial(messages, part, sizes.rows), unknown) for part in parts]

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # Ray Data's, of settings of its own
        images = ray.data.read_datasource(
            Images(),  # type: ignore[no-untyped-call]
            override_num_blocks=len(parts),
            concurrency=min(sizes.workers, len(parts)),
            ray_remote_args={"num_cpus": 0},
        )
        images.context.enable_progress_bars = False
        images.context.print_on_execution_start = False
        images.context.execution_options.preserve_order = True
        images.context.target_max_block_size = (
            1  # bytes: each chunk is a block, so a task; else small ones are joined
        )
        answers: ray.data.Dataset = images.map_batches(
            worker,
            fn_constructor_args=references,
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=sizes.workers, max_tasks_in_flight_per_actor=2),
            num_cpus=sizes.cpus,
            num_gpus=sizes.gpus,
            max_task_retries=RETRIES,
        )
        return answers


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
