"""Model manifests: `weights/NAME.model.json` -> the verified local files of a packaged model.

A manifest names everything that a model is made of: the base (a folder in the diffusers layout), a VAE if it has its
own, the adapters, the scheduler, the defaults, the prompt template. Files are fetched, added, locked and verified
here. A file that differs from its manifest is never loaded.

Nothing here imports torch.
"""

from tilemix.weights.add import Added, add, remove, split_tokens
from tilemix.weights.entry import Wish
from tilemix.weights.fetch import fetch
from tilemix.weights.local import (
    FileState,
    LocalModel,
    check_files,
    find_missing,
    find_model,
    locate_model,
    verify,
)
from tilemix.weights.lock import lock
from tilemix.weights.manifest import (
    Adapter,
    ManifestFile,
    ModelManifest,
    Scheduler,
    Source,
    list_models,
    load_manifest,
)
from tilemix.weights.web import Web, make_web

__all__ = [
    "Adapter",
    "Added",
    "FileState",
    "LocalModel",
    "ManifestFile",
    "ModelManifest",
    "Scheduler",
    "Source",
    "Web",
    "Wish",
    "add",
    "check_files",
    "fetch",
    "find_missing",
    "find_model",
    "list_models",
    "load_manifest",
    "locate_model",
    "lock",
    "make_web",
    "remove",
    "split_tokens",
    "verify",
]
