"""A prompt cut into chunks of 75 tokens, as many as a text encoder takes beside its begin and end.

A chunk ends at a BREAK, or where the next word would not fit; if a comma stands among its last 20 tokens, after the
comma. Tokens in angle brackets that touch, as those of an embedding of several vectors do, count as one word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from tilemix.errors import PromptError
from tilemix.prompts.language import Fragment

CHUNK_TOKENS = 75
MOST_CHUNKS = 20  # three times what 2,000 characters of English need; every step attends to each of them
BACKTRACK = 20  # tokens
WORD = re.compile(r"\s*\S+\s*$|\s*\S+")
LEARNED = re.compile(r"<[^<>\s]*>")

CountTokens = Callable[[Sequence[str]], Sequence[int]]  # of each text
Chunk = list[Fragment]


class _Word(NamedTuple):
    text: str
    weight: float
    tokens: int


def cut_into_chunks(parts: Sequence[Sequence[Fragment]], count_tokens: CountTokens) -> list[Chunk]:
    """Return the chunks of a prompt, one at least; a part always begins a new one.

    Args:
        parts: the prompt, cut at each BREAK.
        count_tokens: counts the tokens of texts without begin and end; the most, if there are several tokenizers.

    Raises:
        PromptError: there are more than 20.
    """
    chunks = [chunk for part in parts for chunk in _cut_part(part, count_tokens)] or [[]]
    if len(chunks) > MOST_CHUNKS:
        raise PromptError("prompt-too-many-chunks", count=len(chunks), tokens=CHUNK_TOKENS, most=MOST_CHUNKS)
    return chunks


def _cut_part(part: Sequence[Fragment], count_tokens: CountTokens) -> Iterator[Chunk]:
    fragments = [fragment for fragment in part if fragment.text]
    if sum(count_tokens([fragment.text for fragment in fragments])) <= CHUNK_TOKENS:
        yield fragments
        return
    chunk: list[_Word] = []
    for word in _list_words(fragments, count_tokens):
        if sum(word.tokens for word in chunk) + word.tokens > CHUNK_TOKENS:
            end = _find_comma(chunk)
            yield _join(chunk[:end])
            chunk = chunk[end:]
        chunk.append(word)
    yield _join(chunk)


def _list_words(fragments: Sequence[Fragment], count_tokens: CountTokens) -> Iterator[_Word]:
    words = [(word, weight) for text, weight in fragments for word in WORD.findall(text)]
    counts = count_tokens([word for word, _ in words])
    for (word, weight), tokens in zip(words, counts, strict=True):
        if tokens <= CHUNK_TOKENS:
            yield _Word(word, weight, tokens)
        else:
            yield from _cut_word(word, weight, count_tokens)


def _cut_word(word: str, weight: float, count_tokens: CountTokens) -> Iterator[_Word]:
    """Cut a word that is longer than a chunk in halves until they fit; between learned tokens, if it has any."""
    rest = [word]
    while rest:
        piece = rest.pop()
        (tokens,) = count_tokens([piece])
        if tokens <= CHUNK_TOKENS or len(piece) == 1:
            yield _Word(piece, weight, tokens)
            continue
        middle = len(piece) // 2
        inside = next(
            (match for match in LEARNED.finditer(piece) if match.start() < middle < match.end()), None
        )
        if inside is not None:
            middle = inside.start() or inside.end()
        rest += [piece[middle:], piece[:middle]]


def _find_comma(chunk: Sequence[_Word]) -> int:
    """Return the number of words up to the last comma, if it stands near the end; of all words, if not."""
    tokens = 0
    for count in range(len(chunk), 0, -1):
        if chunk[count - 1].text.rstrip().endswith(","):
            return count
        tokens += chunk[count - 1].tokens
        if tokens > BACKTRACK:
            break
    return len(chunk)


def _join(words: Sequence[_Word]) -> Chunk:
    by_weight = groupby(words, key=lambda word: word.weight)
    return [Fragment("".join(word.text for word in same), weight) for weight, same in by_weight]
