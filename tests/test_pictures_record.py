"""What a picture says about itself: the JSON record and the web UIs' text, in and out of files."""

from __future__ import annotations

import json
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tilemix.errors import ImageFileError
from tilemix.pictures.files import FORMATS, encode_image, write_image
from tilemix.pictures.infotext import Infotext
from tilemix.pictures.reading import read_origin, read_record
from tilemix.pictures.record import MAX_RECORD_BYTES, DraftRecord, Record, VariationRecord, parameters_text

UNET = "0123456789abcdef" * 4
LORA = "fedcba9876543210" * 4
AUTOV3 = "a1b2c3d4e5f6"


def make_record(**changes) -> Record:
    values = {
        "prompt": "50% красный, 30% black, 20% pearl",
        "sent_prompt": "ohwx_rubber_tile <s0><s1>, 50% red, 30% black, 20% pearl, photorealistic rubber tile",
        "sent_negative_prompt": "blurry, low quality",
        "mix": {"red": 50.0, "black": 30.0, "pearl": 20.0},
        "seed": 4294967295,
        "width": 1024,
        "height": 768,
        "num_inference_steps": 25,
        "guidance_scale": 7.5,
        "lora_scale": 0.7,
        "scheduler": "dpm++_2m_karras",
        "dtype": "float32",
        "device": "cpu",
        "threads": 2,
        "model": "rubber-tile",
        "lora_hashes": {"rubber-tile-lora-v4_sdxl_lora.safetensors": AUTOV3},
        "embedding_hashes": {"rubber-tile-lora-v4_sdxl_embeddings.safetensors": UNET[:12]},
        "files": {
            "unet/diffusion_pytorch_model.fp16.safetensors": UNET,
            "vae/diffusion_pytorch_model.safetensors": None,
            "rubber-tile-lora-v4_sdxl_lora.safetensors": LORA,
            "rubber-tile-lora-v4_sdxl_embeddings.safetensors": UNET,
        },
        "versions": {"tilemix": "0.1.0", "torch": "2.13.0"},
    }
    return Record(**(values | changes))


PIXELS = np.random.default_rng(3).integers(0, 256, (16, 24, 3), dtype=np.uint8)


def web_ui_reading(text: str) -> tuple[str, str, dict[str, str]]:
    """What a web UI understands: its documented rules, written down once more for these tests."""
    *lines, last = text.strip().split("\n")
    pairs = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', last)
    if len(pairs) < 3:
        lines.append(last)
        pairs = []
    parts: list[list[str]] = [[], []]
    part = 0
    for line in lines:
        stripped = line.strip()
        if stripped.startswith("Negative prompt:"):
            part = 1
            stripped = stripped.removeprefix("Negative prompt:").strip()
        parts[part].append(stripped)
    parameters = {key: json.loads(value) if value.startswith('"') else value for key, value in pairs}
    return "\n".join(parts[0]), "\n".join(parts[1]), parameters


def test_parameters_text_is_the_web_uis_notation_to_the_letter():
    assert parameters_text(make_record()) == (
        "ohwx_rubber_tile <s0><s1>, 50% red, 30% black, 20% pearl, photorealistic rubber tile\n"
        "Negative prompt: blurry, low quality\n"
        "Steps: 25, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 4294967295,"
        " Size: 1024x768, Model hash: 0123456789, Model: rubber-tile,"
        ' Lora hashes: "rubber-tile-lora-v4_sdxl_lora: a1b2c3d4e5f6",'
        ' TI hashes: "rubber-tile-lora-v4_sdxl_embeddings: 0123456789ab",'
        " Lora scale: 0.7, Version: tilemix 0.1.0"
    )


def test_parameters_stand_in_the_web_uis_order():
    record = make_record(
        variation=VariationRecord(seed=9, strength=0.25),
        draft=DraftRecord(strength=0.5, granule_size="small", colors={}),
        clip_skip=3,
        named_loras={"a/wet: shine, v2.safetensors": (0.5, 0.5), "pair.safetensors": (0.1, -1.0)},
        lora_hashes={"a/wet: shine, v2.safetensors": AUTOV3, "pair.safetensors": AUTOV3},
    )
    prompt, _, parameters = parameters_text(record).split("\n")
    assert prompt == f"{record.sent_prompt} <lora:wet shine v2:0.5> <lora:pair:0.1:-1>"
    assert parameters == (
        "Steps: 25, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.5, Seed: 4294967295, Size: 1024x768,"
        " Model hash: 0123456789, Model: rubber-tile, Variation seed: 9, Variation seed strength: 0.25,"
        " Denoising strength: 0.5, Clip skip: 3,"
        f' Lora hashes: "wet shine v2: {AUTOV3}, pair: {AUTOV3}",'
        ' TI hashes: "rubber-tile-lora-v4_sdxl_embeddings: 0123456789ab",'
        " Lora scale: 0.7, Granule size: small, Version: tilemix 0.1.0"
    )


