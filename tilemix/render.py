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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import torch
from msgspec import UNSET, structs

from tilemix import __version__
from tilemix.adapters.merging import PartScales, Scale
from tilemix.colors.palette import find_colors
from tilemix.drafts.draft import draft_mix
from tilemix.drafts.steps import limit_strength, settle_steps
from tilemix.drafts.tone import tone
from tilemix.errors import ManifestError, RequestError
from tilemix.inputs import IntegerInput, find_input
from tilemix.pictures.record import DraftRecord, Record, VariationRecord
from tilemix.pipelines.compilation import WARM_UP_STEPS, compile_networks, compiling, plain_where_not_compiled
from tilemix.pipelines.conditioning import Guidance, PromptEncoder
from tilemix.pipelines.family import Denoising
from tilemix.pipelines.loading import ReadyPipeline, choose_device, find_family, load_pipeline
from tilemix.pipelines.noise import draw_noise, mix_noise, vary_added_noise
from tilemix.pipelines.settings import Settings
from tilemix.pipelines.speed import GUIDED_PART, Speed
from tilemix.prompts.context import NamedHypernetwork, NamedLora
from tilemix.prompts.rewrite import Prompt, log_notes, rewrite
from tilemix.prompts.template import find_template, load_template
from tilemix.request import GenerationRequest, ResolvedRequest
from tilemix.samplers import find_sampler
from tilemix.system.machine import keep_freed_memory
from tilemix.system.project import ROOT
from tilemix.weights import check_files, locate_model
from tilemix.weights.calibration import load_calibration, resolve_strength
from tilemix.weights.manifest import Scheduler
from tilemix.weights.prompting import make_context

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tilemix.colors.palette import Palette
    from tilemix.drafts.draft import Draft
    from tilemix.prompts.mix import ColorMix
    from tilemix.prompts.template import PromptTemplate
    from tilemix.weights import LocalModel
    from tilemix.weights.tasks import Task

    # Called before a model is loaded, on its device and in its dtype; it may refuse.
    Admit = Callable[[LocalModel, torch.device, torch.dtype], None]

logger = logging.getLogger(__name__)

