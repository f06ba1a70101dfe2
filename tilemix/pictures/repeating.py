"""A picture's record, or another program's infotext -> the inputs that repeat it, and what stands in the way."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from tilemix.errors import LIST_SEPARATOR, InputError, Message
from tilemix.inputs import load_inputs
from tilemix.pictures.record import GRANULE_SIZE, LORA_SCALE, VERSION, Record
from tilemix.prompts.adapter_names import find_named
from tilemix.samplers import find_sampler

if TYPE_CHECKING:
    from tilemix.pictures.infotext import Infotext

SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")
TAG = re.compile(r"(?:, ?| )?<(\w{1,40}):([^:<>]+)[^<>]*>")
ADAPTER_TAGS = ("lora", "lyco", "hypernet")
NO_DRAFT = 1.0  # the strength of a picture from noise
MOST_SHOWN = 300  # characters of a list in a message
# What has no part in the pixels, or is compared by itself.
NOT_SETTINGS = {
    "Hashes", "Hypernet", "Hypernet hash", "Hypernet strength", "Lora hashes", "Model hash", "Schedule type", "User",
    "VAE hash", "Version",
}  # fmt: skip
NUMBERS = {
    "Steps": "num_inference_steps",
    "CFG scale": "guidance_scale",
    "Seed": "seed",
    "Variation seed": "variation_seed",
    "Variation seed strength": "variation_strength",
    LORA_SCALE: "lora_scale",
}
# Elsewhere of another picture, or of another base.
CLIP_SKIP = "Clip skip"
OURS = {"Denoising strength": "strength", GRANULE_SIZE: "granule_size", CLIP_SKIP: "clip_skip"}
IGNORED_CLIP_SKIPS = {"1", "2"}  # by web UIs, where the base is SDXL
# Of a record: what says the same as other fields do, or is not an input.
NOT_COMPARED = {
    "prompt",
    "chosen_prompt",
    "chosen_negative_prompt",
    "lora_hashes",
    "embedding_hashes",
    "model",
}


class Repeat(NamedTuple):
    """How to repeat a picture."""

    inputs: dict[str, Any]  # of predict(), as far as they are known
    notes: tuple[Message, ...]  # what is not known, or cannot be repeated


@dataclass(frozen=True, slots=True)
class Here:
    """The model that is to repeat a picture."""

    model: str
    scheduler: str
    adapters: Sequence[str]  # the files of its LoRAs and hypernetworks
    # What web UIs know its checkpoint by, in lower case: 8 digits until January 2023 (AutoV1), 10 since then (AutoV2).
    hashes: Collection[str] = ()
    heeds_clip_skip: bool = False  # whether web UIs heed the setting for its base


def repeat_origin(origin: Record | Infotext, here: Here) -> Repeat:
    """Return the inputs that a picture was made with, and what stands in the way of its repetition."""
    if isinstance(origin, Record):
        return Repeat(repeat_record(origin), tuple(_compare_names(origin.model, here)))
    return repeat_infotext(origin, here)


def repeat_record(record: Record) -> dict[str, Any]:
    """Return the inputs of a picture of ours: with the same files, versions and machine they draw it again."""
    draft = None if record.draft is msgspec.UNSET else record.draft
    variation = None if record.variation is msgspec.UNSET else record.variation
    same_scale = len(set(record.lora_scales.values())) <= 1
    inputs: dict[str, Any] = {
        "prompt": record.prompt,
        "negative_prompt": record.sent_negative_prompt,
        "seed": record.seed,
        "width": record.width,
        "height": record.height,
        "num_inference_steps": record.num_inference_steps,
        "guidance_scale": record.guidance_scale,
        "lora_scale": record.lora_scale if same_scale else None,
        "strength": NO_DRAFT if draft is None else draft.strength,
        "granule_size": None if draft is None else draft.granule_size,
        "variation_seed": None if variation is None else variation.seed,
        "variation_strength": None if variation is None else variation.strength,
        "clip_skip": None if record.clip_skip is msgspec.UNSET else record.clip_skip,
        "task": None if record.task is msgspec.UNSET else record.task,
    }
    return {name: value for name, value in inputs.items() if value is not None}


def compare_records(found: Record, planned: Record) -> list[Message]:
    """Say where the record that a repeated picture will have differs from the picture's own."""
    one, other = dict(_flatten(found)), dict(_flatten(planned))
    changed = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    files = [name.removeprefix("files/") for name in changed if name.startswith("files/")]
    notes = [
        Message(
            "repeat-differs",
            {"name": name, "found": _show(one.get(name)), "expected": _show(other.get(name))},
        )
        for name in changed
        if not name.startswith("files/")
    ]
    if files:
        notes.append(Message("repeat-other-files", {"names": _join(files)}))
    return notes


