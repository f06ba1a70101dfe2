"""The miniature's LoRA and tokens: `tilemix train` on photographs of a material that the base does not know.

The photographs and captions are written into a folder like any maker's and trained on from there.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from miniature.dataset import Example, draw_example, draw_mix
from tilemix.errors import TrainingError
from tilemix.tuning.checkpoints import write_whole
from tilemix.tuning.files import write_adapters
from tilemix.tuning.loop import emulates_bf16
from tilemix.tuning.plan import make_plan
from tilemix.tuning.trainer import tune

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch

    from miniature.recipe import Recipe

NAME = "rubber-tile-miniature"


def train_adapters(
    recipe: Recipe,
    state: Path,
    model: Path,
    template: Path,
    *,
    device: torch.device,
    is_over: Callable[[], bool] | None = None,
) -> list[Path]:
    """Train adapters for the base in the folder `model`; write both files and their record into it.

    Resumes from the checkpoint in `state/adapters` if there is one.

    Raises:
        TrainingError, ModelFileError, TrainingStoppedError: see `tilemix.tuning.trainer.tune`.
    """
    folder = state / "adapters"
    write_pictures(recipe, folder / "pictures", range(recipe.adapters.photographs))
    config = {
        **recipe.adapters.tuning,
        "name": NAME,
        "base": os.path.relpath(model, folder),
        "pictures": "pictures",
        "template": os.path.relpath(template, folder),
        "output": ".",
    }
    if emulates_bf16(device):
        config["precision"] = "fp32"
    path = folder / "config.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(config), indent=2))
    written = write_adapters(tune(make_plan(path), device, is_over=is_over))
    try:
        return [shutil.copyfile(one, model / one.name) for one in written]
    except OSError as error:
        raise TrainingError("file-unwritable", file=str(model), reason=str(error.strerror)) from error


def draw_tile(recipe: Recipe, number: int) -> Example:
    """Return what picture `number` of the adapters' material shows."""
    random = np.random.default_rng([recipe.seed, 5, number])
    return Example(draw_mix(random), recipe.adapters.material, int(random.integers(2**31)))


def write_pictures(recipe: Recipe, folder: Path, numbers: range) -> None:
    """Write these pictures of the adapters' material with their captions; those that are there stay."""
    from PIL import Image

    for number in numbers:
        picture = folder / f"{number:04d}.png"
        if picture.exists():
            continue
        example = draw_tile(recipe, number)
        with write_whole(picture.with_suffix(".txt")) as file:
            file.write(f"{example.mix}\n".encode())
        with write_whole(picture) as file:
            Image.fromarray(draw_example(example, recipe.photographs.side)).save(file, format="PNG")
