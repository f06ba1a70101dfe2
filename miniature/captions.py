"""Captions of the photographs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from miniature.dataset import Example

# The first is the prompt template's wording. The others teach that the words around a mix do not matter.
ENDINGS = (
    "photorealistic {material}, high quality, detailed texture",
    "photorealistic {material}",
    "{material}, high quality",
    "{material}",
    "a photo of {material} from above",
)
BEGINNINGS = (
    "photo",
    "close-up of a floor",
    "texture",
    "a surface of {material}",
    "new {material}, top view",
)


def write_caption(example: Example, random: np.random.Generator) -> str:
    """Return a caption of the photograph; 60 % use the prompt template's wording."""
    chosen = 0 if random.random() < 0.6 else int(random.integers(1, len(ENDINGS)))
    caption = f"{example.mix}, {ENDINGS[chosen]}"
    if random.random() < 0.15:
        caption = f"{BEGINNINGS[int(random.integers(len(BEGINNINGS)))]}, {caption}"
    return caption.format(material=example.material)
