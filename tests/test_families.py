"""What every base family must do: the same tests, on a tiny model of each with random weights and the real key names.

The references are diffusers' own pipelines, loaded from the same folder and called as their documentation says.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file

from tests import tiny_flux, tiny_sd1, tiny_sdxl
from tests.adapter_crafts import read_weights
from tilemix.adapters.embedding_file import read_embedding
from tilemix.errors import AdapterError, ManifestError, RenderError, RequestError
from tilemix.modelfile.base_families import BASE_FAMILIES
from tilemix.pipelines.conditioning import PromptEncoder
from tilemix.pipelines.family import Denoising
from tilemix.pipelines.loading import load_pipeline
from tilemix.render import Renderer
from tilemix.request import GenerationRequest
from tilemix.samplers import load_samplers
from tilemix.weights import find_model

SIDE = 64  # pixels
TEXT, NEGATIVE = "50% red, 50% black tile", "blurry"
STEPS, GUIDANCE, SEED = 2, 3.5, 7


@dataclass(frozen=True)
class Case:
    """A family, and what the tests need of it."""

    family: str
    model: str
    write: Callable[[Path], Path]  # a project with the model
    load: Callable[[Path], DiffusionPipeline]  # diffusers' own pipeline of a project
    lora: str  # a module of the network that draws, in diffusers' names
    stranger: dict[str, tuple[int, ...]]  # the tensors of another family's LoRA
    refusal: str  # of that LoRA

    def __str__(self) -> str:
        return self.family


SDXL_LORA = {
    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (4, 2048),
    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight": (640, 4),
}
FLUX_LORA = {
    "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (4, 3072),
    "transformer.single_transformer_blocks.0.attn.to_q.lora_B.weight": (3072, 4),
}


def load_folder(kind):
    return lambda root: kind.from_pretrained(root / "weights" / "tiny", dtype=torch.float32)


CASES = (
    Case(
        "sdxl",
        "tiny",
        tiny_sdxl.write_project,
        load_folder(StableDiffusionXLPipeline),
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
        FLUX_LORA,
        "x.safetensors: Flux.1 LoRA is not supported; SDXL's LoRA, LoHa, LoKr, DoRA are",
    ),
    Case(
        "sd1",
        "old",
        lambda root: tiny_sd1.write_project(root, tiny_sd1.build_pipeline()),
        lambda _: tiny_sd1.build_pipeline(),  # the project has its weights in one file
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        FLUX_LORA,
        "x.safetensors: Flux.1 LoRA is not supported; SD 1's LoRA, LoHa, LoKr, DoRA are",
    ),
    Case(
        "flux1",
        "tiny",
        tiny_flux.write_project,
        load_folder(FluxPipeline),
        "transformer.transformer_blocks.1.attn.to_k",
        SDXL_LORA,
        "x.safetensors: made for SDXL; this model is Flux.1",
    ),
)


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def root(case, tmp_path_factory):
    """A project with the family's model, whose template needs no tokens."""
    root = case.write(tmp_path_factory.mktemp(case.family))
    template = tiny_sdxl.TEMPLATE | {"text": "ohwx_rubber_tile, $prompt", "placeholder_tokens": []}
    (root / "prompt_templates" / f"{case.model}.json").write_text(json.dumps(template | {"name": case.model}))
    return root


