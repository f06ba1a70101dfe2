"""The prompt language: texts and weights are the web UIs', nothing hangs, what is written reads the same."""

import os
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pace import assert_quick, processor_seconds
from tilemix.colors.palette import PALETTES, load_palette
from tilemix.errors import PromptError
from tilemix.prompts.language import note_left_over, parse, refuse_other_notations
from tilemix.prompts.language.choices import MOST_CHOICES, choose
from tilemix.prompts.language.traced import Traced
from tilemix.prompts.language.wildcards import FOLDER, MOST_BYTES, Wildcards
from tilemix.prompts.language.writing import write_versions


def read(text, steps=10):
    return parse(Traced.begin(text), steps=steps, field="prompt")


def fragments(text):
    """The fragments of a text without edits, as the web UIs list them."""
    (version,) = read(text).versions
    listed = []
    for place, part in enumerate(version.parts):
        listed += [("BREAK", -1.0)] if place else []
        listed += [tuple(fragment) for fragment in part]
    return listed


# The doctests of the web UI's attention parser: what is typed, and its fragments.
ATTENTION = [
    ("normal text", [("normal text", 1.0)]),
    ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
    ("(unbalanced", [("unbalanced", 1.1)]),
    (r"\(literal\]", [("(literal]", 1.0)]),
    ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
    (
        "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
        [
            ("a ", 1.0),
            ("house", 1.5730000000000004),
            (" ", 1.1),
            ("on", 1.0),
            (" a ", 1.1),
            ("hill", 0.55),
            (", sun, ", 1.1),
            ("sky", 1.4641000000000006),
            (".", 1.1),
        ],
    ),
]
# Those of its parser of edits, over 10 steps: the last step of each text.
EDITING = [
    ("test", [(10, "test")]),
    ("a [b:3]", [(3, "a "), (10, "a b")]),
    ("a [b: 3]", [(3, "a "), (10, "a b")]),
    ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
    ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
    ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
    ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
    ("a [unbalanced", [(10, "a [unbalanced")]),
    ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
    ("a [{b|d{:.5] c", [(5, "a  c"), (10, "a {b|d{ c")]),
    ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
    ("[a|(b:1.1)]", [(step, "a" if step % 2 else "(b:1.1)") for step in range(1, 11)]),
    ("[fe|]male", [(step, "female" if step % 2 else "male") for step in range(1, 11)]),
    ("[fe|||]male", [(step, "female" if step % 4 == 1 else "male") for step in range(1, 11)]),
]


@pytest.mark.parametrize(("text", "expected"), ATTENTION)
def test_emphasis_is_read_as_the_web_ui_reads_it(text, expected):
    found = fragments(text)
    assert [words for words, _ in found] == [words for words, _ in expected]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in expected])


@pytest.mark.parametrize(("text", "expected"), EDITING)
def test_edits_are_read_as_the_web_ui_reads_them(text, expected):
    """The emphasis in the web UI's texts is not read yet, so it is read here before they are compared."""
    by_step = {}
    for version in read(text).versions:
        by_step |= dict.fromkeys(range(len(by_step) + 1, version.last_step + 1), version.parts)
    before = 0
    for last, words in expected:
        (plain,) = read(words).versions
        assert all(by_step[step] == plain.parts for step in range(before + 1, last + 1)), last
        before = last
    assert len(by_step) == 10


OURS = [
    ("(x:1.5)", [("x", 1.5)]),
    ("((x))", [("x", 1.21)]),
    ("[x]", [("x", 1 / 1.1)]),
    ("(a (b:1.5):1.2)", [("a ", 1.2), ("b", 1.8)]),
    ("[x:y]", [("x:y", 1 / 1.1)]),
    (r"(a\:1.5)", [("a", 1.5)]),
    ("(a [b) c]", [("a ", 1.1), ("b", 1.0), (" c", 1 / 1.1)]),
    ("a ] b ) c", [("a ] b ) c", 1.0)]),
    ("f/1.8:1.5)", [("f/1.8:1.5)", 1.0)]),
    ("a  BREAK b", [("a", 1.0), ("BREAK", -1.0), ("b", 1.0)]),
    ("(a BREAK b:1.2) BREAKS", [("a", 1.2), ("BREAK", -1.0), ("b", 1.2), (" BREAKS", 1.0)]),
    ("break BREAK", [("break", 1.0), ("BREAK", -1.0)]),
    (r"\\ \a", [("\\ a", 1.0)]),
    ("(x:-2)", [("x", -2.0)]),
]
# Digits and percent signs are no syntax.
MIXES = [
    ("50% red, 30% black", [("50% red, 30% black", 1.0)]),
    ("(50% red:1.3), 50% black", [("50% red", 1.3), (", 50% black", 1.0)]),
    ("red (50%), black (50%)", [("red (50%), black (50%)", 1.0)]),
    ("red, black (3:1)", [("red, black (3:1)", 1.0)]),
    ("(red, black 3:1)", [("red, black 3:1", 1.1)]),
    ("[3:1] red, black", [("[3:1] red, black", 1.0)]),
    ("50% red (RAL 3016), rgb(170, 63, 39)", [("50% red (RAL 3016), rgb(170, 63, 39)", 1.0)]),
    ("(#aa3f27) (RAL 3016:2)", [("(#aa3f27) ", 1.0), ("RAL 3016", 2.0)]),
    ("(50%:1.3) red", [("50%", 1.3), (" red", 1.0)]),
    ("rot – ½, schwarz | weiß: 50 %", [("rot – ½, schwarz | weiß: 50 %", 1.0)]),
]


