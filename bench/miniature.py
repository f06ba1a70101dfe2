"""The miniature's figures, measured from the committed weights.

    .venv/bin/python -m bench.miniature            # prints them
    .venv/bin/python -m bench.miniature --write    # and writes weights/miniature/REPORT.md with its sheets

Everything is seeded; the pictures' last bits and the seconds depend on the machine. Takes about 15 minutes on two
cores.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:
    # Run as a file, this module's folder comes first in the path, where its name hides the package `miniature`.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image

from bench.sharpness import find_spectrum_error, measure_sharpness, tell_apart
from bench.tiles import PALETTE, SEED, Colors, draw_basic_mix, find_repeat
from miniature.dataset import UNSEEN, describe, draw_example
from miniature.photographs import MATERIALS, draw_photograph
from miniature.recipe import load_recipe
from miniature.stages.vae import find_psnr, measure_psnr, to_tensor
from tilemix.calibration.texture import describe_texture, find_texture_distance
from tilemix.colors.appearance import NODES
from tilemix.colors.chart import basic_colors
from tilemix.colors.cielab import srgb_to_lab
from tilemix.colors.look import STEP
from tilemix.pipelines.loading import choose_device, load_pipeline
from tilemix.pipelines.sdxl import Sdxl
from tilemix.pipelines.settings import parse_speed
from tilemix.prompts.mix import ColorMix, ColorShare, parse_mix
from tilemix.render import Renderer
from tilemix.request import GenerationRequest
from tilemix.system.machine import keep_freed_memory
from tilemix.system.project import ROOT
from tilemix.weights import find_model

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from numpy.typing import NDArray

    from bench.tiles import Pixels
    from tilemix.colors.palette import PaletteColor

    Floats = NDArray[np.float64]

SIDE = 512
TILE = "rubber tile"
# Light colors, which show the dark gaps between granules.
LIGHT_MIXES = (
    "50% pearl, 50% grass green",
    "60% yellow, 40% gray",
    "100% beige",
    "50% orange, 30% white, 20% gray",
    "100% pearl",
    "70% gray, 30% red",
)
STRENGTHS = (0.0, 0.35, 0.7, 1.0)
NOISE, PHOTOGRAPHS = "from noise", "photographs"
DRAFTED = "from a draft as served"
HALF = 0.5  # strength, of half the steps
REFERENCES = 12  # mixes that are drawn from noise twice, for the spread of the texture
SHOWN = 12  # mixes on the sheet
README_MIX = "50% red, 30% black, 20% pearl"
DETAIL = 360  # pixels: a side of what docs/miniature.md shows of it
SINGLE = 20  # colors of the palette that are drawn alone
PERCENTILES = (5, 25, 50, 75, 95)


class Bench:
    """The loaded miniature and what was measured of it."""

    def __init__(self) -> None:
        self.recipe = load_recipe()
        keep_freed_memory()
        speed = parse_speed(os.environ.get("TILEMIX_SPEED"))
        self.ready = load_pipeline(find_model("miniature"), *choose_device(speed), speed=speed)
        self.renderer = Renderer(self.ready)
        # In fp32 on every machine; the VAE that draws may have another dtype.
        base = load_pipeline(find_model("miniature"), torch.device("cpu"), torch.float32).base
        assert isinstance(base, Sdxl)
        self.base = base
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
        strength: float | None = None,
    ) -> Pixels:
        """Return one picture."""
        request = GenerationRequest(
            prompt=prompt, seed=seed, width=width, height=height, lora_scale=lora_scale, strength=strength
        )
        return self.renderer.render(request).pixels

    def report_vae(self) -> None:
        """PSNR on unseen photographs: of all materials, and of tiles alone."""
        vae = self.base.pipeline.vae
        everything = measure_psnr(vae, self.recipe, 64)
        numbers = [n for n in range(UNSEEN, UNSEEN + 200) if describe(self.recipe, n).material == TILE][:32]
        side = self.recipe.photographs.side
        tiles = find_psnr(
            vae, [to_tensor(draw_example(describe(self.recipe, n), side)[None]) for n in numbers]
        )
        self.say("\n## VAE\n")
        self.say("| unseen photographs | PSNR | aim |\n|---|---|---|")
        self.say(f"| 64 of all materials | {everything:.1f} dB | |")
        self.say(f"| {len(numbers)} tiles | {tiles:.1f} dB | 26 |")

    def report_sharpness(self, mixes: int) -> None:
        """Edges, spectrum and lightness of reconstructions and drawn pictures, beside the photographs'."""
        vae = self.base.pipeline.vae
        ways: dict[str, list[Pixels]] = {
            name: [] for name in (PHOTOGRAPHS, "reconstructed", NOISE, "as served")
        }
        chosen = [
            parse_mix(README_MIX).mix or draw_basic_mix(0),
            *(draw_basic_mix(n) for n in range(1, mixes)),
        ]
        chosen += [ColorMix((ColorShare(color.word, Decimal(100)),)) for color in PALETTE.colors[:SINGLE]]
        for number, mix in enumerate(chosen):
            photograph = draw_photograph(mix, TILE, (SIDE, SIDE), SEED + 500 + number)
            ways[PHOTOGRAPHS].append(photograph)
            ways["reconstructed"].append(reconstruct(vae, photograph))
            ways[NOISE].append(self.draw(str(mix), 500 + number, strength=1.0))
            ways["as served"].append(self.draw(str(mix), 500 + number))
        crops = [pictures[0][:DETAIL, :DETAIL] for pictures in ways.values()]
        self.pictures["detail"] = np.concatenate(
            [np.concatenate(pair, axis=1) for pair in (crops[:2], crops[2:])]
        )
        self.say("\n## Sharpness and light\n")
        self.say(
            f"{mixes} unseen mixes and {SINGLE} single colors, {SIDE}x{SIDE}. Sharpness: the mean difference of "
            "neighboring pixels, as a part of that in photographs of the same mixes. Spectrum: the largest difference "
            "to the maker's photographs between a cycle in 32 pixels and half of the Nyquist frequency. Lightness: "
            "the mean difference of its percentiles 5, 25, 50, 75 and 95 to the maker's palette. Told apart: by a "
            "critic trained on half of the pictures, on 64-pixel crops of the other half; 50 is guessing.\n"
        )
        self.say(f"| figure | {' | '.join(ways)} | aim |\n|---|{'---|' * (len(ways) + 1)}")
        sharp = {name: [measure_sharpness(one) for one in pictures] for name, pictures in ways.items()}
        parts = {name: np.divide(one, sharp[PHOTOGRAPHS]) for name, one in sharp.items()}
        black = mixes + [color.word for color in PALETTE.colors].index("black")
        self._say_row("sharpness, mean", [f"{one[:mixes].mean():.2f}" for one in parts.values()], "")
        self._say_row(
            "the lowest mix", [f"{one[:mixes].min():.2f}" for one in parts.values()], "0.85; VAE 0.90"
        )
        self._say_row("100% black", [f"{one[black]:.2f}" for one in parts.values()], "0.80")
        spectra = {
            name: [find_spectrum_error(one) for one in pictures[mixes:]] for name, pictures in ways.items()
        }
        self._say_row("spectrum, mean, dB", [f"{np.mean(one):.1f}" for one in spectra.values()], "")
        within = [sum(error <= 3 for error in one) for one in spectra.values()]
        self._say_row("colors within 3 dB", [f"{count} of {SINGLE}" for count in within], f"{SINGLE}")
        light = [
            np.mean(
                [
                    find_lightness_error(one, color)
                    for one, color in zip(all_[mixes:], PALETTE.colors, strict=False)
                ]
            )
            for all_ in ways.values()
        ]
        self._say_row("lightness", [f"{error:.1f}" for error in light], "4")
        told = [100 * tell_apart(one, ways[PHOTOGRAPHS]) for name, one in ways.items() if name != PHOTOGRAPHS]
        self._say_row("told apart, %", ["", *(f"{part:.0f}" for part in told)], "75")

    def report_colors(self, mixes: int) -> None:
        """Shares and colors in unseen mixes: from noise, from the draft, with the calibration, and photographs."""
        planner = self.renderer.planner
        served, strength = planner.calibration, planner.resolve_strength()
        ways = {
            NOISE: (None, 1.0),
            f"draft at {HALF:g}": (None, HALF),
            f"calibrated ({strength:g})": (served, strength),
        }
        colors = {name: Colors() for name in (*ways, PHOTOGRAPHS)}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        textures: dict[str, list[Floats]] = {name: [] for name in ways}
        references: list[list[Floats]] = []
        for number in range(mixes):
            mix = draw_basic_mix(number)
            photograph = draw_photograph(mix, TILE, (SIDE, SIDE), SEED + number)
            colors[PHOTOGRAPHS].add(mix, photograph)
            row = [photograph[:256, :256]]
            for name, (calibration, of_way) in ways.items():
                planner.calibration = calibration
                began = time.process_time()
                picture = self.draw(str(mix), number, strength=of_way)
                seconds[name].append(time.process_time() - began)
                colors[name].add(mix, picture)
                row.append(picture[:256, :256])
                if number < REFERENCES:
                    textures[name].append(describe_texture(picture))
            if number < REFERENCES:
                other = self.draw(str(mix), number + mixes, strength=1.0)
                references.append([textures[NOISE][-1], describe_texture(other)])
            if number < SHOWN:
                self.pictures[f"{mix}"] = np.concatenate(row, axis=0)
        planner.calibration = served
        self.say("\n## Colors\n")
        defaults = self.ready.model.manifest.defaults
        self.say(
            f"{mixes} unseen mixes of 1 to 4 of the {len(basic_colors())} basic colors, {SIDE}x{SIDE}, "
            f"{defaults.num_inference_steps} steps, guidance {defaults.guidance_scale:g}. Texture: the distance to "
            f"pictures from noise in their own spread, over {min(mixes, REFERENCES)} mixes.\n"
        )
        self.say(f"| figure | {' | '.join(colors)} | aim |\n|---|{'---|' * (len(colors) + 1)}")
        self._say_row(
            "mean error of a share, points", [f"{one.mean_error:.1f}" for one in colors.values()], "1.0"
        )
        worst = [one.worst for one in colors.values()]
        self._say_row(
            "the worst color's mean error", [f"{error:.1f} ({word})" for word, error in worst], "2.0"
        )
        within = [100 * float(np.mean(one.within)) for one in colors.values()]
        self._say_row(
            "shares of 15 % and more found within 3 points, %", [f"{one:.0f}" for one in within], "97"
        )
        strays = [float(np.mean(one.not_asked)) for one in colors.values()]
        self._say_row("colors nobody asked for, %", [f"{one:.1f}" for one in strays], "0.7")
        off = [float(np.mean(one.color_errors)) for one in colors.values()]
        self._say_row("mean color error, delta E 2000", [f"{one:.1f}" for one in off], "3.5")
        distances = [find_texture_distance(one, references) for one in textures.values()]
        self._say_row("texture, spreads", [f"{one:.1f}" for one in distances] + [""], "2")
        spent = [float(np.median(one)) for one in seconds.values()]
        self._say_row("CPU seconds", [f"{one:.2f}" for one in spent] + [""], f"{0.6 * spent[0]:.2f}")
        self._say_by_color(colors)

    def _say_row(self, figure: str, values: list[str], aim: str) -> None:
        self.say(f"| {figure} | {' | '.join(values)} | {aim} |")

    def _say_by_color(self, colors: dict[str, Colors]) -> None:
        """A table by color: errors of the shares."""
        self.say("\nMean error of a share by color, points:\n")
        self.say(f"| color | {' | '.join(colors)} |\n|---|{'---|' * len(colors)}")
        for word in sorted(colors[NOISE].errors):
            means = [f"{np.mean(one.errors[word]):.1f}" for one in colors.values()]
            self.say(f"| {word} | {' | '.join(means)} |")

    def report_adapters(self) -> None:
        """What the LoRA and the tokens change: how near pictures come to tiles, and the colors."""

        def measure(pictures: list[Pixels]) -> tuple[float, float, float]:
            colors = Colors()
            for text, picture in zip(LIGHT_MIXES, pictures, strict=True):
                mix = parse_mix(text).mix
                assert mix is not None
                colors.add(mix, picture)
            spectra, sharp = zip(
                *((find_spectrum_error(one), measure_sharpness(one)) for one in pictures), strict=True
            )
            return float(np.mean(spectra)), float(np.mean(sharp)), colors.mean_error

        def photographs(material: str) -> list[Pixels]:
            mixes = (parse_mix(text).mix for text in LIGHT_MIXES)
            return [
                draw_photograph(mix, material, (SIDE, SIDE), SEED + n) for n, mix in enumerate(mixes) if mix
            ]

        shown: dict[str, list[Pixels]] = {}
        bare = load_pipeline(find_model("miniature"), *choose_device())
        self.renderer = Renderer(bare)
        bare.tokens.install([])
        shown["off"] = [
            self.draw(text, n, lora_scale=0.0, strength=1.0) for n, text in enumerate(LIGHT_MIXES)
        ]
        self.renderer = Renderer(self.ready)
        for strength in STRENGTHS:
            shown[f"{strength:g}"] = [
                self.draw(text, n, lora_scale=strength, strength=1.0) for n, text in enumerate(LIGHT_MIXES)
            ]
        shown[DRAFTED] = [self.draw(text, n) for n, text in enumerate(LIGHT_MIXES)]
        rows = {name: measure(pictures) for name, pictures in shown.items()}
        aim = measure(photographs(TILE))
        off = rows["off"]
        self.say("\n## The LoRA and the tokens\n")
        self.say(
            f"The base has never seen a rubber tile. Mean over {len(LIGHT_MIXES)} mixes of light colors: the largest "
            "difference of the spectrum to the maker's photographs, and the difference of neighboring pixels.\n"
        )
        self.say(
            "| LoRA | spectrum, dB | of the way, % | sharpness | of the way, % | mean error of a share |\n"
            "|---|---|---|---|---|---|"
        )
        for name, (*looks, error) in rows.items():
            label = "off, tokens off" if name == "off" else name
            ways = [100 * (off[n] - look) / (off[n] - aim[n]) for n, look in enumerate(looks)]
            self.say(
                f"| {label} | {looks[0]:.1f} | {ways[0]:.0f} | {looks[1]:.1f} | {ways[1]:.0f} | {error:.1f} |"
            )
        self.say(f"| photographs of tiles | {aim[0]:.1f} | 100 | {aim[1]:.1f} | 100 | {aim[2]:.1f} |")
        others = ", ".join(
            f"{material} {measure(photographs(material))[0]:.1f}"
            for material in MATERIALS
            if material != TILE
        )
        self.say(f"\nThe spectra of the base's materials: {others} dB.")
        for name, pictures in shown.items():
            self.pictures[f"strength {name}"] = np.concatenate([p[:256, :256] for p in pictures[:4]], axis=1)

    def report_sizes(self) -> None:
        """Repeats and seconds at several sizes."""
        self.say("\n## Sizes and seconds\n")
        self.say("| size | repeat | in a photograph | CPU seconds |\n|---|---|---|---|")
        mix = draw_basic_mix(3)
        for width, height in ((512, 512), (768, 512), (1024, 1024)):
            began = time.process_time()
            picture = self.draw("50% red, 30% black, 20% pearl", 7, width=width, height=height)
            took = time.process_time() - began
            repeat, floor = (
                find_repeat(one) for one in (picture, draw_photograph(mix, TILE, (width, height), SEED))
            )
            self.say(f"| {width}x{height} | {repeat:.2f} | {floor:.2f} | {took:.1f} |")
            self.pictures[f"{width}x{height}"] = picture
        self.say("\nA repeat of 1 is an exact repetition; a photograph shows what granules reach by chance.")

    def write(self, folder: Path) -> None:
        """Write the report and its sheets next to the weights."""
        mixes = [one for name, one in self.pictures.items() if "%" in name]
        rows = [np.concatenate(mixes[start : start + 6], axis=1) for start in range(0, len(mixes), 6)]
        strengths = [one for name, one in self.pictures.items() if name.startswith("strength")]
        for name, sheet in (
            ("mixes", np.concatenate(rows, axis=0)),
            ("strengths", np.concatenate(strengths, axis=0)),
            ("wide", self.pictures["768x512"]),
            ("detail", self.pictures["detail"]),
        ):
            Image.fromarray(sheet).save(folder / f"{name}.webp", quality=82, method=6)
        head = (ROOT / "bench" / "miniature_report.md").read_text(encoding="utf-8")
        (folder / "REPORT.md").write_text(head + "\n".join(self.lines) + "\n", encoding="utf-8")


