"""Model manifests: `weights/NAME.model.json` -> the verified local files of a packaged model.

A manifest names everything that a model is made of: the base (a folder in the diffusers layout), a VAE if it has its
own, the adapters, the scheduler, the defaults, the prompt template. Files are fetched, added, locked and verified
here. A file that differs from its manifest is never loaded.

What changes a model's files (add, fetch, lock) is imported from its own module: it brings HTTP and the inspector, which
the text stages and a running model do not need. Nothing here imports torch.
"""

from tilemix.weights.local import (
    FileState,
    LocalModel,
    check_files,
    find_missing,
    find_model,
    locate_model,
    verify,
)
from tilemix.weights.manifest import (
    Adapter,
    ManifestFile,
    ModelManifest,
    Scheduler,
    Source,
    list_models,
    load_manifest,
)

__all__ = [
    "Adapter",
    "FileState",
    "LocalModel",
    "ManifestFile",
    "ModelManifest",
    "Scheduler",
    "Source",
    "check_files",
    "find_missing",
    "find_model",
    "list_models",
    "load_manifest",
    "locate_model",
    "verify",
]