@pytest.mark.parametrize(("text", "expected"), [*OURS, *MIXES])
def test_emphasis(text, expected):
    found = fragments(text)
    assert [words for words, _ in found] == [words for words, _ in expected]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in expected])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[red:black:0.5]", {5: "red", 10: "black"}),
        ("[red::4]", {4: "red", 10: ""}),
        ("[red:0]", {10: "red"}),
        ("[red:-1]", {10: "red"}),
        ("[50%:30%:0.5] red", {5: "50% red", 10: "30% red"}),
        ("[a:b:0.29]", {2: "a", 10: "b"}),
        ("[[a|b]:c:3]", {1: "a", 2: "b", 3: "a", 10: "c"}),
        ("[a:b]", {10: "a:b"}),
        ("[a|b:c]", {10: "a|b:c"}),
    ],
)
def test_edits(text, expected):
    found = {
        version.last_step: "".join(fragment.text for fragment in version.parts[0])
        for version in read(text).versions
    }
    assert found == expected


def test_an_edit_that_never_begins_is_noted():
    (note,) = read("red [wet:1.5]").notes
    assert (
        str(note)
        == "prompt: '[wet:1.5]' at character 5 begins after the last of 10 steps, so it changes nothing"
    )


@pytest.mark.parametrize(
    ("text", "steps", "codes"),
    [
        ("[black:blue:0.5]", 1, ["prompt-edit-cut-short"]),
        ("[black:blue:0.5]", 2, []),
        ("[black::0]", 10, ["prompt-edit-cut-short"]),
        ("[a|b|c]", 2, ["prompt-edit-cut-short"]),
        ("[a|b|c] [fe|||]male", 3, []),
        ("[wet:0.5]", 1, []),
    ],
)
def test_words_of_an_edit_that_no_step_draws_are_noted(text, steps, codes):
    assert [note.code for note in read(text, steps).notes] == codes


def test_brackets_that_are_never_closed_are_noted():
    (note,) = read("a ((b").notes
    assert str(note) == "prompt: 2 '(' never closed, the first at character 3; read to the end"


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("red [shiny:matt:nan]", ["[shiny:matt:nan]"]),
        ("[wet:dry:5:6]", ["[wet:dry:5:6]"]),
        ("[[a:b]:c:3] (d [e:f])", ["[a:b]", "[e:f]"]),
        ("(wet:1,5) (a (b):fast)", ["(wet:1,5)", "(a (b):fast)"]),
        ("wet) matt] f/1.8:1.5)", [")", "]", ")"]),
        (")" * 1000, [")"] * 5),
    ],
)
def test_brackets_that_are_not_understood_are_noted(text, typed):
    notes = read(text).notes
    assert {note.code for note in notes} == {"prompt-not-understood"}
    assert [note.values["typed"] for note in notes] == typed
    assert all(text.startswith(note.values["typed"], note.values["position"] - 1) for note in notes)


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("wet} {a}", ["}"]),
        ("red, __surface, wet", ["__surface"]),
        ("red AND wet :2", ["AND"]),
        ("}" * 1000, ["}"] * 5),
    ],
)
def test_other_syntax_that_is_left_over_is_noted(text, typed):
    notes = note_left_over(Traced.begin(text), field="prompt")
    assert [note.values["typed"] for note in notes] == typed
    assert notes[0].values["position"] == text.index(typed[0]) + 1


