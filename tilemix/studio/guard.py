"""What every request passes before it is served, and what every answer carries.

* The `Host` must be ours while only this machine can reach the studio: another name that leads to 127.0.0.1 is
  a page elsewhere that wants to read along (DNS rebinding).
* Where a token is set, it is asked for; webhooks have authenticators of their own.
* What changes something must not come from a page of another origin.
* So many changes a minute and address, and no body larger than a form.
"""

from __future__ import annotations

import hmac
import threading
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from tilemix.studio.settings import Settings

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
OPEN_PATHS = ("/webhooks/", "/health")  # without the studio's token
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
MAX_FORM_BYTES = 256 * 2**10
CHANGES_A_MINUTE = 60
BURST = 20
MAX_ADDRESSES = 10_000
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; form-action 'self'; base-uri 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class RateLimit:
    """A bucket for each address: `BURST` changes at once, `CHANGES_A_MINUTE` in the long run."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, tuple[float, float]] = {}  # address -> changes left, when counted
        self._turn = threading.Lock()

    def take(self, address: str) -> bool:
        """Return whether this address may change something now, and count it."""
        rate = CHANGES_A_MINUTE / 60
        with self._turn:
            now = self._clock()
            if len(self._buckets) >= MAX_ADDRESSES:
                is_used = {
                    key: left + (now - then) * rate < BURST for key, (left, then) in self._buckets.items()
                }
                self._buckets = {key: value for key, value in self._buckets.items() if is_used[key]}
            left, then = self._buckets.get(address, (float(BURST), now))
            left = min(left + (now - then) * rate, BURST)
            may = left >= 1 and len(self._buckets) < MAX_ADDRESSES
            if may or address in self._buckets:
                self._buckets[address] = (left - 1 if may else left, now)
            return may


class Guard:
    """The middleware."""

    def __init__(self, app: ASGIApp, *, settings: Settings, rate_limit: RateLimit) -> None:
        self._app = app
        self._token = settings.token
        self._rate_limit = rate_limit
        public = [urlsplit(settings.public_url)] if settings.public_url else []
        self._netlocs = {url.netloc for url in public}
        # With others able to reach it there is a token, which a page elsewhere does not have.
        hosts = LOOPBACK_HOSTS | {settings.host} | {url.hostname for url in public}
        self._hosts = hosts if settings.is_loopback else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or serve it and add the headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refuse(scope)
        is_webhook = scope["path"].startswith("/webhooks/")
        limited = receive if is_webhook else _limit(receive, MAX_FORM_BYTES)
        app = self._app if refusal is None else refusal
        await app(scope, limited, send_with_headers)

    def _refuse(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._hosts is not None and _hostname(host) not in self._hosts:
            return _refusal(421, f"this studio is not {host[:80]!r}")
        is_open = scope["path"].startswith(OPEN_PATHS)
        if self._token is not None and not is_open:
            expected = f"Bearer {self._token.reveal()}".encode()
            given = headers.get("authorization", "").encode("latin-1")
            if not hmac.compare_digest(given, expected):
                return _refusal(
                    401, "the bearer token is missing or is not ours", {"WWW-Authenticate": "Bearer"}
                )
        if scope["method"] in SAFE_METHODS or is_open:
            return None
        origin = headers.get("origin")
        is_foreign = origin is not None and urlsplit(origin).netloc not in self._netlocs | {host}
        if is_foreign or headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
            return _refusal(403, "changes are taken from the studio's own pages only")
        address = scope["client"][0] if scope.get("client") else ""
        if not self._rate_limit.take(address):
            return _refusal(429, f"more than {CHANGES_A_MINUTE} changes a minute", {"Retry-After": "5"})
        return None


def _refusal(status: int, error: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": error}, status, headers=headers)


def _hostname(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _limit(receive: Receive, most: int) -> Receive:
    count = 0

    async def receive_limited() -> Message:
        nonlocal count
        message = await receive()
        count += len(message.get("body", b""))
        if count > most:
            raise HTTPException(413, f"the body has more than {most} bytes")
        return message

    return receive_limited
