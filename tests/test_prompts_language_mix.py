"""The prompt language and color mixes: each is read, neither spoils the other."""

from itertools import product

import pytest

from tilemix.errors import MixError, PromptError
from tilemix.prompts.context import PromptContext
from tilemix.prompts.language.wildcards import Wildcards
from tilemix.prompts.mix import parse_mix
from tilemix.prompts.rewrite import Prompt, rewrite
from tilemix.prompts.template import find_template

TILE = find_template("rubber_tile")
HEAD, TAIL = TILE.text.split("$prompt")


def read(text, negative_prompt="", **context) -> Prompt:
    given = {"seed": 3, "steps": 10, "loras": ["files/Wet-Look.safetensors", "matt.safetensors"]} | context
    embeddings = {"bad-granules.safetensors": "<b0><b1>"}
    return rewrite(
        text, TILE, negative_prompt=negative_prompt, context=PromptContext(embeddings=embeddings, **given)
    )


def middle(prompt):
    """What stands in the template's place."""
    assert prompt.positive.startswith(HEAD)
    assert prompt.positive.endswith(TAIL)
    return prompt.positive.removeprefix(HEAD).removesuffix(TAIL)


# What is typed, what is sent, the mix that is measured.
EMPHASIZED = [
    ("(50 % rot:1.3), 50 % schwarz, nass", "(50% red:1.3), 50% black, nass", "50% red, 50% black"),
    ("50% (red:1.3), 50% black", "50% (red:1.3), 50% black", "50% red, 50% black"),
    ("(50%:1.5) red, 50% black", "(50% :1.5)red, 50% black", "50% red, 50% black"),
    ("(50% red, 50% black:1.4), side light", "(50% red, 50% black:1.4), side light", "50% red, 50% black"),
    ("red, (black:1.2)", "50% red, (50% black:1.2)", "50% red, 50% black"),
    (
        "50% red, 50% black, (wet:1.2) [floor]",
        "50% red, 50% black, (wet:1.2) (floor:0.909091)",
        "50% red, 50% black",
    ),
    ("60% red tile (wet:1.2) with 40% black flecks", "60% red, 40% black, (wet:1.2)", "60% red, 40% black"),
    ("(photo:1.1) of 50% red, 50% black", "(photo:1.1) of 50% red, 50% black", "50% red, 50% black"),
    ("50% red, 50% black BREAK wet", "50% red, 50% black BREAK wet", "50% red, 50% black"),
    ("50% red BREAK 50% black", "50% red BREAK 50% black", "50% red, 50% black"),
    (
        "[wet], no white, (60% red:1.2), 40% blue, (no black:1.3), (soft:1.4)",
        "(wet:0.909091), (60% red:1.2), 40% blue, (soft:1.4)",
        "60% red, 40% blue",
    ),
    ("(a red floor:1.2)", "(a red floor:1.2)", None),
    ("BREAK 100% red", " BREAK 100% red", "100% red"),
    ("100% red BREAK", "100% red BREAK ", "100% red"),
    ("wet BREAK (100% red:1.2), matt BREAK", "wet BREAK (100% red:1.2), matt BREAK ", "100% red"),
    ("100% red BREAK, wet", "100% red BREAK , wet", "100% red"),
    ("(red: 50%:1.3), black: 50%", "(50% red:1.3), 50% black", "50% red, 50% black"),
    (
        "красный: 20%, [чёрный: 30%], (белый - 50%:1.5)",
        "20% red, (30% black:0.909091), (50% white:1.5)",
        "20% red, 30% black, 50% white",
    ),
    ("schwarz mit (20% roten Sprenkeln:1.2)", "80% black, (20% red:1.2)", "80% black, 20% red"),
    ("(black:1.2) with 20% red", "(80% black:1.2), 20% red", "80% black, 20% red"),
]
PUNCTUATED = [
    ("red (50%), black (50%)", "50% red, 50% black"),
    ("red, black (3:1)", "75% red, 25% black"),
    ("50% red (RAL 3016), 50% black", "50% red, 50% black"),
    ("50% green (dark), 50% green (light)", "50% dark green, 50% light green"),
    ("red (60 percent), black [40 percent]", "60% red, 40% black"),
    ("rot (ca. 60 Prozent), schwarz (der Rest)", "60% red, 40% black"),
    ("красный (половина), чёрный (половина)", "50% red, 50% black"),
    ("червоний (3 частини), чорний (1 частина)", "75% red, 25% black"),
    ("红色（60%），黑色（40%）", "60% red, 40% black"),
    ("【红色60%】【黑色40%】", "60% red, 40% black"),
    ("《红色60%》《黑色40%》", "60% red, 40% black"),
    ("(60%) light gray, (40%) black", "60% light gray, 40% black"),
    ("(about 60%) gray, (approx. 40%) black", "60% gray, 40% black"),
    ("black (20% red flecks)", "80% black, 20% red"),
    ("20% red flecks (rest black)", "20% red, 80% black"),
    ("60% RAL 9005 (Tiefschwarz), 40% red", "60% black, 40% red"),
    ("60% black (schwarz), 40% red", "60% black, 40% red"),
    ("red and black (ratio 3:1)", "75% red, 25% black"),
    ("50/30/20 (red/black/white)", "50% red, 30% black, 20% white"),
]
OPEN = {"(": ")", "[": "]", "【": "】", "《": "》"}
BRACKETED = [
    "{}% ({})", "({}%) {}", "({}% {})", "({1} {0} percent)", "{1} ({0}%)", "({1}: {0}%)", "【{1}{0}%】", "《{}% {}》",
    "{}% {} (wet)", "[{}% {}]", "({}% {}:1.2)", "{}% ({}) flecks", "{1} (ca. {0}%)", "(ca. {}%) {}", "({}% {}",
    "{}% {} (see photo)", "{}% (light) {}", "(({}%)) {}",
]  # fmt: skip


