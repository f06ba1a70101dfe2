"""uint8 pixels -> the bytes of a PNG file, fast where the picture is granules and noise.

A PNG encoder spends its time in the search for repeats, which a photograph of granules does not have, and
in trying all filters on every row. So one filter is chosen for the whole picture, from a sample of its rows.
The filtered rows are packed by ISA-L's deflate with a window of 512 bytes, in which it finds hardly any repeats
and so spends its time on Huffman codes alone: a quarter of the time of zlib's Huffman strategy, and the file is
as small.

Source: PNG, third edition, https://www.w3.org/TR/png-3/, sections 5 (chunks) and 9 (filters).
"""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np
from isal import isal_zlib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
RGB_8_BIT = (8, 2, 0, 0, 0)  # bit depth, color type, compression, filter method, no interlace
PIXEL = 3  # bytes
BAND = 16  # rows filtered at a time, so that intermediate results stay in the processor's cache
SAMPLED = 16  # the filter is chosen from one band in 16
FASTEST = 1  # of ISA-L's levels
WINDOW_BITS = 9  # 512 bytes
FLAT = 2.0  # bits per byte; below it zlib's search for repeats is worth its time, which is short then


def encode_png(pixels: Bytes, chunks: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
    """Return `pixels` (h, w, 3), sRGB, as a PNG file with `chunks`, (type, data), before its pixels."""
    height, width, _ = pixels.shape
    file = [SIGNATURE, *_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, *RGB_8_BIT))]
    for kind, data in chunks:
        file += _chunk(kind, data)
    file += _chunk(b"IDAT", _deflate(pixels))
    return b"".join([*file, *_chunk(b"IEND", b"")])


def _deflate(pixels: Bytes) -> bytes:
    """Return the filtered pixels as a zlib stream."""
    number, bits = choose_filter(pixels)
    is_flat = bits <= FLAT
    packer = zlib.compressobj() if is_flat else isal_zlib.compressobj(FASTEST, zlib.DEFLATED, WINDOW_BITS)
    packed = [packer.compress(rows) for rows in filter_rows(pixels, number, range(0, len(pixels), BAND))]
    return b"".join([*packed, packer.flush()])


def choose_filter(pixels: Bytes) -> tuple[int, float]:
    """Return the number of the filter that leaves the fewest bits in a sample of the rows, and its bits per byte."""
    sample = range(0, len(pixels), BAND * SAMPLED)
    bits = {number: _count_bits(filter_rows(pixels, number, sample)) for number in PREDICTORS}
    number = min(bits, key=bits.__getitem__)
    return number, bits[number]


def filter_rows(pixels: Bytes, number: int, starts: Iterable[int]) -> Iterator[memoryview]:
    """Yield the filtered rows, each after its filter's number, a band at a time in one buffer.

    Args:
        pixels: (h, w, 3).
        number: the filter, 3 (Average) or 4 (Paeth).
        starts: the first rows of the bands.
    """
    height, width, _ = pixels.shape
    rows = pixels.reshape(height, width * PIXEL)
    # What stands left of the first pixel and above the first row counts as 0.
    padded = np.zeros((BAND + 1, (width + 1) * PIXEL), np.uint8)
    filtered = np.full((BAND, 1 + width * PIXEL), number, np.uint8)
    for start in starts:
        count = min(BAND, height - start)
        padded[0, PIXEL:] = rows[start - 1] if start else 0
        padded[1 : count + 1, PIXEL:] = rows[start : start + count]
        left, above = padded[1 : count + 1, :-PIXEL], padded[:count, PIXEL:]
        predicted = PREDICTORS[number](left, above, padded[:count, :-PIXEL])
        np.subtract(rows[start : start + count], predicted, out=filtered[:count, 1:])
        yield filtered[:count].data


def _predict_average(left: Bytes, above: Bytes, _: Bytes) -> Bytes:
    # (left + above) // 2 without a ninth bit: half of the bits that differ plus the bits in common.
    half = left ^ above
    half >>= 1
    half += left & above
    return half


def _predict_paeth(left: Bytes, above: Bytes, corner: Bytes) -> Bytes:
    """Return whichever of the three is nearest to left + above - corner, the first in a tie."""
    wide = corner.astype(np.int16)
    from_left, from_above = above.astype(np.int16), left.astype(np.int16)
    from_left -= wide  # how far the estimate is from each
    from_above -= wide
    from_corner = np.abs(from_left + from_above)
    np.abs(from_left, out=from_left)
    np.abs(from_above, out=from_above)
    is_above = from_above <= from_corner
    np.minimum(from_above, from_corner, out=from_above)
    return _select(from_left <= from_above, left, _select(is_above, above, corner))


def _select(condition: NDArray[np.bool_], chosen: Bytes, other: Bytes) -> Bytes:
    """Return np.where(condition, chosen, other), with masks: a third of its time."""
    mask = np.negative(condition.view(np.uint8))  # 255 or 0
    mask &= chosen ^ other
    mask ^= other
    return mask


PREDICTORS: Mapping[int, Callable[[Bytes, Bytes, Bytes], Bytes]] = {3: _predict_average, 4: _predict_paeth}


def _count_bits(bands: Iterable[memoryview]) -> float:
    """Return the entropy of the bytes, in bits per byte."""
    counts = np.zeros(256, np.intp)
    for band in bands:
        counts += np.bincount(np.frombuffer(band, np.uint8), minlength=256)
    frequencies = counts[counts > 0] / counts.sum()
    return float(-(frequencies * np.log2(frequencies)).sum())


def _chunk(kind: bytes, data: bytes) -> tuple[bytes, bytes, bytes]:
    return (
        struct.pack(">I", len(data)) + kind,
        data,
        struct.pack(">I", isal_zlib.crc32(data, isal_zlib.crc32(kind))),
    )
