import gc
import json
import logging
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.quick import first_quick
from tests.tiny_sdxl import TEMPLATE, base_of, share_model, write_manifest
from tilemix import __version__
from tilemix.errors import ManifestError, ModelFileError, PromptError, RenderError, RequestError
from tilemix.modelfile.hashes import compute_hashes
from tilemix.pictures.record import parameters_text
from tilemix.pipelines.decoding import decode_latents, to_pixels
from tilemix.pipelines.loading import load_pipeline
from tilemix.pipelines.settings import Settings
from tilemix.render import Renderer
from tilemix.request import GenerationRequest
from tilemix.system.project import ROOT
from tilemix.weights import find_model

CPU = torch.device("cpu")
RED = GenerationRequest(prompt="60% red, 40% black", seed=7)


@pytest.fixture(scope="module")
def renderer(adapted_project):
    """A renderer with a LoRA at 0.7 and the tokens <s0><s1>."""
    return Renderer(load_pipeline(find_model("tiny", adapted_project), CPU, torch.float32))


def test_loading_refuses_what_is_missing_before_it_imports_anything(tmp_path, monkeypatch):
    monkeypatch.setattr("tilemix.pipelines.sdxl.Sdxl.import_libraries", lambda: pytest.fail("imported"))
    with pytest.raises(ManifestError):
        load_alone("none", tmp_path, monkeypatch)


def test_loading_refuses_a_file_that_is_not_what_the_manifest_says(tiny_project, tmp_path, monkeypatch):
    base = base_of(tiny_project)
    base["files"] = [file | {"sha256": "0" * 64} for file in base["files"]]
    share_model(tmp_path, tiny_project, base=base)
    with pytest.raises(ModelFileError, match=f", the manifest says {'0' * 64}$"):
        load_alone("tiny", tmp_path, monkeypatch)


def test_a_model_that_is_whole_is_loaded(monkeypatch):
    assert list(load_alone("miniature", ROOT, monkeypatch).ready.tokens.installed) == ["<s0>", "<s1>"]


def load_alone(name, root, monkeypatch):
    """Load a renderer, but leave this process its allocator, its threads and its garbage collector."""
    monkeypatch.setattr("tilemix.render.keep_freed_memory", lambda: True)
    monkeypatch.setattr("gc.freeze", lambda: None)
    return Renderer.load(name, Settings(threads=torch.get_num_threads()), root=root)


def replace(**changes):
    return GenerationRequest(**({"prompt": RED.prompt, "seed": 7} | changes))


def test_a_picture_comes_with_its_record(renderer):
    steps = []
    rendered = renderer.render(RED, on_step=lambda done, total: steps.append((done, total)))
    assert rendered.pixels.shape == (256, 256, 3)
    assert rendered.pixels.dtype == np.uint8
    assert steps == [(1, 2), (2, 2)]
    assert set(rendered.seconds) == {"encode_prompt", "denoise", "decode"}
    record = rendered.record
    assert record.prompt == "60% red, 40% black"
    assert record.sent_prompt == ("ohwx_rubber_tile <s0><s1>, 60% red, 40% black, photorealistic rubber tile")
    assert record.sent_negative_prompt == "blurry"
    assert record.mix == {"red": 60.0, "black": 40.0}
    assert (record.seed, record.width, record.height, record.num_inference_steps) == (7, 256, 256, 2)
    assert (record.guidance_scale, record.lora_scale) == (5.0, 0.7)
    assert (record.scheduler, record.dtype, record.device) == ("dpm++_2m_karras", "float32", "cpu")
    assert record.threads == torch.get_num_threads()
    assert record.model == "tiny"
    assert record.files["lora.safetensors"] is None  # not locked
    assert record.versions["torch"] == torch.__version__  # with "+cpu", since another build draws other bits


