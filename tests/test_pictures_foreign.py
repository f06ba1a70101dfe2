"""Other programs' pictures, crafted by what is known of their layouts, and the infotext's grammar."""

import json
import re
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from tests.pace import assert_quick, processor_seconds
from tests.test_pictures_record import make_record
from tilemix.errors import ImageFileError
from tilemix.pictures.files import FORMATS, encode_image
from tilemix.pictures.foreign import read_infotext
from tilemix.pictures.infotext import Infotext, parse_infotext, write_infotext
from tilemix.pictures.reading import decode_picture, read_origin
from tilemix.pictures.record import DraftRecord, VariationRecord, parameters_text
from tilemix.pictures.repeating import Here, repeat_infotext
from tilemix.prompts.context import PromptContext
from tilemix.prompts.rewrite import rewrite
from tilemix.prompts.template import find_template

HERE = Here("miniature", "dpm++_2m_karras", ["rubber-tile_lora.safetensors"])
# Three texts from the web UI's own pictures, of 2022 and of its version 1.9.4, shortened.
OLD = (
    "masterpiece, tile\nNegative prompt: lowres, bad\nSteps: 45, Sampler: Euler a, CFG scale: 11, Seed: 4278107481,"
    " Size: 768x768, Model hash: 925997e9, Denoising strength: 0.6, Clip skip: 2, ENSD: 31337, First pass size: 0x0"
)
HYPERNET = (
    r"a portrait, star_\(symbol\)"
    + "\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 3647976317, Size: 768x1024,"
    " Model hash: 2700c435, Hypernet: yagamitaichi-200000, Hypernet strength: 0.7"
)
NEW = (
    "1girl,A superstar on stage.,, <lora:LCM_15:1>, <lora:rubber-tile_lora:0.4>\n"
    "Negative prompt: MajicNegative_V2,badhandv4,\n"
    "Steps: 6, Sampler: LCM, Schedule type: Automatic, CFG scale: 1.5, Seed: 3748719078, Size: 768x1024,"
    " Model hash: 19bbe9faa4, Model: fantasticmix_k2, VAE hash: 07af11b95c, Clip skip: 2,"
    ' Lora hashes: "LCM_15: aaebf6360f7d, rubber-tile_lora: a95a0f4bdcb9",'
    ' TI hashes: "MajicNegative_V2: a53884ef726b", Downcast alphas_cumprod: True,'
    ' Hashes: {"vae": "c6a580b13a", "embed:EasyNegative": "c74b4e810b"}, Version: v1.9.4'
)


def test_texts_of_the_web_uis_are_read():
    old = parse_infotext(OLD)
    assert (old.prompt, old.negative_prompt) == ("masterpiece, tile", "lowres, bad")
    assert list(old.parameters.items())[3:6] == [
        ("Seed", "4278107481"),
        ("Size", "768x768"),
        ("Model hash", "925997e9"),
    ]
    assert parse_infotext(HYPERNET).prompt == r"a portrait, star_\(symbol\)"
    new = parse_infotext(NEW)
    assert new.negative_prompt == "MajicNegative_V2,badhandv4,"
    assert new.parameters["Lora hashes"] == "LCM_15: aaebf6360f7d, rubber-tile_lora: a95a0f4bdcb9"
    assert json.loads(new.parameters["Hashes"]) == {"vae": "c6a580b13a", "embed:EasyNegative": "c74b4e810b"}
    assert new.parameters["Version"] == "v1.9.4"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a tile", Infotext("a tile")),
        ("a tile\nSteps: 3, Seed: 4", Infotext("a tile\nSteps: 3, Seed: 4")),
        (
            "p, Steps: 3, foo: 4, bar: 5",
            Infotext("", "", {"Steps": "3", "foo": "4", "bar": "5"}),
        ),  # as there: a line of three is parameters
        ("a\nb\nNegative prompt: c\nd", Infotext("a\nb", "c\nd")),
        (
            'x\nA1: "a, \\"b\\": c", B1: "not closed, C1: 1',
            Infotext("x", "", {"A1": 'a, "b": c', "B1": '"not closed', "C1": "1"}),
        ),
        ("", Infotext("")),
    ],
)
def test_the_grammar(text, expected):
    assert parse_infotext(text) == expected


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=40)


