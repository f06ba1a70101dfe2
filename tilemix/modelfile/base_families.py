"""The base families: what of each differs outside its own file in `tilemix.pipelines`, as data.

Loads no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tilemix.modelfile.embedding_names import CLIP_PAIR, KOHYA_ROWS, PAIRS


@dataclass(frozen=True, slots=True)
class BaseFamily:
    """What manifests, adapters and requests need to know about a family of base models."""

    name: str  # in manifests
    base: str  # as messages and `inspect` call it
    network: str  # the folder of the network that draws
    encoders: tuple[str, ...]  # the folders of the text encoders that adapters change
    embeddings: tuple[
        tuple[str, ...], ...
    ]  # an embedding's tensors, one for each encoder, as writers name them
    reads_negative_prompt: bool = True
    has_clip_skip: bool = True
    is_flow: bool = False  # trained by flow matching, https://arxiv.org/abs/2210.02747
    size_step: int = 8  # pixels; width and height are multiples of it
    takes_hypernetworks: bool = False
    web_uis_skip: bool = (
        False  # whether web UIs heed "Clip skip"; where not, they take the states of its training
    )
    gpu_dtype: str = "float16"  # of the networks that draw on a GPU

    @property
    def components(self) -> tuple[str, ...]:
        """The networks that LoRAs are merged into."""
        return self.network, *self.encoders

    def find_embedding(self, tensors: Iterable[str]) -> tuple[str, ...] | None:
        """Return the names of an embedding's tensors, in the order of `encoders`; None: another family's."""
        names = set(tensors)
        return next((found for found in self.embeddings if names == set(found)), None)


SDXL = BaseFamily(
    name="sdxl",
    base="SDXL",
    network="unet",
    encoders=("text_encoder", "text_encoder_2"),
    embeddings=tuple(pair.names for pair in PAIRS),
)
SD1 = BaseFamily(
    name="sd1",
    base="SD 1",
    network="unet",
    encoders=("text_encoder",),
    embeddings=((KOHYA_ROWS,),),
    takes_hypernetworks=True,
    web_uis_skip=True,
)
FLUX1 = BaseFamily(
    name="flux1",
    base="Flux.1",
    network="transformer",
    encoders=("text_encoder",),
    embeddings=((CLIP_PAIR.text_encoder,),),
    reads_negative_prompt=False,
    has_clip_skip=False,
    is_flow=True,
    size_step=16,  # a patch of 2 x 2 latents
    gpu_dtype="bfloat16",  # T5 overflows in fp16
)
BASE_FAMILIES: Mapping[str, BaseFamily] = MappingProxyType(
    {family.name: family for family in (SDXL, SD1, FLUX1)}
)