@pytest.mark.parametrize(
    "text",
    [
        *(text for text, _ in MIXES),
        "(red: 50%, black: 50%)",
        "(red:black 3:1)",
        "size: large, red > black, wet :2",
        "50% RED AND 50% BLACK",
        "a__b c",
        r"\(x\) \} \[a:b\]",
        "[wet:3] [a|b] (x:1.5) <lora:x:1>",
    ],
)
def test_mixes_prose_and_what_is_understood_bring_no_note(text):
    assert read(text).notes == ()
    assert note_left_over(Traced.begin(text), field="prompt") == []


@pytest.mark.parametrize(
    ("text", "left", "tags"),
    [
        ("red, <lora:wet:0.4>, black", "red, black", [("wet", 0.4, 0.4, 6)]),
        ("<lora:wet:0.4:0.8>, red", "red", [("wet", 0.4, 0.8, 1)]),
        ("red <lora:wet look> black", "red black", [("wet look", 1, 1, 5)]),
        ("red, <lora:a:te=0.2:unet=1>, <lyco:b:-1>,", "red", [("a", 0.2, 1, 6), ("b", -1, -1, 30)]),
        ("<lora:a:te=0.2>, <lora:b:unet=0.9>", "", [("a", 0.2, 0.2, 1), ("b", 1, 0.9, 18)]),
        ("<lora:a:unet=0.8:0.4>", "", [("a", 0.4, 0.8, 1)]),
        ("<s0><s1>, red", "<s0><s1>, red", []),
    ],
)
def test_adapters_are_taken_out_of_the_text(text, left, tags):
    script = read(text)
    assert script.versions[0].emphasized.plain.text == left
    assert [tuple(tag[:4]) for tag in script.tags] == tags


REFUSED = [
    ("red (a:nan)", "prompt: weight 'nan' at character 8, expected a number from -10 to 10"),
    ("(a:inf)", "prompt: weight 'inf' at character 4, expected a number from -10 to 10"),
    ("(a:1e309)", "prompt: weight '1e309' at character 4, expected a number from -10 to 10"),
    ("(a:-99)", "prompt: weight '-99' at character 4, expected a number from -10 to 10"),
    ("(a:1.2.3)", "prompt: weight '1.2.3' at character 4, expected a number from -10 to 10"),
    ("((a:9):9)", "prompt: weight '81' at character 3, expected a number from -10 to 10"),
    ("(" * 60 + "a", "prompt: weight '304.482' at character 61, expected a number from -10 to 10"),
    ("<lora:x:nan>", "prompt: '<lora:x:nan>' at character 1: expected scales from -10 to 10"),
    ("<lora:x:1,0,0>", "prompt: '<lora:x:1,0,0>' at character 1: expected scales from -10 to 10"),
    ("a <lora:x", "prompt: '<lora:x' at character 3 does not name an adapter; expected <lora:name:scale>"),
    (
        "<lora:x:0.4:te=1>",
        "prompt: '<lora:x:0.4:te=1>' at character 1 does not name an adapter; expected <lora:name:scale>",
    ),
    ("<lora::1>", "prompt: '<lora::1>' at character 1 does not name an adapter; expected <lora:name:scale>"),
    (
        "<hyper:x:1>",
        "prompt: '<hyper:x:1>' at character 1 does not name an adapter; expected <lora:name:scale>",
    ),
    ("<lora:a>" * 17, "prompt: more than 16 adapters"),
    ("[a|b][c|d|e][f|g|h|i|j|k|l]", "prompt: the edits make more than 20 different prompts"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_what_looks_like_syntax_and_is_none_is_refused(text, message):
    with pytest.raises(PromptError) as caught:
        read(text, steps=42)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "typed", "right"),
    [
        ("a (red)1.3 tile", ")1.3", "(x:1.3)"),
        ("(side light)1.3, wet", ")1.3", "(x:1.3)"),
        ("glossy++, red", "++", "(x:1.2)"),
        ("matt-- red", "--", "(x:1.2)"),
        ('("a", "b").and()', ".and(", "BREAK"),
        ("a cat.swap(dog)", ".swap(", "[x:y:0.5]"),
        ("red withLora(a,0.5)", "withLora(", "<lora:x:0.5>"),
        ("red (wet)^1.2", ")^1.2", "(x:1.3)"),
        ("red, (wet)++", ")++", "(x:1.2)"),
        ("(wet)--, red", ")--", "(x:1.2)"),
        ("(wet)+ red", ")+", "(x:1.2)"),
        ('red, "wet look"++', '"++', "(x:1.2)"),
        ('red, "wet look"1.3, black', '"1.3', "(x:1.3)"),
        ("(wet).5, red", ").5", "(x:1.3)"),
        ("(glossy++, red)", "++", "(x:1.2)"),
    ],
)
def test_the_grammar_of_earlier_versions_is_refused_with_the_right_one(text, typed, right):
    with pytest.raises(PromptError) as caught:
        refuse_other_notations(Traced.begin(text), field="prompt")
    values = {"typed": typed, "position": text.index(typed) + 1, "right": right}
    assert caught.value.code == "prompt-other-notation"
    assert dict(caught.value.values) == values


