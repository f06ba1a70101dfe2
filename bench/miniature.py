"""The miniature's figures, measured again from the committed weights.

    .venv/bin/python -m bench.miniature            # prints them
    .venv/bin/python -m bench.miniature --write    # and writes weights/miniature/REPORT.md with its sheets

Everything is seeded; the pictures' last bits and the seconds depend on the machine. About 15 minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:
    # Run as a file, this module's own folder stands first in the path and would hide the package `miniature`.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from miniature.dataset import UNSEEN, describe, draw_example
from miniature.photographs import MATERIALS, draw_photograph
from miniature.recipe import load_recipe
from miniature.stages.vae import find_psnr, measure_psnr, to_tensor
from tilemix.colors.chart import basic_colors
from tilemix.pictures.measure import measure_shares
from tilemix.pipelines.loading import choose_device, load_pipeline
from tilemix.pipelines.settings import parse_speed
from tilemix.prompts.mix import ColorMix, ColorShare, parse_mix
from tilemix.render import Renderer
from tilemix.request import GenerationRequest
from tilemix.system.machine import keep_freed_memory
from tilemix.system.project import ROOT
from tilemix.weights import find_model

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

SEED = 4_000_000  # of the mixes; no photograph that was trained on has one so high
SIDE = 512
TILE = "rubber tile"
FOUND_FROM, FOUND_AT = 15.0, 5.0  # a share from 15 % on is found when it measures 5 % or more
# Light colors, so that the dark gaps between granules show.
LIGHT_MIXES = (
    "50% pearl, 50% green",
    "60% yellow, 40% gray",
    "100% beige",
    "50% orange, 30% white, 20% gray",
    "100% pearl",
    "70% gray, 30% red",
)
STRENGTHS = (0.0, 0.35, 0.7, 1.0)


@dataclass
class Colors:
    """How far the measured shares of many pictures are from the mixes."""

    errors: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    found: list[bool] = field(default_factory=list)
    not_asked: list[float] = field(default_factory=list)

    def add(self, mix: ColorMix, pixels: Pixels) -> None:
        """Measure one picture."""
        measured = measure_shares(pixels, mix)
        self.not_asked.append(measured.not_asked)
        for share in mix.shares:
            percent = float(share.percent)
            self.errors[share.color].append(abs(measured.shares[share.color] - percent))
            if percent >= FOUND_FROM:
                self.found.append(measured.shares[share.color] >= FOUND_AT)

    @property
    def mean_error(self) -> float:
        """Percentage points, over every share of every mix."""
        return float(np.mean([error for errors in self.errors.values() for error in errors]))

    @property
    def worst(self) -> tuple[str, float]:
        """The color with the largest mean error, and that error."""
        means = {color: float(np.mean(errors)) for color, errors in self.errors.items()}
        return max(means.items(), key=lambda item: item[1])


def draw_basic_mix(number: int) -> ColorMix:
    """Return unseen mix `number`: 1 to 4 of the basic colors, in multiples of 5 %."""
    random = np.random.default_rng([SEED, number])
    count = 1 + number % 4
    names = random.choice([color.name for color in basic_colors()], count, replace=False)
    cuts = np.sort(random.choice(np.arange(1, 20), count - 1, replace=False)) * 5
    percents = np.diff(np.concatenate([[0], cuts, [100]]))
    return ColorMix(tuple(ColorShare(str(n), Decimal(int(p))) for n, p in zip(names, percents, strict=True)))


def find_gap_share(pixels: Pixels) -> float:
    """Return the percent of a picture that is gap: more than a third darker than what closes over 9 pixels."""
    lightness = pixels.max(axis=2).astype(np.float32)
    closed = ndimage.grey_closing(lightness, size=(9, 9))
    return float((lightness < closed * (2 / 3)).mean() * 100)


def find_repeat(pixels: Pixels) -> float:
    """Return the largest correlation of a picture with itself, moved by 96 pixels or more: 1 is a repeat."""
    lightness = pixels.mean(axis=2)
    lightness -= ndimage.gaussian_filter(lightness, 48)
    padded = np.zeros([2 * side for side in lightness.shape])
    padded[: lightness.shape[0], : lightness.shape[1]] = lightness
    overlap = np.zeros_like(padded)
    overlap[: lightness.shape[0], : lightness.shape[1]] = 1
    correlation = np.fft.irfft2(np.abs(np.fft.rfft2(padded)) ** 2, padded.shape)
    count = np.maximum(np.fft.irfft2(np.abs(np.fft.rfft2(overlap)) ** 2, padded.shape), 1)
    normed = correlation / count / lightness.var()
    y, x = (np.minimum(np.arange(side), side - np.arange(side)) for side in padded.shape)
    is_far = (np.hypot(y[:, None], x[None, :]) >= 96) & (count > lightness.size / 4)
    return float(normed[is_far].max())


class Bench:
    """The loaded miniature and what was measured of it."""

    def __init__(self) -> None:
        self.recipe = load_recipe()
        keep_freed_memory()
        speed = parse_speed(os.environ.get("TILEMIX_SPEED"))
        self.ready = load_pipeline(find_model("miniature"), *choose_device(speed), speed=speed)
        self.renderer = Renderer(self.ready)
        self.lines: list[str] = []
        self.pictures: dict[str, Pixels] = {}

    def say(self, line: str) -> None:
        """Print a line and keep it for the report."""
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        self.lines.append(line)

    def draw(
        self,
        prompt: str,
        seed: int,
        *,
        width: int = SIDE,
        height: int = SIDE,
        lora_scale: float | None = None,
    ) -> Pixels:
        """Return one picture."""
        request = GenerationRequest(
            prompt=prompt, seed=seed, width=width, height=height, lora_scale=lora_scale
        )
        return self.renderer.render(request).pixels

    def report_vae(self) -> None:
        """PSNR on unseen photographs: those of the recipe, and tiles alone."""
        # In fp32 on every machine, as the photographs are: the drawing one may have another dtype.
        vae = load_pipeline(find_model("miniature"), torch.device("cpu"), torch.float32).pipeline.vae
        everything = measure_psnr(vae, self.recipe, 64)
        numbers = [n for n in range(UNSEEN, UNSEEN + 200) if describe(self.recipe, n).material == TILE][:32]
        side = self.recipe.photographs.side
        tiles = find_psnr(
            vae, [to_tensor(draw_example(describe(self.recipe, n), side)[None]) for n in numbers]
        )
        self.say("\n## VAE\n")
        self.say("| unseen photographs | PSNR | aim |\n|---|---|---|")
        self.say(f"| 64 of all materials | {everything:.1f} dB | 27 |")
        self.say(f"| {len(numbers)} tiles | {tiles:.1f} dB | 27 |")

    def report_colors(self, mixes: int) -> None:
        """Shares of unseen mixes, beside those of photographs of the same mixes."""
        drawn, photographs = Colors(), Colors()
        for number in range(mixes):
            mix = draw_basic_mix(number)
            photograph = draw_photograph(mix, TILE, (SIDE, SIDE), SEED + number)
            picture = self.draw(str(mix), number)
            photographs.add(mix, photograph)
            drawn.add(mix, picture)
            if number < 24:
                self.pictures[f"{mix}"] = np.concatenate(
                    [photograph[:256, :256], picture[:256, :256]], axis=0
                )
        self.say("\n## Colors\n")
        defaults = self.ready.model.manifest.defaults
        self.say(
            f"{mixes} unseen mixes of 1 to 4 of the {len(basic_colors())} basic colors, {SIDE}x{SIDE}, "
            f"{defaults.num_inference_steps} steps, guidance {defaults.guidance_scale:g}.\n"
        )
        self.say("| figure | miniature | photographs | aim |\n|---|---|---|---|")
        self.say(
            f"| mean error of a share, points | {drawn.mean_error:.1f} | {photographs.mean_error:.1f} | 4 |"
        )
        (worst, error), (other, floor) = drawn.worst, photographs.worst
        self.say(f"| the worst color's mean error | {error:.1f} ({worst}) | {floor:.1f} ({other}) | 8 |")
        found, all_found = (100 * float(np.mean(one.found)) for one in (drawn, photographs))
        self.say(f"| shares of 15 % or more found at 5 % or more, % | {found:.0f} | {all_found:.0f} | 95 |")
        strays, their_strays = (float(np.mean(one.not_asked)) for one in (drawn, photographs))
        self.say(
            f"| colors nobody asked for, % | {strays:.1f} | {their_strays:.1f} | {their_strays + 3:.1f} |"
        )

    def report_adapters(self) -> None:
        """What the LoRA and the tokens change: the gaps, at rising strength, and the colors."""

        def measure(pictures: list[Pixels]) -> tuple[float, float]:
            colors = Colors()
            for text, picture in zip(LIGHT_MIXES, pictures, strict=True):
                mix = parse_mix(text).mix
                assert mix is not None
                colors.add(mix, picture)
            return float(np.mean([find_gap_share(picture) for picture in pictures])), colors.mean_error

        def photographs(material: str) -> list[Pixels]:
            mixes = (parse_mix(text).mix for text in LIGHT_MIXES)
            return [
                draw_photograph(mix, material, (SIDE, SIDE), SEED + n) for n, mix in enumerate(mixes) if mix
            ]

        rows: dict[str, tuple[float, float]] = {}
        shown: dict[str, list[Pixels]] = {}
        bare = load_pipeline(find_model("miniature"), *choose_device())
        self.renderer = Renderer(bare)
        bare.tokens.install([])
        shown["off"] = [self.draw(text, n, lora_scale=0.0) for n, text in enumerate(LIGHT_MIXES)]
        self.renderer = Renderer(self.ready)
        for strength in STRENGTHS:
            shown[f"{strength:g}"] = [
                self.draw(text, n, lora_scale=strength) for n, text in enumerate(LIGHT_MIXES)
            ]
        rows = {name: measure(pictures) for name, pictures in shown.items()}
        aim = measure(photographs(TILE))
        off = rows["off"][0]
        self.say("\n## The LoRA and the tokens\n")
        self.say(
            f"Gaps: the percent of the picture that is a narrow gap, more than a third darker than the granules "
            f"beside it; mean over {len(LIGHT_MIXES)} mixes of light colors. The base has never seen a rubber tile.\n"
        )
        self.say(
            "| LoRA | gaps, % | of the way to the photographs, % | mean error of a share |\n|---|---|---|---|"
        )
        for name, (gaps, error) in rows.items():
            label = "off, tokens off" if name == "off" else name
            self.say(f"| {label} | {gaps:.1f} | {100 * (gaps - off) / (aim[0] - off):.0f} | {error:.1f} |")
        self.say(f"| photographs of tiles | {aim[0]:.1f} | 100 | {aim[1]:.1f} |")
        others = ", ".join(
            f"{material} {measure(photographs(material))[0]:.1f}"
            for material in MATERIALS
            if material != TILE
        )
        self.say(f"\nGaps in photographs of what the base knows: {others}.")
        for name, pictures in shown.items():
            self.pictures[f"strength {name}"] = np.concatenate([p[:256, :256] for p in pictures[:4]], axis=1)

    def report_sizes(self) -> None:
        """Repeats at the product's size and at another shape, and seconds."""
        self.say("\n## Sizes and seconds\n")
        self.say("| size | repeat | in a photograph | seconds |\n|---|---|---|---|")
        mix = draw_basic_mix(3)
        for width, height in ((512, 512), (768, 512), (1024, 1024)):
            began = time.perf_counter()
            picture = self.draw("50% red, 30% black, 20% pearl", 7, width=width, height=height)
            took = time.perf_counter() - began
            repeat, floor = (
                find_repeat(one) for one in (picture, draw_photograph(mix, TILE, (width, height), SEED))
            )
            self.say(f"| {width}x{height} | {repeat:.2f} | {floor:.2f} | {took:.1f} |")
            self.pictures[f"{width}x{height}"] = picture
        self.say(
            "\nA repeat of 1 is a pattern that comes again; a photograph shows what granules give by chance."
        )

    def write(self, folder: Path) -> None:
        """Write the report and its sheets beside the weights."""
        mixes = [one for name, one in self.pictures.items() if "%" in name]
        rows = [np.concatenate(mixes[start : start + 6], axis=1) for start in range(0, len(mixes), 6)]
        strengths = [one for name, one in self.pictures.items() if name.startswith("strength")]
        for name, sheet in (
            ("mixes", np.concatenate(rows, axis=0)),
            ("strengths", np.concatenate(strengths, axis=0)),
            ("wide", self.pictures["768x512"]),
        ):
            Image.fromarray(sheet).save(folder / f"{name}.webp", quality=82, method=6)
        head = (ROOT / "bench" / "miniature_report.md").read_text(encoding="utf-8")
        (folder / "REPORT.md").write_text(head + "\n".join(self.lines) + "\n", encoding="utf-8")


def main() -> None:
    """Measure, print, and write the report where it is asked for."""
    parser = argparse.ArgumentParser(description="The miniature's figures, from the committed weights.")
    parser.add_argument("--mixes", type=int, default=60, metavar="N", help="default: 60")
    parser.add_argument(
        "--write", action="store_true", help="write weights/miniature/REPORT.md and its sheets"
    )
    options = parser.parse_args()
    bench = Bench()
    bench.report_vae()
    bench.report_colors(options.mixes)
    bench.report_adapters()
    bench.report_sizes()
    if options.write:
        bench.write(ROOT / "weights" / "miniature")


if __name__ == "__main__":
    main()
