"""The model folder of a web UI -> manifests that point at its files where they are.

Each checkpoint that a family can load gets a manifest, with the LoRAs and embeddings that fit it. A LoRA is listed at a
scale of 0, so a prompt names the ones that it wants. What a file is, its content tells, not its folder.

The layout is that of AUTOMATIC1111's UI and its relatives: `models/Stable-diffusion`, `models/Lora`, `models/VAE`,
`embeddings` and so on, with `NAME.yaml` and `NAME.vae.*` beside a checkpoint.
"""

from __future__ import annotations

import re
import shlex
import shutil
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tilemix.errors import Message, ModelFileError, Value, WeightsError
from tilemix.modelfile.base_families import BASE_FAMILIES, BaseFamily
from tilemix.modelfile.companions import name_converted
from tilemix.modelfile.inspection import ModelFile, read
from tilemix.modelfile.ldm_config import read_ldm_config
from tilemix.request import Defaults
from tilemix.system.atomic import write_atomically
from tilemix.system.project import ROOT
from tilemix.weights.local import PRIVATE_FOLDER
from tilemix.weights.manifest import (
    Adapter,
    ManifestFile,
    ModelManifest,
    Scheduler,
    Source,
    changing,
    check_manifest,
)

if TYPE_CHECKING:
    from tilemix.adapters.fit import Shapes

# The folders that are read, in FOLDER or in FOLDER/models, in lower case -> the message on files that have no use here.
FOLDERS = {
    "stable-diffusion": None, "sd": None, "checkpoints": None, "lora": None, "loras": None, "lycoris": None,
    "vae": None, "hypernetworks": None, "embeddings": None, "ti": None,
    "esrgan": "webui-upscaler", "realesrgan": "webui-upscaler", "swinir": "webui-upscaler", "ldsr": "webui-upscaler",
    "sr": "webui-upscaler", "upscale_models": "webui-upscaler", "codeformer": "webui-face", "gfpgan": "webui-face",
    "controlnet": "webui-controlnet", "cn": "webui-controlnet", "deepbooru": "webui-other", "blip": "webui-other",
    "vae-approx": "webui-other", "torch_deepdanbooru": "webui-other",
}  # fmt: skip
ENDINGS = frozenset({".safetensors", ".ckpt", ".pt", ".pth", ".bin"})
PICKLED = frozenset({"file-is-zip", "file-is-pickle", "file-is-hypernetwork", "file-is-pickled-embedding"})
MAX_FILES = 10_000
MOST_MODEL, MOST_FILE = 64, 100  # characters of a name
# The families that load a checkpoint from one file, and what their pictures are like.
SINGLE_FILES = {"sd1": Defaults(width=512, height=512, num_inference_steps=25, guidance_scale=7.0)}
TEMPLATE = "plain"
SCHEDULER = "dpm++_2m_karras"


@dataclass(frozen=True, slots=True)
class Unused:
    """A file that no manifest lists, and why."""

    path: Path
    reason: Message


@dataclass(slots=True)
class Imported:
    """What an import made."""

    manifests: list[Path] = field(default_factory=list)
    used: list[Path] = field(default_factory=list)
    unused: list[Unused] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Found:
    path: Path
    facts: ModelFile


def import_folder(
    folder: Path, *, root: Path = ROOT, copies: bool = False, replaces: bool = False
) -> Imported:
    """Write a manifest for each checkpoint in a web UI's folder that can be loaded.

    Args:
        folder: the UI's own folder, or its `models`.
        root: the project's folder.
        copies: whether its files are copied into weights/files/; else links there point at them.
        replaces: whether a manifest of the same name is written anew.

    Raises:
        WeightsError: there is no such folder, or none of the known ones is in it.
        ManifestError, WeightsError: something cannot be written.
    """
    result = Imported()
    found: list[_Found] = []
    for path, useless in _list_files(folder):
        if useless is not None:
            result.unused.append(Unused(path, _say(useless)))
            continue
        try:
            found.append(_Found(path, read(path, hashes="none")))
        except ModelFileError as error:
            result.unused.append(Unused(path, _explain(path, error)))
    checkpoints = [one for one in found if one.facts.kind == "checkpoint"]
    adapters = [one for one in found if one.facts.kind in ("lora", "embedding", "hypernetwork")]
    vaes = [one for one in found if one.facts.kind == "vae"]
    for one in found:
        if one not in checkpoints + adapters + vaes:
            result.unused.append(Unused(one.path, _say("webui-kind", found=one.facts.kind)))
    fitting = _find_fitting(adapters, {f.name for f in _families_of(checkpoints)}, result, root)
    taken: set[str] = set()
    for one in checkpoints:
        _write(one, taken, vaes, fitting, result, root, copies=copies, replaces=replaces)
    result.unused += [
        Unused(one.path, _say("webui-vae-alone")) for one in vaes if one.path not in result.used
    ]
    return result


