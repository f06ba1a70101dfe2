"""The model folder of a web UI -> manifests that point at its files where they are.

Each checkpoint that a family can load gets a manifest, with the LoRAs and embeddings that fit it. A LoRA is listed at a
scale of 0, so a prompt names the ones that it wants. What a file is, its content tells, not its folder.

The layout is that of AUTOMATIC1111's UI and its relatives: `models/Stable-diffusion`, `models/Lora`, `models/VAE`,
`embeddings` and so on, with `NAME.yaml` and `NAME.vae.*` beside a checkpoint.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from tilemix.errors import LIST_SEPARATOR, Message, ModelFileError, Value, WeightsError
from tilemix.modelfile.base_families import BASE_FAMILIES, BaseFamily
from tilemix.modelfile.companions import name_converted
from tilemix.modelfile.embedding_names import MAX_WORD, name_bundled_tokens
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
    list_models,
    load_manifest,
    sources_of,
)
from tilemix.weights.webui_files import (
    MOST_FILE,
    MOST_MODEL,
    find_free,
    is_taken,
    list_files,
    name_file,
    name_model,
    place,
)

if TYPE_CHECKING:
    from tilemix.adapters.fit import Shapes

PICKLED = frozenset({"file-is-zip", "file-is-pickle", "file-is-hypernetwork", "file-is-pickled-embedding"})
# The families that load a checkpoint from one file, and what their pictures are like.
SINGLE_FILES = {"sd1": Defaults(width=512, height=512, num_inference_steps=25, guidance_scale=7.0)}
ADAPTERS = "webui"  # their folder in weights/files/
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
    named: dict[Path, str] = field(
        default_factory=dict
    )  # an adapter -> its name here, where that is another one


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
    for path, useless in list_files(folder):
        if useless is not None:
            result.unused.append(Unused(path, useless))
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
    if not result.manifests:
        result.named.clear()
    result.unused += [
        Unused(one.path, _say("webui-vae-alone")) for one in vaes if one.path not in result.used
    ]
    return result


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
    taken: set[str] = set()  # names, and tokens in lower case
    # First those whose names can stay as they are.
    for one in sorted(adapters, key=lambda one: name_file(one.path.stem) != one.path.stem):
        reason = _say("webui-no-base", base=one.facts.base_model or "-")
        for name in sorted(families):
            family = BASE_FAMILIES[name]
            if one.facts.base_model is not None and family.base not in one.facts.base_model:
                continue
            if name not in shapes:
                from tilemix.adapters.fit import read_shapes  # loads torch

                shapes[name] = read_shapes(root / "weights" / PRIVATE_FOLDER, None, family)
            entry = _make_adapter(one, taken, root)
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
            name = Path(entry.file).stem
            taken |= {name, *map(str.casefold, entry.tokens)}
            if name != one.path.stem:
                result.named[one.path] = name
            result.used.append(one.path)
            break
        else:
            result.unused.append(Unused(one.path, reason))
    return fitting


def _make_adapter(one: _Found, taken: set[str], root: Path) -> Adapter:
    """Return the entry of an adapter, with a name and tokens that are not `taken` and mean no other file."""

    def spell(name: str) -> str:
        return f"{ADAPTERS}/{name}.safetensors"

    def is_used(name: str) -> bool:
        target = root / "weights" / PRIVATE_FOLDER / spell(name)
        return name in taken or is_taken(one.path, target)

    name = find_free(name_file(one.path.stem), MOST_FILE, is_used)
    if one.facts.kind == "lora":
        return Adapter(
            spell(name), "lora", 0.0, _find_free_tokens(one.facts.tokens, taken), size=one.facts.size
        )
    if one.facts.kind == "hypernetwork":
        return Adapter(spell(name), "hypernetwork", size=one.facts.size)

    def name_tokens(word: str) -> tuple[str, ...]:
        return name_bundled_tokens({word: one.facts.vectors or 1})

    word = find_free(
        name, MAX_WORD, lambda word: any(token.casefold() in taken for token in name_tokens(word))
    )
    return Adapter(spell(name), "embedding", None, name_tokens(word), size=one.facts.size)


def _find_free_tokens(tokens: Iterable[str], taken: set[str]) -> tuple[str, ...]:
    words = (token[1:-1] for token in tokens)
    free = (find_free(word, MAX_WORD, lambda word: f"<{word}>".casefold() in taken) for word in words)
    return tuple(f"<{word}>" for word in free)


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
    name = find_free(name_model(one.path.stem), MOST_MODEL, taken.__contains__)
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
    for file, path in beside.items():
        if is_taken(path, root / "weights" / folder / file) and (users := _find_users(folder, name, root)):
            result.unused.append(
                Unused(one.path, _say("webui-in-use", folder=folder, models=LIST_SEPARATOR.join(users)))
            )
            return
    places = [(path, root / "weights" / folder / file) for file, path in beside.items()]
    places += [(found.path, root / "weights" / PRIVATE_FOLDER / adapter.file) for found, adapter in adapters]
    try:
        for source, target in places:
            place(source, target, copies=copies)
        with changing(name, root):
            raw = msgspec.json.encode(_without_defaults(manifest))
            write_atomically(manifest_path, msgspec.json.format(raw, indent=2) + b"\n")
    except (OSError, shutil.SameFileError) as error:
        raise WeightsError(
            "file-unwritable", file=str(manifest_path), reason=error.strerror or str(error)
        ) from error
    result.manifests.append(manifest_path)
    result.used += [path for path in beside.values() if path not in result.used]


def _find_users(folder: str, name: str, root: Path) -> list[str]:
    """Return the models, other than `name`, whose base or VAE is in a folder below weights/."""
    manifests = {other: load_manifest(other, root) for other in list_models(root) if other != name}
    return [
        other
        for other, manifest in manifests.items()
        if any(source.folder == folder for source in sources_of(manifest))
    ]


def _find_vae(checkpoint: Path, vaes: list[_Found]) -> Path | None:
    """Return the VAE that is called after a checkpoint: beside it, or in the folder of VAEs."""
    wanted = f"{checkpoint.stem}.vae.safetensors"
    named = [one.path for one in vaes if one.path.name == wanted]
    return next((path for path in named if path.parent == checkpoint.parent), next(iter(named), None))


def _without_defaults(manifest: ModelManifest) -> object:
    """Return a manifest as a table without what is left out of one written by hand."""
    table = msgspec.to_builtins(manifest)

    def trim(value: object) -> object:
        if isinstance(value, dict):
            return {key: trim(one) for key, one in value.items() if one not in (None, [], (), {})}
        return [trim(one) for one in value] if isinstance(value, list | tuple) else value

    return trim(table)


def _explain(path: Path, error: ModelFileError) -> Message:
    converted = name_converted(path)
    if error.code in PICKLED and converted.is_file():
        return _say("webui-converted", converted=converted.name)
    if error.code in PICKLED:
        return _say("webui-pickled", command=f"tilemix weights convert {shlex.quote(str(path))}")
    return error.message


def _say(code: str, **values: Value) -> Message:
    return Message(code, values)
