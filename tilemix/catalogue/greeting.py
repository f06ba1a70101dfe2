"""Whether Ray answers at an address, known in seconds; Ray itself tries for minutes.

Ray speaks gRPC, over HTTP/2, whose server greets whoever has sent the preface.

Source: RFC 9113, "HTTP/2", sections 3.4, 4.1 and 6.5, https://www.rfc-editor.org/rfc/rfc9113
"""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

ANSWER_SECONDS = 5.0
CLIENT_PORT, PORT = 10001, 6379  # Ray's own, of ray:// and of other addresses
HEADER_BYTES, TYPE_AT, SETTINGS = 9, 3, b"\x04"  # of a frame
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + SETTINGS + bytes(5)  # and no settings


def greet(address: str) -> None:
    """Connect to a cluster as Ray does, and wait for its greeting.

    Raises:
        OSError: nothing listens there, or does not answer.
        ValueError: the address cannot be read, or the answer is another one.
    """
    parts = urlsplit(address if "://" in address else f"//{address}")
    port = parts.port or (CLIENT_PORT if parts.scheme == "ray" else PORT)
    with socket.create_connection((parts.hostname or "", port), ANSWER_SECONDS) as connection:
        if os.environ.get("RAY_USE_TLS", "0") != "0":  # the answer would be encrypted
            return
        connection.sendall(PREFACE)
        with connection.makefile("rb") as answer:
            if answer.read(HEADER_BYTES)[TYPE_AT:][:1] != SETTINGS:
                raise ValueError("something other than Ray listens there")
