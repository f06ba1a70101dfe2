"""The miniature's base: UNet and text encoders learn to denoise the photographs' latents, given the captions.

It trains v-prediction on SDXL's own noise schedule (see the recipe), on crops of latents, with SDXL's size
conditioning. The result is the moving average of the weights.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from safetensors.torch import load_file

from miniature.architecture import Miniature, build_miniature
from miniature.captions import write_caption
from miniature.dataset import describe, known_materials
from miniature.latents import write_latents
from miniature.stages.decoder import load_decoder
from miniature.stages.vae import load_vae
from miniature.stages.words import train_words
from tilemix.errors import MissingFilesError, ModelFileError, TrainingError
from tilemix.pipelines.parts import lay_channels_last, move
from tilemix.tuning.checkpoints import load_checkpoint, save_checkpoint
from tilemix.tuning.denoising import Batch, draw_noise, prediction_loss, spread_timesteps
from tilemix.tuning.encoding import encode_captions, plain_attention, tokenize
from tilemix.tuning.loop import mixed_precision, run_steps

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray
    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    from miniature.recipe import Recipe

logger = logging.getLogger(__name__)

TRAINED = ("text_encoder", "text_encoder_2", "unet")
DRAFTED = (0.1, 0.6)  # of the noise levels: drawing from a draft begins and ends there


@dataclass(frozen=True, slots=True)
class BaseBatch(Batch):
    """A batch in which some captions' embeddings are dropped."""

    zeroed: torch.Tensor  # (n,) bool: embeddings replaced by zeros
    # (n,) where the pooled vector is taken: 0 is the end of the caption, 1 its start
    pooled_at: torch.Tensor


