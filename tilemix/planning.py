"""GenerationRequest -> Plan: all that is settled about a picture before it is drawn, and its record."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING

import torch
from msgspec import UNSET, structs

from tilemix import __version__
from tilemix.adapters.merging import PartScales, Scale
from tilemix.drafts.draft import draft_mix
from tilemix.drafts.steps import settle_steps
from tilemix.errors import ManifestError, RequestError
from tilemix.inputs import IntegerInput, find_input
from tilemix.pictures.record import DraftRecord, Record, VariationRecord
from tilemix.prompts.rewrite import Prompt, rewrite
from tilemix.prompts.template import find_template, load_template
from tilemix.samplers import find_sampler
from tilemix.weights.calibration import resolve_lora_scales, resolve_strength
from tilemix.weights.prompting import make_context

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tilemix.drafts.draft import Draft
    from tilemix.pipelines.loading import ReadyPipeline
    from tilemix.prompts.context import NamedLora
    from tilemix.prompts.mix import ColorMix
    from tilemix.prompts.template import PromptTemplate
    from tilemix.request import GenerationRequest, ResolvedRequest
    from tilemix.weights import LocalModel
    from tilemix.weights.tasks import Task

logger = logging.getLogger(__name__)

SHORT_HASH = 12  # digits
RECORDED_LIBRARIES = ("diffusers", "transformers", "compel", "safetensors")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a request comes to with one model."""

    request: ResolvedRequest
    prompt: Prompt
    draft: Draft | None  # None: from noise
    steps: int  # that are drawn
    loras: Mapping[str, Scale]  # file -> scale: the model's own, and those that the prompt names


