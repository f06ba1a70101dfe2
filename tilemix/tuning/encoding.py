"""Captions -> what the UNet is given: token ids, and the text encoders' hidden states."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer


def tokenize(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Return token ids (n, 77), cut and padded as the pipeline does it."""
    encoded = tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    ids: torch.Tensor = encoded.input_ids
    return ids


def encode_captions(
    encoders: tuple[CLIPTextModel, CLIPTextModelWithProjection],
    ids: tuple[torch.Tensor, torch.Tensor],
    pooled_at: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what SDXL's UNet is given: (n, 77, both widths) of the last layers but one, and (n, d) pooled.

    The pooled vector is the model's own, of the highest token id; with `pooled_at` (n,) it is taken
    that fraction of a caption's tokens before its end.
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
    """Return a context in which attention is plain matrix products on a CPU.

    There the fused kernel's backward is three times slower (torch 2.13); on a GPU it is the fast one.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