@pytest.mark.parametrize(
    "changes", [{}, {"lora_scale": 0.2}, {"negative_prompt": ""}, {"width": 256, "height": 512}]
)
def test_the_record_is_known_before_the_picture_is_drawn(renderer, changes):
    request = replace(num_inference_steps=1, **changes)
    assert renderer.plan(request) == renderer.render(request).record


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.slow
def test_a_variation_mixes_in_the_noise_of_another_seed(renderer, strength):
    own = renderer.render(replace(strength=strength))
    same = renderer.render(replace(strength=strength, variation_seed=7, variation_strength=1.0))
    assert np.array_equal(same.pixels, own.pixels)
    other = renderer.render(replace(strength=strength, variation_seed=9, variation_strength=1.0))
    assert (other.record.variation.seed, other.record.variation.strength) == (9, 1.0)
    assert not np.array_equal(other.pixels, own.pixels)
    if strength == 1:  # nothing but the noise comes from the seed
        assert np.array_equal(other.pixels, renderer.render(replace(seed=9, strength=1.0)).pixels)


def test_a_variation_seed_alone_says_that_it_has_no_effect(renderer, caplog):
    with caplog.at_level(logging.INFO, "tilemix"):
        record = renderer.plan(replace(variation_seed=9))
    assert record == renderer.plan(RED)
    assert "variation_seed 9 has no effect: variation_strength is 0" in caplog.text


def test_clip_skip_chooses_the_layer_of_the_text_encoders(renderer):
    drawn = {skip: renderer.render(replace(clip_skip=skip)) for skip in (None, 1, 2)}
    assert np.array_equal(drawn[2].pixels, drawn[None].pixels)  # the one that SDXL was trained on
    assert not np.array_equal(drawn[1].pixels, drawn[2].pixels)
    assert drawn[1].record.clip_skip == 1
    assert drawn[None].record.clip_skip is msgspec.UNSET
    with pytest.raises(RequestError, match="clip_skip 12 is out of range; expected 1 to 2"):
        renderer.render(replace(clip_skip=12))


def test_the_infotext_names_the_lora_by_the_hash_of_its_tensors(renderer):
    """Web UIs and model sites look up AutoV3; the whole file's SHA256 found nothing."""
    path = renderer.ready.model.adapters[0]
    autov3 = compute_hashes(path, every=True).autov3
    record = renderer.render(RED).record
    assert record.lora_hashes == {"lora.safetensors": autov3.lower()}
    assert f'Lora hashes: "lora: {autov3.lower()}"' in parameters_text(record)


@pytest.mark.slow
def test_a_token_typed_as_its_trainer_named_it_is_all_of_its_rows(project, caplog):
    """`<my tile>` drew without the embedding, and nobody said so."""
    module = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {f"{module}.lora_A.weight": torch.zeros(4, 32), f"{module}.lora_B.weight": torch.zeros(32, 4)}
    tensors |= {
        "bundle_emb.<my tile>.clip_l": torch.full((2, 32), 0.5),
        "bundle_emb.<my tile>.clip_g": torch.full((2, 48), 0.5),
    }
    save_file(tensors, project / "weights" / "x.safetensors")
    (project / "prompt_templates" / "tiny.json").write_text(
        json.dumps(TEMPLATE | {"text": "a tile, $prompt", "trigger_words": [], "placeholder_tokens": []})
    )
    adapters = [{"file": "x.safetensors", "kind": "lora", "scale": 0.7}]
    write_manifest(project, base=base_of(project), adapters=adapters)
    drawn = Renderer(load_pipeline(find_model("tiny", project), CPU, torch.float32))
    assert list(drawn.ready.tokens.installed) == ["<my_tile_0>", "<my_tile_1>"]
    rendered = drawn.render(
        GenerationRequest(seed=7, prompt="(<my tile>:1.2), wet", negative_prompt="<my tile> <worn>")
    )
    assert "(<my_tile_0><my_tile_1>:1.2)" in rendered.record.sent_prompt
    spelled = drawn.render(
        GenerationRequest(
            seed=7,
            prompt="(<my_tile_0><my_tile_1>:1.2), wet",
            negative_prompt="<my_tile_0><my_tile_1> <worn>",
        )
    )
    assert np.array_equal(rendered.pixels, spelled.pixels)
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert set(told) == {
        "no color mix found; sent as typed",
        "<worn> in the prompt is not a token of this model: it counts as plain text",
    }


