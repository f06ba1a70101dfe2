"""What trainers leave in a safetensors file's `__metadata__`, made readable: kohya's `ss_*`, ModelSpec, addnet.

It is for display only: anybody can write any text there.

Sources: kohya's sd-scripts; ModelSpec 1.0.1, https://github.com/Stability-AI/ModelSpec
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

# What people look for first, in this order; the rest stays in the metadata.
TRAINING_FIELDS = (
    "ss_output_name", "ss_sd_model_name", "ss_sd_model_hash", "ss_new_sd_model_hash", "ss_vae_name",
    "ss_vae_hash", "ss_new_vae_hash", "ss_base_model_version", "ss_v2", "ss_network_module", "ss_network_dim",
    "ss_network_alpha", "ss_network_args", "ss_network_dropout", "ss_clip_skip", "ss_resolution",
    "ss_num_train_images", "ss_num_reg_images", "ss_num_epochs", "ss_epoch", "ss_steps", "ss_max_train_steps",
    "ss_learning_rate", "ss_unet_lr", "ss_text_encoder_lr", "ss_lr_scheduler", "ss_optimizer",
    "ss_mixed_precision", "ss_full_fp16", "ss_noise_offset", "ss_min_snr_gamma", "ss_zero_terminal_snr",
    "ss_seed", "ss_training_comment", "ss_training_started_at", "ss_training_finished_at",
)  # fmt: skip
PICTURES = ("ssmd_cover_images", "modelspec.thumbnail")  # base64, useless in a listing
TOP_TAGS = 24
MAX_VALUE = 64 * 2**10  # characters of a value in `expand`
REPEATED_FOLDER = re.compile(r"\d+_(?P<concept>.+)")


@dataclass(frozen=True, slots=True)
class TrainingNotes:
    """A file's metadata, sorted."""

    title: str | None = None
    trained_on: str | None = None  # the base that the training started from, as it was named there
    trigger_words: tuple[str, ...] = ()
    training: dict[str, str] = field(default_factory=dict)  # the fields above that have a value
    modelspec: dict[str, str] = field(default_factory=dict)  # without "modelspec."
    tags: dict[str, int] = field(default_factory=dict)  # the most frequent ones in the captions
    pictures: int | None = None  # how many it was trained on
    alpha: float | None = None
    alpha_told_by: str | None = None


def read_notes(metadata: Mapping[str, str]) -> TrainingNotes:
    """Sort the `__metadata__` of a header. Never fails: what cannot be read is left out."""
    modelspec = {
        key.removeprefix("modelspec."): value
        for key, value in metadata.items()
        if key.startswith("modelspec.") and key not in PICTURES
    }
    training = {
        key: metadata[key] for key in TRAINING_FIELDS if metadata.get(key, "None") not in ("None", "")
    }
    words = modelspec.get("trigger_phrase") or metadata.get("ssmd_keywords", "")
    alpha, told_by = _read_alpha(metadata)
    return TrainingNotes(
        title=modelspec.get("title") or metadata.get("ssmd_display_name") or training.get("ss_output_name"),
        trained_on=training.get("ss_sd_model_name"),
        trigger_words=split_words(words) or _concepts(metadata),
        training=training,
        modelspec=modelspec,
        tags=_count_tags(metadata),
        pictures=_count_pictures(metadata),
        alpha=alpha,
        alpha_told_by=told_by,
    )


def expand(metadata: Mapping[str, str]) -> dict[str, object]:
    """Return the metadata without embedded pictures, JSON tables and lists decoded, and long values shortened."""
    return {
        key: expand_value(value)
        if len(value) <= MAX_VALUE
        else f"{value[:MAX_VALUE]}... ({len(value)} characters)"
        for key, value in metadata.items()
        if key not in PICTURES
    }


def expand_value(value: str) -> object:
    """Decode a text that is a JSON table or list; return any other text as it is."""
    if not value.lstrip().startswith(("{", "[")):
        return value
    try:
        return cast("object", json.loads(value))
    except (ValueError, RecursionError):
        return value  # it only begins like JSON


def split_words(words: str) -> tuple[str, ...]:
    """Split a comma-separated list, each word once."""
    return tuple(dict.fromkeys(filter(None, (word.strip() for word in words.split(",")))))


def _table(metadata: Mapping[str, str], key: str) -> dict[str, object]:
    value = expand_value(metadata.get(key, ""))
    return value if isinstance(value, dict) else {}


def _concepts(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Return the concepts in kohya's folder names, REPEATS_CONCEPT: by custom, the trigger words."""
    matches = (REPEATED_FOLDER.fullmatch(folder) for folder in _table(metadata, "ss_dataset_dirs"))
    return tuple(dict.fromkeys(match["concept"] for match in matches if match))


def _count_tags(metadata: Mapping[str, str]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for tags in _table(metadata, "ss_tag_frequency").values():
        if isinstance(tags, dict):
            for tag, count in tags.items():
                if type(count) is int:
                    counts[tag.strip()] += count
    return dict(counts.most_common(TOP_TAGS))


def _count_pictures(metadata: Mapping[str, str]) -> int | None:
    folders = _table(metadata, "ss_dataset_dirs").values()
    counts = [folder.get("img_count") for folder in folders if isinstance(folder, dict)]
    if counts and all(type(count) is int for count in counts):
        return sum(cast("list[int]", counts))
    number = metadata.get("ss_num_train_images", "")
    return int(number) if re.fullmatch(r"\d{1,9}", number) else None


def _read_alpha(metadata: Mapping[str, str]) -> tuple[float | None, str | None]:
    """Return the alpha that kohya or diffusers wrote into the metadata, and its field."""
    peft = _table(metadata, "lora_adapter_metadata")
    for field_name, value in (
        ("ss_network_alpha", metadata.get("ss_network_alpha")),
        ("lora_adapter_metadata", next((v for k, v in peft.items() if k.endswith("lora_alpha")), None)),
    ):
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            try:
                alpha = float(value)
            except (ValueError, OverflowError):
                continue  # "None", or not a number
            if math.isfinite(alpha):
                return alpha, field_name
    return None, None
