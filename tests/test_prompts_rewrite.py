"""From the user's words to the prompt that is sent."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pace import assert_quick, processor_seconds
from tilemix.errors import MixError, PromptError
from tilemix.prompts.checks import MAX_PROMPT_CHARACTERS, check_prompt, check_text
from tilemix.prompts.mix import parse_mix
from tilemix.prompts.rewrite import Prompt, log_notes, rewrite
from tilemix.prompts.template import load_template

FOLDER = Path(__file__).resolve().parents[1] / "prompt_templates"
TILE = load_template(FOLDER / "rubber_tile.json")
MINIATURE = load_template(FOLDER / "miniature.json")

EXAMPLE = "50% red, 30% black, 20% pearl"
SENT = (
    "ohwx_rubber_tile <s0><s1>, 50% red, 30% black, 20% pearl, photorealistic rubber tile, high quality, "
    "detailed texture"
)


def test_the_example_becomes_the_trigger_prompt_to_the_letter():
    prompt = rewrite(EXAMPLE, TILE)
    mix = parse_mix(EXAMPLE).mix
    assert prompt == Prompt(
        typed=EXAMPLE, positive=SENT, negative=TILE.negative_prompt, mix=mix, sent=mix, notes=()
    )


def test_the_miniature_is_sent_the_same_words_and_an_empty_negative_prompt():
    prompt = rewrite("50% rot, 30% schwarz, Rest perlweiß", MINIATURE)
    assert prompt.positive == SENT
    assert prompt.negative == ""


@pytest.mark.parametrize(
    ("text", "middle"),
    [
        ("50%红色30%黑色20%珍珠白，湿的", "50% red, 30% black, 20% pearl, 湿的"),
        ("photo of 50% rot, 50% schwarz, wet surface", "photo of 50% red, 50% black, wet surface"),
        ("a red tile in the sun", "a red tile in the sun"),
        ("  spaces stay  ", "  spaces stay  "),
        ("{0.class} ${x} $prompt %s%n", "{0.class} ${x} $prompt %s%n"),
        (
            "50% red, 50% black, $prompt {prompt} %(prompt)s",
            "50% red, 50% black, $prompt {prompt} %(prompt:1.1)s",
        ),
        ("50% ${x}, 50% red", "50% ${x}, 50% red"),
        ("100% {0.class.mro}", "100% {0.class.mro}"),
    ],
)
def test_the_words_go_into_the_template_and_are_never_a_template(text, middle):
    positive = rewrite(text, TILE).positive
    assert positive == TILE.text.replace("$prompt", middle, 1)


def test_left_over_syntax_is_noted_in_either_prompt():
    prompt = rewrite("50% red, 50% black, __surface (wet:fast)", TILE, negative_prompt="toys} (a:b)")
    noted = [(note.field, note.values["typed"]) for note in prompt.notes]
    assert noted == [
        ("prompt", "__surface"),
        ("prompt", "(wet:fast)"),
        ("negative_prompt", "}"),
        ("negative_prompt", "(a:b)"),
    ]


@pytest.mark.parametrize(
    ("negative_prompt", "negative"), [(None, TILE.negative_prompt), ("", ""), ("  ", "  "), ("toys", "toys")]
)
def test_the_negative_prompt_is_the_templates_only_where_none_is_given(negative_prompt, negative):
    assert rewrite(EXAMPLE, TILE, negative_prompt=negative_prompt).negative == negative


@pytest.mark.parametrize(
    ("text", "mix"),
    [
        (SENT, EXAMPLE),
        ("OHWX_Rubber_Tile, 50% rot,  50 % schwarz!", "50% red, 50% black"),
        ("red <s0>", None),
        ("ohwx_rubber_tile 50% rad, 50% black", None),  # a slip is no reason to refuse what is sent as it is
        ("ohwx_rubber_tile 70% red", None),
        ("ohwx_rubber_tile RAL 9999 50%, red 50%", None),
    ],
)
def test_a_prompt_with_a_trigger_word_or_token_is_sent_untouched(text, mix, caplog):
    with caplog.at_level(logging.WARNING):
        prompt = rewrite(text, TILE, negative_prompt="toys")
        log_notes(prompt)
    assert prompt.typed == prompt.positive == text
    assert prompt.negative == "toys"
    assert (str(prompt.mix) if prompt.mix else None) == mix
    assert prompt.notes == ()
    assert caplog.messages == []


def test_an_untouched_prompt_is_still_checked():
    with pytest.raises(
        PromptError, match=r"^prompt: a control character, U\+0007, at character 18; expected plain text$"
    ):
        rewrite("ohwx_rubber_tile \x07", TILE)
    with pytest.raises(PromptError, match=r"^prompt: 2017 characters, expected 2000 at most$"):
        rewrite("ohwx_rubber_tile " + "a" * 2000, TILE)


def test_notes_are_returned_and_logged_where_they_are_told(caplog):
    with caplog.at_level(logging.INFO):
        prompt = rewrite("50% gold, 50% RAL 3000", TILE)
        assert caplog.messages == []
        log_notes(prompt)
    assert prompt.positive.startswith("ohwx_rubber_tile <s0><s1>, 50% gold, 50% bright red, photo")
    assert list(map(str, prompt.notes)) == caplog.messages
    assert [(record.name, record.levelname) for record in caplog.records] == [
        ("tilemix.prompts.rewrite", "WARNING")
    ] * 2
    assert caplog.messages[0] == "unknown color 'gold' at character 5 is sent as typed"


def test_a_text_without_a_mix_is_said_to_be_none(caplog):
    prompt = rewrite("wet granules in the sun", TILE)
    log_notes(prompt)
    assert prompt.mix is None
    assert [note.code for note in prompt.notes] == ["mix-not-found"]
    assert caplog.messages == ["no color mix found; sent as typed"]


def test_a_trade_code_in_a_trigger_prompt_is_measured_and_noted(caplog):
    text = "ohwx_rubber_tile <s0><s1>, 60% grsgrn, 40% yellow"
    prompt = rewrite(text, TILE)
    log_notes(prompt)
    assert prompt.positive == text
    assert str(prompt.mix) == "60% grass green, 40% yellow"
    (note,) = prompt.notes
    assert (note.code, note.values["typed"], note.values["color"]) == (
        "mix-known-by-another-word",
        "grsgrn",
        "grass green",
    )
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [str(note)]


def test_a_mix_that_is_not_clear_is_refused():
    with pytest.raises(MixError, match=r"^unknown color 'rad' at character 5; did you mean 'red'\?$"):
        rewrite("50% rad, 50% black", TILE)


@pytest.mark.parametrize("text", ["", " ", "\n\t ", "\u3000"])
def test_an_empty_prompt_is_refused(text):
    with pytest.raises(PromptError, match="^prompt: empty, expected 1 to 2000 characters$"):
        rewrite(text, TILE)
    with pytest.raises(PromptError, match="^prompt: empty, expected 1 to 2000 characters$"):
        check_prompt(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("red\x00", "a control character, U+0000, at character 4; expected plain text"),
        ("\x1b[31mred", "a control character, U+001B, at character 1; expected plain text"),
        ("red\x7f", "a control character, U+007F, at character 4; expected plain text"),
        ("red\x85", "a control character, U+0085, at character 4; expected plain text"),
        ("red\x0b", "a control character, U+000B, at character 4; expected plain text"),
        ("red \u202eder", "a control character, U+202E, at character 5; expected plain text"),
        ("red \u2066", "a control character, U+2066, at character 5; expected plain text"),
        ("red \ud800", "a lone surrogate, U+D800, at character 5; expected plain text"),
        ("\udfff", "a lone surrogate, U+DFFF, at character 1; expected plain text"),
        ("x" * 2001, "2001 characters, expected 2000 at most"),
    ],
)
def test_text_that_is_no_text_is_refused(text, message):
    for refuse, what in (
        (lambda: rewrite(text, TILE), "prompt"),
        (lambda: check_prompt(text), "prompt"),
        (lambda: rewrite(EXAMPLE, TILE, negative_prompt=text), "negative_prompt"),
        (lambda: check_text(text, field="caption"), "caption"),
    ):
        with pytest.raises(PromptError) as caught:
            refuse()
        assert str(caught.value) == f"{what}: {message}"


@pytest.mark.parametrize(
    "text",
    ["", "red\n\tblack\r\n", "weiß чёрный 红色 🔥 e\u0301", "a\u200db\ufeff", "x" * MAX_PROMPT_CHARACTERS],
)
def test_any_plain_text_passes_the_check(text):
    check_text(text, field="negative_prompt")


def test_sixty_megabytes_are_refused_before_anything_looks_at_them():
    text = "50% red, " * (60_000_000 // 9)

    def refuse() -> None:
        with pytest.raises(PromptError, match=r"^prompt: 59999994 characters, expected 2000 at most$"):
            rewrite(text, TILE)
        with pytest.raises(
            PromptError, match=r"^negative_prompt: 59999994 characters, expected 2000 at most$"
        ):
            rewrite(EXAMPLE, TILE, negative_prompt=text)

    assert_quick(lambda: processor_seconds(refuse), 0.02)


@given(st.text(st.characters(), max_size=100), st.none() | st.text(st.characters(), max_size=50))
@settings(max_examples=300, deadline=None)
def test_any_text_is_rewritten_or_refused(text, negative_prompt):
    try:
        prompt = rewrite(text, TILE, negative_prompt=negative_prompt)
    except PromptError:
        return
    assert prompt.typed == text
    assert prompt.positive.startswith("ohwx_rubber_tile <s0><s1>, ")
    assert prompt.negative == (TILE.negative_prompt if negative_prompt is None else negative_prompt)
    prompt.positive.encode()


@pytest.mark.parametrize("text", [EXAMPLE, "50 % красного, 30 % RAL 9005, 20 % #d6d1be, wet surface"])
@pytest.mark.slow
def test_a_normal_prompt_takes_less_than_a_millisecond(text):
    rewrite(text, TILE)
    assert_quick(lambda: min(processor_seconds(lambda: rewrite(text, TILE)) for _ in range(5)), 1e-3)


def test_rewriting_in_a_fresh_process_is_quick_and_loads_neither_torch_nor_numpy():
    code = f"""
import sys, time
from pathlib import Path
from tilemix.prompts.rewrite import rewrite
from tilemix.prompts.template import load_template
print(rewrite({EXAMPLE!r}, load_template(Path({str(FOLDER / "rubber_tile.json")!r}))).positive)
print(sorted({{"torch", "numpy"}} & set(sys.modules)))
print(time.process_time())
"""

    def measure() -> float:
        result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        positive, loaded, used = result.stdout.splitlines()
        assert positive == SENT
        assert loaded == "[]"
        return float(used)

    assert_quick(measure, 0.2)
