"""Workspaces with rows straight in the ledger: any number of images, no networks, no store."""

from __future__ import annotations

import json
from pathlib import Path

from gmv_qdrant.workspace import Workspace


def synthetic(
    folder: Path,
    *,
    generated: int,
    training: int = 300,
    matches: int = 30,
    owners: int = 7,
    images: bool = False,
) -> Workspace:
    """A workspace whose ledger has so many rows; with ``images``, small PNG files stand behind them.

    Distances grow with the rank, qualities are spread over (0.1, 0.9), and everything follows from the row's number.
    """
    workspace = Workspace.init(
        folder, encoder="pixels:8", distance="l2@8", quality="piqe", candidates=matches
    )
    uri = f"{folder}/files/"
    with workspace.ledger.write() as con:
        con.execute(
            f"""INSERT INTO training (training_key, point_id, width, height, version_added)
            SELECT i, 'point-' || i, 8, 8, 1 FROM range(1, {training + 1}) r(i)"""
        )
        con.execute(
            f"""INSERT INTO sources (training_key, uri, owner, label)
            SELECT i, '{uri}training-' || i || '.png', 'owner ' || i % {owners}, 'label ' || i % 10
            FROM range(1, {training + 1}) r(i)"""
        )
        con.execute(
            f"""INSERT INTO generated (generated_key, point_id, content_hash, uri, batch, label, quality, recall_radius,
            version_valued) SELECT j, 'made-' || j, 'hash-' || j, '{uri}generated-' || j || '.png', 'batch ' || j % 2,
            'label ' || j % 10, 0.1 + 0.8 * (hash(j) % 1000) / 1000, 1.0, 1 FROM range(1, {generated + 1}) r(j)"""
        )
        con.execute(
            f"""INSERT INTO matches (generated_key, training_key, rank, distance, view)
            SELECT j, 1 + (j * 31 + r * 7 + hash(j // 10) % 100) % {training}, r,
            0.2 + 0.2 * (hash(j) % 100) / 100 + 0.01 * r, 0
            FROM range(1, {generated + 1}) a(j), range(1, {min(matches, training) + 1}) b(r) ORDER BY j, r"""
        )
        con.execute(
            """INSERT INTO runs (run_id, verb, started_at, training_version, settings, status)
            VALUES ('made', 'ingest', TIMESTAMP '2026-01-01', 1, ?, 'done')""",
            [json.dumps({"request": {"paths": [f"{folder}/files"]}})],
        )
        workspace.ledger.set_meta(con, training_version=1)
    if images:
        _draw(folder / "files", training, generated)
    return workspace


def _draw(folder: Path, training: int, generated: int) -> None:
    from PIL import Image

    folder.mkdir(exist_ok=True)
    for kind, count in (("training", training), ("generated", generated)):
        for i in range(1, count + 1):
            Image.new("RGB", (8, 8), (i * 37 % 256, i * 91 % 256, 40)).save(folder / f"{kind}-{i}.png")
