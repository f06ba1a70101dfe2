"""The text of a manifest with one adapter's entry changed: all else stays as somebody laid it out."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import msgspec

from tilemix.weights.manifest import Adapter

SPACE = " \t\r\n"
DECODER = json.JSONDecoder()
KEY = "adapters"


class Span(NamedTuple):
    """Where a value is in a text, and the value."""

    start: int
    end: int  # behind its last character
    value: Any


def put_adapter(text: str, entry: Adapter) -> str:
    """Return a manifest's text with `entry` in the place of the adapter of that file, or behind the last adapter."""
    members = _list_members(text)
    table = _drop_defaults(entry)
    if KEY not in members or not members[KEY].value:
        return _put_first(text, members, table)
    items = _list_items(text, members[KEY])
    old = next((item for item in items if item.value["file"] == entry.file), None)
    if old is None:
        last = items[-1]
        gap = f",{text[_line_start(text, last.start) - 1 : last.start]}" if _begins_line(text, last) else ", "
        return text[: last.end] + gap + _spell(table, text, last) + text[last.end :]
    # A key that was written out stays, with its default where the entry has it.
    kept = {key: value for key, value in msgspec.to_builtins(entry).items() if key in old.value}
    table = {
        key: (kept | table)[key] for key in (*old.value, *(key for key in table if key not in old.value))
    }
    return text[: old.start] + _spell(table, text, old) + text[old.end :]


def drop_adapter(text: str, file: str) -> str:
    """Return a manifest's text without the entry of the adapter `file`, which is there."""
    adapters = _list_members(text)[KEY]
    items = _list_items(text, adapters)
    place = next(place for place, item in enumerate(items) if item.value["file"] == file)
    if len(items) == 1:
        return text[: adapters.start] + "[]" + text[adapters.end :]
    if place:
        return text[: items[place - 1].end] + text[items[place].end :]
    return text[: items[0].start] + text[items[1].start :]


def _put_first(text: str, members: dict[str, Span], table: dict[str, Any]) -> str:
    if KEY in members:  # an empty list, or null
        start, end, _ = members[KEY]
        before = ""
    else:
        start = end = max(member.end for member in members.values())
        brace = _skip(text, 0)
        before = f",{text[brace + 1 : _skip(text, brace + 1)] or ' '}{json.dumps(KEY)}: "
    indent = _indent_of(text)
    if not indent:
        return f"{text[:start]}{before}[{json.dumps(table, ensure_ascii=False)}]{text[end:]}"
    spelled = json.dumps([table], indent=indent, ensure_ascii=False).replace("\n", f"\n{indent}")
    return text[:start] + before + spelled + text[end:]


def _spell(table: dict[str, Any], text: str, like: Span) -> str:
    """Return an entry laid out like the one at `like`."""
    if "\n" not in text[like.start : like.end]:
        return json.dumps(table, ensure_ascii=False)
    margin = text[_line_start(text, like.start) : like.start]
    margin = margin[: len(margin) - len(margin.lstrip(SPACE))]
    return json.dumps(table, indent=_indent_of(text) or 2, ensure_ascii=False).replace("\n", f"\n{margin}")


def _drop_defaults(entry: Adapter) -> dict[str, Any]:
    plain = msgspec.to_builtins(Adapter(file="", kind="lora"))
    table = msgspec.to_builtins(entry)
    for file in table["beside"]:
        for key in [key for key, value in file.items() if value is None]:
            del file[key]
    return {key: value for key, value in table.items() if key in ("file", "kind") or value != plain[key]}


def _list_members(text: str) -> dict[str, Span]:
    """Return key -> value of the object that the text is; of a key given twice, the last counts."""
    at, members = _skip(text, _skip(text, 0) + 1), {}
    while text[at] != "}":
        key, at = DECODER.raw_decode(text, at)
        start = _skip(text, _skip(text, at) + 1)
        value, end = DECODER.raw_decode(text, start)
        members[key] = Span(start, end, value)
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return members


def _list_items(text: str, array: Span) -> list[Span]:
    at, items = _skip(text, array.start + 1), []
    while text[at] != "]":
        value, end = DECODER.raw_decode(text, at)
        items.append(Span(at, end, value))
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return items


def _skip(text: str, at: int) -> int:
    while text[at] in SPACE:
        at += 1
    return at


def _line_start(text: str, at: int) -> int:
    return text.rfind("\n", 0, at) + 1


def _begins_line(text: str, span: Span) -> bool:
    start = _line_start(text, span.start)
    return start > 0 and not text[start : span.start].strip(SPACE)


def _indent_of(text: str) -> str:
    """Return the margin of the manifest's own keys; "" where it is written on one line."""
    first = _skip(text, _skip(text, 0) + 1)
    start = _line_start(text, first)
    return text[start:first] if start and not text[start:first].strip(SPACE) else ""
