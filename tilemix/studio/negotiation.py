"""What a client prefers, according to its Accept and Accept-Language headers.

Source: RFC 9110, section 12.5
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from babel import negotiate_locale

if TYPE_CHECKING:
    from collections.abc import Sequence

QUALITY = re.compile(r"q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)")  # section 12.4.2


def prefers(accept: str, media_type: str) -> bool:
    """Return whether an Accept header prefers `media_type` to JSON; `*/*` alone means JSON."""
    qualities = _read_qualities(accept)
    family = media_type.partition("/")[0] + "/*"
    wanted = qualities.get(media_type, qualities.get(family, 0.0))
    return wanted > qualities.get("application/json", 0.0)


def choose_language(accept_language: str, known: Sequence[str]) -> str:
    """Return the known language that an Accept-Language header ranks highest; the first if it names none."""
    qualities = _read_qualities(accept_language)
    wanted = sorted((tag for tag in qualities if qualities[tag]), key=lambda tag: -qualities[tag])
    return negotiate_locale(wanted, known, sep="-") or known[0]


def _read_qualities(header: str) -> dict[str, float]:
    """Return the entries of a header, lowercased, with their quality (0 to 1); malformed ones are skipped."""
    qualities: dict[str, float] = {}
    for entry in header.lower().split(","):
        name, *parameters = (part.strip() for part in entry.split(";"))
        told = next((part for part in parameters if part.startswith("q=")), "q=1")
        if match := QUALITY.fullmatch(told):
            qualities[name] = max(qualities.get(name, 0.0), float(match[1]))
    return qualities
