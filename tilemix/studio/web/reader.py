"""The reader's language and theme, the session, and the static files of the page."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from tilemix.errors import RefusalError, RequestError
from tilemix.studio.addresses import group_address
from tilemix.studio.form_data import open_form
from tilemix.studio.sessions import SESSION_COOKIE, SESSION_SECONDS
from tilemix.studio.web.rendering import IMMUTABLE

if TYPE_CHECKING:
    from starlette.requests import Request

    from tilemix.studio.sessions import Sessions
    from tilemix.studio.settings import Settings
    from tilemix.studio.web.rendering import PageRenderer

YEAR_SECONDS = 365 * 86_400
THEMES = ("auto", "light", "dark")
MAX_FIELDS = 4
MAX_FIELD_BYTES = 2 * 2**10


class ReaderPages:
    """Cookies and static files."""

    def __init__(self, settings: Settings, sessions: Sessions, renderer: PageRenderer) -> None:
        self._settings = settings
        self._sessions = sessions
        self._renderer = renderer

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/reader", self.set_reader, methods=["POST"], include_in_schema=False),
            Route("/login", self.login_form, methods=["GET"], include_in_schema=False),
            Route("/login", self.login, methods=["POST"], include_in_schema=False),
            Route("/logout", self.logout, methods=["POST"], include_in_schema=False),
            Route("/static/{name}", self.static, methods=["GET"], include_in_schema=False),
        ]

    async def set_reader(self, request: Request) -> Response:
        """Store the reader's language or theme in a cookie, and redirect back."""
        async with open_form(request, fields=MAX_FIELDS, field_bytes=MAX_FIELD_BYTES) as data:
            answer = RedirectResponse(_local(data.get("next")), 303)
            for name, known in (("language", self._renderer.languages), ("theme", THEMES)):
                if (value := data.get(name)) is not None:
                    if value not in known:
                        raise RequestError(
                            "input-unknown-choice",
                            field=name,
                            typed=str(value)[:40],
                            known=", ".join(known),
                        )
                    self._set_cookie(request, answer, name, str(value), seconds=YEAR_SECONDS, samesite="lax")
        return answer

    async def login_form(self, request: Request) -> Response:
        """Show the login form."""
        goal = _local(request.query_params.get("next"))
        return self._renderer.render(request, "login.html", next=goal, is_wrong=False)

    async def login(self, request: Request) -> Response:
        """Check the token and start a session."""
        async with open_form(request, fields=MAX_FIELDS, field_bytes=MAX_FIELD_BYTES) as data:
            goal, typed = _local(data.get("next")), data.get("token", "")
        if self._settings.token is not None:
            address = group_address(request.client.host if request.client is not None else "")
            if not (isinstance(typed, str) and self._sessions.check_token(typed, address)):
                return self._renderer.render(request, "login.html", status=401, next=goal, is_wrong=True)
            answer = RedirectResponse(goal, 303)
            value = await run_in_threadpool(self._sessions.begin)
            self._set_cookie(
                request, answer, SESSION_COOKIE, value, seconds=SESSION_SECONDS, samesite="strict"
            )
            return answer
        return RedirectResponse(goal, 303)

    async def logout(self, request: Request) -> Response:
        """End the session, here and wherever its cookie went."""
        if (value := request.cookies.get(SESSION_COOKIE)) is not None:
            await run_in_threadpool(self._sessions.end, value)
        answer = RedirectResponse("/login", 303)
        self._set_cookie(request, answer, SESSION_COOKIE, "", seconds=0, samesite="strict")
        return answer

    async def static(self, request: Request) -> Response:
        """Serve the style sheet, the script and the icons; their addresses contain their hashes."""
        file = self._renderer.assets.get(request.path_params["name"])
        if file is None:
            raise RefusalError("studio-nothing-here", status=404)
        return Response(file.content, media_type=file.media_type, headers=IMMUTABLE)

    def _set_cookie(
        self,
        request: Request,
        answer: Response,
        name: str,
        value: str,
        *,
        seconds: int,
        samesite: Literal["lax", "strict"],
    ) -> None:
        public = self._settings.public_url
        behind_tls = public is not None and urlsplit(public).netloc == request.headers.get("host")
        answer.set_cookie(
            name,
            value,
            max_age=seconds,
            httponly=True,
            samesite=samesite,
            secure=behind_tls or request.url.scheme == "https",
        )


def _local(goal: object) -> str:
    """Return the next page if it is one of ours, else "/": a link must not lead to another site."""
    if not isinstance(goal, str) or not goal.startswith("/") or goal.startswith("//") or "\\" in goal:
        return "/"
    return goal if goal.isascii() and goal.isprintable() else "/"
