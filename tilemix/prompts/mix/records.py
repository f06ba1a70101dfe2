"""Mixes as programs send them: `{"colors": [{"name": "red", "proportion": 60}, ...]}` and its relatives."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec

from tilemix.errors import LIST_SEPARATOR, Message, MixError
from tilemix.prompts.checks import INVISIBLE
from tilemix.prompts.mix.clauses import COLORS, Color, is_pure, make_clauses
from tilemix.prompts.mix.naming import name_group, name_unknown, refuse_misspelled, shorten
from tilemix.prompts.mix.numbers import is_near, parse_number
from tilemix.prompts.mix.tokens import NameValue, Token, name_nothing, name_values, tokenize
from tilemix.prompts.mix.totals import TENTH, WHOLE, ColorMix, make_mix, refuse_total

LISTS = ("colors", "colours", "mix", "palette")
NAMES = ("name", "color", "colour", "code", "ral", "hex")
AMOUNTS = ("proportion", "percentage", "percent", "share", "amount", "weight", "ratio", "fraction", "value")
TEXTS = ("prompt", "text")
KEYS = frozenset({*LISTS, *NAMES, *AMOUNTS, *TEXTS})
MOST_KEYS = 8  # in a message
NUMBER = re.compile(r"-?\d*[.,]?\d+")
# A quoted name in a bracket, or braces around names and colons: JSON in a slip, or of another form.
JSON_LIKE = re.compile(r"""[{\[]\s*["'][^"'\d{}\[\]]*["']\s*[:,=]|^\s*+\{[^|{}:]*+:[^|{}]*+\}\s*+$""")
JSON_PIECE = re.compile(r'"(?:[^"\\]|\\.)*+"|[{}\[\],:]|[^\s{}\[\],:"]++')


class Record(NamedTuple):
    """A mix that a program sent; `text`: a prompt to be read in its place."""

    mix: ColorMix | None
    text: str | None
    notes: tuple[Message, ...]
    pieces: tuple[RecordPiece, ...]  # of the JSON, in order


class RecordPiece(NamedTuple):
    """A stretch of JSON, text[start:end], and what it does in the mix."""

    start: int
    end: int
    role: str  # color, share, record (keys and signs), ignored; text: the prompt in its quotes
    value: str = ""  # a color's trade name, an amount as typed


def read_record(text: str, name_value: NameValue = name_nothing) -> Record | None:
    """Return the mix in a text that is a JSON object or list; None where it is neither, or says no colors.

    Raises:
        MixError: it has colors, and they are not a mix; it looks like JSON of a mix, and is not.
    """
    text = INVISIBLE.sub("", text)
    record = _read_json(text, name_value) if text.lstrip().startswith(("{", "[")) else None
    if record is None and (found := JSON_LIKE.search(text)) is not None and _has_shares(text):
        raise MixError("mix-json", position=found.start() + 1)
    return record


@lru_cache(maxsize=4)  # a text is read twice: for its mix, and in the prompt language
def _has_shares(text: str) -> bool:
    """Return whether a text names two colors and a number."""
    kinds = Counter(token.kind for token in tokenize(text))
    return sum(kinds[kind] for kind in COLORS) > 1 and kinds["number"] + kinds["percent"] > 0


def _read_json(text: str, name_value: NameValue) -> Record | None:
    try:
        data = msgspec.json.decode(text.encode())
    except (msgspec.DecodeError, RecursionError):
        return None
    ignored: list[str] = []
    rows: object = data
    if isinstance(data, dict):
        key = next((key for key in LISTS if key in data), None)
        ignored = [name for name in data if name != key]
        if key is not None:
            rows = data[key]
        elif (prompt := next((name for name in TEXTS if isinstance(data.get(name), str)), None)) is not None:
            notes = _note_ignored([name for name in data if name != prompt])
            return Record(None, data[prompt], notes, tuple(_explain(text, [], prompt)))
        else:
            ignored = []
    shares = _list_shares(rows, ignored)
    if shares is None:
        return None
    if rows is data and isinstance(data, dict):
        shares = _leave_out_others(shares, ignored)
    found: list[Message] = []
    amounts = [(_name(name, found, name_value), amount) for name, amount in shares]
    total = sum((amount for _, amount in amounts), Decimal(0))
    if is_near(total, 1) and not is_near(total, 100):
        amounts = [(color, 100 * amount) for color, amount in amounts]
    elif not is_near(total, 100):
        refuse_total(amounts, total)
    has_decimal = any(amount % 1 for _, amount in amounts)
    mix = make_mix(amounts, TENTH if has_decimal else WHOLE, found)
    names = [(typed, color) for (typed, _), (color, _) in zip(shares, amounts, strict=True)]
    return Record(mix, None, (*found, *_note_ignored(ignored)), tuple(_explain(text, names)))


def _explain(text: str, names: list[tuple[str, str]], prompt: str = "") -> Iterator[RecordPiece]:
    """Say what each piece of the JSON does: `names` are the colors as typed and as read, `prompt` the text's key."""
    left = list(names)
    pieces = list(JSON_PIECE.finditer(text))
    key = ""
    for number, piece in enumerate(pieces):
        start, end, typed = piece.start(), piece.end(), piece[0]
        plain = msgspec.json.decode(typed.encode(), type=str) if typed.startswith('"') else typed
        is_key = number + 1 < len(pieces) and pieces[number + 1][0] == ":"
        if left and plain == left[0][0] and (is_key or key in NAMES):
            yield RecordPiece(start, end, "color", left.pop(0)[1])
            key = AMOUNTS[0] if is_key else key
        elif is_key or typed in "{}[],:":
            key = plain if is_key else key
            yield RecordPiece(start, end, "record" if key in KEYS or not is_key else "ignored")
        elif key in AMOUNTS:
            yield RecordPiece(start, end, "share", plain.removesuffix("%").strip())
        elif prompt and key == prompt:
            yield RecordPiece(start, end, "text")
        else:
            yield RecordPiece(start, end, "ignored")


def _note_ignored(keys: list[str]) -> tuple[Message, ...]:
    if not keys:
        return ()
    names = LIST_SEPARATOR.join(shorten(key).replace(LIST_SEPARATOR, " ") for key in keys[:MOST_KEYS])
    return (Message("mix-keys-ignored", {"keys": names}, "prompt"),)


def _list_shares(rows: object, ignored: list[str]) -> list[tuple[str, Decimal]] | None:
    """Return the names and amounts of a list of objects, or of an object of numbers."""
    if isinstance(rows, dict) and rows and all(_number(value) is not None for value in rows.values()):
        return [(name, _share(name, value)) for name, value in rows.items()]
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        return None
    shares = []
    for row in rows:
        name = next((row[key] for key in NAMES if isinstance(row.get(key), str)), None)
        key = next((key for key in AMOUNTS if _number(row.get(key)) is not None), None)
        if name is None or key is None:
            return None
        shares.append((name, _share(name, row[key])))
        ignored += [key for key in row if key not in (*NAMES, *AMOUNTS) and key not in ignored]
    return shares


def _leave_out_others(shares: list[tuple[str, Decimal]], ignored: list[str]) -> list[tuple[str, Decimal]]:
    """Return the shares without numbers that name no color, if the colors are a mix: `"seed": 7` beside them."""
    named = [(name, amount) for name, amount in shares if _find_color(tokenize(name)) is not None]
    total = sum((amount for _, amount in named), Decimal(0))
    if not is_near(total, 100) and not is_near(total, 1):
        return shares
    ignored += [name for name, amount in shares if (name, amount) not in named]
    return named


def _share(name: str, value: Any) -> Decimal:
    amount = _number(value)
    if amount is None or amount < 0:
        raise MixError("mix-bad-share", typed=shorten(str(value)), color=shorten(name))
    return amount


def _number(value: Any) -> Decimal | None:
    if isinstance(value, str):
        plain = value.strip().removesuffix("%").strip()
        number = parse_number(plain.removeprefix("-")) if NUMBER.fullmatch(plain) else None
        return -number if number is not None and plain.startswith("-") else number
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e6:
        return None
    return Decimal(str(round(value, 4)))


def _find_color(tokens: list[Token]) -> Color | None:
    """Return the color that is all a name says."""
    clauses = make_clauses(tokens, ())
    if len(clauses) == 1 and is_pure(clauses[0]) and len(clauses[0].colors) == 1:
        return clauses[0].colors[0]
    return None


def _name(typed: str, notes: list[Message], name_value: NameValue) -> str:
    """Return the trade name of a color as a program names it."""
    typed = INVISIBLE.sub("", typed)
    tokens = name_values(tokenize(typed), name_value)
    color = _find_color(tokens)
    if color is not None:
        return name_group(typed, tokens, color, notes)
    if not tokens:
        raise MixError("mix-no-name")
    refuse_misspelled(typed, tokens, is_last_first=False)
    return name_unknown(typed, tokens, notes)
