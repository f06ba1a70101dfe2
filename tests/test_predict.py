"""`Predictor` with a renderer that draws at once."""

import importlib
import logging
import re
import shutil
import types
import warnings

import numpy as np
import pytest

from tilemix.colors.chart import load_colors
from tilemix.errors import MixError, PromptError, RenderError, RequestError, TilemixError, read_metrics
from tilemix.pictures.metrics import share_metric
from tilemix.pictures.reading import read_record
from tilemix.pictures.record import Record
from tilemix.pipelines.settings import Settings
from tilemix.pipelines.speed import Speed
from tilemix.prompts.mix import parse_mix
from tilemix.request import GenerationRequest
from tilemix.system.project import ROOT

LEFT_OUT = {
    **dict.fromkeys(GenerationRequest.__dataclass_fields__),
    "granule_size": "medium",
    "output_format": "png",
}


class Cancelled(BaseException):
    """Like cog's own, not an `Exception`, so that nothing swallows it."""


class FakeRenderer:
    """Draws one color at once; `trouble` is raised in the middle of the steps."""

    def __init__(self) -> None:
        self.requests: list[GenerationRequest] = []
        self.trouble: BaseException | None = None

    def render(self, request, *, on_step=None):
        self.requests.append(request)
        steps = request.num_inference_steps or 25
        for done in range(1, steps + 1):
            on_step(done, steps)
            if self.trouble is not None:
                raise self.trouble
        record = Record(
            prompt=request.prompt,
            sent_prompt=request.prompt,
            sent_negative_prompt="",
            mix=None,
            seed=request.seed,
            width=request.width or 64,
            height=request.height or 64,
            num_inference_steps=steps,
            guidance_scale=7.0,
            lora_scale=None,
            scheduler="dpm++_2m_karras",
            dtype="float32",
            device="cpu",
            threads=1,
            model="fake",
            files={},
            versions={},
        )
        pixels = np.zeros((record.height, record.width, 3), dtype=np.uint8)
        mix = parse_mix(request.prompt).mix
        seconds = {"encode_prompt": 0.1, "denoise": 0.2, "decode": 0.3}
        return types.SimpleNamespace(
            pixels=pixels,
            prompt=types.SimpleNamespace(mix=mix, sent=mix),
            record=record,
            seconds=seconds,
            palette=None,
        )


@pytest.fixture
def module(monkeypatch):
    """predict.py, imported; the package's log handlers are what they were before, afterwards."""
    monkeypatch.syspath_prepend(ROOT)
    package = logging.getLogger("tilemix")
    monkeypatch.setattr(package, "handlers", [])
    monkeypatch.setattr(package, "level", package.level)
    return importlib.import_module("predict")


@pytest.fixture
def metrics(monkeypatch):
    """What the predictor records, by name."""
    recorded = {}
    scope = types.SimpleNamespace(record_metric=recorded.__setitem__)
    monkeypatch.setattr("tilemix.system.cog_prediction.current_scope", lambda: scope)
    return recorded


@pytest.fixture
def predictor(module, tmp_path):
    made = module.Predictor()
    made.models = FakeRenderer()
    made.folder = module.Path(tmp_path / "predictions")
    return made


def predict(predictor, **inputs):
    """Call `predict()` as the server does: with its default for every input that was left out."""
    return predictor.predict(**{**LEFT_OUT, "prompt": "red", **inputs})


def test_an_error_reaches_the_studio_as_data(predictor, metrics):
    """Cog passes on the text of an exception alone; the studio showed it in English to everybody."""
    predictor.models.trouble = MixError("mix-unknown-color", typed="rost", position=5, words="rosa, rot")
    with pytest.raises(MixError):
        predict(predictor)
    assert read_metrics(metrics) == predictor.models.trouble.message
    predictor.models.trouble = PromptError("mix-no-name", field="prompt")
    metrics.clear()
    with pytest.raises(PromptError):
        predict(predictor)
    assert read_metrics(metrics) == predictor.models.trouble.message


