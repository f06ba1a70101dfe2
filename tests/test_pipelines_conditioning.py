import random
import re
from functools import partial

import pytest
import torch

from tests.pace import assert_quick, processor_seconds
from tilemix.errors import PromptError
from tilemix.pipelines import conditioning
from tilemix.pipelines.conditioning import KEPT_PROMPTS, PromptEncoder, parse_emphasis
from tilemix.pipelines.loading import load_pipeline
from tilemix.pipelines.sdxl import Conditioning, encode_prompt, encode_with_compel
from tilemix.weights import find_model

MIX = "ohwx_rubber_tile, 50% red, 30% black, 20% pearl, photorealistic rubber tile"


@pytest.fixture(scope="module")
def pipeline(tiny_project):
    return load_pipeline(find_model("tiny", tiny_project), torch.device("cpu"), torch.float32).base.pipeline


def check_close(found: Conditioning, expected: Conditioning) -> None:
    """A product of two rows may add up in another order than one of a single row: the last bit."""
    for name, tensor in found.tensors.items():
        torch.testing.assert_close(tensor, expected.tensors[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("negative", ["", "blurry, text"])
def test_a_plain_prompt_is_encoded_as_diffusers_does(pipeline, negative):
    found = encode_prompt(pipeline, MIX, negative)
    embeds, negative_embeds, pooled, negative_pooled = pipeline.encode_prompt(MIX, negative_prompt=negative)
    check_close(found, Conditioning(embeds, pooled, negative_embeds, negative_pooled))


def test_an_empty_negative_prompt_is_encoded_and_is_not_zeros(pipeline):
    found = encode_prompt(pipeline, MIX, "")
    assert found.negative_prompt_embeds.abs().max() > 0.1
    assert found.negative_pooled_prompt_embeds.abs().max() > 0.1


def test_the_pooled_vector_comes_from_the_plain_words(pipeline):
    """compel pools the text with the emphasis syntax still in it, which moved the vector by its own size."""
    emphasized = encode_prompt(pipeline, "a (red)1.3 tile++", "")
    plain = encode_prompt(pipeline, "a red tile", "")
    torch.testing.assert_close(
        emphasized.pooled_prompt_embeds, plain.pooled_prompt_embeds, rtol=1e-6, atol=1e-6
    )
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

    def read() -> None:
        parse_emphasis("(a" * 12 + ")" * 12, field="prompt")
        parse_emphasis("(" * 30, field="prompt")

    assert_quick(lambda: processor_seconds(read), 2)
    with pytest.raises(PromptError, match="^prompt: parentheses nested too deep$"):
        parse_emphasis("(a " * 300 + ")" * 300, field="prompt")


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


def same(first: Conditioning, second: Conditioning) -> bool:
    return all(torch.equal(tensor, second.tensors[name]) for name, tensor in first.tensors.items())


def count_passes(pipeline, call) -> dict[str, int]:
    """How often each text encoder is run."""
    passes = {"text_encoder": 0, "text_encoder_2": 0}
    handles = []
    for name in passes:

        def count(*_, name=name):
            passes[name] += 1

        handles.append(getattr(pipeline, name).register_forward_pre_hook(count))
    try:
        call()
    finally:
        for handle in handles:
            handle.remove()
    return passes


PLAIN = [
    (MIX, ""),
    ("", ""),
    (MIX, "blurry, (text)"),
    ("wow! great!!", "a \\(red\\) tile"),
    ("red " * 75, "x"),
]


@pytest.mark.parametrize(("positive", "negative"), PLAIN)
def test_plain_words_are_encoded_in_one_pass_each_as_by_compel(pipeline, positive, negative):
    found = []
    passes = count_passes(pipeline, lambda: found.append(encode_prompt(pipeline, positive, negative)))
    assert passes == {"text_encoder": 1, "text_encoder_2": 1}
    plain = [parse_emphasis(text, field="prompt").words for text in (positive, negative)]
    with torch.inference_mode():
        check_close(found[0], encode_with_compel(pipeline, [positive, negative], plain))


@pytest.mark.parametrize("positive", ["a (red)1.3 tile", "red++", '("a", "b").and()', "red " * 76])
def test_emphasis_and_long_prompts_go_through_compel(pipeline, positive):
    passes = count_passes(pipeline, lambda: encode_prompt(pipeline, positive, ""))
    assert passes["text_encoder_2"] > 1


def test_a_repeated_prompt_is_not_encoded_again_until_the_state_changes(pipeline):
    state = ["a"]
    encoder = PromptEncoder(partial(encode_prompt, pipeline), lambda: state[0])
    first = encoder.encode(MIX, "")
    nothing = {"text_encoder": 0, "text_encoder_2": 0}
    assert count_passes(pipeline, lambda: encoder.encode(MIX, "")) == nothing
    assert encoder.encode(MIX, "") is first
    assert encoder.encode(MIX, "blurry") is not first
    assert encoder.encode("red", "") is not first
    state[0] = "b"
    again = encoder.encode(MIX, "")
    assert again is not first
    assert same(again, first)  # nothing but the state's name has changed here
    state[0] = "a"
    assert encoder.encode(MIX, "") is first


def test_only_the_last_prompts_are_kept():
    encoder = PromptEncoder(lambda *_: object(), lambda: None)
    first = encoder.encode("first", "")
    for number in range(KEPT_PROMPTS - 1):
        encoder.encode(str(number), "")
    assert encoder.encode("first", "") is first  # used again: now the youngest
    for number in range(KEPT_PROMPTS - 1):
        encoder.encode(f"other {number}", "")
    assert encoder.encode("first", "") is first
    for number in range(KEPT_PROMPTS):
        encoder.encode(f"third {number}", "")
    assert encoder.encode("first", "") is not first


def test_a_refused_prompt_is_refused_again(pipeline):
    encoder = PromptEncoder(partial(encode_prompt, pipeline), lambda: None)
    for _ in range(2):
        with pytest.raises(PromptError):
            encoder.encode("a cat.swap(dog)", "")


PIECES = [
    "red",
    "50%",
    "é",
    "красный",
    "猫",
    "😀",
    "<s0><s1>",
    ",",
    ".",
    ":",
    ";",
    "'s",
    "[a:b:0.5]",
    "{a|b}",
    "<lora:x:0.8>",
    "f/1.8",
    "$",
    "&",
    "#",
    "@",
    "*",
    "=",
    "~",
    "^",
    "_",
    "!",
    "?",
    ".and",
    ".blend",
    ".swap",
    "withLora",
    "useLora",
    "AND",
    "1.3",
    "U.S.A.",
    "/",
    "|",
    "`",
    "’",
    "“",
]


def test_the_parser_changes_no_token_of_the_texts_that_are_not_given_to_it(pipeline, monkeypatch):
    draw = random.Random(1)
    texts = [
        "".join(draw.choice(PIECES) + draw.choice(["", " "]) for _ in range(draw.randrange(12)))
        for _ in range(60)
    ]
    skipped = [text for text in texts if not conditioning.SYNTAX.search(text)]
    assert len(skipped) > 20
    monkeypatch.setattr(conditioning, "SYNTAX", re.compile(""))
    for text in skipped:
        parsed = conditioning.parse_emphasis(text, field="prompt")
        assert not parsed.is_emphasized
        assert pipeline.tokenizer(parsed.words).input_ids == pipeline.tokenizer(text).input_ids, text
