"""Draw a model's colors and some mixes over the strengths, measure them, and choose.

Every picture is kept in a folder, by what decided it, so a run that was cut short goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from PIL import Image

from tilemix.calibration.correction import correct_colors
from tilemix.calibration.texture import describe_texture, find_texture_distance
from tilemix.colors.cielab import srgb_to_lab
from tilemix.drafts.draft import draft_mix
from tilemix.drafts.tone import find_seen
from tilemix.pictures.measure import find_share_errors, measure_shares
from tilemix.prompts.mix import ColorMix, ColorShare
from tilemix.request import GenerationRequest
from tilemix.weights.calibration import Calibration, DraftColor, Figures

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from tilemix.colors.palette import Palette
    from tilemix.prompts.template import PromptTemplate
    from tilemix.render import Renderer

    Pixels = NDArray[np.uint8]

logger = logging.getLogger(__name__)

SIDE = 256  # pixels of a trial's picture
MIXES = 12
ROUNDS = 2  # of correcting the colors
TRIOS = 3  # mixes that each color is corrected in, because its neighbors change how it comes out
SEEDS = (1, 2)  # of the pictures from noise, whose spread is the unit of the texture
MOST_TEXTURE = 2.0  # spreads; a strength beyond them draws other things than the model does
COLOR_WEIGHT = 0.5  # points of a share that one delta E counts
NO_COLOR = 100.0  # delta E of pictures that show none of the colors asked for
NOISE, CALIBRATED, TONED = "from noise", "calibrated", "toned"


@dataclass(frozen=True, slots=True)
class Way:
    """How a picture is drawn."""

    strength: float
    colors: Mapping[str, str]  # word -> the draft's color; empty: the palette's
    lora_scale: float | None = None  # None: each LoRA's own
    template: str | None = None  # None: the manifest's
    toned: bool = False  # whether the last step moves the colors


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was chosen, and pictures of each mix by what was tried, for a contact sheet."""

    calibration: Calibration
    mixes: list[ColorMix]
    pictures: dict[str, list[Pixels]]


