"""What every request must pass before it is served, and the headers of every answer.

* On loopback, the `Host` must be ours. Another name for 127.0.0.1 means DNS rebinding: a page elsewhere reads along.
* If a token is set, a request needs it, or the session that a person got for it. A browser without either is sent
  to the login page. Webhooks have their own authentication.
* Changes must not come from a page of another origin.
* Each address may make so many changes and guesses a minute, and no body may be larger than a form, or a picture where
  one is dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import RedirectResponse

from tilemix.errors import Message, RefusalError
from tilemix.studio.addresses import group_address
from tilemix.studio.limits import CHANGES_A_MINUTE
from tilemix.studio.negotiation import prefers
from tilemix.studio.sessions import SESSION_COOKIE

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.responses import Response
    from starlette.types import ASGIApp, Receive, Scope, Send
    from starlette.types import Message as Event

    from tilemix.studio.limits import RateLimit
    from tilemix.studio.sessions import Sessions
    from tilemix.studio.settings import Settings

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
OPEN_PATHS = ("/webhooks/", "/health")  # open to everybody: they need no token
LOGIN_PATHS = ("/login", "/static/")  # what a person sees before the token is typed
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
MAX_FORM_BYTES = 256 * 2**10
PICTURE_PATH = "/from-picture"
MAX_PICTURE_BYTES = 12 * 2**20  # a picture that a person drops on the page, with its form
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; form-action 'self'; base-uri 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Guard:
    """The middleware; `refuse` makes the answer for a request that does not pass."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: Settings,
        sessions: Sessions,
        rate_limit: RateLimit,
        refuse: Callable[..., Response],
    ) -> None:
        self._app = app
        self._make_refusal = refuse
        self._has_token = settings.token is not None
        self._sessions = sessions
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
        most = MAX_PICTURE_BYTES if scope["path"] == PICTURE_PATH else MAX_FORM_BYTES
        limited = receive if is_webhook else _limit(receive, most)
        app = self._app if refusal is None else refusal
        await app(scope, limited, send_with_headers)

    def _refuse(self, scope: Scope) -> Response | None:
        request = Request(scope)
        headers, path = request.headers, scope["path"]
        host = headers.get("host", "")
        if self._hosts is not None and _hostname(host) not in self._hosts:
            return self._make_refusal(request, Message("studio-wrong-host", {"host": host[:80]}), 421)
        address = group_address(scope["client"][0] if scope.get("client") else "")
        is_open = path.startswith(OPEN_PATHS)
        try:
            if not (is_open or path.startswith(LOGIN_PATHS) or self._is_known(request, address)):
                return self._ask_for_token(request)
        except RefusalError as error:
            return self._make_refusal(request, error.message, error.status, {"Retry-After": "10"})
        if scope["method"] in SAFE_METHODS or is_open:
            return None
        origin = headers.get("origin")
        site = headers.get("sec-fetch-site", "same-origin")
        is_foreign = origin is not None and _netloc(origin) not in self._netlocs | {host}
        if is_foreign or site not in {"same-origin", "none"}:
            message = Message("studio-foreign-origin", {"origin": (origin or site)[:80]})
            return self._make_refusal(request, message, 403)
        if not self._rate_limit.take(address):
            message = Message("studio-too-many-changes", {"most": CHANGES_A_MINUTE})
            return self._make_refusal(request, message, 429, {"Retry-After": "5"})
        return None

    def _is_known(self, request: Request, address: str) -> bool:
        if not self._has_token or self._sessions.holds(request.cookies.get(SESSION_COOKIE, "")):
            return True
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        return scheme == "Bearer" and self._sessions.check_token(given, address)

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
