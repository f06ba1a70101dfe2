"""From what the user typed to the prompt that is sent to the model.

The language is read, the color mix in it is read and written in the words of the model's palette, then the template
is filled::

    "(50 % rot:1.2), 30 % schwarz, Rest {weiß|beige}"
    -> "ohwx_rubber_tile <s0><s1>, (50% red:1.2), 30% black, 20% white, photorealistic rubber tile, ..."

Loads no torch.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING

from tilemix.errors import Message, MixError, PromptError
from tilemix.prompts.checks import INVISIBLE, MAX_PROMPT_CHARACTERS, VISIBLE, check_prompt, check_text
from tilemix.prompts.context import NamedHypernetwork, NamedLora, PromptContext
from tilemix.prompts.emphasized_mix import carry_emphasis, list_parts
from tilemix.prompts.language import (
    Fragment,
    Script,
    Traced,
    Version,
    note_left_over,
    parse,
    refuse_other_notations,
)
from tilemix.prompts.language.choices import WILDCARD, Choice, choose
from tilemix.prompts.language.emphasis import BREAK, Emphasized
from tilemix.prompts.language.writing import write_versions
from tilemix.prompts.mix import ColorMix, Span, find_trade_codes
from tilemix.prompts.mix.records import read_record
from tilemix.prompts.reading import ReadText, read_mix

if TYPE_CHECKING:
    from tilemix.colors.palette import Palette
    from tilemix.errors import Value
    from tilemix.prompts.template import PromptTemplate

logger = logging.getLogger(__name__)

AS_ONE = re.compile(rf"{WILDCARD}|\b{BREAK}\b")  # stands for what was read there
NAMED = frozenset({"color", "base"})  # roles of colors
NO_MIX = Message("mix-not-found", {}, "prompt")
MOST_SENT = 6000  # characters of a prompt with its edits


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, ready for the text encoders."""

    typed: str  # what the user typed
    positive: str  # what is sent, in the prompt language
    negative: str  # "" is really empty
    mix: ColorMix | None  # in the chart's names; None: no share was typed, so there is nothing to measure
    sent: ColorMix | None  # the same in the words of the model's palette
    notes: tuple[Message, ...]  # what was read differently from what was typed; that no mix was found
    spans: tuple[Span, ...] = field(
        default=(), compare=False
    )  # what every part of the text does; () if untouched
    loras: tuple[NamedLora, ...] = ()  # in addition to what the model applies by itself
    hypernetworks: tuple[NamedHypernetwork, ...] = ()  # in the order in which they act
    choices: tuple[Choice, ...] = ()  # that the seed made, in the prompt and the negative prompt
    chosen: str | None = None  # the prompt with its choices made; None: there were none
    chosen_negative: str | None = None  # the same of the negative prompt
    is_timed: bool = False  # another number of steps may give another prompt
    remarks: tuple[str, ...] = field(default=(), compare=False)  # for the log alone


def rewrite(
    text: str,
    template: PromptTemplate,
    palette: Palette | None = None,
    *,
    negative_prompt: str | None = None,
    context: PromptContext | None = None,
) -> Prompt:
    """Return the prompt for `text`; a `negative_prompt` of None means the template's.

    Its colors are sent in the words of `palette`, the model's. Text with one of the template's trigger words or
    placeholder tokens is sent untouched. What there is to tell comes with the prompt: see `log_notes`.

    Raises:
        PromptError: a text is empty (the negative prompt may be), too long, or contains control characters; something
            in it looks like syntax and is not.
        MixError: the color mix is not clear, or the palette has no color near one of it.
    """
    check_prompt(text)
    context = context or PromptContext()
    negative = template.negative_prompt if negative_prompt is None else negative_prompt
    check_text(negative, field="negative_prompt")
    record = read_record(text)
    reader = _Reader(template, palette, context)
    if record is not None and record.mix is not None:
        prompt = reader.read_record(text)
    else:
        prompt = reader.read(text if record is None or record.text is None else record.text)
    if context.without_negative is not None:
        if negative_prompt:
            reader.notes.append(
                Message("prompt-negative-unread", {"base": context.without_negative}, "negative_prompt")
            )
        negative = ""
    sent, chosen = reader.read_negative(negative)
    return replace(
        prompt,
        typed=text,
        negative=sent,
        chosen_negative=chosen,
        choices=tuple(reader.choices),
        is_timed=reader.is_timed,
        remarks=tuple(reader.remarks),
        notes=(
            *prompt.notes,
            *reader.notes,
            *(record.notes if record is not None and record.text is not None else ()),
        ),
    )


