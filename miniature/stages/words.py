"""The text encoders' first stage, before any picture: learn what a caption says.

SDXL's encoders are pretrained; these start from random weights. Three linear heads, discarded afterwards,
predict the shares of all colors and the material from the first encoder's end token, the second's, and the
pooled vector: the three places where the UNet will look for them.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from miniature.architecture import END_ID
from miniature.captions import write_caption
from miniature.dataset import Example, draw_mix, known_materials
from miniature.tile import PALETTE
from tilemix.colors.palette import load_palette
from tilemix.tuning.checkpoints import load_checkpoint, save_checkpoint
from tilemix.tuning.encoding import plain_attention, tokenize
from tilemix.tuning.loop import REPORT_EVERY, run_steps

if TYPE_CHECKING:
    from pathlib import Path

    from transformers.models.clip.tokenization_clip import CLIPTokenizer

    from miniature.architecture import Miniature
    from miniature.recipe import Recipe

logger = logging.getLogger(__name__)


def train_words(
    model: Miniature,
    tokenizers: tuple[CLIPTokenizer, CLIPTokenizer],
    recipe: Recipe,
    state: Path,
    *,
    further: bool = False,
) -> None:
    """Train the model's two text encoders in place, or take them from `state/words.pt` if it is there.

    `further` trains those on, by the same plan: an imported model learns the words of another palette.

    Raises:
        TrainingError: a loss is not finite, or the result cannot be written.
    """
    if checkpoint := load_checkpoint(state / "words.pt"):
        model.text_encoder.load_state_dict(checkpoint["text_encoder"])
        model.text_encoder_2.load_state_dict(checkpoint["text_encoder_2"])
        if not further:
            return
    stage = recipe.words
    device = model.text_encoder.device
    encoders = (model.text_encoder, model.text_encoder_2)
    materials = known_materials(recipe)
    heads = _build_heads(model, recipe, len(load_palette(PALETTE).colors) + len(materials)).to(device)
    parameters = [*encoders[0].parameters(), *encoders[1].parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, lr=stage.learning_rate, betas=(0.9, 0.99), weight_decay=0.0, fused=True
    )

    def find_loss(step: int) -> torch.Tensor:
        random = np.random.default_rng([recipe.seed, 2, step])
        examples = [Example(draw_mix(random), str(random.choice(materials)), 0) for _ in range(stage.batch)]
        captions = [write_caption(example, random) for example in examples]
        shares = _read_shares(examples).to(device)
        kinds = torch.tensor([materials.index(example.material) for example in examples], device=device)
        ids = [tokenize(tokenizer, captions) for tokenizer in tokenizers]
        # Attention is causal, so what follows a caption's end changes nothing before it.
        longest = int((ids[0] == END_ID).int().argmax(dim=1).max()) + 1
        first, second = (one[:, :longest].to(device) for one in ids)
        ends = (first == END_ID).int().argmax(dim=1)
        rows = torch.arange(len(examples), device=device)
        with plain_attention(device):
            out_1 = encoders[0](first, output_hidden_states=True)
            out_2 = encoders[1](second, output_hidden_states=True)
        views = (out_1.hidden_states[-2][rows, ends], out_2.hidden_states[-2][rows, ends], out_2.text_embeds)
        answers = [head(view) for head, view in zip(heads, views, strict=True)]
        if (step + 1) % REPORT_EVERY == 0:
            found = F.softmax(answers[-1].detach()[:, : shares.shape[1]], dim=-1)
            error = (found - shares).abs().sum(dim=1).mean() / 2
            logger.info("words step %d: shares off by %.2f %%", step + 1, 100 * float(error))
        return torch.stack([_answer_loss(one, shares, kinds) for one in answers]).sum()

    def save(_: int) -> None:
        trained = ("text_encoder", "text_encoder_2")
        save_checkpoint(state / "words.pt", {name: getattr(model, name).state_dict() for name in trained})

    run_steps(
        "words",
        optimizer,
        find_loss,
        first=0,
        steps=stage.steps,
        learning_rates=[stage.learning_rate],
        warmup=stage.warmup,
        save_every=stage.steps,  # once, at the end: the file means that the stage is done
        save=save,
    )


def _build_heads(model: Miniature, recipe: Recipe, answers: int) -> nn.ModuleList:
    """Return one head for each of the three vectors; the recipe's seed determines their weights."""
    width, pooled_width = (
        model.text_encoder.config.hidden_size,
        model.text_encoder_2.text_projection.out_features,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed + 2)
        return nn.ModuleList([nn.Linear(size, answers) for size in (width, width, pooled_width)])


def _read_shares(examples: list[Example]) -> torch.Tensor:
    """Return the fraction of every color in each example's mix, (n, colors)."""
    numbers = {color.word: index for index, color in enumerate(load_palette(PALETTE).colors)}
    shares = torch.zeros(len(examples), len(numbers))
    for row, example in enumerate(examples):
        for share in example.mix.shares:
            shares[row, numbers[share.color]] = float(share.percent) / 100
    return shares


def _answer_loss(answers: torch.Tensor, shares: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
    """Return the divergence of the answered shares from the true ones, plus a little for a wrong material."""
    colors = shares.shape[1]
    divergence = F.kl_div(F.log_softmax(answers[:, :colors], dim=-1), shares, reduction="batchmean")
    return divergence + 0.3 * F.cross_entropy(answers[:, colors:], kinds)
