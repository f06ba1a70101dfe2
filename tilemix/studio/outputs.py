"""From a prediction's output to a picture file of ours, at once: Replicate deletes its files after an hour.

A `data:` URI holds the picture itself. A URL is fetched by https only, from the hosts that outputs come from,
without following redirects, and only if the peer that was really connected to is a public address, so that a
name that leads into this machine's network leads nowhere. Bytes are counted while they come.

A file gets a name from its prediction, is written under another one beside it, synced and renamed before the
database says that it is there. Killed in between, the same step done again gives the same file.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import ipaddress
import logging
import os
import re
import secrets
import ssl
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpcore
from sqlalchemy import select

from tilemix.errors import ImageFileError, OutputError
from tilemix.provenance import open_picture, read_record, record_json
from tilemix.studio.database import utc_now
from tilemix.studio.schema import Output, Prediction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import datetime
    from pathlib import Path

    from tilemix.studio.database import Database

logger = logging.getLogger(__name__)

MAX_PICTURE_BYTES = 32 * 2**20
FETCH_SECONDS = 30  # for connecting and between two pieces
OUTPUT_HOSTS = ("replicate.delivery",)  # and the hosts below them
DATA_URI = re.compile(r"data:[a-z]+/[a-z0-9.+-]+;base64,", re.IGNORECASE)
MEDIA_TYPES = {"PNG": ("image/png", "png"), "JPEG": ("image/jpeg", "jpg"), "WEBP": ("image/webp", "webp")}
FIRST_WAIT = timedelta(seconds=2)  # after a failure; then twice as long each time
LONGEST_WAIT = timedelta(seconds=120)
GIVEN_UP_AFTER = timedelta(hours=1)
NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture file that is on the disk under its final name."""

    file: str
    media_type: str
    size: int  # bytes
    sha256: str
    width: int  # pixels
    height: int
    record: str | None  # JSON