@given(WORDS, WORDS, WORDS)
def test_what_is_written_reads_the_same(prompt, negative, value):
    pairs = {"Steps": "3", "Seed": "4", "Size": "8x8", "Model": value.strip() or "x"}
    found = parse_infotext(write_infotext(prompt, negative, pairs.items()))
    assert (found.prompt.lower(), found.negative_prompt.lower()) == (
        prompt.strip().lower(),
        negative.strip().lower(),
    )
    assert found.parameters == pairs


def user_comment(text: bytes, endian: str = ">") -> bytes:
    exif = Image.Exif()
    exif.endian = endian
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = text
    return exif.tobytes()


def save(path, **options):
    Image.new("RGB", (64, 64)).save(path, **options)
    return path


def texts(**chunks: str) -> PngInfo:
    info = PngInfo()
    for key, text in chunks.items():
        info.add_text(key, text)
    return info


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.png"])
@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + NEW.encode("utf-16-be"),
        b"UNICODE\0" + NEW.encode("utf-16-le"),
        b"UNICODE\0" + NEW.encode("utf-16"),
        b"ASCII\0\0\0" + NEW.encode(),
        bytes(8) + NEW.encode(),
    ],
)
def test_the_comment_of_any_format_is_read_in_every_encoding(tmp_path, name, comment):
    assert read_origin(save(tmp_path / name, exif=user_comment(comment))) == parse_infotext(NEW)


def test_a_png_of_a_web_ui_is_read(tmp_path):
    """qDiffusion's grammar is the same; its recipe of a merged model stands in a second text."""
    path = save(tmp_path / "a.png", pnginfo=texts(parameters=NEW, merge_recipe="{}"))
    assert read_origin(path) == parse_infotext(NEW)
    info = PngInfo()
    info.add_itxt("parameters", "плитка\n" + NEW.split("\n")[-1], zip=True)
    assert read_origin(save(tmp_path / "b.png", pnginfo=info)).prompt == "плитка"


def test_a_picture_of_novelai_is_read(tmp_path):
    comment = {
        "steps": 28,
        "sampler": "k_euler_ancestral",
        "seed": 123,
        "strength": 0.69,
        "scale": 11.0,
        "uc": "lowres",
    }
    info = texts(Software="NovelAI", Description=" a {red} tile ", Comment=json.dumps(comment))
    assert read_origin(save(tmp_path / "a.png", pnginfo=info)) == Infotext(
        "a (red:1.05) tile",
        "lowres",
        {
            "Steps": "28",
            "Sampler": "Euler a",
            "CFG scale": "11",
            "Seed": "123",
            "Size": "64x64",
            "Denoising strength": "0.69",
            "Clip skip": "2",
            "ENSD": "31337",
        },
    )


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("{{red}}, [blue]", "(red:1.1025), (blue:0.9524)"),
        ("{{{wet}}} floor", "(wet:1.1576) floor"),
        ("{a {b} c}", "(a :1.05)(b:1.1025)( c:1.05)"),
        ("{[x]}", "x"),
        ("{red", "{red"),
        ("red]] {{b}", "red]] {(b:1.05)"),
        ("{a [b} c]", "{a (b} c:0.9524)"),
        ("a tile (matte)", r"a tile \(matte\)"),
        ("{}", ""),
        ("{" * 20_000 + "x" + "}" * 20_000, "(x:9.906)"),
        ("[" * 48 + "x" + "]" * 48, "(x:0.1009)"),
    ],
)
@pytest.mark.slow
def test_emphasis_of_novelai_becomes_that_of_this_language(typed, read, tmp_path):
    info = texts(Software="NovelAI", Description="x", Comment=json.dumps({"uc": typed}))
    origin = read_origin(save(tmp_path / "a.png", pnginfo=info))
    assert origin.negative_prompt == read
    noted = [(note.code, note.field) for note in repeat_infotext(origin, HERE).notes if note.field]
    assert noted == ([("repeat-emphasis", "negative_prompt")] if re.sub(r"\\", "", read) != typed else [])


