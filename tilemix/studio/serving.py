"""The HTTP server round the application: uvicorn, with bounds on connections and on the time that they may take.

uvicorn waits for a request's head as long as the client likes, and takes connections until no descriptor is left. Here
a head must come in ten seconds and an answer must be taken, in pieces, in thirty each. When too many are connected, in
all or from one address, the connection goes that has waited longest for its request. So who opens connections and says
nothing shuts out nobody else.
"""

from __future__ import annotations

import asyncio
import collections
import resource
from typing import TYPE_CHECKING, Any, ClassVar

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tilemix.studio.addresses import Proxies, group_address

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from tilemix.studio.settings import Settings

MOST_CONNECTIONS = 1000
DESCRIPTORS_LEFT = 300  # for the database, files and the back end
WANTED_DESCRIPTORS = 4096
HEAD_SECONDS = 10.0
WRITE_SECONDS = 30.0
SHUTDOWN_SECONDS = 3  # a caller may be waiting for a picture


class Connections:
    """All connections of a server. An address may have half of them, a trusted proxy all."""

    def __init__(self, most: int, proxies: Proxies) -> None:
        self._most = most
        self._proxies = proxies
        self._silent: dict[BoundedProtocol, str] = {}  # without a request, and from where; the longest first
        self._counts: collections.Counter[str] = collections.Counter()

    def open(self, protocol: BoundedProtocol, address: str) -> None:
        """Count a new connection, and end the one that must make room for it."""
        self._counts[address] += 1
        self._silent[protocol] = address
        has_too_many = self._counts[address] > self._most // 2 and address not in self._proxies
        if has_too_many or self._counts.total() > self._most:
            waiting = (each for each, of in self._silent.items() if of == address or not has_too_many)
            ended = next(waiting)  # at the worst the new one
            del self._silent[ended]
            ended.transport.abort()

    def close(self, protocol: BoundedProtocol, address: str) -> None:
        """Forget a connection."""
        self._silent.pop(protocol, None)
        self._counts[address] -= 1
        if not self._counts[address]:
            del self._counts[address]

    def note_request(self, protocol: BoundedProtocol) -> None:
        """A request has come whole, as far as its head."""
        self._silent.pop(protocol, None)

    def note_answer(self, protocol: BoundedProtocol, address: str) -> None:
        """It was answered; the connection waits for the next one."""
        self._silent[protocol] = address


class BoundedProtocol(H11Protocol):
    """One connection."""

    everyone: ClassVar[Connections]
    _address = ""
    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _is_served = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._address = group_address(self.client[0] if self.client else "")
        self._wait_for_head()
        self.everyone.open(self, self._address)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all timers."""
        for timer in (self._head_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self.everyone.close(self, self._address)
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Take what has come; note when that was a request's head."""
        super().handle_events()
        if not self._is_served and self.cycle is not None and not self.cycle.response_complete:
            self._is_served = True
            if self._head_timer is not None:
                self._head_timer.cancel()
            self.everyone.note_request(self)

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        self._is_served = False
        if not self.transport.is_closing():
            self._wait_for_head()
            self.everyone.note_answer(self, self._address)
        super().on_response_complete()

    def pause_writing(self) -> None:
        """The client takes its answer too slowly."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """It has taken a piece."""
        if self._write_timer is not None:
            self._write_timer.cancel()
        super().resume_writing()

    def _wait_for_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.abort)


def make_config(app: ASGIApp, settings: Settings, **changes: Any) -> uvicorn.Config:
    """Return how uvicorn serves an application at the settings' host and port."""

    class Protocol(BoundedProtocol):
        everyone = Connections(count_connections(), Proxies(settings.proxies))

    return uvicorn.Config(
        app,
        **{
            "host": settings.host,
            "port": settings.port,
            "http": Protocol,
            "ws": "none",
            "log_config": None,
            "access_log": False,
            "server_header": False,
            "proxy_headers": False,
            "timeout_graceful_shutdown": SHUTDOWN_SECONDS,
            **changes,
        },
    )


def count_connections() -> int:
    """Return how many connections the descriptors of this process allow, after taking more where that is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < WANTED_DESCRIPTORS:
        soft = WANTED_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, WANTED_DESCRIPTORS)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return min(MOST_CONNECTIONS, max(soft - DESCRIPTORS_LEFT, soft // 2))