def test_the_same_seed_gives_the_same_pixels_whatever_was_drawn_before(renderer):
    first = renderer.render(RED).pixels
    renderer.render(replace(seed=8, lora_scale=1.3, num_inference_steps=3, guidance_scale=2.0, width=264))
    assert np.array_equal(renderer.render(RED).pixels, first)
    assert not np.array_equal(renderer.render(replace(seed=8)).pixels, first)


@pytest.mark.parametrize(
    "changes",
    first_quick(
        [{"lora_scale": 0.0}, {"guidance_scale": 1.0}, {"num_inference_steps": 3}, {"negative_prompt": ""}]
    ),
)
def test_every_input_changes_the_picture(renderer, changes):
    assert not np.array_equal(renderer.render(replace(**changes)).pixels, renderer.render(RED).pixels)


def test_the_picture_is_the_plain_pipelines_own(renderer):
    """Against diffusers' own call: its prompt encoding, its decoding, its conversion to a picture."""
    pipeline = renderer.ready.base.pipeline
    pipeline.scheduler = renderer.ready.make_scheduler()
    theirs = pipeline(
        "ohwx_rubber_tile <s0><s1>, 60% red, 40% black, photorealistic rubber tile",
        negative_prompt="blurry",
        width=256,
        height=256,
        num_inference_steps=2,
        guidance_scale=5.0,
        generator=torch.Generator("cpu").manual_seed(7),
    ).images[0]
    differ = np.abs(np.asarray(theirs).astype(int) - renderer.render(RED).pixels)
    assert differ.max() <= 1
    assert (differ == 0).mean() >= 0.999  # the pooled vectors of two prompts at once have other last bits


def test_a_size_that_is_not_square_keeps_width_and_height_apart(renderer):
    assert renderer.render(replace(width=320, height=264, num_inference_steps=1)).pixels.shape == (
        264,
        320,
        3,
    )


def test_a_cancellation_takes_effect_at_the_step_and_the_next_picture_is_right(renderer):
    expected = renderer.render(RED).pixels

    class Cancelled(BaseException):
        pass

    seen = []

    def cancel(done, total):
        seen.append(done)
        raise Cancelled

    with pytest.raises(Cancelled):
        renderer.render(replace(num_inference_steps=50, lora_scale=1.4), on_step=cancel)
    assert seen == [1]
    assert np.array_equal(renderer.render(RED).pixels, expected)


def test_a_refused_prompt_leaves_the_next_picture_right(renderer):
    expected = renderer.render(RED).pixels
    with pytest.raises(PromptError):
        renderer.render(replace(prompt="60% red, 20% black"))
    assert np.array_equal(renderer.render(RED).pixels, expected)


def test_it_draws_where_the_package_is_not_installed(renderer, monkeypatch):
    """The image has tilemix's files but no installed package: its metadata was asked for after the last step."""
    import importlib.metadata

    def version(name):
        if name == "tilemix":
            raise importlib.metadata.PackageNotFoundError(name)
        return importlib.metadata.version(name)

    monkeypatch.setattr("tilemix.planning.version", version)
    record = renderer.render(replace(num_inference_steps=1)).record
    assert record.versions["tilemix"] == __version__
    assert record.lora_scales == {"lora.safetensors": 0.7}
    assert record.scheduler_config == {}
    assert renderer.is_healthy()


def test_a_drawn_seed_is_logged_and_recorded(renderer, caplog):
    caplog.set_level(logging.INFO, logger="tilemix")
    rendered = renderer.render(GenerationRequest(prompt="60% red, 40% black", num_inference_steps=1))
    assert f"Using seed: {rendered.record.seed}" in caplog.messages


@pytest.mark.slow
def test_a_model_without_a_lora_says_that_the_scale_has_no_effect(tiny_project, tmp_path, caplog):
    template = TEMPLATE | {"text": "$prompt", "trigger_words": [], "placeholder_tokens": []}
    share_model(tmp_path, tiny_project, template=template)
    bare = Renderer(load_pipeline(find_model("tiny", tmp_path), CPU, torch.float32))
    rendered = bare.render(replace(lora_scale=0.7, num_inference_steps=1))
    assert rendered.record.lora_scale is None
    assert "lora_scale 0.7 has no effect: the model has no LoRA" in caplog.messages


