"""The environment variables that tilemix reads. A name that is not among them is a mistake, and is told as one."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from tilemix.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable

PREFIX = "TILEMIX_"
KNOWN = (
    "TILEMIX_CIVITAI_URL",
    "TILEMIX_COG_URL",
    "TILEMIX_COMPILE",
    "TILEMIX_MEMORY",
    "TILEMIX_MODEL",
    "TILEMIX_PRECISION",
    "TILEMIX_REPLICATE_VERSION",
    "TILEMIX_SPEED",
    "TILEMIX_STUDIO_BACKEND",
    "TILEMIX_STUDIO_DATABASE",
    "TILEMIX_STUDIO_DEADLINE",
    "TILEMIX_STUDIO_FOLDER",
    "TILEMIX_STUDIO_HOST",
    "TILEMIX_STUDIO_PORT",
    "TILEMIX_STUDIO_PROXIES",
    "TILEMIX_STUDIO_PUBLIC_URL",
    "TILEMIX_STUDIO_QUEUE",
    "TILEMIX_STUDIO_SLOTS",
    "TILEMIX_STUDIO_TOKEN",
    "TILEMIX_THREADS",
)


def check_names(environment: Iterable[str]) -> None:
    """Check that every variable that begins with TILEMIX_ is one that tilemix reads.

    Raises:
        SettingsError: one is not; the message names the nearest that is.
    """
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in KNOWN:
            (near,) = difflib.get_close_matches(name, KNOWN, n=1, cutoff=0)
            raise SettingsError("settings-unknown-variable", name=name[:80], near=near)
