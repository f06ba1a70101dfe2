"""The PNG encoder against Pillow's reader, and its filters against the specification's own words."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from tilemix.pictures.png import BAND, PREDICTORS, choose_filter, encode_png, filter_rows


def make_noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def make_grain(side: int = 256) -> np.ndarray:
    """Slow color with a fine noise over it, for which the mean of two neighbors is a good guess."""
    y, x = np.mgrid[0:side, 0:side]
    slow = np.stack([x, y, (x + y) / 2], axis=-1) * 0.7
    return (slow + np.random.default_rng(3).normal(0, 4, slow.shape)).clip(0, 255).astype(np.uint8)


def make_edges(side: int = 256) -> np.ndarray:
    """Areas of plain color with straight edges, for which the nearest neighbor is a good guess."""
    tiles = np.random.default_rng(4).integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    return tiles.repeat(8, axis=0).repeat(8, axis=1)


def read_png(data: bytes) -> np.ndarray:
    with Image.open(BytesIO(data)) as picture:
        assert picture.mode == "RGB"
        return np.asarray(picture)


def predict_by_the_book(number: int, left: int, above: int, corner: int) -> int:
    """Section 9.2 and 9.4 of the specification, for one byte."""
    if number == 3:
        return (left + above) // 2
    estimate = left + above - corner
    distances = [abs(estimate - left), abs(estimate - above), abs(estimate - corner)]
    return (left, above, corner)[distances.index(min(distances))]


@pytest.mark.parametrize(
    "size", [(1, 1), (1, 50), (50, 1), (15, 7), (16, 16), (17, 33), (16 * BAND, 20), (32 * BAND + 17, 9)]
)
def test_every_pixel_comes_back(size):
    pixels = make_noise(*size)
    assert np.array_equal(read_png(encode_png(pixels)), pixels)


@pytest.mark.parametrize("make", [make_grain, make_edges])
def test_every_pixel_comes_back_with_either_filter(make):
    assert np.array_equal(read_png(encode_png(make())), make())


def test_pixels_that_lie_in_another_order_come_back_too():
    pixels = make_noise(40, 60)
    for view in (pixels[::-1, ::2], pixels.transpose(1, 0, 2), np.asfortranarray(pixels)):
        assert np.array_equal(read_png(encode_png(view)), view)


@pytest.mark.parametrize("number", PREDICTORS)
def test_a_filter_does_byte_by_byte_what_the_specification_says(number):
    pixels = make_noise(18, 9)
    # All bands come in one buffer.
    got = np.frombuffer(
        b"".join(bytes(band) for band in filter_rows(pixels, number, range(0, len(pixels), BAND))), np.uint8
    )
    got = got.reshape(18, 1 + 27)
    padded = np.zeros((19, 30), int)
    padded[1:, 3:] = pixels.reshape(18, 27)
    for row in range(18):
        assert got[row, 0] == number
        for place in range(27):
            left, above, corner = padded[row + 1, place], padded[row, place + 3], padded[row, place]
            guess = predict_by_the_book(number, left, above, corner)
            assert got[row, 1 + place] == (padded[row + 1, place + 3] - guess) % 256


def test_the_filter_follows_the_picture():
    assert choose_filter(make_grain())[0] == 3
    assert choose_filter(make_edges())[0] == 4


def test_the_chosen_filter_gives_the_smaller_file():
    for pixels in (make_grain(), make_edges()):
        sizes = {
            number: len(
                zlib.compress(
                    b"".join(
                        bytes(band) for band in filter_rows(pixels, number, range(0, len(pixels), BAND))
                    ),
                    wbits=15,
                )
            )
            for number in PREDICTORS
        }
        assert sizes[choose_filter(pixels)[0]] == min(sizes.values())


def test_a_picture_of_grain_is_as_small_as_pillows_own():
    buffer = BytesIO()
    Image.fromarray(make_grain()).save(buffer, "PNG")
    assert len(encode_png(make_grain())) <= 1.05 * len(buffer.getvalue())


def test_a_flat_picture_is_as_small_as_pillows_own():
    flat = np.full((512, 512, 3), 128, np.uint8)
    buffer = BytesIO()
    Image.fromarray(flat).save(buffer, "PNG")
    assert np.array_equal(read_png(encode_png(flat)), flat)
    assert len(encode_png(flat)) < 2 * len(buffer.getvalue())


def test_the_chunks_stand_in_their_order_with_their_checksums():
    data = encode_png(make_noise(3, 5), [(b"tEXt", b"a\0b"), (b"iTXt", b"")])
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    kinds, place = [], 8
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        body = data[place + 4 : place + 8 + length]
        assert struct.unpack_from(">I", data, place + 8 + length) == (zlib.crc32(body),)
        kinds.append(body[:4])
        place += 12 + length
    assert kinds == [b"IHDR", b"tEXt", b"iTXt", b"IDAT", b"IEND"]
