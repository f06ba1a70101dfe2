"""The back ends that draw: a local Cog server or Replicate, behind one interface.

`cog_backend` and `replicate_backend` hold one each.

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

from typing import TYPE_CHECKING, Any, Protocol

import httpx

from tilemix.errors import BackendDownError, BackendRefusedError, BackendUncertainError, DeliveryError
from tilemix.studio.predictions import parse_report
from tilemix.studio.settings import mask

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tilemix.errors import Message
    from tilemix.studio.predictions import Report
    from tilemix.studio.settings import BackendName

CALL_SECONDS = 10  # timeout of every call except a synchronous prediction
MAX_REASON_CHARACTERS = 500


class Backend(Protocol):
    """What the queue and the reconciler need from a back end. All methods are thread-safe."""

    name: BackendName
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

    def abandon(self, remote_id: str) -> None:
        """Stop waiting for the answer: submit() raises BackendUncertainError. Without effect if none is awaited."""

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


def call(client: httpx.Client, method: str, path: str, backend: str) -> httpx.Response:
    """Make a call that starts no prediction; messages name the `backend`.

    Raises:
        BackendDownError: it cannot be reached, is broken or takes no more calls.
    """
    try:
        answer = client.request(method, path)
    except httpx.HTTPError as error:
        raise BackendDownError("backend-unreachable", backend=backend, reason=name_of(error)) from error
    if answer.is_server_error or answer.status_code == httpx.codes.TOO_MANY_REQUESTS:
        raise BackendDownError("backend-answers", backend=backend, status=answer.status_code)
    return answer


def read_answer(answer: httpx.Response, backend: str) -> Report:
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
            "backend-unreadable-answer", backend=backend, **error.message.as_reason()
        ) from error


def name_of(error: Exception) -> str:
    """Return what a message says about a network error: its kind, since its text may hold an address."""
    return type(error).__name__
