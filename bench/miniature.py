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
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:
    # Run as a file, this module's folder comes first in the path, where its name hides the package `miniature`.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image

from bench.tiles import SEED, Colors, draw_basic_mix, find_gap_share, find_repeat
from miniature.dataset import UNSEEN, describe, draw_example
from miniature.photographs import MATERIALS, draw_photograph
from miniature.recipe import load_recipe
from miniature.stages.vae import find_psnr, measure_psnr, to_tensor
from tilemix.colors.chart import basic_colors
from tilemix.pipelines.loading import choose_device, load_pipeline
from tilemix.pipelines.sdxl import Sdxl
from tilemix.pipelines.settings import parse_speed
from tilemix.prompts.mix import parse_mix
from tilemix.render import Renderer
from tilemix.request import GenerationRequest
from tilemix.system.machine import keep_freed_memory
from tilemix.system.project import ROOT
from tilemix.weights import find_model

if TYPE_CHECKING:
    from bench.tiles import Pixels

SIDE = 512
TILE = "rubber tile"
# Light colors, which show the dark gaps between granules.
LIGHT_MIXES = (
    "50% pearl, 50% green",
    "60% yellow, 40% gray",
    "100% beige",
    "50% orange, 30% white, 20% gray",
    "100% pearl",
    "70% gray, 30% red",
)
STRENGTHS = (0.0, 0.35, 0.7, 1.0)


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
        """PSNR on unseen photographs: of all materials, and of tiles alone."""
        # In fp32 on every machine; the VAE that draws may have another dtype.
        base = load_pipeline(find_model("miniature"), torch.device("cpu"), torch.float32).base
        assert isinstance(base, Sdxl)
        vae = base.pipeline.vae
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
        """Shares in unseen mixes, compared with photographs of the same mixes."""
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
        off, their_off = (float(np.mean(one.color_errors)) for one in (drawn, photographs))
        self.say(f"| mean color error, delta E 2000 | {off:.1f} | {their_off:.1f} | |")
        found, all_found = (100 * float(np.mean(one.found)) for one in (drawn, photographs))
        self.say(f"| shares of 15 % or more found at 5 % or more, % | {found:.0f} | {all_found:.0f} | 95 |")
        strays, their_strays = (float(np.mean(one.not_asked)) for one in (drawn, photographs))
        self.say(
            f"| colors nobody asked for, % | {strays:.1f} | {their_strays:.1f} | {their_strays + 3:.1f} |"
        )

    def report_adapters(self) -> None:
        """What the LoRA and the tokens change: the gaps at rising strength, and the colors."""

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
            f"Gaps: the percentage of the picture that is a narrow gap, more than a third darker than the granules "
            f"around it; mean over {len(LIGHT_MIXES)} mixes of light colors. The base has never seen a rubber tile.\n"
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
        self.say(f"\nGaps in photographs of the base's materials: {others}.")
        for name, pictures in shown.items():
            self.pictures[f"strength {name}"] = np.concatenate([p[:256, :256] for p in pictures[:4]], axis=1)

    def report_sizes(self) -> None:
        """Repeats and seconds at several sizes."""
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
        ):
            Image.fromarray(sheet).save(folder / f"{name}.webp", quality=82, method=6)
        head = (ROOT / "bench" / "miniature_report.md").read_text(encoding="utf-8")
        (folder / "REPORT.md").write_text(head + "\n".join(self.lines) + "\n", encoding="utf-8")


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
    bench.report_colors(options.mixes)
    bench.report_adapters()
    bench.report_sizes()
    if options.write:
        bench.write(ROOT / "weights" / "miniature")


if __name__ == "__main__":
    main()
