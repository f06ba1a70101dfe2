"""The UNet's cross-attention, with the text's keys and values computed once a run instead of once a step.

They depend on the prompt's embeddings alone, which are the same tensor in every denoising step. The numbers
are diffusers' own (`AttnProcessor2_0`), bit for bit: the same operations on the same inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import Attention


class TextKeys:
    """Keys and values of the text, kept while `kept()` is entered."""

    def __init__(self) -> None:
        self._found: dict[Attention, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] | None = None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep what is computed until the end of this context, however it ends.

        The weights of the attention and the text's tensors must stay as they are meanwhile.
        """
        self._found = {}
        try:
            yield
        finally:
            self._found = None

    def find(self, attention: Attention, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the key and the value of `text` (n, tokens, width), each (n, heads, tokens, head width)."""
        known = None if self._found is None else self._found.get(attention)
        # Another text in the same run, such as its positive half alone, is another tensor.
        if known is not None and known[0] is text:
            return known[1], known[2]
        # A pipeline hands over the text in its encoders' dtype, which may be another than the UNet's.
        cast = text.to(attention.to_k.weight.dtype)
        key = _split_heads(attention.to_k(cast), attention.heads)
        value = _split_heads(attention.to_v(cast), attention.heads)
        if self._found is not None:
            self._found[attention] = text, key, value
        return key, value


class CrossAttention:
    """An attention processor of diffusers for SDXL's cross-attention: no mask, no norms, no residual."""

    def __init__(self, keys: TextKeys) -> None:
        self._keys = keys

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend from the picture (n, places, width) to the text; the names are diffusers'."""
        assert attention_mask is None
        query = _split_heads(attn.to_q(hidden_states), attn.heads)
        key, value = self._keys.find(attn, encoder_hidden_states)
        attended = F.scaled_dot_product_attention(query, key, value)
        # to_out[1] is a dropout, which does nothing in inference.
        out: torch.Tensor = attn.to_out[0](attended.transpose(1, 2).flatten(2))
        return out


def keep_text_keys(unet: UNet2DConditionModel) -> TextKeys:
    """Let the cross-attention of `unet` keep the text's keys and values; return what keeps them."""
    keys = TextKeys()
    unet.set_attn_processor(
        {
            name: CrossAttention(keys) if name.endswith("attn2.processor") else processor
            for name, processor in unet.attn_processors.items()
        }
    )
    return keys


def _split_heads(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    count, places, width = tensor.shape
    return tensor.view(count, places, heads, width // heads).transpose(1, 2)
