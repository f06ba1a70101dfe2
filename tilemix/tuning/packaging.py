"""A training's result as a packaged model: a manifest like that of the base's, with the new adapters."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from tilemix.errors import TrainingError
from tilemix.system.atomic import write_atomically
from tilemix.system.project import ROOT
from tilemix.weights.local import PRIVATE_FOLDER, hash_file
from tilemix.weights.manifest import (
    MODEL_NAME,
    Adapter,
    ModelManifest,
    changing,
    check_manifest,
    list_models,
    load_manifest,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tilemix.tuning.plan import Plan


@dataclass(frozen=True, slots=True)
class Package:
    """A packaged model to be made of a training's files."""

    name: str
    like: ModelManifest  # the packaged model whose base is trained on
    plan: Plan
    root: Path  # the project's folder

    @property
    def path(self) -> Path:
        """Its manifest."""
        return self.root / "weights" / f"{self.name}.model.json"

    @property
    def template(self) -> Path:
        """Its prompt template."""
        return self.root / "prompt_templates" / f"{self.plan.template.name}.json"


def plan_package(plan: Plan, name: str, *, replaces: bool = False, root: Path = ROOT) -> Package:
    """Check before a training that its result can become the packaged model `name`; nothing is written.

    Args:
        plan: the training.
        name: the model's.
        replaces: whether another model of this name gives way. One that an earlier run has written does anyway.
        root: the project's folder.

    Raises:
        TrainingError: the name cannot be used or is taken, no packaged model has the base, or another template has
            the name of the training's.
        ManifestError: a manifest cannot be read.
    """
    if not MODEL_NAME.fullmatch(name):
        raise TrainingError("training-model-name", name=name[:80])
    manifests = {known: load_manifest(known, root) for known in list_models(root)}
    base = plan.base.resolve()
    like = next(
        (
            manifest
            for known, manifest in manifests.items()
            if known != name and (root / "weights" / manifest.base.folder).resolve() == base
        ),
        None,
    )
    if like is None:
        raise TrainingError("training-base-not-packaged", folder=str(plan.base), known=", ".join(manifests))
    if name in manifests and not replaces:
        files = {adapter.file.rpartition("/")[2] for adapter in manifests[name].adapters}
        if files != {path.name for path in plan.files}:
            raise TrainingError("training-model-taken", name=name)
    package = Package(name, like, plan, root)
    if package.template.is_file() and package.template.read_bytes() != plan.template_path.read_bytes():
        raise TrainingError(
            "training-template-taken", file=str(plan.template_path), place=str(package.template)
        )
    return package


def write_package(package: Package, lora: Path, embeddings: Path) -> Path:
    """Write the manifest of a trained model, and copy what is not in its place yet; return the manifest's path.

    Args:
        package: what `plan_package` returned.
        lora: the training's LoRA.
        embeddings: its tokens.

    Raises:
        TrainingError: a file cannot be written.
        ManifestError: the manifest breaks a rule.
    """
    plan = package.plan
    try:
        adapters = (
            _make_entry(package, lora, Adapter(file="", kind="lora", scale=plan.config.lora.scale)),
            _make_entry(
                package,
                embeddings,
                Adapter(file="", kind="embedding", tokens=tuple(plan.template.placeholder_tokens)),
            ),
        )
        manifest = msgspec.structs.replace(
            package.like,
            adapters=adapters,
            prompt_template=plan.template.name,
            palette=plan.config.palette or package.like.palette,
        )
        check_manifest(package.path.name, manifest)
        with changing(package.name, package.root):
            if not package.template.is_file():
                write_atomically(package.template, plan.template_path.read_bytes())
            data = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
            write_atomically(package.path, data + b"\n")
    except OSError as error:
        raise TrainingError("file-unwritable", file=str(package.path), reason=str(error.strerror)) from error
    return package.path


def _make_entry(package: Package, path: Path, entry: Adapter) -> Adapter:
    """Return the entry of a file, which is copied into weights/files/ if it is not below weights/."""
    weights = package.root.resolve() / "weights"
    place = path.resolve()
    if not place.is_relative_to(weights):
        place = weights / PRIVATE_FOLDER / path.name
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, place)
    inner = weights / PRIVATE_FOLDER if place.is_relative_to(weights / PRIVATE_FOLDER) else weights
    return msgspec.structs.replace(
        entry, file=str(place.relative_to(inner)), size=place.stat().st_size, sha256=hash_file(place)
    )
