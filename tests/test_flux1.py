"""Flux.1 in particular: its LoRA formats, drafts, edits, emphasis, and the model without guidance."""

import shutil

import pytest
import torch
from diffusers import FluxImg2ImgPipeline, FluxPipeline
from safetensors.torch import save_file

from tests import tiny_flux
from tests.adapter_crafts import Workbench, assert_merged_by_hand, assert_taken_away, read_weights
from tests.flux_formats import FLUX_FORMATS
from tests.quick import first_quick
from tests.test_families import SIDE, TEXT, draw, encode
from tests.test_lora_formats import SCALES, named
from tilemix.adapters.fit import read_shapes
from tilemix.errors import AdapterError, ManifestError
from tilemix.modelfile.base_families import FLUX1
from tilemix.pipelines.flux1 import pack, unpack
from tilemix.pipelines.loading import load_pipeline
from tilemix.pipelines.noise import mix_noise, vary_added_noise
from tilemix.render import Renderer
from tilemix.request import GenerationRequest
from tilemix.weights import find_model, locate_model
from tilemix.weights.add import add

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny_flux.write_project(tmp_path_factory.mktemp("flux"))


@pytest.fixture(scope="module")
def ready(root):
    return load_pipeline(find_model("tiny", root), CPU, torch.float32)


def load_twin(root):
    twin = FluxPipeline.from_pretrained(root / "weights" / "tiny", dtype=torch.float32)
    twin.set_progress_bar_config(disable=True)
    return twin


@pytest.fixture(scope="module")
def twin(root):
    return load_twin(root)


@pytest.fixture(scope="module")
def pristine(ready):
    return read_weights(ready.base.pipeline, ready.base.components)


@pytest.fixture
def bench(pristine, tmp_path):
    return Workbench(pristine, tmp_path)


def run(pipeline):
    """What the transformer and CLIP answer to one fixed input."""
    generator = torch.Generator().manual_seed(2)
    with torch.inference_mode():
        drawn = pipeline.transformer(
            hidden_states=torch.randn((1, 4, 64), generator=generator),
            encoder_hidden_states=torch.randn((1, 5, 24), generator=generator),
            pooled_projections=torch.randn((1, 32), generator=generator),
            timestep=torch.tensor([0.5]),
            guidance=torch.tensor([3.5]),
            img_ids=torch.randint(0, 4, (4, 3), generator=generator).float(),
            txt_ids=torch.zeros((5, 3)),
            return_dict=False,
        )[0]
        return drawn, pipeline.text_encoder(torch.arange(77)[None]).pooler_output


