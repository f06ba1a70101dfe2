"""One request for a picture: as `predict()`, the command line and the studio build it, and as it is drawn.

The limits are checked here, too, because a server without its schema file lets every value through.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from tilemix.inputs import IntegerInput, find_input, load_inputs
from tilemix.prompts.checks import check_prompt, check_text

FRESH = -1  # a seed to be drawn
DEFAULT_SCALE = 0.7  # of a LoRA that is added, or stands in a manifest, without one


class Defaults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a request that leaves an input out gets; each model's manifest has its own."""

    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    strength: float = 1.0  # 1: from noise alone

    def check(self) -> None:
        """Hold the defaults to the inputs' limits.

        Raises:
            RequestError: one is out of range.
        """
        for name, value in msgspec.structs.asdict(self).items():
            load_inputs()[name].check(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """Everything that decides a picture, apart from the model. `data/inputs.json` has each input's limits.

    Raises:
        PromptError: a text is empty, too long or holds characters that are not plain text.
        RequestError: a number or a choice is not within its limits.
    """

    prompt: str  # as typed
    negative_prompt: str | None = None  # None: the template's; "" is really empty
    seed: int | None = None  # None: a fresh draw; so is -1, as in other tools, which becomes None
    width: int | None = None  # pixels; None, as in what follows: the manifest's
    height: int | None = None  # pixels
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    lora_scale: float | None = None  # of every LoRA; None: each has its own
    strength: float | None = None  # how much of the draft is drawn anew; None: the model's
    granule_size: str = "medium"  # of the draft
    output_format: str = "png"
    variation_seed: int | None = None  # of the noise that is mixed in; None and -1: a fresh draw
    variation_strength: float | None = None  # how much of it; None: 0
    clip_skip: int | None = None  # layer of the text encoders, counted from the last; None: the base's own
    task: str | None = None  # of weights/tasks.json; "" becomes None

    def __post_init__(self) -> None:
        for name, row in load_inputs().items():
            row.check(getattr(self, name))
        for name in ("seed", "variation_seed"):
            if getattr(self, name) == FRESH:
                object.__setattr__(self, name, None)
        if self.task == "":
            object.__setattr__(self, "task", None)
        check_prompt(self.prompt)
        if self.negative_prompt is not None:
            check_text(self.negative_prompt, field="negative_prompt")

    def with_seed(self) -> GenerationRequest:
        """Return this request with its seeds: its own, or fresh 32-bit draws."""
        needed = ["seed", "variation_seed"] if self.variation_strength else ["seed"]
        fresh: dict[str, Any] = {name: draw_seed() for name in needed if getattr(self, name) is None}
        return dataclasses.replace(self, **fresh)

    def with_next_seed(self) -> GenerationRequest:
        """Return this request, which has a seed, with the next one; after the largest comes 0."""
        assert self.seed is not None
        return dataclasses.replace(
            self, seed=(self.seed + 1) % (find_input("seed", IntegerInput).maximum + 1)
        )

    def resolve(
        self, defaults: Defaults, *, negative_prompt: str, lora_scales: Mapping[str, float]
    ) -> ResolvedRequest:
        """Fill in what was left out.

        Args:
            defaults: the model's.
            negative_prompt: the template's.
            lora_scales: the model's LoRAs, by file, each with its own scale.
        """
        given = {name: getattr(self, name) for name in defaults.__struct_fields__}
        chosen = {name: value for name, value in given.items() if value is not None}
        return ResolvedRequest(
            prompt=self.prompt,
            negative_prompt=negative_prompt if self.negative_prompt is None else self.negative_prompt,
            seed=draw_seed() if self.seed is None else self.seed,
            granule_size=self.granule_size,
            variation=self._resolve_variation(),
            clip_skip=self.clip_skip,
            lora_scales=lora_scales
            if self.lora_scale is None
            else dict.fromkeys(lora_scales, self.lora_scale),
            **(msgspec.structs.asdict(defaults) | chosen),
        )

    def _resolve_variation(self) -> Variation | None:
        if not self.variation_strength:
            return None
        seed = draw_seed() if self.variation_seed is None else self.variation_seed
        return Variation(seed, self.variation_strength)


class Variation(NamedTuple):
    """A second noise, mixed into the first."""

    seed: int
    strength: float  # above 0; 1: the second alone


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedRequest:
    """What is drawn: nothing in it is left out."""

    prompt: str  # as typed
    negative_prompt: str
    seed: int
    width: int  # pixels
    height: int  # pixels
    num_inference_steps: int
    guidance_scale: float
    strength: float  # of a draft; 1: from noise alone
    granule_size: str
    variation: Variation | None  # None: the noise of `seed` alone
    clip_skip: int | None  # None: the base's own
    lora_scales: Mapping[str, float]  # by file; empty: the model has no LoRA


def draw_seed() -> int:
    """Return a fresh seed, of 32 bits."""
    return secrets.randbelow(find_input("seed", IntegerInput).maximum + 1)
