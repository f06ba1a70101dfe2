import json
import os
import resource
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.pace import assert_quick
from tilemix.__main__ import main as command
from tilemix.cli import main, make_parser
from tilemix.errors import ManifestError
from tilemix.pictures.files import write_image
from tilemix.pictures.record import Record
from tilemix.request import GenerationRequest
from tilemix.system.project import ROOT
from tilemix.weights import list_models, load_manifest

LORA = "rubber-tile-miniature_sdxl_lora.safetensors"
EXAMPLE = (
    "ohwx_rubber_tile <s0><s1>, 50% red, 30% black, 20% pearl, "
    "photorealistic rubber tile, high quality, detailed texture"
)
RECORD = Record(
    prompt="100% black",
    sent_prompt="100% black",
    sent_negative_prompt="",
    mix={"black": 100.0},
    seed=0,
    width=256,
    height=256,
    num_inference_steps=1,
    guidance_scale=1.5,
    lora_scale=None,
    scheduler="euler",
    dtype="float32",
    device="cpu",
    threads=1,
    model="miniature",
    files={},
    versions={"tilemix": "0.1.0"},
)


@pytest.fixture
def black_tile(tmp_path):
    path = tmp_path / "tile.png"
    write_image(path, np.full((256, 256, 3), (35, 31, 32), np.uint8), RECORD, output_format="png")
    return path


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "tilemix", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=os.environ | environment,
    )


def test_rewrite_prints_the_full_prompt(capsys):
    assert main(["rewrite", "50% red, 30% black, 20% pearl"]) == 0
    assert capsys.readouterr().out == EXAMPLE + "\n"


