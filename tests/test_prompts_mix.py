"""Reading color mixes: every spelling that people use, every refusal, and the time it takes."""

import unicodedata
from contextlib import suppress
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pace import assert_quick, processor_seconds
from tilemix.colors.chart import load_colors
from tilemix.colors.languages import load_languages
from tilemix.errors import MixError, PromptError
from tilemix.prompts.checks import MAX_PROMPT_CHARACTERS
from tilemix.prompts.mix import ColorMix, ColorShare, parse_mix
from tilemix.prompts.mix.shares import read_shares
from tilemix.prompts.mix.tokens import tokenize
from tilemix.prompts.mix.words import ambiguous_words, expand_word, fold

EXAMPLE = "50% red, 30% black, 20% pearl"


def shares_of(text: str) -> dict[str, str]:
    mix = parse_mix(text).mix
    assert mix is not None
    assert sum(share.percent for share in mix.shares) == 100
    return {color: str(percent) for color, percent in mix.shares}


@pytest.mark.parametrize(
    "text",
    [
        EXAMPLE,
        "50% red 30% black 20% pearl",
        "50%red30%black20%pearl",
        "50 % red , 30 % black , 20 % pearl",
        "  50% red, 30% black, 20% pearl  ",
        "50% red; 30% black; 20% pearl",
        "50% red + 30% black + 20% pearl",
        "50% red/30% black/20% pearl",
        "50% red | 30% black | 20% pearl",
        "50% red & 30% black & 20% pearl",
        "50% red\n30% black\r\n20% pearl",
        "red\t50%\nblack\t30%\npearl\t20%",
        "50% red, 30% black,, 20% pearl,",
        "50% red and 30% black and 20% pearl",
        "50% red, 30% black, and 20% pearl",
        "50% red - 30% black - 20% pearl",
        "50%-red, 30%-black, 20%-pearl",
        "red 50%, black 30%, pearl 20%",
        "red 50% black 30% pearl 20%",
        "red-50% black-30% pearl-20%",
        "red: 50%, black: 30%, pearl: 20%",
        "red = 50%; black = 30%; pearl = 20%",
        "red (50%), black (30%), pearl (20%)",
        "50% red, black 30%, 20% pearl",
        "50% of red, 30% of black, 20% of pearl",
        "50 percent red, 30 per cent black, 20 pct pearl",
        "50％ red，30％ black；20％ pearl",
        "５０％ red、３０％ black、２０％ pearl",
        "50% Red, 30% BLACK, 20% pEARL",
        "- 50% red\n- 30% black\n- 20% pearl",
        "1) 50% red\n2) 30% black\n3) 20% pearl",
        '"50% red", "30% black", "20% pearl"',
        "50% red, 30% black, 20% pearl.",
        "50% red granules, 30% black chips, 20% pearl EPDM",
        "50% rot, 30% schwarz und 20% Perlweiß",
        "50 Prozent rotes, 30 Prozent schwarzes, 20 Prozent perlweißes Granulat",
        "50 % красного, 30 % чёрного и 20 % жемчужного",
        "красный 50%, черный 30%, жемчужно-белый 20%",
        "50 процентов красного цвета, 30 чёрного".replace("30 ", "30 процентов ")
        + ", 20 процентов жемчужного",
        "50% червоного, 30% чорного та 20% перлинного",
        "50%红色30%黑色20%珍珠白",
        "红色50%，黑色30%，珍珠白20%",
        "红50%黑30%珍珠20%",
        "50%的红色和30%的黑色和20%的珍珠白",
        "50% RAL 3016, 30% RAL 9005, 20% RAL 1013",
        "50% ral3016, 30% RAL-9005, 20% РАЛ 1013",
        "50% #aa3f27, 30% #1A1A1A, 20% #d6d1be",
        "red (RAL 3016) 50%, black (RAL 9005) 30%, pearl (RAL 1013) 20%",
        "50% RAL 3016 Korallenrot 30% RAL 9005 Tiefschwarz 20% RAL 1013 Perlweiß",
        "half red, 30% black, rest pearl",
        "50% red, 30% black, the rest pearl",
        "50% red, 30% black, pearl: the rest",
        "50% красный, 30% чёрный, остальное жемчужный",
        "50% красного, 30% чёрного, а остальное - жемчужное",
        "50% червоного, 30% чорного, решта перлинний",
        "50% rot, 30% schwarz, Rest perlweiß",
        "50%红色，30%黑色，其余珍珠白",
        "30% red, 20% red, 30% black, 20% pearl",
        "50% red, 0% white, 30% black, 20% pearl",
        "50.0% red, 30.0% black, 20.0% pearl",
        "50% red\u200b, 30%\u00a0black, 20%\u3000pearl",
        unicodedata.normalize("NFD", "50% красный, 30% чёрный, 20% жемчужный"),
    ],
)
def test_every_usual_spelling_is_the_same_mix(text):
    parsed = parse_mix(text)
    assert parsed.text == EXAMPLE
    assert str(parsed.mix) == EXAMPLE
    assert parsed.notes == ()


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("12.5% dark green, 87.5% black", "12.5% dark green, 87.5% black"),
        ("12,5% dunkelgrün; 87,5% schwarz", "12.5% dark green, 87.5% black"),
        ("12,5％深绿87,5％黑", "12.5% dark green, 87.5% black"),
        ("50% dark green 50% light gray", "50% dark green, 50% light gray"),
        ("50% Dark-Green/50% light grey", "50% dark green, 50% light gray"),
        ("half red, half black", "50% red, 50% black"),
        ("half-red half-black", "50% red, 50% black"),
        ("30% dark-green, rest-black", "30% dark green, 70% black"),
        ("50% перламутра, 50% красного", "50% pearl, 50% red"),
        ("red half, black half", "50% red, 50% black"),
        ("½ red + ½ black", "50% red, 50% black"),
        ("Hälfte rot, Hälfte schwarz", "50% red, 50% black"),
        ("половина красного, половина чёрного", "50% red, 50% black"),
        ("половина червоного, половина чорного", "50% red, 50% black"),
        ("一半红色，一半黑色", "50% red, 50% black"),
        ("a third red, a third black, a third white", "33.4% red, 33.3% black, 33.3% white"),
        ("треть красного, треть чёрного, треть белого", "33.4% red, 33.3% black, 33.3% white"),
        ("ein Drittel rot, Rest schwarz", "33.3% red, 66.7% black"),
        ("two thirds red, one third black", "66.7% red, 33.3% black"),
        ("a quarter of red, three quarters of black", "25% red, 75% black"),
        ("чверть червоного, решта чорного", "25% red, 75% black"),
        ("四分之一红色，其余黑色", "25% red, 75% black"),
        ("rest black, 30% red", "70% black, 30% red"),
        ("black - the rest, 30% red", "70% black, 30% red"),
        ("red, black", "50% red, 50% black"),
        ("red and black", "50% red, 50% black"),
        ("Red + Black.", "50% red, 50% black"),
        ("красный и чёрный", "50% red, 50% black"),
        ("червоний та чорний", "50% red, 50% black"),
        ("rot und schwarz", "50% red, 50% black"),
        ("红色和黑色", "50% red, 50% black"),
        ("RAL 3016 / #1a1a1a", "50% red, 50% black"),
        ("red, black, white", "34% red, 33% black, 33% white"),
        ("red, red, black", "67% red, 33% black"),
        ("dark green", "100% dark green"),
        ("a red tile", "100% red"),
        ("100% red, 0% black", "100% red"),
    ],
)
def test_decimals_fractions_rest_and_names_alone_are_read(text, canonical):
    parsed = parse_mix(text)
    assert parsed.text == canonical
    assert parsed.notes == ()


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("33% red, 33% black, 33% white", {"red": "34", "black": "33", "white": "33"}),
        ("34% red, 34% black, 33% white", {"red": "34", "black": "33", "white": "33"}),
        ("33.3% red, 33.3% black, 33.3% white", {"red": "33.4", "black": "33.3", "white": "33.3"}),
        ("33.0% red, 33% black, 33% white", {"red": "33.4", "black": "33.3", "white": "33.3"}),
        ("33.33% red, 33.33% black, 33.34% white", {"red": "33.3", "black": "33.3", "white": "33.4"}),
        ("49% red, 50% black", {"red": "49", "black": "51"}),
        ("99% red", {"red": "100"}),
        ("101% red", {"red": "100"}),
        ("100.5% red, rest black", {"red": "100.0"}),
        ("0.04% red, 99.96% black", {"black": "100.0"}),
        ("50% red, 50% black", {"red": "50", "black": "50"}),
    ],
)
def test_totals_near_100_become_100_by_largest_remainder(text, shares):
    assert shares_of(text) == shares


