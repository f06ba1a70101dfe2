"""The back end at Replicate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import msgspec

from tilemix.errors import (
    BackendBusyError,
    BackendDownError,
    BackendError,
    BackendRefusedError,
    BackendUncertainError,
    DeliveryError,
)
from tilemix.studio.backends import CALL_SECONDS, call, name_of, read_answer
from tilemix.studio.predictions import parse_report
from tilemix.studio.settings import Secret

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tilemix.studio.predictions import Report
    from tilemix.studio.settings import BackendName

REPLICATE_URL = "https://api.replicate.com/v1"
REPLICATE = "Replicate"  # in messages
EVENTS = ("start", "logs", "completed")
SHORTEST_CANCEL_AFTER = 5  # seconds, the least that Replicate accepts


def replicate_client(token: Secret, *, transport: httpx.BaseTransport | None = None) -> httpx.Client:
    """Return a client for Replicate's API that sends the token."""
    headers = {"Authorization": f"Bearer {token.reveal()}"}
    return httpx.Client(base_url=REPLICATE_URL, headers=headers, timeout=CALL_SECONDS, transport=transport)


class ReplicateBackend:
    """Replicate's API.

    Source: https://replicate.com/docs/reference/http
    """

    name: BackendName = "replicate"
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
            body |= {"webhook": webhook, "webhook_events_filter": EVENTS}
        headers = {"Cancel-After": f"{max(int(seconds), SHORTEST_CANCEL_AFTER)}s"}
        try:
            answer = self._client.post("/predictions", json=body, headers=headers)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise BackendDownError("backend-unreachable", backend=REPLICATE, reason=name_of(error)) from error
        except httpx.HTTPError as error:
            raise BackendUncertainError(
                "backend-answer-lost", backend=REPLICATE, reason=name_of(error)
            ) from error
        if answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
            raise BackendBusyError("backend-throttled")
        return read_answer(answer, REPLICATE)

    def cancel(self, remote_id: str) -> None:
        """Cancel."""
        call(self._client, "POST", f"/predictions/{remote_id}/cancel", REPLICATE)

    def abandon(self, remote_id: str) -> None:
        """Do nothing: submit() returns at once."""

    def look_up(self, remote_id: str) -> Report:
        """Return the current state."""
        answer = call(self._client, "GET", f"/predictions/{remote_id}", REPLICATE)
        if answer.is_client_error:
            raise BackendRefusedError("backend-unknown-prediction", status=answer.status_code)
        return read_answer(answer, REPLICATE)

    def find(self, inputs: Mapping[str, Any]) -> Report | None:
        """Search the latest hundred for one with these inputs; the seed tells them apart."""
        answer = call(self._client, "GET", "/predictions", REPLICATE)
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
        answer = call(self._client, "GET", "/webhooks/default/secret", REPLICATE)
        try:
            return Secret(msgspec.json.decode(answer.content, type=dict[str, str])["key"])
        except (msgspec.DecodeError, KeyError):
            # Not "from": the text that could not be decoded may contain the key.
            raise BackendError("backend-no-signing-secret", status=answer.status_code) from None


class _Page(msgspec.Struct):
    results: list[msgspec.Raw]


class _Listed(msgspec.Struct):
    input: dict[str, Any] | None = None
