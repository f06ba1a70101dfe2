"""The back ends that draw: a local Cog server or Replicate, behind one interface.

==============  =================================================  ======================================
                CogBackend                                         ReplicateBackend
==============  =================================================  ======================================
submit()        waits for the result in the answer                 returns at once
webhooks        start and logs, for progress                       start, logs and completed
look_up()       None: that server has no status call               the current state
find()          None                                               a prediction whose answer was lost
slots           one                                                as many as the settings say
==============  =================================================  ======================================

Tokens are sent in headers only and never appear in messages or logs.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Protocol

import httpx
import msgspec

from tilemix.errors import (
    BackendBusyError,
    BackendDownError,
    BackendError,
    BackendRefusedError,
    BackendUncertainError,
    DeliveryError,
    Message,
)
from tilemix.studio.predictions import FAILED, parse_report
from tilemix.studio.settings import Secret, mask

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tilemix.studio.predictions import Report

logger = logging.getLogger(__name__)

REPLICATE_URL = "https://api.replicate.com/v1"
COG, REPLICATE = "the Cog server", "Replicate"  # in messages
CALL_SECONDS = 10  # timeout of every call except a synchronous prediction
DRAWING = frozenset({"READY", "BUSY"})  # a healthy Cog server
COG_EVENTS = ("start", "logs")  # the result comes with the answer
REPLICATE_EVENTS = ("start", "logs", "completed")
# How coglet 0.23.1 reports a worker that died, during this prediction or before it. An error raised by the model
# reads "Prediction failed: ...".
DEAD_WORKER = ("Worker crashed", "Broken pipe")
SHORTEST_CANCEL_AFTER = 5  # seconds, the least that Replicate accepts
MAX_REASON_CHARACTERS = 500


class Backend(Protocol):
    """What the queue and the reconciler need from a back end. All methods are thread-safe."""

    name: str  # as in the column `backend`
    slots: int  # predictions that may run at the same time
    is_synchronous: bool  # submit() returns when the prediction has ended

    def is_ready(self) -> bool:
        """Return whether a prediction may be submitted now."""

    def find_fault(self) -> Message | None:
        """Return why nothing can be drawn now; None if it can, if it is only busy, or if only submit() can tell."""

    def submit(
        self, attempt_id: str, inputs: Mapping[str, Any], *, webhook: str | None, seconds: float
    ) -> Report:
        """Start a prediction that may take `seconds`; return its state.

        Raises:
            BackendBusyError, BackendDownError: it has not started.
            BackendRefusedError: it never will.
            BackendUncertainError: it may have started.
        """

    def cancel(self, remote_id: str) -> None:
        """Cancel a prediction; one that the back end does not know (any more) is not an error.

        Raises:
            BackendError: the back end cannot be asked.
        """

    def look_up(self, remote_id: str) -> Report | None:
        """Return a prediction's state; None if the back end has no such call.

        Raises:
            BackendError: the back end cannot be asked, or does not know the prediction.
        """

    def find(self, inputs: Mapping[str, Any]) -> Report | None:
        """Return the latest prediction with these inputs; None if there is none, or no such call.

        Raises:
            BackendError: the back end cannot be asked.
        """

    def close(self) -> None:
        """Close its connections."""


def cog_client(url: str) -> httpx.Client:
    """Return a client for a Cog server; it ignores proxy settings."""
    return httpx.Client(base_url=url, timeout=CALL_SECONDS, trust_env=False)


def replicate_client(token: Secret, *, transport: httpx.BaseTransport | None = None) -> httpx.Client:
    """Return a client for Replicate's API that sends the token."""
    headers = {"Authorization": f"Bearer {token.reveal()}"}
    return httpx.Client(base_url=REPLICATE_URL, headers=headers, timeout=CALL_SECONDS, transport=transport)


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
            raise BackendDownError("backend-no-health", reason=_name(error)) from error
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
            body |= {"webhook": webhook, "webhook_events_filter": COG_EVENTS}
        timeout = httpx.Timeout(CALL_SECONDS, read=max(seconds, 1))
        try:
            answer = self._client.put(f"/predictions/{attempt_id}", json=body, timeout=timeout)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise BackendDownError("backend-unreachable", backend=COG, reason=_name(error)) from error
        except httpx.HTTPError as error:
            raise BackendUncertainError("backend-answer-lost", backend=COG, reason=_name(error)) from error
        if answer.status_code == httpx.codes.CONFLICT:
            health = self.health()
            if health in DRAWING:  # READY: it has become free since
                raise BackendBusyError("backend-busy")
            raise BackendDownError("backend-takes-nothing", health=health[:40])
        report = _read_answer(answer, COG)
        if report.status == FAILED and any(sign in (report.error or "") for sign in DEAD_WORKER):
            raise BackendUncertainError("backend-lost-worker", reason=str(report.error))
        return report

    def cancel(self, remote_id: str) -> None:
        """Cancel within one step."""
        _call(self._client, "POST", f"/predictions/{remote_id}/cancel", COG)

    def look_up(self, remote_id: str) -> None:
        """Return None: the server has no such call."""

    def find(self, inputs: Mapping[str, Any]) -> None:
        """Return None: the server has no such call."""


