"""One request for a picture, checked: what `predict()`, the command line and the studio all build.

None means "what the model manifest says". The ranges stand here once more than in the HTTP schema,
because a server without its schema file passes everything through.
"""

from __future__ import annotations

import dataclasses
import math
import secrets
from dataclasses import dataclass

from tilemix.errors import PromptError, RequestError, Value
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
            check_text(self.negative_prompt, field="negative_prompt")
        _check_integer("seed", self.seed, 0, MAX_SEED)
        _check_integer("width", self.width, *SIZE_RANGE, multiple=SIZE_MULTIPLE)
        _check_integer("height", self.height, *SIZE_RANGE, multiple=SIZE_MULTIPLE)
        _check_integer("num_inference_steps", self.num_inference_steps, *STEPS_RANGE)
        _check_number("guidance_scale", self.guidance_scale, *GUIDANCE_RANGE)
        _check_number("lora_scale", self.lora_scale, *LORA_SCALE_RANGE)
        if self.output_format not in OUTPUT_FORMATS:
            typed, known = _shorten(self.output_format), ", ".join(OUTPUT_FORMATS)
            raise RequestError("input-unknown-choice", field="output_format", typed=typed, known=known)

    def with_seed(self) -> GenerationRequest:
        """Return this request with a seed: its own, or a fresh 32-bit draw."""
        if self.seed is not None:
            return self
        return dataclasses.replace(self, seed=secrets.randbelow(MAX_SEED + 1))


def _check_is_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise PromptError("input-not-text", field=name, typed=_shorten(value))


def _check_integer(name: str, value: object, low: int, high: int, *, multiple: int = 1) -> None:
    if value is None:
        return
    typed = _shorten(value)
    # bool is an int in Python, and a server without a schema passes 1.0 for 1.
    if type(value) is not int:
        raise RequestError("input-not-integer", field=name, typed=typed, low=low, high=high)
    if multiple > 1 and (not low <= value <= high or value % multiple):
        raise RequestError(
            "input-not-multiple", field=name, typed=typed, low=low, high=high, multiple=multiple
        )
    if not low <= value <= high:
        raise RequestError("input-out-of-range", field=name, typed=typed, low=low, high=high)


def _check_number(name: str, value: object, low: float, high: float) -> None:
    if value is None:
        return
    typed = _shorten(value)
    if type(value) not in (int, float):
        raise RequestError("input-not-number", field=name, typed=typed, low=low, high=high)
    assert isinstance(value, int | float)
    if not low <= value <= high or math.isnan(value):
        raise RequestError("input-out-of-range", field=name, typed=typed, low=low, high=high)


def _shorten(value: object) -> Value:
    """Return a value for a message: a number as it is where JSON can hold it, other things as text."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"  # Python refuses to write over 4,300 digits
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 40 else f"{text[:36]}..."
