"""`tilemix train` on the tiny SDXL: the same code as for the real one, in seconds."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.test_miniature_training import stop_after
from tests.tiny_sdxl import TEMPLATE
from tilemix import cli
from tilemix.errors import ModelFileError, TemplateError, TrainingError
from tilemix.modelfile.header import read_header
from tilemix.tuning import estimate, files, loop, trainer
from tilemix.tuning.checkpoints import load_checkpoint
from tilemix.tuning.config import Phase, load_config
from tilemix.tuning.data import draw_batch, write_examples
from tilemix.tuning.learned_tokens import LearnedRows
from tilemix.tuning.model import Tuning
from tilemix.tuning.pictures import read_picture
from tilemix.tuning.plan import make_plan
from tilemix.tuning.trainer import tune

CPU = torch.device("cpu")
CONFIG = {
    "name": "tiny-tile",
    "base": "tiny",
    "pictures": "pictures",
    "template": "tiny.json",
    "output": "out",
    "initial_words": {"<s0>": "rubber"},
    "seed": 3,
    "resolution": 96,
    "crop": 64,  # less would leave one place at the UNet's bottom, and attention to one place learns nothing
    "batch_size": 2,
    "precision": "fp32",
    "embeddings": {"steps": 3, "warmup": 1},
    "lora": {
        "steps": 3,
        "warmup": 1,
        "rank": 4,
        "alpha": 2.0,
        "convolutions": True,
        "learning_rate": 0.01,
        "scale": 0.7,
    },
    "checkpoint_every": 2,
}


def write_folder(root: Path, tiny_project: Path, **changes: object) -> Path:
    """Write a tuning's folder, base, pictures and template included; return its configuration."""
    (root / "tiny").symlink_to(tiny_project / "weights" / "tiny")
    (root / "tiny.json").write_text(json.dumps(TEMPLATE))
    pictures = root / "pictures"
    pictures.mkdir()
    random = np.random.default_rng(0)
    for number, (width, height) in enumerate([(64, 64), (96, 64), (50, 70)]):
        pixels = random.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text(f"{10 * number + 10}% red, {90 - 10 * number}% black\n")
    path = root / "config.json"
    path.write_text(json.dumps(CONFIG | changes))
    return path


@pytest.fixture
def config(tmp_path, tiny_project):
    return write_folder(tmp_path, tiny_project)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_project):
    """A whole training without an interruption: the plan, the tuning, the files."""
    plan = make_plan(write_folder(tmp_path_factory.mktemp("tuning"), tiny_project))
    outcome = tune(plan, CPU)
    return plan, outcome, files.write_adapters(outcome)


def frozen(model: Tuning) -> dict[str, torch.Tensor]:
    tensors = {}
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        for name, tensor in getattr(model.pipeline, part).state_dict().items():
            if ".lora_" not in name and not name.endswith(".rows"):
                tensors[f"{part}.{name}"] = tensor
    return tensors


@pytest.mark.slow
def test_only_the_new_rows_and_the_lora_move(trained):
    plan, outcome, _ = trained
    fresh = Tuning(plan, CPU)
    before, after = frozen(fresh), frozen(outcome)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for phase in Phase:
        start = fresh.learned(phase)
        for name, parameter in outcome.learned(phase).items():
            assert not torch.equal(parameter, start[name]), name


@pytest.mark.slow
def test_a_phase_learns_its_own_parameters_alone(config):
    plan = make_plan(config)
    model = Tuning(plan, CPU)
    examples = write_examples(model.pipeline.vae, plan.pictures, plan.prompts, plan.config, plan.state)
    for phase in Phase:
        model.begin(phase)
        with model.computing():
            model.find_loss(examples, phase, 0).backward()
        (other,) = set(Phase) - {phase}
        assert all(parameter.grad is None for parameter in model.learned(other).values())
        assert any(parameter.grad.abs().sum() > 0 for parameter in model.learned(phase).values())
        for parameter in model.learned(phase).values():
            parameter.grad = None
    assert all(not parameter.requires_grad for name, parameter in model.pipeline.vae.named_parameters())


