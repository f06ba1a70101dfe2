"""Makes text safe for a terminal: names from outside may contain line breaks and control sequences."""

from __future__ import annotations


def make_printable(text: str) -> str:
    """Return `text` on one line, with every unprintable character replaced by a space."""
    return "".join(character if character.isprintable() else " " for character in text)
