"""Color math against published values."""

import io

import numpy as np
import pytest

from tilemix.colors.cielab import delta_e_2000, lab_to_srgb, srgb_to_lab
from tilemix.colors.hex import parse_hex
from tilemix.errors import InputError

# Sharma, Wu and Dalal 2005, table 1: L1 a1 b1, L2 a2 b2, delta E 2000.
SHARMA = np.loadtxt(
    io.StringIO("""
    50.0000   2.6772 -79.7751 50.0000   0.0000 -82.7485  2.0425
    50.0000   3.1571 -77.2803 50.0000   0.0000 -82.7485  2.8615
    50.0000   2.8361 -74.0200 50.0000   0.0000 -82.7485  3.4412
    50.0000  -1.3802 -84.2814 50.0000   0.0000 -82.7485  1.0000
    50.0000  -1.1848 -84.8006 50.0000   0.0000 -82.7485  1.0000
    50.0000  -0.9009 -85.5211 50.0000   0.0000 -82.7485  1.0000
    50.0000   0.0000   0.0000 50.0000  -1.0000   2.0000  2.3669
    50.0000  -1.0000   2.0000 50.0000   0.0000   0.0000  2.3669
    50.0000   2.4900  -0.0010 50.0000  -2.4900   0.0009  7.1792
    50.0000   2.4900  -0.0010 50.0000  -2.4900   0.0010  7.1792
    50.0000   2.4900  -0.0010 50.0000  -2.4900   0.0011  7.2195
    50.0000   2.4900  -0.0010 50.0000  -2.4900   0.0012  7.2195
    50.0000  -0.0010   2.4900 50.0000   0.0009  -2.4900  4.8045
    50.0000  -0.0010   2.4900 50.0000   0.0010  -2.4900  4.8045
    50.0000  -0.0010   2.4900 50.0000   0.0011  -2.4900  4.7461
    50.0000   2.5000   0.0000 50.0000   0.0000  -2.5000  4.3065
    50.0000   2.5000   0.0000 73.0000  25.0000 -18.0000 27.1492
    50.0000   2.5000   0.0000 61.0000  -5.0000  29.0000 22.8977
    50.0000   2.5000   0.0000 56.0000 -27.0000  -3.0000 31.9030
    50.0000   2.5000   0.0000 58.0000  24.0000  15.0000 19.4535
    50.0000   2.5000   0.0000 50.0000   3.1736   0.5854  1.0000
    50.0000   2.5000   0.0000 50.0000   3.2972   0.0000  1.0000
    50.0000   2.5000   0.0000 50.0000   1.8634   0.5757  1.0000
    50.0000   2.5000   0.0000 50.0000   3.2592   0.3350  1.0000
    60.2574 -34.0099  36.2677 60.4626 -34.1751  39.4387  1.2644
    63.0109 -31.0961  -5.8663 62.8187 -29.7946  -4.0864  1.2630
    61.2901   3.7196  -5.3901 61.4292   2.2480  -4.9620  1.8731
    35.0831 -44.1164   3.7933 35.0232 -40.0716   1.5901  1.8645
    22.7233  20.0904 -46.6940 23.0331  14.9730 -42.5619  2.0373
    36.4612  47.8580  18.3852 36.2715  50.5065  21.2231  1.4146
    90.8027  -2.0831   1.4410 91.1528  -1.6435   0.0447  1.4441
    90.9257  -0.5406  -0.9208 88.6381  -0.8985  -0.7239  1.5381
     6.7747  -0.2908  -2.4247  5.8714  -0.0985  -2.2286  0.6377
     2.0776   0.0795  -1.1350  0.9033  -0.0636  -0.5514  0.9082
    """)
)


def test_delta_e_2000_gives_the_published_values():
    found = delta_e_2000(SHARMA[:, :3], SHARMA[:, 3:6])
    np.testing.assert_allclose(found, SHARMA[:, 6], atol=5e-5)


def test_delta_e_2000_does_not_depend_on_the_order():
    found = delta_e_2000(SHARMA[:, 3:6], SHARMA[:, :3])
    np.testing.assert_allclose(found, SHARMA[:, 6], atol=5e-5)


def test_delta_e_2000_broadcasts():
    found = delta_e_2000(SHARMA[:, None, :3], SHARMA[None, :, 3:6])
    assert found.shape == (34, 34)
    np.testing.assert_allclose(np.diagonal(found), SHARMA[:, 6], atol=5e-5)


@pytest.mark.parametrize(
    ("srgb", "lab"),
    [
        ((255, 255, 255), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((119, 119, 119), (50.03, 0, 0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 255, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
        ((1, 1, 1), (0.2742, 0, 0)),  # the linear toe of both curves
    ],
)
def test_srgb_to_lab_gives_the_known_values(srgb, lab):
    np.testing.assert_allclose(srgb_to_lab(srgb), lab, atol=0.01)


def test_every_gray_has_no_hue():
    grays = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    assert np.abs(srgb_to_lab(grays)[:, 1:]).max() < 1e-10


def test_lab_to_srgb_undoes_srgb_to_lab():
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1)
    np.testing.assert_allclose(lab_to_srgb(srgb_to_lab(cube)), cube, atol=0.01)


def test_lab_to_srgb_does_not_clip_what_srgb_cannot_show():
    too_green = lab_to_srgb([80.0, -120.0, 80.0])
    assert too_green[0] < 0
    assert lab_to_srgb([110.0, 0.0, 0.0]).min() > 255


@pytest.mark.parametrize("text", ["#AA3F27", "aa3f27", "#aa3F27"])
def test_parse_hex_reads_six_digits(text):
    assert parse_hex(text) == (0xAA, 0x3F, 0x27)


def test_parse_hex_reads_the_short_form():
    assert parse_hex("#a32") == (0xAA, 0x33, 0x22)


@pytest.mark.parametrize(
    "text", ["", "#", "#aa3f2", "#aa3f277", "##aa3f27", "#aa3g27", "#aa3f27\n", " #aa3f27"]
)
def test_parse_hex_refuses_anything_else(text):
    with pytest.raises(InputError) as caught:
        parse_hex(text)
    assert str(caught.value) == f"color value {text!r}: expected '#' and three or six hexadecimal digits"


def test_parse_hex_shows_the_beginning_of_long_text_only():
    with pytest.raises(InputError, match=r"^color value '#{20}\.\.\.': expected"):
        parse_hex("#" * 10**6)