class Trials:
    """The pictures of one model, drawn or found in a folder.

    Args:
        renderer: the model's; what it draws by is set back at the end.
        palette: the model's.
        colors: words of the palette.
        folder: of the pictures.
        templates: other forms of the prompt to try.
    """

    def __init__(
        self,
        renderer: Renderer,
        palette: Palette,
        colors: Sequence[str],
        folder: Path,
        templates: Sequence[PromptTemplate] = (),
    ) -> None:
        self._renderer, self._palette, self._folder = renderer, palette, folder
        self._own_template = renderer.planner.template
        self._templates = {template.name: template for template in templates}
        self._targets = {word: color.as_seen for color in palette.colors if (word := color.word) in colors}
        self.mixes = draw_mixes(list(self._targets), MIXES)

    def run(self, strengths: Sequence[float], lora_scales: Sequence[float] = ()) -> Outcome:
        """Try the strengths; at the best of them LoRA scales, templates and corrected colors; choose what is best.

        Each trial begins with what was best so far.
        """
        planner = self._renderer.planner
        kept, template = planner.calibration, planner.template
        try:
            return self._run(strengths, lora_scales)
        finally:
            planner.calibration, planner.template = kept, template

    def count(self, strengths: Sequence[float], lora_scales: Sequence[float] = ()) -> int:
        """Return how many pictures `run` needs at most."""
        words = len(self._targets)
        tried = len(strengths) + len(lora_scales) + len(self._templates) + 2
        return len(self.mixes) * (len(SEEDS) + tried) + ROUNDS * (words + TRIOS * -(-words // 3))

    def estimate(self) -> float:
        """Return the seconds that a picture takes, by drawing one from noise after another to warm up."""
        for steps in (1, None):
            began = time.perf_counter()
            self._render(self.mixes[0], Way(1.0, {}), 0, steps)
        return time.perf_counter() - began

    def _run(self, strengths: Sequence[float], lora_scales: Sequence[float]) -> Outcome:
        from_noise = Way(1.0, {})
        noise = [[self._draw(mix, from_noise, seed) for seed in SEEDS] for mix in self.mixes]
        textures = [[describe_texture(one) for one in of_mix] for of_mix in noise]
        pictures = {NOISE: [of_mix[0] for of_mix in noise]}
        figures = {NOISE: self._measure(pictures[NOISE], None)}
        logger.info("%s", _tell(NOISE, figures[NOISE]))
        tried = {NOISE: from_noise}

        def attempt(name: str, way: Way) -> None:
            pictures[name] = [self._draw(mix, way, SEEDS[0]) for mix in self.mixes]
            tried[name], figures[name] = way, self._measure(pictures[name], textures)
            logger.info("%s", _tell(name, figures[name]))

        def best() -> Way:
            return tried[choose(figures)]

        for strength in sorted(set(strengths) - {1.0}, reverse=True):
            attempt(f"draft at {strength:g}", Way(strength, {}))
        for scale in lora_scales:
            attempt(f"LoRA at {scale:g}", replace(best(), lora_scale=scale))
        for template in self._templates:
            attempt(f"template {template}", replace(best(), template=template))
        if best().strength < 1:
            attempt(CALIBRATED, replace(best(), colors=self._correct(best())))
            attempt(TONED, replace(best(), toned=True))
        chosen = best()
        widths = {NOISE: self._find_width(pictures[NOISE])}
        if chosen.strength < 1:
            widths["from a draft"] = self._find_width(pictures[choose(figures)])
        calibration = Calibration(
            strength=chosen.strength,
            colors=self._to_draft_colors(chosen.colors),
            figures=figures,
            files=dict(self._renderer.ready.model.hashes),
            lora_scale=chosen.lora_scale,
            prompt_template=chosen.template,
            toned=chosen.toned,
            granule_width={name: round(width, 1) for name, width in widths.items() if width is not None},
        )
        return Outcome(calibration, self.mixes, pictures)

    def _correct(self, way: Way) -> dict[str, str]:
        """Return the draft's colors with which the granules of single colors and of mixes come out right."""
        words = list(self._targets)
        mixes = [_mix_evenly([word]) for word in words]
        for number in range(TRIOS):
            shuffled = np.random.default_rng(number).permutation(words).tolist()
            mixes += [_mix_evenly(shuffled[start : start + 3]) for start in range(0, len(words), 3)]
        colors = dict(self._targets)
        for _ in range(ROUNDS):
            seen = []
            for number, mix in enumerate(mixes):
                pixels = self._draw(mix, replace(way, colors=colors), number)
                draft = draft_mix(mix, self._palette, SIDE, SIDE, seed=number)
                assert draft is not None
                found = find_seen(srgb_to_lab(pixels), draft.layout, len(mix.shares))
                seen += [(mix.shares[place].color, lab) for place, lab in found.items()]
            colors = correct_colors(self._targets, colors, seen)
        return colors

    def _to_draft_colors(self, colors: Mapping[str, str]) -> dict[str, DraftColor]:
        return {word: DraftColor(as_seen=self._targets[word], draft=color) for word, color in colors.items()}

    def _find_width(self, pictures: Sequence[Pixels]) -> float | None:
        """Return the granules' width in pixels, the median over the mixes; None: none shows two colors."""
        widths = [
            measure_shares(pixels, mix, self._palette).granule_width
            for mix, pixels in zip(self.mixes, pictures, strict=True)
        ]
        finite = [width for width in widths if math.isfinite(width)]
        return float(np.median(finite)) if finite else None

    def _draw(self, mix: ColorMix, way: Way, seed: int) -> Pixels:
        """Return a picture, drawn now or before."""
        hashes = self._renderer.ready.model.hashes
        colors = {share.color: way.colors.get(share.color) for share in mix.shares}
        template = None if way.template is None else self._templates[way.template]
        decides = [str(mix), way.strength, way.lora_scale, template, way.toned, seed, colors]
        key = hashlib.sha256(msgspec.json.encode([decides, SIDE, hashes, self._palette.granules])).hexdigest()
        path = self._folder / f"{key[:24]}.png"
        if not path.is_file():
            self._renderer.planner.calibration = Calibration(
                strength=way.strength,
                colors=self._to_draft_colors(way.colors),
                figures={},
                files={},
                toned=way.toned,
            )
            self._renderer.planner.template = template or self._own_template
            partial = path.with_suffix(".part")
            Image.fromarray(self._render(mix, way, seed)).save(partial, "PNG")
            partial.replace(path)
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))

    def _render(self, mix: ColorMix, way: Way, seed: int, steps: int | None = None) -> Pixels:
        request = GenerationRequest(
            prompt=str(mix),
            seed=seed,
            width=SIDE,
            height=SIDE,
            strength=way.strength,
            lora_scale=way.lora_scale,
            num_inference_steps=steps,
        )
        return self._renderer.render(request).pixels

    def _measure(
        self,
        pictures: Sequence[Pixels],
        textures: Sequence[Sequence[NDArray[np.float64]]] | None,
    ) -> Figures:
        shares: dict[str, list[float]] = {}
        color_errors: list[float] = []
        not_asked: list[float] = []
        for mix, pixels in zip(self.mixes, pictures, strict=True):
            measured = measure_shares(pixels, mix, self._palette)
            for word, error in find_share_errors(measured, mix, self._palette).items():
                shares.setdefault(word, []).append(error)
            color_errors += measured.color_errors.values()
            not_asked.append(measured.not_asked)
        texture = 0.0
        if textures is not None:
            texture = find_texture_distance([describe_texture(one) for one in pictures], textures)
        return Figures(
            share_error=round(float(np.mean([error for errors in shares.values() for error in errors])), 2),
            worst_share=round(max(float(np.mean(errors)) for errors in shares.values()), 2),
            color_error=round(float(np.mean(color_errors)) if color_errors else NO_COLOR, 2),
            not_asked=round(float(np.mean(not_asked)), 2),
            texture=round(texture, 2),
        )


