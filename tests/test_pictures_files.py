"""Pixels into files and back: exact where promised, whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import stat
from io import BytesIO
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import msgspec
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

from tilemix.errors import ImageFileError
from tilemix.pictures.files import FORMATS, encode_image, read_pixels, write_image
from tilemix.pictures.reading import read_record
from tilemix.pictures.record import Record, parameters_text

if TYPE_CHECKING:
    from pathlib import Path

RECORD = Record(
    prompt="50% красный, 50% black",
    sent_prompt="ohwx_rubber_tile <s0><s1>, 50% red, 50% black",
    sent_negative_prompt="blurry",
    mix={"red": 50.0, "black": 50.0},
    seed=0,
    width=64,
    height=48,
    num_inference_steps=25,
    guidance_scale=7.5,
    lora_scale=0.7,
    scheduler="dpm++_2m_karras",
    dtype="float32",
    device="cpu",
    threads=2,
    model="miniature",
    files={"unet/diffusion_pytorch_model.safetensors": "ab" * 32},
    versions={"tilemix": "0.1.0"},
)
PILLOW_NAMES = {"png": "PNG", "webp": "WEBP", "jpeg": "JPEG"}


def smooth_pixels() -> np.ndarray:
    y, x = np.mgrid[0:48, 0:64]
    return np.stack([4 * x, 5 * y, 255 - 2 * (x + y)], axis=-1).astype(np.uint8)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def open_bytes(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data))


@pytest.mark.parametrize("output_format", FORMATS)
def test_written_file_is_of_its_format_and_the_answer_is_its_size(tmp_path, output_format):
    path = tmp_path / "tile"
    size = write_image(path, smooth_pixels(), RECORD, output_format=output_format)
    assert size == path.stat().st_size
    with Image.open(path) as picture:
        assert (picture.format, picture.size, picture.mode) == (PILLOW_NAMES[output_format], (64, 48), "RGB")
    assert names_in(tmp_path) == ["tile"]


def test_png_keeps_every_pixel(tmp_path):
    noise = np.random.default_rng(1).integers(0, 256, (37, 61, 3), dtype=np.uint8)
    for pixels in (noise, smooth_pixels(), np.full((40, 40, 3), 7, np.uint8), noise[::2, ::3], noise[:1, :1]):
        write_image(tmp_path / "tile.png", pixels, RECORD, output_format="png")
        assert np.array_equal(read_pixels(tmp_path / "tile.png"), pixels)


def display_p3() -> bytes:
    """A profile as phones write it: Display P3's primaries with sRGB's curve."""
    profile = ImageCms.createProfile("sRGB")
    raw = bytearray(ImageCms.ImageCmsProfile(profile).tobytes())
    # The colorants of Display P3, adapted to D50 (Apple's published profile), as s15Fixed16Number.
    colorants = {
        b"rXYZ": (0.51512, 0.24120, -0.00105),
        b"gXYZ": (0.29198, 0.69225, 0.04189),
        b"bXYZ": (0.15710, 0.06657, 0.78407),
    }
    for place in range(int.from_bytes(raw[128:132], "big")):
        at = 132 + 12 * place
        name, start = bytes(raw[at : at + 4]), int.from_bytes(raw[at + 4 : at + 8], "big")
        if name in colorants:
            values = b"".join(
                round(value * 65536).to_bytes(4, "big", signed=True) for value in colorants[name]
            )
            raw[start + 8 : start + 20] = values
        if name == b"desc":
            end = start + int.from_bytes(raw[at + 8 : at + 12], "big")
            text = bytes(raw[start:end])
            raw[start:end] = text.replace("sRGB".encode("utf-16-be"), "dsP3".encode("utf-16-be")).replace(
                b"sRGB", b"dsP3"
            )
    return bytes(raw)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_pictures_profile_is_applied(tmp_path, mode):
    """A phone's green was read as it is stored, (61, 121, 54); the published matrices make it (32, 123, 43)."""
    stored = Image.new("RGB", (8, 8), (61, 121, 54)).convert(mode)
    stored.save(tmp_path / "a.png", icc_profile=display_p3())
    assert np.abs(read_pixels(tmp_path / "a.png").astype(int) - (32, 123, 43)).max() <= 1
    stored.save(
        tmp_path / "a.png", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    )
    assert (read_pixels(tmp_path / "a.png") == (61, 121, 54)).all()


