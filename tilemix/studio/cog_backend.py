"""The back end on this machine: a Cog server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import msgspec

from tilemix.errors import BackendBusyError, BackendDownError, BackendUncertainError, Message
from tilemix.studio.backends import CALL_SECONDS, call, name_of, read_answer
from tilemix.studio.predictions import FAILED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tilemix.studio.predictions import Report

COG = "the Cog server"  # in messages
DRAWING = frozenset({"READY", "BUSY"})  # a healthy Cog server
EVENTS = ("start", "logs")  # the result comes with the answer
# How coglet 0.23.1 reports a worker that died, during this prediction or before it. An error raised by the model
# reads "Prediction failed: ...".
DEAD_WORKER = ("Worker crashed", "Broken pipe")


def cog_client(url: str) -> httpx.Client:
    """Return a client for a Cog server; it ignores proxy settings."""
    return httpx.Client(base_url=url, timeout=CALL_SECONDS, trust_env=False)


class CogBackend:
    """A Cog server on this machine, which draws one picture at a time.

    409 means "busy" only while its health is BUSY: a server whose worker has died answers 409 to everything, for
    ever. Each attempt has its own id, because an id that is sent again after its end is drawn again.
    """

    name = "cog"
    slots = 1
    is_synchronous = True

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

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
        timeout = httpx.Timeout(CALL_SECONDS, read=max(seconds, 1))
        try:
            answer = self._client.put(f"/predictions/{attempt_id}", json=body, timeout=timeout)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise BackendDownError("backend-unreachable", backend=COG, reason=name_of(error)) from error
        except httpx.HTTPError as error:
            raise BackendUncertainError("backend-answer-lost", backend=COG, reason=name_of(error)) from error
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

    def look_up(self, remote_id: str) -> None:
        """Return None: the server has no such call."""

    def find(self, inputs: Mapping[str, Any]) -> None:
        """Return None: the server has no such call."""
