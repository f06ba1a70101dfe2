"""From the tokens of a share to the color they name: a word, an RAL number, a hex value, or unknown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tilemix.colors.nearest import Match, match_hex, match_ral
from tilemix.colors.shades import load_shades, share_hue
from tilemix.errors import LIST_SEPARATOR, Message, MixError, Value
from tilemix.prompts.mix.spelling import find_foreign_letter, find_near_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tilemix.prompts.mix.clauses import Color
    from tilemix.prompts.mix.tokens import Token

MOST_WORDS = 3  # of an unknown color that are compared with known ones
SHOWN = 40  # characters of a typed text in a message


def shorten(text: str) -> str:
    """Return `text` for a message, cut where it is long."""
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def name_color(text: str, token: Token, notes: list[Message]) -> str:
    """Return the trade name that a color, an RAL number or a hex value stands for; add a note if it is the nearest.

    Raises:
        MixError: an RAL number that does not exist.
    """
    if token.kind == "color" or (token.kind == "hex" and not token.value.startswith("#")):
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


def name_group(text: str, tokens: Sequence[Token], color: Color, notes: list[Message]) -> str:
    """Return the trade name of a color with its shade, or of one that is named twice: "red (RAL 3016)".

    A number that is a granule color's own decides over a word of its hue. Where the number is only near one, the word
    says which.

    Raises:
        MixError: the two are of different hues, the chart has no such shade, or an RAL number does not exist.
    """
    near: list[Message] = []
    found: list[tuple[str, bool]] = []  # with whether it is exact
    for place in color.named:
        notes_before = len(near)
        found.append((name_color(text, tokens[place], near), len(near) == notes_before))
    name = found[0][0]
    if len(found) == 2:
        (name, is_exact), (other, is_other_exact) = found
        if name == other:
            near = []
        elif not share_hue(name, other):
            names = LIST_SEPARATOR.join(sorted((name, other)))
            raise MixError("mix-two-colors", colors=names, position=tokens[color.named[0]].start + 1)
        elif is_exact != is_other_exact:
            name = name if is_exact else other
            near = [Message("mix-read-beside", {**note.values, "color": name}, "prompt") for note in near]
        elif tokens[color.named[1]].kind != "color":
            name = other
    notes.extend(near)
    for place in color.shades:
        name = _apply_shade(text, tokens[place], name)
    return name


def _apply_shade(text: str, shade: Token, name: str) -> str:
    """Return the color that the chart has for a shade of another.

    Raises:
        MixError: it has none.
    """
    of_color = load_shades().shades[shade.value]
    if name in of_color:
        return of_color[name]
    if name in of_color.values():
        return name  # "light blue, light": said twice
    typed = shorten(text[shade.start : shade.end])
    raise MixError("mix-no-shade", typed=typed, position=shade.start + 1, color=name)


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
        if piece:
            _refuse_near(text[piece[0].start : piece[-1].end], piece[0].start + 1)


def refuse_misspelled_name(text: str, words: Sequence[Token], color: Sequence[Token]) -> None:
    """Compare words beside a known color, together with it: "drak green".

    Raises:
        MixError: a known color is near.
    """
    tokens = sorted([*words, *color], key=lambda token: token.start)
    _refuse_near(text[tokens[0].start : tokens[-1].end], tokens[0].start + 1)


def _refuse_near(typed: str, position: int) -> None:
    shown = shorten(typed)
    if foreign := find_foreign_letter(typed):
        letter, near = foreign
        number, words = f"{ord(letter):04X}", LIST_SEPARATOR.join(near)
        raise MixError(
            "mix-foreign-letter", typed=shown, position=position, letter=letter, number=number, words=words
        )
    if near := find_near_words(typed):
        raise MixError("mix-unknown-color", typed=shown, position=position, words=LIST_SEPARATOR.join(near))
