"""Every mix of some colors in steps: how many there are, and one after the other.

`MixRange(("red", "black", "pearl"), step=50)` has six: 100% of each color, and 50% of each of two.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from itertools import combinations
from math import comb
from typing import TYPE_CHECKING

from tilemix.colors.palette import chart_palette
from tilemix.errors import InputError, MixError, PromptError
from tilemix.prompts.mix import ColorMix, ColorShare
from tilemix.prompts.reading import read_mix

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tilemix.colors.palette import Palette

logger = logging.getLogger(__name__)

HUNDRED = Decimal(100)
TENTH = Decimal("0.1")  # the finest share of a mix


@dataclass(frozen=True, slots=True)
class MixRange:
    """Which mixes: of these colors, with shares that are multiples of `step`.

    Raises:
        InputError: the step does not divide 100, a number is out of its limits, or there is no such mix.
    """

    colors: tuple[str, ...]
    step: Decimal = Decimal(10)  # percent
    least_share: Decimal = Decimal(10)  # percent, of each color in a mix
    fewest_colors: int = 1
    most_colors: int = 3

    def __post_init__(self) -> None:
        if not TENTH <= self.step <= HUNDRED or HUNDRED % self.step or self.step % TENTH:
            raise InputError("mixes-step", typed=str(self.step)[:40])
        if not 0 <= self.least_share <= HUNDRED:
            raise InputError("mixes-least-share", typed=str(self.least_share)[:40])
        if not 1 <= self.fewest_colors <= self.most_colors:
            raise InputError("mixes-color-counts", low=self.fewest_colors, high=self.most_colors)
        if not self.count():
            raise InputError(
                "mixes-none",
                colors=len(self.colors),
                low=self.fewest_colors,
                high=self.most_colors,
                least=f"{max(self.least_share, self.step):g}",
            )

    @property
    def _steps(self) -> int:
        """How many steps a whole mix has."""
        return int(HUNDRED / self.step)

    @property
    def _fewest_steps(self) -> int:
        """How many steps each share has at least."""
        return max(1, int((self.least_share / self.step).to_integral_value(ROUND_CEILING)))

    @property
    def _counts(self) -> range:
        """How many colors a mix may have."""
        most = min(self.most_colors, len(self.colors), self._steps // self._fewest_steps)
        return range(self.fewest_colors, most + 1)

    def count(self) -> int:
        """Return how many mixes there are, without making them."""
        spare = {count: self._steps - count * self._fewest_steps for count in self._counts}
        return sum(
            comb(len(self.colors), count) * comb(spare[count] + count - 1, count - 1)
            for count in self._counts
        )

    def __iter__(self) -> Iterator[ColorMix]:
        """Yield every mix once: those of few colors first, in each the largest share first."""
        for count in self._counts:
            for colors in combinations(self.colors, count):
                for steps in _compose(self._steps, count, self._fewest_steps):
                    shares = sorted(zip(colors, steps, strict=True), key=lambda share: -share[1])
                    yield ColorMix(tuple(ColorShare(color, step * self.step) for color, step in shares))


def pick_colors(names: Sequence[str] | None, palette: Palette | None) -> tuple[str, ...]:
    """Return the words of the named colors; of all colors of the palette, or of the chart's basic ones, for None.

    A name is read as in a mix, in any language, and a nearest color is logged.

    Raises:
        InputError: a name is not that of one color, or the palette has no color near it, or it stands twice.
    """
    if names is None:
        return tuple(color.word for color in (palette or chart_palette()).colors)
    words: list[str] = []
    for name in names:
        word = _read_color(name, palette)
        if word in words:
            raise InputError("mixes-color-twice", color=word)
        words.append(word)
    return tuple(words)


def _read_color(name: str, palette: Palette | None) -> str:
    try:
        read = read_mix(f"100% {name}", palette)
    except (MixError, PromptError):
        read = None
    if read is None or read.sent is None or len(read.sent.shares) != 1 or read.head or read.tail:
        known = ", ".join(color.word for color in (palette or chart_palette()).colors)
        raise InputError("mixes-unknown-color", typed=name[:40], known=known)
    for note in read.notes:
        logger.warning("%s", note)
    return read.sent.shares[0].color


def _compose(total: int, count: int, least: int) -> Iterator[tuple[int, ...]]:
    """Yield every tuple of `count` integers of at least `least` that total `total`, largest first."""
    if count == 1:
        if total >= least:
            yield (total,)
        return
    for first in range(total - (count - 1) * least, least - 1, -1):
        for rest in _compose(total - first, count - 1, least):
            yield (first, *rest)