def test_rewrite_as_json_adds_the_mix(capsys):
    assert main(["rewrite", "--json", "половина красного, остальное чёрный"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["mix"] == {"red": 50.0, "black": 50.0}
    assert answer["prompt"].startswith("ohwx_rubber_tile <s0><s1>, 50% red, 50% black, ")
    assert set(answer) == {"prompt", "negative_prompt", "mix", "sent", "notes", "spans"}
    typed = [(span["text"], span["role"], span["value"]) for span in answer["spans"]]
    assert typed == [
        ("половина", "share", "50"),
        ("красного", "color", "red"),
        (",", "separator", ""),
        ("остальное", "share", ""),
        ("чёрный", "color", "black"),
    ]


def test_rewrite_explains_what_every_word_was_taken_for(capsys):
    assert main(["rewrite", "--explain", "black with 20% red flecks, wet"]) == 0
    spans, _, _ = capsys.readouterr().out.partition("prompt: chunk 1")
    lines = [line.split(maxsplit=2) for line in spans.splitlines()]
    assert lines == [
        ["1", "base", "'black' = black"],
        ["7", "with", "'with'"],
        ["12", "share", "'20%' = 20"],
        ["16", "color", "'red' = red"],
        ["20", "noun", "'flecks'"],
        ["26", "text", "', wet'"],
    ]


def test_predict_reads_the_text_before_it_loads_a_model(capsys, monkeypatch, tmp_path):
    def load(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("tilemix.render.Renderer.load", load)
    assert main(["predict", "50% rad, 50% black", "-o", str(tmp_path / "tile.png")]) == 1
    assert "did you mean 'red'?" in capsys.readouterr().err


def test_rewrite_takes_less_than_a_fifth_of_a_second():
    def measure() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run("rewrite", "50% red, 30% black, 20% pearl").stdout == EXAMPLE + "\n"
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert_quick(measure, 0.2)


def test_a_name_with_a_line_break_in_it_makes_one_line_too(capsys, tmp_path):
    """It made two, and what a name held went to the terminal as it was, its escape sequences too."""
    assert main(["record", str(tmp_path / "a\nb\x1b[31m.png")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert r"a\nb\x1b[31m.png" in lines[0]


def test_a_refusal_is_one_line_and_exit_status_1(capsys):
    assert main(["rewrite", "50% rad, 50% black"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "tilemix rewrite: unknown color 'rad' at character 5; did you mean 'red'?\n"


@pytest.mark.parametrize(
    "arguments", [[], ["paint"], ["predict"], ["weights"], ["predict", "red", "--seed", "x"]]
)
def test_wrong_usage_is_exit_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: tilemix" in capsys.readouterr().err


def test_an_integer_is_refused_in_the_words_of_the_inputs(capsys):
    with pytest.raises(SystemExit):
        main(["predict", "red", "--seed", "1e3"])
    assert "seed '1e3' is not an integer; expected -1 to 4294967295" in capsys.readouterr().err


def test_json_and_text_hold_a_name_that_is_not_utf_8(tmp_path):
    """Each was a traceback: Python reads such a byte as a lone surrogate, which UTF-8 has not."""
    os.link(ROOT / "weights/miniature" / LORA, os.fsencode(tmp_path) + b"/\xff.safetensors")
    alone = run("inspect", "--no-hash", "--json", os.fsencode(tmp_path) + b"/\xff.safetensors")
    assert json.loads(alone.stdout)["path"] == f"{tmp_path}/?.safetensors", alone.stderr
    every = run("inspect", "--no-hash", "--json", tmp_path)
    assert json.loads(every.stdout)[0]["path"] == f"{tmp_path}/?.safetensors", every.stderr
    assert run("inspect", "--no-hash", os.fsencode(tmp_path) + b"/\xff.safetensors").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("rewrite", "red", "> /dev/full"), "No space left on device"),
        (("weights", "list", ">&-"), "Bad file descriptor"),
    ],
)
def test_output_that_cannot_be_written_is_one_line(arguments, reason):
    command = f"{sys.executable} -m tilemix {' '.join(arguments)}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stderr == f"tilemix {arguments[0]}: standard output cannot be written: {reason}\n"
    assert done.returncode == 1


def test_a_refusal_without_standard_error_has_its_status():
    command = f"{sys.executable} -m tilemix rewrite '50% rad' 2>&-"
    assert subprocess.run(["sh", "-c", command], check=False, cwd=ROOT).returncode == 1


def test_ctrl_c_during_the_imports_is_one_line(capsys, monkeypatch):
    class Interrupted:
        def find_spec(self, name, path=None, target=None):
            if name == "tilemix.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "tilemix.cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    assert command() == 130
    assert capsys.readouterr().err == "tilemix: interrupted\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["predict", "red", "-o", "tile.gif"],
            "expected a file name that ends in '.png', '.webp', '.jpg' or '.jpeg', found 'tile.gif'",
        ),
        (
            ["predict", "red", "-o", "tests", "--output-format", "png"],
            "tests: this is a folder, expected a file",
        ),
        (["predict", "red", "-o", "nowhere/tile.png"], "nowhere/tile.png: folder 'nowhere' does not exist"),
        (
            ["predict", "red", "--width", "1001"],
            "width 1001: expected a multiple of 8 from 256 to 1536",
        ),
        (
            ["predict", "red", "-o", "/proc/tile.png"],
            "/proc/tile.png: cannot be written: No such file or directory",
        ),
        (["compare", "50% rad, 50% black"], "unknown color 'rad' at character 5; did you mean 'red'?"),
        (["compare", "red", "-o", "nowhere/a.png"], "nowhere/a.png: folder 'nowhere' does not exist"),
        (
            ["catalogue", "nowhere.csv", "out", "--seed", "-9"],
            "seed -9 is out of range; expected -1 to 4294967295",
        ),
        (["palette", "tests", "--out", "tests"], "tests: this is a folder, expected a file"),
        (["palette", "tests", "--sheet", "tests"], "tests: this is a folder, expected a file"),
        (["rewrite", "red", "--seed", "-5"], "seed -5 is out of range; expected -1 to 4294967295"),
        (["draft", "a tile"], "no color mix in 'a tile'; expected one such as '50% red, 50% black'"),
        (["predict", "red", "--forever", "README.md"], "README.md: not a folder"),
        (["predict", "red", "--seed", "-2"], "seed -2 is out of range; expected -1 to 4294967295"),
        (["predict", ""], "prompt: empty, expected 1 to 2000 characters"),
        (
            ["predict", "red", "--model", "nowhere"],
            "unknown model 'nowhere'; known: flux1-dev, flux1-schnell, miniature, rubber-tile",
        ),
        (
            ["rewrite", "red", "--template", "../x"],
            "unknown prompt template '../x'; known: miniature, plain, rubber_tile, rubber_tile_bare",
        ),
        (
            ["weights", "verify", "../x"],
            "'../x' is not a valid model name; known: flux1-dev, flux1-schnell, miniature, rubber-tile",
        ),
    ],
)
def test_every_fault_is_named_before_anything_is_drawn(arguments, message, capsys):
    assert main(arguments) == 1
    assert capsys.readouterr().err == f"tilemix {arguments[0]}: {message}\n"


def test_missing_weights_say_where_and_which_command(capsys, monkeypatch):
    monkeypatch.setenv("TILEMIX_MODEL", "rubber-tile")
    if (ROOT / "weights" / "files" / "stable-diffusion-xl-base-1.0").exists():
        pytest.skip("the real files are here")
    assert main(["predict", "red"]) == 1
    error = capsys.readouterr().err
    folder = f"{ROOT}/weights/files/stable-diffusion-xl-base-1.0"
    assert f"{folder}/text_encoder/model.fp16.safetensors" in error
    assert " lacks 18 of its files: " in error
    assert "tilemix weights fetch rubber-tile" in error
    assert error.count("\n") == 1


def test_record_prints_what_is_inside_a_picture(black_tile, capsys):
    assert main(["record", str(black_tile)]) == 0
    assert json.loads(capsys.readouterr().out)["mix"] == {"black": 100.0}
    assert main(["record", "--parameters", str(black_tile)]) == 0
    assert capsys.readouterr().out.startswith("100% black\n")


def test_record_prints_what_another_program_says_of_its_picture(tmp_path, capsys):
    path = tmp_path / "a.png"
    chunks = PngInfo()
    text = "a tile\nNegative prompt: blurry\nSteps: 20, Seed: 7, Size: 512x512"
    chunks.add_text("parameters", text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=chunks)
    assert main(["record", str(path)]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "prompt": "a tile",
        "negative_prompt": "blurry",
        "parameters": {"Steps": "20", "Seed": "7", "Size": "512x512"},
    }
    assert main(["record", "--parameters", str(path)]) == 0
    assert capsys.readouterr().out == f"{text}\n"


def test_the_picture_to_repeat_is_not_written_over(black_tile, capsys):
    assert main(["predict", "--from-image", str(black_tile), "-o", str(black_tile)]) == 1
    assert "tile.png: this file is read; name another one to write" in capsys.readouterr().err


def test_pictures_are_drawn_until_ctrl_c(tmp_path, capsys, monkeypatch):
    """The seeds follow one another, what is there already stays, and the end is no failure."""
    drawn = []

    def draw(renderer, path, request, *, on_step):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(request.seed)
        write_image(path, np.zeros((64, 64, 3), np.uint8), RECORD, output_format=request.output_format)
        return SimpleNamespace(rendered=SimpleNamespace(record=RECORD, seconds={}), measured=None, size=1)

    monkeypatch.setattr("tilemix.render.Renderer.load", lambda model, settings, **_: None)
    monkeypatch.setattr("tilemix.drawing.draw_to_file", draw)
    folder = tmp_path / "new" / "folder"
    folder.mkdir(parents=True)
    (folder / "tile-4294967295.webp").write_bytes(b"mine")
    command = ["predict", "100% black", "--seed", "4294967294", "--output-format", "webp"]
    assert main([*command, "--forever", str(folder)]) == 0
    assert drawn == [4294967294, 0]
    assert capsys.readouterr().out.split() == [
        f"{folder}/tile-4294967294.webp",
        f"{folder}/tile-0.webp",
    ]
    assert (folder / "tile-4294967295.webp").read_bytes() == b"mine"


def test_a_picture_is_not_written_over_by_its_map(black_tile, tmp_path, capsys):
    before = black_tile.read_bytes()
    for target, message in (
        (black_tile, "tile.png: this file is read; name another one to write"),
        (tmp_path, ": this is a folder, expected a file"),
        (tmp_path / "map.webp", "expected a file name that ends in '.png', found 'map.webp'"),
    ):
        assert main(["measure", str(black_tile), "--map", str(target)]) == 1
        assert message in capsys.readouterr().err
    assert black_tile.read_bytes() == before


def test_a_picture_is_measured_by_the_palette_of_the_model_that_drew_it(black_tile, capsys):
    """It was measured by the chart, and by the palette just after it had been drawn."""
    errors = []
    for options in ([], ["--model", RECORD.model], ["--mix", "100% black"]):
        assert main(["measure", str(black_tile), "--json", *options]) == 0
        errors.append(json.loads(capsys.readouterr().out)["color_errors"]["black"])
    own, of_model, of_chart = errors
    assert own == of_model != of_chart


def test_measure_reads_the_mix_from_the_record_or_the_option(black_tile, capsys):
    assert main(["measure", "--json", str(black_tile)]) == 0
    assert json.loads(capsys.readouterr().out)["shares"]["black"] > 99
    assert main(["measure", str(black_tile), "--mix", "50% red, 50% black"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "0.0% red, 100.0% black"
    assert lines[1].startswith("not asked for: 0.0%")
    assert lines[2].startswith("mean delta E 2000: ")
    assert main(["measure", str(black_tile), "--mix", "a tile"]) == 1
    assert "no color mix in 'a tile'" in capsys.readouterr().err
    assert main(["measure", str(black_tile), "--mix", "100% zebra"]) == 1
    assert "no color of '100% zebra' is on the chart" in capsys.readouterr().err


def test_weights_lists_and_verifies_the_miniature(capsys):
    assert main(["weights", "list"]) == 0
    rows = [line.split("\t")[:2] for line in capsys.readouterr().out.splitlines()]
    assert [name for name, _ in rows] == list_models()
    assert ["miniature", "ready"] in rows
    assert main(["weights", "verify", "miniature"]) == 0
    assert capsys.readouterr().out.endswith("files verified, 0 not locked\n")


def test_a_manifest_that_cannot_be_read_does_not_hide_the_others(monkeypatch, capsys):
    def load(name):
        if name == "miniature":
            raise ManifestError("manifest-name", name="broken", known="-")
        return load_manifest(name)

    monkeypatch.setattr("tilemix.weights.load_manifest", load)
    assert main(["weights", "list"]) == 1
    printed = capsys.readouterr()
    assert [line.split("\t")[0] for line in printed.out.splitlines()] == list_models()
    assert "miniature\tunusable\t-\n" in printed.out
    assert "broken" in printed.err


def test_predicts_options_are_the_requests_fields():
    options = vars(make_parser().parse_args(["predict", "red"]))
    assert set(GenerationRequest.__dataclass_fields__) <= set(options)


def draw(output):
    arguments = ["--seed", "3", "--width", "256", "--height", "256", "--num-inference-steps", "2"]
    done = run("predict", "50% red, 50% black", "-o", str(output), *arguments, "--json", TILEMIX_THREADS="1")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["record"]["seed"] == 3
    assert set(answer["measured"]["shares"]) == {"red", "black"}
    assert "denoise 1/1 100%" in done.stderr
    return output.read_bytes()


@pytest.mark.slow
def test_predict_draws_a_tile(tmp_path):
    assert draw(tmp_path / "a.png").startswith(b"\x89PNG")


@pytest.mark.slow
def test_predict_repeats_a_tile_byte_for_byte_from_its_record(tmp_path):
    data = draw(tmp_path / "a.png")
    done = run("predict", "--from-image", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png"))
    assert "repeated: every pixel is the same" in done.stderr
    assert (tmp_path / "b.png").read_bytes() == data


@pytest.mark.slow
def test_a_thread_count_that_is_not_a_number_is_refused(tmp_path):
    done = run("predict", "red", "-o", str(tmp_path / "a.png"), TILEMIX_THREADS="many")
    assert done.returncode == 1
    assert done.stderr.endswith("TILEMIX_THREADS is 'many'; expected an integer from 1 to 1024\n")


def heed_interrupts():
    """A suite that was started in the background ignores Ctrl-C, and so would the processes it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_an_interrupt_in_the_middle_ends_in_one_line_and_leaves_no_file(tmp_path):
    output = tmp_path / "a.png"
    command = [sys.executable, "-m", "tilemix", "predict", "red", "-o", str(output)]
    size = ["--width", "256", "--height", "256", "--num-inference-steps", "100", "--strength", "1"]
    with subprocess.Popen(
        [*command, *size], cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts
    ) as process:
        for line in process.stderr:
            if line.startswith("denoise 2/100"):
                process.send_signal(signal.SIGINT)
                break
        rest = process.stderr.read().splitlines()
    assert process.returncode == 130
    assert rest[-1] == "tilemix predict: interrupted"
    assert all(line.startswith("denoise ") for line in rest[:-1])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "options", "last_steps", "why"),
    [
        ("50% red, 50% black, [wet:dry:0.4]", [], [2, 5], "over a draft of the mix, strength 0.2"),
        ("red tile, [wet:dry:0.4]", [], [10, 25], "no mix"),
        ("50% red, 50% black, [wet:dry:0.4]", ["--steps", "20"], [8, 20], "as given"),
    ],
)
def test_rewrite_counts_the_steps_that_predict_draws(text, options, last_steps, why, capsys):
    assert main(["rewrite", text, "--explain", "--json", *options]) == 0
    explained = json.loads(capsys.readouterr().out)
    assert [version["last_step"] for version in explained["encoded"]["prompt"]] == last_steps
    assert explained["steps"]["count"] == last_steps[-1]
    assert why in explained["steps"]["reason"]


def test_rewrite_explains_what_the_text_encoders_get(capsys):
    text = "(50% red:1.3), 50% {black|white} BREAK [wet:dry:0.5], <foo>"
    options = ["--explain", "--steps", "10", "--seed", "3"]
    assert main(["rewrite", text, *options]) == 0
    output = capsys.readouterr().out
    assert "prompt, steps 1 to 5: chunk 1, 17 of 75 tokens\n" in output
    assert "  1.3        4  '50% red'\n" in output
    assert "choice {black|white} at character 20: 'black'\n" in output
    assert "<foo>: not a token of this model; its letters are sent\n" in output
    assert main(["rewrite", text, "--json", *options]) == 0
    explained = json.loads(capsys.readouterr().out)
    versions = explained["encoded"]["prompt"]
    assert [version["last_step"] for version in versions] == [5, 10]
    first = versions[0]["chunks"][0]
    assert first["fragments"][1] == {"text": "50% red", "weight": 1.3, "tokens": 4}
    assert first["tokens"] == sum(fragment["tokens"] for fragment in first["fragments"])
    assert explained["unknown_tokens"] == ["<foo>"]
    assert [choice["chosen"] for choice in explained["choices"]] == ["black"]
