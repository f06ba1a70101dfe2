"""The pages for results: a single one, the gallery, and two side by side."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, get_args
from urllib.parse import urlencode

from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from tilemix.errors import RefusalError
from tilemix.studio.gallery import MAX_SEARCH_CHARACTERS, Order
from tilemix.studio.thumbnails import read_thumbnail
from tilemix.studio.web.palette import find_swatch, load_swatches
from tilemix.studio.web.rendering import IMMUTABLE
from tilemix.studio.web.views import ResultView, find_result, tell_state

if TYPE_CHECKING:
    from starlette.requests import Request

    from tilemix.studio.service import Studio
    from tilemix.studio.web.rendering import PageRenderer

PAGE_SIZE = 24


class ResultPages:
    """Serves results, the gallery and comparisons."""

    def __init__(self, studio: Studio, renderer: PageRenderer) -> None:
        self._studio = studio
        self._gallery = studio.gallery
        self._renderer = renderer

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            Route("/results/{identity}", self.result, methods=["GET"], include_in_schema=False),
            Route("/results/{identity}/state", self.state, methods=["GET"], include_in_schema=False),
            Route("/results/{identity}/record.json", self.record, methods=["GET"], include_in_schema=False),
            Route("/results/{identity}/cancel", self.cancel, methods=["POST"], include_in_schema=False),
            Route("/results/{identity}/delete", self.delete, methods=["POST"], include_in_schema=False),
            Route("/thumbnails/{identity}", self.thumbnail, methods=["GET"], include_in_schema=False),
            Route("/gallery", self.gallery, methods=["GET"], include_in_schema=False),
            Route("/compare", self.compare, methods=["GET"], include_in_schema=False),
        ]

    async def result(self, request: Request) -> Response:
        """Show one result; the page reloads itself while it is being drawn. `part=card` is for the script."""
        view = await self._need(request)
        template = "card.html" if request.query_params.get("part") == "card" else "result.html"
        state = await tell_state(self._studio, view)
        return self._renderer.render(request, template, view=view, state=state)

    async def state(self, request: Request) -> Response:
        """Return the state of a result, for the script."""
        return JSONResponse(await tell_state(self._studio, await self._need(request)))

    async def record(self, request: Request) -> Response:
        """Download the record of a picture."""
        view = await self._need(request)
        if view.found["record"] is None:
            raise RefusalError("studio-no-such-record", status=404)
        headers = {"Content-Disposition": f'attachment; filename="tile-{view.id}.json"'}
        content = json.dumps(view.found["record"], ensure_ascii=False, indent=2) + "\n"
        return Response(content, media_type="application/json", headers=headers)

    async def cancel(self, request: Request) -> Response:
        """Cancel, and redirect to the result."""
        identity = request.path_params["identity"]
        if not await run_in_threadpool(self._studio.queue.cancel, identity):
            raise RefusalError("studio-no-such-prediction", status=404)
        return RedirectResponse(f"/results/{identity}", 303)

    async def delete(self, request: Request) -> Response:
        """Delete a result whose picture is gone, and redirect to the gallery."""
        if not await run_in_threadpool(self._gallery.delete_gone, request.path_params["identity"]):
            raise RefusalError("studio-nothing-to-delete", status=409)
        return RedirectResponse("/gallery", 303)

    async def thumbnail(self, request: Request) -> Response:
        """Serve a thumbnail."""
        found = await run_in_threadpool(self._gallery.find_file, request.path_params["identity"])
        if found is None:
            raise RefusalError("studio-no-such-picture", status=404)
        folder = self._studio.settings.folder / "thumbnails"
        try:
            content = await run_in_threadpool(read_thumbnail, self._studio.pictures / found[0], folder)
        except OSError:  # gone, or broken since
            raise RefusalError("studio-picture-removed", status=410) from None
        return Response(content, media_type="image/webp", headers=IMMUTABLE)

    async def gallery(self, request: Request) -> Response:
        """Show the pictures, newest first or by the error of their shares, filtered by color and text."""
        query = request.query_params
        words = self._renderer.words(request)
        color, text = _clean(query.get("color", "")), _clean(query.get("text", ""))
        if color:
            color = await run_in_threadpool(self._gallery.find_color, color, self._studio.palette)
        order: Order = "error" if query.get("order") == "error" else "newest"
        found = await self._gallery.search(
            limit=PAGE_SIZE + 1,
            before=_clean(query.get("before", "")) or None,
            color=color or None,
            text=text or None,
            has_picture=True,
            order=order,
        )
        swatches = load_swatches(words.code, self._studio.palette)
        if color and color not in swatches:  # of older pictures
            swatches[color] = find_swatch(color, words.code)
        views = [ResultView(each, words, self._studio.palette) for each in found]
        search = {name: value for name, value in (("color", color), ("text", text)) if value}
        pick = await self._find(request, query["pick"]) if "pick" in query else None
        older = None
        if len(views) > PAGE_SIZE:
            more: dict[str, str] = {} if order == "newest" else {"order": order}
            more |= {"pick": pick.id} if pick is not None else {}
            older = "/gallery?" + urlencode({**search, **more, "before": views[PAGE_SIZE - 1].id})
        return self._renderer.render(
            request,
            "gallery.html",
            views=views[:PAGE_SIZE],
            search={"color": color, "text": text, "order": order},
            orders=get_args(Order),
            is_searched=bool(search),
            is_first="before" not in query,
            older=older,
            pick=pick,
            swatches=swatches,
        )

    async def compare(self, request: Request) -> Response:
        """Show two results side by side, first the one whose shares are nearer to those asked for."""
        wanted = list(dict.fromkeys(request.query_params.getlist("id")))[:3]
        views = [view for identity in wanted if (view := await self._find(request, identity)) is not None]
        views.sort(key=lambda view: math.inf if view.share_error is None else view.share_error)
        is_pair = len(views) == 2 and all(view.url is not None for view in views)
        return self._renderer.render(
            request, "compare.html", status=200 if is_pair else 422, views=views if is_pair else None
        )

    async def _find(self, request: Request, identity: str) -> ResultView | None:
        words = self._renderer.words(request)
        return await find_result(self._gallery, identity, words, self._studio.palette)

    async def _need(self, request: Request) -> ResultView:
        view = await self._find(request, request.path_params["identity"])
        if view is None:
            raise RefusalError("studio-no-such-prediction", status=404)
        return view


def _clean(text: str) -> str:
    return text[:MAX_SEARCH_CHARACTERS].replace("\0", "").strip()