@pytest.mark.slow
def test_a_template_whose_token_no_embedding_brings_is_refused_at_once(tiny_project):
    """Without this the token would be spelled out in eight pieces of junk, in silence."""
    with pytest.raises(
        ManifestError, match="^tiny.model.json: template 'tiny' needs the token '<s0>', which no"
    ):
        Renderer(load_pipeline(find_model("tiny", tiny_project), CPU, torch.float32))


@pytest.mark.slow
def test_defaults_out_of_range_are_refused_at_once(project):
    defaults = {"width": 1000, "height": 1028, "num_inference_steps": 2, "guidance_scale": 5.0}
    write_manifest(project, base=base_of(project), defaults=defaults)
    with pytest.raises(
        ManifestError, match="^tiny.model.json: defaults: height 1028: expected a multiple of 8"
    ):
        Renderer(load_pipeline(find_model("tiny", project), CPU, torch.float32))


def test_latents_that_are_not_finite_are_an_error_and_no_black_picture(renderer):
    latents = torch.full((1, 4, 8, 8), torch.nan)
    with pytest.raises(
        RenderError, match="^the denoised latents are not finite: no picture can be made of them$"
    ):
        decode_latents(renderer.ready.base.pipeline.vae, latents)


@pytest.mark.slow
def test_a_vae_that_overflows_in_half_precision_is_decoded_again_in_fp32(tiny_project, caplog):
    vae = load_pipeline(find_model("tiny", tiny_project), CPU, torch.bfloat16).base.pipeline.vae
    vae.to(torch.float16)
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        vae.post_quant_conv.weight.mul_(
            6000
        )  # beyond 65504 in fp16, harmless in fp32: GroupNorm scales it back
    pixels = decode_latents(vae, latents.half() * 100)
    assert pixels.std() > 1  # a picture, not one black area
    assert any("decoding again in float32" in message for message in caplog.messages)
    assert vae.dtype == torch.float16
    with torch.no_grad():
        vae.decoder.conv_out.weight.fill_(torch.inf)
    with pytest.raises(RenderError, match="^the decoded pixels are not finite, in float32 either$"):
        decode_latents(vae, latents.half())
    assert vae.dtype == torch.float16


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_pixels_are_diffusers_own_to_the_last_one(memory_format):
    from diffusers.image_processor import VaeImageProcessor

    image = torch.randn((1, 3, 40, 56), generator=torch.Generator().manual_seed(0))
    halves = (torch.arange(0, 255) + 0.5) / 127.5 - 1  # between two numbers: to the even one
    image[0, 0, :5, :51] = halves.reshape(5, 51)
    expected = VaeImageProcessor().postprocess(image, output_type="pil")[0]
    given = image.to(memory_format=memory_format)
    pixels = to_pixels(given)
    assert np.array_equal(pixels, np.asarray(expected))
    assert pixels.flags.c_contiguous
    assert torch.equal(given, image)


