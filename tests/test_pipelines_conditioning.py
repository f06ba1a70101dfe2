"""A prompt on its way to the embeddings: versions, chunks, weights, what is kept."""

from functools import partial

import pytest
import torch
from compel import Compel, ReturnedEmbeddingsType
from compel.prompt_parser import Conjunction, FlattenedPrompt

from tilemix.errors import PromptError, RequestError
from tilemix.pipelines.chunks import CHUNK_TOKENS, MOST_CHUNKS, cut_into_chunks
from tilemix.pipelines.clip_text import OWN_CLIP_SKIP
from tilemix.pipelines.conditioning import KEPT_TEXTS, EncodedText, PromptEncoder, list_versions
from tilemix.pipelines.loading import load_pipeline
from tilemix.pipelines.sdxl import encode_text
from tilemix.prompts.language import Fragment
from tilemix.weights import find_model

MIX = "ohwx_rubber_tile, 50% red, 30% black, 20% pearl, photorealistic rubber tile"
NOTHING = {"text_encoder": 0, "text_encoder_2": 0}


@pytest.fixture(scope="module")
def pipeline(tiny_project):
    return load_pipeline(find_model("tiny", tiny_project), torch.device("cpu"), torch.float32).base.pipeline


def encode(pipeline, positive, negative="", *, steps=10, clip_skip=OWN_CLIP_SKIP):
    encoder = PromptEncoder(partial(encode_text, pipeline), lambda: None)
    return encoder.encode(positive, negative, steps=steps, clip_skip=clip_skip)


def read(text):
    ((_, parts),) = list_versions(text, 10, field="prompt")
    return parts


def count_passes(pipeline, call) -> dict[str, int]:
    """How often each text encoder is run."""
    passes = dict(NOTHING)
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


PLAIN = ["", MIX, "wow! great!!", "f/1.8: a - b, x|y", "red " * 75, "красный 猫 😀", r"a \(red\) tile"]


@pytest.mark.parametrize("text", PLAIN)
def test_without_weights_the_embeddings_are_encode_prompts_bit_for_bit(pipeline, text):
    (found,) = encode(pipeline, text, "blurry, text")
    words = text.replace("\\", "")
    embeds, negative, pooled, negative_pooled = pipeline.encode_prompt(words, negative_prompt="blurry, text")
    assert torch.equal(found.prompt.states, embeds)
    assert torch.equal(found.prompt.pooled, pooled)
    assert torch.equal(found.negative.states, negative)
    assert torch.equal(found.negative.pooled, negative_pooled)


def test_an_empty_negative_prompt_is_encoded_and_is_not_zeros(pipeline):
    (found,) = encode(pipeline, MIX)
    assert found.negative.states.abs().max() > 0.1
    assert found.negative.pooled.abs().max() > 0.1