@pytest.fixture(scope="module")
def ready(case, root):
    """The loaded model. A test leaves it without adapters."""
    return load_pipeline(find_model(case.model, root), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def twin(case, ready, root):
    """diffusers' own pipeline, with a scheduler as the manifest names it."""
    pipeline = case.load(root)
    for network in (pipeline.vae, getattr(pipeline, family_of(ready).network)):
        network.to(memory_format=torch.channels_last)  # as ours; sums in another order differ in the last bit
    pipeline.scheduler = ready.make_scheduler()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def family_of(ready):
    return ready.model.manifest.base_family


def encode(ready, text=TEXT, negative=NEGATIVE):
    encoder = PromptEncoder(ready.base.encode, lambda: None)
    return encoder.encode(text, negative if family_of(ready).reads_negative_prompt else None, steps=STEPS)


def draw(ready, *, start=None, strength=1.0, steps=STEPS, after_step=lambda _: None, text=TEXT):
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn(ready.base.latent_shape(SIDE, SIDE), generator=generator) if start is None else start
    return ready.base.denoise(
        encode(ready, text),
        Denoising(
            start=noise,
            strength=strength,
            generator=generator,
            scheduler=ready.make_scheduler(),
            num_inference_steps=steps,
            guidance_scale=GUIDANCE,
            guided_part=1.0,
            after_step=after_step,
        ),
    )


def draw_with_diffusers(ready, pipeline, **options):
    """Call diffusers' own pipeline, which draws the noise itself."""
    own = {"negative_prompt": NEGATIVE} if family_of(ready).reads_negative_prompt else {}
    return pipeline(
        prompt=TEXT,
        width=SIDE,
        height=SIDE,
        num_inference_steps=options.pop("num_inference_steps", STEPS),
        guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(SEED),
        **own,
        **options,
    ).images


def snapshot(ready):
    return read_weights(ready.base.pipeline, ready.base.components)


def write_lora(path, ready, module, scale=1.0):
    """Write a LoRA in diffusers' names for one module; return its change at scale 1."""
    component, _, name = module.partition(".")
    weight = ready.base.components[component].get_submodule(name).weight
    generator = torch.Generator().manual_seed(1)
    down = torch.randn((4, weight.shape[1]), generator=generator)
    up = torch.randn((weight.shape[0], 4), generator=generator)
    save_file({f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}, path)
    return up @ down


def test_every_family_has_its_case():
    assert [case.family for case in CASES] == list(BASE_FAMILIES)


def test_the_picture_is_diffusers_own_bit_for_bit(ready, twin):
    latents = draw(ready)
    pixels = ready.base.decode(latents)
    assert np.array_equal(pixels, np.asarray(draw_with_diffusers(ready, twin)[0]))
    assert pixels.std() > 1


def test_a_lora_is_merged_as_by_hand_and_taken_away_bit_for_bit(case, ready, tmp_path):
    pristine, plain = snapshot(ready), draw(ready)
    change = write_lora(tmp_path / "x.safetensors", ready, case.lora)
    ready.loras.load("x", tmp_path / "x.safetensors")
    for scale in (0.35, 1.0):
        ready.loras.apply({"x": scale})
        found = snapshot(ready)
        changed = [key for key, weight in pristine.items() if not torch.equal(weight, found[key])]
        assert changed == [f"{case.lora}.weight"]
        torch.testing.assert_close(
            found[changed[0]], pristine[changed[0]] + scale * change, rtol=1e-5, atol=1e-5
        )
        assert not torch.equal(draw(ready), plain)
    ready.loras.apply({})
    assert all(torch.equal(weight, pristine[key]) for key, weight in snapshot(ready).items())
    assert torch.equal(draw(ready), plain)


def test_a_lora_of_another_family_is_refused_in_one_line(case, ready, tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in case.stranger.items()}, path)
    with pytest.raises(AdapterError) as caught:
        ready.loras.load("x", path)
    assert str(caught.value) == case.refusal


def test_learned_tokens_change_the_text_and_go_without_a_trace(ready, tmp_path):
    family, plain = family_of(ready), encode(ready, f"a <s0> {TEXT}")[0].prompt
    names = family.embeddings[0]
    rows = {
        name: torch.ones(1, width) for name, width in zip(names, ready.tokens.widths.values(), strict=True)
    }
    save_file(rows, tmp_path / "x.safetensors")
    file = read_embedding(tmp_path / "x.safetensors", ready.tokens.widths, family=family)
    ready.tokens.install([(file, file.tokens)])
    learned = encode(ready, f"a <s0> {TEXT}")[0].prompt
    ready.tokens.install([])
    again = encode(ready, f"a <s0> {TEXT}")[0].prompt
    assert file.tokens == ("<s0>",)
    assert any(not torch.equal(one, other) for one, other in pairs(plain, learned))
    assert all(torch.equal(one, other) for one, other in pairs(plain, again))


