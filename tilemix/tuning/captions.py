"""Captions against pictures: which of them name a mix that their picture does not show."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from tilemix.colors.cielab import delta_e_2000, srgb_to_lab
from tilemix.colors.hex import parse_hex
from tilemix.colors.palette import find_color
from tilemix.pictures.measure import measure_shares
from tilemix.prompts.mix import ColorMix, ColorShare
from tilemix.prompts.palette_mix import read_palette_mix, replace_palette_mix
from tilemix.system.atomic import write_atomically
from tilemix.tuning.pictures import SIDE_OF_CHECK, read_picture

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from tilemix.colors.palette import Palette
    from tilemix.tuning.pictures import CaptionedPicture

TOLERANCE = 7.0  # points; the ruler is less than 4 off on average over a mix
LEAST_SAID = 3.0  # percent; a color of the caption that shows less is not in the picture
LEAST_NEW = 5.0  # percent, of a color that the caption does not name
OFF = 13.5  # delta E 2000 from which another color is tried in a color's place; light moves one up to 12.8
MISSING = 0.5  # of what the caption says; a color that shows less may be one like it
LIKE = 30.0  # delta E 2000 from the missing color to those that are tried
CORRECTED = ".corrected"  # added to the name of a caption's file


@dataclass(frozen=True, slots=True)
class WrongCaption:
    """A caption, and what its picture shows instead."""

    path: Path  # the caption's file
    caption: str
    says: dict[str, float]  # word of the palette -> percent
    shows: dict[str, int]  # in sum 100, largest first

    def __str__(self) -> str:
        says, shows = (
            ", ".join(f"{percent:g}% {color}" for color, percent in mix.items())
            for mix in (self.says, self.shows)
        )
        return f"{self.path.name}: says {says}; shows {shows}"

    def write_corrected(self) -> Path:
        """Write the corrected caption beside the old one, with `.corrected` at the end of its name."""
        path = self.path.with_name(self.path.name + CORRECTED)
        write_atomically(path, replace_palette_mix(self.caption, self.shows).encode())
        return path


def check_captions(pictures: Iterable[CaptionedPicture], palette: Palette) -> list[WrongCaption]:
    """Return the captions that name another mix of the palette's colors than their pictures show.

    A caption without a mix in the palette's words is passed over.

    Raises:
        TrainingError: a picture cannot be read.
    """
    wrong = []
    for picture in pictures:
        mix = read_palette_mix(picture.caption, palette)
        if mix is None:
            continue
        says = {share.color: float(share.percent) for share in mix.shares}
        pixels, _ = read_picture(picture.path, shorter_side=SIDE_OF_CHECK)
        shows = find_mix(pixels, says, palette)
        if shows.keys() != says.keys() or any(abs(shows[color] - says[color]) > TOLERANCE for color in says):
            rounded = _round(shows)
            wrong.append(WrongCaption(picture.path.with_suffix(".txt"), picture.caption, says, rounded))
    return wrong


def find_mix(pixels: NDArray[np.uint8], says: dict[str, float], palette: Palette) -> dict[str, float]:
    """Return the percent of each color of the palette in a picture that should show those of `says`.

    Where other colors are seen, a color's granules are far from its own or hardly there, the palette's colors
    like them are measured too; what then shows next to nothing is left out.
    """
    words = list(says)
    measured = measure_shares(pixels, _mix_of(words), palette)
    tried = [*words, *measured.others]
    for word, error in measured.color_errors.items():
        if error > OFF:
            seen = srgb_to_lab(parse_hex(measured.seen[word]))
            nearest = min(palette.colors, key=lambda color: float(delta_e_2000(color.lab, seen)))
            tried.append(nearest.word)
    for word, percent in says.items():
        if not measured.others and measured.shares.get(word, percent) < MISSING * percent:
            own = find_color(palette, word)
            tried += [
                color.word for color in palette.colors if own and delta_e_2000(color.lab, own.lab) < LIKE
            ]
    tried = list(dict.fromkeys(tried))
    if tried != words:
        measured = measure_shares(pixels, _mix_of(tried), palette)
    kept = [
        word
        for word, percent in measured.shares.items()
        if percent >= (LEAST_SAID if word in words else LEAST_NEW)
    ]
    if kept and kept != tried:
        measured = measure_shares(pixels, _mix_of(kept), palette)
    return measured.shares


def _mix_of(words: list[str]) -> ColorMix:
    return ColorMix(tuple(ColorShare(word, Decimal(1)) for word in words))


def _round(shares: dict[str, float]) -> dict[str, int]:
    """Return whole percents that total 100, largest first, by the largest remainders."""
    scale = 100 / sum(shares.values())
    exact = {color: percent * scale for color, percent in shares.items()}
    whole = {color: int(percent) for color, percent in exact.items()}
    for color in sorted(exact, key=lambda color: whole[color] - exact[color])[: 100 - sum(whole.values())]:
        whole[color] += 1
    return dict(sorted(whole.items(), key=lambda item: -item[1]))