class Planner:
    """Settles the requests to one loaded model, for a task of its or for none.

    The calibration may be replaced: None stands for the manifest's strength and the palette's colors.
    """

    def __init__(self, ready: ReadyPipeline) -> None:
        self.ready = ready
        self.task: Task | None = None  # None: the manifest's template and LoRAs
        self.palette = ready.model.manifest.load_palette()  # None: it has none
        self.calibration = ready.calibration
        self.use_template(load_template(ready.model.template))

    def of_task(self, task: Task) -> Planner:
        """Return a planner for a task of this model.

        Raises:
            TemplateError, ManifestError: its prompt template cannot be used.
        """
        made = copy.copy(self)
        made.task = task
        made.use_template(find_template(task.template, self._model.template.parents[1]))
        return made

    def of_pipeline(self, ready: ReadyPipeline) -> Planner:
        """Return the same planner for the same model with another scheduler."""
        made = copy.copy(self)
        made.ready = ready
        return made

    def use_template(self, template: PromptTemplate) -> None:
        """Put the users' words into this template from now on.

        Raises:
            ManifestError: the model lacks one of its tokens.
        """
        known = self.ready.tokens.installed
        missing = [token for token in template.placeholder_tokens if token not in known]
        if missing:
            raise ManifestError(
                "manifest-missing-token",
                file=f"{self._model.name}.model.json",
                template=template.name,
                token=missing[0],
            )
        self.template = template

    def plan(self, request: GenerationRequest) -> Plan:
        """Settle a request; one without a seed gets another one each time.

        Raises:
            PromptError: the text cannot be used.
            RequestError: the model draws no pictures of this size, or the request is of another task.
        """
        resolved = self._resolve(request)
        prompt, draft, steps = settle_steps(
            lambda drawn: self._rewrite(resolved, drawn),
            lambda mix: self._lay_out(resolved, mix),
            steps=resolved.num_inference_steps,
            strength=resolved.strength,
        )
        loras = _add_loras(resolved.lora_scales, prompt.loras)
        return Plan(resolved, self._spell_out(prompt), draft, steps, loras)

    def resolve_strength(self) -> float:
        """Return the strength of a request that leaves it out: the calibration's, or else the manifest's."""
        return resolve_strength(self._model.manifest, self.calibration)

    @property
    def is_toned(self) -> bool:
        """Whether the tone step follows a picture that is drawn from a draft."""
        return self.calibration is not None and self.calibration.toned

    def make_record(self, plan: Plan, *, compiled: bool) -> Record:
        """Return the record of a picture; the tone step adds by how much it moved the colors."""
        request, prompt, ready = plan.request, plan.prompt, self.ready
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
            lora_hashes=self._hash_loras(plan),
            embedding_hashes=self._hash_embeddings(prompt),
            task=UNSET if self.task is None else self.task.name,
            named_loras={lora.file: (lora.text_scale, lora.unet_scale) for lora in prompt.loras} or UNSET,
            hypernetworks=[(one.file, one.strength) for one in prompt.hypernetworks] or UNSET,
            chosen_prompt=UNSET if prompt.chosen is None else prompt.chosen,
            chosen_negative_prompt=UNSET if prompt.chosen_negative is None else prompt.chosen_negative,
            draft=UNSET if plan.draft is None else self._describe_draft(request, plan.draft),
            variation=UNSET if request.variation is None else VariationRecord(**request.variation._asdict()),
            clip_skip=UNSET if request.clip_skip is None else request.clip_skip,
            scheduler=self._model.manifest.scheduler.name,
            scheduler_config=dict(self._model.manifest.scheduler.config),
            dtype=str(ready.dtype).removeprefix("torch."),
            speed=ready.speed.value,
            compiled=compiled,
            device=ready.device.type,
            threads=torch.get_num_threads(),
            model=self._model.name,
            files=self._model.hashes,
            versions=_versions(),
        )

    @property
    def _model(self) -> LocalModel:
        return self.ready.model

    def _resolve(self, request: GenerationRequest) -> ResolvedRequest:
        """Fill in what the request leaves out: from the manifest, from the template, or drawn.

        Raises:
            RequestError: the model draws no pictures of this size, or the request is of another task.
        """
        if request.task != (self.task and self.task.name):
            raise RequestError("task-elsewhere", field="task", typed=str(request.task)[:40])
        manifest = self._model.manifest
        family = manifest.base_family
        own = None if self.task is None else self.task.lora_scales
        resolved = request.resolve(
            structs.replace(manifest.defaults, strength=self.resolve_strength()),
            negative_prompt=self.template.negative_prompt if family.reads_negative_prompt else "",
            lora_scales=resolve_lora_scales(manifest, self.calibration) if own is None else own,
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
        sampler = find_sampler(manifest.scheduler.name)
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

    def _rewrite(self, request: ResolvedRequest, steps: int) -> Prompt:
        templates = self._model.template.parent
        return rewrite(
            request.prompt,
            self.template,
            self.palette,
            negative_prompt=request.negative_prompt,
            context=make_context(self._model.manifest, seed=request.seed, steps=steps, templates=templates),
        )

    def _spell_out(self, prompt: Prompt) -> Prompt:
        """Return the prompt with the tokens of embeddings that are typed as their trainers named them."""
        tokens = self.ready.tokens
        positive, negative = map(tokens.spell_out, (prompt.positive, prompt.negative))
        return replace(prompt, positive=positive, negative=negative)

    def _lay_out(self, request: ResolvedRequest, mix: ColorMix) -> Draft | None:
        """Return the draft to draw from; None: from noise, for want of a swatch."""
        draft = draft_mix(
            mix,
            self.palette,
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

    def _describe_draft(self, request: ResolvedRequest, draft: Draft) -> DraftRecord:
        return DraftRecord(
            strength=request.strength,
            granule_size=request.granule_size,
            colors=draft.colors,
            tone={} if self.is_toned else UNSET,
        )

    def _hash_loras(self, plan: Plan) -> dict[str, str]:
        """Return the hash of each LoRA, of a task only of those that it or the prompt names."""
        hashes = self.ready.lora_hashes
        if self.task is None:
            return hashes
        return {file: digits for file, digits in hashes.items() if file in plan.loras}

    def _hash_embeddings(self, prompt: Prompt) -> dict[str, str]:
        """Return the embeddings whose tokens a prompt holds, by file, with what web UIs know them by."""
        hashes = self._model.hashes
        return {
            adapter.file: sha256[:SHORT_HASH]
            for adapter in self._model.manifest.adapters
            if adapter.kind == "embedding"
            and (sha256 := hashes[adapter.file]) is not None
            and any(token in f"{prompt.positive} {prompt.negative}" for token in adapter.tokens)
        }


def _add_loras(scales: Mapping[str, float], named: Sequence[NamedLora]) -> dict[str, Scale]:
    """Return the scales of all LoRAs: the model's own and, added to them, those that a prompt names."""
    added: dict[str, Scale] = dict(scales)
    for lora in named:
        own = scales.get(lora.file, 0.0)
        text, unet = own + lora.text_scale, own + lora.unet_scale
        added[lora.file] = text if text == unet else PartScales(text, unet)
    return added


@cache
def _versions() -> dict[str, str]:
    # torch names its build after a "+", which the version of its package lacks.
    return {"tilemix": __version__, "torch": str(torch.__version__)} | {
        name: version(name) for name in RECORDED_LIBRARIES
    }


def _list_shares(mix: ColorMix | None) -> dict[str, float] | None:
    return None if mix is None else {share.color: float(share.percent) for share in mix.shares}
