"""The color chart, the words for its colors, and RAL and hex values."""

import itertools
import re
from collections import defaultdict

import msgspec
import numpy as np
import pytest

from tilemix.colors.chart import basic_colors, get_color, load_colors
from tilemix.colors.cielab import delta_e_2000, srgb_to_lab
from tilemix.colors.hex import parse_hex
from tilemix.colors.languages import load_languages
from tilemix.colors.nearest import load_ral, match_hex, match_ral
from tilemix.errors import InputError
from tilemix.prompts.mix.numbers import MOST_WORDS
from tilemix.prompts.mix.pieces import HAN_LETTERS, LONGEST_LETTERS
from tilemix.prompts.mix.spelling import LONGEST, find_near_words
from tilemix.prompts.mix.words import (
    ambiguous_words,
    color_words,
    expand_word,
    fold,
    meanings,
    number_words,
    vocabulary,
)

BASIC = {
    "red", "black", "pearl", "white", "gray", "blue", "green", "yellow", "orange", "brown", "beige", "purple",
}  # fmt: skip
LANGUAGES = ["en", "de", "ru", "uk", "zh", "es", "fr", "it", "pl"]

# What people type for the everyday colors, case endings and all.
EVERYDAY = {
    "red": "red rot rote roter rotes roten rotem красный красная красное красные красного красной красному "
    "красным красных красными красную красном червоний червона червоне червоні червоного червоної червоному "
    "червоним червоною червоних червоними 红 红色 紅色",
    "black": "black schwarz schwarze schwarzer schwarzes schwarzen чёрный черный чёрная черная чёрное чёрные "
    "чёрного черного чёрной чёрным чорний чорна чорне чорні чорного чорної чорним чорною чорних 黑 黑色",
    "pearl": "pearl cream perle perlweiß perlweiss perlweißer жемчужный жемчужная жемчужного жемчужно-белый "
    "жемчужно-белого кремовый перлинний перлинна перлинного перлинно-білий 珍珠 珍珠白 珍珠白色 米白",
    "white": "white weiß weiss weiße weisse weißer weisser weißes weißen weissen weißem белый белая белое белые "
    "белого белой белому белым белых білий біла біле білі білого білої білим білою 白 白色",
    "gray": "gray grey grau graue grauer graues grauen серый серая серое серые серого серой серым серых сірий "
    "сіра сіре сірі сірого сірої сірим 灰 灰色",
    "blue": "blue blau blaue blauer blaues blauen синий синяя синее синие синего синей синим синих синюю синій "
    "синя синє сині синього синьої синім синіх 蓝 蓝色 藍色",
    "green": "green grün gruen grüne grüner gruenes grünen зелёный зеленый зелёная зелёное зелёные зелёного "
    "зеленой зелёным зелёных зелений зелена зелене зелені зеленого зеленої 绿 绿色 綠色",
    "yellow": "yellow gelb gelbe gelber gelbes gelben жёлтый желтый жёлтая жёлтое жёлтые жёлтого желтой жёлтым "
    "жовтий жовта жовте жовті жовтого жовтої 黄 黄色 黃色",
    "orange": "orange orangener orangenen orangefarben оранжевый оранжевая оранжевое оранжевые оранжевого "
    "оранжевой помаранчевий помаранчева помаранчеві помаранчевого оранжевий 橙 橙色 橘色",
    "brown": "brown braun braune brauner braunes braunen коричневый коричневая коричневое коричневые "
    "коричневого коричневой коричневий коричнева коричневі коричневого 棕 棕色 褐色 咖啡色",
    "beige": "beige beiger beiges beigen бежевый бежевая бежевое бежевые бежевого бежевой беж бежевий бежева "
    "бежеві бежевого 米色 米黄色",
    "purple": "purple lila пурпурный пурпурная пурпуровий пурпурова 紫 紫色",
    "violet": "violet violett violetter violettes фиолетовый фиолетовая фиолетовое фиолетовые "
    "фиолетового фиолетовой фіолетовий фіолетова фіолетові фіолетового 紫罗兰 紫罗兰色",
}  # fmt: skip


def lab_of(value: str):
    return srgb_to_lab(parse_hex(value))