def test_as_many_colors_as_fit_are_kept_and_total_100():
    names = [color.name for color in load_colors()]
    text = ", ".join(f"{Decimal(100) / len(names):.2f}% {name}" for name in names)
    assert list(shares_of(text)) == names


@pytest.mark.parametrize(
    ("text", "result"),
    [
        (f"{EXAMPLE}, wet surface, side light", f"{EXAMPLE}, wet surface, side light"),
        (f"{EXAMPLE} wet surface", f"{EXAMPLE}, wet surface"),
        (f"{EXAMPLE}. Wet surface.", f"{EXAMPLE}. Wet surface."),
        (f"{EXAMPLE}; macro, f/1.8, 35mm", f"{EXAMPLE}, macro, f/1.8, 35mm"),
        (f"{EXAMPLE} and wet", f"{EXAMPLE}, and wet"),
        (f"{EXAMPLE}, white background", f"{EXAMPLE}, white background"),
        (f"{EXAMPLE} granules in the sun", f"{EXAMPLE}, in the sun"),
        (f"{EXAMPLE}, крупный план", f"{EXAMPLE}, крупный план"),
        ("50%红色50%黑色，湿的表面", "50% red, 50% black, 湿的表面"),
        (f"photo of a tile: {EXAMPLE}, wet", f"photo of a tile: {EXAMPLE}, wet"),
        ("a tile with red 50%, black 50%, wet", "a tile with 50% red, 50% black, wet"),
        ("a tile with 50% rot und 50% schwarz", "a tile with 50% red, 50% black"),
        ("wet,\n50% rot, 50% schwarz", "wet, 50% red, 50% black"),
        ("photo (50% rot, 50% schwarz) wet", "photo (50% red, 50% black) wet"),
        ("(50% rot, 50% schwarz:1.2), wet", "(50% red, 50% black:1.2), wet"),
        ("red (50%), black (50%), wet", "50% red, 50% black, wet"),
        ("🔥 50% red, 50% black 🔥", "🔥 50% red, 50% black, 🔥"),
        ("50% red shiny, 50% black matte", "50% red, 50% black, shiny, matte"),
        ("50% red, very wet, 50% black, side light", "50% red, 50% black, very wet, side light"),
        (
            "three-quarter view, 50% red, 50% black, half-tone",
            "three-quarter view, 50% red, 50% black, half-tone",
        ),
        ("50% red, 50% black, the rest of it blurred", "50% red, 50% black, the rest of it blurred"),
        ("50% red, 50% black, {0.__class__} ${x} %s%n", "50% red, 50% black, {0.__class__} ${x} %s%n"),
    ],
)
def test_text_before_and_after_the_mix_is_kept(text, result):
    parsed = parse_mix(text)
    assert parsed.mix is not None
    assert parsed.text == result


