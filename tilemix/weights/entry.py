"""The manifest entry of an adapter to be added, made from the wish, from what is there, and from the file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tilemix.errors import AdapterError
from tilemix.modelfile.companions import NAMES_FILE, read_token_names
from tilemix.modelfile.embedding_names import number_tokens
from tilemix.prompts.checks import PLACEHOLDER_TOKEN
from tilemix.request import DEFAULT_SCALE
from tilemix.weights.candidate import Candidate
from tilemix.weights.local import PRIVATE_FOLDER, hash_file
from tilemix.weights.manifest import MAX_SCALE, Adapter, ManifestFile, ModelManifest


@dataclass(frozen=True, slots=True)
class Wish:
    """How to add an adapter; None leaves it to the file and the manifest."""

    scale: float | None = None  # of a LoRA, 0 to MAX_SCALE; None: DEFAULT_SCALE
    tokens: tuple[str, ...] | None = None  # of embeddings; None: special_params.json, else <s0>, <s1>, ...
    file_name: str | None = None  # in weights/files/; for a PEFT folder, the folder's name; None: its own
    replaces: bool = False  # whether it may replace another file of this name


class Task:
    """One adapter to add: its name, and the manifest and the wish that it must agree with."""

    def __init__(self, file_name: str, model: str, manifest: ModelManifest, wish: Wish, root: Path) -> None:
        self.file_name = file_name
        self.model, self.manifest, self.root = model, manifest, root
        self.wish = wish
        self.old = next((adapter for adapter in manifest.adapters if adapter.file == file_name), None)
        self.others = [adapter for adapter in manifest.adapters if adapter.file != file_name]
        self.target = root / "weights" / PRIVATE_FOLDER / file_name
        places = [self.target, root / "weights" / file_name]
        self.present = next((path for path in places if path.is_file()), None)

    def is_present(self, sha256: str, beside: Mapping[str, bytes]) -> bool:
        """Return whether the file with this hash is in its place already; the files `beside` it are checked too.

        Raises:
            AdapterError: another file is there and must not be replaced, or the model has it under another name.
        """
        twin = next((adapter.file for adapter in self.others if adapter.sha256 == sha256), None)
        if twin and not beside:  # two PEFT folders may differ only in their configurations
            raise AdapterError("weights-twin", file=self.file_name, twin=twin)
        found = hash_file(self.present) if self.present else None
        self._compare(self.file_name, sha256, self.present, self.old.sha256 if self.old else None)
        locked = {file.path: file.sha256 for file in self.old.beside} if self.old else {}
        for name, content in beside.items():
            path = (self.present or self.target).with_name(name)
            where = path if path.is_file() else None
            self._compare(f"{self.file_name}: {name}", _digest(content), where, locked.get(name))
        return found == sha256

    def _compare(self, what: str, sha256: str, present: Path | None, locked: str | None) -> None:
        found = hash_file(present) if present else None
        if self.wish.replaces:
            return
        if found not in (None, sha256):
            raise AdapterError(
                "weights-name-taken", file=what, sha256=sha256, place=str(present), found=str(found)
            )
        if locked not in (None, sha256):
            raise AdapterError("weights-name-locked", file=what, sha256=sha256, found=str(locked))

    def make_entry(
        self,
        facts: Candidate,
        size: int,
        sha256: str,
        *,
        url: str | None = None,
        folder: Path | None = None,
        beside: Mapping[str, bytes],
    ) -> Adapter:
        """Return the manifest's entry; special_params.json may be in `folder`.

        Raises:
            AdapterError: the wish or the manifest does not fit the file.
        """
        scale, tokens = self.wish.scale, self.wish.tokens
        old = self.old if self.old is not None and self.old.kind == facts.kind else None
        if self.old is not None and old is None and not self.wish.replaces:
            code = "weights-lora-for-embedding" if facts.kind == "lora" else "weights-embedding-for-lora"
            raise AdapterError(code, file=self.file_name)
        if facts.kind == "lora":
            if tokens and not facts.rows:
                raise AdapterError("lora-tokens", file=self.file_name, found=" ".join(tokens)[:80])
            if scale is None:
                scale = old.scale if old and old.scale is not None else DEFAULT_SCALE
            if not 0 <= scale <= MAX_SCALE:
                raise AdapterError("lora-scale", file=self.file_name, found=scale, most=MAX_SCALE)
        elif scale is not None:
            raise AdapterError("embedding-scale", file=self.file_name, found=scale)
        if facts.rows:
            tokens = tokens or (old.tokens if old else None) or facts.tokens or _read_names(folder)
            tokens = self._check_tokens(tokens or number_tokens(facts.rows), facts.rows)
        if url is None and self.old is not None and self.old.sha256 == sha256:
            url = self.old.url  # the same file still comes from that address
        return Adapter(
            file=self.file_name,
            kind=facts.kind,
            scale=scale,
            tokens=tokens or (),
            size=size,
            sha256=sha256,
            url=url,
            beside=tuple(ManifestFile(n, len(content), _digest(content)) for n, content in beside.items()),
        )

    def _check_tokens(self, tokens: tuple[str, ...], rows: int) -> tuple[str, ...]:
        name, found = self.file_name, " ".join(tokens)[:120]
        if len(tokens) != rows or len(set(tokens)) != rows:
            raise AdapterError("embedding-tokens-count", file=name, found=found, expected=rows)
        if not all(PLACEHOLDER_TOKEN.fullmatch(token) for token in tokens):
            raise AdapterError("embedding-tokens", file=name, found=found)
        for adapter in self.others:
            if set(tokens) & set(adapter.tokens):
                raise AdapterError("embedding-tokens-taken", file=name, found=found, other=adapter.file)
        return tokens


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read_names(folder: Path | None) -> tuple[str, ...]:
    """Return the tokens that a training wrote beside its embeddings; () where it wrote none."""
    names = folder / NAMES_FILE if folder else None
    return read_token_names(names) if names and names.is_file() else ()