SHORT_HASH = 12  # digits
RECORDED_LIBRARIES = ("diffusers", "transformers", "compel", "safetensors")


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
        self.task: Task | None = None  # None: the manifest's template and LoRAs
        self._is_compiled = False
        self._encoder = PromptEncoder(ready.base.encode, lambda: (ready.loras.state, ready.tokens.state))
        self.use_template(load_template(ready.model.template))
        self._palette = ready.model.manifest.load_palette()
        self.calibration = load_calibration(
            ready.model
        )  # None: the manifest's strength, the palette's colors

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
        return made

    def of_task(self, task: Task) -> Renderer:
        """Return a renderer that draws as a task of this model says; the two share all that is loaded.

        Raises:
            TemplateError, ManifestError: its prompt template cannot be used.
        """
        made = copy.copy(self)
        made.task = task
        made.use_template(find_template(task.template, self.ready.model.template.parents[1]))
        return made

    def use_template(self, template: PromptTemplate) -> None:
        """Put the users' words into this template from now on.

        Raises:
            ManifestError: the model lacks one of its tokens.
        """
        missing = [token for token in template.placeholder_tokens if token not in self.placeholder_tokens]
        if missing:
            raise ManifestError(
                "manifest-missing-token",
                file=f"{self.ready.model.name}.model.json",
                template=template.name,
                token=missing[0],
            )
        self.template = template

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

    @property
    def placeholder_tokens(self) -> list[str]:
        """The tokens that the model's embeddings bring."""
        return list(self.ready.tokens.installed)

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
        resolved = self._resolve(request)
        logger.info("Using seed: %d", resolved.seed)
        if resolved.variation is not None:
            logger.info("Using variation seed: %d (strength %g)", *resolved.variation)
        prompt, draft, steps = self._read(resolved)
        log_notes(prompt)
        for word in self.ready.tokens.find_unknown(f"{prompt.positive} {prompt.negative}"):
            logger.warning("%s in the prompt is not a token of this model: it counts as plain text", word)
        logger.info("Prompt: %s", prompt.positive)
        seconds: dict[str, float] = {}
        self._merge(resolved, prompt, seconds)
        reads_negative = self.ready.model.manifest.base_family.reads_negative_prompt
        with _timed(seconds, "encode_prompt"):
            guidances = self._encoder.encode(
                prompt.positive,
                prompt.negative if reads_negative else None,
                steps=steps,
                clip_skip=resolved.clip_skip,
            )
        _log_language(prompt, guidances)
        with plain_where_not_compiled(is_compiled=self._is_compiled):
            with _timed(seconds, "denoise"):
                latents = self._denoise(resolved, guidances, draft, on_step, prompt.hypernetworks)
            with _timed(seconds, "decode"):
                pixels = self.ready.base.decode(latents, wraps=draft is not None)
        record = self._make_record(resolved, prompt, draft)
        if draft is not None and self._is_toned:
            with _timed(seconds, "tone"):
                pixels, record = self._tone(pixels, draft, record)
        return Rendered(pixels, prompt, record, seconds, self._palette)

    def plan(self, request: GenerationRequest) -> Record:
        """Return the record of the picture that `render` would draw; nothing is drawn.

        A request without a seed gets another one each time.

        Raises:
            PromptError: the text cannot be used.
        """
        resolved = self._resolve(request)
        prompt, draft, _ = self._read(resolved)
        return self._make_record(resolved, prompt, draft)

    def _read(self, request: ResolvedRequest) -> tuple[Prompt, Draft | None, int]:
        """Return the prompt of a request, the draft to draw from, and the number of steps that are drawn."""
        prompt, draft, steps = settle_steps(
            lambda drawn: self._rewrite(request, drawn),
            lambda mix: self._lay_out(request, mix),
            steps=request.num_inference_steps,
            strength=request.strength,
        )
        return self._spell_out(prompt), draft, steps

    def _rewrite(self, request: ResolvedRequest, steps: int) -> Prompt:
        manifest, template = self.ready.model.manifest, self.ready.model.template
        return rewrite(
            request.prompt,
            self.template,
            self._palette,
            negative_prompt=request.negative_prompt,
            context=make_context(manifest, seed=request.seed, steps=steps, templates=template.parent),
        )

    def _merge(self, request: ResolvedRequest, prompt: Prompt, seconds: dict[str, float]) -> None:
        """Merge the LoRAs that a picture needs; of a task, say which they are."""
        scales = add_loras(request.lora_scales, prompt.loras)
        began = time.perf_counter()
        if self.ready.loras.apply(scales):
            seconds["switch"] = time.perf_counter() - began
            logger.info("LoRAs merged in %.2f s", seconds["switch"])
        if self.task is None:
            return
        for file, scale in request.lora_scales.items():
            if scale:
                logger.info("Loaded LoRA: %s (scale=%g)", PurePosixPath(file).name, scale)
        if not self.ready.loras.applied:
            logger.info("No LoRA")

    def _spell_out(self, prompt: Prompt) -> Prompt:
        """Return the prompt with the tokens of embeddings that are typed as their trainers named them."""
        tokens = self.ready.tokens
        positive, negative = map(tokens.spell_out, (prompt.positive, prompt.negative))
        return replace(prompt, positive=positive, negative=negative)

    def resolve_strength(self) -> float:
        """Return the strength of a request that leaves it out: the calibration's, or else the manifest's."""
        return resolve_strength(self.ready.model.manifest, self.calibration)

    def _resolve_lora_scales(self) -> Mapping[str, float]:
        """Return the scales of a request that leaves them out, by file: the calibration's, or else each LoRA's own."""
        scale = None if self.calibration is None else self.calibration.lora_scale
        own = self.ready.lora_scales
        return own if scale is None else dict.fromkeys(own, scale)

    def _resolve(self, request: GenerationRequest) -> ResolvedRequest:
        """Fill in what the request leaves out: from the manifest, from the template, or drawn.

        Raises:
            RequestError: the model draws no pictures of this size, or the request is of another task.
        """
        if request.task != (self.task and self.task.name):
            raise RequestError("task-elsewhere", field="task", typed=str(request.task)[:40])
        family = self.ready.model.manifest.base_family
        own = None if self.task is None else self.task.lora_scales
        resolved = request.resolve(
            structs.replace(self.ready.model.manifest.defaults, strength=self.resolve_strength()),
            negative_prompt=self.template.negative_prompt if family.reads_negative_prompt else "",
            lora_scales=self._resolve_lora_scales() if own is None else own,
        )
        for field, side in (("width", resolved.width), ("height", resolved.height)):
            if side % family.size_step:
                row = find_input(field, IntegerInput)
                raise RequestError(
                    "input-not-multiple",
                    field=field,
                    typed=side,
                    low=row.minimum,
                    high=row.maximum,
                    multiple=family.size_step,
                )
        if request.variation_seed is not None and resolved.variation is None:
            logger.warning("variation_seed %d has no effect: variation_strength is 0", request.variation_seed)
        sampler = find_sampler(self.ready.model.manifest.scheduler.name)
        most = None if sampler is None else sampler.most_steps
        if most is not None and resolved.num_inference_steps > most:
            field, typed = "num_inference_steps", resolved.num_inference_steps
            raise RequestError("input-out-of-range", field=field, typed=typed, low=1, high=most)
        if request.clip_skip is not None and not family.has_clip_skip:
            logger.warning("clip_skip %d has no effect on %s", request.clip_skip, family.base)
        if request.lora_scale is not None and not resolved.lora_scales:
            subject = "model" if own is None else "task"
            logger.warning("lora_scale %g has no effect: the %s has no LoRA", request.lora_scale, subject)
        return resolved

    def _lay_out(self, request: ResolvedRequest, mix: ColorMix) -> Draft | None:
        """Return the draft to draw from; None: from noise, for want of a swatch."""
        draft = draft_mix(
            mix,
            self._palette,
            request.width,
            request.height,
            seed=request.seed,
            granule_size=request.granule_size,
        )
        if draft is None:
            logger.info("drawn from noise: a color has no swatch to lay out")
        elif self.calibration is not None:
            known = self.calibration.colors
            draft = draft.recolored(
                {
                    name: known[name].draft
                    for name, swatch in draft.colors.items()
                    if name in known and known[name].as_seen == swatch  # else the palette has changed
                }
            )
        return draft

    def _denoise(
        self,
        request: ResolvedRequest,
        guidances: Sequence[Guidance],
        draft: Draft | None,
        on_step: Callable[[int, int], None] | None,
        hypernetworks: Sequence[NamedHypernetwork],
    ) -> torch.Tensor:
        base, steps = self.ready.base, request.num_inference_steps
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
            hypernetworks=[(self.ready.hypernetworks[one.file], one.strength) for one in hypernetworks],
        )
        return base.denoise(guidances, denoising)

    def _hash_loras(self, request: ResolvedRequest, prompt: Prompt) -> dict[str, str]:
        """Return the hash of each LoRA, of a task only of those that it or the prompt names."""
        if self.task is None:
            return self.ready.lora_hashes
        used = add_loras(request.lora_scales, prompt.loras)
        return {file: digits for file, digits in self.ready.lora_hashes.items() if file in used}

    @property
    def _is_toned(self) -> bool:
        return self.calibration is not None and self.calibration.toned

    def _tone(
        self, pixels: NDArray[np.uint8], draft: Draft, record: Record
    ) -> tuple[NDArray[np.uint8], Record]:
        """Move the colors of a picture to the palette's; the record says by how much."""
        colors = find_colors(self._palette, (share.color for share in draft.mix.shares))
        assert colors is not None  # there is a draft
        toned, moved = tone(pixels, draft.layout, colors)
        sizes = {draft.mix.shares[number].color: round(size, 1) for number, size in moved.items()}
        assert record.draft is not UNSET
        return toned, structs.replace(record, draft=structs.replace(record.draft, tone=sizes))

    def _make_record(self, request: ResolvedRequest, prompt: Prompt, draft: Draft | None) -> Record:
        return Record(
            prompt=prompt.typed,
            sent_prompt=prompt.positive,
            sent_negative_prompt=prompt.negative,
            mix=_list_shares(prompt.mix),
            sent_mix=_list_shares(prompt.sent),
            seed=request.seed,
            width=request.width,
            height=request.height,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            lora_scale=next(iter(request.lora_scales.values()), None),
            lora_scales=dict(request.lora_scales),
            lora_hashes=self._hash_loras(request, prompt),
            embedding_hashes=self._hash_embeddings(prompt),
            task=UNSET if self.task is None else self.task.name,
            named_loras={lora.file: (lora.text_scale, lora.unet_scale) for lora in prompt.loras} or UNSET,
            hypernetworks=[(one.file, one.strength) for one in prompt.hypernetworks] or UNSET,
            chosen_prompt=UNSET if prompt.chosen is None else prompt.chosen,
            chosen_negative_prompt=UNSET if prompt.chosen_negative is None else prompt.chosen_negative,
            draft=UNSET
            if draft is None
            else DraftRecord(
                strength=request.strength,
                granule_size=request.granule_size,
                colors=draft.colors,
                tone={} if self._is_toned else UNSET,
            ),
            variation=UNSET if request.variation is None else VariationRecord(**request.variation._asdict()),
            clip_skip=UNSET if request.clip_skip is None else request.clip_skip,
            scheduler=self.ready.model.manifest.scheduler.name,
            scheduler_config=dict(self.ready.model.manifest.scheduler.config),
            dtype=str(self.ready.dtype).removeprefix("torch."),
            speed=self.ready.speed.value,
            compiled=self._is_compiled,
            device=self.ready.device.type,
            threads=torch.get_num_threads(),
            model=self.ready.model.name,
            files=self.ready.model.hashes,
            versions=_versions(),
        )

    def _hash_embeddings(self, prompt: Prompt) -> dict[str, str]:
        """Return the embeddings whose tokens a prompt holds, by file, with what web UIs know them by."""
        hashes = self.ready.model.hashes
        return {
            adapter.file: sha256[:SHORT_HASH]
            for adapter in self.ready.model.manifest.adapters
            if adapter.kind == "embedding"
            and (sha256 := hashes[adapter.file]) is not None
            and any(token in f"{prompt.positive} {prompt.negative}" for token in adapter.tokens)
        }


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


@cache
def _versions() -> dict[str, str]:
    # torch names its build after a "+", which the version of its package lacks.
    return {"tilemix": __version__, "torch": str(torch.__version__)} | {
        name: version(name) for name in RECORDED_LIBRARIES
    }


def _list_shares(mix: ColorMix | None) -> dict[str, float] | None:
    return None if mix is None else {share.color: float(share.percent) for share in mix.shares}


def add_loras(scales: Mapping[str, float], named: Sequence[NamedLora]) -> dict[str, Scale]:
    """Return the scales of all LoRAs: the model's own and, added to them, those that a prompt names."""
    added: dict[str, Scale] = dict(scales)
    for lora in named:
        own = scales.get(lora.file, 0.0)
        text, unet = own + lora.text_scale, own + lora.unet_scale
        added[lora.file] = text if text == unet else PartScales(text, unet)
    return added


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[part] = time.perf_counter() - began
