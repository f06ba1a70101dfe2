"""The base families: what of each differs outside its own file in `tilemix.pipelines`, as data.

Loads no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class BaseFamily:
    """What manifests, adapters and requests need to know about a family of base models."""

    name: str  # in manifests
    base: str  # as messages and `inspect` call it
    network: str  # the folder of the network that draws
    encoders: tuple[str, ...]  # the folders of the text encoders that adapters change
    reads_negative_prompt: bool = True
    size_step: int = 8  # pixels; width and height are multiples of it
    takes_hypernetworks: bool = False
    gpu_dtype: str = "float16"  # of the networks that draw on a GPU

    @property
    def components(self) -> tuple[str, ...]:
        """The networks that LoRAs are merged into."""
        return self.network, *self.encoders


SDXL = BaseFamily("sdxl", "SDXL", "unet", ("text_encoder", "text_encoder_2"))
SD1 = BaseFamily("sd1", "SD 1", "unet", ("text_encoder",), takes_hypernetworks=True)
BASE_FAMILIES: Mapping[str, BaseFamily] = MappingProxyType({family.name: family for family in (SDXL, SD1)})