@pytest.mark.parametrize(("typed", "sent", "mix"), EMPHASIZED)
def test_a_mix_may_be_emphasized_as_a_whole_or_in_part(typed, sent, mix):
    prompt = read(typed)
    assert middle(prompt) == sent
    assert (None if prompt.mix is None else str(prompt.mix)) == mix


@pytest.mark.parametrize(("typed", "sent"), PUNCTUATED)
def test_brackets_around_numbers_and_shades_emphasize_nothing(typed, sent):
    assert middle(read(typed)) == sent


def is_balanced(text: str) -> bool:
    waiting: list[str] = []
    for letter in text.replace("\\(", "【").replace("\\)", "】"):
        if letter in OPEN:
            waiting.append(OPEN[letter])
        elif letter in OPEN.values() and (not waiting or waiting.pop() != letter):
            return False
    return not waiting


@pytest.mark.parametrize("around", ["{}", "photo {}, (wet)", "floor ({})"])
def test_brackets_in_and_around_a_mix_stay_balanced(around):
    for first, second in product(BRACKETED, repeat=2):
        prompt = read(around.format(f"{first.format(60, 'gray')}, {second.format(40, 'green')}"))
        assert [share.percent for share in prompt.mix.shares] == [60, 40]
        assert is_balanced(prompt.positive), (first, second, prompt.positive)


def test_what_cannot_be_seen_is_dropped_before_a_text_is_read():
    typed = "\ufeffphoto\u200b, 60% r\u200bed, 4\u20600% schw\u00adarz\u200e, w\u200det"
    prompt = read(typed)
    assert middle(prompt) == "photo, 60% red, 40% black, wet"
    (red,) = (span for span in prompt.spans if span.value == "red")
    assert typed[red.start : red.end] == "r\u200bed"
    assert [span[2:] for span in prompt.spans] == [span[2:] for span in parse_mix(typed).spans]
    assert middle(read('\ufeff{"r\u200bed": 60, "black": 40}')) == "60% red, 40% black"
    with pytest.raises(MixError) as caught:
        parse_mix("\u200b60% red, 40% bl\u200back\u200b dark")
    assert caught.value.position == 23
    with pytest.raises(PromptError, match="^prompt: empty"):
        read("\u200b\ufeff")


