"""Hypernetworks against a reference written by hand, from the web UI's pickled file to the picture."""

import json
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests import tiny_sd1
from tests.test_pipelines_sd1 import CPU, draw_theirs, guide, own, root, theirs  # noqa: F401  fixtures
from tilemix.adapters.hypernetwork import read_hypernetwork
from tilemix.conversion.child import Job, convert_file
from tilemix.errors import AdapterError, ManifestError, PromptError
from tilemix.pictures.record import parameters_text
from tilemix.pipelines.family import Denoising
from tilemix.pipelines.loading import load_pipeline
from tilemix.render import Renderer
from tilemix.request import GenerationRequest
from tilemix.weights import find_model
from tilemix.weights.prompting import make_context

WIDTHS = (32, 64)  # of the tiny model's contexts: places, and words or places


def build(width, structure, activation, *, norm=False, output=True, dropout=False):
    """The layers for one width as the web UI builds them, in a `linear` whose places count everything."""
    layers = []
    for place, (narrow, wide) in enumerate(pairwise(structure)):
        layers.append(nn.Linear(int(width * narrow), int(width * wide)))
        if activation is not None and (output or place < len(structure) - 2):
            layers.append(activation())
        if norm:
            layers.append(nn.LayerNorm(int(width * wide)))
        if dropout and place < len(structure) - 2:
            layers.append(nn.Dropout(0.3))
    module = nn.Module()
    module.linear = nn.Sequential(*layers).eval()
    return module


def write(folder, name, settings, **options):
    """Write the web UI's file and convert it; return the reference and the converted file."""
    torch.manual_seed(len(name))
    structure = settings.get("layer_structure", [1, 2, 1])
    made = {width: [build(width, structure, **options) for _ in range(2)] for width in WIDTHS}
    held = {width: tuple(one.state_dict() for one in pair) for width, pair in made.items()}
    torch.save(held | settings | {"step": 9, "name": name}, folder / f"{name}.pt")
    convert_file(Job(str(folder / f"{name}.pt"), str(folder / f"{name}.safetensors")))
    return made, folder / f"{name}.safetensors"


CASES = {
    "relu": ({"activation_func": "relu"}, {"activation": nn.ReLU}),
    "linear": ({}, {"activation": None}),
    "deep": (
        {"layer_structure": [1, 2, 3, 1], "activation_func": "swish", "activate_output": False},
        {"activation": nn.Hardswish, "output": False, "norm": True, "dropout": True},
    ),
    "flat": ({"layer_structure": [1, 1], "activation_func": "tanh"}, {"activation": nn.Tanh}),
}


@pytest.mark.parametrize(("settings", "options"), CASES.values(), ids=CASES)
def test_the_layers_are_those_of_the_file(tmp_path, settings, options):
    made, path = write(tmp_path, "x", settings, **options)
    found = read_hypernetwork(path, CPU, torch.float32)
    for width, (for_key, for_value) in made.items():
        context = torch.randn(2, 5, width)
        key, value = found.change(context, context, 0.6)
        assert torch.equal(key, context + 0.6 * for_key.linear(context))
        assert torch.equal(value, context + 0.6 * for_value.linear(context))
    other = torch.randn(1, 3, 48)
    assert all(one is other for one in found.change(other, other, 0.6))


def test_the_names_of_2022(tmp_path):
    made, path = write(tmp_path, "x", {}, activation=None)
    tensors = {
        name.replace("linear.0.", "linear1.").replace("linear.1.", "linear2."): tensor
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, tmp_path / "old.safetensors")
    context = torch.randn(1, 2, 64)
    key, _ = read_hypernetwork(tmp_path / "old.safetensors", CPU, torch.float32).change(context, context, 1.0)
    assert torch.equal(key, context + made[64][0].linear(context))


class ByHand:
    """diffusers' plain attention, with hypernetworks one after the other before the keys and values."""

    def __init__(self, chained):
        self._chained = chained

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        key = value = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        for made, strength in self._chained:
            for_key, for_value = made[key.shape[-1]]
            key, value = key + strength * for_key.linear(key), value + strength * for_value.linear(value)
        heads = [
            part.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for part in (attn.to_q(hidden_states), attn.to_k(key), attn.to_v(value))
        ]
        attended = nn.functional.scaled_dot_product_attention(*heads)
        return attn.to_out[0](attended.transpose(1, 2).flatten(2))


@pytest.fixture
def model(own, tmp_path):  # noqa: F811
    """The tiny model with two hypernetworks, and their references."""
    (own / "weights/files").mkdir()
    first, one = write(own / "weights/files", "first", *CASES["relu"][:1], **CASES["relu"][1])
    second, two = write(own / "weights/files", "second", CASES["flat"][0], **CASES["flat"][1])
    adapters = [{"file": path.name, "kind": "hypernetwork"} for path in (one, two)]
    tiny_sd1.write_manifest(own, adapters=adapters)
    return own, first, second


