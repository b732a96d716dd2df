"""Calibrate: make probes of training images, match them like generated images, fit the value function to their parents.

The probes go through the same decoding, networks, recall and re-ranking as generated images do; nothing of
them is kept but the fit and its figures.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from gmv_qdrant.errors import ImageError, SettingsError
from gmv_qdrant.evaluation.calibration import fit, parent_figures
from gmv_qdrant.evaluation.probes import Recipe, make_probe, recipes
from gmv_qdrant.images.decode import decode
from gmv_qdrant.images.records import Record, content_hash
from gmv_qdrant.images.sources import read_uri
from gmv_qdrant.ledger.database import insert, utc_now
from gmv_qdrant.ledger.runs import Run
from gmv_qdrant.pipeline.context import Context
from gmv_qdrant.pipeline.loading import Embedder, Loaded
from gmv_qdrant.pipeline.matching import Matcher, Matches, require_training_images
from gmv_qdrant.pipeline.streams import batched, mapped


def calibrate(
    context: Context, run: Run, *, name: str, probes: int, seed: int, k: int, null_distance: bool
) -> dict[str, Any]:
    """Fit a value function on probes and keep it in the ledger as the next version of ``name``; returns its figures.

    Raises `SettingsError` for a name with ``@`` in it, and when there is nothing to fit.
    """
    if not name or "@" in name:
        raise SettingsError(f"a calibration can't be called {name!r}: '@' stands before its version")
    require_training_images(context)
    training = context.ledger.query(
        """SELECT t.training_key, any_value(t.label) AS label, min(s.uri) AS uri
        FROM training t JOIN sources s USING (training_key) WHERE t.version_withdrawn IS NULL
        GROUP BY t.training_key, t.point_id ORDER BY t.point_id"""
    ).to_pylist()
    wanted = recipes(probes, [row["label"] for row in training], seed)
    context.progress.phase("calibrate", len(wanted))
    distances, parents, truths = [], [], []
    for recipe, matches in _matched(context, run, wanted, [row["uri"] for row in training]):
        of_key = {
            training[row]["training_key"]: w for row, w in zip(recipe.parents, recipe.weights, strict=True)
        }
        padded = np.full(context.settings.candidates, np.inf)
        padded[: len(matches.keys)] = matches.distances
        weights = np.zeros(context.settings.candidates)
        weights[: len(matches.keys)] = [of_key.get(key, 0.0) for key in matches.keys.tolist()]
        distances.append(padded)
        parents.append(weights)
        truths.append([*recipe.weights, 0.0][:2])
    if not distances:
        raise SettingsError(
            "no probe could be made: the training images can't be read any more from their sources"
        )
    d, w, truth = np.stack(distances), np.stack(parents), np.array(truths)
    with run.timed("fit"):
        found = fit(d, w, null_distance=null_distance)
    before, after = (
        parent_figures(d, w, training=len(training), weights=truth, k=k, temperature=t, null_distance=none)
        for t, none in ((1.0, None), (found.temperature, found.null_distance))
    )
    figures = {
        "probes": found.probes,
        "temperature": found.temperature,
        "null_distance": found.null_distance,
        "lapse": found.lapse,
        "at_bound": found.at_bound,
        "before": before.as_dict(),
        "after": after.as_dict(),
    }
    with context.ledger.write() as con:
        version = con.execute(
            "SELECT coalesce(max(version), 0) + 1 FROM calibrations WHERE name = ?", [name]
        ).fetchall()[0][0]
        insert(
            con,
            "calibrations",
            {
                "name": [name],
                "version": [version],
                "temperature": [found.temperature],
                "null_distance": [found.null_distance],
                "relative": [False],
                "fitted_at": [utc_now()],
                "settings": [
                    json.dumps(
                        {"probes": probes, "seed": seed, "k": k, "training_version": run.training_version}
                    )
                ],
                "figures": [json.dumps(figures, default=str)],
            },
        )
    run.counts["probes"] = found.probes
    return {"calibration": f"{name}@{version}", **figures}


def _matched(
    context: Context, run: Run, wanted: list[Recipe], uris: list[str]
) -> Iterator[tuple[Recipe, Matches]]:
    """Evidence of each probe that could be made; the rest is quarantined with the parent that couldn't be read."""
    matcher = Matcher(context, run)
    embedder = Embedder(context, views=context.views)

    def make(numbered: tuple[int, Recipe]) -> Loaded | tuple[str, str]:
        number, recipe = numbered
        images = []
        for row in recipe.parents:
            try:
                images.append(decode(read_uri(uris[row], context.allowed)))
            except ImageError as error:
                return uris[row], str(error)
        buffer = io.BytesIO()
        make_probe(recipe, images).save(buffer, "PNG", compress_level=1)
        data = buffer.getvalue()
        return Loaded(Record(uri=f"probe:{number}"), data, content_hash(data))

    for numbers in batched(range(len(wanted)), 64):
        made = []
        for probe in mapped(context.pool, make, [(n, wanted[n]) for n in numbers], 64):
            if isinstance(probe, Loaded):
                made.append(probe)
            else:
                run.quarantine(*probe)
        embedded = list(embedder.embed(run, made))
        for group in batched(embedded, matcher.group):
            recall = np.stack([item.recall for item in group])
            rerank = np.stack([_stored(context, item.rerank) for item in group if item.rerank is not None])
            for item, matches in zip(group, matcher.match(recall, rerank), strict=True):
                yield wanted[int(item.loaded.record.uri.partition(":")[2])], matches
        context.progress.advance(len(numbers))


def _stored(context: Context, vectors: np.ndarray) -> np.ndarray:
    """Vectors with the rounding that a feature file gives them, so that probes are treated like generated images."""
    storage = context.distance.storage
    return storage.unpack(storage.pack(vectors))