def log_notes(prompt: Prompt) -> None:
    """Log what was read differently from what was typed, and what else there is to say of how it was read."""
    for remark in prompt.remarks:
        logger.info("%s", remark)
    for note in prompt.notes:
        logger.warning("%s", note)


class _Reader:
    """Reads the two texts of a request."""

    def __init__(self, template: PromptTemplate, palette: Palette | None, context: PromptContext) -> None:
        self._template = template
        self._palette = palette
        self._context = context
        self.choices: list[Choice] = []
        self.notes: list[Message] = []
        self.remarks: list[str] = []
        self.is_timed = False

    def read(self, text: str) -> Prompt:
        """Read a prompt."""
        script, chosen = self._read_language(text, "prompt")
        prompt = self._read_words(text, script, chosen)
        return replace(
            prompt,
            loras=self._context.find_loras(script.tags),
            hypernetworks=self._context.find_hypernetworks(script.tags),
        )

    def _read_words(self, text: str, script: Script, chosen: str | None) -> Prompt:
        typed = script.text.text
        if not typed.strip():
            raise PromptError("prompt-empty", field="prompt", most=MAX_PROMPT_CHARACTERS)
        marker = self._template.find_marker(typed)
        if marker is not None:
            self.remarks.append(f"prompt holds {marker!r}: sent untouched")
            read = self._read_complete(script.versions[-1].emphasized.plain)
            mix, sent = (None, None) if read is None else (read.mix, read.sent)
            return Prompt(text, self._context.put_tokens(typed), "", mix, sent, (), chosen=chosen)
        readings = [_read_version(text, version, self._palette) for version in script.versions]
        mix, sent = next(
            ((reading.mix, reading.sent) for reading in reversed(readings) if reading.mix is not None),
            (None, None),
        )
        for reading in readings:
            self.notes += [note for note in reading.notes if note not in self.notes]
        self.notes += [NO_MIX] if mix is None else []
        written = write_versions([(reading.last_step, reading.parts) for reading in readings])
        if len(written) > MOST_SENT:
            raise PromptError("prompt-too-long", field="prompt", count=len(written), most=MOST_SENT)
        positive = self._context.put_tokens(self._template.fill(written))
        return Prompt(text, positive, "", mix, sent, (), readings[-1].spans, chosen=chosen)

    def _read_complete(self, text: Traced) -> ReadText | None:
        """Read the mix of a prompt that is sent untouched; None: it is unclear, which is no reason to refuse it."""
        codes = find_trade_codes(text.text)
        try:
            read = read_mix(text.text, self._palette)
        except MixError as error:
            self.remarks.append(f"no mix to measure: {error}")
            self.notes += _note_other_words(text, codes, self._palette)
            return None
        colors = [span for span in read.spans if span.role in NAMED] if self._palette is not None else []
        codes = [code for code in codes if code.start not in {color.start for color in colors}]
        self.notes += _note_other_words(text, sorted([*colors, *codes]), self._palette)
        return read

    def read_record(self, text: str) -> Prompt:
        """Read a mix that a program sent."""
        read = read_mix(text, self._palette)
        self.notes += read.notes
        return Prompt(text, self._template.fill(read.text), "", read.mix, read.sent, (), read.spans)

    def read_negative(self, text: str) -> tuple[str, str | None]:
        """Return a negative prompt as it is sent, and with its choices made, if it holds any."""
        script, chosen = self._read_language(text, "negative_prompt")
        if script.tags:
            raise PromptError(
                "prompt-negative-tag", field="negative_prompt", position=script.tags[0].position
            )
        return self._context.put_tokens(script.text.text), chosen

    def _read_language(self, text: str, field_name: str) -> tuple[Script, str | None]:
        """Return a text whose choices are made and whose syntax is read, and the text between the two."""
        chosen = choose(text, self._context.seed, self._context.wildcards, field=field_name)
        self.choices += chosen.choices
        self.notes += chosen.notes
        words = _drop_invisible(chosen.text) if field_name == "prompt" else chosen.text
        words, notes = self._context.take_prefixes(words, field=field_name)
        self.notes += notes
        refuse_other_notations(words, field=field_name)
        self.notes += note_left_over(words, field=field_name)
        script = parse(words, steps=self._context.steps, field=field_name)
        self.notes += script.notes
        self.is_timed |= script.is_timed
        return script, chosen.text.text if chosen.choices else None


