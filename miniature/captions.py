"""Captions of the photographs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from miniature.dataset import Example

# The first is what the miniature's prompt template sends; the others keep the words around a mix from mattering.
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
    """Return a caption of the photograph; six in ten are worded as the prompt template words them."""
    chosen = 0 if random.random() < 0.6 else int(random.integers(1, len(ENDINGS)))
    caption = f"{example.mix}, {ENDINGS[chosen]}"
    if random.random() < 0.15:
        caption = f"{BEGINNINGS[int(random.integers(len(BEGINNINGS)))]}, {caption}"
    return caption.format(material=example.material)
