"""The UNet's attention in fewer operations, with the same numbers.

* Self-attention: query, key and value come from one product instead of three. `to_q`, `to_k` and
  `to_v` become views of the joined weight, so what is merged into them is merged into it.
* Cross-attention: the text's keys and values depend on the prompt's embeddings alone, which are the same
  tensor in every denoising step, so they are computed once a run. They are kept in buffers beside the weights,
  where compiled code finds them at the same address each time.

In fp32 on a CPU the numbers are those of diffusers' `AttnProcessor2_0`; elsewhere the joined product may be
summed in another order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F

from tilemix.adapters.hypernetwork import chain

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from tilemix.adapters.hypernetwork import Hypernetwork

TEXT_PARTS = (("text_key", "to_k"), ("text_value", "to_v"))  # a buffer, and the projection that fills it


class SpedAttention(Protocol):
    """What is touched of diffusers' `Attention`, with the buffers that stand beside its weights here."""

    heads: int
    to_q: torch.nn.Linear
    to_k: torch.nn.Linear
    to_v: torch.nn.Linear
    to_out: torch.nn.ModuleList
    qkv_weight: torch.Tensor  # (3 * width, width), in self-attention
    text_key: torch.Tensor  # (n, heads, tokens, width / heads), in cross-attention
    text_value: torch.Tensor


class SelfAttention:
    """An attention processor of diffusers for SDXL's self-attention: no mask, no norms, no residual, no biases."""

    def __call__(
        self,
        attn: SpedAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend within the picture (n, places, width); the names are diffusers'."""
        assert encoder_hidden_states is None
        assert attention_mask is None
        joined = F.linear(hidden_states, attn.qkv_weight).chunk(3, dim=-1)
        return _attend(attn, *(_split_heads(part, attn.heads) for part in joined))


class CrossAttention:
    """An attention processor of diffusers for SDXL's cross-attention: no mask, no norms, no residual.

    The text is the last one that `TextKeys` has seen.
    """

    def __call__(
        self,
        attn: SpedAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,  # noqa: ARG002 diffusers' interface
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend from the picture (n, places, width) to the text; the names are diffusers'."""
        assert attention_mask is None
        query = _split_heads(attn.to_q(hidden_states), attn.heads)
        return _attend(attn, query, attn.text_key, attn.text_value)


class HypernetAttention:
    """An attention processor of diffusers for both sorts of attention, with hypernetworks in force."""

    def __init__(self, hypernetworks: Sequence[tuple[Hypernetwork, float]]) -> None:
        self._hypernetworks = hypernetworks

    def __call__(
        self,
        attn: SpedAttention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attend to the text, or within the picture where there is none; the names are diffusers'."""
        assert attention_mask is None
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        for_key, for_value = chain(context.to(attn.to_k.weight.dtype), self._hypernetworks)
        parts = (attn.to_q(hidden_states), attn.to_k(for_key), attn.to_v(for_value))
        return _attend(attn, *(_split_heads(part, attn.heads) for part in parts))


@contextmanager
def hypernetworks_applied(
    unet: UNet2DConditionModel, hypernetworks: Sequence[tuple[Hypernetwork, float]]
) -> Iterator[None]:
    """Let hypernetworks, each at its strength, change the attention of `unet` until the end of this context."""
    if not hypernetworks:
        yield
        return
    own: dict[str, Any] = dict(unet.attn_processors)
    processor: Any = HypernetAttention(hypernetworks)  # diffusers takes any callable
    unet.set_attn_processor(dict.fromkeys(own, processor))
    try:
        yield
    finally:
        unet.set_attn_processor(own)


class TextKeys:
    """Keys and values of the text for every cross-attention, computed again when the text is another tensor."""

    def __init__(self, attentions: Sequence[Attention]) -> None:
        self._attentions = attentions
        self._text: torch.Tensor | None = None  # whose keys may be used again
        self._is_kept = False

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep what is computed until the end of this context, however it ends.

        The weights of the attention and the text's tensors must stay as they are meanwhile.
        """
        self._is_kept = True
        try:
            yield
        finally:
            self._is_kept, self._text = False, None

    def see_text(self, _: torch.nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        """Compute keys and values of the text that the UNet is about to be called with; a forward pre-hook."""
        text = kwargs["encoder_hidden_states"] if "encoder_hidden_states" in kwargs else args[2]
        assert isinstance(text, torch.Tensor)
        self.compute(text)

    def compute(self, text: torch.Tensor) -> None:
        """Compute the keys and values of `text` (n, tokens, width), unless they are kept."""
        if self._text is text:
            return
        self._text = None
        for attention in self._attentions:
            # A pipeline passes the text in its encoders' dtype, which may differ from the UNet's.
            cast = text.to(attention.to_k.weight.dtype)
            for buffer, projection in TEXT_PARTS:
                _fill(attention, buffer, _split_heads(getattr(attention, projection)(cast), attention.heads))
        if self._is_kept:
            self._text = text


def speed_attention(unet: UNet2DConditionModel) -> TextKeys:
    """Give `unet`, on its device and in its dtype, these processors; return what keeps the text's keys.

    Afterward its weights may be changed in place, but not moved, and not copied by copy.deepcopy, which separates
    the joined weights.
    """
    attentions = {name: _find_attention(unet, name) for name in unet.attn_processors}
    crossing = [one for name, one in attentions.items() if name.endswith("attn2.processor")]
    for attention in attentions.values():
        if attention in crossing:
            for buffer, _ in TEXT_PARTS:
                attention.register_buffer(buffer, torch.empty(0), persistent=False)
        else:
            _join_weights(attention)
    processors: dict[str, Any] = {  # diffusers takes any callable, and names its own in the annotation
        name: CrossAttention() if attention in crossing else SelfAttention()
        for name, attention in attentions.items()
    }
    unet.set_attn_processor(processors)
    keys = TextKeys(crossing)
    unet.register_forward_pre_hook(keys.see_text, with_kwargs=True)
    return keys


def _find_attention(unet: UNet2DConditionModel, processor: str) -> Attention:
    from diffusers.models.attention_processor import Attention

    attention = unet.get_submodule(processor.removesuffix(".processor"))
    assert isinstance(attention, Attention)
    return attention


def _join_weights(attention: Attention) -> None:
    projections = (attention.to_q, attention.to_k, attention.to_v)
    assert all(one.bias is None for one in projections)
    joined = torch.cat([one.weight.detach() for one in projections])
    attention.register_buffer("qkv_weight", joined, persistent=False)
    for one, rows in zip(projections, joined.chunk(len(projections)), strict=True):
        one.weight.data = rows


def _fill(attention: Attention, buffer: str, value: torch.Tensor) -> None:
    kept = getattr(attention, buffer)
    if (kept.shape, kept.dtype, kept.device) != (value.shape, value.dtype, value.device):
        with torch.inference_mode(mode=False):  # a tensor made in inference mode cannot be filled outside it
            kept = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)
        setattr(attention, buffer, kept)
    kept.copy_(value)


def _attend(
    attention: SpedAttention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    attended = F.scaled_dot_product_attention(query, key, value)
    # to_out[1] is a dropout, which does nothing in inference.
    out: torch.Tensor = attention.to_out[0](attended.transpose(1, 2).flatten(2))
    return out


def _split_heads(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    count, places, width = tensor.shape
    return tensor.view(count, places, heads, width // heads).transpose(1, 2)
