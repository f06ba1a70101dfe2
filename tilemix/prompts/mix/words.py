"""The words of a color mix in every language, in every form people type.

The data files list base forms: красный, weiß, dark green. This module makes
the rest of them (красная, красного, weisser, weissen, dark-green, darkgreen)
and puts all words into one table, folded: case, ё/е, ß/ss, ä/ae, hyphens and
the widths of Chinese keyboards make no difference. A word means one thing in
a language; where two languages differ, the rest of the text says which.
"""

from __future__ import annotations

import unicodedata
from functools import cache, lru_cache
from typing import Literal, NamedTuple

from tilemix.colors.languages import Language, load_languages, load_trade_codes

FOLD = str.maketrans(
    {
        "ё": "е", "ä": "ae", "ö": "oe", "ü": "ue", "’": "'", "ʼ": "'",
        "-": " ", "_": " ", "\u2010": " ", "\u2011": " ",
    }
)  # fmt: skip
PLAIN = str.maketrans({"ł": "l", "Ł": "L"})  # a letter with a stroke is one letter to Unicode
TRADE = "trade"  # the language of the codes
GROUND = "ground"  # the value of a noun of the base
LIMIT = "limit"  # the source of "up to"
MINUS = "minus"
PART = "part"
NUMBER = "{number}"
HUNDREDS = "{hundreds}"

Kind = Literal[
    "color", "shade", "percent", "before", "fraction", "equal", "rest", "each", "and", "with", "of", "part", "weight",
    "limit", "minus", "measure", "to", "or", "noun", "filler", "tint", "look", "not", "text", "denominator", "bar",
    "half", "point",
]  # fmt: skip


class Meaning(NamedTuple):
    """What a word means in a mix."""

    kind: Kind
    value: str = (
        ""  # a trade name, a shade, a fraction, what is counted, grams; of other words, which kind they are
    )


@lru_cache(maxsize=4096)
def fold(text: str) -> str:
    """Return the form of `text` under which words are looked up."""
    return unicodedata.normalize("NFKC", text).casefold().translate(FOLD)


def expand_word(base: str, language: Language) -> list[str]:
    """Return the folded forms of a listed word: cases, genders, joined spelling, dropped diacritics."""
    lowered = unicodedata.normalize("NFC", base).lower()
    endings = next((listed for listed in language.endings if lowered.endswith(listed[0])), None)
    if endings is None:
        forms = _fold_all([lowered], language)
    else:  # stem and endings are folded by themselves: there are many forms of few parts
        stem = lowered.removesuffix(endings[0])
        folded, plain = _fold_endings(tuple(endings))
        begin, plain_begin = fold(stem), fold(_strip(stem)) if language.plain else ""
        forms = [fold(lowered), *[begin + ending for ending in folded]]
        if language.plain and (plain_begin != begin or plain != folded):
            forms += [plain_begin + ending for ending in plain]
    joined = [form.replace(" ", "") for form in forms if " " in form]
    return list(dict.fromkeys([*forms, *joined]))