def repeat_infotext(infotext: Infotext, here: Here) -> Repeat:
    """Return the inputs that another program's picture gives, and what of it the model here cannot repeat.

    The same goes for a picture of ours that has lost its record.
    """
    is_ours = infotext.parameters.get("Version", "").startswith(VERSION)
    prompt, missing = _drop_tags(_name_hypernetwork(infotext), here.adapters)
    negative_prompt, not_read = _drop_tags(
        infotext.negative_prompt, ()
    )  # only the prompt's are read, there and here
    inputs: dict[str, Any] = {"prompt": prompt, "negative_prompt": negative_prompt}
    settings = infotext.parameters
    impossible, refused = [*missing, *not_read], []
    taken = NUMBERS | OURS if is_ours else NUMBERS
    if here.heeds_clip_skip:
        taken = {**taken, CLIP_SKIP: OURS[CLIP_SKIP]}
    for key, value in _list_numbers(settings, taken):
        row = load_inputs()[taken.get(key, key)]
        try:
            read = row.read(value)
            row.check(read)
        except InputError:
            refused.append(row.name)
            impossible.append(f"{key}: {value}")
        else:
            inputs[row.name] = read
    if is_ours:
        inputs.setdefault("strength", NO_DRAFT)
    elsewhere = {*taken, *NOT_SETTINGS, "Size", "Sampler", "Model", "TI hashes" if is_ours else ""}
    if settings.get(CLIP_SKIP) in IGNORED_CLIP_SKIPS:
        elsewhere.add(CLIP_SKIP)
    impossible += [f"{key}: {value}" for key, value in settings.items() if key not in elsewhere]
    notes = [*infotext.notes, *_compare_model(settings, here)]
    unknown = [
        name
        for name in ("seed", "width", "height", "num_inference_steps", "guidance_scale")
        if name not in inputs and name not in refused
    ]
    if unknown:
        notes.append(Message("repeat-unknown", {"names": _join(unknown)}))
    if impossible:
        notes.append(Message("repeat-impossible", {"settings": _join(impossible)}))
    return Repeat(inputs, tuple(notes))


def _list_numbers(settings: Mapping[str, str], taken: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the parameters that are inputs here; the two of a size by the names of the inputs."""
    for key, value in settings.items():
        if key in taken:
            yield key, value
        elif key == "Size" and (size := SIZE.fullmatch(value)):
            yield "width", size[1]
            yield "height", size[2]


def _compare_model(settings: Mapping[str, str], here: Here) -> Iterator[Message]:
    sampler = " ".join(filter(None, (settings.get(key) for key in ("Sampler", "Schedule type"))))
    own = find_sampler(here.scheduler)
    names = {here.scheduler} if own is None else {own.sampler, own.title}
    # Before 1.9 the web UI wrote one name for both, and left out the usual one.
    if sampler and names.isdisjoint({sampler, sampler.removesuffix(" Automatic")}):
        expected = here.scheduler if own is None else own.title
        yield Message("repeat-differs", {"name": "Sampler", "found": _show(sampler), "expected": expected})
    digits = settings.get("Model hash", "").lower()
    model = settings.get("Model") or digits
    if model and digits not in here.hashes:
        yield from _compare_names(model, here)


def _compare_names(model: str, here: Here) -> Iterator[Message]:
    if model != here.model:
        yield Message("repeat-differs", {"name": "Model", "found": _show(model), "expected": here.model})


def _name_hypernetwork(infotext: Infotext) -> str:
    """Return the prompt with the hypernetwork that web UIs of 2022 wrote among the parameters."""
    name = infotext.parameters.get("Hypernet")
    if name is None:
        return infotext.prompt
    strength = infotext.parameters.get("Hypernet strength", "1")
    return f"{infotext.prompt} <hypernet:{name}:{strength}>"


def _drop_tags(text: str, adapters: Sequence[str]) -> tuple[str, list[str]]:
    """Return a prompt without the tags of what the model does not have, or of one of several, and their names."""
    missing: list[str] = []

    def drop(match: re.Match[str]) -> str:
        kind, name = match[1].lower(), match[2].strip()
        if kind in ADAPTER_TAGS and len(find_named(name, adapters)) == 1:
            return match[0]
        missing.append(f"{kind} {name}")
        return ""

    return TAG.sub(drop, text).strip(), missing


def _flatten(record: Record) -> Iterator[tuple[str, object]]:
    for name, value in msgspec.to_builtins(record).items():
        if name in NOT_COMPARED:
            continue
        if isinstance(value, dict) and "tone" in value:
            value["tone"] = "yes"  # how far the colors were moved is known after the drawing
        if isinstance(value, dict):
            yield from ((f"{name}/{key}", entry) for key, entry in value.items())
        else:
            yield name, value


def _show(value: object) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 3]}..."


def _join(names: Sequence[str]) -> str:
    return _show(LIST_SEPARATOR.join(names))
