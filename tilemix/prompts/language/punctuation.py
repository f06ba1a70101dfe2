"""Brackets that are punctuation: digits and percent signs never become syntax, nor does what explains a share."""

from __future__ import annotations

import re
from functools import lru_cache

from tilemix.prompts.mix.clauses import AMOUNTS, COLORS, NUMBERS_TOO, SOFT
from tilemix.prompts.mix.tokens import Kind, tokenize

INNERMOST = re.compile(r"\(([^()\[\]\\{}|<>]*)\)|\[([^()\[\]\\{}|<>]*)\]")
NUMBER = re.compile(r"\s*(?P<name>(?:RAL|РАЛ)[\s\-]*\d+|#[0-9a-f]{3,6})?[\W\d_]*", re.IGNORECASE)
# "(50%:1.3)", "(50%:2)" and "(RAL 3016:2)" are emphasis; "(3:1)" is a ratio.
WEIGHTED = re.compile(r"(?::\s*[+-]?\d*\.\d+|(?P<unit>%)?\s*:\s*[+-]?\d+)\s*$")
LONGEST_WEIGHT = 24  # characters
ANY_WEIGHT = re.compile(r":\s*[+-]?[\d.]+(?:e[+-]?\d+)?\s*$", re.IGNORECASE)
LONGEST_AMOUNT = 60  # characters in a bracket that explains a share
LONGEST_COLOR = 24  # characters before it that may be a color and its granules
ALONE: frozenset[Kind] = NUMBERS_TOO | {"ratio"}
MIXED: frozenset[Kind] = COLORS | AMOUNTS | SOFT | {"number", "shade", "each", "equal", "separator", "with"}


def find_punctuation(text: str, start: int) -> int | None:
    """Return where the bracket that opens at `start` has closed, if it is punctuation.

    It is if it holds a number and no letter: "(50%)", "(3:1)", "(RAL 3016)", "[#aa3f27]"; if it holds an amount alone:
    "(ca. 60 percent)", "(60 and 40)"; and if it explains a color before it: "black (20% red flecks)".
    """
    match = INNERMOST.match(text, start)
    if match is None:
        return None
    inside = match[1] or match[2] or ""
    number = NUMBER.fullmatch(inside)
    if number is None or not (number["name"] or any(map(str.isdecimal, inside))):
        before = text[max(start - LONGEST_COLOR, 0) : start]
        is_share = len(inside) <= LONGEST_AMOUNT and _is_share(before, text[start], inside)
        return match.end() if is_share else None
    weight = WEIGHTED.search(inside[-LONGEST_WEIGHT:])
    if weight and (number["name"] or weight["unit"] or "." in weight[0]):
        return None
    return match.end()


@lru_cache(maxsize=512)  # several stages ask for each bracket
def _is_share(before: str, bracket: str, inside: str) -> bool:
    """Return whether a bracket holds an amount alone, or what explains the color that stands before it."""
    kinds = [token.kind for token in tokenize(inside)]
    solid = [kind for kind in kinds if kind not in SOFT | {"each", "equal"}]
    weight = ANY_WEIGHT.search(inside)
    if solid == ["ratio"]:
        return weight is None or "." not in weight[0]  # "(ratio 3:1)", but "(a 3:1.5)"
    if not solid or weight is not None:
        return False
    if set(solid) <= ALONE | {"separator"} and solid[0] in ALONE:
        return True
    if bracket != "(" or not set(kinds) <= MIXED or COLORS.isdisjoint(kinds):
        return False
    latest = (token.kind for token in reversed(tokenize(before)))
    explained = next((kind for kind in latest if kind not in {"noun", "filler"}), "")
    is_list = sum(kind in COLORS for kind in kinds) > 1
    return explained in COLORS | {"shade"} or (is_list and explained == "ratio")  # "3:1 (red/black)"
