"""Model manifest -> a pipeline that is ready to draw: on its device, in its dtype, adapters in place."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import torch

from tilemix.adapters import EmbeddingFile, LoraMerger, TokenInstaller, check_fit, read_embedding
from tilemix.adapters.hypernetwork import Hypernetwork, read_hypernetwork
from tilemix.errors import AdapterError
from tilemix.modelfile.base_families import FLUX1, SD1, SDXL, BaseFamily
from tilemix.pipelines.family import Family
from tilemix.pipelines.flux1 import Flux1
from tilemix.pipelines.schedulers import make_scheduler, prove_scheduler
from tilemix.pipelines.sd1 import Sd1
from tilemix.pipelines.sdxl import Sdxl
from tilemix.pipelines.speed import Precision, Speed, choose_dtype
from tilemix.weights import LocalModel
from tilemix.weights.calibration import Calibration, load_calibration, resolve_lora_scales

if TYPE_CHECKING:
    from tilemix.pipelines.parts import Scheduler

logger = logging.getLogger(__name__)

FAMILIES: Mapping[str, type[Family]] = {  # by their names in manifests
    SDXL.name: Sdxl,
    SD1.name: Sd1,
    FLUX1.name: Flux1,
}


@dataclass(slots=True, eq=False)
class ReadyPipeline:
    """A loaded model, and its state: what `loras` has merged, which tokens are installed."""

    base: Family
    model: LocalModel
    device: torch.device
    dtype: torch.dtype  # of the networks that draw
    speed: Speed
    scheduler_config: Mapping[str, object]  # the base's own, never changed
    loras: LoraMerger
    tokens: TokenInstaller
    calibration: Calibration | None  # None: there is none, or it is of other files
    lora_hashes: dict[str, str] = field(default_factory=dict)  # a LoRA's file -> its AutoV3
    hypernetworks: dict[str, Hypernetwork] = field(default_factory=dict)  # by their files

    @property
    def lora_scales(self) -> dict[str, float]:
        """The scale that the manifest gives each LoRA, by its file."""
        return resolve_lora_scales(self.model.manifest, None)

    def make_scheduler(self) -> Scheduler:
        """Make the manifest's scheduler anew from the base's own configuration."""
        manifest = self.model.manifest
        return make_scheduler(
            manifest.scheduler.name,
            self.scheduler_config,
            manifest.scheduler.config,
            is_flow=manifest.base_family.is_flow,
        )


def choose_device(
    speed: Speed = Speed.EXACT, precision: Precision | None = None, *, family: BaseFamily = SDXL
) -> tuple[torch.device, torch.dtype]:
    """Return device and dtype: CUDA in the family's dtype if there is one, else the CPU in that of `choose_dtype`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return device, choose_dtype(device, speed, precision, gpu_dtype=family.gpu_dtype)


def find_family(model: LocalModel) -> type[Family]:
    """Return the family of a model's base."""
    return FAMILIES[model.manifest.family]


def load_pipeline(
    model: LocalModel,
    device: torch.device,
    dtype: torch.dtype,
    *,
    speed: Speed = Speed.EXACT,
    merges: bool = True,
) -> ReadyPipeline:
    """Load the model's files, put its tokens into the vocabulary and, if it `merges`, its LoRAs into the weights.

    `dtype` is that of the networks that draw; see `Family.load`.

    Raises:
        ModelFileError: a file cannot be loaded as what it should be.
        AdapterError: an adapter cannot be loaded completely.
        ManifestError: the base's folder or the scheduler's name does not fit, or the calibration cannot be read.
    """
    base = find_family(model).load(model, device, dtype)
    return prepare_pipeline(base, model, device, dtype, speed=speed, merges=merges)


def prepare_pipeline(
    base: Family,
    model: LocalModel,
    device: torch.device,
    dtype: torch.dtype,
    *,
    speed: Speed = Speed.EXACT,
    merges: bool = True,
) -> ReadyPipeline:
    """Give a base that holds the model's weights the model's adapters.

    `dtype` is the one that it was loaded in. The model's files of the merged components are opened, because merging
    reads the base's weights from them.

    Raises:
        AdapterError, ManifestError: see `load_pipeline`.
    """
    ready = ReadyPipeline(
        base=base,
        model=model,
        device=device,
        dtype=dtype,
        speed=speed,
        scheduler_config=dict(base.scheduler_config),
        loras=LoraMerger(base.components, base.locate_weights(model), model.manifest.base_family),
        tokens=TokenInstaller(base),
        calibration=load_calibration(model),
    )
    # A wrong name or setting fails here, not in the first prediction.
    prove_scheduler(model.manifest.scheduler.name, ready.make_scheduler())
    _load_adapters(ready)
    if merges:
        scales = resolve_lora_scales(model.manifest, ready.calibration)  # those of most pictures
        for file, scale in scales.items():
            logger.info("Loaded LoRA: %s (scale=%g)", PurePosixPath(file).name, scale)
        ready.loras.apply(scales)
    return ready


def _load_adapters(ready: ReadyPipeline) -> None:
    embeddings: list[tuple[EmbeddingFile, tuple[str, ...]]] = []

    def add_tokens(file: EmbeddingFile, named: tuple[str, ...]) -> None:
        tokens = named or file.tokens
        check_fit(file, ready.tokens.widths, len(tokens))
        embeddings.append((file, tokens))
        logger.info("Loaded embedding: %s (tokens=%s)", file.name, "".join(tokens))

    for adapter, path in zip(ready.model.manifest.adapters, ready.model.adapters, strict=True):
        if adapter.kind == "embedding":
            count = len(adapter.tokens) or None
            family = ready.model.manifest.base_family
            file = read_embedding(path, ready.tokens.widths, token_count=count, family=family)
            add_tokens(file, adapter.tokens)
            continue
        if adapter.kind == "hypernetwork":
            ready.hypernetworks[adapter.file] = read_hypernetwork(path, ready.device, ready.dtype)
            logger.info("Loaded hypernetwork: %s", path.name)
            continue
        lora = ready.loras.load(adapter.file, path, are_named=bool(adapter.tokens))
        ready.lora_hashes[adapter.file] = lora.autov3
        if lora.embedding is not None:
            add_tokens(lora.embedding, adapter.tokens)
        elif adapter.tokens:
            raise AdapterError("lora-without-embeddings", file=path.name)
    ready.tokens.install(embeddings)
