"""SD 1.x from one file in the original layout: bit for bit what diffusers draws, and refused in one line otherwise."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import tiny_sd1
from tests.adapter_crafts import Workbench, assert_merged_by_hand, assert_taken_away, read_weights
from tests.sd1_formats import SD1_EMBEDDINGS, SD1_FORMATS
from tests.test_lora_formats import SCALES, named
from tilemix.adapters.embedding_file import read_embedding
from tilemix.errors import AdapterError, ManifestError, ModelFileError, RequestError
from tilemix.modelfile.base_families import SD1
from tilemix.modelfile.hashes import compute_hashes
from tilemix.modelfile.ldm_config import read_ldm_config
from tilemix.pipelines.conditioning import PromptEncoder
from tilemix.pipelines.family import Denoising
from tilemix.pipelines.loading import load_pipeline
from tilemix.pipelines.schedulers import make_scheduler
from tilemix.weights import find_model, load_manifest
from tilemix.weights.prompting import make_here

CPU = torch.device("cpu")
ROUNDED = 0.501 / 255  # a pixel to its nearest of 256, and the last digits of fp32
PROMPT, NEGATIVE = "a rubber tile, red and black", "blurry"


@pytest.fixture(scope="module")
def theirs():
    """diffusers' pipeline, whose convolutions sum in the same order as ours."""
    pipeline = tiny_sd1.build_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    for network in (pipeline.unet, pipeline.vae):
        network.to(memory_format=torch.channels_last)
    return pipeline


@pytest.fixture(scope="module")
def root(tmp_path_factory, theirs):
    """A project folder that no test changes."""
    return tiny_sd1.write_project(tmp_path_factory.mktemp("sd1"), theirs)


@pytest.fixture(scope="module")
def ready(root):
    return load_pipeline(find_model("old", root), CPU, torch.float32)


@pytest.fixture
def own(root, tmp_path):
    """A project of the test's own, whose checkpoint is shared."""
    (tmp_path / "weights/old").mkdir(parents=True)
    (tmp_path / "prompt_templates").symlink_to(root / "prompt_templates")
    for name in ("final.safetensors", "final.yaml"):
        (tmp_path / "weights/old" / name).symlink_to(root / "weights/old" / name)
    tiny_sd1.write_manifest(tmp_path)
    return tmp_path


def load(root):
    return load_pipeline(find_model("old", root), CPU, torch.float32)


def guide(ready, *, clip_skip=None, prompt=PROMPT):
    encoder = PromptEncoder(ready.base.encode, lambda: 0)
    return encoder.encode(prompt, NEGATIVE, steps=2, clip_skip=clip_skip)


def draw(ready, **options):
    """Denoise the noise of seed 7 at 64 x 64 pixels."""
    noise = torch.randn(ready.base.latent_shape(64, 64), generator=torch.Generator().manual_seed(7))
    denoising = Denoising(
        start=noise, strength=1.0, generator=torch.Generator().manual_seed(7), scheduler=ready.make_scheduler(),
        num_inference_steps=2, guidance_scale=7.0, guided_part=1.0, after_step=lambda _: None,
    )  # fmt: skip
    return ready.base.denoise(guide(ready, **options), denoising)


def encode(theirs, text, clip_skip):
    """The states of an earlier layer, normed; diffusers 0.42.1 cannot with transformers 5.23."""
    row = theirs.tokenizer(text, padding="max_length", max_length=77, return_tensors="pt")
    states = theirs.text_encoder(row.input_ids, output_hidden_states=True).hidden_states[-clip_skip]
    return theirs.text_encoder.final_layer_norm(states).detach()


def draw_theirs(theirs, **options):
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(7))
    theirs.scheduler = make_scheduler("ddim", theirs.scheduler.config)
    return theirs(
        latents=noise, width=64, height=64, num_inference_steps=2, guidance_scale=7.0, output_type="latent",
        **options,
    ).images  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("clip_skip", [None, 2])
