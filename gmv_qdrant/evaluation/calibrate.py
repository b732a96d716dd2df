"""Calibrate: make probes of training images, match them like generated images, fit the value function to their parents.

The answer is to one question: of whom is this nearly a copy? (What a model would lose without an image is another:
`LOSS`.) The probes go through the same decoding, networks, recall and re-ranking as generated images do; nothing of
them is kept but the fit and its figures.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np

from gmv_qdrant.errors import ImageError, SettingsError
from gmv_qdrant.evaluation.fitting import fit
from gmv_qdrant.evaluation.parents import orphans_of_nobody, parent_figures
from gmv_qdrant.evaluation.probes import Recipe, make_probe, recipes
from gmv_qdrant.images.decode import decode
from gmv_qdrant.images.records import Record, Unusable
from gmv_qdrant.images.sources import read_uri
from gmv_qdrant.ledger.candidates import Matches
from gmv_qdrant.ledger.database import insert, utc_now
from gmv_qdrant.ledger.queries import LOSS
from gmv_qdrant.pipeline.assembly import Assembly
from gmv_qdrant.pipeline.embedding import Embedded, Loaded
from gmv_qdrant.pipeline.streams import batched, mapped
from gmv_qdrant.pipeline.value import find_evidence, require_training_images


def calibrate(
    parts: Assembly, *, name: str, probes: int, seed: int, k: int, null_distance: bool
) -> dict[str, Any]:
    """Fit a value function on probes and keep it in the ledger as the next version of ``name``; returns its figures.

    Raises `SettingsError` for a name with ``@`` in it, and when there is nothing to fit.
    """
    if not name or "@" in name or name == LOSS:
        reason = "that is the one built in" if name == LOSS else "'@' stands before its version"
        raise SettingsError(f"a calibration can't be called {name!r}: {reason}")
    run, ledger = parts.run, parts.ledger
    require_training_images(ledger)
    training = ledger.query(
        """SELECT t.training_key, min(s.label) AS label, min(s.uri) AS uri
        FROM training t JOIN sources s USING (training_key) WHERE t.version_withdrawn IS NULL
        GROUP BY t.training_key, t.point_id ORDER BY t.point_id"""
    ).to_pylist()
    wanted = recipes(probes, [row["label"] for row in training], seed)
    parts.progress.phase("calibrate", len(wanted))
    distances, parents, truths = [], [], []
    for recipe, matches in _matched(parts, wanted, [row["uri"] for row in training]):
        of_key = {
            training[row]["training_key"]: w for row, w in zip(recipe.parents, recipe.weights, strict=True)
        }
        padded = np.full(parts.settings.candidates, np.inf)
        padded[: len(matches.keys)] = matches.distances
        weights = np.zeros(parts.settings.candidates)
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
    functions: dict[str, dict[str, Any]] = {
        "before": {},
        "after": {"temperature": found.temperature, "null_distance": found.null_distance, "relative": True},
    }
    figures = {
        **{name: value for name, value in asdict(found).items() if name != "log_likelihood"},
        **{
            name: parent_figures(d, w, training=len(training), weights=truth, k=k, **function).as_dict()
            for name, function in functions.items()
        },
        "nobody_without_parents": orphans_of_nobody(d, w, k=k, **functions["after"])
        if null_distance
        else None,
    }
    with ledger.write() as con:
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
                "relative": [found.relative],
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


def _matched(parts: Assembly, wanted: list[Recipe], uris: list[str]) -> Iterator[tuple[Recipe, Matches]]:
    """Evidence of each probe that could be made and embedded; the rest is counted."""
    matcher, embedder = parts.matcher(), parts.generated_embedder(quality=False)

    def make(numbered: tuple[int, Recipe]) -> Loaded | Unusable:
        number, recipe = numbered
        images = []
        for row in recipe.parents:
            try:
                images.append(decode(read_uri(uris[row], parts.allowed)))
            except ImageError as error:
                return Unusable(uris[row], str(error), error.kind)
        buffer = io.BytesIO()
        make_probe(recipe, images, mirrored=parts.settings.views != "none").save(
            buffer, "PNG", compress_level=1
        )
        return Loaded.of(Record(uri=f"probe:{number}"), buffer.getvalue())

    for numbers in batched(range(len(wanted)), 64):
        probes = list(mapped(make, [(n, wanted[n]) for n in numbers], threads=parts.settings.workers))
        embedded = list(embedder(probe for probe in probes if isinstance(probe, Loaded)))
        # a probe is nobody's input: what can't be used is counted, and no row of the user's quarantine
        parts.run.counts["probes_left_out"] += sum(isinstance(one, Unusable) for one in (*probes, *embedded))
        images = [image for image in embedded if isinstance(image, Embedded)]
        if images:
            for image, matches in zip(images, find_evidence(images, matcher), strict=True):
                yield wanted[int(image.record.uri.partition(":")[2])], matches
        parts.progress.advance(len(numbers))