def test_parameters_text_leaves_out_what_is_not_known():
    record = make_record(
        sent_negative_prompt="",
        lora_scale=None,
        lora_hashes={},
        embedding_hashes={},
        files={},
        versions={},
        guidance_scale=3.0,
        scheduler="ddim",
    )
    assert parameters_text(record).split("\n")[1:] == [
        "Steps: 25, Sampler: DDIM, Schedule type: DDIM, CFG scale: 3, Seed: 4294967295, Size: 1024x768,"
        " Model: rubber-tile"
    ]


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        ("euler_a", "Sampler: Euler a, Schedule type: Uniform, CFG scale"),
        ("dpm++_2m_sde_karras", "Sampler: DPM++ 2M SDE, Schedule type: Karras, CFG scale"),
        ("my_own", "Sampler: my_own, CFG scale"),
        ("odd, name: 1", 'Sampler: "odd, name: 1", CFG scale'),
    ],
)
def test_scheduler_is_written_as_the_web_uis_name_it_and_an_unknown_one_as_it_is(scheduler, expected):
    assert expected in parameters_text(make_record(scheduler=scheduler))


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("red tile", None),
        ("a: 1, b: 2, c: 3", None),
        ('"quoted": 1, size: "2", c: {"d": 3}', None),
        ("red tile\nSteps: 3, foo: 4, bar: 5", "red tile\nsteps: 3, foo: 4, bar: 5"),
        ("Steps: 3, Sampler: x, Seed: 7, Size: 8x8", "steps: 3, Sampler: x, Seed: 7, Size: 8x8"),
        ("red\nNegative prompt: blue", "red\nnegative prompt: blue"),
        ("Negative prompt: blue\nNegative prompt:", "negative prompt: blue\nnegative prompt:"),
        ("  red \r\n\r\n tile\u2028wet ", "red\n\ntile\nwet"),
    ],
)
def test_web_ui_gets_prompt_and_parameters_back_whatever_the_prompt_holds(prompt, expected):
    record = make_record(sent_prompt=prompt, sent_negative_prompt=prompt)
    positive, negative, parameters = web_ui_reading(parameters_text(record))
    assert positive == negative == (expected or prompt)
    assert (parameters["Steps"], parameters["Seed"], parameters["Size"]) == ("25", "4294967295", "1024x768")


def test_model_hash_is_left_out_when_the_unet_is_in_several_files():
    files = {"unet/a-00001-of-00002.safetensors": UNET, "unet/a-00002-of-00002.safetensors": LORA}
    assert "Model hash" not in parameters_text(make_record(files=files))


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize(
    "text",
    [
        "50% red",
        'a "b" \\ <c> & ]]> &amp; %s ${x} {0}',
        "红色 50%, чёрный\n\tжемчуг \u0085\u2028\uffff\ufffe\x7f",
        "\U0001f9f1" * 3,
    ],
)
def test_record_comes_back_as_it_was_written(tmp_path, output_format, text):
    record = make_record(prompt=text, sent_prompt=text, sent_negative_prompt=text, mix={text: 100.0})
    path = tmp_path / "tile"
    write_image(path, PIXELS, record, output_format=output_format)
    assert read_record(path) == record


@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.parametrize("character", ["&", "\U0001f9f1", "\uffff"])
def test_the_longest_prompts_of_any_characters_fit_into_every_format(tmp_path, output_format, character):
    """Each is the worst for one place: XML, UTF-16, JSON. A mix may repeat the prompt once more."""
    text = character * 2000
    record = make_record(
        prompt=text,
        sent_prompt=f"ohwx_rubber_tile <s0><s1>, {text}, photorealistic rubber tile, high quality",
        sent_negative_prompt=text,
        mix={text: 100.0},
        files={f"text_encoder_2/model-{i:05}-of-00020.fp16.safetensors": UNET for i in range(20)},
    )
    path = tmp_path / "tile"
    write_image(path, PIXELS, record, output_format=output_format)
    assert read_record(path) == record


def test_record_of_a_later_version_with_more_in_it_is_still_read(tmp_path):
    path = tmp_path / "tile.png"
    write_png(path, tilemix=json.dumps(json.loads(record_chunk()) | {"novelty": 1}))
    assert read_record(path) == make_record()


def test_record_survives_a_program_that_writes_the_xmp_property_as_an_attribute(tmp_path):
    path = tmp_path / "tile.webp"
    value = record_chunk().replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    xmp = f'<r xmlns:t="urn:tilemix:1.0/"><d t:record="{value}"/></r>'
    Image.fromarray(PIXELS).save(path, "WEBP", xmp=xmp.encode())
    assert read_record(path) == make_record()


def record_chunk() -> str:
    """Return the JSON exactly as a PNG carries it."""
    from io import BytesIO

    with Image.open(BytesIO(encode_image(PIXELS, make_record(), output_format="png"))) as picture:
        return str(picture.info["tilemix"])


def write_png(path, **texts: str) -> None:
    chunks = PngInfo()
    for key, text in texts.items():
        chunks.add_text(key, text)
    Image.fromarray(PIXELS).save(path, "PNG", pnginfo=chunks)


