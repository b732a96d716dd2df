"""Text on pictures, in whatever script a name is written: each character in the first font that has it.

Pillow's own font knows ASCII alone, so the system's fonts are asked first. Where none of them has a letter it is
written without its accent, and what can't be written at all is a question mark.
"""

from __future__ import annotations

import itertools
import unicodedata
from functools import cache

from PIL import ImageDraw, ImageFont

FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "Arial.ttf",
    "arial.ttf",
    "Helvetica.ttc",
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "msyh.ttc",
    "YuGothM.ttc",
    "malgun.ttf",
    "Arial Unicode.ttf",
    "NotoSansArabic-Regular.ttf",
    "NotoSansHebrew-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "NotoSansThai-Regular.ttf",
)
"""Files that Linux, macOS and Windows have in their folders of fonts."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Runs = list[tuple[Font, str]]


@cache
def _fonts(size: int) -> list[Font]:
    """Those of `FONTS` that are here, and Pillow's own."""
    found: list[Font] = []
    for file in FONTS:
        try:
            found.append(ImageFont.truetype(file, size))
        except OSError:
            continue
    return [*found, ImageFont.load_default(size)]


@cache
def _has(font: Font, character: str) -> bool:
    if character == " ":
        return True
    return bytes(font.getmask(character)) != bytes(font.getmask("\U0010ffff"))


@cache
def _choice(size: int, character: str) -> tuple[Font, str]:
    plain = unicodedata.normalize("NFKD", character)[:1]
    for written in (character, plain, "?"):
        for font in _fonts(size):
            if _has(font, written):
                return font, written
    return _fonts(size)[-1], "?"


def _runs(text: str, size: int) -> Runs:
    """The text in pieces of one font each."""
    chosen = [_choice(size, character) for character in unicodedata.normalize("NFC", text)]
    return [
        (font, "".join(written for _, written in run))
        for font, run in itertools.groupby(chosen, key=lambda choice: choice[0])
    ]


def width(text: str, size: int) -> float:
    """Pixels from the first character's left to the last one's right."""
    return sum(font.getlength(run) for font, run in _runs(text, size))


def write(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, colour: tuple[int, int, int]
) -> None:
    """One line of text, its left upper corner at ``at``."""
    x, y = at
    for font, run in _runs(text, size):
        draw.text((x, y + size), run, colour, font, anchor="ls")  # all fonts stand on one line
        x += font.getlength(run)


def fit(text: str, size: int, most: float) -> str:
    """The text in one line of at most so many pixels, cut with an ellipsis."""
    text = " ".join(text.split())
    if width(text, size) <= most:
        return text
    while text and width(text + "…", size) > most:
        text = text[:-1]
    return text + "…"


def wrap(text: str, size: int, most: float, lines: int) -> list[str]:
    """The text in lines of at most so many pixels, broken at spaces where there are any."""
    found: list[str] = []
    rest = " ".join(text.split())
    while rest and len(found) < lines:
        cut = len(fit(rest, size, most).removesuffix("…"))
        at = rest.rfind(" ", 0, cut + 1) if cut < len(rest) else cut
        at = at if at > 0 else max(cut, 1)
        found.append(rest[:at])
        rest = rest[at:].lstrip()
    return found
