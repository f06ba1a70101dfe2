"""Authenticates webhooks: by a Standard Webhooks signature, by a bearer token or by a key in their address.

The endpoint decides which of them is needed, never the request. `standardwebhooks` verifies signatures, but only
after our own check of the headers: version 1.1.0 parses the timestamp as a float ("1_7", "１７"), skips characters
that are not base64, and raises foreign exceptions for some malformed headers.

Source: Standard Webhooks specification 1.0.0, https://github.com/standard-webhooks/standard-webhooks
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import re
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from standardwebhooks import Webhook, WebhookVerificationError

from tilemix.errors import BackendError, DeliveryError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from tilemix.studio.settings import Secret

logger = logging.getLogger(__name__)

PREFIX = "whsec_"
KEY_BYTES = (24, 64)
HEADERS = ("webhook-id", "webhook-timestamp", "webhook-signature")
ID = re.compile(r"[A-Za-z0-9_-]{1,128}")  # no full stop: it separates the signed fields
TIMESTAMP = re.compile(r"[0-9]{10}")  # seconds, until the year 2286
SIGNATURE = re.compile(r"v[0-9]{1,3}a?,[A-Za-z0-9+/]+={0,2}")
MAX_SIGNATURE_CHARACTERS = 1024
MAX_SIGNATURES = 8
REFETCH_SECONDS = 60  # at least, between two requests for the sender's current key


@dataclass(frozen=True, slots=True)
class SignedHeaders:
    """The three headers of a signed delivery, checked."""

    id: str
    timestamp: str  # ten digits, seconds
    signature: str  # `v1,BASE64`, several separated by spaces

    @classmethod
    def parse(cls, headers: Iterable[tuple[bytes, bytes]]) -> SignedHeaders:
        """Read them from a request's raw headers.

        Raises:
            DeliveryError: a header is missing, repeated or malformed; status 400.
        """
        found: dict[str, list[str]] = {name: [] for name in HEADERS}
        for raw_name, raw_value in headers:
            name = raw_name.decode("latin-1").lower()
            if name in found:
                found[name].append(raw_value.decode("latin-1"))
        for name, values in found.items():
            if len(values) != 1:
                raise DeliveryError("delivery-wrong-headers", status=400, name=name, count=len(values))
        (identity,), (timestamp,), (signature,) = (found[name] for name in HEADERS)
        if not ID.fullmatch(identity):
            raise DeliveryError("delivery-bad-id", status=400)
        if not TIMESTAMP.fullmatch(timestamp):
            raise DeliveryError("delivery-bad-timestamp", status=400)
        tokens = signature.split(" ")
        is_short = len(signature) <= MAX_SIGNATURE_CHARACTERS and len(tokens) <= MAX_SIGNATURES
        if not is_short or not all(SIGNATURE.fullmatch(token) for token in tokens):
            raise DeliveryError("delivery-bad-signature", status=400)
        return cls(identity, timestamp, signature)


class Keyring:
    """The keys that may have signed a delivery; several while a new key replaces an old one.

    `refetch` asks the sender for its current key. It is called when no key fits, because the sender may have a new
    one, but at most once a minute, because anybody can send forgeries.
    """

    def __init__(
        self,
        secrets: Sequence[Secret],
        *,
        refetch: Callable[[], Secret] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = [_make_verifier(secret) for secret in secrets]
        self._refetch = refetch
        self._clock = clock
        self._next_refetch = clock()
        self._turn = threading.Lock()

    def verify(self, headers: SignedHeaders, body: bytes) -> None:
        """Check that one of the keys signed this body in the last 300 seconds.

        Raises:
            DeliveryError: no key did; status 401. Or the sender is just being asked for its key; status 503.
        """
        if self._fits(headers, body) or (self._add_current_key() and self._fits(headers, body)):
            return
        raise DeliveryError("delivery-not-signed", status=401)

    def _fits(self, headers: SignedHeaders, body: bytes) -> bool:
        given = dict(zip(HEADERS, (headers.id, headers.timestamp, headers.signature), strict=True))
        for key in list(self._keys):
            try:
                key.verify(body, given, json_parse=False)
            except (WebhookVerificationError, ValueError, binascii.Error):
                continue  # ValueError: base64 of an impossible length, a body that is not UTF-8
            return True
        return False

    def _add_current_key(self) -> bool:
        if self._refetch is None:
            return False
        if not self._turn.acquire(blocking=False):
            raise DeliveryError("delivery-not-stored", status=503)
        try:
            if self._clock() < self._next_refetch:
                return False
            self._next_refetch = self._clock() + REFETCH_SECONDS
            self._keys.append(_make_verifier(self._refetch()))
            del self._keys[:-MAX_SIGNATURES]
        except (BackendError, SettingsError) as error:
            logger.warning("cannot get the current signing secret: %s", error)
            return False
        finally:
            self._turn.release()
        return True


def check_bearer(headers: Iterable[tuple[bytes, bytes]], token: Secret | None) -> None:
    """Check that the request carries the token, in constant time.

    Raises:
        DeliveryError: it does not, or no token is set, so nothing can be accepted; status 401.
    """
    given = [value for name, value in headers if name.lower() == b"authorization"]
    expected = b"Bearer " + (token.reveal().encode() if token is not None else b"")
    if token is None or len(given) != 1 or not hmac.compare_digest(given[0], expected):
        raise DeliveryError("studio-unauthorized", status=401)


def make_address_key(secret: Secret, prediction_id: str) -> str:
    """Return the key for the address of one prediction's webhooks, 64 hex digits."""
    return hmac.digest(secret.reveal().encode(), prediction_id.encode(), hashlib.sha256).hex()


def check_address_key(given: str, secret: Secret, prediction_id: str) -> None:
    """Check that an address carries the key of its prediction, in constant time.

    Raises:
        DeliveryError: it does not; status 401.
    """
    expected = make_address_key(secret, prediction_id)
    if not hmac.compare_digest(given.encode(), expected.encode()):
        raise DeliveryError("delivery-wrong-key", status=401)


def _make_verifier(secret: Secret) -> Webhook:
    text = secret.reveal()
    try:
        key = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except ValueError:
        raise SettingsError("settings-secret-not-base64") from None
    low, high = KEY_BYTES
    if not text.startswith(PREFIX) or not low <= len(key) <= high:
        raise SettingsError("settings-bad-secret", low=low, high=high)
    return Webhook(key)
