"""Brackets that are punctuation: digits and percent signs never become syntax."""

from __future__ import annotations

import re

INNERMOST = re.compile(r"\(([^()\[\]\\{}|<>]*)\)|\[([^()\[\]\\{}|<>]*)\]")
NUMBER = re.compile(r"\s*(?P<name>(?:RAL|РАЛ)[\s\-]*\d+|#[0-9a-f]{3,6})?[\W\d_]*", re.IGNORECASE)
# "(50%:1.3)", "(50%:2)" and "(RAL 3016:2)" are emphasis; "(3:1)" is a ratio.
WEIGHTED = re.compile(r"(?::\s*[+-]?\d*\.\d+|(?P<unit>%)?\s*:\s*[+-]?\d+)\s*$")
LONGEST_WEIGHT = 24  # characters


def find_punctuation(text: str, start: int) -> int | None:
    """Return where the bracket that opens at `start` has closed, if it is punctuation.

    It is if it holds a number and no letter: "(50%)", "(3:1)", "(RAL 3016)", "[#aa3f27]".
    """
    match = INNERMOST.match(text, start)
    if match is None:
        return None
    inside = match[1] or match[2] or ""
    number = NUMBER.fullmatch(inside)
    if number is None or not (number["name"] or any(map(str.isdecimal, inside))):
        return None
    weight = WEIGHTED.search(inside[-LONGEST_WEIGHT:])
    if weight and (number["name"] or weight["unit"] or "." in weight[0]):
        return None
    return match.end()
