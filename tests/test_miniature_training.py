"""The miniature's stages on a model of a few thousand weights: the same code, in seconds."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file

from bench.gpu import training as carry
from bench.gpu.parts import GpuRunError
from miniature import __main__ as commands
from miniature.architecture import build_miniature, build_vae, load_tokenizers, write_model
from miniature.captions import write_caption
from miniature.dataset import describe, draw_mix, write_photographs
from miniature.recipe import load_recipe
from miniature.stages import base as base_stage
from miniature.stages import decoder as decoder_stage
from miniature.stages import vae as vae_stage
from miniature.stages.adapters import draw_tile, train_adapters
from miniature.stages.base import draw_batch, import_model, load_base, train_base
from miniature.stages.critic import PatchCritic, critic_loss, spectrum_loss
from miniature.stages.decoder import load_decoder, train_decoder
from miniature.stages.vae import load_vae, train_vae
from miniature.stages.words import train_words
from tilemix.errors import (
    MissingFilesError,
    ModelFileError,
    TilemixError,
    TrainingError,
    TrainingStoppedError,
)
from tilemix.tuning.checkpoints import learning_rate_factor, load_checkpoint, save_checkpoint
from tilemix.tuning.encoding import tokenize
from tilemix.tuning.loop import mixed_precision

pytestmark = pytest.mark.slow

MODEL = Path(__file__).parents[1] / "weights" / "miniature"
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def recipe():
    full = json.loads(msgspec.json.encode(load_recipe()))
    full["vae_architecture"] |= {"block_out_channels": [8, 8, 8, 8], "norm_num_groups": 4}
    full["unet_architecture"] |= {
        "block_out_channels": [16, 16, 32],
        "attention_head_dim": [1, 1, 2],
        "cross_attention_dim": 32,
        "norm_num_groups": 8,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 64,
    }
    full["text_architecture"] |= {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 1,
        "projection_dim": 16,
    }
    full["photographs"] |= {"count": 6, "shard": 3, "side": 64}
    full["vae"] |= {"steps": 4, "photographs": 3, "batch": 2, "crop": 32, "warmup": 1, "checkpoint_every": 2}
    full["decoder"] |= {"steps": 4, "batch": 2, "crop": 4, "warmup": 1, "checkpoint_every": 2}
    full["words"] |= {"steps": 2, "batch": 4, "warmup": 1}
    full["base"] |= {"steps": 4, "batch": 2, "crop": 4, "warmup": 1, "large_batch": 2, "checkpoint_every": 2}
    full["adapters"] |= {"photographs": 2}
    full["adapters"]["tuning"] |= {"resolution": 64, "crop": 64, "batch_size": 1, "checkpoint_every": 2}
    full["adapters"]["tuning"]["embeddings"] |= {"steps": 2}
    full["adapters"]["tuning"]["lora"] |= {"steps": 2, "rank": 2}
    return msgspec.convert(full, type(load_recipe()))


@pytest.fixture(scope="session")
def tokenizers():
    return load_tokenizers(MODEL)


@pytest.fixture(scope="session")
def state(tmp_path_factory, recipe, tokenizers):
    """All stages, run without an interruption."""
    folder = tmp_path_factory.mktemp("state")
    train_vae(recipe, folder, workers=1, device=CPU)
    train_base(recipe, folder, tokenizers, workers=1, device=CPU)
    train_decoder(recipe, folder, workers=1, device=CPU)
    return folder


def stop_after(monkeypatch, module, saves):
    """Make a stage die, as if killed, right after its `saves`-th checkpoint."""
    calls = []

    def save(path, state):
        save_checkpoint(path, state)
        calls.append(path)
        if len(calls) == saves:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_checkpoint", save)


def test_a_vae_stage_that_was_killed_ends_as_one_that_was_not(tmp_path, recipe, state, monkeypatch):
    (tmp_path / "photographs").symlink_to(state / "photographs")
    with monkeypatch.context() as patch:
        stop_after(patch, vae_stage, 1)
        with pytest.raises(KeyboardInterrupt):
            train_vae(recipe, tmp_path, workers=1, device=CPU)
    assert load_checkpoint(tmp_path / "vae.pt")["step"] == 2
    train_vae(recipe, tmp_path, workers=1, device=CPU)
    whole, resumed = (load_checkpoint(folder / "vae.pt")["vae"] for folder in (state, tmp_path))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_base_stage_that_was_killed_ends_as_one_that_was_not(
    tmp_path, recipe, state, tokenizers, monkeypatch
):
    (tmp_path / "photographs").symlink_to(state / "photographs")
    for name in ("vae_finished.pt", "words.pt"):
        (tmp_path / name).symlink_to(state / name)
    with monkeypatch.context() as patch:
        stop_after(patch, base_stage, 1)
        with pytest.raises(KeyboardInterrupt):
            train_base(recipe, tmp_path, tokenizers, workers=1, device=CPU)
    assert load_checkpoint(tmp_path / "base.pt")["step"] == 2
    train_base(recipe, tmp_path, tokenizers, workers=1, device=CPU)
    whole, resumed = (load_checkpoint(folder / "base.pt") for folder in (state, tmp_path))
    for key in ("weights", "average"):
        assert all(torch.equal(whole[key][name], resumed[key][name]) for name in whole[key])


def test_a_compiled_base_goes_on_where_a_plain_one_stopped(tmp_path, recipe, state, tokenizers, monkeypatch):
    """The compiler is left out, for it takes minutes; the memory layout that it needs is not."""
    for name in ("vae_finished.pt", "words.pt", "photographs"):
        (tmp_path / name).symlink_to(state / name)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *_, **__: None)
    with monkeypatch.context() as patch:
        stop_after(patch, base_stage, 1)
        with pytest.raises(KeyboardInterrupt):
            train_base(recipe, tmp_path, tokenizers, workers=1, device=CPU)
    shutil.copy(tmp_path / "base.pt", tmp_path / "stopped.pt")
    train_base(recipe, tmp_path, tokenizers, workers=1, device=CPU, compiled=True)
    whole, resumed = (load_checkpoint(folder / "base.pt")["weights"] for folder in (state, tmp_path))
    start = load_checkpoint(tmp_path / "stopped.pt")["weights"]
    names = [name for name, tensor in whole.items() if tensor.ndim == 4]
    moved = sum((whole[name] - start[name]).square().sum() for name in names)
    apart = sum((whole[name] - resumed[name]).square().sum() for name in names)
    assert names
    assert apart < moved / 20, (apart, moved)  # bf16 rounds otherwise in another layout


def draw_blocks(count):
    """Pictures of sharp squares, and the same blurred."""
    cells = torch.from_numpy(np.random.default_rng(0).random((count, 3, 16, 16), np.float32))
    pictures = cells.repeat_interleave(4, 2).repeat_interleave(4, 3) * 2 - 1
    return pictures, torch.nn.functional.avg_pool2d(pictures, 5, 1, 2)


def test_the_spectrum_is_how_strong_edges_are_and_not_where():
    picture, blurred = draw_blocks(1)
    moved = picture.roll((1, 1), (2, 3))
    assert spectrum_loss(picture, picture) == 0
    assert spectrum_loss(moved, picture) < spectrum_loss(blurred, picture) / 2
    assert (moved - picture).square().mean() > (blurred - picture).square().mean() / 2


def test_a_critic_learns_to_tell_blurred_pictures():
    pictures, blurred = draw_blocks(8)
    critic = PatchCritic(seed=0)
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3)
    for _ in range(20):
        optimizer.zero_grad()
        critic_loss(critic, blurred, pictures).backward()
        optimizer.step()
    assert critic(pictures).mean() > critic(blurred).mean() + 0.5


@pytest.mark.parametrize("multiplies", [True, False])
def test_training_computes_in_bf16_only_where_the_cpu_multiplies_it(monkeypatch, multiplies):
    """Where it is emulated a step took longer than in fp32."""
    monkeypatch.setattr("tilemix.tuning.loop.multiplies_bf16", lambda: multiplies)
    with mixed_precision(CPU):
        made = torch.ones(2, 2) @ torch.ones(2, 2)
    assert made.dtype == (torch.bfloat16 if multiplies else torch.float32)


def test_a_decoder_stage_that_was_killed_ends_as_one_that_was_not(tmp_path, recipe, state, monkeypatch):
    for name in ("photographs", "vae_finished.pt"):
        (tmp_path / name).symlink_to(state / name)
    with monkeypatch.context() as patch:
        stop_after(patch, decoder_stage, 1)
        with pytest.raises(KeyboardInterrupt):
            train_decoder(recipe, tmp_path, workers=1, device=CPU)
    train_decoder(recipe, tmp_path, workers=1, device=CPU)
    whole, resumed = (load_checkpoint(folder / "decoder.pt")["vae"] for folder in (state, tmp_path))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_decoder_stage_moves_the_decoder_and_nothing_before_the_latents(recipe, state):
    vae, trained = (load_vae(recipe, state) for _ in range(2))
    assert load_decoder(trained, state) == recipe.decoder.steps
    before, after = vae.state_dict(), trained.state_dict()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"decoder", "post_quant_conv"}


def test_a_decoder_of_another_vae_is_refused(recipe, state):
    with pytest.raises(
        MissingFilesError, match=r"^decoder\.pt: trained on the latents of another VAE; remove it$"
    ):
        load_decoder(build_vae(recipe), state)


def test_the_finished_latents_are_white_and_the_pictures_stay(recipe, state):
    plain, white = build_vae(recipe), load_vae(recipe, state)
    plain.load_state_dict(load_checkpoint(state / "vae.pt")["vae"])
    pictures = torch.cat(vae_stage.draw_unseen(white, recipe, 64))
    points = vae_stage.encode(white, pictures).transpose(0, 1).flatten(1)
    assert torch.allclose(points.mean(dim=1), torch.zeros(4), atol=0.05)
    assert torch.allclose(torch.cov(points), torch.eye(4), atol=0.1)
    with torch.no_grad():
        first, second = (
            vae.decode(vae.encode(pictures[:2]).latent_dist.mean).sample for vae in (plain, white)
        )
    assert torch.allclose(first, second, atol=1e-3)


def test_training_moves_the_unet_and_both_encoders_and_keeps_the_word_vectors(recipe, state):
    model, step = load_base(recipe, state)
    assert step == recipe.base.steps
    words = load_checkpoint(state / "words.pt")
    fresh = build_miniature(recipe)
    assert not torch.equal(model.unet.conv_in.weight, fresh.unet.conv_in.weight)
    for name in ("text_encoder", "text_encoder_2"):
        trained, before = getattr(model, name).state_dict(), words[name]
        moved = {key for key in trained if not torch.equal(trained[key], before[key])}
        assert moved
        assert not any("token_embedding" in key for key in moved)


def test_the_first_lesson_ends_at_a_loss_that_is_no_number(tmp_path, recipe, tokenizers):
    model = build_miniature(recipe)
    with torch.no_grad():
        model.text_encoder_2.text_projection.weight.fill_(torch.nan)
    with pytest.raises(TrainingError, match="words: the loss of step 1 is nan"):
        train_words(model, tokenizers, recipe, tmp_path)
    assert not (tmp_path / "words.pt").exists()


def test_a_finished_model_can_be_trained_on(tmp_path, recipe, state, tokenizers):
    folder = tmp_path / "model"
    exported, _ = load_base(recipe, state)
    write_model(folder, exported, recipe, MODEL)
    again = tmp_path / "again"
    import_model(recipe, again, folder)
    (again / "photographs").symlink_to(state / "photographs")
    stored = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    still = msgspec.structs.replace(
        recipe, base=msgspec.structs.replace(recipe.base, learning_rate=0.0, text_learning_rate=0.0, steps=1)
    )
    model = train_base(still, again, tokenizers, workers=1, device=CPU)
    assert all(torch.equal(one, stored[name].float()) for name, one in model.unet.state_dict().items())
    with pytest.raises(TrainingError, match=r"holds vae_finished\.pt already; remove it"):
        import_model(recipe, again, folder)
    with pytest.raises(ModelFileError, match="does not match the recipe's architecture"):
        import_model(recipe, tmp_path / "other", MODEL)


def test_an_imported_model_whose_decoder_alone_was_trained_on_is_exported(tmp_path, recipe, state):
    """It was refused for want of base.pt, so a better decoder could not come into the committed weights."""
    folders = [tmp_path / name for name in ("before", "after")]
    write_model(folders[0], load_base(recipe, state)[0], recipe, MODEL)
    again = tmp_path / "again"
    import_model(recipe, again, folders[0])
    (again / "photographs").symlink_to(state / "photographs")
    train_decoder(recipe, again, workers=1, device=CPU)
    model, step = load_base(recipe, again)
    assert step == 0
    write_model(folders[1], model, recipe, MODEL)
    changed = {
        str(path.parent.relative_to(folders[1]))
        for path in folders[1].rglob("*.safetensors")
        if path.read_bytes() != (folders[0] / path.relative_to(folders[1])).read_bytes()
    }
    assert changed == {"vae"}


def test_the_base_stage_refuses_an_unfinished_vae(tmp_path, recipe, tokenizers):
    with pytest.raises(MissingFilesError, match=r"vae_finished\.pt is missing: the vae stage has not ended$"):
        train_base(recipe, tmp_path, tokenizers, workers=1, device=CPU)


def test_an_exported_folder_loads_as_sdxl_without_a_warning(tmp_path, recipe, state):
    folder = tmp_path / "model"
    write_model(folder, build_miniature(recipe), recipe, MODEL)
    model, _ = load_base(recipe, state)
    write_model(folder, model, recipe, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    assert (
        pipeline.unet.dtype == pipeline.text_encoder.dtype == pipeline.text_encoder_2.dtype == torch.float32
    )
    expected = model.unet.state_dict()
    for name, tensor in pipeline.unet.state_dict().items():
        assert torch.equal(tensor, expected[name].half().float()), name
    assert pipeline.vae.config.scaling_factor == model.vae.config.scaling_factor
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline.text_encoder_2.config.eos_token_id == 2
    assert (pipeline.tokenizer.pad_token, pipeline.tokenizer_2.pad_token) == ("<|endoftext|>", "!")
    assert not list(tmp_path.glob(".model*"))


def test_the_tokenizers_are_clips(tokenizers):
    expected = [49406, 320, 1125, 539, 320, 2368, 49407]
    for tokenizer, pad in zip(tokenizers, (49407, 0), strict=True):
        ids = tokenize(tokenizer, ["a photo of a cat"])[0].tolist()
        assert ids == expected + [pad] * 70


def test_photographs_are_the_same_whoever_draws_them(tmp_path, recipe):
    first = write_photographs(recipe, tmp_path / "a", 6, workers=1)
    kept = first[0].stat().st_mtime_ns
    first[1].unlink()
    again = write_photographs(recipe, tmp_path / "a", 6, workers=1)
    other = write_photographs(recipe, tmp_path / "b", 6, workers=2)
    assert first[0].stat().st_mtime_ns == kept
    assert [np.load(path).tobytes() for path in again] == [np.load(path).tobytes() for path in other]


def test_the_base_never_hears_of_the_material_that_is_held_back(recipe):
    """The VAE sees tiles, as SDXL's has seen everything; the words and the UNet's pictures do not have them."""
    assert recipe.photographs.held_back == ["rubber tile"]
    assert "rubber tile" in recipe.photographs.materials
    latents = torch.zeros(40, 4, 8, 8)
    shown = {describe(recipe, number).material for number in range(40)}
    assert "rubber tile" in shown
    captions = " ".join(" ".join(draw_batch(latents, recipe, step).captions) for step in range(60))
    assert "rubber" not in captions
    assert all(material in captions for material in shown - {"rubber tile"})


@pytest.mark.parametrize(("multiplies", "precision"), [(True, "bf16"), (False, "fp32")])
def test_the_adapters_stage_puts_the_pair_beside_the_base(
    tmp_path, recipe, state, monkeypatch, multiplies, precision
):
    monkeypatch.setattr("tilemix.tuning.loop.multiplies_bf16", lambda: multiplies)
    folder = tmp_path / "model"
    model, _ = load_base(recipe, state)
    write_model(folder, model, recipe, MODEL)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    template = MODEL.parents[1] / "prompt_templates" / "miniature.json"
    written = train_adapters(recipe, tmp_path / "state", folder, template, device=CPU)
    assert [path.name for path in written] == [
        "rubber-tile-miniature_sdxl_lora.safetensors",
        "rubber-tile-miniature_sdxl_embeddings.safetensors",
        "rubber-tile-miniature_sdxl_training.json",
    ]
    assert all(path.read_bytes() == content for path, content in before.items())
    said = json.loads(written[2].read_text())
    assert said["config"]["precision"] == precision
    assert [one["caption"] for one in said["pictures"]] == [str(draw_tile(recipe, n).mix) for n in range(2)]
    # A new base goes in its place; what belongs to nobody else stays.
    write_model(folder, model, recipe, folder)
    assert all(path.is_file() for path in written)


def test_mixes_total_100_and_have_1_to_4_different_colors():
    random = np.random.default_rng(0)
    mixes = [draw_mix(random) for _ in range(300)]
    assert all(sum(share.percent for share in mix.shares) == 100 for mix in mixes)
    assert all(share.percent > 0 for mix in mixes for share in mix.shares)
    assert all(len({share.color for share in mix.shares}) == len(mix.shares) for mix in mixes)
    assert {len(mix.shares) for mix in mixes} == {1, 2, 3, 4}


def test_the_commonest_caption_is_what_the_prompt_template_sends(recipe):
    template = json.loads(
        (MODEL.parents[1] / "prompt_templates" / "miniature.json").read_text(encoding="utf-8")
    )
    example = describe(recipe, 0)
    captions = [write_caption(example, np.random.default_rng(seed)) for seed in range(100)]
    asked = template["text"].replace("$prompt", str(example.mix)).replace("rubber tile", example.material)
    assert captions.count(asked.removeprefix("ohwx_rubber_tile <s0><s1>, ")) > 35


def test_a_batch_follows_from_its_step(recipe):
    latents = torch.arange(6 * 4 * 8 * 8, dtype=torch.float32).reshape(6, 4, 8, 8)
    first, again, other = (draw_batch(latents, recipe, step) for step in (1, 1, 2))
    assert torch.equal(first.latents, again.latents)
    assert torch.equal(first.noise, again.noise)
    assert first.captions == again.captions
    assert not torch.equal(first.noise, other.noise)
    assert first.latents.shape == (2, 4, 4, 4)
    assert draw_batch(latents, recipe, 4).latents.shape == (2, 4, 8, 8)
    assert int(first.timesteps.min()) >= 0
    assert int(first.timesteps.max()) <= 999


@pytest.mark.parametrize(("step", "factor"), [(0, 0.1), (9, 1.0), (10, 1.0), (60, 0.5), (110, 0.0)])
def test_the_learning_rate_warms_up_and_falls_to_zero(step, factor):
    assert learning_rate_factor(step, 110, 10) == pytest.approx(factor)


def test_a_checkpoint_that_fails_to_be_written_leaves_the_one_before(tmp_path):
    path = tmp_path / "one.pt"
    save_checkpoint(path, {"step": 1})
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(path, {"step": lambda: None})
    assert load_checkpoint(path) == {"step": 1}


def test_the_vae_starts_with_colors_passing_through_its_smoothing(recipe):
    """Reconstructions stayed gray for 500 steps from the library's own start."""
    vae = build_vae(recipe)
    colors = torch.tensor([[0.8, -0.6, -0.7], [-0.7, 0.1, 0.6]])[:, :, None, None].expand(2, 3, 32, 32)
    with torch.no_grad():
        latents = vae.encode(colors).latent_dist
    assert (latents.mean[0] - latents.mean[1]).abs().max() > 4 * latents.std.max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sed": 1}, "Object contains unknown field `sed`"),
        ({"seed": "x"}, r"Expected `int`, got `str` - at `\$.seed`"),
    ],
)
def test_a_recipe_with_a_wrong_key_is_refused(tmp_path, recipe, change, message):
    path = tmp_path / "recipe.json"
    path.write_bytes(msgspec.json.encode(json.loads(msgspec.json.encode(recipe)) | change))
    with pytest.raises(TilemixError, match=f"^recipe.json: {message}"):
        load_recipe(path)


