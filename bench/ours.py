"""tilemix as the bench runs it: a packaged model in one of the speed modes, and the files for its peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bench.peers import Order, PeerFiles
from tilemix.pictures.files import encode_image
from tilemix.pipelines.clip_text import OWN_CLIP_SKIP
from tilemix.pipelines.conditioning import PromptEncoder
from tilemix.pipelines.loading import ReadyPipeline, load_pipeline
from tilemix.pipelines.sdxl import Sdxl, encode_text
from tilemix.pipelines.speed import Speed, choose_dtype
from tilemix.pipelines.unet_family import tensors_of
from tilemix.render import Rendered, Renderer
from tilemix.request import GenerationRequest
from tilemix.weights import find_model
from tilemix.weights.calibration import load_calibration, resolve_lora_scales

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tilemix.pipelines.sdxl import SdxlPipeline


@dataclass(frozen=True, slots=True)
class Ours:
    """One loaded model."""

    ready: ReadyPipeline
    renderer: Renderer

    @property
    def base(self) -> Sdxl:
        """Its base, of the only family that the bench has."""
        assert isinstance(self.ready.base, Sdxl)
        return self.ready.base

    @property
    def pipeline(self) -> SdxlPipeline:
        """The pipeline of its base."""
        return self.base.pipeline

    def draw(
        self, order: Order, *, on_step: Callable[[], None] | None = None, lora_scale: float | None = None
    ) -> Rendered:
        """Return the picture with its record; `on_step` is called after each denoising step."""

        def after_step(_: int, __: int) -> None:
            if on_step is not None:
                on_step()

        return self.renderer.render(
            GenerationRequest(
                prompt=order.prompt,
                negative_prompt=order.negative_prompt,
                seed=order.seed,
                width=order.side,
                height=order.side,
                num_inference_steps=order.steps,
                guidance_scale=order.guidance_scale,
                lora_scale=lora_scale,
                strength=1.0,  # from noise, as the peers draw
            ),
            on_step=after_step,
        )

    def predict(self, order: Order, *, on_step: Callable[[], None] | None = None) -> bytes:
        """Return the picture as the bytes of a PNG file, its record inside."""
        rendered = self.draw(order, on_step=on_step)
        return encode_image(rendered.pixels, rendered.record, output_format="png")


def load_ours(name: str, root: Path, speed: Speed = Speed.EXACT, *, device: str = "cpu") -> Ours:
    """Load a packaged model without changing torch's threads; on the CPU unless `device` says otherwise."""
    where = torch.device(device)
    ready = load_pipeline(find_model(name, root), where, choose_dtype(where, speed), speed=speed)
    return Ours(ready, Renderer(ready))


def encode_order(pipeline: SdxlPipeline, order: Order) -> dict[str, torch.Tensor]:
    """Return both prompts of an order, encoded anew, by the names of the pipeline's arguments."""
    encoder = PromptEncoder(partial(encode_text, pipeline), lambda: None)
    (guidance,) = encoder.encode(
        order.prompt, order.negative_prompt, steps=order.steps, clip_skip=OWN_CLIP_SKIP
    )
    return tensors_of(guidance)


def find_peer_files(name: str, root: Path) -> PeerFiles:
    """Return the files of a packaged model that has at most one LoRA and one set of embeddings."""
    model = find_model(name, root)
    paths: Mapping[str, tuple[Path, object]] = {
        adapter.kind: (path, adapter)
        for adapter, path in zip(model.manifest.adapters, model.adapters, strict=True)
    }
    lora, _ = paths.get("lora", (None, None))
    scales = resolve_lora_scales(model.manifest, load_calibration(model))  # as tilemix draws
    embeddings, tokens_entry = paths.get("embedding", (None, None))
    return PeerFiles(
        base=model.base,
        lora=lora,
        lora_scale=next(iter(scales.values()), 1.0),
        embeddings=embeddings,
        tokens=getattr(tokens_entry, "tokens", ()),
        karras=model.manifest.scheduler.name.endswith("_karras"),
    )


@contextmanager
def replaced(owner: object, name: str, value: object) -> Iterator[None]:
    """Replace an attribute inside the block: the bench's way to undo a lever."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
