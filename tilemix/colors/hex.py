"""Color values as text: `#RRGGBB`."""

from __future__ import annotations

import re

from tilemix.errors import InputError

HEX = re.compile(r"#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})")


def parse_hex(text: str) -> tuple[int, int, int]:
    """Return the channels, 0..255, of `#aa3f27`, `AA3F27` or the short form `#a32`.

    Raises:
        InputError: it is not a color value.
    """
    match = HEX.fullmatch(text)
    if match is None:
        shown = text if len(text) <= 20 else text[:20] + "..."
        raise InputError("color-not-hex", typed=shown)
    digits = match[1] if len(match[1]) == 6 else "".join(2 * digit for digit in match[1])
    return int(digits[0:2], 16), int(digits[2:4], 16), int(digits[4:6], 16)
