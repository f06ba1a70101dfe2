"""The endpoints of the inbox: `POST /webhooks/replicate` and `POST /webhooks/cog`.

Each endpoint has its own authentication. A bad delivery gets 400, 401 or 413, which senders take as final. A failure
on our side gets 503 within five seconds, so that they try again. 2xx means committed.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tilemix.errors import DeliveryError, Message, RefusalError, StoreDownError
from tilemix.studio.inbox import MAX_BODY_BYTES, Arrival
from tilemix.studio.predictions import ID
from tilemix.studio.signatures import SignedHeaders, check_address_key, check_bearer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tilemix.studio.service import Studio
    from tilemix.studio.settings import BackendName

    Endpoint = Callable[[Request], Awaitable[JSONResponse]]

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5
STORE_SECONDS = 4.5


def webhook_routes(studio: Studio) -> list[Route]:
    """Return the inbox's endpoints."""

    async def from_replicate(request: Request) -> JSONResponse:
        signed = SignedHeaders.parse(request.headers.raw)
        body = await _read_body(request)
        await run_in_threadpool(studio.keyring.verify, signed, body)
        await _store(request, "replicate", body, signed.id)
        return JSONResponse({})

    async def from_cog(request: Request) -> JSONResponse:
        if (key := studio.settings.cog_webhook_key) is not None:
            query = request.query_params
            check_address_key(query.get("key", ""), key, query.get("prediction", ""))
        else:
            check_bearer(request.headers.raw, studio.settings.cog_webhook_token)
        await _store(request, "cog", await _read_body(request), None)
        return JSONResponse({})

    async def _store(request: Request, source: BackendName, body: bytes, webhook_id: str | None) -> None:
        named = request.query_params.get("prediction", "")
        prediction_id = named if ID.fullmatch(named) else None
        arrival = Arrival(source=source, body=body, webhook_id=webhook_id, prediction_id=prediction_id)
        async with asyncio.timeout(STORE_SECONDS):
            await asyncio.wrap_future(studio.receive(arrival))

    async def replicate(request: Request) -> JSONResponse:
        return await _answer(request, from_replicate)

    async def cog(request: Request) -> JSONResponse:
        return await _answer(request, from_cog)

    return [
        Route("/webhooks/replicate", replicate, methods=["POST"]),
        Route("/webhooks/cog", cog, methods=["POST"]),
    ]


async def _answer(request: Request, endpoint: Endpoint) -> JSONResponse:
    try:
        return await endpoint(request)
    except (StoreDownError, TimeoutError) as error:
        logger.warning("%s: a delivery could not be stored: %s", request.url.path, error or "no time left")
    except RefusalError as error:
        logger.warning("%s: refused: %s", request.url.path, error)
        return _refuse(error.message, error.status)
    except ClientDisconnect:
        raise
    except Exception:  # the edge: whatever it was, the sender must try again
        logger.exception("%s: a delivery could not be stored", request.url.path)
    return _refuse(Message("delivery-not-stored", {}), 503)


def _refuse(message: Message, status: int) -> JSONResponse:
    headers = {"Retry-After": str(RETRY_SECONDS)} if status == 503 else None
    return JSONResponse({"error": message.describe()}, status, headers=headers)


async def _read_body(request: Request) -> bytes:
    """Return the raw body; refuse one that is too large, announced or not."""
    announced = request.headers.get("content-length", "0")
    body = bytearray()
    if not (announced.isascii() and announced.isdigit() and int(announced[:20]) > MAX_BODY_BYTES):
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_BODY_BYTES:
                break
        else:
            return bytes(body)
    raise DeliveryError("studio-body-too-large", status=413, most=MAX_BODY_BYTES)
