"""Captions -> token ids -> the text encoders' hidden states, as the UNet takes them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection


def tokenize(tokenizer: PreTrainedTokenizerBase, captions: list[str]) -> torch.Tensor:
    """Return token ids (n, 77), truncated and padded like the pipeline's."""
    encoded = tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    ids: torch.Tensor = encoded.input_ids
    return ids


def encode_captions(
    encoders: tuple[CLIPTextModel, CLIPTextModelWithProjection],
    ids: tuple[torch.Tensor, torch.Tensor],
    pooled_at: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the inputs of SDXL's UNet: the second-to-last hidden states (n, 77, both widths), and pooled (n, d).

    The pooled vector is taken at the highest token id, as the model does; with `pooled_at` (n,) it is taken
    that fraction of the caption's tokens before its end.
    """
    first = encoders[0](ids[0], output_hidden_states=True)
    second = encoders[1](ids[1], output_hidden_states=True)
    embeds = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    if pooled_at is None:
        return embeds, second.text_embeds
    ends = ids[1].argmax(dim=1)
    places = (ends * (1 - pooled_at.to(ends.device))).long()
    rows = torch.arange(len(ends), device=ends.device)
    return embeds, encoders[1].text_projection(second.last_hidden_state[rows, places])


def plain_attention(device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which attention on a CPU is plain matrix products.

    On a CPU the fused kernel's backward pass is three times slower (torch 2.13); on a GPU it is faster.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