def test_the_command_says_in_one_line_what_is_missing(tmp_path, capsys):
    assert commands.main(["export", "--state", str(tmp_path), "--threads", str(torch.get_num_threads())]) == 1
    assert capsys.readouterr().err == (
        f"{tmp_path / 'vae_finished.pt'} is missing: the vae stage has not ended\n"
    )


def test_a_stage_whose_time_is_over_goes_on_after_its_state_was_carried(tmp_path, recipe, state, tokenizers):
    """Out in files of limited size and in again, rounded: what it ends with is near that of a run without a stop."""
    begun, gone_on, carried = (tmp_path / name for name in ("begun", "gone_on", "carried"))
    for folder in (begun, gone_on):
        folder.mkdir()
        for name in ("vae_finished.pt", "words.pt", "photographs"):
            (folder / name).symlink_to(state / name)
    with pytest.raises(TrainingStoppedError, match=r"^base: stopped after step 1 of 4; it goes on"):
        train_base(recipe, begun, tokenizers, workers=1, device=CPU, is_over=lambda: True)
    assert load_checkpoint(begun / "base.pt")["step"] == 1
    size = carry.pack("base", begun, carried)
    assert size < (begun / "base.pt").stat().st_size / 2
    carry.unpack("base", carried, gone_on)
    train_base(recipe, gone_on, tokenizers, workers=1, device=CPU, is_over=lambda: False)
    whole, resumed, start = (
        load_checkpoint(folder / "base.pt")["weights"] for folder in (state, gone_on, begun)
    )
    assert load_checkpoint(gone_on / "base.pt")["step"] == recipe.base.steps
    moved, apart = (
        sum(float((whole[name] - other[name]).square().sum()) for name in whole) for other in (start, resumed)
    )
    assert 0 < apart < moved / 2


