"""Drawing from a draft: diffusers' image-to-image, a picture that wraps, and nothing left behind."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from msgspec import structs

from tests.tiny_sdxl import base_of, share_model, write_manifest, write_tokens
from tilemix.colors.palette import chart_palette
from tilemix.drafts.draft import draft_mix
from tilemix.drafts.tone import tone
from tilemix.pictures.record import DraftRecord, parameters_text, parse_record, record_json
from tilemix.pictures.repeating import compare_records
from tilemix.pipelines import decoding
from tilemix.pipelines.clip_text import OWN_CLIP_SKIP
from tilemix.pipelines.conditioning import PromptEncoder
from tilemix.pipelines.decoding import decode_latents, encode_pixels
from tilemix.pipelines.loading import load_pipeline
from tilemix.pipelines.unet_family import tensors_of
from tilemix.prompts.mix import parse_mix
from tilemix.prompts.rewrite import rewrite
from tilemix.render import Renderer
from tilemix.request import GenerationRequest
from tilemix.weights import Adapter, find_model
from tilemix.weights.calibration import Calibration, DraftColor

TEXT = "60% red, 40% black"


@pytest.fixture(scope="module")
def renderer(tiny_project, tmp_path_factory):
    """Without a LoRA."""
    root = share_model(tmp_path_factory.mktemp("drafts"), tiny_project)
    write_manifest(root, base=base_of(root), adapters=[write_tokens(root)])
    return Renderer(load_pipeline(find_model("tiny", root), torch.device("cpu"), torch.float32))


@pytest.fixture(scope="module")
def draft():
    return draft_mix(parse_mix(TEXT).mix, None, 256, 256, seed=7)


def ask(**changes):
    return GenerationRequest(
        **({"prompt": TEXT, "seed": 7, "strength": 0.5, "num_inference_steps": 2} | changes)
    )


def hooks(network):
    return sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in network.modules())  # noqa: SLF001  torch has no public name


def draw_with_diffusers(renderer, latents, request):
    """The latents of `StableDiffusionXLImg2ImgPipeline`, called as its documentation says."""
    base = renderer.ready.base
    pipeline = StableDiffusionXLImg2ImgPipeline(**base.pipeline.components)
    pipeline.scheduler = renderer.ready.make_scheduler()
    pipeline.set_progress_bar_config(disable=True)
    prompt = f"ohwx_rubber_tile <s0><s1>, {request.prompt}, photorealistic rubber tile"
    encoder = PromptEncoder(base.encode, lambda: None)
    (guidance,) = encoder.encode(prompt, "blurry", steps=request.num_inference_steps, clip_skip=OWN_CLIP_SKIP)
    return pipeline(
        **tensors_of(guidance),
        image=latents,
        strength=request.strength,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=5.0,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        output_type="latent",
    ).images


def test_the_latents_are_those_of_diffusers_image_to_image(renderer, draft, monkeypatch):
    request = ask(num_inference_steps=4)
    monkeypatch.setattr("tilemix.pipelines.unet_family.wrapping", lambda *_: nullcontext())
    seen = []
    monkeypatch.setattr(
        "tilemix.pipelines.unet_family.decode_latents",
        lambda _, latents, **__: seen.append(latents) or draft.pixels,
    )
    renderer.render(request)
    latents = renderer.ready.base.encode_picture(draft.lit)
    assert torch.equal(seen[0], draw_with_diffusers(renderer, latents, request))


@pytest.mark.slow
def test_the_latents_are_those_of_circular_padding(renderer, draft, monkeypatch):
    request, unet = ask(), renderer.ready.base.pipeline.unet
    seen = []
    monkeypatch.setattr(
        "tilemix.pipelines.unet_family.decode_latents",
        lambda _, latents, **__: seen.append(latents) or draft.pixels,
    )
    renderer.render(request)
    for module in unet.modules():
        if isinstance(module, torch.nn.Conv2d):
            monkeypatch.setattr(module, "padding_mode", "circular")
            monkeypatch.setattr(
                module, "_reversed_padding_repeated_twice", [side for side in module.padding for _ in "ab"]
            )
    expected = draw_with_diffusers(renderer, renderer.ready.base.encode_picture(draft.lit), request)
    assert torch.allclose(seen[0], expected, atol=1e-4)


@pytest.mark.slow
def test_moving_the_draft_moves_its_latents_and_moving_latents_moves_the_picture(renderer, draft):
    base = renderer.ready.base
    latents = base.encode_picture(draft.lit)
    moved = base.encode_picture(np.roll(draft.lit, (16, -32), (0, 1)))
    assert torch.allclose(moved, latents.roll((2, -4), (2, 3)), atol=1e-4)
    pixels, shifted = (base.decode(one, wraps=True) for one in (latents, latents.roll((2, -4), (2, 3))))
    difference = np.roll(pixels, (16, -32), (0, 1)).astype(int) - shifted
    assert np.abs(difference).max() <= 1
    plain = np.roll(base.decode(latents), (16, -32), (0, 1)).astype(int) - base.decode(
        latents.roll((2, -4), (2, 3))
    )
    assert np.abs(plain).max() > 1  # without wrapping, the edge is another


@pytest.mark.slow
def test_a_picture_in_tiles_wraps_too(renderer, draft, monkeypatch):
    vae = renderer.ready.base.pipeline.vae
    whole = encode_pixels(vae, draft.pixels)
    monkeypatch.setattr(decoding, "TILE_PIXELS", 128)  # a larger picture goes through the halo
    around = encode_pixels(vae, draft.pixels)
    assert around.shape == whole.shape
    assert torch.nn.functional.cosine_similarity(around.flatten(), whole.flatten(), dim=0) > 0.99
    pixels = decode_latents(vae, whole, wraps=True)
    assert pixels.shape == draft.pixels.shape
    moved = decode_latents(vae, whole.roll((16, 16), (2, 3)), wraps=True)
    middle = np.roll(moved, (-128, -128), (0, 1)).astype(int)
    assert np.abs(middle - pixels).mean() < 5  # the norms see less of a picture in tiles


@pytest.mark.slow
def test_a_picture_that_fails_or_is_canceled_leaves_nothing_behind(renderer):
    noise = renderer.render(ask(strength=1)).pixels

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        renderer.render(ask(), on_step=stop)
    pipeline = renderer.ready.base.pipeline
    assert hooks(pipeline.vae) == 0
    assert np.array_equal(renderer.render(ask(strength=1)).pixels, noise)


def test_the_record_says_what_was_drawn_from(renderer, draft):
    record = renderer.render(ask(granule_size="large")).record
    assert record.draft == DraftRecord(strength=0.5, granule_size="large", colors=draft.colors)
    assert parse_record(record_json(record).encode(), source="here") == record
    assert "Denoising strength: 0.5" in parameters_text(record)


@pytest.mark.slow
def test_a_calibration_decides_the_strength_and_the_drafts_colors(renderer, draft, monkeypatch):
    colors = {
        "red": DraftColor(as_seen=draft.colors["red"], draft="#FF0000"),
        "black": DraftColor(as_seen="#ABCDEF", draft="#00FF00"),  # of another palette
    }
    calibration = Calibration(strength=0.5, colors=colors, figures={}, files={}, lora_scale=0.6)
    monkeypatch.setattr(renderer.planner, "calibration", calibration)
    record = renderer.plan(ask(strength=None))
    assert record.draft.strength == 0.5
    assert record.draft.colors == {"red": "#FF0000", "black": draft.colors["black"]}
    assert '"draft"' not in record_json(renderer.plan(ask(strength=1)))
    model = renderer.ready.model
    adapter = Adapter(file="a.safetensors", kind="lora", scale=0.7)
    manifest = structs.replace(model.manifest, adapters=(adapter,))
    adapted = replace(renderer.ready, model=replace(model, manifest=manifest))
    monkeypatch.setattr(renderer, "planner", renderer.planner.of_pipeline(adapted))
    assert renderer.plan(ask(strength=None)).lora_scales == {"a.safetensors": 0.6}
    assert renderer.plan(ask(strength=None, lora_scale=0.3)).lora_scales == {"a.safetensors": 0.3}


def test_the_last_step_moves_the_colors_and_is_recorded(renderer, draft, monkeypatch):
    plain = renderer.render(ask())
    calibration = Calibration(strength=0.5, colors={}, figures={}, files={}, toned=True)
    monkeypatch.setattr(renderer.planner, "calibration", calibration)
    colors = [chart_palette().find(share.color) for share in draft.mix.shares]
    expected, sizes = tone(plain.pixels, draft.layout, colors)
    toned = renderer.render(ask())
    assert np.array_equal(toned.pixels, expected)
    named = [share.color for share in draft.mix.shares]
    assert toned.record.draft.tone == {named[number]: round(size, 1) for number, size in sizes.items()}
    assert renderer.plan(ask()).draft.tone == {}
    assert compare_records(toned.record, renderer.plan(ask())) == []
    assert [note.values["name"] for note in compare_records(plain.record, toned.record)] == ["draft/tone"]
    assert '"tone"' not in record_json(plain.record)
    assert parse_record(record_json(toned.record).encode(), source="here") == toned.record
    assert "tone" in toned.seconds
    assert '"draft"' not in record_json(renderer.plan(ask(strength=1)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"strength": None}, {"prompt": "50% red, 50% zebra"}, {"num_inference_steps": 1}]
)
def test_without_a_draft_a_picture_is_drawn_from_noise(renderer, changes):
    """The manifest of this model leaves the strength at 1."""
    record = renderer.render(ask(**changes)).record
    assert '"draft"' not in record_json(record)
    assert "Denoising strength" not in parameters_text(record)


@pytest.mark.slow
def test_every_input_changes_the_picture(renderer):
    first = renderer.render(ask()).pixels
    assert np.array_equal(renderer.render(ask()).pixels, first)
    for changes in ({"strength": 0.9, "num_inference_steps": 3}, {"granule_size": "small"}, {"seed": 8}):
        assert not np.array_equal(renderer.render(ask(**changes)).pixels, first)


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "strength", "done"), [(5, 0.5, 2), (2, 0.2, 1)])
def test_a_draft_takes_its_part_of_the_steps_and_one_at_least(renderer, steps, strength, done):
    told = []
    renderer.render(
        ask(num_inference_steps=steps, strength=strength), on_step=lambda *args: told.append(args)
    )
    assert told == [(number + 1, done) for number in range(done)]


def test_what_is_drawn_from_noise_after_all_is_read_again_only_for_its_edits(renderer, monkeypatch, caplog):
    caplog.set_level("INFO", "tilemix")
    steps = []

    def read(*texts, context, **named):
        steps.append(context.steps)
        return rewrite(*texts, context=context, **named)

    monkeypatch.setattr("tilemix.planning.rewrite", read)
    renderer.plan(ask(prompt="50% red, 50% zebra", num_inference_steps=8))
    assert steps == [4]
    assert caplog.messages == ["drawn from noise: a color has no swatch to lay out"]
    edited = renderer.plan(ask(prompt="[wet:dry:0.5] granules", num_inference_steps=8))
    assert steps == [4, 4, 8]
    assert "[wet:dry:4]" in edited.sent_prompt


@pytest.mark.slow
def test_an_edit_counts_the_steps_that_are_drawn(renderer):
    edited = renderer.render(ask(prompt=f"{TEXT}, [wet:dry:0.5]", num_inference_steps=8, strength=0.5))
    assert ", [wet:dry:2], " in edited.record.sent_prompt
    late = renderer.render(ask(prompt=f"{TEXT}, [wet:dry:4]", num_inference_steps=8, strength=0.5))
    plain = renderer.render(ask(prompt=f"{TEXT}, wet", num_inference_steps=8, strength=0.5))
    assert np.array_equal(late.pixels, plain.pixels)
    assert not np.array_equal(edited.pixels, plain.pixels)
