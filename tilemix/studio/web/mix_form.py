"""Reads and fills the page's form.

The text and the table show the same mix. A browser without JavaScript sends both, and both as they were on the page,
which shows which of them was changed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from tilemix.errors import Message, MixError, PromptError, RequestError, TilemixError
from tilemix.inputs import NUMBER, TextInput, load_inputs
from tilemix.prompts.language import is_plain
from tilemix.prompts.mix import parse_mix
from tilemix.prompts.mix.records import read_record
from tilemix.prompts.reading import read_mix
from tilemix.request import GenerationRequest
from tilemix.studio.web.palette import write_mix

if TYPE_CHECKING:
    from starlette.datastructures import FormData

    from tilemix.colors.palette import Palette
    from tilemix.prompts.mix import Span

MAX_ROWS = 12
KEPT = frozenset({"text", "unknown", "ignored", "break"})  # roles of what is no part of the mix
HUNDRED = Decimal(100)
WORD = re.compile(r"[^\s,;，；、+]{1,40}")
SHOWN_BEFORE = 24  # characters before an error


@dataclass(slots=True)
class PageForm:
    """The form's fields as texts, "" if left out, and the error in them."""

    values: dict[str, str] = field(default_factory=dict)
    error: Message | None = None

    def blame(self, error: TilemixError) -> None:
        """Show an error, at the field that it is about."""
        self.error = error.message


def mark_position(text: str, position: int | None) -> tuple[str, str]:
    """Return the text before a 1-based position, shortened, and the word at it; "" for None."""
    if position is None:
        return "", ""
    at = position - 1
    word = WORD.match(text, at)
    cut = at - SHOWN_BEFORE
    before = f"…{text[cut:at]}" if cut > 0 else text[:at]
    return before, word[0] if word else text[at : at + 1]


def mark_reading(text: str, spans: tuple[Span, ...]) -> list[dict[str, str | bool]]:
    """Return the text in pieces, each with whether it was read as a part of the mix; none where nothing was."""
    pieces: list[dict[str, str | bool]] = []
    end = 0
    for span in spans:
        is_read = span.role not in KEPT
        if pieces and pieces[-1]["is_read"] == is_read:
            pieces[-1]["text"] = f"{pieces[-1]['text']}{text[end : span.end]}"
        else:
            if end < span.start:
                pieces.append({"text": text[end : span.start], "is_read": False})
            pieces.append({"text": text[span.start : span.end], "is_read": is_read})
        end = span.end
    return pieces if any(piece["is_read"] for piece in pieces) else []


def form_of_inputs(inputs: dict[str, Any]) -> PageForm:
    """Return the form filled with a prediction's inputs."""
    return PageForm({name: f"{inputs[name]}" for name in load_inputs() if inputs.get(name) is not None})


def read_page_form(
    data: FormData, language: str, palette: Palette | None = None
) -> tuple[PageForm, GenerationRequest | None]:
    """Return the form as it was sent and its request; on an error None, with the error in the form."""
    form = PageForm({name: value for name in load_inputs() if isinstance(value := data.get(name, ""), str)})
    form.values["prompt"] = form.values.get("prompt", "").strip()
    try:
        typed = _read_table(data)
        if typed is not None and typed != data.get("table_was", ""):
            if form.values["prompt"] != str(data.get("prompt_was", "")).strip():
                raise MixError("mix-both-changed")
            mix = _total(typed, data)
            form.values["prompt"] = _replace_mix(form.values["prompt"], mix, language, palette)
        return form, _read_request(form.values)
    except (PromptError, RequestError) as error:
        form.blame(error)
        return form, None


def write_table(mix: dict[str, float]) -> str:
    """Return the table's state for a mix, to be compared with what the form sends back."""
    return ";".join(f"{color}={share:g}" for color, share in mix.items())


def split_text(text: str, palette: Palette | None = None) -> tuple[dict[str, float], str, str]:
    """Return the mix in a text as it is sent, the text before it and the text after it.

    A mix inside the prompt language is none that a table of colors could stand for.

    Raises:
        PromptError: the mix is not clear, or cannot be sent.
    """
    if not _is_table(text):
        return {}, "", f", {text}"
    read = read_mix(text, palette)
    if read.sent is None:
        return {}, "", f", {text}" if text else ""
    return {share.color: float(share.percent) for share in read.sent.shares}, read.head, read.tail


def _is_table(text: str) -> bool:
    return is_plain(text) or read_record(text) is not None


def _read_table(data: FormData) -> str | None:
    colors = [value for value in data.getlist("color") if isinstance(value, str)]
    percents = [value.strip() for value in data.getlist("percent") if isinstance(value, str)]
    if not colors or len(colors) != len(percents) or len(colors) > 2 * MAX_ROWS:
        return None
    rows = zip(colors, percents, range(len(colors)), strict=True)
    rest = data.get("rest", "")
    return ";".join(
        f"{color}={percent or 0}" for color, percent, row in rows if color and (percent or rest == str(row))
    )


def _total(table: str, data: FormData) -> str:
    """Return the table as a mix; what is missing to 100 % goes to the color that was chosen for it."""
    colors = data.getlist("color")
    rest = data.get("rest", "")
    keeper = (
        colors[int(rest)] if isinstance(rest, str) and rest.isdecimal() and int(rest) < len(colors) else None
    )
    shares: dict[str, Decimal] = {}
    for entry in filter(None, table.split(";")):
        color, _, percent = entry.rpartition("=")
        if not NUMBER.fullmatch(percent.replace(",", ".")):
            raise MixError("mix-bad-share", typed=percent[:40], color=color[:40])
        shares[color] = shares.get(color, Decimal(0)) + Decimal(percent.replace(",", "."))
    if isinstance(keeper, str) and keeper in shares:
        shares[keeper] += max(HUNDRED - sum(shares.values()), -shares[keeper])
    mix = ", ".join(f"{share.normalize():f}% {color}" for color, share in shares.items() if share)
    if not mix:
        raise MixError("mix-table-empty")
    return mix


def _replace_mix(text: str, mix: str, language: str, palette: Palette | None) -> str:
    checked = parse_mix(mix).mix
    assert checked is not None
    written = write_mix({share.color: float(share.percent) for share in checked.shares}, language)
    if not _is_table(text):
        return written
    try:
        _, head, tail = split_text(text, palette)
    except PromptError:
        return written  # the text held no clear mix to replace
    return f"{head}{written}{tail}"


def _read_request(values: dict[str, str]) -> GenerationRequest:
    given: dict[str, Any] = {"prompt": ""}
    for name, row in load_inputs().items():
        text = values.get(name, "")
        if not isinstance(row, TextInput):
            text = text.strip()
        if text:
            given[name] = row.read(text)
    return GenerationRequest(**given)
