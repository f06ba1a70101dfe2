"""uint8 pixels -> the bytes of a PNG file, fast where the picture is granules and noise.

A PNG encoder spends its time in the search for repeats, which a photograph of granules does not have, and
in trying all filters on every row. So here one filter is chosen for the whole picture, from a sample of its
rows, and what the filter leaves is coded by frequency alone (zlib's Huffman strategy), a part of the rows a core.

Source: PNG, third edition, https://www.w3.org/TR/png-3/, sections 5 (chunks) and 9 (filters).
"""

from __future__ import annotations

import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
RGB_8_BIT = (8, 2, 0, 0, 0)  # bit depth, color type, compression, filter method, no interlace
PIXEL = 3  # bytes
BAND = 16  # rows filtered at a time: all that is in between stays in the processor's cache
SAMPLED = 8  # one band in so many is looked at to choose the filter
PART = 16 * BAND  # rows that one thread packs on its own; no number of cores changes them, and so the bytes
FLAT = 2.0  # bits a byte, below which repeats are worth their search: such a picture packs in no time
ZLIB_HEADER = b"\x78\x01"  # deflate with a window of 32 KiB, the fastest level
ADLER = 65521


def encode_png(pixels: Bytes, chunks: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
    """Return `pixels` (h, w, 3), sRGB, as a PNG file with `chunks`, (type, data), before its pixels.

    The bytes are the same on any number of cores.
    """
    height, width, _ = pixels.shape
    file = [SIGNATURE, *_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, *RGB_8_BIT))]
    for kind, data in chunks:
        file += _chunk(kind, data)
    file += _chunk(b"IDAT", _deflate(pixels))
    return b"".join([*file, *_chunk(b"IEND", b"")])


def _deflate(pixels: Bytes) -> bytes:
    """Return the filtered pixels as a zlib stream, its parts packed by as many threads as there are cores.

    Source: RFC 1950, sections 2.2 and 8.2 (header, Adler-32); RFC 1951: an empty stored block, which is what a
    flush leaves, ends on a whole byte, and so the parts are joined as they are.
    """
    number, bits = choose_filter(pixels)
    level, strategy = (1, zlib.Z_HUFFMAN_ONLY) if bits > FLAT else (6, zlib.Z_DEFAULT_STRATEGY)
    starts = range(0, len(pixels), PART)

    def pack(start: int) -> tuple[bytes, int, int]:
        packer = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy)
        packed, checksum, count = [], 1, 0
        for rows in filter_rows(pixels, number, range(start, min(start + PART, len(pixels)), BAND)):
            packed.append(packer.compress(rows))
            checksum = zlib.adler32(rows, checksum)
            count += rows.nbytes
        packed.append(packer.flush(zlib.Z_FINISH if start == starts[-1] else zlib.Z_SYNC_FLUSH))
        return b"".join(packed), checksum, count

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        parts = list(pool.map(pack, starts))
    low, high = 1, 0
    for _, checksum, count in parts:
        high = (high + (checksum >> 16) + count * (low - 1)) % ADLER
        low = (low + (checksum & 0xFFFF) - 1) % ADLER
    return b"".join([ZLIB_HEADER, *(packed for packed, _, _ in parts), struct.pack(">HH", high, low)])


def choose_filter(pixels: Bytes) -> tuple[int, float]:
    """Return the number of the filter that leaves the fewest bits in a sample of the rows, and the bits a byte."""
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
    # (left + above) // 2 without a ninth bit: half of where they differ and all that they share.
    half = left ^ above
    half >>= 1
    half += left & above
    return half


def _predict_paeth(left: Bytes, above: Bytes, corner: Bytes) -> Bytes:
    """Return whichever of the three is nearest to left + above - corner, the first of equals."""
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
    """Return np.where(condition, chosen, other), by masks: a third of its time."""
    mask = np.negative(condition.view(np.uint8))  # 255 or 0
    mask &= chosen ^ other
    mask ^= other
    return mask


PREDICTORS: Mapping[int, Callable[[Bytes, Bytes, Bytes], Bytes]] = {3: _predict_average, 4: _predict_paeth}


def _count_bits(bands: Iterable[memoryview]) -> float:
    """Return the bits a byte that the best code by frequency takes: the entropy of the bytes."""
    counts = np.zeros(256, np.intp)
    for band in bands:
        counts += np.bincount(np.frombuffer(band, np.uint8), minlength=256)
    frequencies = counts[counts > 0] / counts.sum()
    return float(-(frequencies * np.log2(frequencies)).sum())


def _chunk(kind: bytes, data: bytes) -> tuple[bytes, bytes, bytes]:
    return struct.pack(">I", len(data)) + kind, data, struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
