"""The LoRA and the embeddings of a training, as files for the predictor, and the record of how they were made.

The LoRA uses kohya's names, with an `alpha` tensor for each module: every program reads them, and the strength
does not depend on a header. The embeddings are named as `CLIP_PAIR` says.

Source of the metadata: ModelSpec 1.0.1, https://github.com/Stability-AI/ModelSpec
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from typing import TYPE_CHECKING

import msgspec
import safetensors.torch
import torch

from tilemix import __version__
from tilemix.adapters import find_weights, read_embedding, read_lora, spell_modules
from tilemix.modelfile.embedding_names import CLIP_PAIR
from tilemix.modelfile.spellings import ENCODERS, KOHYA_UNET
from tilemix.pipelines.sdxl import components_of
from tilemix.tuning.checkpoints import write_whole

if TYPE_CHECKING:
    from pathlib import Path

    from tilemix.tuning.model import Tuning
    from tilemix.tuning.plan import Plan

PEFT_NAME = re.compile(r"(?P<module>.+)\.lora_(?P<half>[AB])\.default\.weight")
HALVES = {"A": "down", "B": "up"}
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}


def write_adapters(tuning: Tuning) -> tuple[Path, Path, Path]:
    """Write the LoRA, the embeddings and the record; return their paths.

    Both model files are read back with the predictor's own reader before the record is written.

    Raises:
        TrainingError: a file cannot be written.
        AdapterError: a file cannot be loaded again, for example because a number is not finite.
    """
    plan = tuning.plan
    name = plan.config.name
    lora, embeddings = plan.files
    record = plan.output / f"{name}_sdxl_training.json"
    _write_tensors(lora, _lora_tensors(tuning), _lora_metadata(tuning))
    _write_tensors(embeddings, _embedding_tensors(tuning), _metadata(tuning, "textual-inversion"))
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    # As the predictor has them: plain modules without peft's wrappers. Only their shapes matter.
    with torch.device("meta"):
        unet: torch.nn.Module = UNet2DConditionModel.from_config(tuning.pipeline.unet.config)
    bare = components_of(tuning.pipeline) | {"unet": unet}
    read_lora(lora, find_weights(bare), spell_modules(bare))
    widths = {encoder: rows.rows.shape[1] for encoder, rows in tuning.rows.items()}
    read_embedding(embeddings, widths, token_count=len(plan.template.placeholder_tokens))
    with write_whole(record) as file:
        file.write(msgspec.json.format(msgspec.json.encode(_make_record(plan, lora, embeddings)), indent=2))
        file.write(b"\n")
    return lora, embeddings, record


def _lora_tensors(tuning: Tuning) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in tuning.lora_parameters().items():
        match = PEFT_NAME.fullmatch(name)
        assert match, name
        module = KOHYA_UNET.spell(match["module"])
        tensors[f"{module}.lora_{HALVES[match['half']]}.weight"] = (
            parameter.detach().half().cpu().contiguous()
        )
        tensors[f"{module}.alpha"] = torch.tensor(tuning.plan.config.lora.alpha, dtype=torch.float16)
    return tensors


def _embedding_tensors(tuning: Tuning) -> dict[str, torch.Tensor]:
    names = dict(zip(ENCODERS, CLIP_PAIR.names, strict=True))
    return {names[encoder]: rows.rows.detach().float().cpu() for encoder, rows in tuning.rows.items()}


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    bare = safetensors.torch.save(tensors)
    payload = bare[8 + int.from_bytes(bare[:8], "little") :]
    metadata = metadata | {"modelspec.hash_sha256": f"0x{hashlib.sha256(payload).hexdigest()}"}
    with write_whole(path) as file:
        file.write(safetensors.torch.save(tensors, metadata))


def _metadata(tuning: Tuning, kind: str) -> dict[str, str]:
    plan, side = tuning.plan, tuning.plan.config.crop_side
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"stable-diffusion-xl-v1-base/{kind}",
        "modelspec.implementation": "diffusers",
        "modelspec.title": plan.config.name,
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "modelspec.prediction_type": PREDICTIONS[tuning.scheduler.config["prediction_type"]],
        "modelspec.trigger_phrase": " ".join(
            [*plan.template.trigger_words, "".join(plan.template.placeholder_tokens)]
        ),
    }


def _lora_metadata(tuning: Tuning) -> dict[str, str]:
    plan, config = tuning.plan, tuning.plan.config
    alpha = f"{config.lora.alpha:g}"
    return _metadata(tuning, "lora") | {
        "ss_v2": "False",
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(config.lora.rank),
        "ss_network_alpha": alpha,
        "ss_network_args": msgspec.json.encode(
            {"conv_dim": str(config.lora.rank), "conv_alpha": alpha} if config.lora.convolutions else {}
        ).decode(),
        "ss_output_name": config.name,
        "ss_num_train_images": str(len(plan.pictures)),
        "ss_resolution": f"({config.resolution}, {config.resolution})",
        "ss_steps": str(config.lora.steps),
        "ss_unet_lr": f"{config.lora.learning_rate:g}",
        "ss_seed": str(config.seed),
    }


def _make_record(plan: Plan, lora: Path, embeddings: Path) -> dict[str, object]:
    """Return what was trained on what: enough to repeat it, or to tell where a file came from."""
    return {
        "config": plan.config,
        "template": plan.template,
        "base_files": {
            str(path.relative_to(plan.base)): _digest(path)
            for path in sorted(plan.base.rglob("*.safetensors"))
        },
        "pictures": [
            {"file": picture.path.name, "sha256": picture.sha256, "caption": picture.caption}
            for picture in plan.pictures
        ],
        "files": {path.name: _digest(path) for path in (lora, embeddings)},
        "versions": {"tilemix": __version__, "torch": str(torch.__version__)},
    }


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
