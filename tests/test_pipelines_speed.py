from pathlib import Path

import numpy as np
import pytest
import torch

from tilemix.modelfile import memory
from tilemix.pipelines.loading import load_pipeline
from tilemix.pipelines.speed import Precision, Speed, Trial, choose_dtype, find_trial, run_trial
from tilemix.render import Renderer
from tilemix.request import GenerationRequest
from tilemix.weights import find_model

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("trial", "chosen"),
    [
        (Trial(fp32=0.010, bf16=0.005), torch.bfloat16),
        (Trial(fp32=0.010, bf16=0.020), torch.float32),
        (Trial(fp32=0.010, bf16=0.0095), torch.float32),  # not worth it
    ],
)
def test_the_dtype_follows_the_mode_and_the_trial(trial, chosen, tmp_path, monkeypatch, caplog):
    """The CPU's flags named bf16 where it took twice the time of fp32."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    caplog.set_level("INFO")
    cuda = torch.device("cuda")
    never = lambda: pytest.fail("tried")  # noqa: E731  shorter than a function
    assert [choose_dtype(cuda, speed, run_trial=never) for speed in Speed] == [torch.float16] * 3
    assert choose_dtype(CPU, Speed.EXACT, run_trial=never) == torch.float32
    for speed in (Speed.EQUIVALENT, Speed.FAST):
        assert choose_dtype(CPU, speed, run_trial=lambda: trial) == chosen
        assert choose_dtype(CPU, speed, Precision.BF16, run_trial=never) == torch.bfloat16
        assert choose_dtype(CPU, speed, Precision.FP32, run_trial=never) == torch.float32
    assert choose_dtype(CPU, Speed.EXACT, Precision.BF16) == torch.float32
    name = "bf16" if chosen == torch.bfloat16 else "fp32"
    figures = f"{1000 * trial.bf16:.1f} ms in bf16 and 10.0 ms in fp32"
    line = f"drawing in {name}: on this CPU a trial takes {figures}"
    where = f"remembered in {tmp_path / 'tilemix' / 'files.sqlite3'}"
    assert caplog.messages == [f"{line} (tried now)", f"{line} ({where})"]


def test_a_machine_is_tried_once(tmp_path, monkeypatch):
    """Otherwise the same seed would give another picture in a process that a busy machine held up."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first, second = Trial(fp32=2, bf16=1), Trial(fp32=1, bf16=2)

    def try_beside_a_faster_process() -> Trial:
        assert find_trial(lambda: first) == (first, "tried now")
        return second

    assert find_trial(try_beside_a_faster_process) == (first, "tried now")
    assert find_trial(lambda: second)[0] == first
    monkeypatch.setattr("tilemix.pipelines.speed.describe_cpu", lambda: "another CPU")
    assert find_trial(lambda: second) == (second, "tried now")
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    newer = tmp_path / "torch.py"
    newer.touch()
    monkeypatch.setattr(torch, "__file__", str(newer))
    assert find_trial(lambda: second) == (second, "tried now")


@pytest.mark.parametrize("broken", ["content", "unreadable", "folder"])
def test_a_memory_that_cannot_be_used_costs_another_trial(tmp_path, monkeypatch, broken):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    find_trial(lambda: Trial(fp32=2, bf16=1))
    if broken == "content":
        memory.memory_path().write_bytes(b"SQLite format 3\0" + bytes(4000))
    elif broken == "unreadable":
        monkeypatch.setattr(memory, "memory_path", lambda: Path("/" + "x" * 300))
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", str(memory.memory_path()))
    again = Trial(fp32=1, bf16=2)
    assert find_trial(lambda: again) == (again, "tried now")