@pytest.mark.slow
def test_the_loss_falls_on_one_picture(tmp_path, tiny_project):
    settings = CONFIG["lora"] | {"steps": 40, "rank": 8, "learning_rate": 0.02}
    config = write_folder(tmp_path, tiny_project, lora=settings, embeddings={"steps": 0})
    for number in (1, 2):
        for suffix in ("png", "txt"):
            (tmp_path / "pictures" / f"{number}.{suffix}").unlink()
    plan = make_plan(config)
    model = Tuning(plan, CPU)
    examples = write_examples(model.pipeline.vae, plan.pictures, plan.prompts, plan.config, plan.state)

    def find_loss() -> float:
        with torch.no_grad():
            return sum(float(model.find_loss(examples, Phase.LORA, step)) for step in range(100, 106))

    before = find_loss()
    model.restore(tune(plan, CPU).state())
    assert find_loss() < 0.97 * before


@pytest.mark.slow
@pytest.mark.parametrize("saves", [1, 2, 3])
def test_a_training_that_was_killed_ends_as_one_that_was_not(config, trained, monkeypatch, saves):
    """The checkpoints: embeddings after 2 and 3 steps, lora after 2 and 3."""
    plan = make_plan(config)
    with monkeypatch.context() as patch:
        stop_after(patch, trainer, saves)
        with pytest.raises(KeyboardInterrupt):
            tune(plan, CPU)
    outcome = tune(plan, CPU).state()
    whole = trained[1].state()
    for phase in Phase:
        for name, tensor in outcome[phase].items():
            assert torch.equal(tensor, whole[phase][name]), name


@pytest.mark.slow
def test_kill_9_loses_nothing_but_the_steps_since_the_checkpoint(tmp_path, tiny_project):
    config = write_folder(tmp_path, tiny_project, embeddings={"steps": 400, "warmup": 1})
    command = [sys.executable, "-m", "tilemix", "train", str(config)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ | {"TILEMIX_THREADS": "1"})
    checkpoint = make_plan(config).checkpoint
    deadline = time.monotonic() + 120
    while not checkpoint.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = load_checkpoint(checkpoint)
    assert 2 <= kept["step"] < 400
    assert kept["phase"] == "embeddings"


@pytest.mark.slow
def test_the_pair_is_what_the_predictor_takes(trained, tiny_project, tmp_path):
    """Through the packaged model's own path: merged, it predicts what the training's model predicts."""
    from tests.tiny_sdxl import write_manifest
    from tilemix.pipelines.loading import load_pipeline
    from tilemix.weights import find_model

    plan, outcome, (lora, embeddings, _) = trained
    for folder in ("weights", "prompt_templates"):
        shutil.copytree(tiny_project / folder, tmp_path / folder)
    for path in (lora, embeddings):
        shutil.copy(path, tmp_path / "weights" / path.name)
    manifest = json.loads((tiny_project / "weights" / "tiny.model.json").read_text())
    adapters = [
        {"file": lora.name, "kind": "lora", "scale": 0.7},
        {"file": embeddings.name, "kind": "embedding", "tokens": ["<s0>", "<s1>"]},
    ]
    write_manifest(tmp_path, base=manifest["base"], adapters=adapters)
    ready = load_pipeline(find_model("tiny", tmp_path), CPU, torch.float32)
    prompt = plan.prompts[0]
    ids = [
        tokenizer(prompt, padding="max_length", max_length=77, return_tensors="pt").input_ids
        for tokenizer in (ready.base.pipeline.tokenizer, ready.base.pipeline.tokenizer_2)
    ]
    with torch.no_grad():
        embeds, pooled = outcome.encode([prompt])
        from tilemix.tuning.encoding import encode_captions

        mine = encode_captions(
            (ready.base.pipeline.text_encoder, ready.base.pipeline.text_encoder_2), tuple(ids)
        )
        assert torch.allclose(mine[0], embeds, atol=1e-6)
        assert torch.allclose(mine[1], pooled, atol=1e-6)
        inputs = {
            "sample": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
            "timestep": torch.tensor(500),
            "encoder_hidden_states": embeds,
            "added_cond_kwargs": {
                "text_embeds": pooled,
                "time_ids": torch.tensor([[64, 64, 0, 0, 32, 32.0]]),
            },
        }
        expected, base = (
            outcome.pipeline.unet(**inputs).sample,
            Tuning(plan, CPU).pipeline.unet(**inputs).sample,
        )
        merged = ready.base.pipeline.unet(**inputs).sample
    assert (expected - base).abs().max() > 1e-3
    assert torch.allclose(merged, expected, atol=(expected - base).abs().max().item() / 50)


