"""`python -m tilemix.studio --check`: every setting in force, where it came from, and what can be reached."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tilemix.errors import Message, SettingsError, TilemixError
from tilemix.studio.cog_backend import NOTHING_LISTENS, CogBackend, cog_client
from tilemix.studio.replicate_backend import ReplicateBackend
from tilemix.studio.service import make_backend
from tilemix.studio.settings import mask
from tilemix.studio.store.database import try_database

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from tilemix.studio.settings import Settings

SHOWN = {  # variable -> field of the settings
    "TILEMIX_MODEL": "model",
    "TILEMIX_STUDIO_FOLDER": "folder",
    "TILEMIX_STUDIO_DATABASE": "database_url",
    "TILEMIX_STUDIO_HOST": "host",
    "TILEMIX_STUDIO_PORT": "port",
    "TILEMIX_STUDIO_TOKEN": "token",
    "TILEMIX_STUDIO_PROXIES": "proxies",
    "TILEMIX_STUDIO_PUBLIC_URL": "public_url",
    "TILEMIX_STUDIO_BACKEND": "backend",
    "TILEMIX_STUDIO_DEADLINE": "deadline_seconds",
    "TILEMIX_STUDIO_QUEUE": "most_waiting",
    "TILEMIX_STUDIO_SLOTS": "slots",
    "TILEMIX_COG_URL": "cog_url",
    "WEBHOOK_AUTH_TOKEN": "cog_webhook_token",
    "REPLICATE_API_TOKEN": "replicate_token",
    "TILEMIX_REPLICATE_VERSION": "replicate_version",
    "WEBHOOK_SECRET": "webhook_secrets",
}


def list_settings(settings: Settings, environment: Mapping[str, str]) -> Iterator[str]:
    """Give a line for each setting: name, value and origin. Secrets are stars."""
    for name, field in SHOWN.items():
        value = getattr(settings, field)
        if name == "TILEMIX_STUDIO_DATABASE":
            text = mask(value.reveal(), settings.secrets)
        elif isinstance(value, tuple):
            text = ", ".join(map(str, value))
        else:
            text = "" if value is None else str(value)
        origin = "environment" if environment.get(name) else "default"
        yield f"{name} = {text or '(none)'}  [{origin}]"


def warn(settings: Settings) -> Message | None:
    """Return what is allowed and dangerous; None if nothing is."""
    if settings.public_url is not None and settings.token is None:
        return Message("settings-public-without-token", {"url": settings.public_url[:80]})
    return None


def find_unreachable(settings: Settings, *, with_server: bool) -> Iterator[tuple[str, str | None]]:
    """Give each thing that the studio needs, and why it cannot be reached, or None if it can."""
    yield "folder", _try(lambda: _check_folder(settings.folder))
    yield "database", _try(lambda: try_database(settings.database_url))
    if settings.backend == "replicate":
        backend = make_backend(settings)
        assert isinstance(backend, ReplicateBackend)
        yield "Replicate, with its token", _try(backend.fetch_signing_secret)
    elif not with_server:
        yield f"Cog server at {settings.cog_url}", _try(CogBackend(cog_client(settings.cog_url)).health)


def _check_folder(folder: Path) -> None:
    """Check that the studio's folder is there, or can be made; nothing is made.

    Raises:
        SettingsError: neither is the case.
    """
    # Path.exists() raises where no path may be looked up.
    there = next(each for each in (folder, *folder.parents) if os.path.exists(each))  # noqa: PTH110
    if not there.is_dir():
        reason = "not a folder" if there == folder else f"{str(there)!r} is not a folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        reason = "cannot be written"
    else:
        return
    raise SettingsError("settings-folder-unusable", folder=str(folder), reason=reason)


def _try(action: Callable[[], object]) -> str | None:
    try:
        action()
    except TilemixError as error:
        if error.code == NOTHING_LISTENS:
            return str(Message("settings-start-server", {"fault": str(error)}))
        return str(error)
    return None