def train_base(
    recipe: Recipe,
    state: Path,
    tokenizers: tuple[CLIPTokenizer, CLIPTokenizer],
    *,
    workers: int,
    device: torch.device,
    compiled: bool = False,
    is_over: Callable[[], bool] | None = None,
) -> Miniature:
    """Return the trained model with averaged weights; resume from `state/base.pt` if it is there.

    Args:
        recipe: its `base`, and all that it builds on.
        state: the folder of photographs, latents and checkpoints.
        tokenizers: of both encoders.
        workers: how many processes draw photographs.
        device: where to train.
        compiled: compile the UNet first. That takes minutes and a C++ compiler. A step then takes 0.6 of its
            time on a CPU, and its results differ in the last bits.
        is_over: see `tilemix.tuning.loop.run_steps`.

    Raises:
        MissingFilesError: the VAE's stage has not ended.
        TrainingStoppedError: `is_over` said so.
    """
    stage = recipe.base
    vae = load_vae(recipe, state)
    latents, _ = write_latents(move(vae, device), recipe, state, workers=workers)
    model = build_miniature(recipe)
    model.vae = vae
    for name in TRAINED:
        getattr(model, name).to(device)
    train_words(model, tokenizers, recipe, state)
    if imported := load_checkpoint(state / "unet.pt"):
        model.unet.load_state_dict(imported["unet"])
    for encoder in (model.text_encoder, model.text_encoder_2):
        # The words have their meaning by now; training 49,408 rows in each step would cost more than it gains.
        encoder.get_input_embeddings().requires_grad_(False)
    if compiled:
        # On a CPU neither of the two pays without the other.
        lay_channels_last(model.unet)
        model.unet.compile(dynamic=False)  # two shapes: crops and whole photographs
    trained = _trained_parameters(model)
    average = {name: parameter.detach().clone() for name, parameter in trained.items()}
    optimizer = _build_optimizer(model, recipe)
    scheduler = DDPMScheduler(
        **{
            key: recipe.scheduler[key]
            for key in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")
        },
        prediction_type="v_prediction",
    )
    first = 0
    if checkpoint := load_checkpoint(state / "base.pt"):
        _restore(trained, checkpoint["weights"])
        _restore(average, checkpoint["average"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        _follow_layout(optimizer)
        first = checkpoint["step"]
        logger.info("base: resuming from step %d", first)

    def follow(done: int) -> None:
        decay = min(stage.ema, done / (done + 9))
        torch._foreach_lerp_(list(average.values()), [p.detach() for p in trained.values()], 1 - decay)

    def save(done: int) -> None:
        tensors = {"weights": trained, "average": average}
        detached = {key: {n: p.detach() for n, p in value.items()} for key, value in tensors.items()}
        save_checkpoint(state / "base.pt", {**detached, "optimizer": optimizer.state_dict(), "step": done})

    run_steps(
        "base",
        optimizer,
        lambda step: denoising_loss(model, tokenizers, scheduler, draw_batch(latents, recipe, step)),
        first=first,
        steps=stage.steps,
        learning_rates=[stage.learning_rate, stage.text_learning_rate],
        warmup=stage.warmup,
        save_every=stage.checkpoint_every,
        save=save,
        after_step=follow,
        is_over=is_over,
    )
    _restore(trained, average)
    return model


def import_model(recipe: Recipe, state: Path, folder: Path) -> None:
    """Load the parts of a finished model into the state, so that the base stage continues from them.

    Nothing in the state is overwritten: it must not hold a VAE, words or a base yet.

    Raises:
        TrainingError: the state holds one of them.
        ModelFileError: the folder is not a model of the recipe's architecture.
    """
    names = ("vae_finished.pt", "words.pt", "unet.pt", "base.pt")
    if found := [name for name in names if (state / name).exists()]:
        raise TrainingError("recipe-state-not-empty", folder=str(state), found=found[0])
    model = build_miniature(recipe)
    for name, part in model.parts().items():
        paths = list((folder / name).glob("*.safetensors"))
        if len(paths) != 1:
            raise ModelFileError(
                "manifest-wrong-tensor-files", file=str(folder), count=len(paths), component=name
            )
        try:
            part.load_state_dict(load_file(paths[0]))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ModelFileError("recipe-other-architecture", file=str(paths[0]), reason=reason) from error
    encoders = {name: getattr(model, name).state_dict() for name in ("text_encoder", "text_encoder_2")}
    save_checkpoint(state / "unet.pt", {"unet": model.unet.state_dict()})
    save_checkpoint(state / "words.pt", encoders)
    save_checkpoint(state / "vae_finished.pt", {"vae": model.vae.state_dict()})


def load_base(recipe: Recipe, state: Path) -> tuple[Miniature, int]:
    """Return the model of the last checkpoints, with averaged weights, and the base's step.

    An imported model that was not trained further has step 0.

    Raises:
        MissingFilesError: the VAE's stage has not ended, or there is no checkpoint of the base.
    """
    model = build_miniature(recipe)
    model.vae = load_vae(recipe, state)
    load_decoder(model.vae, state)
    words, base, imported = (load_checkpoint(state / f"{name}.pt") for name in ("words", "base", "unet"))
    if words is None or (base is None and imported is None):
        missing = state / ("words.pt" if words is None else "base.pt")
        raise MissingFilesError("recipe-stage-unfinished", file=str(missing), stage="base")
    model.text_encoder.load_state_dict(words["text_encoder"])
    model.text_encoder_2.load_state_dict(words["text_encoder_2"])
    for encoder in (model.text_encoder, model.text_encoder_2):
        encoder.get_input_embeddings().requires_grad_(False)
    if base is None:
        assert imported is not None
        model.unet.load_state_dict(imported["unet"])
        return model, 0
    _restore(_trained_parameters(model), base["average"])
    return model, int(base["step"])


def draw_batch(latents: torch.Tensor, recipe: Recipe, step: int) -> BaseBatch:
    """Return the batch of a step; the same recipe and step give the same batch."""
    stage = recipe.base
    random = np.random.default_rng([recipe.seed, 3, step])
    side, levels = latents.shape[-1], recipe.scheduler["num_train_timesteps"]
    is_large = step >= stage.large_from * stage.steps and step % 2 == 0
    count, crop = (stage.large_batch, side) if is_large else (stage.batch, stage.crop)
    crops, captions, time_ids = [], [], []
    for _ in range(count):
        number = _draw_known(recipe, len(latents), random)
        top, left = random.integers(0, side - crop + 1, 2)
        crops.append(latents[number, :, top : top + crop, left : left + crop])
        caption = write_caption(describe(recipe, number), random)
        captions.append("" if random.random() < stage.empty_captions else caption)
        height, width = random.integers(stage.sizes[0] // 8, stage.sizes[1] // 8 + 1, 2) * 8
        if random.random() < 0.7:
            width = height
        time_ids.append([height, width, 0, 0, height, width])
    stacked = torch.stack(crops)
    return BaseBatch(
        latents=stacked,
        captions=captions,
        time_ids=torch.tensor(np.array(time_ids), dtype=torch.float32),
        timesteps=_favor_drafted(
            spread_timesteps(random, count, levels), random.random(count) < stage.drafted, levels
        ),
        noise=draw_noise(random, stacked),
        zeroed=torch.from_numpy(random.random(count) < stage.zero_captions),
        pooled_at=torch.from_numpy(random.random(count) * (random.random(count) < stage.early_pooled)),
    )


def _favor_drafted(timesteps: torch.Tensor, moved: NDArray[np.bool_], levels: int) -> torch.Tensor:
    """Return timesteps (n,) of which those `moved` (n,) lie in the range of a drawing from a draft."""
    least, most = (levels * part for part in DRAFTED)
    return torch.where(torch.from_numpy(moved), least + timesteps * (most - least) / levels, timesteps).long()


def _draw_known(recipe: Recipe, photographs: int, random: np.random.Generator) -> int:
    known = known_materials(recipe)
    while True:
        number = int(random.integers(photographs))
        if describe(recipe, number).material in known:
            return number


def denoising_loss(
    model: Miniature,
    tokenizers: tuple[CLIPTokenizer, CLIPTokenizer],
    scheduler: DDPMScheduler,
    batch: BaseBatch,
) -> torch.Tensor:
    """Return the mean squared error of the predicted v."""
    device = model.unet.device
    ids = tuple(tokenize(tokenizer, batch.captions).to(device) for tokenizer in tokenizers)
    encoders = (model.text_encoder, model.text_encoder_2)
    with mixed_precision(device), plain_attention(device):
        embeds, pooled = encode_captions(encoders, (ids[0], ids[1]), batch.pooled_at)
        kept = (~batch.zeroed).to(device)
        embeds, pooled = embeds * kept[:, None, None], pooled * kept[:, None]
        return prediction_loss(model.unet, scheduler, batch, embeds, pooled)


def _trained_parameters(model: Miniature) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": parameter
        for part in TRAINED
        for name, parameter in getattr(model, part).named_parameters()
        if parameter.requires_grad
    }


def _build_optimizer(model: Miniature, recipe: Recipe) -> torch.optim.AdamW:
    stage = recipe.base
    text = [*model.text_encoder.parameters(), *model.text_encoder_2.parameters()]
    groups = [
        {"params": list(model.unet.parameters())},
        {"params": [p for p in text if p.requires_grad]},
    ]
    return torch.optim.AdamW(groups, lr=stage.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)


def _follow_layout(optimizer: torch.optim.Optimizer) -> None:
    """Give the moments their parameters' memory layout, since the fused kernel reads them in parallel."""
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, requires_grad=False).copy_(value)


def _restore(parameters: dict[str, torch.Tensor], values: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])
