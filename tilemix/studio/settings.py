"""The studio's settings, read from the environment in one place. docs/studio.md says what each variable sets."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args
from urllib.parse import unquote, urlsplit

from tilemix.errors import SettingsError
from tilemix.system.project import DEFAULT_MODEL, ROOT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

BackendName = Literal["cog", "replicate"]

BACKENDS: tuple[BackendName, ...] = get_args(BackendName)
HOST = "127.0.0.1"
PORT = 8000
DEADLINE_SECONDS = 1800
MOST_WAITING = 100
SLOTS = 4
COG_URL = "http://127.0.0.1:5000"
DEADLINE_RANGE = (10, 86_400)  # seconds
QUEUE_RANGE = (1, 10_000)
SLOTS_RANGE = (1, 64)
PORT_RANGE = (0, 65_535)  # 0: any free port
VERSION = re.compile(r"[0-9a-f]{64}")
TOKEN = re.compile(r"[!-~]{16,512}")  # printable ASCII, so that a header can carry it
KEYS = re.compile(r"\b(r8_|whsec_)[A-Za-z0-9+/=_-]{8,}|(?<=Bearer )\S{8,}")  # what looks like a key


class Secret:
    """A text that is not shown by accident: `str()` and `repr()` give stars, `reveal()` gives the text."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text."""
        return self._text

    def __repr__(self) -> str:
        return "Secret('***')"

    __str__ = __repr__