@dataclass(frozen=True, slots=True)
class _Reading:
    """A version of a prompt, its mix read."""

    last_step: int
    parts: list[list[Fragment]]  # as they are sent
    mix: ColorMix | None
    sent: ColorMix | None
    notes: tuple[Message, ...]
    spans: tuple[Span, ...]


def _read_version(text: str, version: Version, palette: Palette | None) -> _Reading:
    """Read the mix in a version of a text; what is said of it points to the text.

    Raises:
        MixError: it is not clear, or the palette has no color near one of it.
    """
    plain = version.emphasized.plain

    def point(values: Mapping[str, Value]) -> dict[str, Value]:
        position = values.get("position")
        return (
            {**values, "position": plain.position(position - 1)} if isinstance(position, int) else {**values}
        )

    try:
        read = read_mix(plain.text, palette)
    except MixError as error:
        raise MixError(error.code, field=error.field, **point(error.values)) from error
    pieces = carry_emphasis(version.emphasized, read)
    notes = tuple(Message(note.code, point(note.values), note.field) for note in read.notes)
    spans = tuple(_place_spans(text, read.spans, version.emphasized))
    return _Reading(version.last_step, list_parts(pieces), read.mix, read.sent, notes, spans)


def _drop_invisible(text: Traced) -> Traced:
    is_clean = INVISIBLE.search(text.text) is None
    return text if is_clean else text.pick(match.span() for match in VISIBLE.finditer(text.text))


def _place_spans(text: str, spans: Iterable[Span], read: Emphasized) -> Iterator[Span]:
    """Yield spans of what was read where they stand in the text; a BREAK is a span of its own."""
    for span in spans:
        for is_break, group in groupby(
            range(span.start, span.end), lambda place: read.weights[place] is None
        ):
            places = [read.plain.position(place) - 1 for place in group]
            start, end = places[0], places[-1]
            whole = AS_ONE.match(text, end)
            placed = span._replace(start=start, end=end + 1 if whole is None else whole.end())
            yield placed._replace(role="break", value="") if is_break else placed


def _note_other_words(text: Traced, colors: Iterable[Span], palette: Palette | None) -> list[Message]:
    """Say of the colors in a prompt that is sent untouched that the model knows them by other words."""
    notes = []
    for color in colors:
        typed, word = text.text[color.start : color.end], color.value
        if palette is not None:
            from tilemix.colors.answers import find_answer  # numpy

            answer = find_answer(palette, word)
            word = answer.color.word if answer is not None else word
        if typed.casefold() != word:
            values: dict[str, Value] = {"typed": typed, "position": text.position(color.start), "color": word}
            notes.append(Message("mix-known-by-another-word", values, "prompt"))
    return notes
