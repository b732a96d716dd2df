"""Nearly copies: generated images beside their nearest training image, and training images beside each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from gmv_qdrant.ledger.database import Readable, insert, literal
from gmv_qdrant.pipeline.assembly import Assembly
from gmv_qdrant.pipeline.streams import batched
from gmv_qdrant.vectors.protocol import parse_point_id

NEIGHBOURS = 5
"""Of each training image that are kept."""
GROUP = 256


def copies(ledger: Readable, batch: str | None, level: float | None, top: int | None) -> pa.Table:
    """Generated images, the most unusually near first: see the macro of this name.

    level: only those that beat strangers at this share of false discoveries (``q_value``); None is all.
    """
    where = f"WHERE q_value <= {float(level)}" if level is not None else ""
    limit = f"LIMIT {int(top)}" if top is not None else ""
    return ledger.query(f"FROM copies(batch := {literal(batch)}) {where} {limit}")


def claims(ledger: Readable, top: int | None) -> pa.Table:
    """Near-duplicates among the training images of different owners, as far as `find_neighbours` has looked."""
    return ledger.query(f"FROM claims() {f'LIMIT {int(top)}' if top is not None else ''}")


def find_neighbours(parts: Assembly, sample: int | None) -> None:
    """The nearest other training images of ``sample`` of them (None: of all), into the table ``neighbours``.

    They are searched and re-ranked like generated images; no network is needed where vectors are kept.
    """
    ledger, run = parts.ledger, parts.run
    limit = f"LIMIT {int(sample)}" if sample is not None else ""
    rows = ledger.query(
        f"""SELECT training_key, point_id FROM training WHERE version_withdrawn IS NULL
        ORDER BY md5(point_id) {limit}"""
    ).to_pylist()
    parts.progress.phase("neighbours", len(rows))
    found = [one for group in batched(rows, GROUP) for one in _neighbours(parts, group)]
    with ledger.write() as con:
        con.execute("DELETE FROM neighbours")
        insert(
            con,
            "neighbours",
            {
                "training_key": pa.array([one[0] for one in found], pa.int32()),
                "neighbour_key": pa.array([one[1] for one in found], pa.int32()),
                "rank": pa.array([one[2] for one in found], pa.int16()),
                "distance": pa.array([one[3] for one in found], pa.float64()),
            },
        )
    run.counts["looked_at"] = len({one[0] for one in found})


def _neighbours(parts: Assembly, rows: list[dict[str, Any]]) -> Iterator[tuple[int, int, int, float]]:
    matcher = parts.matcher()
    keys = {str(row["point_id"]): int(row["training_key"]) for row in rows}
    there = matcher.training.require(keys.values())
    points = parts.spaces.store.retrieve([parse_point_id(point) for point in keys], with_vectors=True)
    recall = {
        key: point.vector
        for point in points
        if point.vector is not None and (key := keys[str(point.id)]) in there
    }
    parts.progress.advance(len(rows))
    if not recall:
        return
    mine = np.array(list(recall), dtype=np.int64)
    rerank = torch.as_tensor(matcher.training.read(mine)).cpu().numpy()
    for key, matches in zip(
        recall, matcher.match(np.stack(list(recall.values()))[:, None], rerank[:, None]), strict=True
    ):
        others = np.flatnonzero(matches.keys != key)[:NEIGHBOURS]
        for rank, at in enumerate(others.tolist(), start=1):
            yield key, int(matches.keys[at]), rank, float(matches.distances[at])