GRAPH = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": ["11", 0],
            "steps": 20,
            "cfg": 7.5,
            "sampler_name": "dpmpp_2m",
            "scheduler": "karras",
            "denoise": 1.0,
            "model": ["10", 0],
            "positive": ["12", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
    },
    "4": {
        "class_type": "CheckpointLoaderSimple",
        "inputs": {"ckpt_name": "SDXL\\sd_xl_base_1.0.safetensors"},
    },
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 1024, "height": 768, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": ["13", 0], "clip": ["10", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["10", 1]}},
    "10": {
        "class_type": "LoraLoader",
        "inputs": {
            "lora_name": "tiles/x.safetensors",
            "strength_model": 0.8,
            "strength_clip": 0.5,
            "model": ["4", 0],
        },
    },
    "11": {"class_type": "PrimitiveInt", "inputs": {"value": 42}},
    "12": {"class_type": "ConditioningSetArea", "inputs": {"conditioning": ["6", 0], "strength": 1}},
    "13": {"class_type": "PrimitiveString", "inputs": {"value": "50% red, 50% black"}},
}


def comfy_reading() -> Infotext:
    return Infotext(
        "50% red, 50% black <lora:x:0.5:0.8>",
        "blurry",
        {
            "Steps": "20",
            "Sampler": "DPM++ 2M",
            "Schedule type": "Karras",
            "CFG scale": "7.5",
            "Seed": "42",
            "Size": "1024x768",
            "Model": "sd_xl_base_1.0",
        },
    )


def test_a_picture_of_comfyui_is_read_along_its_graph(tmp_path):
    assert read_origin(save(tmp_path / "a.png", pnginfo=texts(prompt=json.dumps(GRAPH)))) == comfy_reading()
    exif = Image.Exif()
    exif[ExifTags.Base.Model] = f"prompt:{json.dumps(GRAPH)}"
    assert read_origin(save(tmp_path / "a.webp", exif=exif)) == comfy_reading()
    changed = json.loads(json.dumps(GRAPH))
    next(iter(changed.values()))["is_changed"] = [float("nan")]  # as ComfyUI writes it
    assert read_origin(save(tmp_path / "b.png", pnginfo=texts(prompt=json.dumps(changed)))) == comfy_reading()


def test_an_embedding_in_a_graph_is_found_under_its_own_name(tmp_path):
    graph = GRAPH | {
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "embedding:bad, (embedding:Bad:1.2)"}}
    }
    found = read_origin(save(tmp_path / "a.png", pnginfo=texts(prompt=json.dumps(graph))))
    context = PromptContext(embeddings={"files/bad.safetensors": "<b0>"})
    prompt = rewrite(
        found.prompt, find_template("rubber_tile"), negative_prompt=found.negative_prompt, context=context
    )
    assert prompt.negative == "<b0>, (<b0>:1.2)"


@pytest.mark.parametrize(
    "graph",
    [
        [],
        {"3": []},
        {"3": {"inputs": {"positive": 1}}},
        "[" * 100_000,
        {"3": {"inputs": {"positive": ["3", 0], "negative": ["9", 0], "steps": ["3", 0], "model": ["3", 0]}}},
    ],
)
def test_a_graph_that_leads_nowhere_is_no_reason_to_fail(graph):
    picture = Image.new("RGB", (8, 8))
    picture.info["prompt"] = graph if isinstance(graph, str) else json.dumps(graph)
    assert read_infotext(picture) in (None, Infotext(""))


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ["Steps: 1, " * 20_000, "a" * 200_000, " " * 200_000, 'aa:"' * 50_000, "Hashes: {" * 20_000]
)
def test_reading_takes_time_linear_in_the_text(text):
    assert_quick(lambda: processor_seconds(lambda: parse_infotext(f"x\n{text}")), 0.4)


@pytest.mark.filterwarnings("ignore:Tag data larger")  # Pillow's, in production too
def test_an_exif_segment_that_is_broken_is_left_out(tmp_path):
    whole = user_comment(b"ASCII\0\0\0" + NEW.encode())
    broken = whole[:20] + struct.pack(">I", 2**31) + whole[24:60]
    with pytest.raises(ImageFileError, match="no tilemix record"):
        read_origin(save(tmp_path / "a.jpg", exif=broken))