@pytest.mark.slow
def test_the_files_say_what_they_are(trained):
    _, _, (lora, embeddings, record) = trained
    assert [path.name for path in (lora, embeddings, record)] == [
        "tiny-tile_sdxl_lora.safetensors",
        "tiny-tile_sdxl_embeddings.safetensors",
        "tiny-tile_sdxl_training.json",
    ]
    metadata = read_header(lora).metadata
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert metadata["modelspec.trigger_phrase"] == "ohwx_rubber_tile <s0><s1>"
    assert metadata["modelspec.prediction_type"] == "epsilon"
    assert metadata["ss_network_dim"] == "4"
    assert metadata["ss_network_alpha"] == "2"
    tensors = load_file(lora)
    assert all(float(one) == 2.0 for name, one in tensors.items() if name.endswith(".alpha"))
    assert any("_conv1." in name for name in tensors)
    assert {name: tuple(one.shape) for name, one in load_file(embeddings).items()} == {
        "clip_l": (2, 32),
        "clip_g": (2, 48),
    }
    said = json.loads(record.read_text())
    assert [one["caption"] for one in said["pictures"]] == [
        "10% red, 90% black",
        "20% red, 80% black",
        "30% red, 70% black",
    ]
    assert said["config"]["lora"]["rank"] == 4
    assert set(said["base_files"]) == {
        "text_encoder/model.safetensors",
        "text_encoder_2/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }
    assert said["files"].keys() == {lora.name, embeddings.name}


@pytest.mark.slow
def test_attention_alone_is_tuned_where_convolutions_are_not_asked_for(tmp_path, tiny_project):
    settings = CONFIG["lora"] | {"convolutions": False}
    model = Tuning(make_plan(write_folder(tmp_path, tiny_project, lora=settings)), CPU)
    modules = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in model.lora_parameters()}
    assert modules == {"to_q", "to_k", "to_v", "0"}


@pytest.mark.slow
def test_a_token_starts_from_its_word(config):
    model = Tuning(make_plan(config), CPU)
    (number,) = model.pipeline.tokenizer("rubber", add_special_tokens=False).input_ids
    matrix = model.rows["text_encoder"].base.weight
    assert torch.equal(model.rows["text_encoder"].rows[0], matrix[number])
    assert not (model.rows["text_encoder"].rows[1] == matrix).all(dim=1).any()


def test_learned_rows_stand_behind_the_bases():
    base = torch.nn.Embedding(5, 3)
    rows = LearnedRows(base, torch.ones(2, 3))
    given = rows(torch.tensor([[0, 5, 4, 6]]))
    assert torch.equal(given[0, [0, 2]], base.weight[[0, 4]])
    assert torch.equal(given[0, [1, 3]], torch.ones(2, 3))


@pytest.mark.slow
def test_a_step_in_bf16_with_gradient_checkpointing_learns(tmp_path, tiny_project, monkeypatch, caplog):
    monkeypatch.setattr("tilemix.tuning.loop.multiplies_bf16", lambda: False)
    config = write_folder(tmp_path, tiny_project, precision="bf16", gradient_checkpointing=True)
    outcome = tune(make_plan(config), CPU)
    assert outcome.pipeline.unet.dtype == torch.bfloat16
    assert 'this CPU has no bf16 arithmetic; with "precision": "fp32"' in caplog.text
    assert outcome.pipeline.vae.dtype == torch.float32
    fresh = Tuning(make_plan(config), CPU)
    for phase in Phase:
        moved = [
            not torch.equal(one, fresh.learned(phase)[name]) for name, one in outcome.learned(phase).items()
        ]
        assert all(moved)
    assert all(parameter.dtype == torch.float32 for parameter in outcome.lora_parameters().values())


