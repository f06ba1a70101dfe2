import time

import pytest
import torch

from tilemix.conditioning import encode_prompt, read_plain_words
from tilemix.errors import PromptError
from tilemix.pipeline import load_pipeline
from tilemix.weights import find_model

MIX = "ohwx_rubber_tile, 50% red, 30% black, 20% pearl, photorealistic rubber tile"


@pytest.fixture(scope="module")
def pipeline(tiny_project):
    return load_pipeline(find_model("tiny", tiny_project), torch.device("cpu"), torch.float32).pipeline


@pytest.mark.parametrize("negative", ["", "blurry, text"])
def test_a_plain_prompt_is_encoded_bit_for_bit_as_diffusers_does(pipeline, negative):
    found = encode_prompt(pipeline, MIX, negative)
    embeds, negative_embeds, pooled, negative_pooled = pipeline.encode_prompt(MIX, negative_prompt=negative)
    assert torch.equal(found.prompt_embeds, embeds)
    assert torch.equal(found.negative_prompt_embeds, negative_embeds)
    assert torch.equal(found.pooled_prompt_embeds, pooled)
    assert torch.equal(found.negative_pooled_prompt_embeds, negative_pooled)


def test_an_empty_negative_prompt_is_encoded_and_is_not_zeros(pipeline):
    found = encode_prompt(pipeline, MIX, "")
    assert found.negative_prompt_embeds.abs().max() > 0.1
    assert found.negative_pooled_prompt_embeds.abs().max() > 0.1


def test_the_pooled_vector_comes_from_the_plain_words(pipeline):
    """compel pools the text with the emphasis syntax still in it, which moved the vector by its own size."""
    emphasized = encode_prompt(pipeline, "a (red)1.3 tile++", "")
    plain = encode_prompt(pipeline, "a red tile", "")
    assert torch.equal(emphasized.pooled_prompt_embeds, plain.pooled_prompt_embeds)
    assert not torch.equal(emphasized.prompt_embeds, plain.prompt_embeds)


def test_a_long_prompt_is_encoded_in_chunks_of_77_and_the_negative_as_long(pipeline):
    words = ", ".join(f"word{i} speckled" for i in range(40))
    found = encode_prompt(pipeline, f"{MIX}, {words}", "")
    tokens = found.prompt_embeds.shape[1]
    assert tokens > 77
    assert tokens % 77 == 0
    assert found.negative_prompt_embeds.shape == found.prompt_embeds.shape
    short = encode_prompt(pipeline, MIX, "")
    assert not torch.equal(found.prompt_embeds[:, 77:154], short.prompt_embeds)


def test_emphasis_cannot_hang_the_server():
    """36 characters of nested parentheses took compel's parser over ten seconds."""
    began = time.process_time()
    read_plain_words("(a" * 12 + ")" * 12, what="prompt")
    read_plain_words("(" * 30, what="prompt")
    assert time.process_time() - began < 2
    with pytest.raises(PromptError, match="^prompt: parentheses nested too deep$"):
        read_plain_words("(a " * 300 + ")" * 300, what="prompt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a cat.swap(dog)", "prompt: .swap() is not supported"),
        ("red withLora(a,0.5)", "prompt: withLora() is not supported; lora_scale sets a LoRA's strength"),
        ('("a","b").blend(1)', "prompt: the emphasis cannot be read"),
        ('("")0.5', "prompt: emphasis on nothing"),
        ("(red)1000000", "prompt: emphasis of 1e+06, expected 0 to 5"),
        ("red" + "+" * 200, "prompt: emphasis of 1.8990"),
    ],
)
def test_what_compel_would_drop_or_choke_on_is_refused(pipeline, text, message):
    with pytest.raises(PromptError) as caught:
        encode_prompt(pipeline, text, "")
    assert str(caught.value).startswith(message)
    encode_prompt(pipeline, MIX, "")
