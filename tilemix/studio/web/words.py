"""The page's words in five languages: `pages/words/CODE.json`, one flat object each, with the same keys."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

LANGUAGES = ("en", "de", "ru", "uk", "zh")
FOLDER = Path(__file__).parent / "pages" / "words"
QUALITY = re.compile(r"q=(0(\.[0-9]{0,3})?|1(\.0{0,3})?)")  # RFC 9110, section 12.4.2
SCRIPT_PREFIX = "script_"  # words that the script needs


class Words:
    """The words of one language; `words(key, name=value)` is a text with its `$name` filled in."""

    def __init__(self, code: str, texts: Mapping[str, str]) -> None:
        self.code = code
        self.keys = frozenset(texts)
        self._texts = {key: Template(text) for key, text in texts.items()}

    def __call__(self, key: str, **values: object) -> str:
        """Return a text. A number among the values is written as the language does."""
        return self._texts[key].substitute(
            {
                name: self.number(value) if isinstance(value, int | float) else value
                for name, value in values.items()
            }
        )

    def number(self, value: float, digits: int = 1, *, is_padded: bool = False) -> str:
        """Return a number with at most so many decimals: "12.5", "12,5", "12"; with all of them if padded."""
        text = f"{value:.{digits}f}"
        if "." in text and not is_padded:
            text = text.rstrip("0").rstrip(".")
        text = text.removeprefix("-") if float(text) == 0 else text
        return text.replace(".", self._texts["decimal_point"].template).replace("-", "−")

    def percent(self, value: float, *, is_padded: bool = False) -> str:
        """Return a share as the language writes it: "12.5%", "12,5 %"."""
        return self("percent", value=self.number(value, is_padded=is_padded))

    def for_script(self) -> dict[str, str]:
        """Return the script's words, without their prefix."""
        return {
            key.removeprefix(SCRIPT_PREFIX): text.template
            for key, text in self._texts.items()
            if key.startswith(SCRIPT_PREFIX)
        }


@cache
def load_words() -> dict[str, Words]:
    """Return the words of every language."""
    return {
        code: Words(code, msgspec.json.decode((FOLDER / f"{code}.json").read_bytes(), type=dict[str, str]))
        for code in LANGUAGES
    }


def choose_language(chosen: str | None, accept_language: str) -> str:
    """Return the language that the reader chose, or else the one that the browser likes best; English at last.

    Source: RFC 9110, section 12.5.4; only the first part of a tag counts.
    """
    if chosen in LANGUAGES:
        return chosen
    best, best_quality = LANGUAGES[0], 0.0
    for entry in accept_language[:1000].lower().split(","):
        tag, *parameters = (part.strip() for part in entry.split(";"))
        code = tag.partition("-")[0]
        match = QUALITY.fullmatch(parameters[0]) if parameters else None
        quality = (float(match[1]) if match else 0.0) if parameters else 1.0
        if code in LANGUAGES and quality > best_quality:
            best, best_quality = code, quality
    return best