class Fetcher:
    """Gets outputs by https from public addresses of the hosts that they come from."""

    def __init__(
        self,
        hosts: Iterable[str] = OUTPUT_HOSTS,
        *,
        network: httpcore.NetworkBackend | None = None,
        certificates: ssl.SSLContext | None = None,
        is_allowed: Callable[[str], bool] | None = None,
    ) -> None:
        self._hosts = tuple(hosts)
        guarded = _GuardedNetwork(network or httpcore.SyncBackend(), is_allowed or is_public)
        # No certificates of our own, no proxy: the peer that is checked is the one that answers.
        self._pool = httpcore.ConnectionPool(
            ssl_context=certificates or ssl.create_default_context(), network_backend=guarded
        )

    def fetch(self, url: str) -> bytes:
        """Return what stands at a URL.

        Raises:
            OutputError: it is not let through, too large, or cannot be had.
        """
        self._check(url)
        timeout = dict.fromkeys(("connect", "read", "write", "pool"), FETCH_SECONDS)
        try:
            with self._pool.stream("GET", url, extensions={"timeout": timeout}) as answer:
                if answer.status != 200:
                    # 404: it has been deleted. A redirect is not followed.
                    is_final = 300 <= answer.status < 500 and answer.status not in (408, 425, 429)
                    raise OutputError(f"the output's host answers {answer.status}", is_final=is_final)
                data = bytearray()
                for piece in answer.iter_stream():
                    data += piece
                    if len(data) > MAX_PICTURE_BYTES:
                        raise OutputError(
                            f"the output has more than {MAX_PICTURE_BYTES} bytes", is_final=True
                        )
        except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
            raise OutputError(
                f"the output cannot be fetched: {type(error).__name__}", is_final=False
            ) from error
        return bytes(data)

    def _check(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise OutputError("the output's URL is none", is_final=True) from None
        is_known = any(host == known or host.endswith(f".{known}") for known in self._hosts)
        is_plain = parts.username is None and parts.password is None and port in (None, 443)
        if parts.scheme != "https" or not is_known or not is_plain:
            raise OutputError(
                f"the output's URL is of {parts.scheme[:16]!r} and host {host[:80]!r}; "
                f"expected https and {' or '.join(self._hosts)}",
                is_final=True,
            )


class OutputTaker:
    """Takes the pictures of predictions that succeeded: `step()` for its worker."""

    def __init__(
        self,
        database: Database,
        folder: Path,
        *,
        fetcher: Fetcher | None = None,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._database = database
        self._folder = folder
        self._fetcher = fetcher or Fetcher()
        self._clock = clock

    def recover(self) -> None:
        """Make the folder, and remove what a studio that was killed had begun to write."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for begun in self._folder.glob(".*.tmp"):
            begun.unlink()

    def step(self) -> bool:
        """Take the oldest picture that is due; return whether there was one."""
        now = self._clock()
        due = (
            select(Output.prediction, Output.source, Prediction.id)
            .join(Prediction, Prediction.number == Output.prediction)
            .where(Output.state == "pending", Output.source.is_not(None), Output.next_attempt_at <= now)
            .order_by(Output.prediction)
            .limit(1)
        )
        with self._database.read() as session:
            row = session.execute(due).first()
        if row is None:
            return False
        number, source, identity = row
        try:
            picture = keep_picture(self._folder, identity, self._load(source))
        except OutputError as error:
            logger.warning("the picture of %s: %s", identity, error)
            self._note_failure(number, error)
        else:
            self._note_picture(number, picture)
        return True

    def _load(self, source: str | None) -> bytes:
        assert source is not None
        return read_data_uri(source) if source[:5].lower() == "data:" else self._fetcher.fetch(source)

    def _note_picture(self, number: int, picture: Picture) -> None:
        with self._database.write() as session:
            output = session.get_one(Output, number, with_for_update=True)
            output.state, output.source, output.error = "taken", None, None
            output.taken_at = self._clock()
            for name in picture.__dataclass_fields__:
                setattr(output, name, getattr(picture, name))

    def _note_failure(self, number: int, error: OutputError) -> None:
        now = self._clock()
        with self._database.write() as session:
            output = session.get_one(Output, number, with_for_update=True)
            output.error = str(error)
            output.attempts += 1
            wait = min(FIRST_WAIT * 2 ** min(output.attempts - 1, 10), LONGEST_WAIT)
            output.next_attempt_at = now + wait
            if error.is_final or now > output.created_at + GIVEN_UP_AFTER:
                output.state, output.source = "failed", None


def keep_picture(folder: Path, identity: str, data: bytes) -> Picture:
    """Check that `data` is a picture and make it a file of the folder, complete and on the disk.

    Raises:
        OutputError: it is no picture, or the folder cannot be written.
    """
    temporary = folder / f".{secrets.token_hex(8)}.tmp"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        picture = open_picture(temporary)
        media_type, extension = MEDIA_TYPES[picture.format or ""]
        name = f"{identity}.{extension}"
        record = None
        with contextlib.suppress(ImageFileError):  # another model's picture has no record of ours
            record = record_json(read_record(temporary))
        temporary.replace(folder / name)
        sync_folder(folder)
    except ImageFileError as error:
        message = str(error).replace(str(temporary), "the output")
        raise OutputError(message, is_final=True) from error
    except OSError as error:
        raise OutputError(f"the picture cannot be written: {error.strerror}", is_final=False) from error
    finally:
        temporary.unlink(missing_ok=True)
    return Picture(
        file=name,
        media_type=media_type,
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        width=picture.width,
        height=picture.height,
        record=record,
    )


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_data_uri(uri: str) -> bytes:
    """Return the bytes in a `data:` URI in base64.

    Source: RFC 2397.

    Raises:
        OutputError: it is none, or holds more than 32 MiB.
    """
    head = DATA_URI.match(uri[:200])
    if head is None:
        raise OutputError("the output is no data: URI in base64", is_final=True)
    if len(uri) > MAX_PICTURE_BYTES * 4 // 3 + 200:
        raise OutputError(f"the output has more than {MAX_PICTURE_BYTES} bytes", is_final=True)
    try:
        return base64.b64decode(uri[head.end() :], validate=True)
    except ValueError as error:
        raise OutputError("the output's data: URI is no base64", is_final=True) from error


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the open internet, whatever it is wrapped in."""
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
    """Connects, looks who is at the other end, and hangs up on whoever is not allowed before a byte is sent."""

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
            raise OutputError("the output's host is at an address that is not public", is_final=True)
        return stream
