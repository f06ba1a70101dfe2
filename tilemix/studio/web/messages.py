"""Messages of the library in the reader's language: `pages/messages/LANGUAGE.json`, a text for each code.

English uses the library's own line, except for the codes in `en.json`, which the page words differently. Values are
localized by their name or type.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from tilemix.errors import LIST_SEPARATOR, UNDERSTOOD, Composer, Message
from tilemix.studio.web.palette import find_swatch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tilemix.errors import Value
    from tilemix.studio.web.words import Words

FOLDER = Path(__file__).parent / "pages" / "messages"


@cache
def load_texts(language: str) -> Mapping[str, str]:
    """Return the texts of a language by code, with the values' names in braces."""
    return msgspec.json.decode((FOLDER / f"{language}.json").read_bytes(), type=dict[str, str])


def explain(message: Message, words: Words) -> str:
    """Return a message in the reader's language."""
    return explain_data(message.describe(), words)


def explain_data(error: Mapping[str, Any], words: Words) -> str:
    """Return what `Message.describe` gave in the reader's language; its English line where there is no text."""
    text = load_texts(words.code).get(error["code"])
    if text is None:
        return str(error["message"])
    values = {name: _localize(name, value, words) for name, value in error["values"].items()}
    if (shares := error["values"].get("shares")) is not None:
        values["mix"] = _write_mix(msgspec.json.decode(shares, type=list[tuple[str, float]]), words)
    if (inner := error["values"].get("reason_data")) is not None:
        said = {"message": error["values"]["reason"], **msgspec.json.decode(inner, type=dict[str, Any])}
        values["reason"] = explain_data(said, words)
    line = Composer().vformat(text, (), {"field": error["field"], **values})
    if (understood := error["values"].get(UNDERSTOOD)) is not None:
        values = {"mix": understood, "shares": error["values"]["understood_shares"]}
        line = f"{line} {explain(Message('mix-understood', values), words)}"
    return line


def _localize(name: str, value: Value, words: Words) -> str:
    if name in BY_NAME:
        return BY_NAME[name](str(value), words)
    return value if isinstance(value, str) else words.number(value, 2)


def _write_color(color: str, words: Words) -> str:
    return find_swatch(color, words.code).word


def _write_colors(colors: str, words: Words) -> str:
    return LIST_SEPARATOR.join(_write_color(color, words) for color in colors.split(LIST_SEPARATOR))


def _write_percent(percent: str, words: Words) -> str:
    return words.percent(float(percent))


def _write_mix(shares: list[tuple[str, float]], words: Words) -> str:
    """Write "50% red, 20% black"."""
    return LIST_SEPARATOR.join(
        f"{words.percent(percent)} {_write_color(color, words)}" for color, percent in shares
    )


def _write_choice(names: str, _: Words) -> str:
    return names.replace(LIST_SEPARATOR, " / ")


BY_NAME: Mapping[str, Callable[[str, Words], str]] = {
    "color": _write_color,
    "colors": _write_colors,
    "nearest": _write_color,
    "total": _write_percent,
    "words": _write_choice,
}