def test_one_file_draws_what_diffusers_draws(ready, theirs, clip_skip):
    options = {"prompt": PROMPT, "negative_prompt": NEGATIVE}
    if clip_skip is not None:
        states = [encode(theirs, text, clip_skip) for text in options.values()]
        options = dict(zip(("prompt_embeds", "negative_prompt_embeds"), states, strict=True))
    expected = draw_theirs(theirs, **options)
    assert torch.equal(draw(ready, clip_skip=clip_skip), expected)
    pixels = ready.base.decode(expected)
    image = theirs.vae.decode(expected / theirs.vae.config.scaling_factor).sample
    assert (
        abs(pixels / 255 - ((image[0] / 2 + 0.5).clamp(0, 1)).permute(1, 2, 0).detach().numpy()).max()
        <= ROUNDED
    )


@pytest.mark.slow
def test_a_draft_is_drawn_and_an_edit_changes_the_picture(ready):
    start = ready.base.encode_picture(torch.randint(256, (64, 64, 3), dtype=torch.uint8).numpy())
    assert start.shape == (1, 4, 8, 8)
    denoising = Denoising(
        start=start, strength=0.5, generator=torch.Generator().manual_seed(7), scheduler=ready.make_scheduler(),
        num_inference_steps=2, guidance_scale=7.0, guided_part=0.5, after_step=lambda _: None,
    )  # fmt: skip
    assert ready.base.denoise(guide(ready), denoising).isfinite().all()
    assert not torch.equal(draw(ready, prompt="[red:black:0.5] tile"), draw(ready, prompt="red tile"))


def test_clip_skip_has_the_encoders_layers_for_its_limit(ready):
    with pytest.raises(RequestError, match="clip_skip 3"):
        guide(ready, clip_skip=3)


@pytest.fixture
def bench(ready, tmp_path):
    return Workbench(read_weights(ready.base.pipeline, ready.base.components), tmp_path)


@pytest.mark.parametrize("form", named(SD1_FORMATS, "exact"))
def test_a_lora_of_every_format_is_merged_as_by_hand(ready, bench, form):
    path, truth = form.craft(bench)
    assert_merged_by_hand(ready, path, truth, bench.weights, SCALES)
    assert_taken_away(ready, bench.weights)


@pytest.mark.parametrize("form", named(SD1_FORMATS, "refused"))
def test_every_other_lora_is_refused_by_name(ready, bench, form):
    path, _ = form.craft(bench)
    with pytest.raises(ModelFileError) as caught:
        ready.loras.load("refused", path)
    assert str(caught.value) == form.message


@pytest.mark.parametrize("form", SD1_EMBEDDINGS, ids=lambda form: form.name)
def test_an_embedding_is_read_or_refused(ready, bench, form):
    path, _ = form.craft(bench)
    if form.message is None:
        rows = read_embedding(path, ready.tokens.widths, family=SD1).rows
        assert torch.equal(rows["text_encoder"], load_file(path)["emb_params"])
        return
    with pytest.raises(AdapterError) as caught:
        read_embedding(path, ready.tokens.widths, family=SD1)
    assert str(caught.value) == form.message


def test_the_vae_beside_the_checkpoint_takes_the_place_of_its_own(own, caplog):
    other = tiny_sd1.build_vae()
    folder = own / "weights/old"
    save_file(tiny_sd1.name_vae(other), folder / "final.vae.safetensors")
    ready = load(own)
    assert "final.vae.safetensors lies beside the checkpoint and is not used" in caplog.text
    latents = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(5))
    before = ready.base.decode(latents)
    tiny_sd1.write_manifest(own, "final.vae.safetensors")
    after = load(own).base.decode(latents)
    assert (before != after).any()
    expected = (
        (other.decode(latents / 0.18215).sample[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).detach().numpy()
    )
    assert abs(after / 255 - expected).max() <= ROUNDED


def test_names_of_2022_without_text_model(own, ready):
    path = own / "weights/old/final.safetensors"
    tensors = {name.replace(".text_model.", "."): tensor for name, tensor in load_file(path).items()}
    path.unlink()
    save_file(tensors, path)
    assert torch.equal(draw(load(own)), draw(ready))


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"conditioner.embedders.1.model.ln_final.weight": (4,)}, "checkpoint-two-families"),
        ({"model.diffusion_model.double_blocks.0.x": (4,)}, "checkpoint-two-families"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (32, 9, 3, 3)}, "checkpoint-variant"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (16, 4, 3, 3)}, "weights-wrong-tensor"),
        ({"first_stage_model.decoder.conv_in.weight": None}, "weights-wrong-tensor"),
        ({"cond_stage_model.transformer.text_model.final_layer_norm.bias": None}, "weights-wrong-tensor"),
    ],
)
def test_a_checkpoint_that_is_something_else_is_one_line(own, changes, code):
    path = own / "weights/old/final.safetensors"
    tensors = load_file(path)
    for name, shape in changes.items():
        tensors.pop(name, None)
        if shape:
            tensors[name] = torch.zeros(shape)
    path.unlink()
    save_file(tensors, path)
    with pytest.raises(ModelFileError) as caught:
        load(own)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


