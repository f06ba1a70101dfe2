"""What a prompt may name besides words: the model's adapters, the project's wildcards."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from tilemix.errors import LIST_SEPARATOR, Message, PromptError
from tilemix.prompts.adapter_names import find_named, name_adapter, tell_apart
from tilemix.prompts.language import LoraTag, Traced
from tilemix.prompts.language.tags import HYPERNETWORK
from tilemix.prompts.language.wildcards import Wildcards

if TYPE_CHECKING:
    from tilemix.errors import Value

MOST_NAMES = 4  # in a message
SHOWN = 40  # characters of a name in a message
EXTENSION = r"(?:\.(?:safetensors|pt|bin))?"
PREFIX = re.compile(r"(?<![\w<-])embedding:(?:[\w.-]++[/\\])*+", re.IGNORECASE)  # folders and all
NAME = re.compile(r"[^\s,;:()\[\]{}|<>]+")


class NamedLora(NamedTuple):
    """A LoRA that a prompt asks for, in addition to what the model applies by itself."""

    file: str
    text_scale: float  # in the text encoders
    unet_scale: float


class NamedHypernetwork(NamedTuple):
    """A hypernetwork that a prompt asks for."""

    file: str
    strength: float


@dataclass(frozen=True, slots=True)
class PromptContext:
    """A request and its model, as far as they decide what a prompt means."""

    seed: int = 0  # makes the choices
    steps: int = 25  # that are drawn
    loras: Sequence[str] | None = None  # the model's files; None: not known here, so names are not looked up
    hypernetworks: Sequence[str] = ()  # the model's files
    embeddings: Mapping[str, str] = field(default_factory=dict)  # file -> its tokens
    wildcards: Wildcards = field(default_factory=Wildcards)
    without_negative: str | None = None  # the base model, if it reads no negative prompt

    def find_loras(self, tags: Sequence[LoraTag]) -> tuple[NamedLora, ...]:
        """Return the LoRAs that tags ask for; the scales of one that is named twice are added up.

        Raises:
            PromptError: the model has no such LoRA, or a tag stands in the negative prompt.
        """
        if self.loras is None:
            return ()
        found: dict[str, NamedLora] = {}
        for tag in tags:
            if tag.kind == HYPERNETWORK:
                continue
            file = _find_file(tag, self.loras, "prompt-unknown-lora")
            _, text_scale, unet_scale = found.get(file, ("", 0.0, 0.0))
            found[file] = NamedLora(file, text_scale + tag.text_scale, unet_scale + tag.unet_scale)
        return tuple(found.values())

    def find_hypernetworks(self, tags: Sequence[LoraTag]) -> tuple[NamedHypernetwork, ...]:
        """Return the hypernetworks that tags ask for, in their order, each as often as it is named.

        Raises:
            PromptError: the model has no such hypernetwork.
        """
        if self.loras is None:
            return ()
        return tuple(
            NamedHypernetwork(
                _find_file(tag, self.hypernetworks, "prompt-unknown-hypernetwork"), tag.unet_scale
            )
            for tag in tags
            if tag.kind == HYPERNETWORK
        )

    def take_prefixes(self, text: Traced, *, field: str) -> tuple[Traced, list[Message]]:
        """Return a text without ComfyUI's `embedding:` before the names of embeddings, and notes of unknown ones."""
        stems = sorted((PurePosixPath(file).stem for file in self.embeddings), key=len, reverse=True)
        known = re.compile(rf"(?:{'|'.join(map(re.escape, stems))}){EXTENSION}(?![\w-])", re.IGNORECASE)
        kept: list[tuple[int, int]] = []
        notes: list[Message] = []
        place = 0
        for match in PREFIX.finditer(text.text):
            name = known.match(text.text, match.end()) if stems else None
            if name is not None:
                kept.append((place, match.start()))
                place = match.end()
            elif self.loras is not None and len(notes) < MOST_NAMES:
                typed = NAME.match(text.text, match.end())
                values: dict[str, Value] = {
                    "typed": typed[0][:SHOWN] if typed else "",
                    "position": text.position(match.start()),
                    "known": LIST_SEPARATOR.join(sorted(stems)[:MOST_NAMES]) or "none",
                }
                notes.append(Message("prompt-unknown-embedding", values, field))
        return (text.pick([*kept, (place, len(text.text))]) if kept else text), notes

    def put_tokens(self, text: str) -> str:
        """Return a text in which the name of each embedding is replaced by its tokens, in any case of letters.

        Raises:
            PromptError: several embeddings of other tokens have that name.
        """
        by_name: dict[str, list[str]] = {}
        for file in self.embeddings:
            by_name.setdefault(PurePosixPath(file).stem.casefold(), []).append(file)
        for name, files in by_name.items():
            named = re.compile(rf"(?<![\w<-])({re.escape(name)}){EXTENSION}(?![\w>-])", re.IGNORECASE)
            text = named.sub(partial(self._choose_tokens, files), text)
        return text

    def _choose_tokens(self, files: Sequence[str], typed: re.Match[str]) -> str:
        """Return the tokens of the embedding that is meant, of `files` that differ in case or folder."""
        files = [file for file in files if PurePosixPath(file).stem == typed[1]] or files
        if len({self.embeddings[file] for file in files}) > 1:
            known = LIST_SEPARATOR.join(f"{self.embeddings[file]} ({file})" for file in files)
            raise PromptError("prompt-ambiguous-embedding", typed=typed[0], known=known)
        return self.embeddings[files[0]]


def _find_file(tag: LoraTag, known_files: Sequence[str], code: str) -> str:
    """Return the file that a tag names; `code` is that of the error where there is none."""
    found = find_named(tag.name, known_files)
    if len(found) == 1:
        return found[0]
    if found:
        raise PromptError(
            "prompt-ambiguous-adapter",
            field="prompt",
            typed=tag.name[:SHOWN],
            position=tag.position,
            known=LIST_SEPARATOR.join(tell_apart(found[:MOST_NAMES], known_files)),
        )
    near = find_near(tag.name, known_files)
    known = LIST_SEPARATOR.join(tell_apart(near, known_files)) or "none"
    raise PromptError(code, field="prompt", typed=tag.name[:SHOWN], position=tag.position, known=known)


def find_near(typed: str, files: Sequence[str]) -> list[str]:
    """Return the adapters whose names are the most like one, the nearest first."""
    names: dict[str, list[str]] = {}
    for file in files:
        names.setdefault(name_adapter(file).casefold(), []).append(file)
    near = get_close_matches(name_adapter(typed).casefold(), names, MOST_NAMES, 0)
    return [file for name in near for file in names[name]][:MOST_NAMES]
