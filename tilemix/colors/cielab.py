"""Color math: sRGB values, CIELAB, and the difference delta E 2000.

Arrays in, arrays out, any leading shape; the last axis holds the three
channels. sRGB runs 0..255, CIELAB is relative to D65 (2 degree observer):
L* 0..100, a* and b* about -110..110.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]

# Linear sRGB to XYZ. Source: IEC 61966-2-1:1999 (sRGB), from its primaries and D65 white point.
RGB_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
XYZ_TO_RGB = np.linalg.inv(RGB_TO_XYZ)
# The white point is what the matrix makes of (1, 1, 1), so that gray has a* = b* = 0 exactly.
WHITE = RGB_TO_XYZ.sum(axis=1)

# Source: CIE 15:2004, section 8.2.1; the exact fractions, not the rounded 0.008856 and 903.3.
EPSILON = 216 / 24389
KAPPA = 24389 / 27


def format_hex(srgb: ArrayLike) -> str:
    """Return `#RRGGBB` of channels (3,), rounded and brought into 0..255."""
    red, green, blue = np.clip(np.rint(srgb), 0, 255).astype(int).tolist()
    return f"#{red:02X}{green:02X}{blue:02X}"


def srgb_to_lab(srgb: ArrayLike) -> Floats:
    """Convert sRGB (..., 3), 0..255 in integers or floats, to CIELAB (..., 3)."""
    values = np.asarray(srgb)
    linear = LEVELS[values] if values.dtype == np.uint8 else _to_linear(values)
    xyz = linear @ RGB_TO_XYZ.T / WHITE
    f = np.where(xyz > EPSILON, np.cbrt(xyz), (KAPPA * xyz + 16) / 116)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def _to_linear(srgb: ArrayLike) -> Floats:
    encoded = np.asarray(srgb, dtype=np.float64) / 255
    return np.where(encoded <= 0.04045, encoded / 12.92, ((np.maximum(encoded, 0) + 0.055) / 1.055) ** 2.4)


LEVELS = _to_linear(np.arange(256))  # a table is four times as fast as the powers


def lab_to_srgb(lab: ArrayLike) -> Floats:
    """Convert CIELAB (..., 3) to sRGB (..., 3).

    Not clipped: a color outside sRGB has channels below 0 or above 255.
    """
    values = np.asarray(lab, dtype=np.float64)
    y = (values[..., 0] + 16) / 116
    f = np.stack([y + values[..., 1] / 500, y, y - values[..., 2] / 200], axis=-1)
    xyz = np.where(f**3 > EPSILON, f**3, (116 * f - 16) / KAPPA) * WHITE
    linear = xyz @ XYZ_TO_RGB.T
    encoded = np.where(
        linear <= 0.0031308, linear * 12.92, 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055
    )
    return np.asarray(encoded * 255)


def delta_e_2000(lab1: ArrayLike, lab2: ArrayLike) -> Floats:
    """Return the color difference delta E 2000 of two CIELAB arrays (..., 3), broadcast against each other.

    About 1 is barely visible, 12 is another color. kL = kC = kH = 1.

    Source: Sharma, Wu and Dalal, "The CIEDE2000 Color-Difference Formula", Color Research
    and Application 30 (2005), equations 2 to 22.
    """
    first = np.asarray(lab1, dtype=np.float64)
    second = np.asarray(lab2, dtype=np.float64)
    l1, a1, b1 = first[..., 0], first[..., 1], first[..., 2]
    l2, a2, b2 = second[..., 0], second[..., 1], second[..., 2]

    mean_chroma = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    g = 0.5 * (1 - np.sqrt(mean_chroma**7 / (mean_chroma**7 + 25.0**7)))
    a1, a2 = (1 + g) * a1, (1 + g) * a2
    c1, c2 = np.hypot(a1, b1), np.hypot(a2, b2)
    h1 = np.degrees(np.arctan2(b1, a1)) % 360
    h2 = np.degrees(np.arctan2(b2, a2)) % 360
    is_gray = c1 * c2 == 0  # gray has no hue: then the difference is 0 and the mean is the sum

    turn = h2 - h1
    turn = np.where(turn > 180, turn - 360, np.where(turn < -180, turn + 360, turn))
    turn = np.where(is_gray, 0.0, turn)
    delta_l = l2 - l1
    delta_c = c2 - c1
    delta_h = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2))

    total = h1 + h2
    far_apart = np.abs(h1 - h2) > 180
    hue = np.where(far_apart, np.where(total < 360, total + 360, total - 360), total) / 2
    hue = np.where(is_gray, total, hue)
    lightness = (l1 + l2) / 2
    chroma = (c1 + c2) / 2

    t = (
        1
        - 0.17 * np.cos(np.radians(hue - 30))
        + 0.24 * np.cos(np.radians(2 * hue))
        + 0.32 * np.cos(np.radians(3 * hue + 6))
        - 0.20 * np.cos(np.radians(4 * hue - 63))
    )
    rotation_degrees = 30 * np.exp(-(((hue - 275) / 25) ** 2))
    rotation = -2 * np.sqrt(chroma**7 / (chroma**7 + 25.0**7)) * np.sin(np.radians(2 * rotation_degrees))
    scale_l = 1 + 0.015 * (lightness - 50) ** 2 / np.sqrt(20 + (lightness - 50) ** 2)
    scale_c = 1 + 0.045 * chroma
    scale_h = 1 + 0.015 * chroma * t
    l_term, c_term, h_term = delta_l / scale_l, delta_c / scale_c, delta_h / scale_h
    squared = l_term**2 + c_term**2 + h_term**2 + rotation * c_term * h_term
    return np.asarray(np.sqrt(np.maximum(squared, 0)))