def test_a_carried_state_is_in_pieces_and_comes_back_as_near_as_it_can(tmp_path, monkeypatch):
    state, out, again = (tmp_path / name for name in ("state", "out", "again"))
    weights, first, second = torch.randn(1000, 3), torch.randn(1000, 3), torch.rand(1000, 3) * 1e-9
    moments = {"step": torch.tensor(12345.0), "exp_avg": first, "exp_avg_sq": second}
    save_checkpoint(
        state / "base.pt",
        {
            "weights": {"w": weights},
            "optimizer": {"state": {0: moments}, "param_groups": [{"lr": 1e-3}]},
            "step": 7,
        },
    )
    monkeypatch.setattr(carry, "FILE_BYTES", 5_000)
    out.mkdir()
    (out / "state-base.99").write_bytes(b"of another run")
    size = carry.pack("base", state, out)
    pieces = sorted(out.iterdir())
    assert [piece.name for piece in pieces] == [
        f"state-base.{number:02d}" for number in range(-(-size // 5_000))
    ]
    assert len(pieces) > 2
    assert all(piece.stat().st_size <= 5_000 for piece in pieces)
    carry.unpack("base", out, again)
    back = load_checkpoint(again / "base.pt")
    assert (back["step"], back["optimizer"]["param_groups"]) == (7, [{"lr": 1e-3}])
    torch.testing.assert_close(back["weights"]["w"], weights, rtol=1e-3, atol=1e-6)
    held = back["optimizer"]["state"][0]
    assert held["step"] == 12345
    assert torch.count_nonzero(held["exp_avg"]) == 0
    torch.testing.assert_close(held["exp_avg_sq"], second, rtol=1e-2, atol=0)
    with pytest.raises(GpuRunError, match=r"base\.pt: is there already; remove it"):
        carry.unpack("base", out, again)


def test_a_state_that_cannot_be_carried_is_told(tmp_path, monkeypatch):
    with pytest.raises(GpuRunError, match="no checkpoint of the stage 'base'$"):
        carry.pack("base", tmp_path, tmp_path / "out")
    with pytest.raises(GpuRunError, match="no state of the stage 'base'$"):
        carry.unpack("base", tmp_path, tmp_path)
    save_checkpoint(tmp_path / "base.pt", {"weights": torch.full((3,), 1e6)})
    with pytest.raises(GpuRunError, match=r"^a state holds 1e\+06, which torch\.float16 does not$"):
        carry.pack("base", tmp_path, tmp_path / "out")
    save_checkpoint(tmp_path / "base.pt", {"weights": torch.randn(100, 100)})
    monkeypatch.setattr(carry, "ALL_BYTES", 10_000)
    with pytest.raises(GpuRunError, match=r"^base: 0\.0 MB of state, expected at most 0 MB$"):
        carry.pack("base", tmp_path, tmp_path / "out")
    (tmp_path / "state-base.00").write_bytes(b"no state")
    with pytest.raises(GpuRunError, match=r"state-base\.00: not a state that can be read"):
        carry.unpack("base", tmp_path, tmp_path / "state")
    torch.save({"../elsewhere.pt": {}}, tmp_path / "state-base.00")
    with pytest.raises(GpuRunError, match=r"'\.\./elsewhere\.pt' leads out of"):
        carry.unpack("base", tmp_path, tmp_path / "state")


def test_the_miniatures_whole_state_can_be_carried():
    """The base of the recipe, with its average and its second moments: in 45 MB."""
    full = load_recipe()
    with torch.device("meta"):
        unet = build_miniature(full).unet
    assert 2 * 3 * sum(weight.numel() for weight in unet.parameters()) < 0.9 * carry.ALL_BYTES


def test_minutes_end_a_stage_with_its_checkpoint(tmp_path, recipe, state):
    (tmp_path / "recipe.json").write_bytes(msgspec.json.encode(recipe))
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / "photographs").symlink_to(state / "photographs")
    arguments = ["--recipe", str(tmp_path / "recipe.json"), "--state", str(folder), "--threads", "1"]
    assert commands.main(["vae", "--minutes", "0", *arguments]) == 0
    assert load_checkpoint(folder / "vae.pt")["step"] == 1
    assert not (folder / "vae_finished.pt").exists()


def test_a_stage_is_trained_for_minutes_and_its_state_goes_out(tmp_path, recipe, state, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})  # the other cores have their own tests
    (tmp_path / "recipe.json").write_bytes(msgspec.json.encode(recipe))
    folder, out = tmp_path / "state", tmp_path / "out"
    folder.mkdir()
    (folder / "photographs").symlink_to(state / "photographs")
    arguments = ["--recipe", str(tmp_path / "recipe.json"), "--state", str(folder), "--model", str(tmp_path)]
    assert carry.main(["vae", "--minutes", "9", "--out", str(out), *arguments]) == 0
    back = tmp_path / "back"
    assert carry.main(["vae", "--unpack", "--from", str(out), "--state", str(back)]) == 0
    assert load_checkpoint(back / "vae.pt")["step"] == recipe.vae.steps
    assert (back / "vae_finished.pt").exists()