@pytest.mark.slow
def test_an_epsilon_model_is_trained_on_the_noise(config):
    plan = make_plan(config)
    model = Tuning(plan, CPU)
    assert model.scheduler.config.prediction_type == "epsilon"
    examples = write_examples(model.pipeline.vae, plan.pictures, plan.prompts, plan.config, plan.state)
    batch = model.draw(examples, Phase.LORA, 0)
    with torch.no_grad():
        embeds, pooled = model.encode(batch.captions)
        noisy = model.scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
        conditions = {"text_embeds": pooled, "time_ids": batch.time_ids}
        predicted = model.pipeline.unet(
            noisy, batch.timesteps, encoder_hidden_states=embeds, added_cond_kwargs=conditions
        ).sample
        assert float(model.find_loss(examples, Phase.LORA, 0)) == pytest.approx(
            float((predicted - batch.noise).square().mean()), rel=1e-4
        )


@pytest.mark.slow
def test_batches_meet_every_picture_before_one_again_and_name_its_size_and_crop(config):
    plan = make_plan(config)
    model = Tuning(plan, CPU)
    examples = write_examples(model.pipeline.vae, plan.pictures, plan.prompts, plan.config, plan.state)
    batches = [
        draw_batch(examples, plan.config, phase=Phase.EMBEDDINGS, step=step, levels=1000) for step in range(3)
    ]
    seen = [caption for batch in batches for caption in batch.captions]
    assert sorted(seen[:3]) == sorted(seen[3:]) == sorted(plan.prompts)
    sizes = {(64, 64), (64, 96), (70, 50)}
    for batch in batches:
        assert batch.latents.shape == (2, 4, 8, 8)
        for height, width, top, left, *target in batch.time_ids.int().tolist():
            assert (height, width) in sizes
            assert target == [64, 64]
            assert top % 8 == left % 8 == 0


@pytest.mark.slow
def test_named_sizes_stand_in_for_the_pictures_own(tmp_path, tiny_project):
    plan = make_plan(write_folder(tmp_path, tiny_project, named_sizes=[256, 512]))
    model = Tuning(plan, CPU)
    examples = write_examples(model.pipeline.vae, plan.pictures, plan.prompts, plan.config, plan.state)
    for height, width, top, left, *target in model.draw(examples, Phase.LORA, 0).time_ids.int().tolist():
        assert 256 <= height == width <= 512
        assert (top, left) == (0, 0)
        assert target == [height, width]


@pytest.mark.slow
def test_latents_are_kept(config, monkeypatch):
    plan = make_plan(config)
    model = Tuning(plan, CPU)
    first = write_examples(model.pipeline.vae, plan.pictures, plan.prompts, plan.config, plan.state)
    monkeypatch.setattr("tilemix.tuning.data.encode_picture", lambda *_: pytest.fail("encoded again"))
    again = write_examples(model.pipeline.vae, plan.pictures, plan.prompts, plan.config, plan.state)
    assert all(np.array_equal(a.latents, b.latents) for a, b in zip(first, again, strict=True))
    assert [one.latents.shape for one in first] == [(4, 12, 12), (4, 12, 18), (4, 16, 12)]


@pytest.mark.slow
def test_samples_are_drawn_on_the_way(tmp_path, tiny_project):
    samples = {
        "prompts": ["50% red, 50% black"],
        "every": 2,
        "width": 64,
        "height": 64,
        "num_inference_steps": 2,
    }
    plan = make_plan(write_folder(tmp_path, tiny_project, samples=samples))
    tune(plan, CPU)
    names = sorted(path.name for path in (plan.output / "tiny-tile_samples").iterdir())
    assert names == [
        "embeddings-000002-0.png",
        "embeddings-000003-0.png",
        "lora-000002-0.png",
        "lora-000003-0.png",
    ]
    with Image.open(plan.output / "tiny-tile_samples" / names[0]) as picture:
        assert picture.size == (64, 64)


