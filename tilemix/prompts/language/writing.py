"""The text that reads as given fragments: weights without nesting, versions as edits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise, takewhile

from tilemix.prompts.language.emphasis import BREAK, BREAKS, Fragment
from tilemix.prompts.language.punctuation import find_punctuation

DECIMALS = 6  # of a weight
SPECIAL = re.compile(r"[()\[\]\\]")
SPECIAL_IN_EDIT = re.compile(r"[()\[\]\\:|]")

Part = Sequence[Fragment]
Piece = Fragment | None  # None: a BREAK


def write_versions(versions: Sequence[tuple[int, Sequence[Part]]]) -> str:
    """Return the text that reads as these versions, each up to its last step.

    What all of them begin and end with stands once.
    """
    texts = [_join(parts) for _, parts in versions]
    if len(texts) == 1:
        return _write(texts[0])
    begin = _share_begin(texts)
    texts = [text[len(begin) :] for text in texts]
    end = _share_begin([text[::-1] for text in texts])[::-1]
    texts = [text[: len(text) - len(end)] for text in texts]
    return _write(begin) + _write_edit([last for last, _ in versions], texts) + _write(end)


def _join(parts: Sequence[Part]) -> list[Piece]:
    """Return the parts as one list, words and spaces between them one by one, for them to be compared."""
    pieces: list[Piece] = []
    for place, part in enumerate(parts):
        pieces += [None] if place else []
        for text, weight in part:
            pieces += [Fragment(word, weight) for word in re.findall(r"\s+|\S+", text)]
    return pieces


def _share_begin(texts: Sequence[list[Piece]]) -> list[Piece]:
    """Return what all texts begin with."""
    same = takewhile(lambda pieces: pieces.count(pieces[0]) == len(pieces), zip(*texts, strict=False))
    return [pieces[0] for pieces in same]


def _write_edit(lasts: Sequence[int], texts: Sequence[list[Piece]]) -> str:
    """Return an edit between texts, the first up to step lasts[0], and so on."""
    written = [_write(text, SPECIAL_IN_EDIT) for text in texts]
    by_step = [
        text
        for text, (before, last) in zip(written, pairwise([0, *lasts]), strict=True)
        for _ in range(before, last)
    ]
    for period in range(2, len(written)):
        if all(text == by_step[place % period] for place, text in enumerate(by_step)):
            return f"[{'|'.join(by_step[:period])}]"
    text = written[-1]
    for earlier, last in zip(written[-2::-1], lasts[-2::-1], strict=True):
        text = f"[{earlier}:{text}:{last}]"
    return text


def _write(pieces: Iterable[Piece], special: re.Pattern[str] = SPECIAL) -> str:
    """Return the text that reads as these pieces."""
    written = []
    for weight, group in groupby(pieces, key=lambda piece: None if piece is None else piece.weight):
        same = list(group)
        words = _escape("".join(piece.text for piece in same if piece is not None), special)
        number = "" if weight is None else f"{weight:.{DECIMALS}f}".rstrip("0")
        if weight is None:
            written += [f" {BREAK} "] * len(same)
        elif number == "1.":
            written.append(words)
        else:
            written.append(f"({words}:{number}{'0' * number.endswith('.')})")
    return "".join(written)


def _escape(text: str, special: re.Pattern[str]) -> str:
    """Return the text that reads as these words; brackets that are punctuation need no backslash."""
    written = []
    place = 0
    while match := special.search(text, place):
        end = find_punctuation(text, match.start())
        written += [text[place : match.start()], "" if end else "\\"]
        place = end or match.end()
        written.append(text[match.start() : place])
    return BREAKS.sub(rf"{BREAK[0]}\\{BREAK[1:]}", "".join(written) + text[place:])
