"""GenerationRequest -> picture and record. The only module that draws with a model.

Every request starts from the same state: a scheduler from the pristine configuration, the LoRAs merged at the scales
asked for, and a generator seeded on the CPU, so that a seed gives the same starting latents on every device. Nothing
of a request stays behind, whether it succeeds, fails or is canceled.
"""

from __future__ import annotations

import copy
import gc
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import torch
from msgspec import UNSET, structs

from tilemix.colors.palette import find_colors
from tilemix.drafts.steps import limit_strength
from tilemix.drafts.tone import tone
from tilemix.pictures.record import Record
from tilemix.pipelines.compilation import WARM_UP_STEPS, compile_networks, compiling, plain_where_not_compiled
from tilemix.pipelines.conditioning import Guidance, PromptEncoder
from tilemix.pipelines.family import Denoising
from tilemix.pipelines.loading import ReadyPipeline, choose_device, find_family, load_pipeline
from tilemix.pipelines.noise import draw_noise, mix_noise, vary_added_noise
from tilemix.pipelines.settings import Settings
from tilemix.pipelines.speed import GUIDED_PART, Speed
from tilemix.planning import Plan, Planner
from tilemix.prompts.rewrite import Prompt, log_notes
from tilemix.request import GenerationRequest
from tilemix.system.machine import keep_freed_memory
from tilemix.system.project import ROOT
from tilemix.weights import check_files, locate_model
from tilemix.weights.manifest import Scheduler

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tilemix.colors.palette import Palette
    from tilemix.drafts.draft import Draft
    from tilemix.weights import LocalModel
    from tilemix.weights.tasks import Task

    # Called before a model is loaded, on its device and in its dtype; it may refuse.
    Admit = Callable[[LocalModel, torch.device, torch.dtype], None]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rendered:
    """A picture, how it was made and how long each part took."""

    pixels: NDArray[np.uint8]  # (height, width, 3), sRGB
    prompt: Prompt
    record: Record
    seconds: dict[str, float]  # encode_prompt, denoise, decode; switch, if the weights had to change
    palette: Palette | None = None  # the model's; None: it has none


