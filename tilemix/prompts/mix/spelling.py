"""The color words nearest to a misspelled one.

Two words are near when one slip of the keys (a letter wrong, missing, extra,
or two swapped) leads from one to the other; two slips when the base form of
the right word has ten letters or more. More would suggest "hellblau" to
somebody who wants "hellbraun", which is a color too. Words of two letters
have no near ones.

Slips are counted by the optimal string alignment distance.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from functools import cache, lru_cache

from tilemix.colors.languages import FIRST
from tilemix.prompts.mix.words import color_words, fold

SHORTEST = 3  # letters
LONGEST = 22  # letters; no color word has more than 21
TWO_SLIPS_FROM = 10  # letters of the base form
MOST_SLIPS = 2
SUGGESTIONS = 3
# Letters of two alphabets that look alike.
LATIN, CYRILLIC = "aceopxykmhtbi", "асеорхукмнтві"
TO_LATIN, TO_CYRILLIC = str.maketrans(CYRILLIC, LATIN), str.maketrans(LATIN, CYRILLIC)


def find_foreign_letter(typed: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the first letter of another alphabet in a word, and the color words that it may stand for.

    None: its letters are of one alphabet, or no color word is near.
    """
    latin = [letter for letter in typed if "a" <= letter.lower() <= "z"]
    cyrillic = [letter for letter in typed if "\u0400" <= letter <= "\u04ff"]
    if not latin or not cyrillic:
        return None
    ways = [(cyrillic[0], TO_LATIN), (latin[0], TO_CYRILLIC)]
    for letter, table in ways if len(latin) >= len(cyrillic) else reversed(ways):
        plain = fold(typed).translate(table)
        if near := (color_words()[plain][1],) if plain in color_words() else find_near_words(plain):
            return letter, near
    return None


@lru_cache(maxsize=1024)
def find_near_words(typed: str) -> tuple[str, ...]:
    """Return the listed color words near `typed`, nearest first, one for each color, three at most."""
    from rapidfuzz.distance import OSA  # most prompts have no unknown word
    from rapidfuzz.process import extract_iter

    word = fold(typed)
    if not SHORTEST <= len(word) <= LONGEST:
        return ()
    listed = _words_by_length()
    # Each slip changes the length by one letter at most.
    first = bisect_left(listed, len(word) - MOST_SLIPS, key=len)
    end = bisect_right(listed, len(word) + MOST_SLIPS, key=len)
    found = extract_iter(word, listed[first:end], scorer=OSA.distance, score_cutoff=MOST_SLIPS)
    near: dict[str, str] = {}
    others: dict[str, str] = {}  # of languages that fewer people write in
    for slips, candidate in sorted((slips, candidate) for candidate, slips, _ in found):
        name, base, language = color_words()[candidate]
        # The base's length counts: "hellblauen" must not be nearer to "hellbraun" than "hellblau" is.
        if slips <= (MOST_SLIPS if len(fold(base)) >= TWO_SLIPS_FROM else 1):
            (near if language in FIRST else others).setdefault(name, base)
    return tuple((near or others).values())[:SUGGESTIONS]


@cache
def _words_by_length() -> list[str]:
    return sorted((word for word in color_words() if len(word) >= SHORTEST), key=len)
