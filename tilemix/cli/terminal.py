"""Text for a terminal: names from outside may hold line breaks and the terminal's own commands."""

from __future__ import annotations


def make_printable(text: str) -> str:
    """Return `text` on one line, with a space for every character that is not printed."""
    return "".join(character if character.isprintable() else " " for character in text)
