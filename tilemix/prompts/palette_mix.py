"""A mix in the words of a palette, as captions of training pictures have it."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING

from tilemix.prompts.mix import ColorMix, ColorShare

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tilemix.colors.palette import Palette

SHARE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*([a-z][a-z -]*?)\s*", re.IGNORECASE)


def read_palette_mix(text: str, palette: Palette) -> ColorMix | None:
    """Return the mix in a text such as "ohwx_rubber_tile, 60% green apple, 40% TERCOT".

    Parts between commas that hold no percent sign are passed over. None: there is no share, a part is not of that
    form, or a color is not in the palette.
    """
    shares = []
    for part in text.split(","):
        if "%" not in part:
            continue
        match = SHARE.fullmatch(part)
        color = palette.find(match[2]) if match else None
        if match is None or color is None:
            return None
        shares.append(ColorShare(color.word, Decimal(match[1])))
    return ColorMix(tuple(shares)) if shares else None


def replace_palette_mix(text: str, percents: Mapping[str, int]) -> str:
    """Return a text whose first share is replaced by those given and whose other shares are gone."""
    mix = ", ".join(f"{percent}% {color}" for color, percent in percents.items())
    parts = [part.strip() for part in text.split(",")]
    first = next(number for number, part in enumerate(parts) if "%" in part)
    kept = [part for number, part in enumerate(parts) if "%" not in part or number == first]
    return ", ".join(mix if "%" in part else part for part in kept)
