"""How granules of one color look, as a palette's file holds it; `appearance` measures, models and uses it."""

from __future__ import annotations

import msgspec

STEP = 4  # of lightness, between nodes
NODE_COUNT = 100 // STEP + 1


class Appearance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The distribution of one color, at lightness 0, 4, ..., 100."""

    weight: tuple[float, ...]  # how often the lightness shows; in sum 1
    a: tuple[float, ...]  # mean a* at that lightness
    b: tuple[float, ...]
    aa: tuple[float, ...]  # variance of a*
    bb: tuple[float, ...]
    ab: tuple[float, ...]  # covariance