def test_the_inputs_reach_the_request_and_the_picture_its_own_file(predictor):
    inputs = {
        "prompt": "50% red, 50% black",
        "negative_prompt": "",
        "seed": 0,
        "width": 256,
        "height": 512,
        "num_inference_steps": 3,
        "guidance_scale": 2.5,
        "lora_scale": 0,
        "strength": 0.5,
        "granule_size": "large",
        "output_format": "webp",
    }
    path = predict(predictor, **inputs)
    assert predictor.models.requests == [GenerationRequest(**inputs)]
    assert path.name == "tile.webp"
    assert read_record(path).seed == 0
    assert type(path).__module__ == "cog.types"


def test_a_seed_left_out_is_drawn_anew_each_time(predictor, metrics):
    drawn = set()
    for _ in range(8):
        assert read_record(predict(predictor)).seed == metrics["seed"]
        drawn.add(metrics["seed"])
    assert len(drawn) == 8  # chance of a false alarm: under 1 in 10**8


def test_every_prediction_has_a_folder_of_its_own_and_earlier_ones_are_gone(predictor):
    first = predict(predictor)
    second = predict(predictor)
    assert first.parent != second.parent
    assert [path.name for path in predictor.folder.iterdir()] == [second.parent.name]


@pytest.mark.slow
def test_disk_use_is_flat_over_1000_predictions(predictor, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda file: None)  # a thousand of them would test the disk, not us
    for _ in range(1000):
        predict(predictor, num_inference_steps=1)
        assert len(list(predictor.folder.rglob("*"))) == 2


def test_a_folder_that_somebody_removed_is_made_again(predictor):
    predict(predictor)
    shutil.rmtree(predictor.folder)
    assert predict(predictor).is_file()


@pytest.mark.parametrize(
    "trouble", [RenderError("picture-latents-not-finite"), Cancelled(), KeyboardInterrupt()]
)
def test_a_prediction_that_ends_early_tells_its_seed_and_leaves_the_next_one_unharmed(
    predictor, metrics, trouble
):
    predictor.models.trouble = trouble
    with pytest.raises(type(trouble)):
        predict(predictor, seed=5)
    error = trouble.message if isinstance(trouble, TilemixError) else None
    assert read_metrics(metrics) == error
    data = {"error_code": error.code, "error_values": "{}"} if error is not None else {}
    assert metrics == {"seed": 5} | data
    predictor.models.trouble = None
    path = predict(predictor, seed=6)
    assert read_record(path).seed == 6
    assert list(predictor.folder.iterdir()) == [path.parent]


