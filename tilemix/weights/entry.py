"""The manifest's entry of an adapter that is to be added: what is wished for, what is there, what the file says."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tilemix.errors import AdapterError
from tilemix.modelfile.companions import NAMES_FILE, read_token_names
from tilemix.prompts.checks import PLACEHOLDER_TOKEN
from tilemix.weights.candidate import Candidate
from tilemix.weights.local import PRIVATE_FOLDER, hash_file
from tilemix.weights.manifest import MAX_SCALE, Adapter, ManifestFile, ModelManifest

DEFAULT_SCALE = 0.7  # of a LoRA


@dataclass(frozen=True, slots=True)
class Wish:
    """How an adapter is to be added; None leaves it to the file and to what the manifest has."""

    scale: float | None = None  # of a LoRA, 0 to 1.5; None: 0.7
    tokens: tuple[str, ...] | None = None  # of embeddings; None: special_params.json, else <s0>, <s1>, ...
    file_name: str | None = None  # in weights/files/; of a PEFT folder, the folder's; None: its own
    replaces: bool = False  # another file of this name


class Task:
    """One adapter to add: its name, the manifest and the wish that it must agree with."""

    def __init__(self, file_name: str, manifest: ModelManifest, wish: Wish, root: Path) -> None:
        self.file_name = file_name
        self.wish = wish
        self.old = next((adapter for adapter in manifest.adapters if adapter.file == file_name), None)
        self.others = [adapter for adapter in manifest.adapters if adapter.file != file_name]
        self.target = root / "weights" / PRIVATE_FOLDER / file_name
        places = [self.target, root / "weights" / file_name]
        self.present = next((path for path in places if path.is_file()), None)

    def is_present(self, sha256: str, beside: Mapping[str, bytes]) -> bool:
        """Tell whether the file with this hash is in its place already; what is `beside` it is looked at too.

        Raises:
            AdapterError: another file is, and the wish is not to replace it; or the model has it by another name.
        """
        twin = next((adapter.file for adapter in self.others if adapter.sha256 == sha256), None)
        if twin and not beside:  # two PEFT folders may differ in their configurations alone
            raise AdapterError(f"{self.file_name}: the model has this very file already, as {twin}")
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
        for other, where in ((found, f"in {present}"), (locked, "in the manifest")):
            if other not in (None, sha256) and not self.wish.replaces:
                raise AdapterError(
                    f"{what}: sha256 {sha256}, but {where} it is {other}; --replace puts this one there"
                )

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
        """Return the manifest's entry; `folder` is where special_params.json may stand.

        Raises:
            AdapterError: the wish, or what the manifest has, does not fit the file.
        """
        scale, tokens = self.wish.scale, self.wish.tokens
        old = self.old if self.old is not None and self.old.kind == facts.kind else None
        if self.old is not None and old is None and not self.wish.replaces:
            raise AdapterError(
                f"{self.file_name}: {_name_kind(facts.kind)}, but {_name_kind(self.old.kind)} in the manifest; "
                "--replace puts this one there"
            )
        if facts.kind == "lora":
            if tokens and not facts.rows:
                raise AdapterError(f"{self.file_name}: a LoRA has no tokens, found {' '.join(tokens)[:80]!r}")
            if scale is None:
                scale = old.scale if old and old.scale is not None else DEFAULT_SCALE
            if not 0 <= scale <= MAX_SCALE:
                raise AdapterError(f"{self.file_name}: scale {scale}, expected 0 to {MAX_SCALE}")
        elif scale is not None:
            raise AdapterError(f"{self.file_name}: an embedding has no scale, found {scale}")
        if facts.rows:
            tokens = tokens or (old.tokens if old else None) or facts.tokens or _read_names(folder)
            tokens = self._check_tokens(tokens or tuple(f"<s{row}>" for row in range(facts.rows)), facts.rows)
        if url is None and self.old is not None and self.old.sha256 == sha256:
            url = self.old.url  # the same file still comes from there
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
        what = f"{self.file_name}: tokens {' '.join(tokens)[:120]!r}"
        if len(tokens) != rows or len(set(tokens)) != rows:
            raise AdapterError(f"{what}, expected {rows} different ones, one for each row")
        if not all(PLACEHOLDER_TOKEN.fullmatch(token) for token in tokens):
            raise AdapterError(f"{what}, expected such as '<s0>'")
        for adapter in self.others:
            if set(tokens) & set(adapter.tokens):
                raise AdapterError(f"{what} are {adapter.file}'s already; name others with --tokens")
        return tokens


def _name_kind(kind: str) -> str:
    return "a LoRA" if kind == "lora" else "an embedding"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _read_names(folder: Path | None) -> tuple[str, ...]:
    """Return the tokens that a training wrote beside its embeddings, () where it did not."""
    names = folder / NAMES_FILE if folder else None
    return read_token_names(names) if names and names.is_file() else ()
