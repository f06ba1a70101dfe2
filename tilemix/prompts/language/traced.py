"""A text that remembers where each of its characters was typed, so that messages can point there."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Traced(NamedTuple):
    """A text made of pieces of a typed one."""

    text: str
    origins: Sequence[int]  # of each character: its place in the typed text

    @classmethod
    def begin(cls, text: str) -> Traced:
        """Return a text as typed."""
        return cls(text, range(len(text)))

    @classmethod
    def join(cls, pieces: Iterable[Traced]) -> Traced:
        """Return several texts as one."""
        listed = list(pieces)
        origins = [origin for piece in listed for origin in piece.origins]
        return cls("".join(piece.text for piece in listed), origins)

    def pick(self, ranges: Iterable[tuple[int, int]]) -> Traced:
        """Return the stretches start to end of this text, joined."""
        return Traced.join(Traced(self.text[start:end], self.origins[start:end]) for start, end in ranges)

    def position(self, place: int) -> int:
        """Return the 1-based character of the typed text that stands at `place`, or before it at the end."""
        if place < len(self.origins):
            return self.origins[place] + 1
        return self.origins[-1] + 1 if self.origins else 1
