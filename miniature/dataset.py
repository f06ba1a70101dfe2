"""The miniature's training set: photograph number i with its mix and its material.

Photograph i depends on the recipe's seed and i alone, so the set can be drawn in any order, by several
processes, and resumed after an interruption. It is stored in the state folder in shards,
`photographs/00000.npy`, (n, side, side, 3) uint8.
"""

from __future__ import annotations

import logging
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from multiprocessing import get_context
from typing import TYPE_CHECKING

import numpy as np

from miniature.photographs import draw_photograph
from miniature.tile import PALETTE
from tilemix.colors.chart import basic_colors
from tilemix.colors.palette import load_palette
from tilemix.prompts.mix import ColorMix, ColorShare
from tilemix.tuning.checkpoints import save_array

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from miniature.recipe import PhotographRecipe, Recipe

logger = logging.getLogger(__name__)

UNSEEN = 1_000_000  # photographs with this number or higher are never trained on


@dataclass(frozen=True, slots=True)
class Example:
    """One photograph's description."""

    mix: ColorMix
    material: str
    seed: int


def draw_mix(random: np.random.Generator) -> ColorMix:
    """Return a mix of 1 to 4 colors of the palette; basic colors and multiples of 5 % are the most common."""
    known = {color.name for color in basic_colors()}
    words = [color.word for color in load_palette(PALETTE).colors]
    basic, others = ([word for word in words if (word in known) is is_basic] for is_basic in (True, False))
    count = int(random.choice([1, 2, 3, 4], p=[0.16, 0.28, 0.32, 0.24]))
    names: list[str] = []
    while len(names) < count:
        pool = basic if random.random() < 0.6 else others
        name = str(random.choice(pool))
        if name not in names:
            names.append(name)
    step = 5 if random.random() < 0.75 else 1
    cuts = np.sort(random.choice(np.arange(1, 100 // step), count - 1, replace=False)) * step
    percents = np.diff(np.concatenate([[0], cuts, [100]]))
    return ColorMix(
        tuple(ColorShare(name, Decimal(int(percent))) for name, percent in zip(names, percents, strict=True))
    )


def known_materials(recipe: Recipe) -> list[str]:
    """Return the materials that the base learns; the others are left for the adapters."""
    return [name for name in recipe.photographs.materials if name not in recipe.photographs.held_back]


def describe(recipe: Recipe, number: int) -> Example:
    """Return what photograph `number` shows."""
    random = np.random.default_rng([recipe.seed, number])
    materials = recipe.photographs.materials
    weights = np.array(list(materials.values()))
    material = str(random.choice(list(materials), p=weights / weights.sum()))
    return Example(draw_mix(random), material, int(random.integers(2**31)))


def draw_example(example: Example, side: int) -> NDArray[np.uint8]:
    """Return the photograph, (side, side, 3)."""
    return draw_photograph(example.mix, example.material, (side, side), example.seed)


def shard_count(recipe: PhotographRecipe, photographs: int | None = None) -> int:
    """Return how many shards hold that many photographs, or all of them for None."""
    return -(-(recipe.count if photographs is None else photographs) // recipe.shard)


def write_photographs(recipe: Recipe, folder: Path, photographs: int, workers: int) -> list[Path]:
    """Return the shards that hold the first `photographs` photographs; draw the missing ones."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = range(shard_count(recipe.photographs, photographs))
    paths = [folder / f"{shard:05d}.npy" for shard in shards]
    missing = [shard for shard in shards if not paths[shard].exists()]
    if missing:
        logger.info("drawing %d shards of %d photographs", len(missing), recipe.photographs.shard)
        if workers == 1:
            for shard in missing:
                _write_shard(recipe, shard, folder)
        else:
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                list(pool.map(_write_shard, [recipe] * len(missing), missing, [folder] * len(missing)))
    return paths


def _write_shard(recipe: Recipe, shard: int, folder: Path) -> None:
    first = shard * recipe.photographs.shard
    numbers = range(first, first + recipe.photographs.shard)
    side = recipe.photographs.side
    save_array(
        folder / f"{shard:05d}.npy", np.stack([draw_example(describe(recipe, n), side) for n in numbers])
    )
