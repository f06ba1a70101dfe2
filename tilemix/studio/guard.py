"""What every request must pass before it is served, and the headers of every answer.

* On loopback, the `Host` must be ours. Another name for 127.0.0.1 means DNS rebinding: a page elsewhere reads along.
* If a token is set, a request needs it, or the session that a person got for it. A browser without either is sent
  to the login page. Webhooks have their own authentication.
* Changes must not come from a page of another origin.
* Each address may make so many changes a minute, and no body may be larger than a form.
"""

from __future__ import annotations

import hmac
import threading
import time
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import RedirectResponse

from tilemix.errors import Message, RefusalError
from tilemix.studio.negotiation import prefers
from tilemix.studio.sessions import SESSION_COOKIE, is_session

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send
    from starlette.types import Message as Event

    from tilemix.studio.settings import Settings

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
OPEN_PATHS = ("/webhooks/", "/health")  # open to everybody: they need no token
LOGIN_PATHS = ("/login", "/static/")  # what a person sees before the token is typed
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
MAX_FORM_BYTES = 256 * 2**10
CHANGES_A_MINUTE = 60
SECONDS_A_CHANGE = 60 / CHANGES_A_MINUTE
ROUNDING = 1e-6  # seconds, of sums of floating-point times
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
    """For each address, `BURST` changes at once and `CHANGES_A_MINUTE` in the long run.

    For each address it keeps one number: when the whole burst will be available again. The clock is monotonic, so
    that setting the system's clock back locks nobody out.

    Source: the generic cell rate algorithm, https://en.wikipedia.org/wiki/Generic_cell_rate_algorithm
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._whole_at: dict[str, float] = {}  # address -> when its whole burst is available
        self._turn = threading.Lock()

    def take(self, address: str) -> bool:
        """Return whether this address may change something now, and count it."""
        with self._turn:
            now = self._clock()
            if len(self._whole_at) >= MAX_ADDRESSES:
                self._whole_at = {key: then for key, then in self._whole_at.items() if then > now}
            whole_at = max(self._whole_at.get(address, now), now) + SECONDS_A_CHANGE
            is_kept = address in self._whole_at or len(self._whole_at) < MAX_ADDRESSES
            if not is_kept or whole_at - now > BURST * SECONDS_A_CHANGE + ROUNDING:
                return False
            self._whole_at[address] = whole_at
            return True


class Guard:
    """The middleware; `refuse` makes the answer for a request that does not pass."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: Settings,
        rate_limit: RateLimit,
        refuse: Callable[..., Response],
    ) -> None:
        self._app = app
        self._make_refusal = refuse
        self._token = settings.token
        self._rate_limit = rate_limit
        public = [urlsplit(settings.public_url)] if settings.public_url else []
        self._netlocs = {url.netloc for url in public}
        # A studio that others can reach has a token, which a page elsewhere does not know.
        hosts = LOOPBACK_HOSTS | {settings.host} | {url.hostname for url in public}
        self._hosts = hosts if settings.is_loopback else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse the request, or serve it and add the headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Event) -> None:
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

    def _refuse(self, scope: Scope) -> Response | None:
        request = Request(scope)
        headers, path = request.headers, scope["path"]
        host = headers.get("host", "")
        if self._hosts is not None and _hostname(host) not in self._hosts:
            return self._make_refusal(request, Message("studio-wrong-host", {"host": host[:80]}), 421)
        is_open = path.startswith(OPEN_PATHS)
        if not (is_open or path.startswith(LOGIN_PATHS) or self._is_known(request)):
            return self._ask_for_token(request)
        if scope["method"] in SAFE_METHODS or is_open:
            return None
        origin = headers.get("origin")
        site = headers.get("sec-fetch-site", "same-origin")
        is_foreign = origin is not None and _netloc(origin) not in self._netlocs | {host}
        if is_foreign or site not in {"same-origin", "none"}:
            message = Message("studio-foreign-origin", {"origin": (origin or site)[:80]})
            return self._make_refusal(request, message, 403)
        address = scope["client"][0] if scope.get("client") else ""
        if not self._rate_limit.take(address):
            message = Message("studio-too-many-changes", {"most": CHANGES_A_MINUTE})
            return self._make_refusal(request, message, 429, {"Retry-After": "5"})
        return None

    def _is_known(self, request: Request) -> bool:
        if self._token is None:
            return True
        expected = f"Bearer {self._token.reveal()}".encode()
        given = request.headers.get("authorization", "").encode("latin-1")
        session = request.cookies.get(SESSION_COOKIE, "")
        return hmac.compare_digest(given, expected) or is_session(session, self._token)

    def _ask_for_token(self, request: Request) -> Response:
        is_page = request.method == "GET" and not request.scope["path"].startswith("/api/")
        if is_page and prefers(request.headers.get("accept", ""), "text/html"):
            query = request.scope["query_string"].decode("latin-1")
            goal = quote(request.scope["path"]) + (f"?{query}" if query else "")
            return RedirectResponse(f"/login?next={quote(goal, safe='')}", 303)
        message = Message("studio-unauthorized", {})
        return self._make_refusal(request, message, 401, {"WWW-Authenticate": "Bearer"})


def _hostname(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:  # such as an IPv6 address without its closing bracket
        return None


def _limit(receive: Receive, most: int) -> Receive:
    count = 0

    async def receive_limited() -> Event:
        nonlocal count
        message = await receive()
        count += len(message.get("body", b""))
        if count > most:
            raise RefusalError("studio-body-too-large", status=413, most=most)
        return message

    return receive_limited