@pytest.mark.slow
def test_a_picture_is_the_one_drawn_by_hand(model, theirs):  # noqa: F811
    folder, first, second = model
    ready = load_pipeline(find_model("old", folder), CPU, torch.float32)
    names = list(ready.hypernetworks)
    assert names == ["first.safetensors", "second.safetensors"]

    def draw(*chained):
        noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(7))
        denoising = Denoising(
            start=noise, strength=1.0, generator=torch.Generator(), scheduler=ready.make_scheduler(),
            num_inference_steps=2, guidance_scale=7.0, guided_part=1.0, after_step=lambda _: None,
            hypernetworks=[(ready.hypernetworks[name], strength) for name, strength in chained],
        )  # fmt: skip
        return ready.base.denoise(guide(ready), denoising)

    texts = {"prompt": "a rubber tile, red and black", "negative_prompt": "blurry"}
    plain = theirs.unet.attn_processors
    theirs.unet.set_attn_processor(ByHand([(first, 0.6), (second, 1.0)]))
    try:
        expected = draw_theirs(theirs, **texts)
    finally:
        theirs.unet.set_attn_processor(plain)
    before = draw()
    assert torch.equal(draw((names[0], 0.6), (names[1], 1.0)), expected)
    assert not torch.equal(draw((names[1], 1.0), (names[0], 0.6)), expected)
    assert torch.equal(draw((names[0], 0.0)), before)
    assert torch.equal(draw(), before)


@pytest.mark.slow
def test_a_prompt_names_it_and_the_record_repeats_it(model):
    folder, _, _ = model
    renderer = Renderer.load("old", root=folder)
    request = GenerationRequest(
        prompt="tile <hypernet:First:0.6>", seed=1, width=256, height=256, num_inference_steps=1
    )
    drawn = renderer.render(request)
    assert drawn.record.hypernetworks == [("first.safetensors", 0.6)]
    assert drawn.record.sent_prompt == "tile, a photograph"
    assert "<hypernet:first:0.6>\n" in parameters_text(drawn.record)
    other = renderer.render(
        GenerationRequest(prompt="tile", seed=1, width=256, height=256, num_inference_steps=1)
    )
    assert (drawn.pixels != other.pixels).any()
    with pytest.raises(PromptError, match="no hypernetwork 'fist', at character 6; known: first, second"):
        renderer.render(GenerationRequest(prompt="tile <hypernet:fist>", seed=1))


def test_a_family_without_hypernetworks_has_none(model, own):  # noqa: F811
    path = own / "weights/old.model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"family": "sdxl"}))
    with pytest.raises(ManifestError, match="first.safetensors is a hypernetwork, which SDXL does not have"):
        find_model("old", own)


def test_the_manifests_hypernetworks_are_what_a_prompt_may_name(model):
    folder, _, _ = model
    context = make_context(find_model("old", folder).manifest, seed=0, steps=2)
    assert context.hypernetworks == ["first.safetensors", "second.safetensors"]
    assert context.loras == []


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"64.1.linear.0.weight": None, "64.1.linear.0.bias": None, "64.1.linear.2.weight": None,
          "64.1.linear.2.bias": None}, "hypernetwork-half"),
        ({"64.0.linear.0.bias": None}, "hypernetwork-layer"),
        ({"64.0.linear.2.weight": torch.zeros(48, 128), "64.0.linear.2.bias": torch.zeros(48)}, "hypernetwork-layer"),
        ({"64.0.linear.0.weight": torch.full((128, 64), torch.nan)}, "hypernetwork-not-finite"),
        ({"64.0.linear.0.weight": torch.full((128, 64), 1e300, dtype=torch.float64)}, "hypernetwork-not-finite"),
        ({"unet.x": torch.zeros(2)}, "hypernetwork-foreign"),
    ],
)  # fmt: skip
def test_a_broken_one_is_one_line(tmp_path, change, code):
    _, path = write(tmp_path, "x", *CASES["relu"][:1], **CASES["relu"][1])
    tensors = {n: t for n, t in (load_file(path) | change).items() if t is not None}
    save_file(tensors, path)
    with pytest.raises(AdapterError) as caught:
        read_hypernetwork(path, CPU, torch.float32)
    assert caught.value.code == code
    save_file(load_file(path), path, metadata={"activation_func": '"os.system"'})
    if code in ("hypernetwork-half", "hypernetwork-layer"):
        with pytest.raises(AdapterError, match="the activation 'os.system'; known: celu"):
            read_hypernetwork(path, CPU, torch.float32)
