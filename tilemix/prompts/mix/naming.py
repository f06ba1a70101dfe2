"""From the tokens of a share to the color they name: a word, an RAL number, a hex value, or unknown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tilemix.colors.nearest import Match, match_hex, match_ral
from tilemix.errors import LIST_SEPARATOR, Message, MixError, Value
from tilemix.prompts.mix.spelling import find_near_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tilemix.prompts.mix.tokens import Token

COLORS = frozenset({"color", "ral", "hex"})
MOST_WORDS = 3  # of an unknown color that are compared with known ones
SHOWN = 40  # characters of a typed text in a message


def shorten(text: str) -> str:
    """Return `text` for a message, cut where it is long."""
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def name_color(text: str, token: Token, notes: list[Message]) -> str:
    """Return the trade name of the color that `token`, one of COLORS, stands for; note if it is only the nearest.

    Raises:
        MixError: an RAL number that does not exist.
    """
    if token.kind == "color":
        return token.value
    typed = text[token.start : token.end]
    position = token.start + 1
    match: Match | None
    if token.kind == "ral":
        match = match_ral(token.value)
        if match is None:
            raise MixError("mix-unknown-ral", typed=shorten(typed), position=position)
    else:
        match = match_hex(token.value)
    if match.delta_e > 0:
        values: dict[str, Value] = {
            "typed": shorten(typed),
            "position": position,
            "nearest": match.name,
            "delta_e": match.delta_e,
        }
        notes.append(Message("mix-read-as-nearest", values, "prompt"))
    return match.name


def name_pair(text: str, first: Token, second: Token, notes: list[Message]) -> str:
    """Return the trade name of a color that is named twice: "red (RAL 3016)".

    If only one of the two is exactly a granule color, that one counts.

    Raises:
        MixError: they are two colors, or an RAL number does not exist.
    """
    only_near: list[Message] = []
    names = set()
    exact = []
    for token in (first, second):
        notes_before = len(only_near)
        name = name_color(text, token, only_near)
        names.add(name)
        if len(only_near) == notes_before:
            exact.append(name)
    if len(names) == 1:
        return names.pop()
    if len(exact) == 1:
        notes.extend(
            Message("mix-read-beside", {**note.values, "color": exact[0]}, "prompt") for note in only_near
        )
        return exact[0]
    raise MixError("mix-two-colors", colors=LIST_SEPARATOR.join(sorted(names)), position=first.start + 1)


def name_unknown(text: str, words: Sequence[Token], notes: list[Message]) -> str:
    """Return a color that is not in the chart as typed, and add a note.

    Raises:
        MixError: it is a mistyped hex value.
    """
    typed = " ".join(text[words[0].start : words[-1].end].split())
    position = words[0].start + 1
    if typed.startswith("#"):
        raise MixError("mix-bad-hex", typed=shorten(typed), position=position)
    notes.append(Message("mix-sent-as-typed", {"typed": shorten(typed), "position": position}, "prompt"))
    return typed


def refuse_misspelled(text: str, words: Sequence[Token], *, is_last_first: bool) -> None:
    """Compare an unknown color with the known ones.

    `words` may include other text, so the first one, two and three of them are compared as well. A color that
    comes before its percent has that text in front: then it is the last ones (`is_last_first`).

    Raises:
        MixError: a known color is near.
    """
    pieces = [words[-count:] if is_last_first else words[:count] for count in range(1, MOST_WORDS + 1)]
    for piece in [words, *pieces]:
        if not piece:
            continue
        typed = text[piece[0].start : piece[-1].end]
        if near := find_near_words(typed):
            words_near = LIST_SEPARATOR.join(near)
            raise MixError(
                "mix-unknown-color", typed=shorten(typed), position=piece[0].start + 1, words=words_near
            )