def _list_files(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """Yield the model files of the known folders, and the message on those of no use."""
    if not folder.is_dir():
        raise WeightsError("webui-no-folder", folder=str(folder))
    places = [
        place
        for parent in (folder, folder / "models")
        if parent.is_dir()
        for place in sorted(parent.iterdir())
        if place.is_dir() and place.name.lower() in FOLDERS
    ]
    if not places:
        raise WeightsError("webui-none-known", folder=str(folder), known=", ".join(FOLDERS))
    count = 0
    for place in places:
        for path in sorted(place.rglob("*")):
            hidden = any(part.startswith(("_", ".")) for part in path.relative_to(place).parts)
            if hidden or path.suffix.lower() not in ENDINGS or not path.is_file():
                continue
            count += 1
            if count > MAX_FILES:
                raise WeightsError("webui-too-many", folder=str(folder), most=MAX_FILES)
            yield path, FOLDERS[place.name.lower()]


def _families_of(checkpoints: Iterable[_Found]) -> list[BaseFamily]:
    return [family for one in checkpoints if (family := _family_of(one)) is not None]


def _family_of(one: _Found) -> BaseFamily | None:
    """Return the family that can load a checkpoint from its one file."""
    return next(
        (
            family
            for family in BASE_FAMILIES.values()
            if family.base == one.facts.base_model and family.name in SINGLE_FILES and not one.facts.variant
        ),
        None,
    )


def _find_fitting(
    adapters: list[_Found], families: set[str], result: Imported, root: Path
) -> dict[str, list[tuple[_Found, Adapter]]]:
    """Return the adapters that the loader of each family takes, by the family's name."""
    fitting: dict[str, list[tuple[_Found, Adapter]]] = {name: [] for name in families}
    shapes: dict[str, Shapes] = {}
    names: set[str] = set()
    for one in adapters:
        reason = _say("webui-no-base", base=one.facts.base_model or "-")
        for name in sorted(families):
            family = BASE_FAMILIES[name]
            if one.facts.base_model is not None and family.base not in one.facts.base_model:
                continue
            if name not in shapes:
                from tilemix.adapters.fit import read_shapes  # loads torch

                shapes[name] = read_shapes(root / "weights" / PRIVATE_FOLDER, None, family)
            entry = _make_adapter(one, names)
            try:
                if entry.kind == "hypernetwork":
                    shapes[name].prove_hypernetwork(one.path)
                elif entry.kind == "lora":
                    shapes[name].prove_lora(one.path, len(entry.tokens))
                else:
                    shapes[name].prove_embedding(one.path, len(entry.tokens))
            except ModelFileError as error:
                reason = error.message
                continue
            fitting[name].append((one, entry))
            names.add(Path(entry.file).stem.casefold())
            result.used.append(one.path)
            break
        else:
            result.unused.append(Unused(one.path, reason))
    return fitting


def _make_adapter(one: _Found, taken: set[str]) -> Adapter:
    name = _make_unique(_name_file(one.path.stem), taken, MOST_FILE)
    file = f"webui/{name}.safetensors"
    if one.facts.kind == "lora":
        return Adapter(file, "lora", 0.0, one.facts.tokens, size=one.facts.size)
    if one.facts.kind == "hypernetwork":
        return Adapter(file, "hypernetwork", size=one.facts.size)
    rows = one.facts.vectors or 1
    tokens = tuple(f"<{name}_{row}>" for row in range(rows)) if rows > 1 else (f"<{name}>",)
    return Adapter(file, "embedding", None, tokens, size=one.facts.size)


def _write(
    one: _Found,
    taken: set[str],
    vaes: list[_Found],
    fitting: dict[str, list[tuple[_Found, Adapter]]],
    result: Imported,
    root: Path,
    *,
    copies: bool,
    replaces: bool,
) -> None:
    """Write the manifest of a checkpoint, or say why there is none; `taken` are the names of the others."""
    family = _family_of(one)
    if family is None:
        what = " ".join(filter(None, (one.facts.base_model, one.facts.variant))) or "-"
        result.unused.append(Unused(one.path, _say("webui-checkpoint", base=what)))
        return
    name = _make_unique(_name_model(one.path.stem), taken, MOST_MODEL)
    taken.add(name)
    manifest_path = root / "weights" / f"{name}.model.json"
    if manifest_path.exists() and not replaces:
        result.unused.append(Unused(one.path, _say("webui-manifest-exists", manifest=manifest_path.name)))
        return
    folder = f"{PRIVATE_FOLDER}/{name}"
    beside = {f"{name}.safetensors": one.path}
    config = one.path.with_suffix(".yaml")
    if config.is_file():
        try:
            read_ldm_config(config)
        except ModelFileError as error:
            result.unused += [Unused(config, error.message), Unused(one.path, error.message)]
            return
        beside[f"{name}.yaml"] = config
    own_vae = _find_vae(one.path, vaes)
    if own_vae is not None:
        beside[f"{name}.vae.safetensors"] = own_vae
    adapters = fitting[family.name]
    manifest = ModelManifest(
        base=Source(folder, tuple(ManifestFile(n, path.stat().st_size) for n, path in beside.items())),
        scheduler=Scheduler(SCHEDULER),
        defaults=SINGLE_FILES[family.name],
        prompt_template=TEMPLATE,
        license="unknown",
        family=family.name,
        adapters=tuple(adapter for _, adapter in adapters),
    )
    check_manifest(manifest_path.name, manifest)
    places = [(path, root / "weights" / folder / file) for file, path in beside.items()]
    places += [(found.path, root / "weights" / PRIVATE_FOLDER / adapter.file) for found, adapter in adapters]
    try:
        for source, target in places:
            _place(source, target, copies=copies)
        with changing(name, root):
            raw = msgspec.json.encode(_without_defaults(manifest))
            write_atomically(manifest_path, msgspec.json.format(raw, indent=2) + b"\n")
    except (OSError, shutil.SameFileError) as error:
        raise WeightsError(
            "file-unwritable", file=str(manifest_path), reason=error.strerror or str(error)
        ) from error
    result.manifests.append(manifest_path)
    result.used += [path for path in beside.values() if path not in result.used]


def _find_vae(checkpoint: Path, vaes: list[_Found]) -> Path | None:
    """Return the VAE that is called after a checkpoint: beside it, or in the folder of VAEs."""
    wanted = f"{checkpoint.stem}.vae.safetensors"
    named = [one.path for one in vaes if one.path.name == wanted]
    return next((path for path in named if path.parent == checkpoint.parent), next(iter(named), None))


def _place(source: Path, target: Path, *, copies: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(f".{target.name}.new")
    new.unlink(missing_ok=True)
    if copies:
        shutil.copyfile(source, new)
    else:
        new.symlink_to(source.resolve())
    new.replace(target)


def _without_defaults(manifest: ModelManifest) -> object:
    """Return a manifest as a table without what is left out of one written by hand."""
    table = msgspec.to_builtins(manifest)

    def trim(value: object) -> object:
        if isinstance(value, dict):
            return {key: trim(one) for key, one in value.items() if one not in (None, [], (), {})}
        return [trim(one) for one in value] if isinstance(value, list | tuple) else value

    return trim(table)


def _name_model(stem: str) -> str:
    """Return a file's name as a model's: lower case, digits, `-` and `_`."""
    return re.sub(r"[^a-z0-9_-]+", "_", _spell(stem).lower()).strip("_-")[:MOST_MODEL] or "model"


def _name_file(stem: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", _spell(stem)).strip("._-")[:MOST_FILE] or "file"


def _spell(name: str) -> str:
    """Return a name without the marks on its letters: "Größe" as "Grosse"."""
    letters = unicodedata.normalize("NFKD", name.replace("ß", "ss").replace("ẞ", "SS"))
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


def _make_unique(name: str, taken: set[str], most: int) -> str:
    """Return a name of at most `most` characters that is not taken, whatever the case of its letters."""
    unique, number = name, 2
    while unique.casefold() in taken:
        end = f"_{number}"
        unique, number = f"{name[: most - len(end)]}{end}", number + 1
    return unique


def _explain(path: Path, error: ModelFileError) -> Message:
    converted = name_converted(path)
    if error.code in PICKLED and converted.is_file():
        return _say("webui-converted", converted=converted.name)
    if error.code in PICKLED:
        return _say("webui-pickled", command=f"tilemix weights convert {shlex.quote(str(path))}")
    return error.message


def _say(code: str, **values: Value) -> Message:
    return Message(code, values)
