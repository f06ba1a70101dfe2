"""The studio as an ASGI application: page, webhook inbox, API and files, all behind the guard."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from tilemix.errors import InputError, Message, RefusalError, StoreDownError
from tilemix.studio.api import api_routes
from tilemix.studio.bodies import Bodies
from tilemix.studio.guard import HEADERS, Guard
from tilemix.studio.limits import RateLimit
from tilemix.studio.web.page import page_routes
from tilemix.studio.web.rendering import PageRenderer
from tilemix.studio.webhooks import RETRY_SECONDS, webhook_routes

if TYPE_CHECKING:
    from starlette.requests import Request

    from tilemix.studio.service import Studio


def create_app(studio: Studio, *, rate_limit: RateLimit | None = None) -> Starlette:
    """Return the application for a studio; the caller starts and stops the studio."""

    def look() -> dict[str, Any]:
        faults = studio.faults.all()
        try:
            with studio.database.read() as session:
                session.execute(text("SELECT 1"))
        except StoreDownError as error:
            faults["database"] = error.message
        else:
            if (fault := studio.database.find_fault()) is not None:
                faults["database"] = fault.message
        backend = "ready" if studio.backend.is_ready() else "not ready"
        return {
            "status": "degraded" if faults else "ok",
            "database": str(faults.get("database", "ok")),
            "backend": f"{studio.backend.name}: {backend}",
            "faults": {part: message.describe() for part, message in faults.items()},
        }

    async def health(_: Request) -> JSONResponse:
        found = await run_in_threadpool(look)
        return JSONResponse(found, 200 if found["status"] == "ok" else 503)

    renderer = PageRenderer(model=studio.settings.model, is_guarded=studio.settings.token is not None)

    async def refuse(request: Request, error: Exception) -> Response:
        if isinstance(error, RefusalError | InputError):
            status = error.status if isinstance(error, RefusalError) else 422
            headers = {"Retry-After": str(RETRY_SECONDS)} if status in {429, 503} else None
            return renderer.refuse(request, error.message, status, headers)
        assert isinstance(error, HTTPException)  # of Starlette: its router and its form parser
        return renderer.refuse(request, _name_refusal(request, error), error.status_code, error.headers)

    async def apologize(request: Request, _: Exception) -> Response:
        # Starlette raises the exception once more after this answer, and uvicorn logs it. The answer does not pass
        # the guard.
        return renderer.refuse(request, Message("studio-broken", {}), 500, HEADERS)

    guard = Middleware(
        Guard,
        settings=studio.settings,
        sessions=studio.sessions,
        rate_limit=rate_limit or RateLimit(studio.clock.monotonic),
        refuse=renderer.refuse,
    )
    # Without a trusted proxy it changes nothing.
    proxied = Middleware(ProxyHeadersMiddleware, trusted_hosts=list(studio.settings.proxies))
    return Starlette(
        routes=[
            *webhook_routes(studio),
            *api_routes(studio),
            Route("/health", health, methods=["GET"]),
            *page_routes(studio, renderer),
        ],
        middleware=[proxied, guard, Middleware(Bodies)],
        exception_handlers={
            **dict.fromkeys((InputError, RefusalError, HTTPException), refuse),
            Exception: apologize,
        },
    )


def _name_refusal(request: Request, error: HTTPException) -> Message:
    if error.status_code == 404:
        return Message("studio-nothing-here", {})
    if error.status_code == 405:
        return Message("studio-wrong-method", {"method": request.method[:40]})
    return Message("input-bad-form", {"reason": error.detail})