def choose(figures: Mapping[str, Figures]) -> str:
    """Return the name of what measures best among those whose granules look as those from noise do."""
    able = {name: of_name for name, of_name in figures.items() if of_name.texture <= MOST_TEXTURE}
    return min(able, key=lambda name: rate(able[name]))


def rate(figures: Figures) -> float:
    """Return how wrong pictures are, in points: shares, what was not asked for, and colors at half their delta E."""
    return figures.share_error + figures.not_asked + COLOR_WEIGHT * figures.color_error


def draw_mixes(words: Sequence[str], count: int) -> list[ColorMix]:
    """Return seeded mixes of 2 to 4 of the colors, in multiples of 10 %; of one color, that one alone."""
    mixes = []
    for number in range(count):
        random = np.random.default_rng([17, number])
        chosen = random.choice(list(words), min(2 + number % 3, len(words)), replace=False)
        cuts = np.sort(random.choice(np.arange(1, 10), len(chosen) - 1, replace=False)) * 10
        percents = np.diff(np.concatenate([[0], cuts, [100]]))
        mixes.append(
            ColorMix(
                tuple(
                    ColorShare(str(word), Decimal(int(p))) for word, p in zip(chosen, percents, strict=True)
                )
            )
        )
    return mixes


def _mix_evenly(words: Sequence[str]) -> ColorMix:
    percents = {1: (100,), 2: (50, 50), 3: (40, 30, 30)}[len(words)]
    return ColorMix(tuple(ColorShare(word, Decimal(p)) for word, p in zip(words, percents, strict=True)))


def _tell(name: str, figures: Figures) -> str:
    return (
        f"{name}: shares {figures.share_error:.2f} points off (worst color {figures.worst_share:.1f}), colors "
        f"{figures.color_error:.2f}, not asked for {figures.not_asked:.1f}%, texture {figures.texture:.1f} spreads"
    )