@pytest.mark.parametrize(
    "typed",
    [
        "{'red': 60, 'black': 40}", '{"red": true, "black": 99}', '[["red", 60], ["black", 40]]',
        '{"rot": 60, "schwarz": 40,}', "{красный: 60, чёрный: 40}", 'tile {"red": 60, "black": 40}',
        '{"colors": {"红色": [60], "黑色": [40]}}',
    ],
)  # fmt: skip
def test_json_that_is_not_a_mix_is_refused_as_json(typed):
    with pytest.raises(MixError, match="^the JSON at character"):
        read(typed)
    assert read("{50% red|60% red}, rest black").mix is not None
    assert str(read('["red", "black"]').mix) == "50% red, 50% black"


def test_the_mix_of_the_last_steps_is_measured():
    prompt = read("[50% red, 50% black:50% white, 50% blue:0.5], wet")
    assert str(prompt.mix) == "50% white, 50% blue"
    assert middle(prompt) == "50% [red, 50% black,:white, 50% blue,:5] wet"
    assert str(read("[50% red, 50% black::5] wet").mix) == "50% red, 50% black"
    assert middle(read("50% red, 50% [black|white]")) == "50% red, 50% [black|white]"


def test_a_fault_in_a_mix_is_placed_where_it_was_typed():
    with pytest.raises(MixError) as caught:
        read("((50% rad:1.2)), 50% black")
    assert caught.value.position == 7
    with pytest.raises(MixError) as caught:
        read("{(wet), |} <lora:matt> 50% rad, 50% black")
    assert caught.value.position == 28
    (span,) = (span for span in read("(50% red:1.2), 50% black").spans if span.value == "red")
    assert (span.start, span.end) == (5, 8)


@pytest.mark.parametrize(
    ("text", "listed"),
    [
        (
            "a floor BREAK (50% red:1.2) BREAK, 50% (__color__:1.3) wet",
            "text 'a floor', break 'BREAK', share '50%', color 'red', break 'BREAK', separator ',', share '50%',"
            " color '__color__', text 'wet'",
        ),
        ("__surface__ {BREAK|BREAK} __color__", "text '__surface__', break 'BREAK', text '__color__'"),
        ("100% red __ BREAKS", "share '100%', color 'red', text '__ BREAKS'"),
    ],
)
def test_a_wildcard_and_a_break_are_listed_whole(text, listed):
    """A wildcard was listed as its first `_`, a BREAK as `B` of a separator."""
    spans = read(text).spans
    assert ", ".join(f"{span.role} {text[span.start : span.end]!r}" for span in spans) == listed


def test_adapters_are_found_by_name_and_added():
    prompt = read("red, <lora:wet-look:0.4>, <lora:MATT.safetensors:0.2:0.6> <lora:matt:0.1>")
    assert middle(prompt) == "100% red"
    wet, matt = prompt.loras
    assert wet == ("files/Wet-Look.safetensors", 0.4, 0.4)
    assert matt == ("matt.safetensors", pytest.approx(0.3), pytest.approx(0.7))


def test_an_adapter_that_the_model_lacks_is_refused_with_near_names():
    with pytest.raises(PromptError) as caught:
        read("red <lora:wetlok:1>")
    assert (
        str(caught.value) == "prompt: the model has no LoRA 'wetlok', at character 5; known: Wet-Look, matt"
    )
    with pytest.raises(PromptError, match="known: none$"):
        read("red <lora:../../etc/passwd:1>", loras=[])
    with pytest.raises(
        PromptError, match="^negative_prompt: an adapter at character 3; adapters belong in the"
    ):
        read("red", negative_prompt="a <lora:matt>")
    assert read("red <lora:unknown>", loras=None).loras == ()  # of a model that is elsewhere


