"""The environment variables that tilemix reads. A name that is not among them is a mistake, and is told as one."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from tilemix.errors import LIST_SEPARATOR, SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable

PREFIX = "TILEMIX_"
LIKE = (
    0.5  # from 0 to 1: how like an unknown name a known one must be, both without the prefix, to be suggested
)
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
        SettingsError: one is not; the message names the nearest that is, or all where none is near.
    """
    for name in sorted(environment):
        if name.startswith(PREFIX) and name not in KNOWN:
            rests = [known.removeprefix(PREFIX) for known in KNOWN]
            near = difflib.get_close_matches(name.removeprefix(PREFIX), rests, n=1, cutoff=LIKE)
            if not near:
                known = LIST_SEPARATOR.join(KNOWN)
                raise SettingsError("settings-unknown-name", name=name[:80], known=known)
            raise SettingsError("settings-unknown-variable", name=name[:80], near=PREFIX + near[0])