def test_a_profile_that_cannot_be_used_costs_a_warning(tmp_path, caplog):
    Image.new("RGB", (8, 8), (61, 121, 54)).save(tmp_path / "a.png", icc_profile=b"no profile")
    assert (read_pixels(tmp_path / "a.png") == (61, 121, 54)).all()
    assert "its color profile cannot be used, so it counts as sRGB" in caplog.text


def test_a_16_bit_gray_is_scaled(tmp_path):
    """A gray of 61/255 was read as white."""
    grays = np.full((8, 8), 61 * 257, np.uint16)
    grays[0] = 65535
    Image.fromarray(grays).save(tmp_path / "a.png")
    pixels = read_pixels(tmp_path / "a.png")
    assert (pixels[0] == 255).all()
    assert (pixels[1:] == 61).all()


def test_a_picture_is_upright_and_on_white(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture = Image.new("LA", (4, 2), (10, 255))
    picture.putpixel((0, 0), (10, 0))
    picture.save(tmp_path / "a.png", exif=exif)
    pixels = read_pixels(tmp_path / "a.png")
    assert pixels.shape == (4, 2, 3)
    assert (pixels[0, 1] == 255).all()
    assert (pixels[1:] == 10).all()


@pytest.mark.parametrize("output_format", ["webp", "jpeg"])
def test_lossy_formats_stay_near_the_pixels(tmp_path, output_format):
    write_image(tmp_path / "tile", smooth_pixels(), RECORD, output_format=output_format)
    error = read_pixels(tmp_path / "tile").astype(int) - smooth_pixels()
    assert np.abs(error).mean() < 2.5


def test_jpeg_keeps_the_color_at_full_resolution():
    """Halved color (4:2:0) would bleed over the edges of the granules."""
    red_and_blue = np.zeros((32, 32, 3), np.uint8)
    red_and_blue[:, 0::2, 0] = 200
    red_and_blue[:, 1::2, 2] = 200
    with open_bytes(encode_image(red_and_blue, RECORD, output_format="jpeg")) as picture:
        assert {component[1:3] for component in picture.layer} == {(1, 1)}
        assert np.abs(np.asarray(picture).astype(int) - red_and_blue).mean() < 12


@pytest.mark.parametrize("output_format", FORMATS)
def test_same_pixels_and_record_give_the_same_bytes_and_another_record_does_not(output_format):
    pixels = smooth_pixels()
    first = encode_image(pixels, RECORD, output_format=output_format)
    assert encode_image(pixels.copy(), RECORD, output_format=output_format) == first
    other = msgspec.structs.replace(RECORD, seed=1)
    assert encode_image(pixels, other, output_format=output_format) != first


def test_one_flat_color_makes_a_small_png():
    flat = np.full((512, 512, 3), 26, np.uint8)
    assert len(encode_image(flat, RECORD, output_format="png")) < 8_000  # Huffman codes alone: 99 kB


def test_granular_png_is_no_larger_than_pillows_own():
    """The fast strategy must not cost size where it is meant to work."""
    grain = np.random.default_rng(2).normal(128, 12, (256, 256, 3)).clip(0, 255).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(grain).save(buffer, "PNG")
    assert len(encode_image(grain, RECORD, output_format="png")) < 1.02 * len(buffer.getvalue()) + 2_000


def test_png_carries_the_texts_before_its_pixels_where_web_uis_look():
    data = encode_image(smooth_pixels(), RECORD, output_format="png")
    with open_bytes(data) as picture:  # opened, not loaded: only what stands before the pixels is known
        assert picture.info["parameters"] == parameters_text(RECORD)
        assert '"prompt":"50% красный, 50% black"' in picture.info["tilemix"]


@pytest.mark.parametrize("output_format", ["webp", "jpeg"])
def test_exif_user_comment_is_the_parameters_text_in_big_endian_utf_16(output_format):
    with open_bytes(encode_image(smooth_pixels(), RECORD, output_format=output_format)) as picture:
        comment = picture.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]
    assert comment == b"UNICODE\0" + parameters_text(RECORD).encode("utf-16-be")