@pytest.mark.slow
def test_thirty_pictures_leave_nothing_behind(renderer):
    """The long run is the bench's; here a leak of one picture's memory, or of one handle, a prediction shows."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("memory and handles are read from Linux' /proc")

    def read_state() -> tuple[int, int]:
        gc.collect()
        (resident,) = re.findall(r"VmRSS:\s+(\d+) kB", status.read_text())
        return int(resident), len(list(Path("/proc/self/fd").iterdir()))

    def draw(count: int) -> None:
        for number in range(count):
            scale = (0.0, 0.7, 1.0)[number % 3]
            changes = {"seed": number, "lora_scale": scale, "num_inference_steps": 1}
            renderer.render(replace(prompt=f"tile {number}", **changes))

    draw(10)
    resident, handles = read_state()
    draw(30)
    grown, handles_after = read_state()
    assert handles_after == handles
    assert grown - resident < 30 * 256 * 256 * 3 // 1024  # kB: less than the pixels of the pictures


def draw(renderer, prompt, **changes):
    request = GenerationRequest(
        prompt=prompt, seed=7, **({"width": 256, "height": 256, "num_inference_steps": 4} | changes)
    )
    return renderer.render(request)


@pytest.mark.slow
def test_an_edit_changes_the_picture_from_its_step_on(renderer):
    """Against a pipeline whose prompt is replaced by hand after the step."""
    edited = draw(renderer, "<s0><s1> [red:black:2] tile")
    assert edited.record.sent_prompt == "<s0><s1> [red:black:2] tile"
    base, pipeline = renderer.ready.base, renderer.ready.base.pipeline
    first, then = (
        pipeline.encode_prompt(f"<s0><s1> {color} tile", negative_prompt="blurry")
        for color in ("red", "black")
    )
    later = {"prompt_embeds": torch.cat([then[1], then[0]]), "add_text_embeds": torch.cat([then[3], then[2]])}

    def replace_prompt(_, step, __, tensors):
        return tensors | later if step == 1 else tensors

    pipeline.scheduler = renderer.ready.make_scheduler()
    noise = torch.randn((1, 4, 32, 32), generator=torch.Generator("cpu").manual_seed(7))
    with torch.inference_mode():
        latents = pipeline(
            prompt_embeds=first[0],
            negative_prompt_embeds=first[1],
            pooled_prompt_embeds=first[2],
            negative_pooled_prompt_embeds=first[3],
            latents=noise,
            width=256,
            height=256,
            num_inference_steps=4,
            guidance_scale=5.0,
            output_type="latent",
            callback_on_step_end=replace_prompt,
            callback_on_step_end_tensor_inputs=list(later),
        ).images
    assert np.array_equal(edited.pixels, base.decode(latents))
    assert not np.array_equal(edited.pixels, draw(renderer, "<s0><s1> red tile").pixels)


def test_what_the_prompt_asks_for_besides_words_is_logged(renderer, caplog):
    caplog.set_level(logging.INFO, "tilemix.render")
    draw(renderer, "a [cat|dog] {x|x} <lora:lora:0.1:0.2>")
    assert "Chosen for {x|x}: x" in caplog.text
    assert "Added LoRA: lora.safetensors (text encoders 0.1, UNet 0.2)" in caplog.text
    assert "Prompt changes after step 1, 2, 3 of 4" in caplog.text


@pytest.mark.slow
def test_an_edit_at_the_last_step_changes_nothing(renderer):
    plain = draw(renderer, "<s0><s1> red tile").pixels
    assert np.array_equal(plain, draw(renderer, "<s0><s1> [red:black:4] tile").pixels)
    assert np.array_equal(plain, draw(renderer, "<s0><s1> red tile").pixels)


@pytest.mark.slow
def test_a_named_adapter_is_added_to_the_models_own(renderer):
    named = draw(renderer, "red <lora:lora:0.3>")
    assert np.array_equal(named.pixels, draw(renderer, "red", lora_scale=1.0).pixels)
    assert named.record.named_loras == {"lora.safetensors": (0.3, 0.3)}
    assert named.record.lora_scales == {"lora.safetensors": 0.7}
    assert np.array_equal(
        draw(renderer, "red <lora:lora:-0.7>").pixels, draw(renderer, "red", lora_scale=0.0).pixels
    )
    # The LoRA of this model changes nothing but the UNet.
    apart = draw(renderer, "red <lora:lora:0:0.3>")
    assert np.array_equal(apart.pixels, named.pixels)
    assert np.array_equal(draw(renderer, "red <lora:lora:0.3:0>").pixels, draw(renderer, "red").pixels)


def test_choices_are_made_by_the_requests_seed(renderer):
    rendered = draw(renderer, "{cat|dog|bird} picture")
    assert rendered.record.chosen_prompt in {"cat picture", "dog picture", "bird picture"}
    assert rendered.record.chosen_prompt == draw(renderer, "{cat|dog|bird} picture").record.chosen_prompt
    assert (
        rendered.record.sent_prompt
        == f"ohwx_rubber_tile <s0><s1>, {rendered.record.chosen_prompt}, photorealistic rubber tile"
    )
