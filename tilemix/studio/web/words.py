"""The page's words in five languages: `pages/words/CODE.json`, one flat object each, with the same keys.

Babel writes numbers, percentages, sizes and dates in each language's way.
"""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import msgspec
from babel import Locale
from babel.dates import format_date, format_time
from babel.numbers import format_decimal, format_percent
from babel.units import format_unit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

LANGUAGES = ("en", "de", "ru", "uk", "zh")
FOLDER = Path(__file__).parent / "pages" / "words"
SCRIPT_PREFIX = "script_"  # of the words for the script
MINUS = "\N{MINUS SIGN}"  # Unicode's locale data has the hyphen; this is as wide as the plus sign


class Words:
    """The words of one language; `words(key, name=value)` returns a text with `$name` filled in."""

    def __init__(self, code: str, texts: Mapping[str, str]) -> None:
        self.code = code
        self._locale = Locale.parse(code)
        self.keys = frozenset(texts)
        self._texts = {key: Template(text) for key, text in texts.items()}

    def __call__(self, key: str, **values: object) -> str:
        """Return a text; numbers among the values are written in the language's way."""
        return self._texts[key].substitute(
            {
                name: self.number(value) if isinstance(value, int | float) else value
                for name, value in values.items()
            }
        )

    def number(self, value: float, digits: int = 1, *, is_padded: bool = False) -> str:
        """Return a number with at most `digits` decimals, or exactly as many if padded: "12.5", "12,5", "12".

        Digits are not grouped, since fields and seeds show numbers, too.
        """
        shown = round(value, digits) + 0.0  # not "-0"
        text = format_decimal(shown, _pattern(digits, is_padded=is_padded), self._locale)
        return text.replace("-", MINUS)

    def percent(self, value: float, *, is_padded: bool = False) -> str:
        """Return a share, 0 to 100, as the language writes it: "12.5%", "12,5 %"."""
        return _write_percent(self._locale, round(value, 1) + 0.0, is_padded=is_padded)

    def size(self, count: int) -> str:
        """Return a number of bytes: "12.5 MB", "12,5 МБ", "7 kB"."""
        unit, each = ("digital-megabyte", 10**6) if count >= 10**6 else ("digital-kilobyte", 10**3)
        return format_unit(count / each, unit, "short", format=_pattern(), locale=self._locale)

    def moment(self, moment: datetime) -> str:
        """Return a date and time, in the moment's own time zone."""
        joined: str = self._locale.datetime_formats["medium"]  # "{1}, {0}"
        time = format_time(moment, "short", locale=self._locale)
        return joined.format(time, format_date(moment, "medium", self._locale))

    def for_script(self) -> dict[str, str]:
        """Return the script's words, without their prefix."""
        return {
            key.removeprefix(SCRIPT_PREFIX): text.template
            for key, text in self._texts.items()
            if key.startswith(SCRIPT_PREFIX)
        }


@lru_cache(4096)  # a page of the gallery shows some two hundred, mostly the same ones
def _write_percent(locale: Locale, value: float, *, is_padded: bool) -> str:
    pattern = locale.percent_formats[None].pattern.replace("#,##0", _pattern(is_padded=is_padded))
    return format_percent(value / 100, pattern, locale)


def _pattern(digits: int = 1, *, is_padded: bool = False) -> str:
    return f"0.{('0' if is_padded else '#') * digits}"


@cache
def load_words() -> dict[str, Words]:
    """Return the words of every language."""
    return {
        code: Words(code, msgspec.json.decode((FOLDER / f"{code}.json").read_bytes(), type=dict[str, str]))
        for code in LANGUAGES
    }
