"""The second noise of a variation."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from tilemix.pipelines.noise import draw_noise, mix_noise, vary_added_noise

SHAPE = (1, 4, 16, 24)
ONE, OTHER = draw_noise(SHAPE, 1), draw_noise(SHAPE, 2)


def test_the_ends_of_the_arc_are_the_two_noises():
    assert torch.equal(mix_noise(ONE, OTHER, 1), OTHER)
    assert torch.allclose(mix_noise(ONE, OTHER, 0), ONE)
    assert torch.equal(mix_noise(ONE, ONE, 0.5), ONE)


@pytest.mark.parametrize("strength", [0.1, 0.5, 0.9])
def test_a_mixed_noise_is_as_strong_as_the_two(strength):
    """Their weighted mean would have a standard deviation of 0.71 at 0.5."""
    assert float(mix_noise(ONE, OTHER, strength).std()) == pytest.approx(1, abs=0.03)


def test_each_column_turns_along_its_own_arc():
    """The web UIs' formula, once more for one column."""
    one, other = ONE[0, 2, :, 5].tolist(), OTHER[0, 2, :, 5].tolist()
    angle = math.acos(
        sum(a * b for a, b in zip(one, other, strict=True)) / math.hypot(*one) / math.hypot(*other)
    )
    weights = math.sin(0.7 * angle) / math.sin(angle), math.sin(0.3 * angle) / math.sin(angle)
    expected = [weights[0] * a + weights[1] * b for a, b in zip(one, other, strict=True)]
    assert mix_noise(ONE, OTHER, 0.3)[0, 2, :, 5].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_a_scheduler_adds_the_mixed_noise_to_a_draft():
    draft, step = torch.zeros(SHAPE), torch.tensor([500])
    scheduler = DDIMScheduler()
    expected = scheduler.add_noise(draft, mix_noise(ONE, OTHER, 0.3), step)
    vary_added_noise(scheduler, OTHER.double(), 0.3)
    assert torch.equal(scheduler.add_noise(draft, ONE, step), expected)
    assert torch.equal(DDIMScheduler().add_noise(draft, ONE, step), expected) is False


def test_a_scheduler_of_flow_matching_does_too():
    draft = torch.zeros(SHAPE)
    plain, varied = (FlowMatchEulerDiscreteScheduler() for _ in range(2))
    step = plain.timesteps[500:501]
    vary_added_noise(varied, OTHER, 0.3)
    expected = plain.scale_noise(draft, step, mix_noise(ONE, OTHER, 0.3))
    assert torch.equal(varied.scale_noise(draft, step, ONE), expected)