@pytest.mark.slow
def test_the_dry_run_measures_and_writes_nothing(config, capsys):
    before = sorted(config.parent.rglob("*"))
    assert cli.main(["train", str(config), "--dry-run", "--json"]) == 0
    cost = json.loads(capsys.readouterr().out)
    assert sorted(config.parent.rglob("*")) == before
    assert cost["pictures"] == 3
    assert cost["seconds"] > 0
    assert cost["memory"] > 50e6
    assert cost["learned"]["embeddings"] == 2 * (32 + 48)
    assert cli.main(["train", str(config), "--dry-run"]) == 0
    assert "memory: " in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_prints_the_files(config, capsys):
    assert cli.main(["train", str(config)]) == 0
    assert [Path(line).name for line in capsys.readouterr().out.splitlines()] == [
        "tiny-tile_sdxl_lora.safetensors",
        "tiny-tile_sdxl_embeddings.safetensors",
        "tiny-tile_sdxl_training.json",
    ]


@pytest.mark.slow
def test_the_dry_run_says_what_spoils_a_training(config, capsys, caplog):
    """Small pictures were silent, and cut captions were told only in the real run."""
    (config.parent / "pictures" / "0.txt").write_text("50% red, 50% black" + ", very shiny" * 30)
    assert cli.main(["train", str(config), "--dry-run", "--palette", "rubber-tile"]) == 0
    out = capsys.readouterr().out
    assert "pictures under 96 pixels, which are enlarged: 3\n  0.png\n" in out
    assert "captions over 75 tokens, which lose their ends: 1\n  0.png\n" in out
    assert re.search(r"captions of 3 that name another mix than their pictures show: [1-3]\n", out)
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == f"{config}: reading the pictures and captions"
    assert said[1] == "3 pictures with captions; loading the base"
    assert "embeddings: trying 3 steps" in said


@pytest.mark.parametrize(
    ("caption", "sent"),
    [
        ("\ufeff20% red, 80% black", "20% red, 80% black"),
        ("20% красный, 80% чёрный", "20% red, 80% black"),
        ("20 % rot, Rest schwarz", "20% red, 80% black"),
        ("a wet tile in the sun", "a wet tile in the sun"),
    ],
)
def test_a_caption_is_trained_as_the_product_would_send_it(config, caption, sent):
    """The mark in front of a text made three tokens; other languages and words were trained as typed."""
    (config.parent / "pictures" / "1.txt").write_text(caption, "utf-8")
    assert make_plan(config).prompts[1] == TEMPLATE["text"].replace("$prompt", sent)


def test_a_palettes_own_words_are_trained_as_they_are(config):
    (config.parent / "pictures" / "1.txt").write_text("60% terracotta, 40% green apple")
    config.write_text(json.dumps(CONFIG | {"palette": "rubber-tile"}))
    assert "60% terracotta, 40% green apple," in make_plan(config).prompts[1]


def test_all_captions_that_the_product_refuses_are_told_at_once(config):
    for number, caption in enumerate(("50% rad, 50% black", "50% red, 20% black", "<s0>, 100% red")):
        (config.parent / "pictures" / f"{number}.txt").write_text(caption)
    with pytest.raises(TrainingError) as caught:
        make_plan(config)
    assert caught.value.code == "training-captions-unusable"
    assert caught.value.values["count"] == 3
    for number in range(3):
        assert f"pictures/{number}.txt" in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: shutil.rmtree(root / "pictures"), "no such folder of pictures"),
        (lambda root: [path.unlink() for path in (root / "pictures").iterdir()], "no pictures in it"),
        (lambda root: (root / "pictures" / "1.txt").unlink(), r"1\.png has no 1\.txt beside it"),
        (lambda root: (root / "pictures" / "7.txt").write_text("red"), r"7\.txt has no 7\.png beside it"),
        (lambda root: (root / "pictures" / "1.txt").write_text(" \n"), r"1\.txt: prompt: empty"),
        (lambda root: (root / "pictures" / "1.txt").write_bytes(b"\xff"), r"1\.txt: not UTF-8 text"),
        (
            lambda root: shutil.copy(root / "pictures" / "1.png", root / "pictures" / "1.jpg"),
            "1.jpg and 1.png share one caption file",
        ),
        (
            lambda root: (root / "pictures" / "1.txt").write_text("<s0>, 50% red, 50% black"),
            "holds '<s0>', which the template puts there",
        ),
    ],
)
def test_pictures_that_cannot_be_learned_from_are_refused_at_once(config, spoil, message):
    spoil(config.parent)
    with pytest.raises(TrainingError, match=message):
        make_plan(config)


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_a_picture_that_is_none_is_named(config, content):
    path = config.parent / "pictures" / "1.png"
    path.write_bytes(path.read_bytes()[:300] if content is None else content)
    with pytest.raises(
        TrainingError,
        match=r"1\.png: (not a|a broken) picture\b",
    ):
        tune(make_plan(config), CPU)


