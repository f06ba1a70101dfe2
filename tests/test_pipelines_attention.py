"""The joined products and the kept keys and values against diffusers' own attention, bit for bit."""

import copy

import pytest
import torch

from tests.tiny_sdxl import build_pipeline
from tilemix.pipelines.attention import CrossAttention, SelfAttention, speed_attention


@pytest.fixture(scope="module")
def unets():
    """The same UNet with diffusers' attention and with ours, and what keeps the keys."""
    theirs = build_pipeline(0).unet
    ours = copy.deepcopy(theirs)
    return theirs, ours, speed_attention(ours)


def make_inputs(seed: int, count: int = 2) -> tuple[torch.Tensor, dict[str, object]]:
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731  shorter
    text, added = draw(count, 77, 80), {"text_embeds": draw(count, 48), "time_ids": draw(count, 6)}
    return draw(count, 4, 32, 32), {"encoder_hidden_states": text, "added_cond_kwargs": added}


def run(unet, sample, inputs, timestep=500.0):
    with torch.inference_mode():
        return unet(sample, torch.tensor(timestep), return_dict=False, **inputs)[0]


def count_projections(unet, call) -> int:
    """How often a key or a value of the text is computed."""
    counted = []
    handles = [
        getattr(module, name).register_forward_hook(lambda *_: counted.append(1))
        for path, module in unet.named_modules()
        if path.endswith("attn2")
        for name in ("to_k", "to_v")
    ]
    try:
        call()
    finally:
        for handle in handles:
            handle.remove()
    return len(counted)


@pytest.mark.slow
def test_every_step_is_bit_equal_to_diffusers_own(unets):
    theirs, ours, keys = unets
    sample, inputs = make_inputs(1)
    with keys.kept():
        for timestep in (999.0, 500.0, 1.0):
            assert torch.equal(run(ours, sample, inputs, timestep), run(theirs, sample, inputs, timestep))
    assert torch.equal(run(ours, sample, inputs), run(theirs, sample, inputs))


@pytest.mark.slow
def test_keys_and_values_are_computed_once_a_run(unets):
    _, ours, keys = unets
    sample, inputs = make_inputs(1)
    blocks = sum(isinstance(processor, CrossAttention) for processor in ours.attn_processors.values())
    assert blocks == len(ours.attn_processors) / 2 > 0

    def run_three_steps():
        for timestep in (999.0, 500.0, 1.0):
            run(ours, sample, inputs, timestep)

    with keys.kept():
        assert count_projections(ours, run_three_steps) == 2 * blocks
    assert count_projections(ours, run_three_steps) == 3 * 2 * blocks


@pytest.mark.slow
def test_another_text_in_the_same_run_has_its_own_keys(unets):
    theirs, ours, keys = unets
    with keys.kept():
        for seed, count in ((1, 2), (2, 2), (3, 1)):
            sample, inputs = make_inputs(seed, count)
            assert torch.equal(run(ours, sample, inputs), run(theirs, sample, inputs))


@pytest.mark.slow
def test_nothing_is_kept_after_an_error_or_a_cancellation(unets):
    theirs, ours, keys = unets
    sample, inputs = make_inputs(1)

    def cancel(*_):
        raise KeyboardInterrupt

    last = ours.conv_out.register_forward_hook(cancel)
    with pytest.raises(KeyboardInterrupt), keys.kept():
        run(ours, sample, inputs)
    last.remove()
    changed = [
        (one.get_submodule(path), module.to_k.weight.clone())
        for path, module in theirs.named_modules()
        if path.endswith("attn2")
        for one in (theirs, ours)
    ]
    try:
        for module, _ in changed:
            module.to_k.weight.data.mul_(2)  # as another LoRA would
        assert torch.equal(run(ours, sample, inputs), run(theirs, sample, inputs))
        with keys.kept():
            assert torch.equal(run(ours, sample, inputs), run(theirs, sample, inputs))
    finally:
        for module, weight in changed:
            module.to_k.weight.data.copy_(weight)


def find_self_attention(unet):
    name = next(name for name in unet.attn_processors if "attn1" in name)
    return unet.get_submodule(name.removesuffix(".processor"))


@pytest.mark.slow
def test_what_is_merged_into_one_projection_is_in_the_joined_one(unets):
    theirs, ours, _ = unets
    sample, inputs = make_inputs(1)
    before = run(theirs, sample, inputs)
    weights = [find_self_attention(unet).to_v.weight for unet in (theirs, ours)]
    plain = weights[0].detach().clone()
    try:
        for weight in weights:
            with torch.inference_mode():
                weight.copy_(2 * plain)
        after = run(theirs, sample, inputs)
        assert not torch.equal(after, before)
        assert torch.equal(run(ours, sample, inputs), after)
    finally:
        for weight in weights:
            weight.data.copy_(plain)


def test_self_attention_takes_one_product(unets):
    _, ours, _ = unets
    attention = find_self_attention(ours)
    assert {type(p) for name, p in ours.attn_processors.items() if "attn1" in name} == {SelfAttention}
    with torch.profiler.profile() as profile:
        attention(torch.zeros(1, 16, attention.to_q.in_features))
    assert sum(event.key == "aten::linear" and event.count for event in profile.key_averages()) == 2


def test_the_model_has_the_same_tensors_as_before(unets):
    """A file written from it is a plain SDXL's, and no weight is held twice."""
    theirs, ours, _ = unets
    assert [*ours.state_dict()] == [*theirs.state_dict()]
    attention = find_self_attention(ours)
    assert attention.to_k.weight.untyped_storage().data_ptr() == attention.qkv_weight.data_ptr()


@pytest.mark.slow
def test_kept_keys_stay_at_their_address(unets):
    """Code that was compiled, or recorded as a CUDA graph, looks for them there."""
    _, ours, keys = unets
    attention = next(one for name, one in ours.named_modules() if name.endswith("attn2"))
    addresses = set()
    for seed in (1, 2):
        with keys.kept():
            run(ours, *make_inputs(seed))
        addresses.add(attention.text_key.data_ptr())
    assert len(addresses) == 1
