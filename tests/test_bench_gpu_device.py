"""What the GPU bench runs on the device: the model in its real layout, the levers, the clocks."""

from __future__ import annotations

import warnings

import pytest
import torch
from safetensors.torch import save

from bench.figures import measure_psnr
from bench.gpu import changes
from bench.gpu.adapters import draw_product_lora, draw_product_tokens, list_lora_modules
from bench.gpu.fp8 import Fp8Linear, multiply, quantize
from bench.gpu.graph import GraphedForward, record_calls
from bench.gpu.levers import LEVERS
from bench.gpu.plan import ESTIMATES
from bench.gpu.speed import compiling
from bench.gpu.timing import HostEvent, time_calls, time_picture, watch_memory
from bench.gpu.workshop import TINY_SIZE, Workshop, draw_latents
from bench.topology import REAL, build_parts, find_config, read_config
from tilemix.pipelines.sdxl import Sdxl
from tilemix.system.project import ROOT
from tilemix.weights.manifest import load_manifest

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


def test_the_configurations_are_the_published_ones_to_the_byte():
    """Their sizes stand in the product's manifest, which names the published files."""
    manifest = load_manifest("rubber-tile", ROOT)
    sizes = {file.path: file.size for file in manifest.base.files}
    assert manifest.vae is not None
    sizes |= {f"vae/{file.path}": file.size for file in manifest.vae.files}
    for name in ("unet", "vae", "text_encoder", "text_encoder_2", "scheduler"):
        published = sizes[f"{name}/scheduler_config.json" if name == "scheduler" else f"{name}/config.json"]
        assert find_config(name).stat().st_size == published, name
        assert read_config(name)


@pytest.fixture(scope="module")
def real_parts():
    with torch.device("meta"):
        return build_parts(REAL)


def test_the_networks_have_the_published_number_of_weights(real_parts):
    """Of the files of the product's manifest, two bytes a weight in fp16; their headers are the rest."""
    sizes = {
        "unet": 5_135_149_760,
        "text_encoder": 246_144_152,
        "text_encoder_2": 1_389_382_176,
    }
    for name, published in sizes.items():
        weights = 2 * sum(weight.numel() for weight in real_parts[name].parameters())
        assert 0 < published - weights < 500_000, name
    vae = 4 * sum(weight.numel() for weight in real_parts["vae"].parameters())  # in fp32
    assert 0 < 334_643_238 - vae < 100_000


def test_the_lora_has_the_products_layout_to_the_byte(real_parts):
    unet = real_parts["unet"]
    assert len(list_lora_modules(unet)) == 577
    tensors = draw_product_lora(unet, measure=lambda _: 0.02)
    assert tensors["lora_unet_mid_block_resnets_0_conv2.alpha"].dtype == torch.int64
    assert len(save(tensors)) == 101_961_928


def test_the_tokens_have_the_products_layout_to_the_byte():
    class Encoder:
        def __init__(self, width):
            self.width = width

        def get_input_embeddings(self):
            return torch.nn.Embedding(3, self.width)

    tensors = draw_product_tokens({"text_encoder": Encoder(768), "text_encoder_2": Encoder(1280)})
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {
        "clip_l": (2, 768),
        "clip_g": (2, 1280),
    }
    assert len(save(tensors)) == 8_344


# What runs on the device.


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shop = Workshop(tmp_path_factory.mktemp("shop"), TINY_SIZE, CPU, torch.float32)
        assert shop.ours
        yield shop


def test_the_latents_are_those_that_tilemix_begins_with(shop, monkeypatch):
    begun = []

    def keep(_, __, denoising):
        begun.append(denoising.start)
        return denoising.start

    monkeypatch.setattr(Sdxl, "denoise", keep)
    order = shop.order(3)
    shop.ours.draw(order)
    assert torch.equal(begun[0], draw_latents(order))


CHANGES = {
    "channels_last": changes.contiguous,
    "attention": changes.plain_attention,
    "graph": changes.graphed,
    "convolutions": changes.searched_convolutions,
    "regions": changes.compiled_regions,
    "decoder": changes.compiled_decoder,
    "fp8": changes.in_fp8,
    "stacked": changes.stacked,
}


@pytest.fixture(scope="module")
def picture(shop):
    return shop.ours.predict(shop.order(1, steps=1))