@pytest.mark.parametrize(
    "text",
    [
        "red black",
        "red, black, wet surface",
        "a wall in RAL 9999, wet",
        "34 red",
        "half",
        "the rest is history",
        "third row, quarter view",
        "%",
        "%s%n",
        "{0.__class__} ${x} $prompt",
        ",,, ; \n",
        "",
        "  \n ",
        "#tag",
        "плитка у дома",
        "湿的表面",
    ],
)
def test_text_without_a_share_stays_as_it_is(text):
    parsed = parse_mix(text)
    assert (parsed.mix, parsed.text, parsed.notes) == (None, text, ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("50% rad, 50% black", "unknown color 'rad' at character 5; did you mean 'red'?"),
        ("rad 50%, black 50%", "unknown color 'rad' at character 1; did you mean 'red'?"),
        ("a tile with rad 50%, black 50%", "unknown color 'rad' at character 13; did you mean 'red'?"),
        (
            "50% red, 50% drak green",
            "unknown color 'drak green' at character 14; did you mean 'dark green'?; understood so far: 50% red",
        ),
        (
            "50% красн, 50% чорный",
            "unknown color 'чорный' at character 16; did you mean 'чёрный'?",
        ),
        (
            "50% red, rest blakc",
            "unknown color 'blakc' at character 15; did you mean 'black'?; understood so far: 50% red",
        ),
        (
            "50% red, half blakc",
            "unknown color 'blakc' at character 15; did you mean 'black'?; understood so far: 50% red",
        ),
        (
            "50% red, 50% blakc wet",
            "unknown color 'blakc' at character 14; did you mean 'black'?; understood so far: 50% red",
        ),
        ("50% rost, 50% red", "unknown color 'rost' at character 5; did you mean 'rosa' or 'rot'?"),
        (
            "50% red, 30% black, 15% pearl",
            "shares total 95%, expected 100%: read 50% red, 30% black, 15% pearl",
        ),
        ("98.9% red", "shares total 98.9%, expected 100%: read 98.9% red"),
        ("101.1% red", "shares total 101.1%, expected 100%: read 101.1% red"),
        ("70% red, 70% black", "shares total 140%, expected 100%: read 70% red, 70% black"),
        ("0% red", "shares total 0%, expected 100%: read 0% red"),
        ("half red", "shares total 50%, expected 100%: read 50% red"),
        ("102% red, rest black", "shares total 102%, expected 100%: read 102% red, 0% black"),
        (
            "1% red, " * 20,
            "shares total 20%, expected 100%: read " + "1% red, " * 11 + "1% red and 8 more",
        ),
        ("50% red, 50%", "share '50%' at character 10 has no color; understood so far: 50% red"),
        ("50%, 50% red", "share '50%' at character 1 has no color"),
        ("50% of", "share '50%' at character 1 has no color"),
        (
            "50% red, black, 50% white",
            "color 'black' at character 10 has no percent; understood so far: 50% red",
        ),
        (
            "50% red, rest black and white",
            "color 'white' at character 25 has no percent; understood so far: 50% red",
        ),
        ("white, 50% red, 50% black", "color 'white' at character 1 has no percent"),
        (
            "50% white pearl 50% black",
            "color 'pearl' at character 11 has no percent; understood so far: 50% white",
        ),
        ("30% red, rest black, rest white", "two shares say 'rest', expected one"),
        ("40-50% red, 50% black", "'40-50%' at character 1 is a range, expected one percent"),
        ("1.2.3% red", "percent '1.2.3' at character 1: expected a number such as 30 or 12.5"),
        ("999999999% red", "percent '999999999' at character 1: expected a number such as 30 or 12.5"),
        (
            "9" * 100 + "% red",
            f"percent '{'9' * 40}...' at character 1: expected a number such as 30 or 12.5",
        ),
        (
            "50% red, 50% RAL 9999",
            "'RAL 9999' at character 14: RAL Classic has no such number; understood so far: 50% red",
        ),
        ("RAL 9999", "'RAL 9999' at character 1: RAL Classic has no such number"),
        ("red, RAL 30166", "'RAL 30166' at character 6: RAL Classic has no such number"),
        (
            "50% red, 50% #12345",
            "color value '#12345' at character 14: expected '#' and three or six hexadecimal digits; "
            "understood so far: 50% red",
        ),
        (
            "50% red (RAL 9005), 50% white",
            "share at character 5 names two colors, 'black' and 'red'",
        ),
    ],
)
def test_what_is_not_clear_is_refused_with_place_and_reason(text, message):
    with pytest.raises(MixError) as caught:
        parse_mix(text)
    assert str(caught.value) == message
    if caught.value.position is not None:
        assert f"at character {caught.value.position}" in message