@pytest.mark.parametrize(
    "text",
    [
        "50% red++50% black",
        "50% red + 50% black",
        "C++11",
        "(red)60, (black)40",
        "(a:1.2)1.3",
        "- red -- black",
    ],
)
def test_a_text_without_that_grammar_is_not(text):
    refuse_other_notations(Traced.begin(text), field="prompt")


@pytest.fixture
def wildcards(tmp_path):
    folder = tmp_path / "wildcards"
    (folder / "floor").mkdir(parents=True)
    (folder / "color.txt").write_text("\ufeff# colors\nred\n\n{dark|light} green\n  black  \n", "utf-8")
    (folder / "floor" / "gym.txt").write_text("a gym in __color__\n")
    (folder / "self.txt").write_text("__other__ x\n")
    (folder / "other.txt").write_text("__self__\n")
    (folder / "double.txt").write_text("__double2____double2__\n")
    (folder / "double2.txt").write_text("__double3____double3__\n")
    (folder / "double3.txt").write_text("x" * 600 + "\n")
    (folder / "empty.txt").write_text("# nothing\n")
    (folder / "large.txt").write_text("\n" * 10**6)
    (folder / "endless.txt").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.txt")
    (folder / "latin.txt").write_bytes("größe\n".encode("latin-1"))
    return Wildcards(folder)


def test_only_regular_files_are_wildcards(wildcards):
    """A pipe was waited for forever, and a link to /dev/zero filled the memory."""
    assert not {"pipe", "endless"} & set(wildcards.names)
    for name in ("pipe", "endless"):
        with pytest.raises(PromptError, match="unknown wildcard"):
            wildcards.find(name, field="prompt", position=1)


def test_the_seed_chooses(wildcards):
    text = "50% __color__, 50% {blue|{gray|beige}}, __floor/gym__"
    found = [choose(text, seed, wildcards, field="prompt").text.text for seed in range(60)]
    assert found == [choose(text, seed, wildcards, field="prompt").text.text for seed in range(60)]
    assert {one.split(",")[0] for one in found} == {
        f"50% {color}" for color in ("red", "dark green", "light green", "black")
    }
    assert {one.split(", ")[1] for one in found} == {"50% blue", "50% gray", "50% beige"}
    assert all(", a gym in " in one for one in found)


def test_choices_are_listed_with_where_they_were_typed(wildcards):
    chosen = choose("wet {a|b} __floor/gym__ x", 4, wildcards, field="prompt")
    first, second, third = (choice for choice in chosen.choices if choice.typed != "{dark|light}")
    assert (first.typed, first.position) == ("{a|b}", 5)
    assert (second.typed, second.chosen, second.position) == ("__floor/gym__", "a gym in __color__", 11)
    assert (third.typed, third.position) == ("__color__", 11)
    text, origins = chosen.text
    assert origins[text.index("gym")] == 10
    assert origins[-1] == 24


@pytest.mark.parametrize("text", ["a__b c", "____", "__ x __", r"\{a|b\}", "a}b|c", "_", "BLACKp15_WHITEp85"])
def test_a_text_without_choices_stays_as_it_is(text, wildcards):
    chosen = choose(text, 1, wildcards, field="prompt")
    assert (chosen.text.text, chosen.choices, chosen.notes) == (text, (), ())


@pytest.mark.parametrize("text", ["{x} a", "a {b|c", "{{a}"])
def test_braces_without_a_choice_stay_with_a_note(text, wildcards):
    chosen = choose(text, 1, wildcards, field="prompt")
    assert chosen.text.text == text
    assert {note.code for note in chosen.notes} == {"prompt-braces"}


