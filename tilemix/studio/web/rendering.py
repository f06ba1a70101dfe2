"""Renders pages from templates, words and static files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse, JSONResponse, Response

from tilemix import __version__
from tilemix.studio.negotiation import choose_language, prefers
from tilemix.studio.web.messages import explain
from tilemix.studio.web.words import LANGUAGES, Words, load_words

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request

    from tilemix.errors import Message

PAGES = Path(__file__).parent / "pages"
ASSETS = {
    "style.css": "text/css; charset=utf-8",
    "script.js": "text/javascript; charset=utf-8",
    "icons.svg": "image/svg+xml",
    "logo.svg": "image/svg+xml",
}
PROGRAM_PATHS = ("/api/", "/files/", "/webhooks/", "/health", "/openapi.json")
HASH_DIGITS = 16
IMMUTABLE = {"Cache-Control": "private, max-age=31536000, immutable"}  # the address depends on the content


class Asset(NamedTuple):
    """A static file for the browser."""

    content: bytes
    media_type: str
    address: str  # contains the content's hash, so that browsers may cache it for ever


class PageRenderer:
    """Renders templates for a reader; `is_guarded` means that there is a session to log out of."""

    languages = LANGUAGES

    def __init__(self, *, model: str, is_guarded: bool) -> None:
        self.assets = {name: _read_asset(name, media_type) for name, media_type in ASSETS.items()}
        self._environment = Environment(
            loader=FileSystemLoader(PAGES),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.globals.update(
            asset={name: asset.address for name, asset in self.assets.items()},
            languages={code: words("language_name") for code, words in load_words().items()},
            version=__version__,
            model_name=model,
            is_guarded=is_guarded,
        )

    def words(self, request: Request) -> Words:
        """Return the words in the language that the reader chose, or else in the browser's."""
        chosen = request.cookies.get("language")
        if chosen not in LANGUAGES:
            chosen = choose_language(request.headers.get("accept-language", ""), LANGUAGES)
        return load_words()[chosen]

    def render(self, request: Request, template: str, *, status: int = 200, **values: Any) -> HTMLResponse:
        """Render a page."""
        words = self.words(request)
        theme = request.cookies.get("theme", "")
        content = self._environment.get_template(template).render(
            t=words,
            number=words.number,
            percent=words.percent,
            theme=theme if theme in {"light", "dark"} else "auto",
            path=request.scope["path"],
            here=address_of(request) if request.method in {"GET", "HEAD"} else "/",
            **values,
        )
        headers = {"Cache-Control": "no-store", "Vary": "Accept-Language, Cookie"}
        return HTMLResponse(content, status, headers=headers)

    def refuse(
        self, request: Request, message: Message, status: int, headers: Mapping[str, str] | None = None
    ) -> Response:
        """Return an error: a page for a browser, JSON for a program."""
        is_program = request.scope["path"].startswith(PROGRAM_PATHS)
        if is_program or not prefers(request.headers.get("accept", ""), "text/html"):
            return JSONResponse({"error": message.describe()}, status, headers=headers)
        error = explain(message, self.words(request))
        answer = self.render(request, "error.html", status=status, code=status, error=error)
        answer.headers.update(headers or {})
        return answer


def address_of(request: Request) -> str:
    """Return the path and query of a request, independent of its Host header."""
    query = request.scope["query_string"].decode("latin-1")
    return quote(request.scope["path"]) + (f"?{query}" if query else "")


def _read_asset(name: str, media_type: str) -> Asset:
    content = (PAGES / name).read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:HASH_DIGITS]
    return Asset(content, media_type, f"/static/{name}?{digest}")