def reconstruct(vae: AutoencoderKL, pixels: Pixels) -> Pixels:
    """Return a picture (h, w, 3) after encoding and decoding."""
    with torch.no_grad():
        given = vae.decode(vae.encode(to_tensor(pixels[None])).latent_dist.mean).sample[0]
    shown: Pixels = np.rint((given.permute(1, 2, 0).clamp(-1, 1).numpy() + 1) * 127.5).astype(np.uint8)
    return shown


def find_lightness_error(pixels: Pixels, color: PaletteColor) -> float:
    """Return the mean difference of five percentiles of CIELAB L in a single color's picture to its palette's."""
    look = color.look()
    reached = np.cumsum(look.weight) / np.sum(look.weight)
    wanted = np.interp(np.array(PERCENTILES) / 100, reached, NODES + STEP / 2)
    return float(np.abs(np.percentile(srgb_to_lab(pixels)[..., 0], PERCENTILES) - wanted).mean())


def main() -> None:
    """Measure, print, and write the report if asked to."""
    parser = argparse.ArgumentParser(description="The miniature's figures, from the committed weights.")
    parser.add_argument("--mixes", type=int, default=60, metavar="N", help="default: 60")
    parser.add_argument(
        "--write", action="store_true", help="write weights/miniature/REPORT.md and its sheets"
    )
    options = parser.parse_args()
    bench = Bench()
    bench.report_vae()
    bench.report_sharpness(40)
    bench.report_colors(options.mixes)
    bench.report_adapters()
    bench.report_sizes()
    if options.write:
        bench.write(ROOT / "weights" / "miniature")


if __name__ == "__main__":
    main()