def test_the_chart_has_at_least_thirty_colors_with_names_of_their_own():
    names = [color.name for color in load_colors()]
    assert len(names) >= 30
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("color", load_colors(), ids=lambda color: color.name)
def test_a_color_of_the_chart_is_complete(color):
    assert re.fullmatch(r"#[0-9A-F]{6}", color.srgb)
    assert re.fullmatch(r"#[0-9A-F]{6}", color.as_seen)
    assert color.ral is None or re.fullmatch(r"\d{4}", color.ral)
    assert color.sure in {"A", "B", "C", "D"}
    assert list(color.synonyms) == LANGUAGES
    assert all(color.synonyms.values())
    assert color.name in color.synonyms["en"]


def test_an_unknown_key_in_the_chart_is_an_error():
    with pytest.raises(msgspec.ValidationError, match="unknown field `hue`"):
        msgspec.convert(msgspec.to_builtins(load_colors()[0]) | {"hue": 3}, type(load_colors()[0]))


def test_no_two_colors_share_an_ral_number():
    numbers = [color.ral for color in load_colors() if color.ral is not None]
    assert len(set(numbers)) == len(numbers)


def test_the_basic_colors_are_the_twelve_everyday_ones():
    assert {color.name for color in basic_colors()} == BASIC
    assert len(basic_colors()) == 12


def test_the_basic_colors_as_seen_are_at_least_12_apart():
    """But for beige, which on a photograph is as light as pearl."""
    for first, second in itertools.combinations(basic_colors(), 2):
        least = 9 if {first.name, second.name} == {"beige", "pearl"} else 12
        assert delta_e_2000(lab_of(first.as_seen), lab_of(second.as_seen)) >= least, (first.name, second.name)


def test_no_two_colors_look_the_same():
    for first, second in itertools.combinations(load_colors(), 2):
        assert delta_e_2000(lab_of(first.as_seen), lab_of(second.as_seen)) > 3, (first.name, second.name)


def test_printed_granules_are_darker_than_the_card_on_the_whole():
    cards = np.array([lab_of(color.srgb)[0] for color in load_colors() if color.is_printed])
    seen = np.array([lab_of(color.swatch)[0] for color in load_colors() if color.is_printed])
    assert (cards - seen).mean() > 3


def test_red_is_the_brick_red_of_the_trade():
    red = get_color("red")
    assert (red.ral, red.srgb, red.as_seen, red.sure) == ("3016", "#AC4034", "#AA3F27", "A")


def test_get_color_knows_trade_names_only():
    assert get_color("dark green").ral == "6000"
    assert get_color("Red") is None
    assert get_color("grün") is None


def test_no_word_in_any_form_belongs_to_two_colors_of_a_language():
    """The charts sell two reds as красный, two grays as серый, pearl as белый: the everyday word is one color's."""
    forms = set()
    for language in LANGUAGES:
        owners = defaultdict(set)
        for color in load_colors():
            for base in color.synonyms[language]:
                for form in expand_word(base, load_languages()[language]):
                    owners[form].add(color.name)
        assert {form: names for form, names in owners.items() if len(names) > 1} == {}
        forms |= set(owners)
    assert len(forms) > 5000


def test_a_word_with_two_colors_is_one_of_two_languages():
    """The rest of the text says which; every further one is a decision, to be written down here."""
    colors = {
        word: {
            language: meaning.value
            for language, meaning in meanings()[word].items()
            if meaning.kind == "color"
        }
        for word in ambiguous_words()
    }
    assert {word: found for word, found in colors.items() if len(set(found.values())) > 1} == {
        "lila": {"de": "purple", "es": "lilac"}
    }


@pytest.mark.parametrize("code", LANGUAGES)
def test_no_word_of_a_language_is_listed_twice(code):
    language = load_languages()[code]
    groups = [
        *language.colors.values(), *language.shades.values(), language.percent, language.percent_before,
        *language.fractions.values(), language.equal, language.rest, language.each, language.and_, language.with_,
        language.of, *language.part.values(), language.nouns, language.fillers, language.tints, language.looks,
        language.grounds, language.not_, language.or_,
    ]  # fmt: skip
    behind_a_number = [  # "т" is a ton there, and short for "тёмный" elsewhere
        language.percent, *language.part.values(), *language.weight.values(), language.measures,
        *language.fractions.values(), *language.denominators.values(), language.fraction_bars, language.and_half,
        language.decimal_marks, language.limits,
    ]  # fmt: skip
    for listed in (groups, behind_a_number):
        words = [fold(word) for group in listed for word in group]
        assert [word for word in words if words.count(word) > 1] == []