@pytest.mark.parametrize("clip_skip", [1, 2])
def test_clip_skip_counts_layers_from_the_end(pipeline, clip_skip):
    (found,) = encode(pipeline, MIX, clip_skip=clip_skip)
    tokens = pipeline.tokenizer(MIX, padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.inference_mode():
        states = pipeline.text_encoder(tokens, output_hidden_states=True).hidden_states[-clip_skip]
    assert torch.equal(found.prompt.states[..., : states.shape[-1]], states)


def test_a_clip_skip_beyond_the_encoders_layers_is_refused(pipeline):
    with pytest.raises(RequestError) as caught:
        encode(pipeline, MIX, clip_skip=3)
    assert str(caught.value) == "clip_skip 3 is out of range; expected 1 to 2"


WEIGHTED = [
    "a (red:1.3) tile",
    "(50% red:1.2), 50% black, [wet]",
    "a (red:0.25) tile (x:-2) (y:0)",
    "(everything:0.5)",
    "<s0><s1>, (<s0><s1> tile:1.4), f/(1.8:1.2)",
]


@pytest.mark.parametrize("text", WEIGHTED)
@pytest.mark.parametrize("number", ["", "_2"])
def test_weights_act_as_compels_arithmetic_on_the_same_fragments(pipeline, text, number):
    compel = Compel(
        tokenizer=getattr(pipeline, f"tokenizer{number}"),
        text_encoder=getattr(pipeline, f"text_encoder{number}"),
        returned_embeddings_type=ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED,
        truncate_long_prompts=False,
    )
    (part,) = read(text)
    with torch.inference_mode():
        built = compel.build_conditioning_tensor_for_conjunction(
            Conjunction([FlattenedPrompt([tuple(fragment) for fragment in part])])
        )
    expected = built[0] if isinstance(built, tuple) else built
    (found,) = encode(pipeline, text)
    width = expected.shape[-1]
    states = found.prompt.states[..., -width:] if number else found.prompt.states[..., :width]
    assert torch.isfinite(states).all()
    assert torch.equal(states, expected)


def test_the_pooled_vector_comes_from_the_plain_words(pipeline):
    """compel pools the text with the emphasis syntax still in it, which moved the vector by its own size."""
    (emphasized,) = encode(pipeline, "a (red:1.3) ((tile))")
    (plain,) = encode(pipeline, "a red tile")
    assert torch.equal(emphasized.prompt.pooled, plain.prompt.pooled)
    assert not torch.equal(emphasized.prompt.states, plain.prompt.states)


def test_a_long_prompt_is_cut_into_chunks_and_the_negative_is_as_long(pipeline):
    words = ", ".join(f"word{i} speckled" for i in range(40))
    (found,) = encode(pipeline, f"{MIX}, {words}", "blurry")
    tokens = found.prompt.states.shape[1]
    assert tokens > 77
    assert tokens % 77 == 0
    assert found.negative.states.shape == found.prompt.states.shape
    (empty,) = encode(pipeline, "")
    assert torch.equal(found.negative.states[:, 77:154], empty.prompt.states)
    assert not torch.equal(found.prompt.states[:, 77:154], empty.prompt.states)


def test_each_chunk_is_encoded_as_a_prompt_of_its_own(pipeline):
    (found,) = encode(pipeline, f"{MIX} BREAK wet BREAK (matt:1.2)")
    alone = [encode(pipeline, text)[0].prompt for text in (MIX, "wet", "(matt:1.2)")]
    assert torch.equal(found.prompt.states, torch.cat([one.states for one in alone], dim=1))
    assert torch.equal(found.prompt.pooled, alone[0].pooled)


def count_letters(texts):
    return [len(text.split()) for text in texts]


def cut(text, count=count_letters):
    return [
        "".join(fragment.text for fragment in chunk)
        for chunk in cut_into_chunks([[Fragment(text, 1.0)]], count)
    ]


def test_a_chunk_ends_after_a_comma_if_one_is_near():
    near, far = ["x"] * 60 + ["a,"] + ["y"] * 30, ["x"] * 50 + ["a,"] + ["y"] * 40
    assert [len(chunk.split()) for chunk in cut(" ".join(near))] == [61, 30]
    assert [len(chunk.split()) for chunk in cut(" ".join(far))] == [CHUNK_TOKENS, 16]
    assert cut(" ".join(["x"] * CHUNK_TOKENS)) == [" ".join(["x"] * CHUNK_TOKENS)]


@pytest.mark.parametrize(
    "text", ["<s0><s1> " * 60, "<s0>" * 100, "é" * 300, "word, " * 200, " ".join(["x"] * 76)]
)
def test_no_chunk_is_too_long_no_token_is_cut_and_no_word_is_lost(pipeline, text):
    counts = [
        max(len(tokenizer(chunk).input_ids) - 2 for tokenizer in (pipeline.tokenizer, pipeline.tokenizer_2))
        for chunk in cut(text, lambda texts: [len(pipeline.tokenizer(one).input_ids) - 2 for one in texts])
    ]
    assert 1 < len(counts) < 12
    assert max(counts) <= CHUNK_TOKENS
    chunks = cut(text, lambda texts: [len(pipeline.tokenizer(one).input_ids) - 2 for one in texts])
    assert "".join(chunks) == text
    assert all(chunk.count("<") == chunk.count(">") for chunk in chunks)
    if "<s0><s1> " in text:
        assert all(chunk.count("<s0>") == chunk.count("<s1>") for chunk in chunks)


def test_an_edited_prompt_has_a_guidance_for_each_version(pipeline):
    found = encode(pipeline, "a [red:black:0.5] tile", "[blurry::3]", steps=10)
    assert [guidance.last_step for guidance in found] == [3, 5, 10]
    words = [("a red tile", "blurry"), ("a red tile", ""), ("a black tile", "")]
    for guidance, (prompt, negative) in zip(found, words, strict=True):
        (alone,) = encode(pipeline, prompt, negative)
        assert torch.equal(guidance.prompt.states, alone.prompt.states)
        assert torch.equal(guidance.negative.states, alone.negative.states)


def test_versions_of_different_length_are_padded_to_the_longest(pipeline):
    first, second = encode(pipeline, f"[wet:{'matt, ' * 60}:3]", steps=10)
    assert first.prompt.states.shape == second.prompt.states.shape == first.negative.states.shape
    assert first.prompt.states.shape[1] > 77


def test_a_text_is_encoded_once_until_the_state_changes(pipeline):
    state = ["a"]
    encoder = PromptEncoder(partial(encode_text, pipeline), lambda: state[0])

    def ask(positive, negative="", clip_skip=OWN_CLIP_SKIP):
        return count_passes(
            pipeline, lambda: encoder.encode(positive, negative, steps=10, clip_skip=clip_skip)
        )

    assert ask(MIX) == {"text_encoder": 2, "text_encoder_2": 2}
    assert ask(MIX) == NOTHING
    assert ask("", MIX) == NOTHING  # by text, wherever it stands
    assert ask("red") == {"text_encoder": 1, "text_encoder_2": 1}
    assert ask("[red:wet:3]") == {"text_encoder": 1, "text_encoder_2": 1}  # what an edit brings, and no more
    assert ask(MIX, clip_skip=1) == {"text_encoder": 2, "text_encoder_2": 2}
    state[0] = "b"
    assert ask(MIX) == {"text_encoder": 2, "text_encoder_2": 2}
    state[0] = "a"
    assert ask(MIX) == NOTHING


def test_only_the_last_texts_are_kept():
    asked = []

    def encode_one(parts, _):
        asked.append(parts[0][0].text)
        return EncodedText(torch.zeros(1, 77, 4), torch.zeros(1, 4))

    encoder = PromptEncoder(encode_one, lambda: None)

    def ask(text):
        encoder.encode(text, text, steps=1, clip_skip=OWN_CLIP_SKIP)

    ask("first")
    for number in range(KEPT_TEXTS - 1):
        ask(f"text {number}")
    ask("first")  # used again: now the youngest
    ask("one more")
    ask("first")
    assert asked.count("first") == 1
    for number in range(KEPT_TEXTS):
        ask(f"other {number}")
    ask("first")
    assert asked.count("first") == 2


def test_more_than_20_chunks_are_refused():
    def count_tokens(texts):
        return [len(text.split()) for text in texts]

    part = [Fragment("wet", 1.0)]
    assert len(cut_into_chunks([part] * MOST_CHUNKS, count_tokens)) == MOST_CHUNKS
    for parts in ([part] * 191, [[Fragment("wet " * 75 * 191, 1.0)]]):
        with pytest.raises(
            PromptError, match="^the text makes 191 chunks of 75 tokens, expected 20 at most$"
        ):
            cut_into_chunks(parts, count_tokens)


def test_a_refused_prompt_is_refused_again(pipeline):
    encoder = PromptEncoder(partial(encode_text, pipeline), lambda: None)
    for _ in range(2):
        with pytest.raises(PromptError):
            encoder.encode("a (cat:99)", "", steps=10, clip_skip=OWN_CLIP_SKIP)
