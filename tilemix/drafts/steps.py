"""How many denoising steps a request draws: all of them from noise, the last ones over a draft."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from tilemix.prompts.mix import ColorMix
    from tilemix.prompts.rewrite import Prompt

LEAST_STEPS = (
    1.5  # of a draft, rounded down; half a step more than one, so that rounding errors do not matter
)

Draft = TypeVar("Draft")


def limit_strength(strength: float, steps: int) -> float:
    """Return the strength over a draft, with which at least two of `steps` steps are drawn."""
    return min(max(strength, LEAST_STEPS / steps), 1.0)


def settle_steps(
    rewrite: Callable[[int], Prompt],
    lay_out: Callable[[ColorMix], Draft | None],
    *,
    steps: int,
    strength: float,
) -> tuple[Prompt, Draft | None, int]:
    """Return a request's prompt, the draft to draw from, and the number of steps that are drawn.

    When an edit changes the prompt depends on the steps, and whether there is a draft on the prompt.

    Args:
        rewrite: reads the prompt for a number of drawn steps.
        lay_out: makes the draft of a mix; None: a color has no swatch.
        steps: those of a picture from noise.
        strength: how much of the draft is drawn anew; 1: from noise alone.
    """
    drawn = int(steps * limit_strength(strength, steps))
    prompt = rewrite(drawn)
    # A single step starts from pure noise.
    draft = None if strength == 1 or steps == 1 or prompt.sent is None else lay_out(prompt.sent)
    if draft is None and drawn < steps:
        drawn = steps
        prompt = rewrite(drawn) if prompt.is_timed else prompt
    return prompt, draft, drawn