@pytest.mark.parametrize("output_format", FORMATS)
def test_every_file_says_that_it_was_generated(output_format):
    with open_bytes(encode_image(smooth_pixels(), RECORD, output_format=output_format)) as picture:
        root = ET.fromstring(picture.info["xmp"])  # noqa: S314  our own picture
    description = root.find(".//{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    assert description is not None
    assert description.attrib["{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"] == (
        "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    )


def test_written_file_is_readable_as_the_umask_says_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "tile.png"
    path.write_bytes(b"old")
    before = os.umask(0o027)
    try:
        write_image(path, smooth_pixels(), RECORD, output_format="png")
    finally:
        os.umask(before)
    assert read_record(path) == RECORD
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_ends_early_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, failing, error):
    path = tmp_path / "tile.png"
    path.write_bytes(b"old")

    def fail(*_args):
        raise error

    monkeypatch.setattr(os, failing, fail)
    expected = ImageFileError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        write_image(path, smooth_pixels(), RECORD, output_format="png")
    if isinstance(error, OSError):
        assert str(caught.value) == f"{path}: cannot be written: No space left on device"
    assert path.read_bytes() == b"old"
    assert names_in(tmp_path) == ["tile.png"]


def test_the_file_is_synced_before_it_gets_its_name_and_the_folder_after(tmp_path, monkeypatch):
    path = tmp_path / "tile.png"
    seen = []
    fsync = os.fsync

    def watch(descriptor):
        seen.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), path.exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watch)
    write_image(path, smooth_pixels(), RECORD, output_format="png")
    assert seen == [(False, False), (True, True)]


def test_a_name_at_the_file_systems_limit_is_still_written(tmp_path):
    path = tmp_path / ("x" * 255)
    write_image(path, smooth_pixels(), RECORD, output_format="png")
    assert read_record(path) == RECORD


@pytest.mark.parametrize(
    ("pixels", "shown"),
    [
        (np.zeros((4, 4), np.uint8), "uint8 (4, 4)"),
        (np.zeros((4, 4, 4), np.uint8), "uint8 (4, 4, 4)"),
        (np.zeros((0, 4, 3), np.uint8), "uint8 (0, 4, 3)"),
        (np.zeros((4, 4, 3), np.float32), "float32 (4, 4, 3)"),
    ],
)
def test_pixels_that_are_none_are_refused(tmp_path, pixels, shown):
    message = f"pixels {shown}; expected uint8 (height, width, 3)"
    with pytest.raises(ImageFileError, match=f"^{re.escape(message)}$"):
        write_image(tmp_path / "x.png", pixels, RECORD, output_format="png")
    assert names_in(tmp_path) == []


def test_unknown_format_and_missing_folder_are_refused(tmp_path):
    with pytest.raises(ImageFileError, match=r"^unknown image format 'gif'; known: png, webp, jpeg$"):
        write_image(tmp_path / "x.gif", smooth_pixels(), RECORD, output_format="gif")
    with pytest.raises(ImageFileError, match=r"no/x.png: cannot be written: No such file"):
        write_image(tmp_path / "no" / "x.png", smooth_pixels(), RECORD, output_format="png")


@pytest.mark.parametrize("output_format", FORMATS)
def test_record_with_a_lone_surrogate_is_refused_by_every_format(tmp_path, output_format):
    record = msgspec.structs.replace(RECORD, prompt="\ud83d")
    with pytest.raises(ImageFileError, match=r"^the record cannot be written: a lone surrogate in its text"):
        write_image(tmp_path / "x", smooth_pixels(), record, output_format=output_format)


def test_record_too_long_for_a_jpeg_segment_is_refused_not_cut():
    record = msgspec.structs.replace(RECORD, prompt="x" * 70_000)
    with pytest.raises(ImageFileError, match=r"^the jpeg file cannot be made: XMP data is too long$"):
        encode_image(smooth_pixels(), record, output_format="jpeg")


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_pictures_of_other_color_modes_are_read_as_rgb(tmp_path, mode):
    path = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    Image.new("RGB", (5, 4), (204, 204, 204)).convert(mode).save(path)
    pixels = read_pixels(path)
    assert (pixels.shape, pixels.dtype) == ((4, 5, 3), np.uint8)
    assert np.abs(pixels.astype(int) - 204).max() <= 2
