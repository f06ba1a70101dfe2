"""The models of a run: random weights in SDXL's published layout, built on the device; ours, the peers, the truth.

Every one of them has a copy of the same weights. What a run needs of a disk is the base's weights that merging
reads, so the model is also written as a packaged one.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec
import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from transformers.models.clip.tokenization_clip import CLIPTokenizer

from bench import peers
from bench.gpu.adapters import write_adapters
from bench.gpu.rows import TERA_PER_STEP
from bench.ours import Ours, find_peer_files
from bench.pictures import TILE_WORDS
from bench.topology import MINIATURE, MODEL, REAL, TINY, Shape, build_parts, package, read_config
from tilemix.pipelines.loading import prepare_pipeline
from tilemix.pipelines.parts import move
from tilemix.pipelines.sdxl import Sdxl
from tilemix.pipelines.speed import Speed
from tilemix.prompts.template import load_template
from tilemix.render import Renderer
from tilemix.system.project import ROOT
from tilemix.weights import find_model
from tilemix.weights.manifest import load_manifest

if TYPE_CHECKING:
    from bench.peers import Order, Peer, PeerFiles
    from bench.topology import Part
    from tilemix.pipelines.sdxl import SdxlPipeline

PRODUCT = "rubber-tile"  # whose sizes and settings a run has


@dataclass(frozen=True, slots=True)
class Size:
    """How much is drawn."""

    shape: Shape
    side: int  # pixels of a picture, decoded in one piece
    tiled_side: int  # of one that is decoded in tiles
    steps: int
    lever_steps: int  # of the pictures that a lever is measured on
    rounds: int
    few_rounds: int  # of what takes long
    warm_ups: int  # of what is compiled
    tera_per_step: float | None  # operations of a CFG step at `side`; None: not counted


REAL_SIZE = Size(REAL, 1024, 1536, 25, 8, 5, 3, 2, TERA_PER_STEP)
TINY_SIZE = Size(TINY, 256, 1032, 2, 1, 1, 1, 1, None)


class Workshop:
    """Makes each model when it is first asked for.

    Args:
        folder: an empty folder, for the packaged model.
        size: how much is drawn.
        device: where.
        dtype: of the networks, but for the truth.
    """

    def __init__(self, folder: Path, size: Size, device: torch.device, dtype: torch.dtype) -> None:
        self.folder = folder
        self.size = size
        self.device = device
        self.dtype = dtype
        self._guidance_scale = load_manifest(PRODUCT, ROOT).defaults.guidance_scale

    @cached_property
    def parts(self) -> dict[str, Part]:
        """The four networks as they come from the seed; not to be changed."""
        with self.device:  # 3.5 billion random numbers take minutes on a CPU
            parts = build_parts(self.size.shape)
        return {
            name: move(part, dtype=self.dtype).eval().requires_grad_(False) for name, part in parts.items()
        }

    @cached_property
    def root(self) -> Path:
        """The project folder with the packaged model: base, LoRA, tokens."""
        adapters = write_adapters(self.folder / "weights", self.parts, MODEL)
        name = load_manifest(PRODUCT, ROOT).prompt_template
        template = msgspec.to_builtins(load_template(ROOT / "prompt_templates" / f"{name}.json"))
        return package(self.folder, self.parts, template, adapters=adapters, side=self.size.side)

    @property
    def files(self) -> PeerFiles:
        """The packaged model, as the peers see it."""
        return find_peer_files(MODEL, self.root)

    def build_pipeline(self, dtype: torch.dtype | None = None) -> StableDiffusionXLPipeline:
        """Return a pipeline of diffusers' own with a copy of the weights."""
        parts: dict[str, Any] = {
            name: move(copy.deepcopy(part), dtype=dtype or self.dtype) for name, part in self.parts.items()
        }
        return StableDiffusionXLPipeline(
            **parts,
            tokenizer=CLIPTokenizer.from_pretrained(MINIATURE / "tokenizer"),
            tokenizer_2=CLIPTokenizer.from_pretrained(MINIATURE / "tokenizer_2"),
            scheduler=EulerDiscreteScheduler.from_config(read_config("scheduler")),
            add_watermarker=False,
        )

    @cached_property
    def ours(self) -> Ours:
        """tilemix, by the steps that it takes after reading the files."""
        model = find_model(MODEL, self.root)
        pipeline = cast("SdxlPipeline", self.build_pipeline())
        base = Sdxl(pipeline, self.device, self.dtype)
        ready = prepare_pipeline(base, model, self.device, self.dtype, speed=Speed.EQUIVALENT)
        return Ours(ready, Renderer(ready))

    @cached_property
    def naive(self) -> Peer:
        """Peer N."""
        return peers.make_naive(peers.dress_base(self.build_pipeline(), self.files), self.files)

    @cached_property
    def strong(self) -> Peer:
        """Peer S, eager."""
        return peers.make_strong(peers.dress_base(self.build_pipeline(), self.files), self.files)

    @cached_property
    def truth(self) -> Peer:
        """Peer N in fp32: the same weights, rounded nowhere on the way."""
        pipe = peers.dress_base(self.build_pipeline(torch.float32), self.files)
        return peers.make_naive(pipe, self.files)

    def find_rate(self, seconds: float) -> float | None:
        """Return the TFLOP/s of a picture's denoising steps in so many seconds."""
        tera = self.size.tera_per_step
        return None if tera is None else tera * self.size.steps / seconds

    def forget(self, name: str) -> None:
        """Let a model go; it is made anew when it is asked for again."""
        self.__dict__.pop(name, None)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def order(self, number: int, *, side: int | None = None, steps: int | None = None) -> Order:
        """Return order `number`, each with another prompt and seed."""
        red = 20 + number * 7 % 61
        return peers.Order(
            prompt=f"ohwx_rubber_tile <s0><s1>, {red}% red, {100 - red}% black, {TILE_WORDS}, number {number}",
            negative_prompt="blurry",
            seed=number,
            side=side or self.size.side,
            steps=steps or self.size.steps,
            guidance_scale=self._guidance_scale,
        )


def draw_latents(order: Order) -> torch.Tensor:
    """Return the noise that tilemix begins an order's picture with, (1, 4, h/8, w/8) fp32, on the CPU."""
    generator = torch.Generator("cpu").manual_seed(order.seed)
    return torch.randn((1, 4, order.side // 8, order.side // 8), generator=generator)
