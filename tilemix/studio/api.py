"""The API for other programs; `openapi.json` beside this module describes it.

`POST /api/generate-image` waits for the picture and gives up if the back end draws nothing: after a 503 the picture
will not be drawn, and the caller may try again. `POST /api/predictions` does not wait; `GET /api/predictions/ID`
returns the state. A prediction that it accepted is drawn once the back end is back.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from tilemix.errors import LIST_SEPARATOR, Message, RefusalError, RequestError
from tilemix.inputs import IntegerInput
from tilemix.studio.form_data import open_form
from tilemix.studio.gallery import MAX_SEARCH_CHARACTERS, MOST_ON_A_PAGE
from tilemix.studio.negotiation import prefers
from tilemix.studio.predictions import CANCELED
from tilemix.studio.web.api_inputs import read_form, read_inputs

if TYPE_CHECKING:
    from tilemix.colors.palette import Palette
    from tilemix.request import GenerationRequest
    from tilemix.studio.service import Studio

OPENAPI = Path(__file__).parent / "openapi.json"
POLL_SECONDS = 0.2
RETRY_SECONDS = 30  # about as long as a Cog server takes to start
PAGE_SIZE = 20
LIMIT = IntegerInput(
    name="limit", description="The most predictions in one answer", minimum=1, maximum=MOST_ON_A_PAGE
)
FORM_TYPES = ("multipart/form-data", "application/x-www-form-urlencoded")
MAX_FIELDS = 20
MAX_FIELD_BYTES = 64 * 2**10
CANCELED_ERROR = Message("prediction-canceled", {}).describe()
# A back end may be away for so many seconds, for example during a restart, before callers hear of it.
GRACE = 10.0
EXTRA_SECONDS = 30  # beyond the deadline, for fetching the picture


def api_routes(studio: Studio) -> list[Route]:
    """Return the API's endpoints."""
    gallery = studio.gallery
    document = describe_api(studio.palette)

    async def generate_image(request: Request) -> Response:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in FORM_TYPES:
            if not kind:
                raise RequestError("input-without-type", expected=FORM_TYPES[0])
            raise RequestError("input-not-form", type=kind[:40], expected=FORM_TYPES[0])
        async with open_form(
            request, files=MAX_FIELDS, fields=MAX_FIELDS, field_bytes=MAX_FIELD_BYTES
        ) as form:
            wanted = read_form(form.multi_items(), model=studio.settings.model)
        identity = await run_in_threadpool(studio.ask_for, wanted)
        if not await _wait(identity):
            return JSONResponse(await _find(identity), 503, headers={"Retry-After": str(RETRY_SECONDS)})
        found = await _find(identity)
        if not found["is_done"]:
            return JSONResponse(found, 202, headers={"Location": f"/api/predictions/{identity}"})
        if found["url"] is None:
            if found["status"] == CANCELED:
                return JSONResponse({**found, "error": found["error"] or CANCELED_ERROR}, 409)
            return JSONResponse(found, 502)
        if prefers(request.headers.get("accept", ""), "image/png"):
            return await _send_file(identity)
        return JSONResponse(found)

    async def create(request: Request) -> Response:
        wanted: GenerationRequest = read_inputs(await request.body())
        identity = await run_in_threadpool(studio.ask_for, wanted)
        found = await run_in_threadpool(gallery.find, identity)
        return JSONResponse(found, 201, headers={"Location": f"/api/predictions/{identity}"})

    async def get(request: Request) -> Response:
        return JSONResponse(await _find(request.path_params["identity"]))

    async def cancel(request: Request) -> Response:
        identity = request.path_params["identity"]
        if not await run_in_threadpool(studio.queue.cancel, identity):
            raise RefusalError("studio-no-such-prediction", status=404)
        return JSONResponse(await _find(identity))

    async def search(request: Request) -> Response:
        query = request.query_params
        color = _read_search("color", query.get("color")) or None
        if color is not None:
            color = await run_in_threadpool(gallery.find_color, color, studio.palette)
        found = await gallery.search(
            limit=_read_limit(query.get("limit")),
            before=_read_search("before", query.get("before")),
            color=color,
            text=_read_search("text", query.get("text")),
        )
        return JSONResponse({"predictions": found})

    async def file(request: Request) -> Response:
        return await _send_file(request.path_params["identity"])

    async def _find(identity: str) -> dict[str, Any]:
        found = await run_in_threadpool(gallery.find, identity)
        if found is None:
            raise RefusalError("studio-no-such-prediction", status=404)
        return found

    async def _wait(identity: str) -> bool:
        """Wait for a prediction's end or its deadline; return False if it was withdrawn."""
        began = studio.clock.monotonic()
        until = began + studio.settings.deadline_seconds + EXTRA_SECONDS
        while not (await _find(identity))["is_done"] and (now := studio.clock.monotonic()) < until:
            # Only after the queue has had time to look at the back end for this one, too.
            is_patient = now - began < GRACE
            fault = None if is_patient else studio.queue.find_fault(lasting=GRACE)
            if fault is not None and await run_in_threadpool(studio.queue.withdraw, identity, fault):
                return False
            await asyncio.sleep(POLL_SECONDS)
        return True

    async def _send_file(identity: str) -> Response:
        found = await run_in_threadpool(gallery.find_file, identity)
        if found is None:
            raise RefusalError("studio-no-such-picture", status=404)
        name, media_type = found
        path = studio.pictures / name
        if not path.is_file():
            raise RefusalError("studio-picture-removed", status=410)
        # The file name is our own. The URL holds the id, so its content never changes.
        return FileResponse(
            path,
            media_type=media_type,
            filename=f"tile-{name}",
            content_disposition_type="inline",
            headers={"Cache-Control": "private, max-age=31536000, immutable"},
        )

    async def openapi(_: Request) -> Response:
        return JSONResponse(document)

    return [
        Route("/api/generate-image", generate_image, methods=["POST"]),
        Route("/api/predictions", create, methods=["POST"]),
        Route("/api/predictions", search, methods=["GET"]),
        Route("/api/predictions/{identity}", get, methods=["GET"]),
        Route("/api/predictions/{identity}/cancel", cancel, methods=["POST"]),
        Route("/files/{identity}", file, methods=["GET"]),
        Route("/openapi.json", openapi, methods=["GET"]),
    ]


def describe_api(palette: Palette | None) -> dict[str, Any]:
    """Return the OpenAPI document for a model, with the colors that it draws."""
    document: dict[str, Any] = msgspec.json.decode(OPENAPI.read_bytes())
    if palette is not None:
        colors = f" Colors of this model: {LIST_SEPARATOR.join(color.word for color in palette.colors)}."
        schemas = document["components"]["schemas"]
        search = document["paths"]["/api/predictions"]["get"]["parameters"]
        prompts = [schemas[name]["properties"]["prompt"] for name in ("Form", "Inputs")]
        for described in (*prompts, *(each for each in search if each["name"] == "color")):
            described["description"] += colors
    return document


def _read_limit(text: str | None) -> int:
    if text is None:
        return PAGE_SIZE
    limit = LIMIT.read(text)
    LIMIT.check(limit)
    return limit


def _read_search(name: str, text: str | None) -> str | None:
    if text is not None and ("\0" in text or len(text) > MAX_SEARCH_CHARACTERS):
        raise RequestError("input-bad-search", field=name, most=MAX_SEARCH_CHARACTERS)
    return text
