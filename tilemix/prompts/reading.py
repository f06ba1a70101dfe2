"""From a text to its mix, as the customer named the colors and as the model knows them.

The command line, predict.py, the studio and the ruler all read a text here. The chart is the customers' dictionary;
what is sent are words of the model's palette only::

    "50% салатовый, 50% purple"  ->  mix   50% lime green, 50% purple
                                     sent  50% lime green, 50% violet, with a note
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from tilemix.errors import LIST_SEPARATOR, Message, MixError, Value
from tilemix.prompts.mix import ColorMix, ColorShare, parse_mix
from tilemix.prompts.mix.naming import shorten

if TYPE_CHECKING:
    from collections.abc import Mapping
    from decimal import Decimal

    from tilemix.colors.palette import Palette
    from tilemix.prompts.mix import Span

SENT_AS_TYPED = "mix-sent-as-typed"
NAMED = frozenset({"color", "base", "unknown"})  # roles of what names a color
MOST_SUGGESTED = 3


@dataclass(frozen=True, slots=True)
class ReadText:
    """A text whose mix has been read for a model."""

    head: str  # what is kept before the mix; the whole text where there is no mix
    tail: str  # what is kept after it
    mix: ColorMix | None  # in the chart's names; None: the text holds no mix
    sent: (
        ColorMix | None
    )  # in the palette's words, which may be fewer colors; `mix` where there is no palette
    notes: tuple[Message, ...]  # what was read or is sent differently from what was typed
    spans: tuple[Span, ...]  # what every part of the text does

    @property
    def text(self) -> str:
        """The mix in the palette's words, the rest as typed."""
        return f"{self.head}{'' if self.sent is None else self.sent}{self.tail}"


def read_mix(text: str, palette: Palette | None) -> ReadText:
    """Read the mix in a text for the model with this palette; None: its words are those of the chart.

    Raises:
        MixError: the mix is not clear, or the palette has no color near one of it.
        PromptError: the text is too long or contains control characters.
    """
    parsed = parse_mix(text, cache(lambda value: _name_value(value, palette)))
    if parsed.mix is None or palette is None:
        return ReadText(parsed.head, parsed.tail, parsed.mix, parsed.mix, parsed.notes, parsed.spans)
    places = {span.value: span.start + 1 for span in reversed(parsed.spans) if span.role in NAMED}
    sent, notes = translate_mix(parsed.mix, palette, places)
    read = tuple(note for note in parsed.notes if note.code != SENT_AS_TYPED)  # the palette has it after all
    return ReadText(parsed.head, parsed.tail, parsed.mix, sent, (*read, *notes), parsed.spans)


def _name_value(value: str, palette: Palette | None) -> str | None:
    if palette is None:
        return None
    from tilemix.colors.answers import name_value  # numpy

    return name_value(palette, value)


def translate_mix(
    mix: ColorMix, palette: Palette, places: Mapping[str, int] | None = None
) -> tuple[ColorMix, tuple[Message, ...]]:
    """Return a mix in the words of a palette, with a note on every color that is sent by another name.

    Colors that are sent by one word are added up. `places` says at which character of a text each color stands, for
    a refusal; without it there is no text, and it is the first. A mix beyond the bounds of the training is noted.

    Raises:
        MixError: the palette has no color near one of the mix.
    """
    notes: list[Message] = []
    percents: dict[str, Decimal] = {}
    named: dict[str, list[str]] = {}
    for name, percent in mix.shares:
        word = _find_word(name, palette, notes, (places or {}).get(name, 1))
        percents[word] = percents[word] + percent if word in percents else percent
        named.setdefault(word, []).append(name)
    for word, names in named.items():
        if len(names) > 1:
            values: dict[str, Value] = {
                "colors": LIST_SEPARATOR.join(names),
                "nearest": word,
                "total": float(percents[word]),
            }
            notes.append(_note("mix-colors-merged", values))
    if palette.most_colors is not None and len(percents) > palette.most_colors:
        notes.append(_note("mix-many-colors", {"count": len(percents), "most": palette.most_colors}))
    if palette.step is not None and any(percent % palette.step for percent in percents.values()):
        notes.append(_note("mix-between-steps", {"step": palette.step}))
    return ColorMix(tuple(ColorShare(word, percent) for word, percent in percents.items())), tuple(notes)


def _find_word(name: str, palette: Palette, notes: list[Message], position: int) -> str:
    """Return the palette's word for a color; add a note where it is another name.

    Raises:
        MixError: no color of the palette is near.
    """
    own = palette.find(name)
    if own is not None:
        if name.casefold() not in {own.word, (own.code or "").casefold()}:
            notes.append(_note("mix-sent-by-its-word", {"color": name, "nearest": own.word}))
        return own.word
    from tilemix.colors.answers import find_answer, rank_answers  # numpy, which most mixes do not need

    answer = find_answer(palette, name)
    if answer is None:
        ranked = rank_answers(palette, name)
        if not ranked:
            known = LIST_SEPARATOR.join(color.word for color in palette.colors)
            raise MixError(
                "mix-no-such-color", field="prompt", typed=shorten(name), position=position, colors=known
            )
        near = LIST_SEPARATOR.join(each.color.word for each in ranked[:MOST_SUGGESTED])
        apart = round(ranked[0].delta_e, 1)
        raise MixError("mix-nothing-near", field="prompt", color=name, colors=near, delta_e=apart)
    word = answer.color.word
    values: dict[str, Value] = {"color": name, "nearest": word, "delta_e": round(answer.delta_e, 1)}
    notes.append(_note("mix-sent-as-nearest", values))
    return word


def _note(code: str, values: Mapping[str, Value]) -> Message:
    return Message(code, values, "prompt")