@pytest.mark.parametrize(
    ("text", "result", "notes"),
    [
        (
            "50% gold, 50% black",
            "50% gold, 50% black",
            ("unknown color 'gold' at character 5 is sent as typed",),
        ),
        (
            "neon  coral 50%, black 50%",
            "50% neon coral, 50% black",
            ("unknown color 'neon coral' at character 1 is sent as typed",),
        ),
        (
            "50% Gold, 25% gold, 25% black",
            "75% Gold, 25% black",
            (
                "unknown color 'Gold' at character 5 is sent as typed",
                "unknown color 'gold' at character 15 is sent as typed",
            ),
        ),
        (
            "100% rubber mat",
            "100% rubber mat",
            ("unknown color 'rubber mat' at character 6 is sent as typed",),
        ),
        (
            "100% {0.__class__}",
            "100% {0.__class__}",
            ("unknown color '{0.__class__}' at character 6 is sent as typed",),
        ),
        (
            "50% RAL 3000, 50% #000",
            "50% bright red, 50% black",
            (
                "'RAL 3000' at character 5 is not a granule color; read as 'bright red', "
                "the nearest (delta E 2000: 4.7)",
                "'#000' at character 19 is not a granule color; read as 'black', the nearest (delta E 2000: 5.5)",
            ),
        ),
        (
            "50% red (RAL 3000), 50% black",
            "50% red, 50% black",
            (
                "'RAL 3000' at character 10 is not a granule color; read as 'bright red', "
                "the nearest (delta E 2000: 4.7); the share says 'red'",
            ),
        ),
        (
            "100% red, rest black",
            "100% red",
            ("the other colors total 100%, so nothing is left for 'black'",),
        ),
        (
            "60% red, 40% black, rest equally white and pearl",
            "60% red, 40% black",
            (
                "the other colors total 100%, so nothing is left for 'white'",
                "the other colors total 100%, so nothing is left for 'pearl'",
            ),
        ),
        (
            "99.99% black, 0.01% red",
            "100% black",
            ("the share of 'red', 0.01%, rounds to nothing and is left out",),
        ),
        (
            "1 part red, 9999 parts black",
            "100% black",
            ("the share of 'red', 0.01%, rounds to nothing and is left out",),
        ),
    ],
)
def test_what_is_read_otherwise_than_typed_is_noted(text, result, notes):
    parsed = parse_mix(text)
    assert parsed.text == result
    assert tuple(map(str, parsed.notes)) == notes