@cache
def _fold_endings(endings: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Return endings as they are looked up, and without their diacritics."""
    return [fold(ending) for ending in endings], [fold(_strip(ending)) for ending in endings]


def _fold_all(forms: list[str], language: Language) -> list[str]:
    folded = [fold(form) for form in forms]
    if language.plain:
        folded += [fold(_strip(form)) for form in forms if not form.isascii()]
    return folded


def _strip(text: str) -> str:
    decomposed = unicodedata.normalize("NFD", text.translate(PLAIN))
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter))


@cache
def color_words() -> dict[str, tuple[str, str, str]]:
    """Return every folded color word -> (the color's trade name, the base form as listed, the language)."""
    words: dict[str, tuple[str, str, str]] = {}
    for code, language in load_languages().items():
        for name, bases in language.colors.items():
            for base in bases:
                for form in expand_word(base, language):
                    words.setdefault(form, (name, base, code))
    return words


@cache
def meanings() -> dict[str, dict[str, Meaning]]:
    """Return every folded word or phrase -> language -> what it means there."""
    table: dict[str, dict[str, Meaning]] = {}
    for code, language in load_languages().items():
        for form, meaning in _list_words(language):
            if (of_language := table.get(form)) is None:
                table[form] = {code: meaning}
            elif code not in of_language:
                of_language[code] = meaning
    for name, codes in load_trade_codes().items():
        for trade_code in codes:
            table.setdefault(fold(trade_code), {}).setdefault(TRADE, Meaning("color", name))
    return table


def _list_words(language: Language) -> list[tuple[str, Meaning]]:
    found = [(form, Meaning("text")) for form in _fold_all(language.text, language)]
    inflected: tuple[tuple[Kind, dict[str, list[str]]], ...] = (
        ("color", language.colors),
        ("shade", language.shades),
        ("tint", {"tint": language.tints}),
        ("look", {"look": language.looks}),
    )
    for kind, groups in inflected:
        for value, bases in groups.items():
            meaning = Meaning(kind, value)
            found += [(form, meaning) for base in bases for form in expand_word(base, language)]
    for name, bases in language.colors.items():
        for ending, joint in language.joints.items():
            stems = [base.removesuffix(ending) for base in bases if base.endswith(ending)]
            found += [(fold(stem + joint), Meaning("color", name)) for stem in stems]
    groups_of_words: tuple[tuple[Kind, dict[str, list[str]]], ...] = (
        ("percent", {"": language.percent}),
        ("before", {"": language.percent_before}),
        ("equal", {"": language.equal}),
        ("rest", {"": language.rest}),
        ("each", {"": language.each}),
        ("and", {"": language.and_}),
        ("with", {"": language.with_}),
        ("of", {"": language.of}),
        ("noun", {GROUND: language.grounds, "": language.nouns}),
        ("not", {"not": language.not_}),
        ("filler", {"": language.fillers}),
        ("to", {"": language.to}),
        ("or", {"": language.or_}),
        ("fraction", language.fractions),
    )
    for kind, groups in (*groups_of_words, *_list_units(language)):
        for value, words in groups.items():
            found += [(form, Meaning(kind, value)) for form in _fold_all(words, language)]
    return found


def _list_units(language: Language) -> tuple[tuple[Kind, dict[str, list[str]]], ...]:
    """Return the words that stand beside a number, or between two of them."""
    return (
        ("percent", {"": language.percent}),
        ("part", language.part),
        ("weight", language.weight),
        ("measure", {"": language.measures}),
        ("fraction", {value: words for value, words in language.fractions.items() if value.startswith("1/")}),
        ("denominator", language.denominators),
        ("bar", {"": language.fraction_bars}),
        ("half", {"": [words for words in language.and_half if NUMBER not in words]}),
        ("point", {"": language.decimal_marks}),
        ("minus", {"": language.minus}),
        ("limit", {"": language.limits}),
    )


@cache
def units() -> dict[str, list[Meaning]]:
    """Return every folded word or phrase that may stand behind a number -> what it means there.

    Some mean something else elsewhere: "the third red tile", "红点", the dots of which.
    """
    table: dict[str, list[Meaning]] = {}
    for language in load_languages().values():
        for kind, groups in _list_units(language):
            for value, words in groups.items():
                for form in _fold_all(words, language):
                    if (meaning := Meaning(kind, value)) not in table.setdefault(form, []):
                        table[form].append(meaning)
    return table


@cache
def percent_of_words() -> frozenset[str]:
    """Return the folded words that may stand between a number and the percent sign: "wt"."""
    return frozenset(form for one in load_languages().values() for form in _fold_all(one.percent_of, one))


@cache
def vocabulary() -> dict[str, Meaning]:
    """Return every folded word or phrase -> what it means where nothing else in the text says which language it is."""
    text = Meaning("text")
    found = {word: next(iter(of_language.values())) for word, of_language in meanings().items()}
    for word in [word for word, meaning in found.items() if meaning.kind == "text"]:
        found[word] = next((other for other in meanings()[word].values() if other.kind != "text"), text)
    return found


@cache
def ambiguous_words() -> frozenset[str]:
    """Return the folded words that mean different things in different languages."""
    return frozenset(word for word, of_language in meanings().items() if len(set(of_language.values())) > 1)


@cache
def number_words() -> dict[str, str]:
    """Return the folded words for numbers -> digits; longer numbers are put together from several of them."""
    table: dict[str, str] = {}
    for language in load_languages().values():
        listed = dict(language.numbers)
        for tens in range(20, 100, 10):
            for unit in range(1, 10):
                joined = [
                    pattern.format(tens=first, unit=second)
                    for pattern in language.compounds
                    if HUNDREDS not in pattern
                    for first in language.numbers[str(tens)]
                    for second in language.numbers[str(unit)]
                ]
                listed[str(tens + unit)] = [*listed.get(str(tens + unit), ()), *joined]
        for number, words in listed.items():
            table.update((form, number) for form in _fold_all(words, language))
        for pattern in language.and_half:
            for number, words in listed.items() if NUMBER in pattern else ():
                forms = _fold_all([pattern.replace(NUMBER, word) for word in words], language)
                table.update((form, f"{number}.5") for form in forms)
    return table


@cache
def joined_hundreds() -> dict[str, int]:
    """Return the folded words for hundreds that are written together with what follows: "zweihundertfünf"."""
    return {
        form: int(number)
        for language in load_languages().values()
        if any(HUNDREDS in pattern for pattern in language.compounds)
        for number, words in language.numbers.items()
        if number.endswith("00") and len(number) == 3
        for form in _fold_all(words, language)
    }