@pytest.mark.parametrize("name", CHANGES)
def test_a_lever_is_undone_also_when_it_fails(shop, picture, name):
    """Weights, layout, processors, forwards: the next picture has the same bytes."""
    with compiling(CPU), pytest.raises(ZeroDivisionError), CHANGES[name](shop.ours):
        raise ZeroDivisionError
    assert shop.ours.predict(shop.order(1, steps=1)) == picture
    unet = shop.ours.pipeline.unet
    assert not any("forward" in vars(module) for module in unet.modules())
    assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_lever_changes_what_it_says(shop):
    unet, vae = shop.ours.pipeline.unet, shop.ours.pipeline.vae
    with changes.contiguous(shop.ours):
        assert unet.conv_in.weight.is_contiguous()
        assert vae.decoder.conv_in.weight.is_contiguous()
    with changes.plain_attention(shop.ours):
        assert {type(one).__name__ for one in unet.attn_processors.values()} == {"AttnProcessor2_0"}
    with changes.searched_convolutions(shop.ours):
        assert torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.benchmark
    with changes.graphed(shop.ours):
        assert isinstance(unet.forward, GraphedForward)
    with changes.in_fp8(shop.ours):
        assert sum(isinstance(module, Fp8Linear) for module in unet.modules()) > 10
    assert set(LEVERS) == {name.removeprefix("lever-") for name in ESTIMATES if name.startswith("lever-")} - {
        "attention"
    }


def test_a_graph_takes_new_inputs_and_is_recorded_once_for_each_shape():
    recorded = []

    def record(run):
        recorded.append(run)
        return record_calls(run)

    def forward(sample, step, *, more, flag):
        assert flag
        return (sample * step + more["bias"],)

    graphed = GraphedForward(forward, record)
    for count in (2, 2, 3, 2):
        sample, bias = torch.randn(count, 4), torch.randn(4)
        (made,) = graphed(sample, torch.tensor(2.0), more={"bias": bias}, flag=True)
        torch.testing.assert_close(made, sample * 2 + bias)
    assert len(recorded) == 2


def test_a_layer_in_8_bits_is_near_the_layer_and_not_equal():
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 48)
    rows = torch.randn(2, 5, 64)
    with torch.no_grad():
        wanted, made = linear(rows), Fp8Linear(linear)(rows)
    error = float((made - wanted).norm() / wanted.norm())
    assert made.shape == wanted.shape
    assert 1e-4 < error < 0.05


def test_the_stand_in_multiplies_as_torchs_own():
    torch.manual_seed(0)
    rows, scale = quantize(torch.randn(32, 64))
    weight, weight_scale = quantize(torch.randn(48, 64))
    own = torch._scaled_mm(
        rows, weight.t(), scale_a=scale, scale_b=weight_scale, out_dtype=torch.float32, use_fast_accum=True
    )
    torch.testing.assert_close(multiply(rows, scale, weight, weight_scale, torch.float32), own)


def test_the_parts_of_a_picture_are_timed_and_no_hook_stays(shop):
    pipeline = shop.ours.pipeline
    hooks = len(pipeline.unet._forward_pre_hooks), len(pipeline.vae.decoder._forward_pre_hooks)
    times = time_picture(shop.ours, shop.order(5))
    assert 0 < times.loop < times.whole
    assert 0 < times.decode < times.whole
    assert (len(pipeline.unet._forward_pre_hooks), len(pipeline.vae.decoder._forward_pre_hooks)) == hooks


def test_events_stand_in_for_those_of_a_gpu():
    first, second = HostEvent(), HostEvent()
    first.record()
    second.record()

    assert 0 <= first.elapsed_time(second) < 1e3
    calls = []
    assert time_calls(CPU, lambda: calls.append(1), rounds=3, warm_ups=2) >= 0
    assert len(calls) == 5
    with watch_memory(CPU) as peak:
        pass
    assert peak.growth is None


def test_a_wrong_lora_would_be_seen(shop):
    """The controls of the checks: without the LoRA, and without the tokens, it is another picture."""
    order = shop.order(0)
    own = shop.ours.draw(order).pixels
    assert measure_psnr(shop.ours.draw(order, lora_scale=0).pixels, own) < 60
    assert measure_psnr(shop.ours.draw(order).pixels, own) == 100