def test_a_mix_keeps_the_order_as_typed_and_decimals_exact():
    mix = parse_mix("12.5% red, 37,5% black, rest white").mix
    assert mix == ColorMix(
        (
            ColorShare("red", Decimal("12.5")),
            ColorShare("black", Decimal("37.5")),
            ColorShare("white", Decimal(50)),
        )
    )
    assert str(mix) == "12.5% red, 37.5% black, 50% white"


def test_a_mix_too_long_or_with_control_characters_is_refused():
    with pytest.raises(PromptError, match="^prompt: 60000000 characters, expected 2000 at most$"):
        parse_mix("50% red " * 7_500_000)
    with pytest.raises(
        PromptError, match=r"^prompt: a control character, U\+0000, at character 5; expected plain text$"
    ):
        parse_mix("50% \x00red")


# --- any spelling of any mix -------------------------------------------------------------------------------

PERCENT_SIGNS = ("%", " %", "％", " percent", " Prozent", " процентов")
SEPARATORS = (", ", ",", "; ", " + ", "/", "\n", " and ", " и ", " та ", " und ", "，", "、", " & ", "")
FORMS = {
    color.name: sorted(
        {
            form
            for language, bases in color.synonyms.items()
            for base in bases
            for form in [base, *expand_word(base, load_languages()[language])]
            if fold(form) not in ambiguous_words()  # alone, "lila" is the German one
        }
        | ({f"RAL {color.ral}"} if color.ral else set())
        | {color.as_seen}
    )
    for color in load_colors()
}
CASES = (str, str.upper, str.title)


@st.composite
def spelled_mixes(draw):
    names = draw(st.lists(st.sampled_from(sorted(FORMS)), min_size=1, max_size=6, unique=True))
    cuts = sorted(
        draw(st.lists(st.integers(1, 99), min_size=len(names) - 1, max_size=len(names) - 1, unique=True))
    )
    percents = [high - low for low, high in zip([0, *cuts], [*cuts, 100], strict=True)]
    is_color_first = draw(st.booleans())
    text = ""
    for name, percent in zip(names, percents, strict=True):
        color = draw(st.sampled_from(CASES))(draw(st.sampled_from(FORMS[name])))
        amount = f"{percent}{draw(st.sampled_from(PERCENT_SIGNS))}"
        text += draw(st.sampled_from(SEPARATORS)) if text else ""
        text += f" {color} {amount} " if is_color_first else f" {amount} {color} "
    if draw(st.booleans()):
        text = unicodedata.normalize("NFD", text)
    return text, ", ".join(f"{percent}% {name}" for name, percent in zip(names, percents, strict=True))


@given(spelled_mixes())
@settings(max_examples=300, deadline=None)
def test_any_spelling_of_a_mix_reads_back(spelled):
    text, canonical = spelled
    parsed = parse_mix(text)
    assert str(parsed.mix) == canonical
    assert parsed.text == canonical
    assert parsed.notes == ()


