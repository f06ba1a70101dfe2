"""The words of a color mix in English, German, Russian, Ukrainian and Chinese, in every form people type.

The data files list base forms: красный, weiß, dark green. This module makes
the rest of them (красная, красного, weisser, weissen, dark-green, darkgreen)
and puts all words into one table, folded: case, ё/е, ß/ss, ä/ae, hyphens and
the widths of Chinese keyboards make no difference. Each word has one meaning
only; a test checks it.
"""

from __future__ import annotations

import unicodedata
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from tilemix.colors.chart import load_colors

WORDS_FILE = Path(__file__).parents[2] / "data" / "mix_words.json"

# Endings of regular adjectives; the base form is listed with the first ending.
RUSSIAN_HARD = ("ый", "ая", "ое", "ые", "ого", "ой", "ому", "ую", "ым", "ом", "ых", "ыми", "ою")
RUSSIAN_STRESSED = ("ой", *RUSSIAN_HARD[1:5], *RUSSIAN_HARD[6:])
RUSSIAN_SOFT = ("ий", "яя", "ее", "ие", "его", "ей", "ему", "юю", "им", "ем", "их", "ими", "ею")
UKRAINIAN_HARD = ("ий", "а", "е", "і", "ого", "ої", "ому", "ій", "у", "им", "ою", "их", "ими", "ім")
UKRAINIAN_SOFT = ("ій", "я", "є", "і", "ього", "ьої", "ьому", "ю", "ім", "ьою", "іх", "іми")
SLAVIC = {"ru": (RUSSIAN_HARD, RUSSIAN_STRESSED, RUSSIAN_SOFT), "uk": (UKRAINIAN_HARD, UKRAINIAN_SOFT)}
GERMAN = ("", "e", "er", "es", "en", "em")

FOLD = str.maketrans(
    {"ё": "е", "ä": "ae", "ö": "oe", "ü": "ue", "’": "'", "ʼ": "'", "-": " ", "\u2010": " ", "\u2011": " "}
)
UMLAUTS = str.maketrans({"ä": "a", "ö": "o", "ü": "u"})

Kind = Literal["color", "percent", "fraction", "rest", "and", "of", "granules"]


class Meaning(NamedTuple):
    """What a word means in a mix."""

    kind: Kind
    value: str = ""  # a color's trade name, or the percent of a fraction


class MixWords(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The words around the colors, as `data/mix_words.json` lists them, all languages together."""

    percent: list[str]
    fractions: dict[str, list[str]]  # percent -> words
    rest: list[str]
    and_: list[str] = msgspec.field(name="and")
    of: list[str]  # may stand between a share and its color
    granules: list[str]  # may stand before or after a color and add nothing


def fold(text: str) -> str:
    """Return the form of `text` under which words are looked up."""
    return unicodedata.normalize("NFKC", text).casefold().translate(FOLD)


def expand_color_word(base: str, language: str) -> list[str]:
    """Return the folded forms of a listed color word: cases, genders, joined spelling, dropped umlauts."""
    lowered = unicodedata.normalize("NFC", base).lower()
    forms = [lowered]
    if language in SLAVIC:
        for endings in SLAVIC[language]:
            if lowered.endswith(endings[0]):
                stem = lowered.removesuffix(endings[0])
                forms = [stem + ending for ending in endings]
                break
    elif language == "de":
        # In speech even invariable adjectives are inflected: ein lilanes, ein rosanes Muster.
        stem = lowered + "n" if lowered.endswith("a") else lowered.removesuffix("e")
        forms += [stem + ending for ending in GERMAN[1:]]
    elif language == "zh" and not lowered.endswith("色"):
        forms.append(lowered + "色")
    if language == "de":
        forms += [form.translate(UMLAUTS) for form in forms]
    folded = [fold(form) for form in forms]
    joined = [form.replace(" ", "") for form in folded if " " in form]
    return list(dict.fromkeys([*folded, *joined]))


@cache
def color_words() -> dict[str, tuple[str, str]]:
    """Return every folded color word -> (the color's trade name, the base form as listed)."""
    words: dict[str, tuple[str, str]] = {}
    for color in load_colors():
        for language, bases in color.synonyms.items():
            for base in bases:
                for form in expand_color_word(base, language):
                    words.setdefault(form, (color.name, base))
    return words


@cache
def vocabulary() -> dict[str, Meaning]:
    """Return every folded word or phrase that means something in a mix."""
    listed = msgspec.json.decode(WORDS_FILE.read_bytes(), type=MixWords)
    table = {form: Meaning("color", name) for form, (name, _) in color_words().items()}
    plain: list[tuple[Kind, list[str]]] = [
        ("percent", listed.percent),
        ("rest", listed.rest),
        ("and", listed.and_),
        ("of", listed.of),
        ("granules", listed.granules),
    ]
    for kind, words in plain:
        table.update((fold(word), Meaning(kind)) for word in words)
    for percent, words in listed.fractions.items():
        table.update((fold(word), Meaning("fraction", percent)) for word in words)
    return table