@pytest.mark.parametrize("code", LANGUAGES)
def test_a_language_has_words_for_every_part_of_a_mix(code):
    language = load_languages()[code]
    assert {color.name for color in load_colors()} == {
        name for name, words in language.colors.items() if words
    }
    assert set(language.shades) == {"light", "dark", "bright", "medium"}
    assert "1/2" in language.fractions
    named = {value.removeprefix("1/") for value in (*language.fractions, *language.denominators)}
    assert {"3", "4"} <= named or language.fraction_bars
    for name in (
        "percent",
        "rest",
        "each",
        "equal",
        "part",
        "weight",
        "measures",
        "limits",
        "minus",
        "or_",
        "decimal_marks",
        "nouns",
        "fillers",
        "with_",
        "and_",
        "to",
        "tints",
        "looks",
        "grounds",
        "not_",
    ):
        assert getattr(language, name), name
    numbers = [int(number) for number in language.numbers if number.isdecimal()]
    assert [number for number in numbers if 0 < number < 10] == list(range(1, 10))
    assert {20, 30, 40, 50, 60, 70, 80, 90, 100, 1000} <= set(numbers)
    assert {language.decimal_sign, language.thousands_sign} <= {".", ",", " "}
    assert all(float(grams) > 0 for grams in language.weight)


@pytest.mark.parametrize("name", sorted(EVERYDAY))
def test_everyday_words_name_the_everyday_color(name):
    meanings = {word: vocabulary().get(fold(word)) for word in EVERYDAY[name].split()}
    assert {
        word for word, meaning in meanings.items() if meaning is None or meaning[:2] != ("color", name)
    } == set()


@pytest.mark.parametrize(
    ("spellings", "name"),
    [
        (["dark green", "dark-green", "darkgreen", "DARK GREEN", "Dark‑Green"], "dark green"),
        (["тёмно-зелёный", "темно зеленый", "темнозелёного", "ТЁМНО-ЗЕЛЁНЫЕ"], "dark green"),
        (["dunkelgrün", "dunkelgruen", "dunkelgrun", "Dunkel-Grün", "dunkelgrüne"], "dark green"),
        (["türkis", "tuerkis", "turkis", "türkises"], "turquoise"),
        (["светло-серый", "светло серая", "светлосерого"], "light gray"),
        (["象牙白", "象牙白色"], "ivory"),
        (["м'ятний", "м’ятний", "мʼятна"], "emerald"),
    ],
)
def test_case_hyphens_umlauts_and_yo_make_no_difference(spellings, name):
    assert [vocabulary()[fold(spelling)].value for spelling in spellings] == [name] * len(spellings)


def test_the_limits_of_the_matching_hold_for_the_vocabulary():
    assert max(len(word.split()) for word in vocabulary()) <= MOST_WORDS
    assert max(map(len, color_words())) <= LONGEST
    assert max(len(word.split()) for word in number_words()) <= MOST_WORDS
    assert max(map(len, vocabulary())) <= LONGEST_LETTERS
    han = [word for word in (*vocabulary(), *number_words()) if "\u4e00" <= word[0] <= "\u9fff"]
    assert max(map(len, han)) <= HAN_LETTERS


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        ("rad", ("red",)),
        ("blakc", ("black",)),
        ("Turqoise", ("turquoise",)),
        ("antrasite", ("anthracite",)),
        ("drak-green", ("dark green",)),
        ("краснй", ("красный",)),
        ("schwrz", ("schwarz",)),
        ("тмносерого", ("тёмно-серый",)),
        ("koralenrtoes", ("korallenrot",)),  # two slips in an inflected form
        ("hellbraun", ()),  # two slips from hellblau, and a color of its own
        ("gold", ()),
        ("rd", ()),
        ("x" * 2000, ()),
    ],
)
def test_near_words_are_one_slip_away_and_two_for_long_ones(typed, near):
    assert find_near_words(typed) == near


