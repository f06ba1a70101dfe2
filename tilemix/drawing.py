"""A request for a picture, carried out: drawn, written to a file and measured."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tilemix.pictures.files import write_image
from tilemix.pictures.measure import Measurement, has_swatch, measure_shares

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tilemix.render import Rendered
    from tilemix.request import GenerationRequest


class Draws(Protocol):
    """A loaded model, or several."""

    def render(
        self, request: GenerationRequest, *, on_step: Callable[[int, int], None] | None = None
    ) -> Rendered:
        """Draw the picture of a request; see `Renderer.render`."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A picture in its file, and what it shows."""

    rendered: Rendered
    size: int  # of the file, bytes
    save_seconds: float
    measured: Measurement | None  # None: no mix was read, or palette and chart have none of its colors


def draw_to_file(
    renderer: Draws,
    path: Path,
    request: GenerationRequest,
    *,
    on_step: Callable[[int, int], None] | None = None,
) -> Drawing:
    """Draw the picture of a request, write it to `path` in the request's format and measure its mix.

    Args:
        renderer: what draws.
        path: the file to write; it is there complete or not at all.
        request: what to draw.
        on_step: called after each denoising step with the steps done and the steps in all.

    Raises:
        PromptError: the text cannot be used.
        RenderError: the model gave no usable picture.
        ImageFileError: the file cannot be written.
    """
    rendered = renderer.render(request, on_step=on_step)
    began = time.perf_counter()
    size = write_image(path, rendered.pixels, rendered.record, output_format=request.output_format)
    save_seconds = time.perf_counter() - began
    return Drawing(rendered, size, save_seconds, measure_mix(rendered))


def measure_mix(rendered: Rendered) -> Measurement | None:
    """Measure the mix that a picture was asked for; None: no mix was read, or nothing measures its colors."""
    mix, palette = rendered.prompt.sent, rendered.palette
    return measure_shares(rendered.pixels, mix, palette) if mix and has_swatch(mix, palette) else None
