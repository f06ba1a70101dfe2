"""Whether an adapter fits a model, proved as the loader does it, on the shapes that the model's configurations tell."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tilemix.adapters.embedding_file import check_fit, read_embedding
from tilemix.adapters.hypernetwork import read_hypernetwork
from tilemix.adapters.lora_file import read_lora
from tilemix.adapters.names import find_weights, spell_modules
from tilemix.errors import AdapterError
from tilemix.modelfile.base_families import SD1, SDXL, BaseFamily
from tilemix.system.quiet import quiet_libraries

if TYPE_CHECKING:
    from tilemix.adapters.names import ModuleKey, Target

DATA = Path(__file__).parents[1] / "data"
# The published configurations, for a base that is not here yet.
PUBLISHED = {
    "stabilityai/stable-diffusion-xl-base-1.0": DATA / "sdxl",
    "black-forest-labs/FLUX.1-dev": DATA / "flux1",
}
SAME_IN_ALL = {SD1.name: DATA / "sd1"}  # every model of the family has these sizes
LIBRARIES = ("diffusers", "transformers")  # whose classes a base may name


class Shapes:
    """The shapes of a base model: its components without weights.

    Args:
        components: on torch's `meta` device.
        family: of the base.
    """

    def __init__(self, components: Mapping[str, torch.nn.Module], family: BaseFamily) -> None:
        self._family = family
        self.weights: dict[ModuleKey, torch.Tensor] = find_weights(components)
        self.names: dict[str, Target] = spell_modules(components)
        self.widths: dict[str, int] = {
            name: components[name].get_input_embeddings().weight.shape[1]  # type: ignore[operator]
            for name in family.encoders
        }

    def prove_lora(self, path: Path, token_count: int) -> None:
        """Refuse a LoRA that does not fit completely, or whose embeddings do not; how those are named is not asked.

        Args:
            path: its file, its PEFT folder or its training's archive.
            token_count: how many tokens the embeddings in it have; 0: there are none.

        Raises:
            AdapterError: it does not.
        """
        lora = read_lora(path, self.weights, self.names, self._family, are_named=True)
        if lora.embedding is not None:
            check_fit(lora.embedding, self.widths, token_count)

    def prove_hypernetwork(self, path: Path) -> None:
        """Prove that the hypernetwork `path` can be loaded completely, and that the family takes any.

        Raises:
            ModelFileError: it cannot be read.
            AdapterError: it does not fit.
        """
        if not self._family.takes_hypernetworks:
            raise AdapterError("hypernetwork-family", file=path.name, base=self._family.base)
        read_hypernetwork(path, torch.device("cpu"), torch.float32)

    def prove_embedding(self, path: Path, token_count: int) -> None:
        """Refuse an embedding that does not fit the text encoders, or does not have a row for each token.

        Raises:
            AdapterError: it does not.
        """
        read_embedding(path, self.widths, token_count=token_count, family=self._family)


def read_shapes(base: Path, repository: str | None, family: BaseFamily = SDXL) -> Shapes:
    """Return the shapes of the base model in the folder `base`, whose weights need not be there.

    Args:
        base: a folder in diffusers' layout.
        repository: where the base comes from; the published configurations of known ones stand in for missing files.
        family: of the base.

    Raises:
        AdapterError: nothing tells the shapes.
    """
    for folder in filter(None, (base, PUBLISHED.get(repository or ""), SAME_IN_ALL.get(family.name))):
        files = [folder / "model_index.json", *(folder / name / "config.json" for name in family.components)]
        if all(path.is_file() for path in files):
            return _build_shapes(folder, family, tuple(path.stat().st_mtime_ns for path in files))
    raise AdapterError("weights-unproved", folder=str(base))


@lru_cache(maxsize=4)
def _build_shapes(folder: Path, family: BaseFamily, _: tuple[int, ...]) -> Shapes:
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    try:
        with quiet_libraries(), torch.device("meta"):
            components = {name: _build(folder / name, *index[name]) for name in family.components}
            return Shapes(components, family)
    # What the libraries raise for configurations that are none of theirs.
    except (AttributeError, ImportError, KeyError, OSError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:120]
        raise AdapterError("weights-not-loadable", file=str(folder), part="model", reason=reason) from error


def _build(folder: Path, library: str, class_name: str) -> torch.nn.Module:
    if library not in LIBRARIES:
        raise ValueError(f"{library} is not one of {', '.join(LIBRARIES)}")
    kind = getattr(importlib.import_module(library), class_name)
    if library == "diffusers":
        module: torch.nn.Module = kind.from_config(kind.load_config(folder))
    else:
        module = kind(kind.config_class.from_json_file(folder / "config.json"))
    return module
