"""One request for a picture, checked: what `predict()`, the command line and the studio all build.

None means "what the model manifest says". The ranges stand here once more than in the HTTP schema,
because a server without its schema file passes everything through.
"""

from __future__ import annotations

import dataclasses
import math
import secrets
from dataclasses import dataclass

from tilemix.errors import PromptError, RequestError
from tilemix.prompts.checks import check_prompt, check_text

MAX_SEED = 2**32 - 1
SIZE_RANGE = (256, 1536)  # pixels
SIZE_MULTIPLE = 8  # the VAE makes one latent of 8 x 8 pixels
STEPS_RANGE = (1, 100)
GUIDANCE_RANGE = (1.0, 20.0)
LORA_SCALE_RANGE = (0.0, 1.5)
OUTPUT_FORMATS = ("png", "webp", "jpeg")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """Everything that decides a picture, apart from the model.

    Raises:
        PromptError: a text is empty, too long or holds characters that are no text.
        RequestError: a number or a choice is not in its range.
    """

    prompt: str  # as typed, 1 to 2,000 characters
    negative_prompt: str | None = None  # None: the template's; "" is really empty
    seed: int | None = None  # 0 to 4294967295; None: a fresh draw
    width: int | None = None  # pixels, 256 to 1536, a multiple of 8
    height: int | None = None
    num_inference_steps: int | None = None  # 1 to 100
    guidance_scale: float | None = None  # 1 to 20
    lora_scale: float | None = None  # 0 to 1.5; 1 is as trained
    output_format: str = "png"

    def __post_init__(self) -> None:
        _check_is_text("prompt", self.prompt)
        check_prompt(self.prompt)
        if self.negative_prompt is not None:
            _check_is_text("negative_prompt", self.negative_prompt)
            check_text(self.negative_prompt, what="negative_prompt")
        _check_integer("seed", self.seed, 0, MAX_SEED)
        _check_integer("width", self.width, *SIZE_RANGE, multiple=SIZE_MULTIPLE)
        _check_integer("height", self.height, *SIZE_RANGE, multiple=SIZE_MULTIPLE)
        _check_integer("num_inference_steps", self.num_inference_steps, *STEPS_RANGE)
        _check_number("guidance_scale", self.guidance_scale, *GUIDANCE_RANGE)
        _check_number("lora_scale", self.lora_scale, *LORA_SCALE_RANGE)
        if self.output_format not in OUTPUT_FORMATS:
            known = ", ".join(OUTPUT_FORMATS)
            raise RequestError(f"unknown output_format {_shorten(self.output_format)}; known: {known}")

    def with_seed(self) -> GenerationRequest:
        """Return this request with a seed: its own, or a fresh 32-bit draw."""
        if self.seed is not None:
            return self
        return dataclasses.replace(self, seed=secrets.randbelow(MAX_SEED + 1))


def _check_is_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise PromptError(f"{name} {_shorten(value)} is no text")


def _check_integer(name: str, value: object, low: int, high: int, *, multiple: int = 1) -> None:
    if value is None:
        return
    # bool is an int in Python, and a server without a schema passes 1.0 for 1.
    if type(value) is not int:
        raise RequestError(f"{name} {_shorten(value)} is no integer; expected {low} to {high}")
    if not low <= value <= high or value % multiple:
        rule = f", a multiple of {multiple}" if multiple > 1 else ""
        raise RequestError(f"{name} {_shorten(value)} is out of range; expected {low} to {high}{rule}")


def _check_number(name: str, value: object, low: float, high: float) -> None:
    if value is None:
        return
    if type(value) not in (int, float):
        raise RequestError(f"{name} {_shorten(value)} is no number; expected {low:g} to {high:g}")
    assert isinstance(value, int | float)
    if not low <= value <= high or math.isnan(value):
        raise RequestError(f"{name} {_shorten(value)} is out of range; expected {low:g} to {high:g}")


def _shorten(value: object) -> str:
    if isinstance(value, int) and value.bit_length() > 128:
        return f"of {value.bit_length()} bits"  # Python refuses to write an integer of over 4,300 digits
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:36]}..."
