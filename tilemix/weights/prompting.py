"""What a prompt may name, and what a picture to repeat is compared with, from a model's manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tilemix.modelfile.hashes import compute_autov1
from tilemix.modelfile.sidecar_file import read_sidecar
from tilemix.pictures.repeating import Here
from tilemix.prompts.context import PromptContext
from tilemix.prompts.language.wildcards import Wildcards
from tilemix.system.project import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tilemix.weights.manifest import ModelManifest


TEMPLATES = ROOT / "prompt_templates"


def make_context(
    manifest: ModelManifest, *, seed: int, steps: int, templates: Path = TEMPLATES
) -> PromptContext:
    """Return what the prompt of a request for a model may name: its LoRAs, its embeddings, the project's wildcards."""
    family = manifest.base_family
    return PromptContext(
        seed=seed,
        steps=steps,
        loras=[adapter.file for adapter in manifest.adapters if adapter.kind == "lora"],
        hypernetworks=[adapter.file for adapter in manifest.adapters if adapter.kind == "hypernetwork"],
        embeddings={
            adapter.file: "".join(adapter.tokens)
            for adapter in manifest.adapters
            if adapter.kind == "embedding" and adapter.tokens
        },
        wildcards=Wildcards(templates / "wildcards"),
        without_negative=None if family.reads_negative_prompt else family.base,
    )


def make_here(model: str, manifest: ModelManifest, root: Path = ROOT) -> Here:
    """Return the model that is to repeat a picture.

    Raises:
        ModelFileError: its checkpoint, or the sidecar of that, cannot be read.
    """
    named = [one.file for one in manifest.adapters if one.kind in ("lora", "hypernetwork")]
    return Here(
        model,
        manifest.scheduler.name,
        named,
        hashes=_list_hashes(manifest, root),
        heeds_clip_skip=manifest.base_family.web_uis_skip,
    )


def _list_hashes(manifest: ModelManifest, root: Path) -> frozenset[str]:
    """Return what web UIs know a checkpoint in one file by, and the file that it was converted from."""
    found: set[object] = set()
    for file in manifest.base.files:
        if (
            "/" in file.path
            or not file.path.endswith(".safetensors")
            or file.path.endswith(".vae.safetensors")
        ):
            continue
        path = (root / "weights" / manifest.base.folder / file.path).resolve()
        if not path.is_file():
            continue
        origin = read_sidecar(path).get("converted_from")
        told = origin if isinstance(origin, dict) else {}
        found |= {told.get("autov1"), told.get("autov2"), compute_autov1(path), (file.sha256 or "")[:10]}
    return frozenset(one.lower() for one in found if isinstance(one, str) and one)
