"""Bounds what clients send: the bytes of all bodies that are in memory at one time, and how long a body may take.

A body counts from its first byte until its request is answered. One address may have half of all.
"""

from __future__ import annotations

import asyncio
import collections
from typing import TYPE_CHECKING

from tilemix.errors import RefusalError
from tilemix.studio.addresses import group_address

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send
    from starlette.types import Message as Event

MOST_BYTES = 32 * 2**20
BODY_SECONDS = 30.0
PIECE_SECONDS = 10.0


class Bodies:
    """The middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._held: collections.Counter[str] = collections.Counter()  # bytes, by address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request whose body is counted and timed as it comes."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        address = group_address(scope["client"][0] if scope.get("client") else "")
        until = asyncio.get_running_loop().time() + BODY_SECONDS
        own, has_more = 0, True

        async def receive_bounded() -> Event:
            nonlocal own, has_more
            if not has_more:  # now the application waits for the client to hang up
                return await receive()
            try:
                left = until - asyncio.get_running_loop().time()
                async with asyncio.timeout(min(PIECE_SECONDS, left)):
                    message = await receive()
            except TimeoutError:
                raise RefusalError("studio-body-too-slow", status=408) from None
            size = len(message.get("body", b""))
            if self._held[address] + size > MOST_BYTES // 2 or self._held.total() + size > MOST_BYTES:
                raise RefusalError("studio-too-much-at-once", status=503)
            own += size
            self._held[address] += size
            has_more = message.get("more_body", False)
            return message

        try:
            await self._app(scope, receive_bounded, send)
        finally:
            self._held[address] -= own
            if not self._held[address]:
                del self._held[address]