@pytest.mark.parametrize(
    ("taken", "trial"),
    [
        ([9, 4, 3, 8, 2, 1], Trial(fp32=3, bf16=1)),
        ([9, 3, 4, 14, 7, 6], Trial(fp32=3, bf16=6)),
        ([9, 3, 4, 16.5, 1, 1], Trial(fp32=3, bf16=16.5)),  # emulated, so it is not run again
    ],
)
def test_the_trial_takes_the_fastest_run_of_each_format(taken, trial):
    """A clock that says how long each run took."""
    ticks = iter([tick for seconds in taken for tick in (0, seconds)])
    assert run_trial(lambda: next(ticks)) == trial
    if trial.bf16 < 10:
        assert next(ticks, None) is None


def find_psnr(first: np.ndarray, second: np.ndarray) -> float:
    """Of 8-bit pixels, in dB."""
    return float(10 * np.log10(255**2 / np.mean((first.astype(float) - second) ** 2)))


def draw_miniature(speed: Speed, dtype: torch.dtype) -> tuple[np.ndarray, str, str]:
    request = GenerationRequest(
        prompt="50% red, 30% black, 20% pearl",
        seed=7,
        width=256,
        height=256,
        num_inference_steps=25,
        strength=1,
    )
    rendered = Renderer(load_pipeline(find_model("miniature"), CPU, dtype, speed=speed)).render(request)
    return rendered.pixels, rendered.record.speed, rendered.record.dtype


@pytest.mark.slow
def test_the_equivalent_picture_is_within_40_db_of_the_exact_one():
    """bf16 is emulated where the CPU has none: the same numbers, only slower."""
    exact, *_ = draw_miniature(Speed.EXACT, torch.float32)
    equivalent, speed, dtype = draw_miniature(Speed.EQUIVALENT, torch.bfloat16)
    assert (speed, dtype) == ("equivalent", "bfloat16")
    assert find_psnr(equivalent, exact) > 40


@pytest.fixture(scope="module")
def ready():
    return load_pipeline(find_model("miniature"), CPU, torch.bfloat16)


@pytest.mark.slow
def test_latents_and_text_encoders_stay_in_fp32_beside_a_bf16_unet(ready):
    pipeline = ready.base.pipeline
    assert {pipeline.unet.dtype, pipeline.vae.dtype} == {torch.bfloat16}
    assert {pipeline.text_encoder.dtype, pipeline.text_encoder_2.dtype} == {torch.float32}
    renderer = Renderer(ready)
    seen = []
    handle = pipeline.unet.register_forward_pre_hook(
        lambda _, args, __: seen.append(args[0].dtype), with_kwargs=True, prepend=True
    )
    latents = []
    decode = pipeline.vae.decode
    try:
        pipeline.vae.decode = lambda sample: (latents.append(sample.dtype), decode(sample))[1]
        renderer.render(
            GenerationRequest(
                prompt="red", seed=1, width=256, height=256, num_inference_steps=2, strength=1.0
            )
        )
    finally:
        handle.remove()
        pipeline.vae.decode = decode
    assert seen == [torch.float32] * 2
    assert latents == [torch.bfloat16]  # cast only to be decoded


def count_batches(renderer: Renderer, request: GenerationRequest) -> list[int]:
    """The UNet's batch in each step."""
    batches = []
    handle = renderer.ready.base.pipeline.unet.register_forward_pre_hook(
        lambda _, args, __: batches.append(len(args[0])), with_kwargs=True
    )
    try:
        renderer.render(request)
    finally:
        handle.remove()
    return batches


@pytest.mark.slow
def test_fast_leaves_guidance_out_of_the_last_steps_and_of_no_other_request():
    model = find_model("miniature")
    request = GenerationRequest(
        prompt="red", seed=1, width=256, height=256, num_inference_steps=5, strength=1.0
    )
    fast = Renderer(load_pipeline(model, CPU, torch.float32, speed=Speed.FAST))
    assert count_batches(fast, request) == count_batches(fast, request) == [2, 2, 2, 2, 1]
    exact = Renderer(load_pipeline(model, CPU, torch.float32))
    assert count_batches(exact, request) == [2] * 5
    first, again = (fast.render(request) for _ in range(2))
    assert first.record.speed == "fast"
    assert np.array_equal(first.pixels, again.pixels)
