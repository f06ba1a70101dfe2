"""The studio's web page: HTML rendered from `pages/`. It works without JavaScript and better with it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.routing import Route

from tilemix.studio.model_files import ModelFiles
from tilemix.studio.web.messages import explain_data
from tilemix.studio.web.mixer import MixerPage
from tilemix.studio.web.reader import ReaderPages
from tilemix.studio.web.results import ResultPages

if TYPE_CHECKING:
    from starlette.requests import Request

    from tilemix.studio.service import Studio
    from tilemix.studio.web.rendering import PageRenderer


def page_routes(studio: Studio, renderer: PageRenderer) -> list[Route]:
    """Return all routes of the page."""
    settings = studio.settings
    model_files = ModelFiles(settings.model, settings.folder / "model-files.json", studio.root)

    async def models(request: Request) -> Response:
        entries = await run_in_threadpool(model_files.list_entries)
        return renderer.render(
            request,
            "models.html",
            entries=entries,
            explain=partial(explain_data, words=renderer.words(request)),
            model=settings.model,
            prompt_template=studio.template,
        )

    return [
        *MixerPage(studio, renderer).routes(),
        *ResultPages(studio, renderer).routes(),
        *ReaderPages(settings, studio.sessions, renderer).routes(),
        Route("/models", models, methods=["GET"], include_in_schema=False),
    ]
