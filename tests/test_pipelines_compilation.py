"""Compiled networks. torch traces them here as it does for real, but writes no code: that would take minutes."""

import functools

import numpy as np
import pytest
import torch

from tilemix.errors import TilemixError
from tilemix.pipelines.compilation import compiling
from tilemix.pipelines.decoding import decode_latents
from tilemix.pipelines.loading import load_pipeline
from tilemix.render import Renderer
from tilemix.request import GenerationRequest
from tilemix.weights import find_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def renderers(adapted_project):
    """A model, whose own size is 256 pixels, as plain modules and compiled; and a list of traces."""
    plain, compiled = (
        Renderer(load_pipeline(find_model("tiny", adapted_project), CPU, torch.float32)) for _ in "12"
    )
    traces = []

    def run_as_it_is(graph, inputs):
        traces.append(graph)
        return graph.forward

    compile_ = functools.partial(torch.compile, backend=run_as_it_is)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda network, *, mode, **options: compile_(network, **options))
        compiled.compile()
    return plain, compiled, traces


@pytest.mark.slow
def test_the_unet_and_the_decoder_are_compiled_whole_and_for_one_size(adapted_project, monkeypatch):
    handed = []

    def compile_(forward, **options):
        handed.append((forward.__self__, options["fullgraph"], options["dynamic"]))
        return forward

    monkeypatch.setattr(torch, "compile", compile_)
    renderer = Renderer(load_pipeline(find_model("tiny", adapted_project), CPU, torch.float32))
    renderer.compile(side=256)
    pipeline = renderer.ready.base.pipeline
    assert handed == [(pipeline.unet, True, False), (pipeline.vae.decoder, True, False)]
    assert draw(renderer, width=256, height=256, num_inference_steps=1).record.compiled


def draw(renderer, **changes):
    inputs = {"prompt": "60% red, 40% black", "seed": 7, "num_inference_steps": 3, "strength": 1}
    return renderer.render(GenerationRequest(**inputs | changes))


@pytest.mark.slow
def test_the_unet_and_the_decoder_are_one_piece_of_code_each(renderers):
    assert len(renderers[2]) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prompt": "100% green", "seed": 8},
        {"lora_scale": 0.2},
        {"lora_scale": 0.0},
        {"width": 320, "height": 264},
        {"guidance_scale": 1.0},
        {"prompt": "60% red, 40% black, (wet surface:1.2)"},
        {"prompt": "60% red, 40% black, " + "very, " * 80 + "wet"},
    ],
)
def test_the_pictures_are_the_same_and_nothing_is_compiled_again(renderers, changes):
    """Of other sizes, batches and lengths of text, too: they run as plain modules."""
    plain, compiled, traces = renderers
    before = len(traces)
    theirs, ours = draw(plain, **changes), draw(compiled, **changes)
    assert np.array_equal(ours.pixels, theirs.pixels)
    assert len(traces) == before
    assert (theirs.record.compiled, ours.record.compiled) == (False, True)


@pytest.mark.slow
def test_pixels_that_are_not_finite_are_decoded_again_by_a_plain_decoder(renderers):
    """The compiled code is the first VAE's: a copy of it in fp32 would be decoded by weights in half precision."""
    plain, compiled, _ = renderers
    latents = torch.randn(1, 4, 32, 32)
    expected = decode_latents(plain.ready.base.pipeline.vae, latents)
    vae = compiled.ready.base.pipeline.vae
    calls = []

    def spoil(_, __, image):
        calls.append(image)
        return image * torch.nan

    hook = vae.decoder.register_forward_hook(lambda *given: spoil(*given) if not calls else None)
    try:
        assert np.array_equal(decode_latents(vae, latents), expected)
    finally:
        hook.remove()
    assert len(calls) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:torch.jit"
)  # torch's own, as its compiler is imported
def test_where_torch_cannot_compile_one_line_says_so(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "no-such-compiler"))
    double = torch.compile(lambda tensor: tensor * 2 + torch.sin(tensor))
    with pytest.raises(TilemixError) as caught, compiling():
        double(torch.ones(3))
    message = str(caught.value)
    assert message.startswith("TILEMIX_COMPILE is 1, and torch cannot compile here: ")
    assert message.endswith("; on a CPU it needs a C++ compiler such as g++")
    assert "\n" not in message