def test_a_picture_is_turned_upright_and_transparency_becomes_white(tmp_path):
    image = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    pixels, own_size = read_picture(tmp_path / "a.png", shorter_side=16)
    assert own_size == (20, 40)
    assert pixels.shape == (32, 16, 3)
    assert (pixels == 255).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"naem": "x"}, "unknown field `naem`"),
        ({"name": "../x"}, "name '../x', expected"),
        ({"resolution": 100}, "resolution 100, expected a multiple of 8"),
        ({"crop": 128}, "crop 128, expected at most the resolution, 96"),
        ({"precision": "fp16"}, "Invalid enum value 'fp16'"),
        ({"embeddings": {"steps": 0}, "lora": {"steps": 0}}, "nothing to train"),
        ({"named_sizes": [512, 256]}, "expected the smaller one first"),
        ({"initial_words": {"<s7>": "x"}}, "'<s7>', expected tokens of the template: <s0>, <s1>"),
        ({"lora": {"rank": 0}}, r"Expected `int` >= 1 - at `\$.lora.rank`"),
    ],
)
def test_a_wrong_configuration_is_refused_in_one_line(tmp_path, tiny_project, change, message):
    with pytest.raises(TrainingError, match=message) as caught:
        make_plan(write_folder(tmp_path, tiny_project, **change))
    assert "\n" not in str(caught.value)


def test_a_configuration_without_an_end_is_not_read(tmp_path):
    with pytest.raises(TrainingError, match="/dev/zero: not a regular file"):
        load_config(Path("/dev/zero"))
    (tmp_path / "long.json").write_bytes(b" " * (2**20 + 1))
    with pytest.raises(TrainingError, match=r"long\.json: more than 1048576 bytes"):
        load_config(tmp_path / "long.json")


def test_missing_files_are_named(tmp_path, config):
    with pytest.raises(TrainingError, match=r"nowhere\.json: cannot be read: No such file"):
        load_config(tmp_path / "nowhere.json")
    (tmp_path / "tiny.json").unlink()
    with pytest.raises(TemplateError, match=r"tiny\.json: cannot be read"):
        make_plan(config)
    (tmp_path / "tiny.json").write_text(json.dumps(TEMPLATE))
    (tmp_path / "tiny").unlink()
    with pytest.raises(ModelFileError, match="no such folder; expected an SDXL model"):
        tune(make_plan(config), CPU)
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(ModelFileError, match="tiny: FluxPipeline; `tilemix train` trains SDXL alone"):
        tune(make_plan(config), CPU)
    (tmp_path / "tiny" / "model_index.json").unlink()
    with pytest.raises(ModelFileError, match="not a Stable Diffusion XL pipeline that diffusers can load"):
        tune(make_plan(config), CPU)


@pytest.mark.slow
def test_a_checkpoint_of_another_configuration_is_refused(config):
    tune(make_plan(config), CPU)
    changed = json.loads(config.read_text()) | {"seed": 4}
    config.write_text(json.dumps(changed))
    with pytest.raises(TrainingError, match=r"checkpoint\.pt: of another configuration"):
        tune(make_plan(config), CPU)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04"])
def test_a_checkpoint_that_is_none_is_refused(config, content):
    checkpoint = make_plan(config).checkpoint
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(content)
    with pytest.raises(TrainingError, match=r"checkpoint\.pt: not a readable checkpoint"):
        tune(make_plan(config), CPU)