def test_at_most_three_near_words_are_named_and_one_for_each_color():
    assert find_near_words("rost") == ("rosa", "rot")
    assert all(len(find_near_words(word)) <= 3 for word in ("rose", "bot", "bla", "grau", "beide"))


def test_ral_classic_has_its_216_numbers():
    numbers = load_ral().screen
    assert len(numbers) == 216
    assert all(re.fullmatch(r"[1-9]0\d\d", number) for number in numbers)
    assert all(re.fullmatch(r"#[0-9A-F]{6}", value) for value in numbers.values())
    in_hundreds = [sum(number[0] == digit for number in numbers) for digit in "123456789"]
    assert in_hundreds == [30, 14, 25, 12, 25, 37, 38, 20, 15]


@pytest.mark.parametrize(
    ("number", "family"),
    [
        ("3000", "red"),
        ("5010", "blue"),
        ("6005", "green"),
        ("7035", "gray"),
        ("9016", "white"),
        ("8001", "brown"),
    ],
)
def test_the_screen_value_of_an_ral_number_has_the_hue_it_is_known_for(number, family):
    red, green, blue = parse_hex(load_ral().screen[number])
    seen = {
        "red": red > 2 * max(green, blue),
        "green": green > max(red, blue),
        "blue": blue > green > red,
        "gray": max(red, green, blue) - min(red, green, blue) < 8,
        "white": min(red, green, blue) > 230,
        "brown": red > green > blue,
    }
    assert seen[family]


def test_the_chart_and_the_ral_table_agree():
    for color in load_colors():
        if color.ral is not None:
            assert load_ral().screen[color.ral] == color.srgb, color.name


@pytest.mark.parametrize(
    "color", [color for color in load_colors() if color.ral], ids=lambda color: color.name
)
def test_the_ral_number_of_a_granule_color_is_that_color(color):
    assert match_ral(color.ral) == (color.name, 0)


@pytest.mark.parametrize(
    ("number", "name", "delta_e"),
    [
        ("3000", "bright red", 4.7),
        ("7035", "light gray", 2.6),
        ("9016", "white", 2.3),
        ("1003", "yellow", 4.7),
    ],
)
def test_another_ral_number_is_the_nearest_card(number, name, delta_e):
    match = match_ral(number)
    assert match.name == name
    assert match.delta_e == pytest.approx(delta_e, abs=0.05)


@pytest.mark.parametrize(
    ("number", "name"),
    [("1018", "yellow"), ("2008", "orange"), ("3027", "bright red"), ("5005", "blue"), ("9017", "black")],
)
def test_the_second_ral_number_of_a_granule_color_is_that_color(number, name):
    """By its card alone RAL 9017 is anthracite and RAL 3027 red."""
    assert match_ral(number) == (name, 0)
    assert get_color(name).ral not in {None, number}


@pytest.mark.parametrize("number", ["9999", "3006", "301", "30166", "", "RAL", "0000"])
def test_a_number_that_ral_classic_has_not_is_none(number):
    assert match_ral(number) is None


@pytest.mark.parametrize("color", load_colors(), ids=lambda color: color.name)
def test_the_hex_values_of_a_color_are_that_color(color):
    assert match_hex(color.as_seen.lower()) == (color.name, 0)
    assert match_hex(color.srgb) == (color.name, 0)


@pytest.mark.parametrize(
    ("value", "name"),
    [("#000", "black"), ("#ffffff", "white"), ("#ab4028", "red"), ("#808080", "gray"), ("#1b1b1b", "black")],
)
def test_another_hex_value_is_the_color_that_looks_most_like_it(value, name):
    match = match_hex(value)
    assert match.name == name
    distances = {
        color.name: float(delta_e_2000(lab_of(value), lab_of(color.as_seen))) for color in load_colors()
    }
    assert min(distances, key=distances.get) == name
    assert match.delta_e == pytest.approx(distances[name])


def test_a_wrong_hex_value_is_an_error():
    with pytest.raises(
        InputError, match="color value '#12345': expected '#' and three or six hexadecimal digits"
    ):
        match_hex("#12345")