class ReplicateBackend:
    """Replicate's API.

    Source: https://replicate.com/docs/reference/http
    """

    name = "replicate"
    is_synchronous = False

    def __init__(self, client: httpx.Client, *, version: str, slots: int) -> None:
        self.slots = slots
        self._version = version
        self._client = client

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def is_ready(self) -> bool:
        """Return True: only submit() can tell."""
        return True

    def find_fault(self) -> None:
        """Return None: only submit() can tell."""

    def submit(
        self,
        attempt_id: str,  # noqa: ARG002  Replicate assigns its own id
        inputs: Mapping[str, Any],
        *,
        webhook: str | None,
        seconds: float,
    ) -> Report:
        """Start; return Replicate's id and the first status."""
        body: dict[str, Any] = {"version": self._version, "input": dict(inputs)}
        if webhook is not None:
            body |= {"webhook": webhook, "webhook_events_filter": REPLICATE_EVENTS}
        headers = {"Cancel-After": f"{max(int(seconds), SHORTEST_CANCEL_AFTER)}s"}
        try:
            answer = self._client.post("/predictions", json=body, headers=headers)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise BackendDownError("backend-unreachable", backend=REPLICATE, reason=_name(error)) from error
        except httpx.HTTPError as error:
            raise BackendUncertainError(
                "backend-answer-lost", backend=REPLICATE, reason=_name(error)
            ) from error
        if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
            raise BackendBusyError("backend-throttled")
        return _read_answer(answer, REPLICATE)

    def cancel(self, remote_id: str) -> None:
        """Cancel."""
        _call(self._client, "POST", f"/predictions/{remote_id}/cancel", REPLICATE)

    def look_up(self, remote_id: str) -> Report:
        """Return the current state."""
        answer = _call(self._client, "GET", f"/predictions/{remote_id}", REPLICATE)
        if answer.is_client_error:
            raise BackendRefusedError("backend-unknown-prediction", status=answer.status_code)
        return _read_answer(answer, REPLICATE)

    def find(self, inputs: Mapping[str, Any]) -> Report | None:
        """Search the latest hundred for one with these inputs; the seed tells them apart."""
        answer = _call(self._client, "GET", "/predictions", REPLICATE)
        try:
            for raw in msgspec.json.decode(answer.content, type=_Page).results:
                theirs = msgspec.json.decode(raw, type=_Listed).input or {}
                if all(theirs.get(name) == value for name, value in inputs.items()):
                    return parse_report(bytes(raw))
        except (msgspec.DecodeError, DeliveryError) as error:
            raise BackendError("backend-unreadable-list", status=answer.status_code) from error
        return None

    def fetch_signing_secret(self) -> Secret:
        """Return the key with which Replicate signs this account's webhooks.

        Raises:
            BackendError: Replicate does not give it.
        """
        answer = _call(self._client, "GET", "/webhooks/default/secret", REPLICATE)
        try:
            return Secret(msgspec.json.decode(answer.content, type=dict[str, str])["key"])
        except (msgspec.DecodeError, KeyError):
            # Not "from": the text that could not be decoded may contain the key.
            raise BackendError("backend-no-signing-secret", status=answer.status_code) from None


class _Page(msgspec.Struct):
    results: list[msgspec.Raw]


class _Listed(msgspec.Struct):
    input: dict[str, Any] | None = None


def _call(client: httpx.Client, method: str, path: str, backend: str) -> httpx.Response:
    try:
        answer = client.request(method, path)
    except httpx.HTTPError as error:
        raise BackendDownError("backend-unreachable", backend=backend, reason=_name(error)) from error
    if answer.is_server_error or answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
        raise BackendDownError("backend-answers", backend=backend, status=answer.status_code)
    return answer


def _read_answer(answer: httpx.Response, backend: str) -> Report:
    """Return the prediction in an answer; raises the errors of `Backend.submit()`."""
    if answer.is_server_error:
        kind = (
            BackendDownError
            if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE
            else BackendUncertainError
        )
        raise kind("backend-answers", backend=backend, status=answer.status_code)
    if not answer.is_success:
        reason = mask(answer.text[:MAX_REASON_CHARACTERS].replace("\0", ""))  # it may repeat what was sent
        raise BackendRefusedError(
            "backend-refuses", backend=backend, status=answer.status_code, reason=reason
        )
    try:
        return parse_report(answer.content)
    except DeliveryError as error:
        raise BackendUncertainError(
            "backend-unreadable-answer", backend=backend, reason=str(error)
        ) from error


def _name(error: Exception) -> str:
    return type(error).__name__