def pairs(first, second):
    """The tensors of two texts, side by side."""
    yield first.states, second.states
    if first.pooled is not None:
        yield first.pooled, second.pooled


def test_a_cancellation_between_steps_leaves_the_next_picture_as_it_was(ready):
    class Canceled(BaseException):
        pass

    def cancel(done):
        seen.append(done)
        raise Canceled

    expected, seen = draw(ready), []
    with pytest.raises(Canceled):
        draw(ready, after_step=cancel, steps=5)
    assert seen == [1]
    assert torch.equal(draw(ready), expected)


def test_a_picture_from_a_draft_takes_a_part_of_the_steps(ready):
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    start = ready.base.encode_picture(pixels)
    assert start.shape == ready.base.latent_shape(SIDE, SIDE)
    for steps, strength, drawn in ((4, 0.5, 2), (5, 0.3, 1)):
        seen = []
        latents = draw(ready, start=start, strength=strength, steps=steps, after_step=seen.append)
        assert seen == list(range(1, drawn + 1))
        assert latents.shape == start.shape
        assert bool(latents.isfinite().all())


def test_latents_that_are_not_finite_are_no_black_picture(ready):
    with pytest.raises(RenderError, match="not finite"):
        ready.base.decode(torch.full(ready.base.latent_shape(SIDE, SIDE), torch.nan))


def test_an_edit_changes_the_text_after_its_step(ready):
    """[a:b:1] of two steps: the first step sees a, the second b."""
    begun, ended = draw(ready, text="a red tile"), draw(ready, text="a black tile")
    edited = draw(ready, text="a [red:black:1] tile")
    assert not torch.equal(edited, begun)
    assert not torch.equal(edited, ended)
    assert torch.equal(draw(ready, text="a [red:black:0] tile"), ended)


def test_a_request_is_drawn_recorded_and_held_to_the_familys_rules(case, ready, caplog):
    family, renderer, steps = family_of(ready), Renderer(ready), []
    request = GenerationRequest(
        prompt="a red tile", negative_prompt="ugly", seed=0, strength=1.0, clip_skip=1
    )
    with caplog.at_level(logging.WARNING):
        drawn = renderer.render(request, on_step=lambda done, total: steps.append((done, total)))
    assert steps == [(1, 2), (2, 2)]
    assert drawn.pixels.shape == (256, 256, 3)
    assert (drawn.record.seed, drawn.record.model, drawn.record.dtype) == (0, case.model, "float32")
    assert drawn.record.sent_negative_prompt == ("ugly" if family.reads_negative_prompt else "")
    note = f"{family.base} reads no negative prompt; it counts for nothing"
    assert (note in caplog.text) != family.reads_negative_prompt
    assert (f"clip_skip 1 has no effect on {family.base}" in caplog.text) != family.has_clip_skip
    wrong = GenerationRequest(prompt="a red tile", seed=0, width=264)
    if family.size_step == 16:
        with pytest.raises(RequestError, match="^width 264: expected a multiple of 16 from 256 to 1536$"):
            renderer.render(wrong)


@pytest.mark.slow
def test_every_sampler_for_the_family_draws(ready):
    renderer, is_flow = Renderer(ready), family_of(ready).is_flow
    request = GenerationRequest(prompt="a red tile", seed=0, strength=1.0)
    for sampler in load_samplers().values():
        own = renderer.with_scheduler(sampler.title)
        if is_flow and sampler.flow_scheduler is None:
            with pytest.raises(ManifestError, match="^unknown scheduler '.*'; known: euler$"):
                own.render(request)
            continue
        assert own.render(request).pixels.std() > 1
        if sampler.most_steps is not None:
            most = sampler.most_steps
            with pytest.raises(RequestError, match=f"^num_inference_steps {most + 1} is out of range"):
                own.render(replace(request, num_inference_steps=most + 1))