class Renderer:
    """One loaded model, drawing one picture at a time.

    Args:
        ready: the loaded model; `Renderer.ready` gives it back.
    """

    def __init__(self, ready: ReadyPipeline) -> None:
        self.ready = ready
        self.planner = Planner(ready)
        self._is_compiled = False
        self._encoder = PromptEncoder(ready.base.encode, lambda: (ready.loras.state, ready.tokens.state))

    @classmethod
    def load(
        cls,
        model: str,
        settings: Settings | None = None,
        *,
        root: Path = ROOT,
        admit: Admit | None = None,
        merges: bool = True,
    ) -> Renderer:
        """Load the packaged model `model`.

        Args:
            model: the name of a manifest, weights/NAME.model.json.
            settings: threads, speed, number format and compilation.
            root: the project's folder.
            admit: called when the files are found, before anything is loaded.
            merges: merge the manifest's LoRAs now; False: the first picture merges those that it needs.

        Raises:
            WeightsError: the manifest, or a file it names, cannot be used.
            TemplateError: its prompt template cannot be used.
            TilemixError: torch cannot compile here.
        """
        settings = settings or Settings()
        keep_freed_memory()
        # The cores that this process may use, which can be fewer than the machine has.
        torch.set_num_threads(settings.threads or len(os.sched_getaffinity(0)))
        began = time.perf_counter()
        located = locate_model(model, root)
        device = choose_device(settings.speed, settings.precision, family=located.manifest.base_family)
        if admit is not None:
            admit(located, *device)
        with ThreadPoolExecutor(1) as reader:
            # Hashing releases the GIL and importing holds it, so the two overlap.
            checked = reader.submit(check_files, located)
            find_family(located).import_libraries()
            checked.result()
        renderer = cls(load_pipeline(located, *device, speed=settings.speed, merges=merges))
        if settings.compiled:
            renderer.compile()
        gc.freeze()  # what is loaded stays: collections during predictions can skip it
        logger.info("model %s ready in %.1f s", model, time.perf_counter() - began)
        return renderer

    def with_scheduler(self, name: str) -> Renderer:
        """Return a renderer that draws with another scheduler; the two share all that is loaded."""
        model = self.ready.model
        manifest = structs.replace(model.manifest, scheduler=Scheduler(name=name))
        made = copy.copy(self)
        made.ready = replace(self.ready, model=replace(model, manifest=manifest))
        made.planner = self.planner.of_pipeline(made.ready)
        return made

    def of_task(self, task: Task) -> Renderer:
        """Return a renderer that draws as a task of this model says; the two share all that is loaded.

        Raises:
            TemplateError, ManifestError: its prompt template cannot be used.
        """
        made = copy.copy(self)
        made.planner = self.planner.of_task(task)
        return made

    def compile(self, side: int | None = None) -> None:
        """Compile the networks for the manifest's size, or for squares of `side` pixels; takes minutes.

        Raises:
            TilemixError: torch cannot compile here.
        """
        first = GenerationRequest(
            prompt="-", seed=0, width=side, height=side, num_inference_steps=WARM_UP_STEPS
        )
        logger.info("compiling, which takes minutes")
        compile_networks(self.ready.base.drawing_networks, self.ready.device)
        with compiling():
            self.render(first)
        self._is_compiled = True

    def is_healthy(self) -> bool:
        """Return whether the device still computes. A CUDA context that has failed once stays broken."""
        try:
            return bool(torch.ones(2, device=self.ready.device).sum() == 2)
        except RuntimeError:
            logger.exception("the device %s no longer computes", self.ready.device)
            return False

    def render(
        self, request: GenerationRequest, *, on_step: Callable[[int, int], None] | None = None
    ) -> Rendered:
        """Draw the picture of a request.

        Args:
            request: what to draw; whatever it leaves out comes from the manifest.
            on_step: called after each denoising step with the steps done and the steps in all.

        Raises:
            PromptError: the text cannot be used.
            RequestError: the model draws no pictures of this size.
            RenderError: the model gave no usable picture.
        """
        plan = self.planner.plan(request)
        resolved, prompt, draft = plan.request, plan.prompt, plan.draft
        logger.info("Using seed: %d", resolved.seed)
        if resolved.variation is not None:
            logger.info("Using variation seed: %d (strength %g)", *resolved.variation)
        log_notes(prompt)
        for word in self.ready.tokens.find_unknown(f"{prompt.positive} {prompt.negative}"):
            logger.warning("%s in the prompt is not a token of this model: it counts as plain text", word)
        logger.info("Prompt: %s", prompt.positive)
        seconds: dict[str, float] = {}
        self._merge(plan, seconds)
        reads_negative = self.ready.model.manifest.base_family.reads_negative_prompt
        with _timed(seconds, "encode_prompt"):
            guidances = self._encoder.encode(
                prompt.positive,
                prompt.negative if reads_negative else None,
                steps=plan.steps,
                clip_skip=resolved.clip_skip,
            )
        _log_language(prompt, guidances)
        with plain_where_not_compiled(is_compiled=self._is_compiled):
            with _timed(seconds, "denoise"):
                latents = self._denoise(plan, guidances, on_step)
            with _timed(seconds, "decode"):
                pixels = self.ready.base.decode(latents, wraps=draft is not None)
        record = self.planner.make_record(plan, compiled=self._is_compiled)
        if draft is not None and self.planner.is_toned:
            with _timed(seconds, "tone"):
                pixels, record = self._tone(pixels, draft, record)
        return Rendered(pixels, prompt, record, seconds, self.planner.palette)

    def plan(self, request: GenerationRequest) -> Record:
        """Return the record of the picture that `render` would draw; nothing is drawn.

        Raises:
            PromptError, RequestError: see `render`.
        """
        return self.planner.make_record(self.planner.plan(request), compiled=self._is_compiled)

    def _merge(self, plan: Plan, seconds: dict[str, float]) -> None:
        """Merge the LoRAs that a picture needs; of a task, say which they are."""
        began = time.perf_counter()
        if self.ready.loras.apply(plan.loras):
            seconds["switch"] = time.perf_counter() - began
            logger.info("LoRAs merged in %.2f s", seconds["switch"])
        if self.planner.task is None:
            return
        for file, scale in plan.request.lora_scales.items():
            if scale:
                logger.info("Loaded LoRA: %s (scale=%g)", PurePosixPath(file).name, scale)
        if not self.ready.loras.applied:
            logger.info("No LoRA")

    def _denoise(
        self, plan: Plan, guidances: Sequence[Guidance], on_step: Callable[[int, int], None] | None
    ) -> torch.Tensor:
        base, request, draft = self.ready.base, plan.request, plan.draft
        steps = request.num_inference_steps
        strength = 1.0 if draft is None else limit_strength(request.strength, steps)
        total = int(steps * strength)

        def after_step(done: int) -> None:
            # A cancellation can only be raised in Python code: this call gives it a chance at every step.
            if on_step is not None:
                on_step(done, total)

        shape = base.latent_shape(request.width, request.height)
        generator = torch.Generator("cpu").manual_seed(request.seed)
        scheduler = self.ready.make_scheduler()
        start = torch.randn(shape, generator=generator) if draft is None else base.encode_picture(draft.lit)
        if request.variation is not None:
            second = draw_noise(shape, request.variation.seed)
            if draft is None:
                start = mix_noise(start, second, request.variation.strength)
            else:
                vary_added_noise(scheduler, second, request.variation.strength)
        denoising = Denoising(
            start=start.to(self.ready.device),
            strength=strength,
            generator=generator,
            scheduler=scheduler,
            num_inference_steps=steps,
            guidance_scale=request.guidance_scale,
            guided_part=GUIDED_PART if self.ready.speed is Speed.FAST else 1.0,
            after_step=after_step,
            hypernetworks=[
                (self.ready.hypernetworks[one.file], one.strength) for one in plan.prompt.hypernetworks
            ],
        )
        return base.denoise(guidances, denoising)

    def _tone(
        self, pixels: NDArray[np.uint8], draft: Draft, record: Record
    ) -> tuple[NDArray[np.uint8], Record]:
        """Move the colors of a picture to the palette's; the record says by how much."""
        colors = find_colors(self.planner.palette, (share.color for share in draft.mix.shares))
        assert colors is not None  # there is a draft
        toned, moved = tone(pixels, draft.layout, colors)
        sizes = {draft.mix.shares[number].color: round(size, 1) for number, size in moved.items()}
        assert record.draft is not UNSET
        return toned, structs.replace(record, draft=structs.replace(record.draft, tone=sizes))


def _log_language(prompt: Prompt, guidances: Sequence[Guidance]) -> None:
    """Log what the prompt asks for besides words."""
    for choice in prompt.choices:
        logger.info("Chosen for %s: %s", choice.typed, choice.chosen)
    for lora in prompt.loras:
        logger.info("Added LoRA: %s (text encoders %g, UNet %g)", lora.file, lora.text_scale, lora.unet_scale)
    for one in prompt.hypernetworks:
        logger.info("Hypernetwork: %s (strength=%g)", one.file, one.strength)
    if len(guidances) > 1:
        lasts = ", ".join(str(guidance.last_step) for guidance in guidances[:-1])
        logger.info("Prompt changes after step %s of %d", lasts, guidances[-1].last_step)


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[part] = time.perf_counter() - began
