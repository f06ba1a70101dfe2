"""A contact sheet: pictures in a grid with a label over each column, beside each row and under each picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIDE = 384  # pixels of a picture
MARGIN = 12  # pixels between and around the pictures
FONT_SIZE = 16  # pixels
LINE = 22  # pixels from one line to the next
PAPER, INK, FAINT = (255, 255, 255), (20, 20, 20), (238, 238, 238)


@dataclass(frozen=True, slots=True)
class Cell:
    """One place of a sheet."""

    pixels: NDArray[np.uint8] | None  # (h, w, 3), sRGB; None: an empty place
    caption: str = ""  # under the picture; lines are kept


def draw_sheet(
    grid: Sequence[Sequence[Cell]],
    *,
    columns: Sequence[str] = (),
    rows: Sequence[str] = (),
    title: str = "",
    side: int = SIDE,
) -> Image.Image:
    """Draw a contact sheet, RGB.

    Each picture is reduced to fit a square of `side` pixels; a smaller one keeps its size. A text that is wider than
    its place is cut off and ends in "...". Pillow's own font draws it, which has Latin letters only.

    Args:
        grid: the rows of the sheet, each with its cells from left to right; a short row ends in empty places.
        columns: a label for each column; none: no labels.
        rows: a label for each row; none: no labels.
        title: the line above all.
        side: pixels.
    """
    font = ImageFont.load_default(FONT_SIZE)
    count = max((len(row) for row in grid), default=0)
    left = MARGIN + (_widest(font, rows, most=side) + MARGIN if rows else 0)
    title_bottom = MARGIN + (LINE if title else 0)
    top = title_bottom + (LINE if columns else 0)
    captions = [max((len(cell.caption.splitlines()) for cell in row), default=0) for row in grid]
    heights = [side + lines * LINE + MARGIN for lines in captions]
    width = max(left + count * (side + MARGIN), MARGIN)
    sheet = Image.new("RGB", (width, max(top + sum(heights), top + MARGIN)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), _fit(font, title, width - 2 * MARGIN), fill=INK, font=font)
    for number, label in enumerate(columns[:count]):
        draw.text(
            (left + number * (side + MARGIN), title_bottom), _fit(font, label, side), fill=INK, font=font
        )
    for number, (row, height) in enumerate(zip(grid, heights, strict=True)):
        if number < len(rows):
            label = _fit(font, rows[number], left - 2 * MARGIN)
            draw.text((MARGIN, top + side // 2), label, fill=INK, font=font, anchor="lm")
        for place, cell in enumerate(row):
            x = left + place * (side + MARGIN)
            if cell.pixels is None:
                draw.rectangle((x, top, x + side - 1, top + side - 1), fill=FAINT)
            else:
                picture = Image.fromarray(cell.pixels)
                picture.thumbnail((side, side), Image.Resampling.LANCZOS)
                sheet.paste(picture, (x, top))
            for line, text in enumerate(cell.caption.splitlines()):
                at = (x, top + side + line * LINE)
                draw.text(at, _fit(font, text, side), fill=INK, font=font)
        top += height
    return sheet


def _widest(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, texts: Sequence[str], *, most: int) -> int:
    return min(most, max(int(font.getlength(text)) + 1 for text in texts))


def _fit(font: ImageFont.FreeTypeFont | ImageFont.ImageFont, text: str, width: int) -> str:
    """Return the text, or as much of its beginning as is at most `width` pixels wide with "..." behind it."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."