@pytest.mark.parametrize(
    ("text", "code", "values"),
    [
        ("a __colour__", "prompt-unknown-wildcard", {"typed": "colour", "position": 3}),
        ("__../../etc/passwd__", "prompt-unknown-wildcard", {"typed": "../../etc/passwd"}),
        ("a __self__", "prompt-wildcard-circle", {"names": "self > other > self", "position": 3}),
        ("__double__", "prompt-too-long", {"count": 2400}),
        ("__empty__", "wildcard-empty", {"name": "empty"}),
        ("__large__", "wildcard-too-large", {"size": 10**6, "most": MOST_BYTES}),
        ("__latin__", "wildcard-unreadable", {"name": "latin"}),
        ("{2$$a|b}", "prompt-counted-choice", {"typed": "{2$$a|b}", "position": 1}),
        ("x {0.5::a|b}", "prompt-counted-choice", {"position": 3}),
        ("{a|b}" * 300, "prompt-too-many-choices", {"most": MOST_CHOICES}),
    ],
)
def test_choices_that_cannot_be_made_are_refused(text, code, values, wildcards):
    with pytest.raises(PromptError) as caught:
        choose(text, 1, wildcards, field="prompt")
    assert caught.value.code == code
    assert values.items() <= caught.value.values.items()
    str(caught.value)


@pytest.mark.parametrize("name", Wildcards().names)
def test_every_wildcard_of_the_project_can_be_chosen(name):
    assert FOLDER.is_dir()
    for seed in range(20):
        text = choose(f"__{name}__", seed, Wildcards(), field="prompt").text
        assert "__" not in text.text
        parse(text, steps=25, field="prompt")


def repeat(piece, size=2000):
    return (piece * size)[:size]


@pytest.mark.parametrize(
    "text",
    [
        *map(repeat, "()[]:|\\{}_<"),
        *map(
            repeat,
            ["[a|", "(a:", "[a:b:3", "([", "(a)", "<lora:", "[a:3]", ":1.5)", " BREAK", "(3:1", "__a", "{a|"],
        ),
        "[a:" * 600 + ":1]" * 60,
        "[a|" * 450 + "]" * 450,
        "(" * 1000 + ")" * 1000,
        "[" * 1000 + "a" * 9 + "]" * 991,
        repeat(" ", 1990) + "BREAK",
        repeat("е\u0301\u200f"),
    ],
)
@pytest.mark.slow
def test_two_thousand_characters_of_syntax_take_no_time(text, wildcards):
    def run():
        with suppress(PromptError):
            refuse_other_notations(Traced.begin(text), field="prompt")
        with suppress(PromptError):
            choose(text, 1, wildcards, field="prompt")
        with suppress(PromptError):
            write_versions([(version.last_step, version.parts) for version in read(text, steps=100).versions])

    assert_quick(lambda: processor_seconds(run), 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("piece", ["(", "[(", "[a:3]"])
def test_time_grows_with_the_text_and_no_faster(piece):
    def measure(size):
        def run():
            with suppress(PromptError):
                read(piece * (size // len(piece)))

        return processor_seconds(run)

    assert_quick(lambda: measure(50_000) / 10, 4 * max(measure(5_000), 0.001))


PIECES = [
    "red", "50%", "(", ")", "[", "]", ":", "|", "1.5", ":1.5)", ":2)", "BREAK", " ", "\\", ", ", "RAL 3016", "wet",
    "[a:b:3]", "[a|b]", ":0.5]", "(3:1)", "(50%)", "-", "е\u0301", "#aa3f27", "\n",
]  # fmt: skip


def words_of(versions):
    return [
        (version.last_step, ["".join(fragment.text for fragment in part) for part in version.parts])
        for version in versions
    ]


def weights_of(versions):
    """The weight of every character."""
    return [
        fragment.weight
        for version in versions
        for part in version.parts
        for fragment in part
        for _ in fragment.text
    ]


@given(st.lists(st.sampled_from(PIECES), max_size=25).map("".join))
def test_what_is_written_reads_the_same(text):
    try:
        first = read(text).versions
    except PromptError:
        return
    written = write_versions([(version.last_step, version.parts) for version in first])
    again = read(written).versions
    assert words_of(again) == words_of(first)
    assert weights_of(again) == pytest.approx(weights_of(first), abs=1e-6)
    assert write_versions([(version.last_step, version.parts) for version in again]) == written


def test_the_colors_of_the_wildcard_are_in_every_palette():
    palettes = [load_palette(path.stem) for path in sorted(PALETTES.glob("*.json"))]
    assert palettes
    for word in Wildcards().find("color", field="prompt", position=1):
        assert all(palette.find(word) for palette in palettes), word
