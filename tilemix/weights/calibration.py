"""`weights/NAME.calibration.json`: how a model draws colors from a draft, as `tilemix calibrate` found it.

It holds for the files of the model that it was made with, and for the colors that the palette had then.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec

from tilemix.errors import ManifestError
from tilemix.request import DEFAULT_SCALE
from tilemix.system.json_file import read_json
from tilemix.system.project import ROOT
from tilemix.weights.local import list_hashes, locate_calibration

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tilemix.weights.local import LocalModel
    from tilemix.weights.manifest import ModelManifest

MAX_FILE_BYTES = 4 * 2**20

logger = logging.getLogger(__name__)


class Figures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the trial's pictures measure, in the mean."""

    share_error: float  # percentage points
    worst_share: float  # the same of the worst color
    color_error: float  # delta E 2000
    not_asked: float  # percent
    texture: float  # distance to pictures from noise, in their spreads; 0 for those themselves


class DraftColor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The color that a draft must have so that the picture shows the palette's."""

    as_seen: str  # "#RRGGBB", the palette's
    draft: str  # "#RRGGBB"


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What `tilemix calibrate` found."""

    strength: float  # 1: no draft is better than noise
    colors: dict[str, DraftColor]  # word of the palette -> its color in a draft; empty: the palette's serve
    figures: dict[str, Figures]  # by what was tried
    files: dict[str, str | None]  # of the model: path in the manifest -> sha256; None: not locked
    lora_scale: float | None = None  # of every LoRA; None: each has its own
    prompt_template: str | None = None  # prompt_templates/NAME.json that measured better than the manifest's
    toned: bool = False  # whether a last step moves the granules of a draft to the palette's colors
    # Pixels: how wide the granules are that the model draws from noise and from a draft, in the median over mixes.
    granule_width: dict[str, float] = {}


def encode_calibration(calibration: Calibration) -> bytes:
    """Return the bytes of a calibration's file."""
    return msgspec.json.format(msgspec.json.encode(calibration), indent=2) + b"\n"


def load_calibration(model: LocalModel) -> Calibration | None:
    """Return a model's calibration; None: there is none, or its files are no longer those of the model.

    Raises:
        ManifestError: the file is there and cannot be read.
    """
    return read_calibration(model.name, model.calibration, model.hashes)


def find_calibration(model: str, manifest: ModelManifest, root: Path = ROOT) -> Calibration | None:
    """Return the calibration of a model whose files may be elsewhere; see load_calibration.

    Raises:
        ManifestError: the file is there and cannot be read.
    """
    return read_calibration(model, locate_calibration(model, root), list_hashes(manifest))


def read_calibration(model: str, path: Path, hashes: Mapping[str, str | None]) -> Calibration | None:
    """Return the calibration of the model `model` in the file `path`; `hashes`: see list_hashes.

    Raises:
        ManifestError: the file is there and cannot be read.
    """
    if not path.exists():
        return None
    calibration = read_json(path, Calibration, most=MAX_FILE_BYTES, refuse=ManifestError, name=path.name)
    changed = sorted(
        name
        for name in calibration.files.keys() | hashes.keys()
        if calibration.files.get(name, "") != hashes.get(name, "")
    )
    if changed:
        logger.warning(
            "%s is ignored: %s is not the file that it was made with; run `tilemix calibrate %s` again",
            path.name,
            changed[0],
            model,
        )
        return None
    return calibration


def resolve_strength(manifest: ModelManifest, calibration: Calibration | None) -> float:
    """Return the strength of a request that leaves it out: the calibration's, or else the manifest's."""
    return manifest.defaults.strength if calibration is None else calibration.strength


def resolve_lora_scales(manifest: ModelManifest, calibration: Calibration | None) -> dict[str, float]:
    """Return the scales of a request that leaves them out, by file: the calibration's, or else each LoRA's own."""
    own = {
        adapter.file: DEFAULT_SCALE if adapter.scale is None else adapter.scale
        for adapter in manifest.adapters
        if adapter.kind == "lora"
    }
    scale = None if calibration is None else calibration.lora_scale
    return own if scale is None else dict.fromkeys(own, scale)