def test_a_base_of_two_checkpoints_is_refused(own):
    save_file({"a": torch.zeros(1)}, own / "weights/old/b.safetensors")
    tiny_sd1.write_manifest(own, "b.safetensors")
    with pytest.raises(ManifestError, match="its base lists 2 checkpoints"):
        load(own)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("model: !!python/object/apply:os.system ['touch /tmp/owned']", "checkpoint-yaml"),
        ("a: &a [x, x]\nmodel: {params: [*a, *a]}", "checkpoint-yaml-alias"),
        ("[" * 5000, "checkpoint-yaml"),
        ("model: {params: [1]}", "checkpoint-yaml"),
        ("model: {params: {unet_config: 3}}", "checkpoint-yaml"),
        ("\x00", "checkpoint-yaml"),
        ("# " + "x" * 300_000, "file-exceeds"),
    ],
)
def test_a_yaml_that_is_no_configuration_is_one_line(own, text, code):
    path = own / "weights/old/final.yaml"
    path.unlink()
    path.write_text(text)
    with pytest.raises(ModelFileError) as caught:
        load(own)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


def test_a_yaml_is_read_as_data(root):
    assert read_ldm_config(root / "weights/old/final.yaml")["scale_factor"] == 0.18215


def test_web_uis_know_a_converted_checkpoint_by_old_and_new_hashes(own):
    path = own / "weights/old/final.safetensors"
    origin = {"converted_from": {"autov1": "925997E9", "autov2": "89D59C3DDE"}}
    path.resolve().with_name("final.safetensors.metadata.json").write_text(json.dumps(origin))
    here = make_here("old", load_manifest("old", own), own)
    assert here.hashes == {"925997e9", "89d59c3dde", compute_hashes(path).autov1.lower()}
    assert here.heeds_clip_skip


@pytest.mark.slow
def test_a_folder_in_diffusers_layout_draws_the_same(own, ready):
    folder = own / "weights/folder"
    tiny_sd1.build_pipeline().save_pretrained(folder)
    files = [{"path": str(path.relative_to(folder))} for path in sorted(folder.rglob("*")) if path.is_file()]
    tiny_sd1.write_manifest(own, base={"folder": "folder", "files": files})
    from_folder = load(own)
    assert torch.equal(draw(from_folder), draw(ready))
    from_folder.loras.apply({})  # which opens the components' own files


@pytest.mark.slow
@pytest.mark.parametrize(("base", "is_file"), [("folder", False), ("old", False), ("old", True)])
def test_the_manifests_vae_takes_the_place_of_the_bases(own, base, is_file):
    for name, part in (("folder", tiny_sd1.build_pipeline()), ("vae", other := tiny_sd1.build_vae())):
        part.save_pretrained(own / "weights" / name)
    if is_file:
        shutil.rmtree(own / "weights/vae")
        (own / "weights/vae").mkdir()
        save_file(tiny_sd1.name_vae(other), own / "weights/vae/x.safetensors")

    def source(name):
        paths = sorted(path for path in (own / "weights" / name).rglob("*") if path.is_file())
        return {
            "folder": name,
            "files": [{"path": str(p.relative_to(own / "weights" / name))} for p in paths],
        }

    changes = {"base": source(base)} if base == "folder" else {}
    tiny_sd1.write_manifest(own, vae=source("vae"), **changes)
    found = load(own).base.pipeline.vae.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in other.state_dict().items())
