"""The color words nearest to a misspelt one.

Two words are near when one slip of the keys (a letter wrong, missing, extra,
or two swapped) leads from one to the other; two slips when the right word has
ten letters or more. More would suggest "hellblau" to somebody who wants
"hellbraun", which is a color too. Words of two letters have no near ones.

Candidates come from an index of every word with letters left out, so a look-up
costs the same however many words there are.

Source: the symmetric delete method, https://github.com/wolfgarbe/SymSpell
"""

from __future__ import annotations

from functools import cache, lru_cache

from tilemix.prompts.mix.words import color_words, fold

SHORTEST = 3  # letters
LONGEST = 20  # letters; no color word has more than 18
TWO_SLIPS_FROM = 10  # letters
SUGGESTIONS = 3


@lru_cache(maxsize=1024)
def find_near_words(typed: str) -> tuple[str, ...]:
    """Return the listed color words near `typed`, nearest first, one for each color, three at most."""
    word = fold(typed)
    if not SHORTEST <= len(word) <= LONGEST:
        return ()
    index = _index()
    most = 2 if len(word) >= TWO_SLIPS_FROM - 2 else 1
    candidates = {match for left in _leave_out(word, most) for match in index.get(left, ())}
    ranked = []
    for candidate in candidates:
        slips = _count_slips(word, candidate)
        if slips <= _allowed(candidate):
            ranked.append((slips, candidate))
    near: dict[str, str] = {}
    for _, candidate in sorted(ranked):
        name, base = color_words()[candidate]
        near.setdefault(name, base)
    return tuple(near.values())[:SUGGESTIONS]


def _allowed(word: str) -> int:
    return 2 if len(word) >= TWO_SLIPS_FROM else 1


def _leave_out(word: str, most: int) -> set[str]:
    """Return `word` and what is left of it without up to `most` of its letters."""
    found = {word}
    latest = {word}
    for _ in range(most):
        latest = {left[:gap] + left[gap + 1 :] for left in latest for gap in range(len(left))}
        found |= latest
    return found


@cache
def _index() -> dict[str, list[str]]:
    index: dict[str, list[str]] = {}
    for word, (_, base) in color_words().items():
        if len(word) < SHORTEST:
            continue
        # Inflected forms are many: one slip is enough for them, the base form stands for the rest.
        most = _allowed(word) if word == fold(base) else 1
        for left in _leave_out(word, most):
            index.setdefault(left, []).append(word)
    return index


def _count_slips(first: str, second: str) -> int:
    """Return the optimal string alignment distance: a swap of neighbors counts once."""
    before: list[int] = []
    previous = list(range(len(second) + 1))
    for row, letter in enumerate(first, start=1):
        current = [row]
        for column, other in enumerate(second, start=1):
            cost = min(
                previous[column] + 1, current[column - 1] + 1, previous[column - 1] + (letter != other)
            )
            if row > 1 and column > 1 and letter == second[column - 2] and other == first[row - 2]:
                cost = min(cost, before[column - 2] + 1)
            current.append(cost)
        before, previous = previous, current
    return previous[-1]