def assert_close(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", first_quick(named(FLUX_FORMATS, "exact")))
def test_a_lora_of_every_format_is_merged_as_by_hand(ready, pristine, bench, form):
    path, truth = form.craft(bench)
    plain = run(ready.base.pipeline)
    assert_merged_by_hand(ready, path, truth, pristine, SCALES)
    assert any(
        not torch.equal(one, other) for one, other in zip(run(ready.base.pipeline), plain, strict=True)
    )
    assert_taken_away(ready, pristine)


@pytest.mark.slow
@pytest.mark.parametrize("form", [param for param in named(FLUX_FORMATS, "exact") if param.values[0].peft])
def test_where_diffusers_own_loader_reads_it_the_model_answers_the_same(root, ready, bench, form):
    path, _ = form.craft(bench)
    ready.loras.load("x", path)
    reference = load_twin(root)
    reference.load_lora_weights(str(path), adapter_name="user_lora")
    for scale in SCALES[1:]:
        ready.loras.apply({"x": scale})
        reference.set_adapters(["user_lora"], [scale])
        assert_close(run(ready.base.pipeline), run(reference))
    ready.loras.apply({})


@pytest.mark.parametrize("form", named(FLUX_FORMATS, "refused"))
def test_every_other_format_is_refused_by_name(ready, bench, form):
    path, _ = form.craft(bench)
    with pytest.raises(AdapterError) as caught:
        ready.loras.load("refused", path)
    assert str(caught.value) == form.message


def test_latents_are_packed_as_diffusers_packs_them():
    latents = torch.randn(1, 16, 6, 10)
    packed = pack(latents)
    assert torch.equal(packed, FluxPipeline._pack_latents(latents, 1, 16, 6, 10))  # noqa: SLF001  no public name
    assert torch.equal(unpack(packed, 6, 10), latents)


def test_a_picture_from_a_draft_is_diffusers_own_bit_for_bit(ready, twin):
    pipeline = FluxImg2ImgPipeline(**twin.components)
    pipeline.set_progress_bar_config(disable=True)
    start = torch.randn(1, 16, SIDE // 8, SIDE // 8)
    expected = pipeline(
        TEXT,
        image=start,
        strength=0.5,
        num_inference_steps=4,
        guidance_scale=3.5,
        width=SIDE,
        height=SIDE,
        generator=torch.Generator().manual_seed(7),
        output_type="latent",
    ).images
    assert torch.equal(
        draw(ready, start=start, strength=0.5, steps=4), unpack(expected, SIDE // 8, SIDE // 8)
    )


@pytest.mark.parametrize(("steps", "strength"), [(25, 0.5), (25, 0.06), (100, 0.29), (3, 0.67), (50, 0.58)])
def test_a_draft_takes_as_many_steps_as_other_families_take(ready, monkeypatch, steps, strength):
    """diffusers rounds the steps that it leaves out, up or down as floating point has it."""
    seen = []
    monkeypatch.setattr(
        ready.base.pipeline.transformer, "forward", lambda hidden_states, **_: (hidden_states,)
    )
    draw(ready, start=torch.zeros(1, 16, 2, 2), strength=strength, steps=steps, after_step=seen.append)
    assert seen == list(range(1, int(steps * strength) + 1))


def test_a_second_noise_varies_what_is_added_to_a_draft(ready):
    scheduler, plain = ready.make_scheduler(), ready.make_scheduler()
    sample, noise, second = torch.randn(3, 1, 16, 4, 4).unbind()
    vary_added_noise(scheduler, second, 0.3)
    time = scheduler.timesteps[200:201]
    expected = plain.scale_noise(sample, time, mix_noise(noise, second, 0.3))
    assert torch.equal(scheduler.scale_noise(sample, time, noise), expected)


def test_emphasis_moves_the_states_of_its_words_alone(ready):
    plain, strong, none = (
        encode(ready, text)[0].prompt for text in ("a red tile", "a (red:1.5) tile", "a (red:0) tile")
    )
    empty = encode(ready, "")[0].prompt
    tokenizer = ready.base.pipeline.tokenizer_2
    place = tokenizer.convert_ids_to_tokens(tokenizer("a red tile").input_ids).index("▁red")
    expected = plain.states.clone()
    expected[0, place] = empty.states[0, place] + 1.5 * (plain.states[0, place] - empty.states[0, place])
    torch.testing.assert_close(strong.states, expected)
    torch.testing.assert_close(none.states[0, place], empty.states[0, place])
    assert torch.equal(strong.pooled, plain.pooled)


def test_in_bf16_latents_stay_in_fp32(root):
    ready = load_pipeline(find_model("tiny", root), CPU, torch.bfloat16)
    latents = draw(ready)
    assert latents.dtype == torch.float32
    assert bool(latents.isfinite().all())
    assert ready.base.decode(latents).shape == (SIDE, SIDE, 3)


@pytest.mark.slow
def test_the_model_without_guidance_is_diffusers_own_bit_for_bit(tmp_path):
    root = tiny_flux.write_project(tmp_path, guidance=False)
    ready = load_pipeline(find_model("tiny", root), CPU, torch.float32)
    expected = load_twin(root)(
        TEXT,
        width=SIDE,
        height=SIDE,
        num_inference_steps=2,
        max_sequence_length=256,
        generator=torch.Generator().manual_seed(7),
        output_type="latent",
    ).images
    assert torch.equal(draw(ready), unpack(expected, SIDE // 8, SIDE // 8))


def test_a_scheduler_of_other_families_is_refused(root, tmp_path):
    text = (root / "weights" / "tiny.model.json").read_text().replace('"euler"', '"ddim"')
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "tiny.model.json").write_text(text)
    (tmp_path / "weights" / "tiny").symlink_to(root / "weights" / "tiny")
    (tmp_path / "prompt_templates").symlink_to(root / "prompt_templates")
    with pytest.raises(ManifestError, match="^tiny.model.json: unknown scheduler 'ddim'; known: euler$"):
        load_pipeline(locate_model("tiny", tmp_path), CPU, torch.float32)


def test_adapters_are_proved_added_and_drawn_with(root, tmp_path):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "tiny").symlink_to(root / "weights" / "tiny")
    (tmp_path / "prompt_templates").symlink_to(root / "prompt_templates")
    shutil.copy(root / "weights" / "tiny.model.json", tmp_path / "weights")
    name = "transformer.single_transformer_blocks.0.attn.to_q"
    save_file(
        {f"{name}.lora_A.weight": torch.ones(4, 32), f"{name}.lora_B.weight": torch.ones(32, 4)},
        tmp_path / "face.safetensors",
    )
    save_file({"clip_l": torch.ones(2, 32)}, tmp_path / "tokens.safetensors")
    save_file({"clip_l": torch.ones(2, 32), "clip_g": torch.ones(2, 48)}, tmp_path / "sdxl.safetensors")
    for file in ("face.safetensors", "tokens.safetensors"):
        add(str(tmp_path / file), "tiny", root=tmp_path)
    with pytest.raises(AdapterError, match="^sdxl.safetensors: made for SDXL, expected Flux.1$"):
        add(str(tmp_path / "sdxl.safetensors"), "tiny", root=tmp_path)
    renderer = Renderer(load_pipeline(find_model("tiny", tmp_path), CPU, torch.float32))
    assert list(renderer.ready.tokens.installed) == ["<s0>", "<s1>"]
    request = GenerationRequest(prompt="50% red, 50% black", seed=3, strength=0.5, num_inference_steps=4)
    steps = []
    drawn = renderer.render(request, on_step=lambda *done: steps.append(done))
    assert steps == [(1, 2), (2, 2)]
    assert drawn.record.lora_scales == {"face.safetensors": 0.7}
    assert drawn.record.draft.strength == 0.5


def test_a_lora_of_the_published_size_is_proved_before_the_base_is_here(tmp_path):
    shapes = read_shapes(tmp_path, "black-forest-labs/FLUX.1-dev", FLUX1)
    tensors = {}
    for name, rows, columns in (
        ("double_blocks_18_img_attn_qkv", 3 * 3072, 3072),
        ("double_blocks_0_txt_mlp_0", 12288, 3072),
        ("single_blocks_37_linear1", 3 * 3072 + 12288, 3072),
        ("single_blocks_0_linear2", 3072, 3072 + 12288),
        ("guidance_in_in_layer", 3072, 256),
    ):
        tensors[f"lora_unet_{name}.lora_down.weight"] = torch.zeros(1, columns)
        tensors[f"lora_unet_{name}.lora_up.weight"] = torch.zeros(rows, 1)
    save_file(tensors, tmp_path / "x.safetensors")
    shapes.prove_lora(tmp_path / "x.safetensors", 0)
    save_file(
        {"lora_unet_double_blocks_19_img_mod_lin.lora_down.weight": torch.zeros(1, 3072)},
        tmp_path / "x.safetensors",
    )
    with pytest.raises(AdapterError, match="no place in this model for 1 of its tensors"):
        shapes.prove_lora(tmp_path / "x.safetensors", 0)


def test_the_end_of_a_prompt_that_is_not_read_is_told(ready, caplog):
    encode(ready, "z" * 600)
    assert "the prompt has 602 tokens; Flux.1 does not read the last 90" in caplog.text