@pytest.mark.slow
def test_a_full_disk_in_the_middle_leaves_the_last_checkpoint(config, trained, monkeypatch, capsys):
    saved = []

    def fsync(number):
        if stat.S_ISREG(os.fstat(number).st_mode):  # not the folder, which is synced after each file
            saved.append(number)
        if len(saved) == 9:  # 3 pictures of two arrays, then the third checkpoint
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        assert cli.main(["train", str(config)]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(
        "checkpoint.pt: cannot be written: No space left on device; what was there before is kept"
    )
    plan = make_plan(config)
    kept = load_checkpoint(plan.checkpoint)
    assert (kept["phase"], kept["step"]) == ("embeddings", 3)
    assert [path.name for path in plan.state.iterdir() if path.is_file()] == ["checkpoint.pt"]
    outcome = tune(plan, CPU).state()["lora"]
    assert all(torch.equal(outcome[name], one) for name, one in trained[1].state()["lora"].items())


@pytest.mark.slow
def test_too_little_disk_is_said_before_the_training(config, monkeypatch):
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(trainer.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(TrainingError, match="0 MB free, expected"):
        tune(make_plan(config), CPU)


def test_where_peft_is_missing_as_in_the_image_one_line_says_so(config, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert cli.main(["train", str(config)]) == 1
    expected = (
        "tilemix train: training needs peft, which is not installed here: pip install 'tilemix[train]'\n"
    )
    assert capsys.readouterr().err.endswith(expected)


@pytest.mark.slow
def test_an_interruption_says_that_it_goes_on(config, monkeypatch, caplog):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "run_steps", interrupt)
    assert cli.main(["train", str(config)]) == 130
    assert "the same command resumes from it" in caplog.text


def test_a_loss_that_is_no_number_stops_the_training():
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([parameter])
    saved = []
    with pytest.raises(TrainingError, match="^x: the loss of step 2 is nan; lower the learning rate$"):
        loop.run_steps(
            "x",
            optimizer,
            lambda step: (parameter * (float("nan") if step else 1.0)).sum(),
            first=0,
            steps=5,
            learning_rates=[0.1],
            warmup=1,
            save_every=1,
            save=saved.append,
        )
    assert saved == [1]


def test_progress_names_the_time_left_of_all_phases(monkeypatch, caplog):
    """A minute a step by this clock: two more steps here and ten in the phase to come."""
    caplog.set_level("INFO")
    minutes = iter(range(100))
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: 60.0 * next(minutes)))
    parameter = torch.nn.Parameter(torch.ones(1))
    loop.run_steps(
        "x",
        torch.optim.AdamW([parameter]),
        lambda _: parameter.sum(),
        first=0,
        steps=3,
        later_steps=10,
        learning_rates=[0.1],
        warmup=1,
        save_every=10,
        save=lambda _: None,
    )
    assert [line.rpartition(", ")[2] for line in caplog.messages] == [
        f"{left} min left in all" for left in (12, 11, 10)
    ]


@pytest.mark.parametrize(("seconds", "steps", "pace"), [(1.0, 3, 1.0), (9.0, 1, 9.0)])
def test_a_dry_run_tries_few_steps_where_they_are_slow(monkeypatch, seconds, steps, pace):
    """It was silent for five minutes."""
    clock = iter(range(100))
    monkeypatch.setattr(estimate, "time", SimpleNamespace(perf_counter=lambda: seconds * next(clock)))
    parameter, tried = torch.nn.Parameter(torch.ones(1)), []
    tuning = SimpleNamespace(
        begin=lambda _: None,
        make_optimizer=lambda _: torch.optim.AdamW([parameter]),
        computing=nullcontext,
        find_loss=lambda examples, phase, step: (tried.append(step), parameter.sum())[1],
        device=CPU,
    )
    assert estimate.time_steps(tuning, Phase.LORA, None) == pace
    assert tried == list(range(steps))


@pytest.mark.slow
def test_a_long_caption_is_warned_of(config, caplog):
    (config.parent / "pictures" / "0.txt").write_text("50% red, 50% black" + ", very shiny" * 30)
    tune(make_plan(config), CPU)
    assert "1 captions are longer than 75 tokens and lose their ends; the first: 0.png" in caplog.text


def test_the_plans_digest_knows_what_the_outcome_depends_on(config):
    plan = make_plan(config)
    assert make_plan(config).digest == plan.digest
    changed = msgspec.structs.replace(plan.config, checkpoint_every=7)
    config.write_bytes(msgspec.json.encode(changed))
    assert make_plan(config).digest == plan.digest
    (config.parent / "pictures" / "0.txt").write_text("100% red")
    assert make_plan(config).digest != plan.digest
