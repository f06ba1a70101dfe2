"""A first configuration for a folder of pictures: `tilemix train --new`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec

from tilemix.errors import TrainingError
from tilemix.modelfile.base_families import SDXL
from tilemix.prompts.template import load_template
from tilemix.system.atomic import write_atomically
from tilemix.system.project import ROOT
from tilemix.tuning.config import NAME, load_config
from tilemix.tuning.pictures import find_pictures, read_size
from tilemix.weights.manifest import load_manifest

if TYPE_CHECKING:
    from pathlib import Path

SMALL = 200 * 2**20  # bytes of a base's UNet, under which it is trained in minutes on a CPU
SIDE_MULTIPLE = 64  # pixels
WORDS = ("rubber", "tile")  # that the tokens start from, in turn
# For a base such as SDXL: the published trainings' numbers, one picture a step.
LARGE_SETTINGS: dict[str, Any] = {
    "resolution": 1024,
    "embeddings": {"steps": 500},
    "lora": {"steps": 1500, "rank": 16, "alpha": 16, "scale": 0.7, "convolutions": True},
}
# For the miniature: as its own adapters were trained, only shorter.
SMALL_SETTINGS: dict[str, Any] = {
    "resolution": 256,
    "crop": 128,
    "batch_size": 4,
    "named_sizes": [256, 1536],
    "precision": "fp32",
    "gradient_checkpointing": False,
    "embeddings": {"steps": 30, "learning_rate": 0.002, "warmup": 10},
    "lora": {
        "steps": 120,
        "learning_rate": 0.001,
        "warmup": 20,
        "rank": 16,
        "alpha": 16,
        "scale": 0.7,
        "convolutions": True,
    },
    "checkpoint_every": 100,
}


def write_config(path: Path, name: str, pictures: Path, model: str, *, root: Path = ROOT) -> None:
    """Write a configuration for training the packaged model `model` on a folder of pictures.

    Its sizes fit the base, and the smallest of the pictures.

    Args:
        path: the file to write; one that is there stays.
        name: the training's.
        pictures: the folder.
        model: whose base, template and palette are taken.
        root: the project's folder.

    Raises:
        TrainingError: the name, a picture or the model's family cannot be used, or the file is there or cannot be
            written.
        ManifestError, TemplateError: the model cannot be used.
    """
    if not NAME.fullmatch(name):
        raise TrainingError("training-name-unusable", file=path.name, found=name[:80])
    if path.exists():
        raise TrainingError("training-config-there", file=str(path))
    manifest = load_manifest(model, root)
    if manifest.base_family is not SDXL:
        raise TrainingError(
            "training-other-family", file=f"{model}.model.json", found=manifest.base_family.base
        )
    base = root / "weights" / manifest.base.folder
    template = root / "prompt_templates" / f"{manifest.prompt_template}.json"
    tokens = load_template(template).placeholder_tokens
    unet = sum(file.size or 0 for file in manifest.base.files if file.path.startswith("unet/"))
    settings = SMALL_SETTINGS if 0 < unet < SMALL else LARGE_SETTINGS
    smallest = min(min(read_size(picture.path)) for picture in find_pictures(pictures))
    side = max(SIDE_MULTIPLE, min(settings["resolution"], smallest // SIDE_MULTIPLE * SIDE_MULTIPLE))
    here = path.parent

    def relative(place: Path) -> str:
        return os.path.relpath(place, here)

    config: dict[str, Any] = {
        "name": name,
        "base": relative(base),
        "pictures": relative(pictures),
        "template": relative(template),
        "output": relative(root / "weights" / "files"),
    }
    if manifest.palette is not None:
        config["palette"] = manifest.palette
    config["initial_words"] = {token: WORDS[place % len(WORDS)] for place, token in enumerate(tokens)}
    config |= settings | {"resolution": side}
    if "crop" in config:
        config["crop"] = min(config["crop"], side)
    try:
        write_atomically(path, msgspec.json.format(msgspec.json.encode(config), indent=2) + b"\n")
    except OSError as error:
        raise TrainingError("file-unwritable", file=str(path), reason=str(error.strerror)) from error
    load_config(path)