def test_what_can_be_repeated_of_another_programs_picture_and_what_cannot():
    inputs, notes = repeat_infotext(parse_infotext(NEW), HERE)
    assert inputs == {
        "prompt": "1girl,A superstar on stage.,, <lora:rubber-tile_lora:0.4>",
        "negative_prompt": "MajicNegative_V2,badhandv4,",
        "num_inference_steps": 6,
        "guidance_scale": 1.5,
        "seed": 3748719078,
        "width": 768,
        "height": 1024,
    }
    assert [str(note) for note in notes] == [
        "Sampler: LCM Automatic in the picture, DPM++ 2M Karras here",
        "Model: fantasticmix_k2 in the picture, miniature here",
        "cannot be repeated here: lora LCM_15, TI hashes: MajicNegative_V2: a53884ef726b,"
        " Downcast alphas_cumprod: True",
    ]


def test_values_beyond_the_limits_and_missing_ones_are_named():
    _, notes = repeat_infotext(
        parse_infotext("a tile\nSteps: 10, Sampler: DPM++ 2M Karras, Size: 512x512"), HERE
    )
    assert [str(note) for note in notes] == [
        "the picture does not say seed, guidance_scale; the model's own values are taken"
    ]
    text = "a tile <hypernet:x:1>\nSteps: 150, Sampler: DPM++ 2M Karras, Seed: 9999999999, Size: 100x1001, CFG scale: 7"
    inputs, notes = repeat_infotext(parse_infotext(text), HERE)
    assert inputs == {"prompt": "a tile", "negative_prompt": "", "guidance_scale": 7.0}
    assert [str(note) for note in notes] == [
        "cannot be repeated here: hypernet x, Steps: 150, Seed: 9999999999, width: 100, height: 1001",
    ]


@pytest.mark.parametrize(
    ("text", "digits"),
    [(OLD, "925997e9"), (HYPERNET, "2700c435"), (NEW, "19bbe9faa4")],
    ids=["old", "hypernet", "new"],
)
def test_a_model_is_known_by_either_kind_of_hash_and_sd1_by_its_own_settings(text, digits):
    here = Here("old", "euler_a", ["yagamitaichi-200000.safetensors"], hashes={digits}, heeds_clip_skip=True)
    inputs, notes = repeat_infotext(parse_infotext(text), here)
    assert not any("Model" in str(note) for note in notes)
    assert any("Model" in str(note) for note in repeat_infotext(parse_infotext(text), HERE).notes)
    assert inputs.get("clip_skip") == (2 if "Clip skip" in text else None)
    assert inputs["prompt"].endswith("<hypernet:yagamitaichi-200000:0.7>") == ("Hypernet: " in text)


@pytest.mark.parametrize("draft", [None, DraftRecord(strength=0.55, granule_size="large", colors={})])
def test_a_picture_of_ours_that_has_lost_its_record_is_repeated_by_its_infotext(draft):
    changes = {} if draft is None else {"draft": draft}
    changes |= {"variation": VariationRecord(seed=9, strength=0.25), "clip_skip": 3}
    record = make_record(
        model="miniature", named_loras={"rubber-tile_lora.safetensors": (0.1, 0.4)}, **changes
    )
    inputs, notes = repeat_infotext(parse_infotext(parameters_text(record)), HERE)
    assert inputs.pop("granule_size", None) == (draft and "large")
    assert inputs == {
        "prompt": f"{record.sent_prompt} <lora:rubber-tile_lora:0.1:0.4>",
        "negative_prompt": record.sent_negative_prompt,
        "num_inference_steps": 25,
        "guidance_scale": 7.5,
        "seed": 4294967295,
        "width": 1024,
        "height": 768,
        "lora_scale": 0.7,
        "strength": 1.0 if draft is None else 0.55,
        "variation_seed": 9,
        "variation_strength": 0.25,
        "clip_skip": 3,
    }
    assert not notes


@pytest.mark.parametrize("output_format", FORMATS)
def test_our_record_comes_before_the_infotext(tmp_path, output_format):
    record = make_record()
    data = encode_image(np.zeros((64, 64, 3), np.uint8), record, output_format=output_format)
    path = tmp_path / "a"
    path.write_bytes(data)
    assert read_origin(path) == record
    alone = decode_picture(data, source="a")
    alone.info.pop("tilemix", None)
    alone.info.pop("xmp", None)
    assert read_infotext(alone) == parse_infotext(parameters_text(record))
