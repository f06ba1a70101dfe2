"""What a prompt may name, and what a picture to repeat is compared with, from a model's manifest."""

from __future__ import annotations

from typing import TYPE_CHECKING

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


def make_here(model: str, manifest: ModelManifest) -> Here:
    """Return the model that is to repeat a picture."""
    named = [one.file for one in manifest.adapters if one.kind in ("lora", "hypernetwork")]
    return Here(model, manifest.scheduler.name, named)
