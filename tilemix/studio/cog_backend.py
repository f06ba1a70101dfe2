"""The back end on this machine: a Cog server."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Any

import httpx
import msgspec

from tilemix.errors import BackendBusyError, BackendDownError, BackendUncertainError, Message
from tilemix.studio.backends import call, name_of, read_answer
from tilemix.studio.predictions import FAILED

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpcore

    from tilemix.studio.predictions import Report
    from tilemix.studio.settings import BackendName

COG = "Cog"  # in messages
DRAWING = frozenset({"READY", "BUSY"})  # a healthy Cog server
ANSWER_SECONDS = 3  # timeout of every call except a prediction; such a server is near
NOTHING_LISTENS = "backend-nothing-listens"
EVENTS = ("start", "logs")  # the result comes with the answer
# How coglet 0.23.1 reports a worker that died, during this prediction or before it. An error raised by the model
# reads "Prediction failed: ...".
DEAD_WORKER = ("Worker crashed", "Broken pipe")


def cog_client(url: str) -> httpx.Client:
    """Return a client for a Cog server; it ignores proxy settings.

    Every call has its own connection: closing one gives up one prediction, and a server that was restarted cannot
    have left a dead one behind.
    """
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.Client(base_url=url, timeout=ANSWER_SECONDS, trust_env=False, limits=limits)


class CogBackend:
    """A Cog server on this machine, which draws one picture at a time.

    409 means "busy" only while its health is BUSY: a server whose worker has died answers 409 to everything, for
    ever. Each attempt has its own id, because an id that is sent again after its end is drawn again.
    """

    name: BackendName = "cog"
    slots = 1
    is_synchronous = True

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self._streams: dict[str, httpcore.NetworkStream] = {}  # attempt -> its connection

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def health(self) -> str:
        """Return the server's health: READY, BUSY, STARTING, SETUP_FAILED, UNHEALTHY or DEFUNCT.

        Raises:
            BackendDownError: the server does not tell.
        """
        try:
            answer = self._client.get("/health-check")
            status = msgspec.json.decode(answer.content, type=dict[str, Any]).get("status")
        except (httpx.HTTPError, msgspec.DecodeError) as error:
            if _is_refused(error):
                raise BackendDownError(NOTHING_LISTENS) from error
            raise BackendDownError("backend-no-health", reason=name_of(error)) from error
        if not isinstance(status, str):
            raise BackendDownError("backend-no-health", reason="no status in its answer")
        return status

    def is_ready(self) -> bool:
        """Return whether the server is up and idle."""
        try:
            return self.health() == "READY"
        except BackendDownError:
            return False

    def find_fault(self) -> Message | None:
        """Return the server's health unless it is READY or BUSY."""
        try:
            health = self.health()
        except BackendDownError as error:
            return error.message
        return None if health in DRAWING else Message("backend-unhealthy", {"health": health[:40]})

    def submit(
        self, attempt_id: str, inputs: Mapping[str, Any], *, webhook: str | None, seconds: float
    ) -> Report:
        """Draw; return the result."""
        body: dict[str, Any] = {"input": dict(inputs)}
        if webhook is not None:
            body |= {"webhook": webhook, "webhook_events_filter": EVENTS}
        timeout = httpx.Timeout(ANSWER_SECONDS, read=max(seconds, 1))

        def watch(event: str, values: dict[str, Any]) -> None:
            if event == "connection.connect_tcp.complete":
                self._streams[attempt_id] = values["return_value"]

        try:
            answer = self._client.put(
                f"/predictions/{attempt_id}", json=body, timeout=timeout, extensions={"trace": watch}
            )
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise BackendDownError("backend-unreachable", backend=COG, reason=name_of(error)) from error
        except httpx.HTTPError as error:
            raise BackendUncertainError("backend-answer-lost", backend=COG, reason=name_of(error)) from error
        finally:
            self._streams.pop(attempt_id, None)
        if answer.status_code == httpx.codes.CONFLICT:
            health = self.health()
            if health in DRAWING:  # READY: it has become free since
                raise BackendBusyError("backend-busy")
            raise BackendDownError("backend-takes-nothing", health=health[:40])
        report = read_answer(answer, COG)
        if report.status == FAILED and any(sign in (report.error or "") for sign in DEAD_WORKER):
            raise BackendUncertainError("backend-lost-worker", reason=str(report.error))
        return report

    def cancel(self, remote_id: str) -> None:
        """Cancel within one step."""
        call(self._client, "POST", f"/predictions/{remote_id}/cancel", COG)

    def abandon(self, remote_id: str) -> None:
        """Hang up: the thread that waits for the answer gets an error at once."""
        stream = self._streams.get(remote_id)
        if stream is not None:
            with contextlib.suppress(OSError):  # it has just been closed
                stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    def look_up(self, remote_id: str) -> None:
        """Return None: the server has no such call."""

    def find(self, inputs: Mapping[str, Any]) -> None:
        """Return None: the server has no such call."""


def _is_refused(error: BaseException | None) -> bool:
    """Return whether the machine is there and refused the connection: httpx wraps what httpcore wraps."""
    while error is not None and not isinstance(error, ConnectionRefusedError):
        error = error.__cause__ or error.__context__
    return error is not None