FRAGMENTS = (
    "50%", "100%", "0%", "33.3%", "1.2.3%", "12,5", "７％", "٣٪", "%", "half", "third", "rest", "остальное", "一半",
    "red", "dark", "green", "dark-green", "чёрный", "и", "珍珠白", "色", "的", "gold", "rad", "RAL 3016", "RAL 1",
    "RAL", "#aa3f27", "#000", "#", "#12345", "granules", "of", ",", ";", "+", "/", "\n", "and", "-", ":", "(", ")",
    "[", ".", '"', " ", "\t", "wet", "<s0>", "${x}", "{0}", "%s", "½",
    "\u0301", "\u200b", "\ud800", "\x00", "🔥", "İ", "ß",
)  # fmt: skip


@pytest.mark.slow
@given(
    st.one_of(
        st.text(st.characters(), max_size=200),
        st.lists(st.sampled_from(FRAGMENTS), max_size=30).map("".join),
        st.lists(st.sampled_from(FRAGMENTS), max_size=30).map(" ".join),
    )
)
@settings(max_examples=1000, deadline=None)
def test_any_text_is_read_or_refused_in_one_line(text):
    try:
        parsed = parse_mix(text)
    except PromptError as error:
        message = str(error)
        assert message
        assert len(message.splitlines()) == 1
        assert len(message) < 1000
        return
    if parsed.mix is None:
        assert parsed.text == text
        return
    assert sum(share.percent for share in parsed.mix.shares) == 100
    assert all(0 < share.percent <= 100 for share in parsed.mix.shares)
    assert len({share.color for share in parsed.mix.shares}) == len(parsed.mix.shares)
    assert str(parsed.mix) in parsed.text
    if all(share.color in FORMS for share in parsed.mix.shares):
        assert parse_mix(str(parsed.mix)).mix == parsed.mix


# --- time --------------------------------------------------------------------------------------------------


def seconds_for(text: str, *, times: int) -> float:
    def read() -> None:
        with suppress(MixError):
            read_shares(text)

    return min(processor_seconds(read) for _ in range(times))


@pytest.mark.slow
@pytest.mark.parametrize(
    "piece",
    ["1% ", "50% ", "1% red ", "1% red, ", "red ", "red, ", ",", "1", "1.", "1 ", " ", "half ", "half red, rest ",
     "(", "(50% red", "a-", "-a", "颗", "红", "珍珠", "RAL ", "#", "1% of ", "%", "\n", "a'", "\u0301", "🔥"],
)  # fmt: skip
def test_the_time_grows_with_the_length_and_not_with_its_square(piece):
    """Read without the limit on length, so that the figures stand above the clock's noise."""
    short, long = ((piece * length)[:length] for length in (3_000, 12_000))
    # Four times the length: linear is 4, quadratic 16. Another program may slow down a try, not all of them.
    tries = (seconds_for(long, times=2) / max(seconds_for(short, times=2), 1e-4) for _ in range(5))
    assert any(ratio < 8 for ratio in tries)


@pytest.mark.parametrize(
    "piece", ["1% ", ",", "50% rad, ", "1% abcdefghijklmnopqrs, ", "RAL 3000 1%, ", "颗"]
)
@pytest.mark.slow
def test_two_thousand_adversarial_characters_take_no_time(piece):
    text = (piece * MAX_PROMPT_CHARACTERS)[:MAX_PROMPT_CHARACTERS]
    seconds_for(text, times=1)  # the index of misspellings and numpy are loaded once
    assert_quick(lambda: seconds_for(text, times=1), 0.1)


@pytest.mark.parametrize(
    "text", [EXAMPLE, "50 % красного, 30 % чёрного и 20 % жемчужного", "50%红色30%黑色20%珍珠白"]
)
def test_a_normal_prompt_takes_less_than_a_millisecond(text):
    parse_mix(text)
    assert_quick(lambda: min(processor_seconds(lambda: parse_mix(text)) for _ in range(5)), 1e-3)


def test_tokens_say_where_they_stand():
    text = "Half dark-green, 12,5 % РАЛ 3016!"
    assert [(token.kind, text[token.start : token.end], token.value) for token in tokenize(text)] == [
        ("fraction", "Half", "50"),
        ("color", "dark-green", "dark green"),
        ("separator", ",", ","),
        ("percent", "12,5 %", "12,5"),
        ("ral", "РАЛ 3016", "3016"),
        ("word", "!", ""),
    ]
