"""The contact sheet: an image beside its contributors, or beneficiaries, as one PNG file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from gmv_qdrant.ledger.database import Readable
from gmv_qdrant.ledger.names import find_image
from gmv_qdrant.ledger.queries import ValueFunction, allowed_places
from gmv_qdrant.report.lettering import fit, wrap, write
from gmv_qdrant.report.page import STATEMENT, name, number, write_whole
from gmv_qdrant.report.queries import Row, beneficiaries, contributors, generated_names, training_names
from gmv_qdrant.report.thumbnails import LARGE, Picture, Thumbnails

MOST = 30
"""Images beside the first: more than that is a table's work."""
CELL, GAP, TEXT = 168, 18, 62
INK, SOFT, PAPER, RAISED = (29, 28, 26), (92, 88, 80), (253, 252, 249), (240, 236, 228)


@dataclass(frozen=True, slots=True)
class _Cell:
    picture: Picture
    lines: Sequence[str]


def write_sheet(
    root: Path, ledger: Readable, image: str, function: ValueFunction, target: Path, *, training: bool = False
) -> Path:
    """Write the sheet of an image named by URI, file name or id: the first 30 of its contributors or beneficiaries.

    Raises `SettingsError` when no image, or more than one, goes by that name, and when the file can't be written.
    """
    named = find_image(ledger, image, batch=None if training else function.batch, training=training)
    kind, key = named.kind, named.key
    thumbnails = Thumbnails(root, allowed_places(ledger))
    if kind == "generated":
        me = generated_names(ledger, [key])[key]
        rows = contributors(ledger, [key], function, MOST)[key]
        names = training_names(ledger, [row["training_key"] for row in rows])
        others = [(row, names[row["training_key"]]) for row in rows if row["training_key"] in names]
        title = f"Contributors of the generated image {name(me['uri'])}"
        about = [f"quality {number(me['quality'])}", f"batch {me['batch']}"]
    else:
        me = training_names(ledger, [key])[key]
        rows = beneficiaries(ledger, key, function, MOST)
        names = generated_names(ledger, [row["generated_key"] for row in rows])
        others = [(row, names[row["generated_key"]]) for row in rows]
        title = f"Generated images that credit the training image {name(me['uri'])}"
        about = [me["owner"] or "no owner named", me["label"] or ""]
    first = _Cell(thumbnails.get(me, LARGE), [name(me["uri"]), *about])
    cells = [_Cell(thumbnails.get(other, LARGE), _lines(row, other)) for row, other in others]
    buffer = io.BytesIO()
    _draw(title, first, cells).save(buffer, "PNG", optimize=True)
    return write_whole(target, buffer.getvalue(), "the contact sheet")


def _lines(row: Row, other: Row) -> list[str]:
    who = other.get("owner") or other.get("batch") or "no owner named"
    return [name(other["uri"]), who, f"d {number(row['distance'])} · {number(row['contribution'])}"]


def _draw(title: str, first: _Cell, cells: Sequence[_Cell]) -> Image.Image:
    """The image at the left, the others in rows of five at its right."""
    columns = min(5, max(1, len(cells)))
    rows = max(1, -(-len(cells) // columns))
    width = GAP * 2 + CELL + GAP * 2 + columns * (CELL + GAP)
    width = max(width, 720)
    height = GAP + 40 + rows * (CELL + TEXT + GAP) + 30
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    write(draw, (GAP, GAP), fit(title, 20, width - 2 * GAP), 20, INK)
    top = GAP + 40
    _cell(sheet, draw, first, GAP, top)
    line = GAP + CELL + GAP
    draw.line((line, top, line, height - 44), RAISED, 2)
    for index, cell in enumerate(cells):
        x = line + GAP + index % columns * (CELL + GAP)
        _cell(sheet, draw, cell, x, top + index // columns * (CELL + TEXT + GAP))
    if not cells:
        write(draw, (line + GAP, top), "none", 14, SOFT)
    statement = STATEMENT.partition(":")[0] + "."
    write(draw, (GAP, height - 30), fit(statement, 13, width - 2 * GAP), 13, SOFT)
    return sheet


def _cell(sheet: Image.Image, draw: ImageDraw.ImageDraw, cell: _Cell, x: int, y: int) -> None:
    if cell.picture.jpeg is None:
        draw.rectangle((x, y, x + CELL - 1, y + CELL - 1), RAISED)
        for index, line in enumerate(wrap(cell.picture.reason, 12, CELL - 16, lines=9)):
            write(draw, (x + 8, y + 8 + 16 * index), line, 12, SOFT)
    else:
        picture = Image.open(io.BytesIO(cell.picture.jpeg))
        scale = CELL / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        shown = picture.resize(size, Image.Resampling.BICUBIC)
        sheet.paste(shown, (x + (CELL - size[0]) // 2, y + (CELL - size[1]) // 2))
    for index, line in enumerate(cell.lines):
        colour = INK if index == 0 else SOFT
        write(draw, (x, y + CELL + 5 + 18 * index), fit(line, 13, CELL), 13, colour)
