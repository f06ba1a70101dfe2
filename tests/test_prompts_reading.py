"""A text read for a model: the mix in the chart's names, in its palette's words, and what is said about the two."""

from __future__ import annotations

import json

import msgspec
import pytest

from tilemix.cli import main
from tilemix.colors.answers import FARTHEST, find_answer, rank_answers
from tilemix.colors.chart import get_color, load_colors
from tilemix.colors.languages import load_languages, load_trade_codes
from tilemix.colors.palette import Palette, PaletteColor, chart_palette, load_palette
from tilemix.errors import MixError
from tilemix.prompts.reading import read_mix
from tilemix.prompts.rewrite import rewrite
from tilemix.prompts.template import find_template

RUBBER, CHART = load_palette("rubber-tile"), chart_palette()
TEMPLATE = find_template("rubber_tile")


def codes(text: str, palette: Palette = RUBBER) -> list[str]:
    return [note.code for note in read_mix(text, palette).notes]


def test_the_example_is_sent_to_the_letter():
    prompt = rewrite("50% red, 30% black, 20% pearl", TEMPLATE, RUBBER)
    assert prompt.positive == (
        "ohwx_rubber_tile <s0><s1>, 50% red, 30% black, 20% pearl, photorealistic rubber tile, high quality, "
        "detailed texture"
    )
    assert prompt.notes == ()


@pytest.mark.parametrize("color", RUBBER.colors, ids=lambda color: color.word)
def test_every_word_and_code_of_the_palette_keeps_its_word(color):
    for typed in (color.word, color.word.upper(), color.code, color.code.lower()):
        other = "black" if color.word != "black" else "white"
        read = read_mix(f"60% {typed}, 40% {other}", RUBBER)
        assert str(read.mix) == str(read.sent) == f"60% {color.word}, 40% {other}"
        assert read.notes == ()


@pytest.mark.parametrize("code", sorted(load_languages()))
def test_every_color_in_every_language_is_sent_as_a_word_of_the_palette(code):
    words = {color.word for color in RUBBER.colors}
    for name, typed in load_languages()[code].colors.items():
        read = read_mix(f"100% {typed[0]}", RUBBER)
        assert {share.color for share in read.sent.shares} <= words, (name, typed[0])


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        ("100% салатовый", "100% lime green"),
        ("50% терракот, 50% хаки", "50% terracotta, 50% khaki"),
        ("50% фиолетового, 50% светло-зелёного", "50% violet, 50% light green"),
        ("50% 草绿色, 50% 果绿色", "50% grass green, 50% green apple"),
        ("50% DKGREEN, 30% GRNAPL, 20% limegrn", "50% dark green, 30% green apple, 20% lime green"),
        ("40% GRNAPL, 30% LIMEGRN, 30% LTGREEN", "40% green apple, 30% lime green, 30% light green"),
        ("50% terracotta, 50% violett", "50% terracotta, 50% violet"),
        ('[{"name": "WHTGRN", "share": 40}, {"name": "TERCOT", "share": 60}]', "40% white-green, 60% terracotta"),
        ("30% limonkowy, 70% wiśniowy", "30% lime green, 70% terracotta"),
    ],
)  # fmt: skip
def test_a_color_is_sent_by_the_palettes_word(typed, sent):
    read = read_mix(typed, RUBBER)
    assert str(read.sent) == read.text == sent


def test_a_color_that_the_palette_lacks_is_sent_as_its_nearest_and_told():
    read = read_mix("wet, 50% purple, 50% blue, shiny", RUBBER)
    assert read.text == "wet, 50% violet, 50% blue, shiny"
    assert (str(read.mix), str(read.sent)) == ("50% purple, 50% blue", "50% violet, 50% blue")
    (note,) = read.notes
    assert str(note) == "purple is not in this palette; sent as violet, delta E 12"
    assert note.values == {"color": "purple", "nearest": "violet", "delta_e": 11.8}


def test_the_nearest_are_what_people_would_take():
    lacking = [color.name for color in load_colors() if RUBBER.find(color.name) is None]
    assert {name: find_answer(RUBBER, name).color.word for name in lacking} == {
        "bright red": "red", "hot pink": "lilac", "purple": "violet", "light blue": "sky blue",
        "green": "grass green", "mustard": "sand", "ivory": "beige", "anthracite": "dark gray",
        "chocolate": "brown", "wine red": "terracotta", "olive": "khaki",
    }  # fmt: skip
    assert max(find_answer(RUBBER, name).delta_e for name in lacking) < FARTHEST


def test_a_color_that_goes_by_another_word_is_told():
    read = read_mix("50% bright green, 50% black", RUBBER)
    assert str(read.sent) == "50% lime green, 50% black"
    assert [str(note) for note in read.notes] == [
        "bright green is sent as lime green, its word in this palette"
    ]
    assert str(read_mix("100% ярко-зеленый", RUBBER).sent) == "100% lime green"
    assert codes("100% ярко-зеленый", RUBBER) == ["mix-sent-by-its-word"]


def test_nothing_near_is_refused_with_the_three_nearest():
    few = msgspec.structs.replace(
        RUBBER, colors=tuple(RUBBER.find(word) for word in ("black", "blue", "white", "gray"))
    )
    with pytest.raises(MixError) as error:
        read_mix("50% yellow, 50% black", few)
    assert (error.value.code, error.value.field) == ("mix-nothing-near", "prompt")
    assert str(error.value).startswith(
        "yellow is not in this palette, and nothing near it is; the nearest are 'white', 'gray' and 'black', from "
    )