def test_embeddings_are_named_by_their_files_in_either_prompt():
    prompt = read(
        "50% red, 50% black, (bad-granules:0.5)", "(low quality:1.3), (Bad-Granules.safetensors:0.8)"
    )
    assert middle(prompt) == "50% red, 50% black, (<b0><b1>:0.5)"
    assert prompt.negative == "(low quality:1.3), (<b0><b1>:0.8)"
    assert read("red", "not-bad-granules, bad-granules2").negative == "not-bad-granules, bad-granules2"


def test_a_trigger_prompt_keeps_its_syntax_and_gives_its_adapters(tmp_path):
    (tmp_path / "light.txt").write_text("side light\n")
    prompt = read("<s0><s1>, (50% red:1.2), 50% black, __light__, <lora:matt>", wildcards=Wildcards(tmp_path))
    assert prompt.positive == "<s0><s1>, (50% red:1.2), 50% black, side light"
    assert str(prompt.mix) == "50% red, 50% black"
    assert prompt.loras == (("matt.safetensors", 1.0, 1.0),)
    assert prompt.chosen == "<s0><s1>, (50% red:1.2), 50% black, side light, <lora:matt>"


def test_the_seed_chooses_and_the_choice_is_kept():
    texts = {read("50% {red|black|white}, 50% blue", seed=seed).chosen for seed in range(20)}
    assert texts == {f"50% {color}, 50% blue" for color in ("red", "black", "white")}
    assert read("red", "{a|b}", seed=1).chosen_negative in {"a", "b"}
    assert read("red").chosen is None


def test_a_mix_that_a_program_sends_is_not_read_as_syntax():
    sent = middle(
        read('{"colors": [{"name": "red", "proportion": 60}, {"name": "black", "proportion": 40}]}')
    )
    assert sent == "60% red, 40% black"
    inner = read('{"prompt": "(50% red:1.2), 50% black, <lora:matt>", "seed": 1}')
    assert middle(inner) == "(50% red:1.2), 50% black"
    assert len(inner.loras) == 1
    assert [note.code for note in inner.notes] == ["mix-keys-ignored"]


def test_a_prompt_of_syntax_alone_has_no_words():
    with pytest.raises(PromptError, match="^prompt: empty"):
        read("<lora:matt>")
    assert [middle(read(text)) for text in ("[:]", "()", "BREAK")] == ["(::0.909091)", "", " BREAK "]


def test_the_template_is_not_touched_by_brackets_left_open():
    prompt = read("50% red, 50% black, ((wet")
    assert middle(prompt) == "50% red, 50% black, (wet:1.21)"
    assert [note.code for note in prompt.notes] == ["prompt-unclosed"]


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        ("100% red, embedding:bad-granules", "<b0><b1>"),
        ("100% red, (embedding:Bad-Granules.pt:1.2)", "(<b0><b1>:1.2)"),
        (r"100% red, (embedding:neg\bad-granules)", "(<b0><b1>:1.1)"),
        ("100% red, [embedding:bad-granules:wet:5]", "[<b0><b1>:wet:5]"),
    ],
)
def test_the_prefix_of_comfyui_is_taken_off_an_embedding(typed, sent):
    prompt = read(typed, typed.removeprefix("100% red, "))
    assert middle(prompt) == f"100% red, {sent}"
    assert "<b0><b1>" in prompt.negative
    assert "embedding" not in prompt.negative
    assert prompt.notes == ()


def test_an_unknown_embedding_is_noted():
    prompt = read("100% red, wet embedding:bad-hands, x")
    assert middle(prompt) == "100% red, wet embedding:bad-hands, x"
    assert [str(note) for note in prompt.notes] == [
        "prompt: the model has no embedding 'bad-hands', at character 15; known: bad-granules; read as words"
    ]
