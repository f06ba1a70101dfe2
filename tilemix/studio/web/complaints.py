"""What is wrong with a text or a setting, in the reader's words.

The library's own messages are one line of English for programs and logs. Each kind that a person can bring about
on the page has a text in `pages/words/`; a message of another kind is shown as it is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tilemix.studio.web.palette import find_swatch

if TYPE_CHECKING:
    from tilemix.studio.web.words import Words

LIMITS = r"\w+ .+ is out of range; expected (?P<low>\S+) to (?P<high>\S+)"
AT = r" at character [0-9]+"
KINDS = {
    key: re.compile(pattern, re.DOTALL)
    for key, pattern in {
        "wrong_color": rf"unknown color (?P<typed>.+){AT}; did you mean (?P<words>.+)\?",
        "wrong_total": r"shares total (?P<total>[0-9.]+)%, expected 100%: read (?P<mix>.+)",
        "wrong_no_color": rf"share (?P<typed>.+){AT} has no color",
        "wrong_no_percent": rf"color (?P<typed>.+){AT} has no percent",
        "wrong_percent": rf"percent (?P<typed>.+){AT}: expected a number such as 30 or 12\.5",
        "wrong_range": rf"(?P<typed>.+){AT} is a range, expected one percent",
        "wrong_ral": rf"(?P<typed>.+){AT}: RAL Classic has no such number",
        "wrong_hex": rf"color value (?P<typed>.+){AT}: expected '#' and three or six hexadecimal digits",
        "wrong_pair": rf"share{AT} names two colors, (?P<colors>.+)",
        "wrong_rests": r"two shares say 'rest', expected one",
        "wrong_table": r"the table of colors is empty; expected shares that total 100%",
        "wrong_share": r"share (?P<typed>.+) of (?P<color>.+) is no number; expected 0 to 100",
        "wrong_empty": r"prompt: empty, expected 1 to [0-9]+ characters",
        "wrong_long": r"\w+: (?P<count>[0-9]+) characters, expected (?P<most>[0-9]+) at most",
        "wrong_character": r"\w+: .+, at character (?P<place>[0-9]+); expected plain text",
        "wrong_multiple": rf"{LIMITS}, a multiple of (?P<unit>[0-9]+)",
        "wrong_limits": LIMITS,
        "wrong_integer": r"\w+ (?P<typed>.+) is no integer.*",
        "wrong_number": r"\w+ (?P<typed>.+) is no number.*",
        "note_as_typed": rf"unknown color (?P<typed>.+){AT} is sent as typed",
        "note_beside": rf"(?P<typed>.+){AT} is no granule color; .+; the share says '(?P<color>.+)'",
        "note_nearest": rf"(?P<typed>.+){AT} is no granule color; read as '(?P<color>.+)', the nearest .+",
    }.items()
}
QUOTED = re.compile(r"'([^']+)'")
SHARE = re.compile(r"([0-9.]+)% ([^,]+)")


def explain(message: str, words: Words) -> str:
    """Return a message of the library in the reader's language; one that is of no known kind as it is."""
    for key, pattern in KINDS.items():
        if found := pattern.fullmatch(message):
            return words(
                key, **{name: _translate(name, text, words) for name, text in found.groupdict().items()}
            )
    return message


def _translate(name: str, text: str, words: Words) -> str:
    if name == "typed":
        return text[1:-1] if text[:1] == text[-1:] and text[:1] in {"'", '"'} else text
    if name == "words":
        return " / ".join(QUOTED.findall(text))
    if name == "colors":
        return ", ".join(find_swatch(color, words.code).word for color in QUOTED.findall(text))
    if name == "color":
        return find_swatch(text, words.code).word
    if name == "total":
        return words.percent(float(text))
    if name == "mix":
        return SHARE.sub(
            lambda share: f"{words.percent(float(share[1]))} {find_swatch(share[2], words.code).word}",
            text.partition(" and ")[0],
        )
    return words.number(float(text), 2)