def png_of_size(width: int, height: int) -> bytes:
    """Return a PNG whose header claims a size that its few pixels do not have."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(64))),
        (b"IEND", b""),
    ]
    packed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a picture; expected a PNG, WebP or JPEG file"),
        (b"hello" * 100, "not a picture; expected a PNG, WebP or JPEG file"),
        (b"GIF89a\x01\x00\x01\x00\x00\x00\x00;", "not a picture; expected a PNG, WebP or JPEG file"),
        (png_of_size(6400, 6251), "6400x6251 pixels; expected at most 40,000,000 in all"),
        (png_of_size(9400, 9600), "too many pixels; expected at most 40,000,000 in all"),
        (png_of_size(40000, 40000), "too many pixels; expected at most 40,000,000 in all"),
    ],
)
def test_file_that_is_no_usable_picture_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(ImageFileError, match=f"^{re.escape(f'{path}: {message}')}$"):
        read_record(path)


def test_missing_file_folder_and_oversized_file_are_refused(tmp_path):
    with pytest.raises(ImageFileError, match=r"no.png: cannot be read: .*No such file"):
        read_record(tmp_path / "no.png")
    with pytest.raises(ImageFileError, match=f"^{re.escape(str(tmp_path))}: not a file$"):
        read_record(tmp_path)
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(64 * 2**20 + 1)
    with pytest.raises(ImageFileError, match=r"large.png: 67,108,865 bytes; expected at most 67,108,864$"):
        read_record(large)


@pytest.mark.parametrize("output_format", FORMATS)
def test_file_cut_off_anywhere_is_refused(tmp_path, output_format):
    data = encode_image(PIXELS, make_record(), output_format=output_format)
    path = tmp_path / "tile"
    for length in range(
        0, len(data) - 4, 37
    ):  # of a PNG's last four bytes, a checksum of nothing, nobody asks
        path.write_bytes(data[:length])
        with pytest.raises(ImageFileError):
            read_record(path)


@pytest.mark.filterwarnings(
    "ignore:(Tag data larger|Corrupt EXIF data|Possibly corrupt EXIF|Truncated File|Metadata Warning|Invalid APNG).*"
)  # Pillow's, in production too
@pytest.mark.parametrize("output_format", FORMATS)
@pytest.mark.slow
def test_damaged_file_gives_a_record_or_our_error_and_nothing_else(tmp_path, output_format):
    data = encode_image(PIXELS, make_record(), output_format=output_format)
    random = np.random.default_rng(11)
    path = tmp_path / "tile"
    refused = []
    for _ in range(300):
        damaged = bytearray(data)
        for place in random.integers(0, len(data), 4):
            damaged[place] = random.integers(0, 256)
        path.write_bytes(damaged)
        try:
            assert isinstance(read_origin(path), Record | Infotext)
        except ImageFileError as error:
            refused.append(str(error))
    assert len(refused) > 30
    assert all("\n" not in message for message in refused)


def test_picture_without_a_record_is_refused_by_its_format(tmp_path):
    for name, shown in [("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.webp", "WEBP")]:
        Image.fromarray(PIXELS).save(tmp_path / name)
        message = (
            f"{name}: no tilemix record in this {shown} file: it may be a draft, "
            "a sheet or another program's, or have lost its record$"
        )
        with pytest.raises(ImageFileError, match=message):
            read_record(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "its tilemix record is broken: Input data was truncated$"),
        ('{"novelty": ' + "[" * 100_000, "its tilemix record is broken: .*recursion"),
        ("{}", "its tilemix record is broken: Object missing required field `prompt`$"),
        ("[]", "its tilemix record is broken: Expected `object`, got `array`$"),
        (" " * (MAX_RECORD_BYTES + 1), "its record has 262145 bytes; expected at most 262144$"),
    ],
)
def test_broken_record_is_refused_with_the_reason(tmp_path, text, message):
    path = tmp_path / "tile.png"
    write_png(path, tilemix=text)
    with pytest.raises(ImageFileError, match=f"tile.png: {message}"):
        read_record(path)


def test_xmp_with_a_document_type_is_not_even_parsed(tmp_path):
    path = tmp_path / "tile.webp"
    Image.fromarray(PIXELS).save(path, "WEBP", xmp=b'<!DOCTYPE r [<!ENTITY a "aaaa">]><r>&a;</r>')
    with pytest.raises(ImageFileError, match=r"tile.webp: its XMP packet is not one of tilemix$"):
        read_record(path)
    Image.fromarray(PIXELS).save(path, "WEBP", xmp=b"<r>")
    with pytest.raises(ImageFileError, match=r"tile.webp: its XMP packet is broken: no element found"):
        read_record(path)


def test_a_checkpoint_in_one_file_and_its_hypernetworks_are_named():
    lora, sidecar = "rubber-tile-lora-v4_sdxl_lora.safetensors", "final.yaml"
    files = {"final.safetensors": UNET, sidecar: LORA, "final.vae.safetensors": LORA, lora: LORA}
    text = parameters_text(make_record(files=files, hypernetworks=[("webui/ink.safetensors", 0.6)]))
    assert f"Model hash: {UNET[:10]}, " in text
    assert "photorealistic rubber tile <hypernet:ink:0.6>\n" in text