def mask(text: str, known: Iterable[str] = ()) -> str:
    """Return `text` with the known secrets, and what looks like a key, replaced by stars."""
    for secret in known:
        text = text.replace(secret, "***")
    return KEYS.sub(lambda match: f"{match[1] or ''}***", text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The studio's settings, checked."""

    folder: Path
    database_url: Secret  # may contain a password
    host: str = HOST
    port: int = PORT
    token: Secret | None = None  # None: no token is needed
    proxies: tuple[str, ...] = ()  # addresses and networks whose X-Forwarded-For is believed
    public_url: str | None = None  # https://..., without a trailing slash
    backend: BackendName = BACKENDS[0]
    deadline_seconds: int = DEADLINE_SECONDS
    most_waiting: int = MOST_WAITING
    slots: int = SLOTS  # at Replicate; a Cog server has one
    cog_url: str = COG_URL
    cog_webhook_token: Secret | None = None
    cog_webhook_key: Secret | None = None  # of a server that the studio starts; its webhooks carry no token
    replicate_token: Secret | None = None
    replicate_version: str | None = None
    webhook_secrets: tuple[Secret, ...] = ()
    model: str = DEFAULT_MODEL

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Read and check the variables; an empty one counts as unset.

        Raises:
            SettingsError: a value is unusable or missing.
        """
        given = {name: value for name, value in environment.items() if value}
        folder = Path(given.get("TILEMIX_STUDIO_FOLDER", ROOT / "build" / "studio")).absolute()
        settings = cls(
            folder=folder,
            database_url=Secret(
                given.get("TILEMIX_STUDIO_DATABASE", f"sqlite:///{folder / 'studio.sqlite3'}")
            ),
            host=given.get("TILEMIX_STUDIO_HOST", HOST),
            port=_read_integer(given, "TILEMIX_STUDIO_PORT", PORT, PORT_RANGE),
            token=_read_token(given, "TILEMIX_STUDIO_TOKEN"),
            proxies=_read_networks(given, "TILEMIX_STUDIO_PROXIES"),
            public_url=_read_url(given, "TILEMIX_STUDIO_PUBLIC_URL", ("https",)),
            backend=_read_backend(given),
            deadline_seconds=_read_integer(
                given, "TILEMIX_STUDIO_DEADLINE", DEADLINE_SECONDS, DEADLINE_RANGE
            ),
            most_waiting=_read_integer(given, "TILEMIX_STUDIO_QUEUE", MOST_WAITING, QUEUE_RANGE),
            slots=_read_integer(given, "TILEMIX_STUDIO_SLOTS", SLOTS, SLOTS_RANGE),
            cog_url=_read_url(given, "TILEMIX_COG_URL", ("http", "https")) or COG_URL,
            cog_webhook_token=_read_token(given, "WEBHOOK_AUTH_TOKEN"),
            replicate_token=_read_token(given, "REPLICATE_API_TOKEN"),
            replicate_version=given.get("TILEMIX_REPLICATE_VERSION"),
            webhook_secrets=tuple(Secret(text) for text in given.get("WEBHOOK_SECRET", "").split()),
            model=given.get("TILEMIX_MODEL", DEFAULT_MODEL),
        )
        settings._check_together()
        return settings

    @property
    def secrets(self) -> frozenset[str]:
        """Everything that must not be shown: tokens, signing keys, the database password."""
        cog = (self.cog_webhook_token, self.cog_webhook_key)
        tokens = (self.token, *cog, self.replicate_token, *self.webhook_secrets)
        found = {secret.reveal() for secret in tokens if secret is not None}
        try:
            password = urlsplit(self.database_url.reveal()).password
        except ValueError:  # not a URL: opening the database refuses it
            password = None
        return frozenset(found | ({password, unquote(password)} if password else set()))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the studio."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def make_folders(self) -> Path:
        """Make the studio's folder and, in it, the one of its pictures; return the latter.

        Raises:
            SettingsError: it cannot be made, or something else has its name.
        """
        pictures = self.folder / "pictures"
        try:
            for folder in (self.folder, pictures):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            if isinstance(error, FileExistsError):
                reason = "not a folder" if folder == self.folder else f"its {folder.name!r} is not a folder"
            raise SettingsError("settings-folder-unusable", folder=str(self.folder), reason=reason) from error
        return pictures

    def _check_together(self) -> None:
        if not self.is_loopback and self.token is None:
            raise SettingsError("settings-host-without-token", host=self.host[:80])
        if self.backend == "replicate":
            self.require_replicate()

    def require_replicate(self) -> tuple[Secret, str]:
        """Return Replicate's token and the model's version there.

        Raises:
            SettingsError: one of them is missing, or the version is not one.
        """
        if self.replicate_token is None:
            raise SettingsError("settings-replicate-without-token")
        if self.replicate_version is None or not VERSION.fullmatch(self.replicate_version):
            raise SettingsError("settings-replicate-without-version")
        return self.replicate_token, self.replicate_version


def _read_backend(given: Mapping[str, str]) -> BackendName:
    name = "TILEMIX_STUDIO_BACKEND"
    typed = given.get(name, BACKENDS[0])
    for backend in BACKENDS:
        if typed == backend:
            return backend
    raise SettingsError("settings-unknown-choice", name=name, typed=typed[:40], known=", ".join(BACKENDS))


def _read_integer(given: Mapping[str, str], name: str, default: int, limits: tuple[int, int]) -> int:
    text = given.get(name)
    if text is None:
        return default
    low, high = limits
    if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
        raise SettingsError("settings-not-an-integer", name=name, typed=text[:40], low=low, high=high)
    return int(text)


def _read_token(given: Mapping[str, str], name: str) -> Secret | None:
    text = given.get(name)
    if text is None:
        return None
    if not TOKEN.fullmatch(text):
        raise SettingsError("settings-bad-token", name=name)
    return Secret(text)


def _read_networks(given: Mapping[str, str], name: str) -> tuple[str, ...]:
    networks = tuple(text.strip() for text in given.get(name, "").split(",") if text.strip())
    for text in networks:
        try:
            ipaddress.ip_network(text)
        except ValueError:
            raise SettingsError("settings-bad-network", name=name, typed=text[:60]) from None
    return networks


def _read_url(given: Mapping[str, str], name: str, schemes: tuple[str, ...]) -> str | None:
    text = given.get(name)
    if text is None:
        return None
    try:
        parts = urlsplit(text)
        is_good = parts.scheme in schemes and bool(parts.hostname) and parts.username is None
        is_good = (
            is_good and not parts.query and not parts.fragment and (parts.port is None or parts.port > 0)
        )
    except ValueError:
        is_good = False
    if not is_good:
        raise SettingsError("settings-bad-url", name=name, schemes=", ".join(schemes))
    return text.rstrip("/")