@pytest.mark.parametrize(
    "inputs",
    [
        {"prompt": None},
        {"prompt": ""},
        {"prompt": 7},
        {"seed": 1.0},
        {"seed": True},
        {"seed": "1"},
        {"seed": -2},
        {"width": 257},
        {"height": 1544},
        {"num_inference_steps": 0},
        {"guidance_scale": float("nan")},
        {"guidance_scale": "7"},
        {"lora_scale": float("inf")},
        {"output_format": "gif"},
        {"output_format": None},
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_is_drawn(predictor, inputs):
    with pytest.raises((PromptError, RequestError)) as caught:
        predict(predictor, **inputs)
    assert next(iter(inputs)) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert predictor.models.requests == []


def test_the_metrics_tell_seed_size_steps_seconds_and_shares(predictor, metrics):
    predict(predictor, prompt="50% red, 50% dark green", seed=3, width=256, num_inference_steps=2)
    assert metrics.pop("seconds_save") > 0
    shares = {name: metrics.pop(name) for name in list(metrics) if name.startswith("share_")}
    assert set(shares) == {"share_red", "share_dark_green", "share_not_asked"}
    assert all(0 <= percent <= 100 for percent in shares.values())
    assert metrics == {
        "seed": 3,
        "width": 256,
        "height": 64,
        "num_inference_steps": 2,
        "seconds_encode_prompt": 0.1,
        "seconds_denoise": 0.2,
        "seconds_decode": 0.3,
    }


def test_a_prompt_without_a_mix_has_no_shares(predictor, metrics):
    predict(predictor, prompt="ohwx_rubber_tile seen from above")
    assert not [name for name in metrics if name.startswith("share_")]


def test_every_color_has_a_metric_of_its_own_with_a_name_that_cog_takes():
    names = [share_metric(color.name) for color in load_colors()]
    assert len(set(names)) == len(names) >= 30
    # Cog's rule: letters, digits and underscores; none of these at an end or twice in a row.
    assert all(re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) for name in names)


def test_without_a_running_scope_nothing_is_recorded_and_nothing_warned(predictor, monkeypatch):
    """As cog 0.16 outside of its server: a warning, then an error."""

    def current_scope():
        warnings.warn("current_scope is experimental", Warning, stacklevel=1)
        raise RuntimeError("No scope available")

    monkeypatch.setattr("tilemix.system.cog_prediction.current_scope", current_scope)
    assert predict(predictor).is_file()


def test_the_progress_lines_are_those_that_replicates_clients_read(module, caplog):
    """Source: the pattern of `Prediction.Progress` in the Python client; the JavaScript one has its twin."""
    pattern = re.compile(r"^\s*(?P<percentage>\d+)%\s*\|.+?\|\s*(?P<current>\d+)\/(?P<total>\d+)")
    with caplog.at_level(logging.INFO, logger="tilemix"):
        for done in (1, 3, 25):
            module.log_progress(done, 25)
    assert caplog.messages == [
        "  4%|--------------------| 1/25 denoise",
        " 12%|##------------------| 3/25 denoise",
        "100%|####################| 25/25 denoise",
    ]
    assert [pattern.match(line).groups() for line in caplog.messages] == [
        ("4", "1", "25"),
        ("12", "3", "25"),
        ("100", "25", "25"),
    ]


@pytest.mark.parametrize(
    ("environment", "loaded"),
    [
        ({}, ("miniature", Settings())),
        (
            {
                "TILEMIX_MODEL": "rubber-tile",
                "TILEMIX_THREADS": "3",
                "TILEMIX_SPEED": "exact",
                "TILEMIX_COMPILE": "1",
            },
            ("rubber-tile", Settings(threads=3, speed=Speed.EXACT, compiled=True)),
        ),
        (
            {"TILEMIX_MODEL": "", "TILEMIX_THREADS": "", "TILEMIX_SPEED": "", "TILEMIX_COMPILE": ""},
            ("miniature", Settings()),
        ),
    ],
)
def test_setup_takes_the_model_and_the_settings_from_the_environment(
    module, monkeypatch, capsys, environment, loaded
):
    def load(model, settings, **_):
        logging.getLogger("tilemix.render").info("loaded")
        asked.append((model, settings))
        return types.SimpleNamespace(is_healthy=lambda: healthy)

    healthy, asked = True, []
    monkeypatch.setattr("tilemix.render.Renderer.load", load)
    for name in ("TILEMIX_MODEL", "TILEMIX_THREADS", "TILEMIX_SPEED", "TILEMIX_COMPILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    made = module.Predictor()
    assert made.healthcheck() is False
    made.setup()
    assert made.healthcheck() is True
    healthy = False
    assert made.healthcheck() is False
    made.setup()
    assert asked == [loaded, loaded]
    assert capsys.readouterr().out == "loaded\nloaded\n"  # on standard output, and once a line
    folder = made.folder
    assert folder.stat().st_mode & 0o777 == 0o700
    del made
    assert not folder.exists()


def test_setup_refuses_a_thread_count_that_is_not_a_number(module, monkeypatch):
    monkeypatch.setenv("TILEMIX_THREADS", "many")
    with pytest.raises(TilemixError, match="TILEMIX_THREADS is 'many'"):
        module.Predictor().setup()


def test_setup_refuses_an_unknown_speed(module, monkeypatch):
    monkeypatch.setenv("TILEMIX_SPEED", "warp")
    with pytest.raises(
        TilemixError, match="TILEMIX_SPEED is 'warp'; expected one of exact, equivalent, fast"
    ):
        module.Predictor().setup()
