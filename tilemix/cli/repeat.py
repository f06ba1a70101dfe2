"""`tilemix predict --from-image`: the inputs that a picture was made with, and whether it comes out again."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from tilemix.pictures.files import encode_image
from tilemix.pictures.infotext import Infotext
from tilemix.pictures.reading import decode_picture, open_picture, origin_of
from tilemix.pictures.record import Record
from tilemix.pictures.repeating import Repeat, compare_records, repeat_origin
from tilemix.request import GenerationRequest
from tilemix.weights.prompting import make_here

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image

    from tilemix.errors import Message
    from tilemix.render import Rendered, Renderer
    from tilemix.weights.manifest import ModelManifest

logger = logging.getLogger(__name__)

PRECISIONS = {"float32": "fp32", "bfloat16": "bf16"}  # dtype -> TILEMIX_PRECISION


@dataclass(frozen=True, slots=True)
class Source:
    """A picture that is to be repeated."""

    picture: Image
    origin: Record | Infotext

    @classmethod
    def read(cls, path: Path) -> Source:
        """Read a picture of ours or of another program.

        Raises:
            ImageFileError: it is not a picture, is broken, or says nothing of itself.
        """
        picture = open_picture(path)
        return cls(picture, origin_of(picture, source=str(path)))

    @property
    def model(self) -> str | None:
        """The packaged model that drew it; None: it was not one."""
        return self.origin.model if isinstance(self.origin, Record) else None

    def add_settings(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Return the environment in which it was drawn; what `environment` sets stands."""
        given = {name: value for name, value in environment.items() if value}
        if not isinstance(self.origin, Record):
            return given
        own = {
            "TILEMIX_SPEED": self.origin.speed,
            "TILEMIX_THREADS": str(self.origin.threads),
            "TILEMIX_COMPILE": str(int(self.origin.compiled)),
            "TILEMIX_PRECISION": PRECISIONS.get(self.origin.dtype, ""),
        }
        return own | given

    def repeat(self, model: str, manifest: ModelManifest) -> Repeat:
        """Return the inputs that it was made with, and what stands in the way of its repetition by a model."""
        return repeat_origin(self.origin, make_here(model, manifest))

    def settle(self, renderer: Renderer, inputs: dict[str, Any]) -> tuple[dict[str, Any], list[Message]]:
        """Return the inputs with which its own prompt is sent again, and what differs from then.

        Wildcards may have changed; then the prompt is the one with the choices made.

        Raises:
            PromptError: the text cannot be used.
        """
        record = self.origin
        if not isinstance(record, Record):
            return inputs, []
        planned = renderer.plan(GenerationRequest(**inputs))
        if record.chosen_prompt not in (msgspec.UNSET, planned.chosen_prompt):
            inputs = inputs | {"prompt": record.chosen_prompt}
            planned = renderer.plan(GenerationRequest(**inputs))
        return inputs, compare_records(record, planned)

    def count_changed(self, rendered: Rendered) -> int | None:
        """Return how many pixels of a picture of ours came out otherwise; None: it cannot be compared.

        The new picture is written in the format of this one and read again, because WebP and JPEG lose a little.
        """
        if not isinstance(self.origin, Record):
            return None
        output_format = str(self.picture.format).lower()
        data = encode_image(rendered.pixels, rendered.record, output_format=output_format)
        own = np.asarray(self.picture.convert("RGB"))
        new = np.asarray(decode_picture(data, source="the new picture").convert("RGB"))
        return int((own != new).any(axis=2).sum()) if own.shape == new.shape else None
