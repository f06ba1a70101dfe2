"""The draft of a mix: its layout in the colors of a palette, as pixels, PNG or SVG, with a legend."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tilemix.colors.hex import parse_hex
from tilemix.colors.palette import DEFAULT_GRANULES, find_colors
from tilemix.drafts.layout import Layout, lay_out, list_colors
from tilemix.drafts.relief import light_facets

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from tilemix.colors.look import Appearance
    from tilemix.colors.palette import Granules, Palette
    from tilemix.prompts.mix import ColorMix

LINE = 28  # pixels of the legend, a color
FONT_SIZE = 18
FACETS = 1  # of a draft's seed: which random numbers the facets have
PAPER, INK = (255, 255, 255), (20, 20, 20)


@dataclass(frozen=True)
class Draft:
    """A layout in its colors. The layout is made when it is first looked at, because it takes longer than the rest."""

    mix: ColorMix
    swatches: tuple[str, ...]  # "#RRGGBB" of each color of the mix
    granules: Granules
    width: int  # pixels
    height: int  # pixels
    seed: int
    granule_size: str
    looks: tuple[Appearance, ...]  # of each color of the mix

    @cached_property
    def layout(self) -> Layout:
        """Which granule each pixel belongs to."""
        shares = [float(share.percent) for share in self.mix.shares]
        return lay_out(shares, self.width, self.height, self.granules, self.seed, size=self.granule_size)

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """The draft (h, w, 3), sRGB."""
        return self.paint(np.array([parse_hex(swatch) for swatch in self.swatches]))

    def paint(self, colors: NDArray[np.generic]) -> NDArray[np.uint8]:
        """Return the draft (h, w, 3) in other colors (m, 3), sRGB 0 to 255."""
        return self.layout.paint(colors, self.granules.gap)

    @property
    def lit(self) -> NDArray[np.uint8]:
        """The draft (h, w, 3), sRGB, with the granules' facets in the light: what a model draws from."""
        random = np.random.default_rng([self.seed, FACETS])
        colors = list_colors([parse_hex(swatch) for swatch in self.swatches], self.granules.gap)
        shown = self.layout.number_colors(len(self.swatches))
        looks = (*self.looks, *self.looks)  # in the light, and in the gaps
        return light_facets(colors, looks, shown, self.layout, self.granules.relief, random)

    @property
    def colors(self) -> dict[str, str]:
        """The swatch of each color of the mix, by its name."""
        names = (share.color for share in self.mix.shares)
        return dict(zip(names, self.swatches, strict=True))

    def recolored(self, colors: Mapping[str, str]) -> Draft:
        """Return the same layout in other swatches, by the names of the colors."""
        swatches = tuple(colors.get(name, swatch) for name, swatch in self.colors.items())
        return replace(self, swatches=swatches)

    @property
    def legend(self) -> list[tuple[str, str]]:
        """Swatch and text of each color."""
        texts = [f"{share.percent:f}% {share.color}" for share in self.mix.shares]
        return list(zip(self.swatches, texts, strict=True))


def draft_mix(
    mix: ColorMix,
    palette: Palette | None,
    width: int,
    height: int,
    *,
    seed: int,
    granule_size: str = "medium",
) -> Draft | None:
    """Lay out a mix; None: neither the palette nor the chart has a swatch of one of its colors.

    Args:
        mix: the colors and their shares.
        palette: the model's, which also says how granules look; None: the chart's colors, and the maker's granules.
        width: in pixels.
        height: in pixels.
        seed: another one gives another layout.
        granule_size: a key of `tilemix.drafts.layout.SCALES`.
    """
    colors = find_colors(palette, (share.color for share in mix.shares))
    if colors is None:
        return None
    swatches, looks = tuple(color.as_seen for color in colors), tuple(color.look() for color in colors)
    granules = palette.granules if palette is not None else DEFAULT_GRANULES
    return Draft(mix, swatches, granules, width, height, seed, granule_size, looks)


def encode_png(draft: Draft) -> bytes:
    """Return the draft as a PNG of few colors, without a legend."""
    picture = Image.fromarray(draft.pixels).quantize(2 * len(draft.swatches), dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def encode_png_with_legend(draft: Draft) -> bytes:
    """Return the draft as a PNG with its legend below."""
    font = ImageFont.load_default(FONT_SIZE)
    height, width = draft.layout.labels.shape
    sheet = Image.new("RGB", (width, height + LINE * len(draft.swatches) + LINE // 2), PAPER)
    sheet.paste(Image.fromarray(draft.pixels), (0, 0))
    pen = ImageDraw.Draw(sheet)
    for number, (swatch, text) in enumerate(draft.legend):
        top = height + LINE // 4 + number * LINE
        pen.rectangle((8, top + 4, 8 + 2 * (LINE - 8), top + LINE - 4), fill=swatch, outline=INK)
        pen.text((2 * LINE + 8, top + LINE // 2), f"{text}  {swatch}", fill=INK, font=font, anchor="lm")
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def encode_svg(draft: Draft) -> bytes:
    """Return the draft as an SVG: the granules as an embedded PNG, the legend as text."""
    height, width = draft.layout.labels.shape
    total = height + LINE * len(draft.swatches) + LINE // 2
    picture = base64.b64encode(encode_png(draft)).decode()
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{total}" viewBox="0 0 {width} {total}">',
        f'<rect width="{width}" height="{total}" fill="#fff"/>',
        f'<image width="{width}" height="{height}" href="data:image/png;base64,{picture}"/>',
    ]
    for number, (swatch, text) in enumerate(draft.legend):
        top = height + LINE // 4 + number * LINE
        lines.append(
            f'<rect x="8" y="{top + 4}" width="{2 * (LINE - 8)}" height="{LINE - 8}" fill="{swatch}" stroke="#141414"/>'
        )
        lines.append(
            f'<text x="{2 * LINE + 8}" y="{top + LINE // 2}" dominant-baseline="central" font-family="sans-serif" '
            f'font-size="{FONT_SIZE}" fill="#141414">{escape(text)} {swatch}</text>'
        )
    return "\n".join([*lines, "</svg>", ""]).encode()