def test_a_name_of_no_chart_is_refused_and_the_palettes_own_are_known():
    with pytest.raises(
        MixError, match="^'zebra' at character 5 is not a color of this model; it draws 'beige', "
    ):
        read_mix("50% zebra, 50% black", RUBBER)
    assert str(read_mix("50% zebra, 50% black", None).sent) == "50% zebra, 50% black"
    own = Palette(
        "here", (PaletteColor("mossy stone", "#55604A", code="MSTONE"), PaletteColor("black", "#202020"))
    )
    for typed in ("mossy stone", "Mossy Stone", "MSTONE"):
        read = read_mix(f"50% {typed}, 50% black", own)
        assert (str(read.sent), read.notes) == ("50% mossy stone, 50% black", ())


def test_two_colors_of_one_word_are_added_up_and_told():
    read = read_mix("25.5% olive, 24.5% khaki, 50% black", RUBBER)
    assert str(read.mix) == "25.5% olive, 24.5% khaki, 50% black"
    assert str(read.sent) == "50% khaki, 50% black"
    assert [note.code for note in read.notes] == ["mix-sent-as-nearest", "mix-colors-merged"]
    assert str(read.notes[1]) == "'olive' and 'khaki' are both sent as 'khaki', 50% in all"


@pytest.mark.parametrize(
    ("typed", "noted"),
    [
        ("40% red, 30% black, 20% pearl, 10% white", []),
        ("40% red, 20% black, 20% pearl, 10% white, 10% blue", ["mix-many-colors"]),
        ("45% red, 55% black", ["mix-between-steps"]),
        ("33.3% red, 33.3% black, 33.4% blue", ["mix-between-steps"]),
        ("30% red, 30% black, 10% pearl, 25% white, 5% blue", ["mix-many-colors", "mix-between-steps"]),
    ],
)
def test_a_mix_beyond_the_training_is_told_and_sent(typed, noted):
    read = read_mix(typed, RUBBER)
    assert [note.code for note in read.notes] == noted
    assert str(read.sent) == typed
    assert codes(typed, CHART) == []


def test_a_complete_prompt_stays_and_its_words_are_told():
    text = "ohwx_rubber_tile <s0><s1>, 50% grnapl, 30% purple, 20% red"
    prompt = rewrite(text, TEMPLATE, RUBBER)
    assert prompt.positive == text
    assert str(prompt.mix) == "50% green apple, 30% purple, 20% red"
    assert str(prompt.sent) == "50% green apple, 30% violet, 20% red"
    assert [(note.code, note.values["typed"], note.values["color"]) for note in prompt.notes] == [
        ("mix-known-by-another-word", "grnapl", "green apple"),
        ("mix-known-by-another-word", "purple", "violet"),
    ]


def test_a_swatch_of_the_charts_is_moved_as_the_photographs_move():
    """As printed, purple is nearest to dark blue; a palette of few colors teaches nothing, so there it stays so."""
    few = msgspec.structs.replace(
        RUBBER, colors=tuple(RUBBER.find(word) for word in ("dark blue", "violet", "black"))
    )
    assert rank_answers(few, "purple")[0].color.word == "dark blue"
    assert rank_answers(RUBBER, "purple")[0].color.word == "violet"
    assert rank_answers(RUBBER, "zebra") == []


def test_every_trade_code_is_a_palettes():
    listed = {color.code for color in RUBBER.colors}
    for name, trade_codes in load_trade_codes().items():
        assert get_color(name) is not None
        assert trade_codes[0] in listed
        assert RUBBER.find(trade_codes[0]).word == name


def test_the_verb_reads_for_the_model(capsys, monkeypatch):
    assert main(["rewrite", "--json", "--model", "rubber-tile", "50% green, 50% terracotta"]) == 0
    first = json.loads(capsys.readouterr().out)
    monkeypatch.setenv("TILEMIX_MODEL", "rubber-tile")
    assert main(["rewrite", "--json", "50% green, 50% terracotta"]) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert first["mix"] == {"green": 50.0, "terracotta": 50.0}
    assert first["sent"] == {"grass green": 50.0, "terracotta": 50.0}
    assert first["notes"] == ["green is not in this palette; sent as grass green, delta E 12"]
    assert first["prompt"].startswith("ohwx_rubber_tile <s0><s1>, 50% grass green, 50% terracotta, ")


def test_a_model_without_a_palette_gets_the_charts_words():
    read = read_mix("50% purple, 50% terracotta", None)
    assert str(read.mix) == str(read.sent) == read.text == "50% purple, 50% terracotta"
    assert read.notes == ()


@pytest.mark.parametrize("palette", [RUBBER, CHART], ids=["rubber-tile", "chart"])
def test_the_value_of_a_swatch_is_its_color(palette):
    """By the chart alone the maker's orange is red, and his white light gray."""
    for color in palette.colors:
        other = "black" if color.word != "black" else "red"
        for typed in (color.as_seen, color.as_seen.lower()):
            read = read_mix(f"60% {typed}, 40% {other}", palette)
            assert (str(read.sent), read.notes) == (f"60% {color.word}, 40% {other}", ())
        read = read_mix(f'{{"colors": [{{"hex": "{color.as_seen}", "share": 1}}]}}', palette)
        assert str(read.sent) == f"100% {color.word}"
    assert str(read_mix("50% orange (#CB5D35), 50% black", RUBBER).sent) == "50% orange, 50% black"
    assert str(read_mix("50% #CC5D36, 50% black", RUBBER).sent) == "50% orange, 50% black"
