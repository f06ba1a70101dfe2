"""Loads an output: a `data:` URI that contains the picture, or a URL.

URLs are fetched over https, from known hosts, without redirects, and only if the connected peer has a public
address. So a host name that resolves into the local network gets nowhere. Bytes are counted as they arrive.
"""

from __future__ import annotations

import base64
import ipaddress
import re
import ssl
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpcore

from tilemix.errors import OutputError
from tilemix.studio.clock import SystemClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tilemix.studio.clock import Clock

MAX_PICTURE_BYTES = 32 * 2**20
WAIT_SECONDS = 10.0  # for a connection, and for each piece
FETCH_SECONDS = 120.0  # for the whole picture
SLOWEST = 32 * 2**10  # bytes a second, on average after the first wait
OUTPUT_HOSTS = ("replicate.delivery",)  # and their subdomains
DATA_URI = re.compile(r"data:[a-z]+/[a-z0-9.+-]+;base64,", re.IGNORECASE)
NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Fetcher:
    """Fetches outputs over https from the public addresses of known hosts."""

    def __init__(
        self,
        hosts: Iterable[str] = OUTPUT_HOSTS,
        *,
        network: httpcore.NetworkBackend | None = None,
        certificates: ssl.SSLContext | None = None,
        is_allowed: Callable[[str], bool] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self._hosts = tuple(hosts)
        guarded = _GuardedNetwork(network or httpcore.SyncBackend(), is_allowed or is_public)
        # No proxy: the peer that is checked must be the one that answers.
        self._pool = httpcore.ConnectionPool(
            ssl_context=certificates or ssl.create_default_context(), network_backend=guarded
        )

    def fetch(self, url: str) -> bytes:
        """Return the content at a URL.

        Raises:
            OutputError: the URL is not allowed, the content is too large or too slow, or it cannot be fetched.
        """
        self._check(url)
        timeout = dict.fromkeys(("connect", "read", "write", "pool"), WAIT_SECONDS)
        began = self._clock.monotonic()
        try:
            with self._pool.stream("GET", url, extensions={"timeout": timeout}) as answer:
                if answer.status != 200:
                    # 404: deleted. Redirects are not followed.
                    is_final = 300 <= answer.status < 500 and answer.status not in (408, 425, 429)
                    raise OutputError("output-host-answers", is_final=is_final, status=answer.status)
                data = bytearray()
                for piece in answer.iter_stream():
                    data += piece
                    if len(data) > MAX_PICTURE_BYTES:
                        raise OutputError("output-too-large", is_final=True, most=MAX_PICTURE_BYTES)
                    seconds = self._clock.monotonic() - began
                    if seconds > FETCH_SECONDS or len(data) < SLOWEST * (seconds - WAIT_SECONDS):
                        raise OutputError(
                            "output-too-slow", is_final=False, size=len(data), seconds=round(seconds)
                        )
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
            raise OutputError("output-unreachable", is_final=False, reason=type(error).__name__) from error
        return bytes(data)

    def _check(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise OutputError("output-bad-url", is_final=True) from None
        is_known = any(host == known or host.endswith(f".{known}") for known in self._hosts)
        is_plain = parts.username is None and parts.password is None and port in (None, 443)
        if parts.scheme != "https" or not is_known or not is_plain:
            raise OutputError(
                "output-foreign-url",
                is_final=True,
                scheme=parts.scheme[:16],
                host=host[:80],
                hosts=", ".join(self._hosts),
            )


def read_data_uri(uri: str) -> bytes:
    """Return the bytes in a base64 `data:` URI.

    Source: RFC 2397.

    Raises:
        OutputError: it is not such a URI, or holds more than 32 MiB.
    """
    head = DATA_URI.match(uri[:200])
    if head is None:
        raise OutputError("output-not-data-uri", is_final=True)
    if len(uri) > MAX_PICTURE_BYTES * 4 // 3 + 200:
        raise OutputError("output-too-large", is_final=True, most=MAX_PICTURE_BYTES)
    try:
        return base64.b64decode(uri[head.end() :], validate=True)
    except ValueError as error:
        raise OutputError("output-not-base64", is_final=True) from error


def is_public(address: str) -> bool:
    """Return whether an IP address is public, also when it is embedded in an IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        wrapped = [parsed.ipv4_mapped, parsed.sixtofour, *(parsed.teredo or ())]
        if parsed in NAT64:
            wrapped.append(ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF))
        if not all(inner.is_global for inner in wrapped if inner is not None):
            return False
        if parsed.ipv4_mapped is not None:
            return not parsed.ipv4_mapped.is_multicast
    return parsed.is_global and not parsed.is_multicast


class _GuardedNetwork(httpcore.NetworkBackend):
    """Connects, checks the peer's address, and closes the connection before a byte is sent if it is not allowed."""

    def __init__(self, network: httpcore.NetworkBackend, is_allowed: Callable[[str], bool]) -> None:
        self._network = network
        self._is_allowed = is_allowed

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to a host and check the peer."""
        stream = self._network.connect_tcp(host, port, timeout, local_address, socket_options)
        peer = stream.get_extra_info("server_addr")
        if not peer or not self._is_allowed(peer[0]):
            stream.close()
            raise OutputError("output-private-address", is_final=True)
        return stream
